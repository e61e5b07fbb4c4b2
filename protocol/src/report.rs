//! Load reports: a shard's leader sends one to the placement driver every 250 ms and whenever an
//! operator makes progress.

use crate::ids::{Epoch, OperatorId, RangeId, ShardId, TableId};
use crate::interval::KeyInterval;
use crate::key::Key;
use crate::schema::TableSchema;
use crate::schema_change::SchemaReport;
use crate::scrub::ScrubReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The most split points a range's sketch carries.
pub const MAX_SKETCH_POINTS: usize = 64;
/// The most hot keys a range's sketch carries.
pub const MAX_HOT_KEYS: usize = 16;

/// One report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardReport {
    /// The shard.
    pub shard: ShardId,
    /// The replica that leads it.
    pub leader: u64,
    /// The leader's term; of two reports the one with the larger (term, sequence) is the later.
    pub term: u64,
    /// Counts this leadership's reports.
    pub sequence: u64,
    /// The last position of the log that the leader has applied.
    pub applied: u64,
    /// The leader's clock when it made the report, in milliseconds since the Unix epoch: the clock
    /// that stamps its entries (R14).
    pub clock_ms: u64,
    /// The replicas, as the leader sees them.
    pub replicas: Vec<ReplicaReport>,
    /// The replicas and where they listen for clients, by the shard's own log; `None` if the
    /// reporter does not know.
    pub members: Option<ShardMembers>,
    /// Statements a second that the leader admits at most, if limited (`--shard-capacity`).
    pub capacity_per_s: Option<f64>,
    /// The ranges owned, fenced or coming in.
    pub ranges: Vec<RangeReport>,
    /// The operators in this shard's log that are not forgotten.
    pub operators: Vec<OperatorReport>,
    /// The highest numbers that this shard has ever seen, also of finished operators and deleted
    /// ranges: a restored placement driver allocates above them (R30).
    pub highest: HighestNumbers,
    /// The shard's tables; not in every report, but at least every five seconds and whenever a
    /// report is asked for.
    pub tables: Option<Vec<TableSchema>>,
    /// The comparisons of replicas.
    pub scrub: ScrubReport,
    /// The schema.
    pub schema: SchemaReport,
}

/// The highest numbers that a shard has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HighestNumbers {
    /// Of operators.
    pub operator: OperatorId,
    /// Of ranges.
    pub range: RangeId,
    /// Of tables.
    pub table: TableId,
}

impl HighestNumbers {
    /// The higher of each.
    pub fn max(self, other: HighestNumbers) -> HighestNumbers {
        HighestNumbers {
            operator: self.operator.max(other.operator),
            range: self.range.max(other.range),
            table: self.table.max(other.table),
        }
    }
}

/// A shard's replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMembers {
    /// Counts changes of the membership, from 1.
    pub epoch: u32,
    /// RPC addresses by replica number.
    pub replicas: BTreeMap<u64, SocketAddr>,
}

/// One replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Its number.
    pub id: u64,
    /// Whether the leader hears from it.
    pub connected: bool,
    /// The last decided position that it has reported.
    pub decided: u64,
}

/// Whether a shard owns a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RangeState {
    /// Owned.
    Owned,
    /// Owned, with a move open.
    MovingOut {
        /// The move.
        operator: OperatorId,
        /// Where to.
        to: ShardId,
    },
    /// Fenced: no longer owned here.
    Fenced {
        /// The move.
        operator: OperatorId,
        /// Where to.
        to: ShardId,
    },
    /// Coming in: not owned here yet.
    Incoming {
        /// The move.
        operator: OperatorId,
    },
}

/// One range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RangeReport {
    /// Its id.
    pub id: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
    /// Whether it is owned.
    pub state: RangeState,
    /// Its load.
    pub load: RangeLoad,
}

/// A range's load, smoothed over about two seconds at the source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RangeLoad {
    /// How long this (range, epoch) has been measured on this leader, in milliseconds. Below one
    /// window the rates are estimates carried over.
    pub observed_ms: u64,
    /// Statements that read, per second.
    pub reads_per_s: f64,
    /// Statements that write, per second.
    pub writes_per_s: f64,
    /// Rows, estimated.
    pub rows: u64,
    /// Bytes of rows, estimated.
    pub bytes: u64,
    /// Microseconds PostgreSQL worked for it, per second.
    pub postgres_us_per_s: f64,
    /// The distribution of the load: keys in order, each with the share (0 to 1) of the range's
    /// load on it and on the keys up to the next point. Shares sum to 1 unless there was no load.
    /// Points are keys that statements named.
    pub sketch: Vec<(Key, f64)>,
    /// The hottest single keys and their shares (0 to 1) of the range's load, hottest first; only
    /// keys whose share is known well enough to act on.
    pub hot: Vec<(Key, f64)>,
}

impl RangeLoad {
    /// Statements per second.
    pub fn statements_per_s(&self) -> f64 {
        self.reads_per_s + self.writes_per_s
    }
}

/// How far an operator is, on the shard that reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperatorReport {
    /// The operator.
    pub operator: OperatorId,
    /// The range it works on.
    pub range: RangeId,
    /// How far.
    pub phase: OperatorPhase,
    /// The progress of the copy at the destination; `None` on the source's side, and once the range
    /// is adopted.
    pub progress: Option<MoveProgress>,
}

/// How far a copy is at its destination. A move makes progress as long as any of these grows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveProgress {
    /// Attempts begun.
    pub attempts: u64,
    /// Rows copied in the latest attempt.
    pub rows: u64,
    /// Bytes received, in all attempts, of chunks and of changes.
    pub bytes: u64,
    /// The position in the source's log that the latest attempt has reached.
    pub position: u64,
    /// Where the next chunk begins; `None` once all chunks are in.
    pub cursor: Option<Key>,
    /// The stored rows differed from the sent ones in several attempts, the latest of them as this
    /// sentence says: the move cannot be done.
    pub differs: Option<String>,
    /// Why the latest attempt that was lost ended, in one sentence, if this leader saw one.
    pub trouble: Option<String>,
}

/// The phases of a move, as the two sides see them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperatorPhase {
    /// Source: opened, not fenced.
    Open,
    /// Source: fenced, and the outcome at the destination is not known yet.
    Fenced,
    /// Source: the destination has adopted the range; the copy here still lies.
    HandedOver,
    /// Source: the copy here is being deleted.
    Purging {
        /// Rows deleted so far.
        rows: u64,
    },
    /// Destination: rows are coming in.
    Copying {
        /// Which attempt.
        attempt: u64,
        /// Rows so far, in this attempt.
        rows: u64,
        /// Bytes so far, in all attempts.
        bytes: u64,
    },
    /// Destination: the changes since the copy are coming in.
    CatchingUp {
        /// Which attempt.
        attempt: u64,
        /// Positions of the source's log still to come.
        lag: u64,
        /// Bytes so far, in all attempts.
        bytes: u64,
    },
    /// Destination: adopted.
    Adopted {
        /// The range's epoch from here on.
        epoch: Epoch,
        /// From the source's hold to the first statement possible here, in microseconds by the two
        /// machines' clocks.
        pause_us: u64,
        /// Rows that came in.
        rows: u64,
        /// Bytes that came in, in all attempts.
        bytes: u64,
    },
    /// Destination: declined (the source takes the range back) or cancelled; the received rows are
    /// being deleted.
    Discarding,
    /// Either side: only its record is left, which can be forgotten.
    Finished,
}
