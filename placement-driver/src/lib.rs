//! The placement driver: it knows where every range is, watches the load of each, and splits, moves and merges ranges until
//! every shard carries the same.
//!
//! It is a replicated state machine on `evenkeel-replicated-log`, with a leader that plans and drives, and replicas that all
//! serve the routing table. What it knows of ownership is a hint: the shards' own logs are the authority (invariant 6), so a
//! placement driver that is late, or wrong, can slow the store down but never harm it.
//!
//! | module | what it holds | I/O |
//! |---|---|---|
//! | [`config`] | the knobs | none |
//! | [`state`] | the replicated state machine: shards, tables, ranges, operators, decisions | none |
//! | [`kv`] | the coordination store: revisions, history, conditions, limits | none |
//! | [`coordination`] | the coordination store as one replica serves it | the log's |
//! | [`load`] | the load model: reports of shards, and expectations about their ranges | none |
//! | [`balancer`] | from state and load to decisions | none |
//! | [`operators`] | from state and reports to the next step of each operator | none |
//! | [`snapshot`] | the state on disk | files |
//! | [`rest`] | the REST API | sockets |
//! | [`server`] | the shell: applies the log, feeds the pure parts, carries out what they say | all |

pub mod balancer;
pub mod config;
pub mod coordination;
pub mod copies;
pub mod kv;
pub mod load;
pub mod operators;
pub mod rest;
pub mod server;
pub mod snapshot;
pub mod state;

pub use config::{BalancerConfig, Config};
pub use server::{NewDriver, RunError, run};
