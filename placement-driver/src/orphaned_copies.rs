//! Orphaned copies. A move keeps the source's copy of a range when the new copy cannot be verified
//! against it (R24). An administrator deletes an orphaned copy after looking at it, with
//! `evenkeel operators purge`.
//!
//! [`purge`] asks the source once, whatever protocol the request came by; the caller repeats it
//! until it is done. The placement driver's state has no record of copies. The source's log knows
//! them, and deletes only copies of ranges that the source has handed over.

use crate::replica::ReplicaHandles;
use crate::state::{PlacementState, Status, Work};
use evenkeel_protocol::report::OperatorPhase;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{OperatorId, ShardId};
use std::time::Duration;

/// The time limit for the shard's answer, in milliseconds.
const CALL_MS: u64 = 2_000;

/// The progress of a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// The shard has nothing of the copy any more.
    Done(ShardId),
    /// The copy is being deleted.
    Pending {
        /// What the deletion waits for.
        waiting_for: String,
    },
}

/// The reason for which nothing is deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PurgeFailure {
    /// Redirect: only the leader knows the shards.
    #[error("this replica does not lead")]
    NeedsLeader,
    /// Answer: neither the placement driver nor any shard knows the operator.
    #[error("operator {0} is not known, and no shard has a copy that it left")]
    Unknown(OperatorId),
    /// Answer: the operator is under way, and deletes its copy itself once it is verified.
    #[error(
        "operator {operator} is not over, it is at {step}: it deletes by itself what it leaves once that is verified"
    )]
    NotOver {
        /// The operator.
        operator: OperatorId,
        /// Its step.
        step: &'static str,
    },
    /// Answer: the operator is no move.
    #[error("operator {0} is no move: it leaves nothing")]
    NoMove(OperatorId),
    /// Answer: the shard rejects the request.
    #[error("the shard refuses: {0}")]
    Refused(String),
    /// Retry: the copy may have been deleted.
    #[error("the shard does not answer: {0}")]
    Silent(String),
}

/// The moves whose new copy was not verified, each with the shard that, as far as the state knows,
/// keeps its copy.
pub fn unverified(state: &PlacementState) -> impl Iterator<Item = (OperatorId, ShardId)> {
    let ended = state.operators.values().filter(|o| matches!(o.status, Status::Failed | Status::Differs));
    // Only after the adoption: otherwise the range is still at its source.
    ended.filter(|o| o.pause_us.is_some()).filter_map(|o| match o.work {
        Work::Move { from, .. } => Some((o.id, from)),
        _ => None,
    })
}

/// Asks the source to delete the copy that a move has left there.
///
/// # Errors
/// [`PurgeFailure`].
pub async fn purge(handles: &ReplicaHandles, operator: OperatorId) -> Result<Purge, PurgeFailure> {
    let shard = source(handles, operator)?;
    let leader = handles.shard_leaders().get(&shard).copied();
    let info = handles.applied().state.shards.get(&shard).map(|shard| shard.info.clone());
    // A removed shard has no copy any more.
    let Some(info) = info else { return Ok(Purge::Done(shard)) };
    match handles.calls.ask(&info, leader, &ControlRequest::Purge { operator }, Duration::from_millis(CALL_MS)).await {
        Ok(ControlReply::Done) => Ok(Purge::Done(shard)),
        Ok(ControlReply::Pending { waiting_for }) => Ok(Purge::Pending { waiting_for }),
        Ok(ControlReply::Refused { reason, .. }) => Err(PurgeFailure::Refused(reason)),
        Ok(other) => Err(PurgeFailure::Silent(format!("it answered {other:?}"))),
        Err(trouble) => Err(PurgeFailure::Silent(trouble)),
    }
}

/// The shard that has the copy.
fn source(handles: &ReplicaHandles, operator: OperatorId) -> Result<ShardId, PurgeFailure> {
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(PurgeFailure::NeedsLeader)?;
    match handles.applied().state.operators.get(&operator) {
        Some(known) if !known.status.is_over() => {
            return Err(PurgeFailure::NotOver { operator, step: known.step.name() });
        }
        Some(known) => match known.work {
            Work::Move { from, .. } => return Ok(from),
            _ => return Err(PurgeFailure::NoMove(operator)),
        },
        None => {}
    }
    // The state forgets operators that ended long ago. Shards report their copies.
    let lies = |phase: &OperatorPhase| matches!(phase, OperatorPhase::HandedOver | OperatorPhase::Purging { .. });
    let mut shards = leading.balancer.load.shards.iter();
    let found = shards.find(|(_, view)| view.report.operators.iter().any(|o| o.operator == operator && lies(&o.phase)));
    found.map(|(shard, _)| *shard).ok_or(PurgeFailure::Unknown(operator))
}
