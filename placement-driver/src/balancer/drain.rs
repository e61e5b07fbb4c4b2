//! Draining: moves the ranges of draining shards to the least loaded shards.

use super::planning_context::PlanningContext;
use super::rejection::Reason;
use super::score::{DrainScore, TargetScore, TotalLoad};
use crate::state::NewDecision;
use evenkeel_protocol::ShardId;
use std::cmp::Reverse;

/// Begins the moves that draining shards have slots for.
pub(super) fn drain(context: &mut PlanningContext<'_>) -> Option<NewDecision> {
    let before = context.imbalance.ratio_to_mean;
    let draining: Vec<ShardId> = context.state.shards.values().filter(|s| s.draining).map(|s| s.info.id).collect();
    let mut actions = Vec::new();
    for shard in &draining {
        if !context.reports(*shard) {
            context.reject_shard(*shard, Reason::Silent);
            continue;
        }
        context.reject_unfree(*shard);
        let mut ranges = context.free_ranges(*shard);
        ranges.sort_by_key(|range| {
            let range = range.route.range;
            DrainScore { load: Reverse(TotalLoad(context.load.rate(range))), range }
        });
        for range in ranges {
            match least_loaded(context).filter(|_| context.may_send(*shard)) {
                Some(to) => actions.push(context.take_move(range, to)),
                None => context.reject_range(range, Reason::EnoughMoves { moves: context.moves_at(*shard) }),
            }
        }
    }
    let names: Vec<String> = draining.iter().map(ToString::to_string).collect();
    let why =
        format!("shard(s) {} draining: {} range(s) go to the least loaded shards", names.join(", "), actions.len());
    context.decision(why, before, vec!["wait: a drain goes on whatever the load is".into()], actions)
}

fn least_loaded(context: &PlanningContext<'_>) -> Option<ShardId> {
    let open = context.imbalance.loads.iter().filter(|(id, _)| context.may_receive(**id));
    open.map(|(shard, load)| TargetScore { load: TotalLoad(*load), shard: *shard }).min().map(|target| target.shard)
}
