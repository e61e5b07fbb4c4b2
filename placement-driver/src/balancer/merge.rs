//! Merges: neighbours that have long been cold are joined.

use super::planning_context::PlanningContext;
use crate::operators::merge::slot_of;
use crate::state::{Action, NewDecision, Range};
use evenkeel_protocol::ShardId;
use std::collections::BTreeMap;

/// Merges under way at one shard, at most.
const MERGES_PER_SHARD: usize = 2;

/// Merges pairs of neighbours on one shard that have both been cold for long, and were neither
/// split nor moved lately: a split or move is not undone while its reason may come back.
pub(super) fn merge(context: &mut PlanningContext<'_>) -> Option<NewDecision> {
    let mut per_shard: BTreeMap<ShardId, usize> = BTreeMap::new();
    for shard in context.state.running().filter_map(slot_of) {
        *per_shard.entry(shard).or_default() += 1;
    }
    let mut actions = Vec::new();
    for table in context.state.tables.keys() {
        for pair in context.state.ranges_of(*table).windows(2) {
            let &[left, right] = pair else { continue };
            let shard = left.route.shard;
            let slots = per_shard.entry(shard).or_default();
            if *slots >= MERGES_PER_SHARD || right.route.shard != shard || !context.reports(shard) {
                continue;
            }
            let bytes = |range: &Range| context.load.ranges.get(&range.route.range).map_or(u64::MAX, |view| view.bytes);
            let small = bytes(left).saturating_add(bytes(right)) <= context.config.merged_max_bytes;
            if small && long_cold(context, left) && long_cold(context, right) {
                *slots += 1;
                context.taken.extend([left.route.range, right.route.range]);
                let id = |range: &Range| (range.route.range, range.route.epoch);
                actions.push(Action::Merge { left: id(left), right: id(right) });
            }
        }
    }
    let why = format!(
        "{} pair(s) of neighbouring ranges have each carried less than {:.0}% of a shard's part for {} s: merging them",
        actions.len(),
        context.config.cold_share * 100.0,
        context.config.merge_after_ms / 1000
    );
    let alternatives = vec!["leave them: each range costs the shards and the clients' routing tables a little".into()];
    context.decision(why, context.imbalance.ratio_to_mean, alternatives, actions)
}

/// Whether a range is free, has been cold for long, and was neither split nor moved lately.
fn long_cold(context: &PlanningContext<'_>, range: &Range) -> bool {
    let long_ago = |at_ms: u64| at_ms + context.config.merge_after_ms <= context.now_ms;
    let cold = context.load.ranges.get(&range.route.range).and_then(|view| view.cold_since_ms);
    range.operator.is_none()
        && context.may_change(range)
        && !context.taken.contains(&range.route.range)
        && cold.is_some_and(long_ago)
        && long_ago(range.bounds_since_ms)
        && range.left.iter().all(|(_, at_ms)| long_ago(*at_ms))
}
