//! A replica's process: PostgreSQL, the log, the applier, the RPC service, and recovery when one of
//! them fails.
//!
//! | module | defines |
//! |---|---|
//! | `run` | [`run`]: the process from start to end |
//! | `server_start` | one start of PostgreSQL: recovery, applying, serving |
//! | `process` | [`ReplicaProcess`]: what lives as long as the process |
//! | `handles` | [`ReplicaHandles`]: what the parts share during one start of PostgreSQL |
//! | [`membership`] | members of the replica group, and changes of them |
//! | `postgres_supervision` | starting PostgreSQL again, and when the replica is eligible to lead |
//! | `rpc_service` | requests of clients, peers and the placement driver |
//! | [`connection_transactions`] | open transactions of one client connection |
//! | `log_settings`, `run_error` | values |
//!
//! **Lifetimes.** The log and the RPC service live as long as the process. PostgreSQL and the
//! applier come and go together: each start of PostgreSQL reads the position that PostgreSQL has
//! recorded, subscribes to the log from there, and ends when PostgreSQL or a session with a
//! proposed entry fails (R1). Between two starts the replica votes and stores entries but is
//! ineligible to lead.
//!
//! Promises: a replica that would diverge from its peers stops with [`RunError::Diverged`]. Every
//! other failure of PostgreSQL is repaired while the process runs.
//!
//! Not done: an installed metrics exporter. The process that calls [`run`] installs one if it wants
//! to read metrics.

pub mod connection_transactions;
mod handles;
mod log_settings;
pub mod membership;
mod pass_through;
mod postgres_supervision;
mod process;
mod rpc_service;
mod run;
mod run_error;
mod server_start;

pub use handles::ReplicaHandles;
pub use process::{ReplicaProcess, ServerStart};
pub use run::run;
pub use run_error::RunError;
