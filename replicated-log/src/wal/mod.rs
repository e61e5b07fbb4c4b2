//! The durable log of a replica: one record and one `fdatasync` per turn of the event loop.
//!
//! It owns the files of one folder, through a [`Disk`]. It promises:
//!
//! - *Atomic turns.* Everything that a turn changes is one record. A crash before the sync undoes
//!   the whole turn. A torn last record is cut off when the log is opened.
//! - *No silent loss.* Damage anywhere else is an error, because a lost durable tail is disk loss
//!   (log rule 13).
//! - *Verdicts without reads.* The log keeps the term fence at every position and so knows which
//!   items are effective (invariant 1).
//! - *Constant work.* Compaction drops items and recycles segments that hold nothing else: each
//!   byte is written once, and no turn waits for a new file. A full segment ends with a footer, a
//!   summary of its records. Opening a log reads footers and the records of the last segment.
//!
//! | file | contents |
//! |---|---|
//! | `write_ahead_log` | [`Wal`]: append, cut, compact, sync, read |
//! | `recovery` | opening a log |
//! | `index`, `recent`, `meta` | the parts of a log in memory |
//! | `read_plan` | reading on another thread |
//! | `record` | the format on disk |
//! | `storage` | the log as OmniPaxos's storage |
//! | `file_disk` | segments as files |
//! | `synced` | [`Synced`], the proof of a sync |
//!
//! Not done: the log does not repair damage, and it does not detect bit rot in records that it does
//! not read.

mod error;
mod file_disk;
mod index;
mod meta;
mod read_plan;
mod recent;
mod record;
mod recovery;
mod storage;
mod synced;
mod write_ahead_log;

pub use error::WalError;
pub(crate) use evenkeel_host::Disk;
pub(crate) use file_disk::FileDisk;
pub(crate) use meta::{DISPUTED, Identity};
pub(crate) use read_plan::ReadPlan;
pub(crate) use storage::{SharedWal, WalStorage};
pub(crate) use synced::Synced;
pub(crate) use write_ahead_log::{Wal, WalLimits, Written};

#[cfg(test)]
mod tests;
