//! `bench size`: Evenkeel with gigabytes of data, beside PostgreSQL with two synchronous standbys
//! that does the same work.
//!
//! A missed goal is reported, and the command fails.
//!
//! | module | what it holds |
//! |---|---|
//! | [`parts`] | the command: its parts, one after another |
//! | [`config`] | its settings |
//! | [`trace`] | large blocks loaded, read and written by 16 clients, balancer on and paused; disk writes; the time and pause of moves |
//! | [`moves`] | a range of a gigabyte moved under a thousand updates per second; a row of a megabyte updated while it moves |
//! | [`replicas`] | a scan beside keyed reads, a leader killed under load, replicas started again, a replica wiped |
//! | [`bench_cluster`] | clusters for the parts |
//! | [`wide`] | a table of 2 KiB rows |
//! | [`blocks`] | a generated pattern of block accesses |
//! | [`target`] | PostgreSQL as the target of a replay |
//! | [`usage`] | bytes written and memory used, by `/proc` |
//! | [`figures`] | figures and goals (pure) |

pub mod bench_cluster;
pub mod blocks;
pub mod config;
pub mod figures;
pub mod moves;
pub mod parts;
pub mod replicas;
pub mod target;
pub mod trace;
pub mod usage;
pub mod wide;

pub use config::settings;
pub use parts::size;
