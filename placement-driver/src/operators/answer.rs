//! Answers of shards to requests, as far as they prove something.

use crate::state::{Operator, Step, Transition};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::ControlReply;

/// The verdict in a shard's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    /// The request is carried out.
    Done,
    /// The request is refused for good.
    Refused {
        /// A stable code.
        code: &'a str,
        /// The reason in one sentence.
        reason: &'a str,
    },
}

impl Verdict<'_> {
    /// The verdict. `None` if this is an answer to another kind of request, which proves nothing.
    pub(super) fn of(reply: &ControlReply) -> Option<Verdict<'_>> {
        match reply {
            ControlReply::Done => Some(Verdict::Done),
            ControlReply::Refused { code, reason } => Some(Verdict::Refused { code, reason }),
            _ => None,
        }
    }
}

/// The reason of a refusal, with the shard that gave it.
pub(super) fn because(shard: ShardId, reason: &str) -> String {
    format!("shard {shard}: {reason}")
}

/// What the answer of a range's owner proves for an operator of a single step.
pub(super) fn owner_proves(operator: &Operator, shard: ShardId, verdict: Verdict<'_>) -> Option<Transition> {
    (operator.step == Step::Apply).then(|| match verdict {
        Verdict::Done => Transition::Applied,
        Verdict::Refused { reason, .. } => Transition::Refused { reason: because(shard, reason) },
    })
}
