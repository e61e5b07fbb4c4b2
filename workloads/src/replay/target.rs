//! Statements, and the target that answers them.

use std::future::Future;

use bytes::Bytes;

use super::ledger::FoundRow;

/// The kind of a statement. Unlike an operation's kind it is exactly one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetStatementKind {
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
    pub kind: TargetStatementKind,
    /// The primary key; of a scan, the first key it may see.
    pub key: i64,
    /// The row's new version, for writes: per key, each is greater than all before. 0 otherwise.
    pub version: i64,
    /// For updates and deletes: they change the row only if its version lies between this and
    /// `version`, both included. 0 otherwise.
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

/// The answer of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetAnswer {
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

/// Why a target did not answer: either the row is unchanged, or that is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetFailure {
    /// The statement had no effect and will have none.
    #[error("{0}")]
    NotApplied(String),
    /// A write may have taken effect, or may still do so.
    #[error("{0} (outcome unknown)")]
    Unknown(String),
}

/// The end of one statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatementOutcome {
    /// What was answered, or why not.
    pub result: Result<TargetAnswer, TargetFailure>,
    /// The shard that answered.
    pub shard: Option<u32>,
    /// How often the target tried again before this outcome.
    pub retries: u32,
}

impl StoredRow {
    /// Its writes.
    pub fn found(&self) -> FoundRow {
        FoundRow { version: self.version, count: self.count }
    }
}

/// Something that answers statements. Retries that are safe happen inside.
pub trait Target: Send + Sync + 'static {
    /// Executes one statement to its end. Must end by itself: the engine sets no time limit per
    /// statement.
    fn execute(&self, statement: &Statement) -> impl Future<Output = StatementOutcome> + Send;

    /// Adds rows before the run, as one batch if the target can. The first row that fails ends it:
    /// `Err` holds the index of the first row that is not certainly stored.
    fn load(&self, rows: &[Statement]) -> impl Future<Output = Result<(), (usize, TargetFailure)>> + Send {
        async move {
            for (index, row) in rows.iter().enumerate() {
                self.execute(row).await.result.map_err(|failure| (index, failure))?;
            }
            Ok(())
        }
    }
}
