//! The reasons for which a replica stops.

use crate::snapshot::SnapshotError;

/// The reason for which a replica stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration contradicts itself. One line that names the key.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on, or a file cannot be read or written.
    #[error("{what}: {source}")]
    Io {
        /// The address or the file.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The log could not start.
    #[error(transparent)]
    Log(#[from] evenkeel_replicated_log::StartError),
    /// The snapshot cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The replica cannot continue: the log has stopped, or has entries that this version cannot
    /// read.
    #[error("{0}")]
    Stopped(String),
}
