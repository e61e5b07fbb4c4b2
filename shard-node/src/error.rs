//! Why a replica stops following its log with the present start of PostgreSQL.

use crate::postgres::{StoreError, is_damage};
use evenkeel_replicated_log::LogIndex;

/// The reason, by what the replica must do next.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// PostgreSQL must be opened again.
    #[error("PostgreSQL must be opened again: {0}")]
    Reopen(String),
    /// PostgreSQL's data is damaged: it must be made again from a peer's.
    #[error("PostgreSQL's data is damaged: {0}")]
    Damaged(String),
    /// The log has stopped.
    #[error("the log has stopped")]
    LogStopped,
    /// The replica would diverge: it must stop.
    #[error("the replica would diverge: {0}")]
    Diverged(String),
    /// The log no longer holds what this replica needs: it must take another replica's state.
    #[error("entries up to {trimmed} are no longer in the log")]
    NeedState {
        /// The last position that is gone.
        trimmed: LogIndex,
    },
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> ApplyError {
        match error {
            StoreError::Diverged(reason) => ApplyError::Diverged(reason),
            StoreError::Damaged(reason) => ApplyError::Damaged(reason),
            StoreError::Refused(error) if is_damage(&error.code) => ApplyError::Damaged(error.to_string()),
            StoreError::SessionLost | StoreError::Refused(_) => ApplyError::Reopen(error.to_string()),
        }
    }
}
