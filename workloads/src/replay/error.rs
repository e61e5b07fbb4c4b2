//! Errors that end a replay.

use super::ledger::LedgerFull;
use super::target::TargetFailure;
use crate::operation::SourceError;

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
        failure: TargetFailure,
    },
    /// A task of the engine ended by a panic: an error in this program.
    #[error("a task of the replay engine failed: {0}")]
    Task(String),
}
