//! Effects: the changes that an effective control entry requires outside of the state machine.

use crate::log_entry::TailEntry;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{KeyInterval, OperatorId, RowBatch, SchemaDelta, TableSchema};
use std::sync::Arc;

/// Where a chunk of rows belongs, and what its source says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedRows {
    /// The move.
    pub operator: OperatorId,
    /// The attempt.
    pub attempt: u64,
    /// The rows' checksum by the source's PostgreSQL.
    pub checksum: RangeChecksum,
}

/// A change outside of the state machine that an effective control entry requires.
#[derive(Debug, Clone, PartialEq)]
pub enum ControlEffect {
    /// Create this table in PostgreSQL.
    CreateTable(Arc<TableSchema>),
    /// Drop this table in PostgreSQL.
    DropTable(Arc<TableSchema>),
    /// Put these rows in the place of all that lies in the interval.
    Replace {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
        /// The rows.
        rows: RowBatch,
        /// What the copy says of them.
        copied: CopiedRows,
    },
    /// Apply the changes, and take the answers into the retry window.
    Tail {
        /// The leader's clock, in milliseconds since the Unix epoch.
        stamp_ms: u64,
        /// What came.
        entries: Vec<TailEntry>,
    },
    /// Delete all rows in the interval.
    Delete {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
    },
    /// What this shard owns has changed, by an entry that moves no rows.
    OwnershipChanged,
    /// A fence was passed: the shard owns less.
    Fenced(OperatorId),
    /// A range was adopted.
    Adopted {
        /// The operator.
        operator: OperatorId,
        /// When the source began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// A move was cancelled before its fence.
    MoveCancelled(OperatorId),
    /// A move in has been opened, or wants a new attempt.
    IngestOpened(OperatorId),
    /// Execute this schema change in PostgreSQL.
    ChangeSchema(Arc<SchemaDelta>),
}
