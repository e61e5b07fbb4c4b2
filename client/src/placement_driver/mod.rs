//! The placement driver as the client sees it: an API over HTTP, at several endpoints.
//!
//! The module owns the HTTP connections and the list of endpoints. Every replica of the placement
//! driver serves the requests made here, so a failing endpoint is passed over for the next one. It
//! promises:
//!
//! - A failed request says whether it may have been carried out ([`ApiError`]).
//! - Endpoints that the placement driver reports are added to the configured ones. The client
//!   therefore finds a placement driver all of whose original replicas have been replaced.
//!
//! The rest of the client uses the placement driver through the trait [`Api`]; [`HttpApi`]
//! implements it with HTTP. A simulation implements it without sockets. Administrators and programs
//! that run a cluster use [`admin`].

pub mod admin;
mod api;
pub mod causes;
mod endpoints;
mod http;
mod sse;

pub use api::{Api, ApiError, Events};
pub use http::HttpApi;
pub use sse::SseEvent;
