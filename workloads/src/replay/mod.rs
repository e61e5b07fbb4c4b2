//! Replay engine: sends operations at a pace, keeps the order of writes per key, times every
//! answer, and records the acknowledged writes.
//!
//! The engine has two parts. The deciding part is synchronous and gets the time passed in: the
//! order and pace of operations (`scheduler`, `key_order`), the [`Ledger`] of acknowledged writes,
//! the [`Recorder`] of answers. The shell in `engine` owns the tasks, the clock and the [`Target`],
//! and executes the decisions.
//!
//! Three promises:
//!
//! 1. **Writes of one key are in order.** At most one write per key is under way; the next waits
//!    behind it. So the highest acknowledged version of a key is what must be found there, and the
//!    ledger needs a few words per key instead of a history. Each write names the versions that it
//!    may overwrite: if it finds another, an acknowledged write is lost, even if this write covers
//!    it. Each row counts its writes, which shows a write that was applied twice. Reads wait for
//!    nothing, and are checked too: a read must not return less than the writes that were
//!    acknowledged before it was sent (invariant 7; reads are linearizable by default), and a scan
//!    must not leave out a row that was there all the time.
//! 2. **Latency counts from when an operation was due.** At a set rate, an operation that starts
//!    late because earlier ones were slow has its waiting counted; otherwise a stall of one second
//!    would show up as one slow operation instead of as every operation that should have run in it
//!    (coordinated omission).
//! 3. **Everything is bounded**: keys remembered, operations waiting behind a key, seconds
//!    recorded, messages kept.

mod config;
mod engine;
mod error;
mod key_order;
mod ledger;
mod load;
mod recorder;
mod scheduler;
mod target;
#[cfg(test)]
mod tests;
mod value;
mod verify;

pub use config::{LoadPace, MAX_IN_FLIGHT, MAX_RATE_PER_S, MAX_RUN_S, MIN_RATE_PER_S, ReplayConfig};
pub use engine::{Observer, Replay, ReplayControl, Replayed};
pub use error::ReplayError;
pub use ledger::{FoundRow, Issued, Ledger, LedgerFull, Presence, RowVerdict, WriteEffect};
pub use load::{LoadOptions, load};
pub use recorder::{
    LatencyHistogram, Recorder, ReplayRecord, SecondRecord, SecondSummary, Totals, imbalance, latency_histogram,
    quantile_ms,
};
pub use target::{Statement, StatementOutcome, StoredRow, Target, TargetAnswer, TargetFailure, TargetStatementKind};
pub use value::{make_value, value_matches};
pub use verify::{Finding, Verification, VerifyOptions, verify};
