//! The program `evenkeel`: one subcommand per role, the demonstration, the measurements, and the
//! administrator's commands.
//!
//! It stores no data itself. Roles are in crates of their own; this crate starts them, sends
//! requests to them, and prints their answers. It promises that invalid options are rejected with a
//! one-line error and exit status 2 before anything starts.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line: flags, administrator's commands, exit statuses |
//! | [`config`] | configuration by file, environment and flags (pure) |
//! | [`error`] | how a command fails |
//! | [`roles`] | `placement-driver`, `shard-node` and `gateway`: settings, signals, start |
//! | [`gateway_config`] | from the settings of `gateway` to its configuration |
//! | [`demo`] | `demo`: a cluster, a run, and the end of both |
//! | [`replay`] | `replay`: a run against a running cluster |
//! | [`mod@bench`] | `bench`: measurements beside plain PostgreSQL and nginx |
//! | [`run_config`] | settings and report of a run |
//! | [`screen`], [`display`] | progress, tables and sizes as text |
//! | [`outputs`] | files that a command writes at its end |
//! | [`executable`] | the file of the running program |

pub mod bench;
pub mod cli;
pub mod config;
pub mod demo;
pub mod display;
pub mod error;
pub mod executable;
pub mod gateway_config;
pub mod outputs;
pub mod replay;
pub mod roles;
pub mod run_config;
pub mod screen;
