//! The replica's own PostgreSQL: found, made, started, watched, stopped.
//!
//! It owns the data directory's lock, the server process, and the way into it (a private Unix socket). It promises:
//!
//! - **R2.** A started server is the only one on its data, and nothing of an earlier one is left: the lock is held for
//!   as long as the [`Postgres`] lives, and leftover processes of a killed node are stopped before the new server
//!   starts.
//! - **R1 is possible.** The end of the server process is told at once ([`Postgres::down`]); the server never restarts
//!   itself inside. Whoever holds sessions ends the leadership and calls [`Postgres::restart`].
//! - **Data that is gone is not served.** A server whose data folder has been removed would go on, from files that only it
//!   still has open, until it needs another one. It is ended within [`DATA_CHECK_MS`].
//! - **R6.** Users' sessions ([`Role::User`]) are not superusers: they can change rows of tables in `public` and
//!   nothing else.
//!
//! What it does not promise: that the server dies with a node that is killed. That would need a signal tied to the
//! parent's death; instead the next start cleans up (R2). Orderly ends, `drop` included, stop it.
//!
//! It decides nothing: when to restart, and what a lost session means, is the caller's.

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
pub use connector::{Connector, Role};
pub(crate) use damage::{is_damage, is_illness};
pub use error::PostgresError;
pub use find::{Binaries, find};
pub use handle::PostgresHandle;
pub use server::{DATA_CHECK_MS, Postgres};
pub use sizing::Resources;
pub use store_error::StoreError;
