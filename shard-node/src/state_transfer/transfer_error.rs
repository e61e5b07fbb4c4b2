//! Why a state transfer, or one piece of it, failed.

use crate::storage::StoreError;

/// Why a transfer did not come about, or a piece did not; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No peer answers, or none is ahead.
    #[error("no replica of this shard can give its state")]
    NoPeer,
    /// The stream ended early or made no sense.
    #[error("the transfer was lost: {0}")]
    Lost(String),
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) fn lost(error: impl std::fmt::Display) -> TransferError {
    TransferError::Lost(error.to_string())
}
