//! A whole cluster on this machine, as child processes of one executable.
//!
//! `evenkeel demo`, `evenkeel bench` and the integration tests are built on it. [`Cluster`] owns
//! the processes it starts, their folders and their addresses. It promises to leave nothing behind:
//!
//! - [`Cluster::stop`] ends every process in order;
//! - dropping a [`Cluster`] kills every process at once;
//! - if this process is killed, its children see their standard input close and end by themselves.
//!
//! That includes PostgreSQL servers orphaned by a `kill -9` of their shard node: they are found by
//! the `postmaster.pid` in their data folder (see [`postmaster`]).
//!
//! Nothing waits for time. Every wait is for a condition with a deadline; a missed deadline is
//! reported with the end of the log of the process at fault (see [`wait`]).
//!
//! | module | what it holds |
//! |---|---|
//! | [`cluster`] | the cluster: start, faults, growth, end |
//! | [`options`], [`process_id`], [`error`] | the vocabulary |
//! | [`layout`] | addresses and configuration of every process (pure) |
//! | [`process_table`] | the processes of a cluster, running or not |
//! | [`process`] | one child process: start, signals, end |
//! | [`postmaster`] | the PostgreSQL server of a replica, seen from outside |
//! | [`links`] | the network between processes, with faults |
//! | [`wait`] | waiting for conditions |
//! | [`endpoints`] | the `--endpoints` file |
//! | [`saved_cluster`] | size and ports of a cluster, kept in its folder for the next start |
//! | [`shard_calls`] | requests to single replicas of a shard |
//! | [`address`], [`registration`], [`operator_text`], [`toml_text`] | helpers for addresses, requests and texts |
//! | [`run`] | a workload run with verification and a report |
//! | [`failover`] | trials that measure how long a failover stops writes |
//!
//! Not done: clusters on several machines.

pub mod address;
pub mod cluster;
pub mod endpoints;
pub mod error;
pub mod failover;
pub mod layout;
pub mod links;
pub mod operator_text;
pub mod options;
pub mod postmaster;
pub mod process;
pub mod process_id;
pub mod process_table;
pub mod registration;
pub mod run;
pub mod saved_cluster;
pub mod shard_calls;
pub mod toml_text;
pub mod wait;

pub use address::loopback;
pub use cluster::Cluster;
pub use error::{ClusterError, InvalidSetting};
pub use options::ClusterOptions;
pub use process_id::ProcessId;
