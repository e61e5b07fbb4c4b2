//! Orphaned copies: rows of a range that a move has left at its source.
//!
//! A move keeps the source's copy if nobody could verify the new copy against it (R24). An
//! administrator deletes it with `evenkeel operators purge`. The placement state does not record
//! such copies: the source's log does, and it deletes only what it has handed over.

use crate::load::LoadModel;
use crate::state::{PlacementState, Status, Work};
use evenkeel_protocol::report::OperatorPhase;
use evenkeel_protocol::{OperatorId, ShardId};

/// Moves whose new copy was adopted without verification, each with the shard that keeps an
/// orphaned copy as far as the placement driver knows.
pub fn unverified(state: &PlacementState) -> impl Iterator<Item = (OperatorId, ShardId)> {
    let ended = state.operators.values().filter(|o| matches!(o.status, Status::Failed | Status::Differs));
    // Without an adoption the range is still at its source.
    ended.filter(|o| o.pause_us.is_some()).filter_map(|o| match o.work {
        Work::Move { from, .. } => Some((o.id, from)),
        _ => None,
    })
}

/// The shard that reports a copy left by an operator that the placement driver has forgotten.
pub fn reported_at(load: &LoadModel, operator: OperatorId) -> Option<ShardId> {
    let left = |phase: &OperatorPhase| matches!(phase, OperatorPhase::HandedOver | OperatorPhase::Purging { .. });
    let mut shards = load.shards.iter();
    let found = shards.find(|(_, view)| view.report.operators.iter().any(|o| o.operator == operator && left(&o.phase)));
    found.map(|(shard, _)| *shard)
}
