//! Errors of the durable log. All are fatal to the process (log rule 13), except a read below the
//! compaction point.

use std::io;

/// Why the durable log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Stop: the disk refused.
    #[error("the durable log cannot {what}: {source}")]
    Io {
        /// The action that failed.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Stop: synced data is damaged. The log never repairs it silently, since a lost durable tail
    /// is disk loss.
    #[error("the durable log is damaged: {0}")]
    Damaged(String),
    /// Stop: the log belongs to another group or replica, or another process uses it.
    #[error("the durable log belongs to somebody else: {0}")]
    WrongOwner(String),
    /// A read below the compaction point (log rule 13). It indicates a bug.
    #[error("items from {from} on were asked for, the log begins at {compacted}")]
    Trimmed {
        /// The first item requested.
        from: u64,
        /// The first item of the log.
        compacted: u64,
    },
}

/// Makes a [`WalError::Io`] of a system error; `what` completes "the durable log cannot …".
pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> WalError {
    move |source| WalError::Io { what, source }
}
