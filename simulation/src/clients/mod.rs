//! Clients: their operations, and the history of what they saw.
//!
//! All reads and writes of rows go through the product's client ([`evenkeel_client`]): its routing
//! table, its search for leaders, its retries, and its judgement of outcomes. An operation that it
//! says had no effect is not part of the history; an operation whose outcome it does not know may
//! have had one. So a mistake of the client is a violation.
//!
//! | module | contents |
//! |---|---|
//! | `run` | the work of all clients, from setting up to the last look |
//! | `users`, `client` | shared handles; one client of the product, and the outcomes of its statements |
//! | `placement_api` | the placement driver, as these clients reach it |
//! | `replies` | what replicas have replied to one client |
//! | `table` | keys and statements |
//! | `counters` | operations on counters and accounts |
//! | `sessions`, `early_commit` | writes that are answered before their COMMIT |
//! | `large_values`, `load_spike` | large values; more clients than the shards can serve |
//! | `payments` | transactions over several shards |
//! | `coordination_users` | users of the coordination store |

mod client;
mod coordination_users;
mod counters;
mod early_commit;
pub mod large_values;
pub mod load_spike;
mod payments;
mod placement_api;
mod replies;
mod run;
mod sessions;
pub mod table;
pub mod users;

pub use client::SimulatedClient;
pub use run::run;
