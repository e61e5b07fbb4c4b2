//! Deterministic simulation of the whole system.
//!
//! The code of the shards, the placement driver, the log and their connections runs here as it runs
//! for users. It runs as tasks on simulated machines that a seed drives: a network that delays,
//! cuts and breaks connections, disks that lose unsynced writes, clocks that drift, database
//! servers that lose unflushed commits, processes that die, freeze and come back. Clients work, and
//! ranges split, merge and move meanwhile. First faults come, and safety is checked; then all
//! faults end, and the system must recover. A seed gives the same run every time.
//!
//! | module | contents |
//! |---|---|
//! | [`process`] | clocks and randomness of the process |
//! | [`machine`] | a process on a machine, stepped |
//! | [`net`] | the network |
//! | [`postgres`] | a database server in memory |
//! | [`hardware`] | network, disks and database servers together |
//! | [`topology`] | groups, replicas, machines and addresses |
//! | [`membership_model`] | members of groups, and commands to machines |
//! | [`registry`] | the placement drivers, as clients reach them |
//! | [`fault`], [`fault_injector`] | faults, and when they come |
//! | [`history`] | operations as their clients saw them |
//! | [`clients`] | clients and their operations |
//! | [`operators`] | requests for splits, merges, moves and drains |
//! | [`shard_calls`] | requests to the leaders of shards |
//! | [`membership_changes`] | requests for changes of membership |
//! | [`checkers`] | properties of a run, one per file |
//! | [`world`] | the cluster and the passing of time |
//!
//! Not done: REST and TLS are not simulated. Clients run the code of the `client` crate, but for
//! its HTTP.

pub mod checkers;
pub mod clients;
pub mod fault;
pub mod fault_injector;
pub mod hardware;
pub mod history;
pub mod machine;
pub mod membership_changes;
pub mod membership_model;
pub mod net;
pub mod operators;
pub mod postgres;
pub mod process;
pub mod registry;
pub mod shard_calls;
pub mod topology;
pub mod world;
