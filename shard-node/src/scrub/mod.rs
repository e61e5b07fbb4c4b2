//! Comparing what the replicas of this shard hold, piece by piece (R31): in the background, round after round, and when somebody asks.
//!
//! The leader names a few pieces of its ranges in an entry of the log, a *checkpoint*. Each replica takes a snapshot of its PostgreSQL at
//! exactly that place, reads the pieces in it, and tells the leader its sums; the leader judges by majority, and looks more closely at
//! what differs. No statement reads more than a piece, nobody stops applying while a piece is read, and a range that is split, moved or
//! written meanwhile is compared as it was at that place, or not at all.
//!
//! | module | what it holds | decides or does |
//! |---|---|---|
//! | [`plan`] | which pieces come next, and which of them a replica sums up | decides, purely |
//! | [`judge`] | what the replicas' sums say | decides, purely |
//! | [`pace`] | when the next comparison is due | decides, purely |
//! | [`status`] | what has been compared and found | values |
//! | [`checkpoint_sums`] | a replica's own sums | does |
//! | [`compare`] | one comparison, by the leader | does |
//! | [`round`] | the background rounds of a leader | does |
//!
//! It owns this replica's sums of the latest checkpoints, and what this replica has compared as a leader. It promises that a difference is
//! one: at one place in the log two replicas held something else. What becomes of a replica that differs is left to who runs the cluster.

pub mod checkpoint_sums;
pub mod compare;
pub mod judge;
pub mod pace;
pub mod plan;
pub mod round;
mod scrubber;
pub mod status;

pub use scrubber::Scrub;
