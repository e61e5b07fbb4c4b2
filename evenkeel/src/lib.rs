//! The one binary: a subcommand per role, the demonstration, the measurements, and an operator's command line.
//!
//! It holds no logic of its own about storing data: roles live in their crates, and what is here starts them, asks them and
//! shows what they say.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line: flags, tables, exit statuses |
//! | [`config`] | configuration by file, environment and flags (pure) |
//! | [`roles`] | `placement-driver` and `shard-node`: configuration, signals, run |
//! | [`outputs`] | files that a command writes in the end |
//! | [`rest`] | the placement driver's REST interface, from the caller's side |
//! | [`cluster`] | a whole cluster on this machine, as child processes |
//! | [`run`] | one run of a workload with its checks and its report, shared by `demo` and `replay` |
//! | [`demo`] | `demo`: a cluster, a run, and the end of both |
//! | [`replay`] | `replay`: a run against a kept cluster |
//! | [`mod@bench`] | `bench`: beside plain PostgreSQL and nginx on the same machine |

pub mod bench;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod demo;
pub mod outputs;
pub mod replay;
pub mod rest;
pub mod roles;
pub mod run;
