//! Entries that change the schema, tables, ranges and moves, and checkpoints for comparing
//! replicas.
//!
//! Each entry carries everything that its verdict depends on, so that every replica reaches the
//! same verdict. The order of variants and fields is the format on disk.

use bytes::Bytes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::scrub::ComparedPiece;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, RowBatch, SchemaDelta, TableId, TableSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Entries other than changes. Each carries what it needs to be judged alike on every replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// A new table, all of whose keys are one range of this shard, with epoch 1.
    CreateTable {
        /// The table.
        schema: TableSchema,
        /// Its first range.
        range: RangeId,
    },
    /// See `ControlRequest::DropTable`.
    DropTable {
        /// The table.
        table: TableId,
    },
    /// See `ControlRequest::Split`.
    Split {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// Where, and what the piece that starts there is called.
        at: Vec<(Key, RangeId)>,
    },
    /// See `ControlRequest::Merge`.
    Merge {
        /// The operator.
        operator: OperatorId,
        /// The range on the left and its epoch.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch.
        right: (RangeId, Epoch),
    },
    /// Source: a move begins (R20).
    MoveOpen {
        /// The operator.
        operator: OperatorId,
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// Where it goes.
        to: ShardInfo,
    },
    /// Source: the move ends before its fence, without trace (R20).
    MoveCancel {
        /// The operator.
        operator: OperatorId,
    },
    /// Source: ownership ends here (invariant 6).
    Fence {
        /// The operator.
        operator: OperatorId,
        /// When the leader began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// Source: the destination has adopted the range.
    HandedOver {
        /// The operator.
        operator: OperatorId,
    },
    /// Source: the destination has declined; the range is owned here again, at a higher epoch
    /// (R23).
    TakeBack {
        /// The operator.
        operator: OperatorId,
    },
    /// Source: delete what was left behind, a bounded piece at a time (R24).
    Purge {
        /// The operator.
        operator: OperatorId,
        /// The piece.
        interval: KeyInterval,
        /// Whether it is the last.
        last: bool,
    },
    /// Destination: a range will come in.
    IngestOpen {
        /// The operator.
        operator: OperatorId,
        /// Its table.
        schema: TableSchema,
        /// The range.
        range: RangeId,
        /// Its keys.
        interval: KeyInterval,
        /// Its epoch before the move.
        epoch: Epoch,
        /// Where it comes from.
        from: ShardInfo,
    },
    /// Destination: a copy starts again; entries of earlier attempts are rejected from now on
    /// (R21).
    IngestAttempt {
        /// The operator.
        operator: OperatorId,
        /// The attempt, larger than all before.
        attempt: u64,
        /// The source's position that the copy starts from.
        position: u64,
    },
    /// Destination: all rows of a piece of the range.
    IngestChunk {
        /// The operator.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
        /// The piece; it starts where the one before ended.
        interval: KeyInterval,
        /// The source's position that the copy had reached before.
        from: u64,
        /// The source's position that the copy has reached with this chunk.
        position: u64,
        /// The rows.
        rows: RowBatch,
        /// Their checksum by the source's PostgreSQL.
        checksum: RangeChecksum,
    },
    /// Destination: what has happened to the keys copied so far.
    IngestTail {
        /// The operator.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
        /// The source's position that the copy had reached before.
        from: u64,
        /// The source's position that this one reaches.
        to: u64,
        /// This leader's clock, in milliseconds since the Unix epoch: the answers that come are
        /// kept from then on.
        stamp_ms: u64,
        /// Encoded [`TailEntry`](super::TailEntry)s.
        entries: Vec<Bytes>,
    },
    /// Destination: ownership begins here (invariant 6). Carries the fence's proof.
    Adopt {
        /// The operator.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
        /// The fence's position in the source's log.
        fence: u64,
        /// The range's epoch from here on.
        epoch: Epoch,
        /// When the source began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// Destination: it will never adopt this range (R23).
    Decline {
        /// The operator.
        operator: OperatorId,
    },
    /// Destination: the move was cancelled at the source.
    IngestCancel {
        /// The operator.
        operator: OperatorId,
    },
    /// Destination: delete the copy of a move that was declined or cancelled, a bounded piece at a
    /// time.
    Discard {
        /// The operator.
        operator: OperatorId,
        /// The piece.
        interval: KeyInterval,
        /// Whether it is the last.
        last: bool,
    },
    /// Destination: nothing more will be asked about this move.
    Forget {
        /// The operator.
        operator: OperatorId,
    },
    /// Every replica sums up these pieces as they are at this place (R31).
    Checkpoint {
        /// Tells checkpoints apart.
        nonce: u64,
        /// The pieces.
        pieces: Vec<ComparedPiece>,
        /// What it is for.
        purpose: Purpose,
    },
    /// A schema change was tried here: its tables are held until it is made or given up (R34).
    SchemaPrepare {
        /// The operator.
        operator: OperatorId,
        /// The version that it makes.
        version: u64,
        /// The tables that it changes.
        tables: BTreeSet<TableId>,
    },
    /// The schema change was given up.
    SchemaAbort {
        /// The operator.
        operator: OperatorId,
    },
    /// The next version of the schema.
    SchemaChange {
        /// The change.
        delta: SchemaDelta,
        /// The new tables that this shard owns, each with its first range.
        ranges: Vec<(TableId, RangeId)>,
    },
}

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// The scrubber's round, which a later leader goes on with from here.
    Scrub,
    /// Somebody has asked, or pieces that differ are looked at more closely.
    Look,
    /// The same, and what replicas hold without a reason is looked for, too.
    LeftBehind,
}
