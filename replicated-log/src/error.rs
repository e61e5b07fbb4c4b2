//! Errors of the public interface. The documentation of each variant begins with the caller's
//! reaction.

use crate::ids::ReplicaId;
use crate::wal::WalError;

/// Why a proposal was not queued. It never appears in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Redirect: this replica does not lead in the given term.
    #[error("not the leader in that term (leader: {leader:?})")]
    NotLeader {
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
    /// Retry later: the queue is full, or the log is at its cap.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Answer with an error: the entry can never be proposed.
    #[error("the entry has {bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`crate::Limits::max_entry_bytes`].
        limit_bytes: usize,
    },
    /// Stop: the log has shut down.
    #[error("the log has stopped")]
    Stopped,
}

/// Why a membership change was not proposed. It never appears in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Refuse: there can be no such group, or it cannot be reached from the current members in one
    /// step.
    #[error("{0}")]
    Impossible(String),
    /// Wait: in the current situation such a group could not serve.
    #[error("{0}")]
    Refused(String),
    /// As for any proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Why a read barrier gave no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// Redirect: this replica does not lead, or stopped leading before the answer.
    #[error("not the leader (leader: {leader:?})")]
    NotLeader {
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
    /// Retry: no majority confirmed in time, or too many calls wait already.
    #[error("no majority confirmed the leadership in time")]
    TimedOut,
    /// Stop: the log has shut down.
    #[error("the log has stopped")]
    Stopped,
}

/// The log has shut down and delivers nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log has stopped")]
pub struct LogStopped;

/// Why a log could not start. All are for the administrator: a retry without a change does not
/// help.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("configuration of the replicated log: {0}")]
    Config(String),
    /// The durable log cannot be opened, belongs to another replica, or is damaged.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The listening socket or the thread could not be created.
    #[error("{what}: {source}")]
    Io {
        /// The action that failed.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
}
