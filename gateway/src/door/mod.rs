//! The door: from a new connection to an authenticated user, or to a cancel request.
//!
//! | module | content |
//! |---|---|
//! | `startup` | the first messages of a connection: TLS, the start-up message, cancel requests |
//! | `authentication` | SCRAM-SHA-256, and the delay after a wrong password |
//! | `rules` | who may connect from where and how (pure) |
//! | `tls` | the server's certificate |

pub mod authentication;
pub mod rules;
pub mod startup;
pub mod tls;
