//! State machine of a shard.
//!
//! Applying the same entries in the same order yields the same state and the same verdicts on every
//! replica. [`ShardState`] answers the question "does this shard own this key at this position of
//! the log?" (invariants 2 and 6), and records the state of every move. It holds no rows: what an
//! entry changes in PostgreSQL is returned as [`ControlEffect`]s.
//!
//! | module | defines |
//! |---|---|
//! | `shard_state` | [`ShardState`]; creation of tables, splits, merges |
//! | `moves` | transitions of moves, at the source and at the destination |
//! | `movement` | [`MoveOut`], [`MoveIn`] and their phases |
//! | `operators` | open moves and operators that ended |
//! | `owned_ranges` | [`OwnedRange`]: ranges by key and by id |
//! | `tables` | schemas by id |
//! | `schema` | the schema's version and changes, and the change that is prepared (R34) |
//! | `retry_window`, `answers` | [`RetryWindow`]: recent answers, for statements that clients repeat (R14) |
//! | `range_size` | [`RangeSize`]: rows and bytes of a range, counted from the log |
//! | `unclaimed` | keys that the shard neither owns nor moves |
//! | `multi_shard` | [`MultiShardTransactions`]: prepared changes and decisions (R26) |
//! | `effect`, `refusal` | the two outcomes of an entry |
//! | `shared_map` | an ordered map whose copies share memory |
//!
//! **Ownership passes in two entries.** `Fence` removes the range from the source's owned ranges;
//! `Adopt` adds it to the destination's. Between the two no shard owns the range, and no statement
//! is answered that depends on it.
//!
//! **Verdicts.** A verdict covers a whole entry, never a part of it (R13). An *effective* entry
//! changes the state. A *rejected* entry changes nothing, on every replica alike, and its proposer
//! receives the [`EntryRefusal`]. The replicated log has applied the term fence (invariant 1)
//! before.
//!
//! Promises: no I/O, no clock, no randomness. A copy of the state costs the same at any size.
//!

mod answers;
mod effect;
mod finished_operators;
mod movement;
mod moves;
mod multi_shard;
mod operators;
mod owned_ranges;
mod range_size;
mod refusal;
mod retry_window;
mod schema;
mod shard_state;
mod shared_map;
mod tables;
mod unclaimed;

pub use answers::RangeAnswers;
pub use effect::{ControlEffect, CopiedRows};
pub use finished_operators::FinishedWork;
pub use movement::{InPhase, MoveIn, MoveOut, OutPhase};
pub use multi_shard::{CommitDecision, MAX_PREPARED_BYTES, MultiShardTransactions};
pub use owned_ranges::OwnedRange;
pub use range_size::{ROW_OVERHEAD_BYTES, RangeSize, Sampled};
pub use refusal::EntryRefusal;
pub use retry_window::{MAX_ID_AGE_MS, RETRY_WINDOW_MS, RetryWindow};
pub use schema::PreparedSchema;
pub use shard_state::ShardState;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod move_script_tests;
