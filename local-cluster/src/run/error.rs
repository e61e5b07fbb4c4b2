//! Errors of a run.

use crate::error::{ClusterError, InvalidSetting};
use evenkeel_client::causes::with_causes;

/// Why a run could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting cannot be honoured.
    #[error(transparent)]
    InvalidSetting(#[from] InvalidSetting),
    /// Any other reason, in one line.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    /// A failure with this error's text and causes.
    pub fn failed(error: impl std::error::Error) -> RunError {
        RunError::Failed(with_causes(&error))
    }
}

impl From<ClusterError> for RunError {
    fn from(error: ClusterError) -> RunError {
        match error {
            ClusterError::InvalidSetting(error) => RunError::InvalidSetting(error),
            error => RunError::failed(error),
        }
    }
}
