//! The kinds of operators: which file answers for which kind.

use super::answer::{Verdict, owner_proves};
use super::{create_table, merge, move_range, schema_change, split};
use crate::load::LoadModel;
use crate::state::{Operator, PlacementState, Transition, Work};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{RangeId, ShardId};

/// The requests of an operator's present step.
pub(super) fn requests(operator: &Operator, state: &PlacementState) -> Vec<(ShardId, ControlRequest)> {
    let id = operator.id;
    let request = match &operator.work {
        Work::CreateTable { table, range, shard } => create_table::request(state, *table, *range, *shard),
        Work::Split { range, epoch, shard, at } => Some(split::request(id, *range, *epoch, *shard, at)),
        Work::Merge { left, right, shard } => Some(merge::request(id, *left, *right, *shard)),
        Work::Move { .. } => move_range::request(operator, state),
        // To every shard: the controller asks for them.
        Work::SchemaChange { .. } => None,
    };
    request.into_iter().collect()
}

/// The transition that a shard's answer proves. `None` if it proves nothing yet.
pub(super) fn answer_proves(operator: &Operator, shard: ShardId, reply: &ControlReply) -> Option<Transition> {
    let verdict = Verdict::of(reply)?;
    match operator.work {
        Work::SchemaChange { .. } => schema_change::answer_proves(operator, shard, reply),
        Work::Move { .. } => move_range::answer_proves(operator, shard, verdict),
        _ => owner_proves(operator, shard, verdict),
    }
}

/// The transition that the shards' reports prove. `None` if they prove nothing yet.
pub(super) fn reports_prove(operator: &Operator, state: &PlacementState, load: &LoadModel) -> Option<Transition> {
    match operator.work {
        Work::Move { .. } => move_range::reports_prove(operator, state, load),
        _ => None,
    }
}

/// The transition that gives an operator up after its deadline. `since_ms` is the beginning of this
/// leadership.
pub(super) fn deadline(operator: &Operator, load: &LoadModel, since_ms: u64, now_ms: u64) -> Option<Transition> {
    match operator.work {
        Work::Move { .. } => move_range::give_up(operator, load, since_ms, now_ms),
        _ => None,
    }
}

/// The shard at which the load of a range counts: its owner, unless it is moving to a shard that
/// will serve it.
pub fn destination(state: &PlacementState, reports: impl Fn(&ShardId) -> bool, id: RangeId) -> Option<ShardId> {
    let range = state.ranges.get(&id)?;
    let operator = range.operator.and_then(|operator| state.operators.get(&operator));
    let moved = operator.and_then(|operator| move_range::load_moved_to(operator, reports));
    Some(moved.unwrap_or(range.route.shard))
}
