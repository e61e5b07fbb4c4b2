//! Scrubbing: comparing the rows of this shard's replicas, piece by piece (R31), in the background
//! and on request.
//!
//! The leader names a few pieces of its ranges in a log entry, a *checkpoint*. Each replica takes a
//! snapshot of its PostgreSQL at exactly that position, reads the pieces in it, and sends the
//! leader its checksums. The leader judges by majority and narrows a difference down. No statement
//! reads more than a piece, and applying continues while a piece is read. A range that is split,
//! moved or written meanwhile is compared as it was at that position, or not at all.
//!
//! | module | holds | kind |
//! |---|---|---|
//! | [`plan`] | which pieces come next, and which of them a replica reads | pure |
//! | [`judge`] | the verdict on the checksums of one piece | pure |
//! | [`pace`] | when the next comparison is due | pure |
//! | [`status`] | results of comparisons | values |
//! | [`checkpoint_sums`] | a replica's own checksums | I/O |
//! | [`compare`] | one comparison, by the leader | I/O |
//! | [`round`] | the background rounds of a leader | I/O |
//!
//! The module owns this replica's checksums of the latest checkpoints, and the results of its
//! comparisons as a leader. It promises that a reported difference is one: at one position of the
//! log, two replicas held different rows.
//!
//! Not done: repair. The administrator decides what becomes of a replica that differs.

pub mod checkpoint_sums;
pub mod compare;
pub mod judge;
pub mod pace;
pub mod plan;
pub mod round;
mod scrubber;
pub mod status;

pub use scrubber::Scrub;
