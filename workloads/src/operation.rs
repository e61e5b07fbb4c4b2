//! One operation of a workload, and a source of operations.
//!
//! Generators and trace readers meet the replay engine here: both are an [`OperationSource`], asked
//! for the next operation with the time passed in. Keys are `i64` because the table that is
//! replayed against has a `bigint` primary key; values are only sizes, their content is made by the
//! engine so that it can be checked.

use std::time::Duration;

use crate::trace::TraceError;

/// What an operation does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Read one row.
    Read,
    /// Overwrite one row's value.
    Update,
    /// Add a row.
    Insert,
    /// Remove a row.
    Delete,
    /// Read rows in key order, from the operation's key on.
    Scan {
        /// The most rows to read.
        limit_rows: u32,
    },
    /// Read one row, then overwrite it: two statements.
    ReadModifyWrite,
}

impl OperationKind {
    /// Whether it may change the row, and so must be ordered among the writes of its key.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::Scan { .. })
    }
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    /// What it does.
    pub kind: OperationKind,
    /// The row's primary key; of a scan, the first key it may see.
    pub key: i64,
    /// Size of the value it writes, in bytes; 0 if it writes none.
    pub value_bytes: u32,
}

/// An operation with the time it was recorded at, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOperation {
    /// Time since the recording's first operation; `None` if the source has no times of its own.
    pub at: Option<Duration>,
    /// The operation.
    pub operation: Operation,
}

/// A source could not give its next operation. The run ends: skipping input would change the
/// workload in silence.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The trace is malformed or unreadable.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Where operations come from.
pub trait OperationSource: Send {
    /// The next operation, or `None` at the end. `now` is the time since the start of the run at
    /// which it will be due; workloads that change over time follow it, and it never runs
    /// backwards.
    fn next(&mut self, now: Duration) -> Result<Option<TimedOperation>, SourceError>;

    /// The share (0 to 1) of all operations that touch the hottest key, if the source knows it. It
    /// sets the floor of the imbalance, `max(1, N * share)`, because one key cannot be split.
    fn hottest_key_share(&self) -> Option<f64>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_and_scans_leave_the_row_alone() {
        use OperationKind::*;
        let writing: Vec<_> = [Read, Update, Insert, Delete, Scan { limit_rows: 1 }, ReadModifyWrite]
            .into_iter()
            .filter(|kind| kind.writes())
            .collect();
        assert_eq!(writing, [Update, Insert, Delete, ReadModifyWrite]);
    }
}
