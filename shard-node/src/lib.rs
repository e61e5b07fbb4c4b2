//! A shard's replica: stock PostgreSQL, kept identical with its peers through a replicated log.
//!
//! The leader executes users' statements in its own PostgreSQL and proposes the row images that
//! they produced. Once the log has decided an entry, the leader commits and answers, and the
//! followers apply the row images. Ranges are created, split, merged and moved by entries of the
//! same log.
//!
//! | module | holds | kind |
//! |---|---|---|
//! | [`log_entry`] | the content of the log: row images, control entries, entries in parts | pure |
//! | [`state_machine`] | ownership, moves, the retry window | pure |
//! | [`load`] | load of a range, and where in it the load falls | pure |
//! | [`progress`] | the position that PostgreSQL has reached | values |
//! | [`apply`] | applying decided entries to the state machine and to PostgreSQL | I/O |
//! | [`leader`] | executing statements | I/O |
//! | [`local_reads`] | reads at level `local`, on any replica | I/O |
//! | [`migration`] | moving ranges | I/O |
//! | [`move_observations`] | what a replica has observed of moves: differing checksums, pauses, failures | values |
//! | [`maintenance`] | work that a leader does without being asked | I/O |
//! | [`scrub`] | comparing the rows of the replicas | both |
//! | [`postgres`], [`storage`] | the server process; sessions, tables and statements in it | I/O |
//! | [`state_transfer`] | re-seeding a replica from its peers | I/O |
//! | [`replica`] | the process, its RPC service, membership, recovery of PostgreSQL | I/O |
//! | [`config`], [`clock`], [`error`] | configuration, the process's clock, why applying ends | values |
//!
//! Pure modules do no I/O and read no clock.

pub mod apply;
pub mod clock;
pub mod config;
pub mod error;
pub mod leader;
pub mod load;
pub mod local_reads;
pub mod log_entry;
pub mod maintenance;
pub mod migration;
pub mod move_observations;
pub mod postgres;
pub mod progress;
pub mod replica;
pub mod scrub;
pub mod state_machine;
pub mod state_transfer;
pub mod storage;
mod table_definition;

pub use config::Config;
pub use replica::{RunError, run};
