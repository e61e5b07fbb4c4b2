//! Errors of a cluster.

use crate::process_id::ProcessId;
use evenkeel_client::admin::AdminError;
use evenkeel_protocol::ShardId;
use std::fmt;
use std::path::PathBuf;

/// A setting whose value cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {value} (configuration): accepted is {accepted}")]
pub struct InvalidSetting {
    /// The setting's key.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// The accepted values.
    pub accepted: String,
}

impl InvalidSetting {
    /// The value `value` of `setting`, where only `accepted` is.
    pub fn new(setting: &'static str, value: impl fmt::Display, accepted: impl fmt::Display) -> InvalidSetting {
        InvalidSetting { setting, value: value.to_string(), accepted: accepted.to_string() }
    }
}

/// Why an operation on a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file, a folder, a port or a process is not available.
    #[error("{what}: {source}")]
    Io {
        /// The attempted action.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A port of a cluster that is started again is in use.
    #[error("port {port} is taken by another program, and the cluster in {} listens on it: end that program, or this cluster if it still runs", .root.display())]
    PortTaken {
        /// The port.
        port: u16,
        /// The cluster's folder.
        root: PathBuf,
    },
    /// A process ended unasked.
    #[error("{process} ended by itself ({status}); the end of {}:\n{tail}", .log.display())]
    Died {
        /// The process.
        process: ProcessId,
        /// Its exit status.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A condition did not come true before its deadline.
    #[error("waited {seconds:.0} s for {condition}; last seen: {seen}{blame}")]
    Timeout {
        /// The condition.
        condition: String,
        /// The time waited, in seconds.
        seconds: f64,
        /// The last observation.
        seen: String,
        /// The end of the most telling log, if there is one.
        blame: String,
    },
    /// The cluster has no such process.
    #[error("there is no process {0} in this cluster")]
    NoSuchProcess(ProcessId),
    /// The cluster has no such shard.
    #[error("no shard {0}")]
    NoSuchShard(ShardId),
    /// Fewer ports were reserved than a process needs.
    #[error("no ports for {0}")]
    NoPorts(String),
    /// A file of the cluster cannot be expressed as text.
    #[error("writing a configuration: {0}")]
    Text(String),
    /// An option cannot be honoured.
    #[error(transparent)]
    InvalidSetting(#[from] InvalidSetting),
    /// The placement driver refused, or was not reached.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl ClusterError {
    /// An I/O error with the attempted action.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
        move |source| ClusterError::Io { what: what.into(), source }
    }
}
