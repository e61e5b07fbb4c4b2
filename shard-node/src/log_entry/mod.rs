//! The content of a shard's log: encoded entries.
//!
//! A log entry holds the result of execution, never a statement. The leader executes a statement in
//! its PostgreSQL and proposes the row images that the statement produced; every replica applies
//! the same images.
//!
//! | module | defines |
//! |---|---|
//! | `entry` | [`ShardEntry`]: a serial and a body; its encoding |
//! | `changes` | [`Changes`]: rows of users' statements, and the answers to them |
//! | `control` | [`Control`]: tables, splits, merges, moves, checkpoints |
//! | `transactions` | the parts of transactions over several shards, and their outcome |
//! | [`image`] | row images: whole rows, assigned columns, deletions |
//! | [`parts`] | entries that are larger than the log accepts at once |
//! | `decode` | bounds-checked reading of bytes |
//!
//! The leader encodes an entry once; every replica decodes it. [`Changes`] has a binary layout of
//! its own. All other entries use `postcard`.
//!
//! A serial is unique within its term. The pair (term, serial) identifies an entry in PostgreSQL's
//! record of applied entries (R5) and in the leader's list of proposals that wait for an outcome.
//!
//! Promises: bytes that are not an encoded entry are rejected ([`Malformed`]) and never cause a
//! panic.
//!
//! Not done: the formats carry no version. A replica of another release must use the same formats.

mod changes;
mod control;
mod decode;
mod entry;
pub mod image;
pub mod parts;
mod transactions;

pub use changes::{Answered, Change, Changes, KeptReply, TailEntry};
pub use control::{Control, Purpose};
pub use decode::Malformed;
pub use entry::{EntryBody, MAX_ENTRY_BYTES, ShardEntry};
pub use transactions::{DecidedChanges, Forgotten, PreparedChanges, Resolution};
