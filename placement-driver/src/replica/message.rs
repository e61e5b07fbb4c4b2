//! Messages to the event loop, and the failures of proposals.

use crate::operators::CallName;
use crate::snapshot::Snapshot;
use crate::state::{Command, Effect, Refusal};
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::shard::ControlReply;
use evenkeel_protocol::{Epoch, RangeId};
use evenkeel_replicated_log::{LogIndex, Term};
use tokio::sync::oneshot;

/// The reason for which a proposal had no effect, by the caller's next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeFailure {
    /// Answer: the state machine rejected it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Redirect: it was not proposed here.
    #[error("this replica does not lead")]
    NotLeader,
    /// Retry: too many proposals wait.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Check: it may or may not be effective.
    #[error("the outcome of the proposal is not known")]
    Unknown,
}

/// The result of a proposal, for its proposer.
pub(super) type ProposeResult = Result<Effect, ProposeFailure>;

/// The sender of a proposal's result.
pub(super) type ResultSender = oneshot::Sender<ProposeResult>;

/// A message to the event loop.
pub(super) enum LoopMessage {
    /// A shard has reported. The answer is whether this replica accepted the report.
    Report(Box<ShardReport>, oneshot::Sender<bool>),
    /// A command to propose.
    Propose(Command, ResultSender),
    /// A shard has answered an operator's request.
    Answered(CallName, Result<ControlReply, String>),
    /// A shard has answered where a range that is too large can be split.
    SplitKeys(RangeId, Epoch, Result<ControlReply, String>),
    /// A shard has answered which schema changes it has made.
    SchemaFound(Result<ControlReply, String>),
    /// A snapshot is durable, or could not be written.
    SnapshotWritten(Result<LogIndex, String>),
    /// Whether a majority has confirmed the leadership of this term.
    Confirmed(Term, bool),
    /// The state of another replica is durable here, or could not be fetched.
    StateFetched(Result<Box<Snapshot>, String>),
}

impl LoopMessage {
    /// Whether the message concerns only keys of the coordination store.
    pub(super) fn is_coordination(&self) -> bool {
        matches!(self, LoopMessage::Propose(Command::Kv(_), _))
    }
}
