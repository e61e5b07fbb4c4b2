//! Clients: their operations, their retries, and the history of what they saw.
//!
//! Each client sends a statement under one id until it has an answer, follows redirections, and
//! gives up after a while: then the outcome is unknown. An operation that certainly had no effect
//! is not part of the history.
//!
//! | module | contents |
//! |---|---|
//! | `run` | the work of all clients, from setting up to the last look |
//! | `users`, `client` | shared handles; one client, with its routing and retries |
//! | `table` | keys and statements |
//! | `counters` | operations on counters and accounts |
//! | `sessions`, `early_commit` | writes that are answered before their COMMIT |
//! | `large_values`, `load_spike` | large values; more clients than the shards can serve |
//! | `coordination_users` | users of the coordination store |
//!
//! Not done: these clients do not run the code of the `client` crate.

mod client;
mod coordination_users;
mod counters;
mod early_commit;
pub mod large_values;
pub mod load_spike;
mod run;
mod sessions;
pub mod table;
pub mod users;

pub use client::SimulatedClient;
pub use run::run;
