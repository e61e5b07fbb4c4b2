//! The replica's own PostgreSQL server: found, initialised, started, watched, stopped.
//!
//! This module owns the lock on the data directory, the server process, and the private Unix socket
//! that leads to it. Promises:
//!
//! - **R2.** A started server is the only one on its data, and no process of an earlier server is
//!   left. The lock is held for as long as the [`Postgres`] lives, and leftover processes of a
//!   killed node are stopped before the new server starts.
//! - **R1 is possible.** [`Postgres::down`] reports the end of the server process at once, and the
//!   server never restarts itself. The owner of sessions ends the leadership and calls
//!   [`Postgres::restart`].
//! - **Data that is gone is not served.** A server whose data folder was removed would continue
//!   with files that only it still has open. It is ended within [`DATA_CHECK_MS`].
//! - **R6.** Users' sessions ([`SessionRole::User`]) are not superusers: they can change rows of
//!   tables in `public` and nothing else.
//!
//! The module decides nothing: the caller decides when to restart and what a lost session means.
//!
//! Not done: a server does not end with a node that is killed, which would need a signal tied to
//! the parent's death. The next start stops it instead (R2). Orderly ends stop it, `drop` included.

mod config;
mod connector;
mod damage;
mod error;
mod find;
mod handle;
mod layout;
mod leftover;
mod server;
mod settings;
mod sizing;
mod store_error;

pub use config::{MIN_MAJOR, PostgresConfig};
pub use connector::{Connector, SessionRole};
pub(crate) use damage::{is_damage, is_illness};
pub use error::PostgresError;
pub use find::{Binaries, find};
pub use handle::PostgresHandle;
pub use server::{DATA_CHECK_MS, Postgres};
pub(crate) use settings::OWNER_PRIVILEGES;
pub use sizing::Resources;
pub use store_error::StoreError;
