//! Copies that moves have left behind at their sources, and that stay there because nobody could verify the range's new copy against them
//! (R24): they go when a person has looked, and says so.
//!
//! It is asked once here, whatever protocol it is asked by; whoever asks goes on until it is done. Nothing of it is in the placement driver's
//! state: the source's log knows what lies there, and deletes only what it has handed over.

use crate::operators::orphaned_copies::reported_at;
use crate::server::Shared;
use crate::state::Work;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{OperatorId, ShardId};
use std::time::Duration;

/// How long the shard may take to answer, in milliseconds.
const CALL_MS: u64 = 2_000;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// The shard has nothing of it any more.
    Done(ShardId),
    /// It is being deleted.
    Pending {
        /// The work that is waited for.
        waiting_for: String,
    },
}

/// Why nothing is deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PurgeFailure {
    /// Redirect: only the leader knows the shards.
    #[error("this replica does not lead")]
    NeedsLeader,
    /// Answer: neither the placement driver nor any shard remembers such an operator.
    #[error("operator {0} is not known, and no shard has a copy that it left")]
    Unknown(OperatorId),
    /// Answer: it deletes what it leaves by itself.
    #[error(
        "operator {operator} is not over, it is at {step}: it deletes by itself what it leaves once that is verified"
    )]
    NotOver {
        /// The operator.
        operator: OperatorId,
        /// Where it is.
        step: &'static str,
    },
    /// Answer: it moved nothing.
    #[error("operator {0} is no move: it leaves nothing")]
    NoMove(OperatorId),
    /// Answer.
    #[error("the shard refuses: {0}")]
    Refused(String),
    /// Retry: it may have happened.
    #[error("the shard does not answer: {0}")]
    Silent(String),
}

/// Has the source delete what a move has left there.
///
/// # Errors
/// [`PurgeFailure`].
pub async fn purge(shared: &Shared, operator: OperatorId) -> Result<Purge, PurgeFailure> {
    let shard = source(shared, operator)?;
    let leader = shared.shard_leaders().get(&shard).copied();
    let info = shared.applied().state.shards.get(&shard).map(|shard| shard.info.clone());
    // A shard that is gone has taken everything with it.
    let Some(info) = info else { return Ok(Purge::Done(shard)) };
    match shared.calls.ask(&info, leader, &ControlRequest::Purge { operator }, Duration::from_millis(CALL_MS)).await {
        Ok(ControlReply::Done) => Ok(Purge::Done(shard)),
        Ok(ControlReply::Pending { waiting_for }) => Ok(Purge::Pending { waiting_for }),
        Ok(ControlReply::Refused { reason, .. }) => Err(PurgeFailure::Refused(reason)),
        Ok(other) => Err(PurgeFailure::Silent(format!("it says {other:?}"))),
        Err(trouble) => Err(PurgeFailure::Silent(trouble)),
    }
}

/// The shard that has what the operator left.
fn source(shared: &Shared, operator: OperatorId) -> Result<ShardId, PurgeFailure> {
    let leading = shared.leading();
    let leading = leading.as_ref().ok_or(PurgeFailure::NeedsLeader)?;
    match shared.applied().state.operators.get(&operator) {
        Some(known) if !known.status.is_over() => {
            return Err(PurgeFailure::NotOver { operator, step: known.step.name() });
        }
        Some(known) => match known.work {
            Work::Move { from, .. } => return Ok(from),
            _ => return Err(PurgeFailure::NoMove(operator)),
        },
        None => {}
    }
    // An operator that ended long ago is forgotten here, but the shard still reports its copy.
    reported_at(&leading.balancer.load, operator).ok_or(PurgeFailure::Unknown(operator))
}
