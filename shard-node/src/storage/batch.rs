//! Write batches: changes that are applied in one transaction, with the position or the records
//! that belong to them.

use crate::log_entry::image::Columns;
use crate::state_machine::CopiedRows;
use bytes::Bytes;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, RowBatch, SchemaDelta, TableSchema};
use std::sync::Arc;

/// Changes that go in together.
#[derive(Debug, Clone, Default)]
pub struct ApplyBatch {
    /// The changes, in order.
    pub operations: Vec<StoreOperation>,
    /// With them, all effective entries up to here are in. Never less than the batch's before.
    pub position: u64,
    /// The batch has rows of entries up to here, if that is more than the position: then entries
    /// behind the position come again after a restart (R12).
    pub reached: u64,
    /// Kept with the position.
    pub term: u64,
    /// The replica's state as of the position, if it is to be kept now.
    pub state: Option<Bytes>,
    /// Answers to be remembered; may be empty.
    pub answers: Bytes,
    /// Which rows are missing after this batch, if any are; bytes that mean nothing here.
    pub seeding: Option<Bytes>,
    /// The transactions over several shards as of the position, if there are any and no earlier
    /// batch of this position carried them; bytes that mean nothing here.
    pub transactions: Option<Bytes>,
    /// R16: wait until this batch, and with it all before, is on the disk.
    pub sync: bool,
    /// Entries, by (term, serial), that a *leader* applies by this batch. Its own transactions
    /// commit in any order, so it records what it applies entry by entry too (invariant 3): with
    /// records the batch carries no position.
    pub records: Vec<(u64, u64)>,
}

/// Rows of a copy that are not stored as the copy brought them. The batch is in all the same: what
/// becomes of the copy is not for one replica to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differing {
    /// The copy, and what its source says of the rows.
    pub copied: CopiedRows,
    /// Where they lie.
    pub interval: KeyInterval,
    /// What this PostgreSQL says of them.
    pub stored: RangeChecksum,
}

/// One step of a batch.
#[derive(Debug, Clone)]
pub enum StoreOperation {
    /// Makes a table by its `create_sql`.
    CreateTable(Arc<TableSchema>),
    /// Drops a table, if it is there.
    DropTable(Arc<TableSchema>),
    /// Executes a schema change.
    ChangeSchema(Arc<SchemaDelta>),
    /// Changes rows of a table. A key is in at most one of the two lists, once (R15).
    Rows {
        /// The table.
        table: Arc<TableSchema>,
        /// New row images: all columns, packed (see `protocol::rows`).
        upserts: Vec<Bytes>,
        /// Keys of rows to delete; rows that are not there are fine.
        deletes: Vec<Key>,
    },
    /// Sets columns of rows that are there; of a row that is not, nothing. A key is in one of the
    /// lists of a run of such operations and of `Rows`, once (R15).
    Update {
        /// The table.
        table: Arc<TableSchema>,
        /// Which columns; none of the key.
        columns: Columns,
        /// Keys, and the new values, packed.
        rows: Vec<(Key, Bytes)>,
    },
    /// Makes `rows` all that is in an interval. The rows must lie in it.
    ReplaceInterval {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
        /// The rows: all columns.
        rows: RowBatch,
        /// The checksum by the copy's source: compared with the stored rows in the transaction that
        /// stores them.
        copied: Option<CopiedRows>,
    },
    /// Deletes all rows of a table.
    Truncate(Arc<TableSchema>),
    /// Inserts and deletes rows of a table without a key, one after the other (R18).
    Ordered {
        /// The table.
        table: Arc<TableSchema>,
        /// The changes.
        changes: Vec<OrderedRow>,
    },
    /// Sets a sequence.
    Sequence {
        /// The sequence.
        sequence: Arc<TableSchema>,
        /// Its image (see `RelationKind::Sequence`).
        image: Bytes,
    },
    /// Deletes all rows in an interval.
    DeleteInterval {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
    },
}

/// A change of a row without a key. All columns, packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderedRow {
    /// One row more.
    Inserted(Bytes),
    /// One of the rows with these values less.
    Removed(Bytes),
}
