//! The harness of the integration tests: scenarios against a cluster of real processes that can be
//! started, killed, paused and wiped.
//!
//! The cluster is [`evenkeel_local_cluster::Cluster`], the one that `evenkeel demo` starts. This
//! crate adds a runner whose scenarios share one cluster, questions about the cluster's state, and
//! checkers of histories: they prove or disprove that no write was lost, applied twice, or read
//! stale.
//!
//! A scenario waits for conditions, never for time. It leaves the cluster whole; after a failed
//! scenario the next one gets a new cluster.
//!
//! | module | what it holds |
//! |---|---|
//! | [`runner`] | the `main` of a file of scenarios |
//! | [`world`] | a running cluster, a client, and questions about their state |
//! | [`replica`] | one replica: its inspection, its log, its PostgreSQL |
//! | [`leadership`] | the replica that leads a shard, and actions within one leadership |
//! | [`failure`] | the result of a scenario |
//! | [`postgres_client`] | a PostgreSQL driver at the gateway |
//! | [`placing`] | tables whose ranges lie where a scenario wants them |
//! | [`history`], [`counters`] | histories of counters |
//! | [`linear`], [`registers`] | histories of registers |
//! | [`transactions`] | histories of transactions |
//! | `macros` | `ensure!` and `scenarios!` |

pub mod counters;
pub mod failure;
pub mod history;
pub mod leadership;
pub mod linear;
mod macros;
pub mod placing;
pub mod postgres_client;
pub mod registers;
pub mod replica;
pub mod runner;
pub mod transactions;
pub mod world;

pub use failure::{ScenarioFailure, ScenarioResult};
pub use replica::ReplicaName;
pub use runner::{Scenario, run};
pub use world::World;
