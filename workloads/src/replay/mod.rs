//! The replay engine: sends operations at a pace, keeps order per key, times every answer, and remembers what was promised.
//!
//! The engine is cut in two. What decides is synchronous and gets the time passed in: the order and pace of operations
//! (`scheduler`, `gates`), the [`Ledger`] of what was acknowledged, the [`Recorder`] of what was seen. The shell in `engine` owns the tasks, the clock and the [`Target`], and does what it is told.
//!
//! Three promises:
//!
//! 1. **Writes of one key are in order.** At most one write per key is under way; the next waits behind it. So the
//!    highest acknowledged version of a key is what must be found there, and the ledger needs a few words per key instead
//!    of a history. Each write names the versions that it may find: one that finds another tells at once that an acknowledged write
//!    is lost, also if it covers that. Each row counts its writes, which tells one that was applied twice. Reads wait for nothing, and
//!    are checked too: a read must not return less than what was acknowledged before it was sent (invariant 7; reads are linearizable
//!    by default), and a scan must not leave out a row that was there all the while.
//! 2. **Latency counts from when an operation was due.** At a set rate, an operation that starts late because earlier
//!    ones were slow has its waiting counted; otherwise a stall of one second would show up as one slow operation
//!    instead of as every operation that should have run in it (coordinated omission).
//! 3. **Everything is bounded**: keys remembered, operations waiting behind a key, seconds recorded, messages kept.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::operation::SourceError;

mod engine;
mod gates;
mod ledger;
mod load;
mod recorder;
mod scheduler;
#[cfg(test)]
mod tests;
mod value;
mod verify;

pub use engine::{Observer, Replay, ReplayControl, Replayed};
pub use ledger::{Effect, Found, Issued, Ledger, LedgerFull, Presence, Verdict};
pub use load::{LoadOptions, load};
pub use recorder::{
    LatencyHistogram, Recorder, ReplayRecord, SecondRecord, SecondSummary, Totals, imbalance, latency_histogram,
    quantile_ms,
};
pub use value::{make_value, value_matches};
pub use verify::{Finding, Verification, VerifyOptions, verify};

/// What a statement does. Unlike an operation's kind it is exactly one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// Read the row with the key.
    Read,
    /// Overwrite the row with the key.
    Update,
    /// Add the row.
    Insert,
    /// Remove the row.
    Delete,
    /// Read at most `limit_rows` rows in key order, from the key on.
    Scan,
    /// The same, the rows' keys only.
    Keys,
}

/// One statement for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it does.
    pub kind: StatementKind,
    /// The primary key; of a scan, the first key it may see.
    pub key: i64,
    /// The row's new version, for writes: per key, each is greater than all before. 0 otherwise.
    pub version: i64,
    /// For updates and deletes: they change the row only if its version lies between this and `version`, both included. 0 otherwise.
    pub over: i64,
    /// The row's new value, for inserts and updates.
    pub value: Option<Bytes>,
    /// Most rows to return, for scans; 0 otherwise.
    pub limit_rows: u32,
}

/// A row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Its key.
    pub key: i64,
    /// Its version.
    pub version: i64,
    /// The writes that made it: 1 at its insert, one more with each update.
    pub count: i64,
    /// Its value.
    pub value: Bytes,
}

/// What a target answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a read: the row, if there is one.
    Row(Option<StoredRow>),
    /// To a scan: the rows, in key order.
    Rows(Vec<StoredRow>),
    /// To a scan of keys: the keys, in order.
    Keys(Vec<i64>),
    /// To a write: how many rows it changed.
    Written {
        /// Rows changed, 0 or 1.
        affected_rows: u64,
    },
}

/// Why a target did not answer, told apart by what is known about the row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The statement had no effect and will have none.
    #[error("{0}")]
    NotApplied(String),
    /// A write may have taken effect, or may still do so.
    #[error("{0} (outcome unknown)")]
    Unknown(String),
}

/// The end of one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was answered, or why not.
    pub result: Result<Answer, Failure>,
    /// The shard that answered.
    pub shard: Option<u32>,
    /// How often the target tried again before this outcome.
    pub retries: u32,
}

impl StoredRow {
    /// What it says of its writes.
    pub fn found(&self) -> Found {
        Found { version: self.version, count: self.count }
    }
}

/// Something that answers statements. Retries that are safe happen inside.
pub trait Target: Send + Sync + 'static {
    /// Executes one statement to its end. Must end by itself: the engine sets no time limit per statement.
    fn execute(&self, statement: &Statement) -> impl Future<Output = Outcome> + Send;

    /// Adds rows before the run, as one batch if the target can. The first row that fails ends it: `Err` holds the index
    /// of the first row that is not certainly stored.
    fn load(&self, rows: &[Statement]) -> impl Future<Output = Result<(), (usize, Failure)>> + Send {
        async move {
            for (index, row) in rows.iter().enumerate() {
                self.execute(row).await.result.map_err(|failure| (index, failure))?;
            }
            Ok(())
        }
    }
}

/// When operations start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as it goes, with a fixed number of operations under way. Latency counts from the start of the statement.
    AsFastAsPossible {
        /// Operations under way at once.
        workers: usize,
    },
    /// Evenly at a rate, whatever the answers do. Latency counts from when the operation was due.
    Rate {
        /// Operations per second.
        operations_per_s: f64,
        /// Most operations under way at once; past it, operations start late, and their waiting counts.
        max_in_flight: usize,
    },
    /// At the times that the trace recorded; an operation without a time is due with the one before it.
    Recorded {
        /// 2.0 replays in half the time.
        speed: f64,
        /// As for a rate.
        max_in_flight: usize,
    },
}

impl Pace {
    /// Operations under way at once, at most.
    pub fn max_in_flight(&self) -> usize {
        match *self {
            Self::AsFastAsPossible { workers } => workers,
            Self::Rate { max_in_flight, .. } | Self::Recorded { max_in_flight, .. } => max_in_flight,
        }
    }
}

/// The longest run, in seconds: per-second histograms are kept in memory, about 13 kB each.
pub const MAX_RUN_S: u64 = 6 * 3_600;

/// The slowest rate, in operations per second.
pub const MIN_RATE_PER_S: f64 = 0.001;

/// The fastest rate, in operations per second.
pub const MAX_RATE_PER_S: f64 = 1e7;

/// Most operations under way at once.
pub const MAX_IN_FLIGHT: usize = 10_000;

/// How a replay runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayConfig {
    /// When operations start.
    pub pace: Pace,
    /// No operation starts after this; also limited by [`MAX_RUN_S`].
    pub duration: Duration,
    /// No more operations than this.
    pub max_operations: Option<u64>,
    /// Shards that the load is divided among, until [`ReplayControl::set_shards`] says otherwise.
    pub shards: u32,
    /// Most writes that wait behind another write of their key.
    pub max_parked_operations: usize,
    /// How long operations under way may take to end once no more are started, in milliseconds. What has not ended by
    /// then is abandoned: a write of unknown outcome.
    pub drain_timeout_ms: u64,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self {
            pace: Pace::AsFastAsPossible { workers: 32 },
            duration: Duration::from_secs(60),
            max_operations: None,
            shards: 1,
            max_parked_operations: 4_096,
            drain_timeout_ms: 30_000,
        }
    }
}

/// Why a replay did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The configuration is impossible. Correct it.
    #[error("replay: {key} is {value}, expected {expected}")]
    Config {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The source failed. Correct the trace.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Too many keys. Use fewer, or allow more.
    #[error(transparent)]
    LedgerFull(#[from] LedgerFull),
    /// Rows could not be loaded.
    #[error("loading row {key} failed after {attempts} attempts: {failure}")]
    Load {
        /// The row's key.
        key: i64,
        /// Attempts made.
        attempts: u32,
        /// The last failure.
        failure: Failure,
    },
    /// A task of the engine ended by a panic: an error in this program.
    #[error("a task of the replay engine failed: {0}")]
    Task(String),
}

impl ReplayConfig {
    /// Checks every setting; the error names the first wrong one.
    pub fn validate(&self) -> Result<(), ReplayError> {
        let check = |right: bool, key, value: String, expected| {
            if right { Ok(()) } else { Err(ReplayError::Config { key, value, expected }) }
        };
        let in_flight = self.pace.max_in_flight();
        check((1..=MAX_IN_FLIGHT).contains(&in_flight), "operations in flight", in_flight.to_string(), "1 to 10000")?;
        match self.pace {
            Pace::Rate { operations_per_s: rate, .. } => {
                check(
                    (MIN_RATE_PER_S..=MAX_RATE_PER_S).contains(&rate),
                    "rate",
                    rate.to_string(),
                    "0.001 to 10000000 operations per second",
                )?;
            }
            Pace::Recorded { speed, .. } => {
                check((0.001..=1e6).contains(&speed), "speed", speed.to_string(), "0.001 to 1000000")?;
            }
            Pace::AsFastAsPossible { .. } => {}
        }
        let duration_s = self.duration.as_secs_f64();
        let fits = duration_s > 0.0 && duration_s <= MAX_RUN_S as f64;
        check(fits, "duration", format!("{duration_s} s"), "more than 0 and at most 21600 seconds")?;
        check(self.shards >= 1, "shards", self.shards.to_string(), "at least 1")
    }
}
