//! What the operator controller asks its caller to do.

use crate::state::{Command, Step};
use evenkeel_protocol::shard::ControlRequest;
use evenkeel_protocol::{OperatorId, ShardId};

/// The identity of a request. Of requests with equal names only one is under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallName {
    /// The operator.
    pub operator: OperatorId,
    /// The step that the request serves; [`Step::End`] for deleting leftovers.
    pub step: Step,
    /// The shard to which it goes.
    pub shard: ShardId,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Todo {
    /// Send this request to the shard's leader, and bring the answer to
    /// [`OperatorController::answered`](super::OperatorController::answered).
    Call {
        /// Its identity.
        name: CallName,
        /// The request.
        request: ControlRequest,
    },
    /// Propose this command.
    Propose(Command),
}
