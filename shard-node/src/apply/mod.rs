//! The applier: applies decided entries to the state machine and to PostgreSQL (invariant 3).
//!
//! The log delivers decided entries in order. The applier applies each to the state machine at
//! once; a separate task, the apply writer, writes to PostgreSQL. A leader's own entries therefore
//! do not wait for the rows of an incoming range.
//!
//! | module | defines |
//! |---|---|
//! | `applier` | [`Applier`]: the loop over decided entries |
//! | `persistence` | the write batch, recorded positions, and rows that are missing during a re-seed |
//! | `write_batch` | changes of many entries as few statements (R15) |
//! | `apply_writer` | [`ApplyWriter`]: the task that writes to PostgreSQL, in order |
//! | `applied_records` | records of single entries (R5) |
//! | `checkpointing` | which position may be recorded, and when the state machine is stored |
//! | `leaderships` | beginning and end of this replica's leaderships |
//! | `publication` | the state machine as readers see it, and which ranges are admitted |
//! | `change_stream` | changes of a moving range, for the destination |
//! | `checksum_checkpoint` | snapshots at a position, for comparing replicas (R31) |
//! | `seeding` | following the log while rows are missing (R32) |
//! | `request`, `start`, `saved_state`, `applied_state`, `control_kinds`, `progress_bound` | values and helpers |
//!
//! **Follower, or leader before its own `LeaderStart`.** Changes are collected and applied as row
//! images, many entries to a PostgreSQL transaction. The position is recorded in the same
//! transaction.
//!
//! **Leader.** The session that proposed an entry holds its changes; the applier resolves the
//! proposal and the session commits. Entries that the leader applies itself (incoming rows, purges,
//! new tables) are recorded one by one, because sessions commit in any order (R5).
//!
//! **Change of leadership.** Every `LeaderStart` ends the leadership before it: a proposal that has
//! not been delivered by then never will be (invariant 4), and all of its sessions end before any
//! later entry is applied (R3).
//!
//! Promises: PostgreSQL holds exactly the effective entries that its record names, after any crash.
//!
//! Not done: two appliers in parallel. One task applies, and one task writes.

mod applied_records;
mod applied_state;
mod applier;
mod apply_writer;
mod change_stream;
mod checkpointing;
mod checksum_checkpoint;
mod control_kinds;
mod leaderships;
mod persistence;
mod progress_bound;
mod publication;
mod request;
mod saved_state;
mod seeding;
mod start;
mod write_batch;

pub use applier::Applier;
pub use apply_writer::{ApplyWriter, ApplyWriterStopped};
pub use change_stream::{ChangeStream, MAX_STREAM_BYTES, StreamItem, StreamLost};
pub use request::{ApplierRequest, Export};
pub use saved_state::SavedState;
pub use seeding::Seeding;
pub use start::Start;
