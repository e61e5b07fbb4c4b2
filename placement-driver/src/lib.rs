//! Placement driver: it knows the shard of every range, measures the load of every shard, and
//! splits, moves and merges ranges until all shards carry the same load. Its role is the one of
//! TiKV's PD.
//!
//! It is a replicated state machine on `evenkeel-replicated-log`. The leader plans and drives
//! operators; every replica serves the routing table. The routing table is a hint: the shards' own
//! logs are the authority on ownership (invariant 6). A placement driver that is late or wrong can
//! slow the store down, but cannot corrupt it.
//!
//! | module | contents | I/O |
//! |---|---|---|
//! | [`config`] | the configuration | none |
//! | [`state`] | the replicated state machine: shards, tables, ranges, operators, decisions | none |
//! | [`coordination`] | the coordination store: the state machine, and the service at one replica | the log's |
//! | [`balancer`] | from state and load to decisions | none |
//! | [`operators`] | from state and reports to the next step of each operator | none |
//! | [`routing_view`] | the routing table in the form in which REST serves it | none |
//! | [`snapshot`] | the state on disk | files |
//! | [`replica`] | one replica: applies the log, feeds the deciding modules, carries out their decisions | all |
//! | [`orphaned_copies`] | deletion of copies that moves have left | shards |
//! | [`load`] | the load model: reports of shards, and expected changes of their ranges | none |
//! | [`api`] | the REST API | sockets |
//! | [`metrics`] | the metrics | none |
//! | [`run`](mod@run) | a replica with its REST API | all |
//!
//! Not done: it stores the schemas of tables, and parses no SQL. The shard that creates a table
//! checks its definition.

pub mod api;
pub mod balancer;
pub mod config;
pub mod coordination;
mod json;
pub mod load;
pub mod metrics;
pub mod operators;
pub mod orphaned_copies;
pub mod replica;
pub mod routing_view;
pub mod run;
pub mod snapshot;
pub mod state;

pub use config::{BalancerConfig, Config};
pub use replica::{NewMember, RunError};
pub use run::run;
