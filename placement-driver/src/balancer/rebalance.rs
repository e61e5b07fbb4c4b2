//! One round of rebalancing: splits first, and moves once nothing is left to split.

use super::planning_context::PlanningContext;
use super::rejection::Reason;
use super::{moves, split};
use crate::state::NewDecision;

/// The next decision towards the goal, if there is one.
pub(super) fn rebalance(context: &mut PlanningContext<'_>, uneven_since_ms: Option<u64>) -> Option<NewDecision> {
    if context.imbalance.ratio() <= context.imbalance.close_enough() && context.state.running().next().is_none() {
        context.reject_shards(uneven_since_ms);
        return None;
    }
    let sources = context.overloaded();
    for shard in context.state.shards.keys().copied().filter(|id| !sources.contains(id)).collect::<Vec<_>>() {
        let reason = if context.reports(shard) {
            Reason::BelowCeiling { ceiling: context.imbalance.ceiling() }
        } else {
            Reason::Silent
        };
        context.reject_shard(shard, reason);
    }
    split::split_large(context, &sources)
        .or_else(|| moves::moves(context))
        .or_else(|| split::cut_off_piece(context, &sources))
}
