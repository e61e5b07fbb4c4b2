//! Transactions of several statements on one shard, and the outcome of commits.
//!
//! An open transaction owns its place: a connection to one shard's leader, which the first
//! statement that touches a key chooses. The module promises:
//!
//! - Until the commit, nothing of a transaction can have taken effect. Every failure before it is
//!   40001: the transaction is safe to run again.
//! - A commit whose answer is lost is asked about under the same id, at the shard where the
//!   transaction ran. If it took effect it is in that shard's log and retry window, wherever its
//!   rows have moved since. It is never committed twice (R14, invariant 7). Only if the shard
//!   cannot be asked does it end in 08007.
//! - A write that was acknowledged early is resolved in the background (R28): its loss is never
//!   silent.
//! - A transaction that is dropped, or whose statement is cancelled, is rolled back.
//!
//! | module | content |
//! |---|---|
//! | `handle` | the public handle |
//! | `open` | an open transaction and its statements |
//! | `commit`, `recommit` | the commit, and the question about a lost one |
//! | `resolve` | the outcome of writes that were acknowledged early |
//! | `pass_through` | transactions of texts that a shard's PostgreSQL runs unchanged |
//! | `sharded` | one user's transaction of such texts, at each shard where it is open |
//!
//! Not done: writes to several shards in one transaction.

mod commit;
mod handle;
mod open;
mod pass_through;
mod recommit;
mod resolve;
mod sharded;

pub(crate) use handle::failed_before;
pub(crate) use resolve::{EarlyWrite, Resolution};
pub(crate) use sharded::{parts_of, spread};

pub use handle::Transaction;
pub use pass_through::{PassThroughReplies, PassThroughTransaction};
pub use sharded::{ShardedTransaction, SharedTransaction};
