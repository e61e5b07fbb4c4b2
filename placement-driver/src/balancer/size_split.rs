//! Splits by size: a range above the size limit is cut into pieces of about half the limit,
//! whatever its load.
//!
//! `merge` joins only ranges that stay far below the limit together, so that neither undoes the
//! other's work.

use super::planning_context::PlanningContext;
use super::rejection::Reason;
use super::size_survey::{SizeSurvey, too_large};
use crate::state::{Action, NewDecision};

/// Ranges split by size in one round, at most.
const SPLITS_PER_ROUND: usize = 4;

/// Splits ranges above the size limit whose shards have said where.
pub(super) fn split(context: &mut PlanningContext<'_>, survey: &SizeSurvey) -> Option<NewDecision> {
    let mut actions = Vec::new();
    let mut parts = Vec::new();
    let mut ranges = context.state.ranges.len();
    for range in context.state.ranges.values() {
        let Some(bytes) = too_large(range, context.load, context.config, context.now_ms) else { continue };
        let route = &range.route;
        if !context.reports(route.shard) {
            context.reject_range(range, Reason::Silent);
            continue;
        }
        let Some(at) = survey.keys(context.state, range) else { continue };
        if actions.len() >= SPLITS_PER_ROUND || context.taken.contains(&route.range) {
            continue;
        }
        if ranges + at.len() > context.config.max_ranges {
            context.reject_range(range, Reason::TooManyRanges);
            continue;
        }
        ranges += at.len();
        context.taken.insert(route.range);
        parts.push(format!(
            "range {} ({} MiB) on shard {} into {}",
            route.range,
            bytes >> 20,
            route.shard,
            at.len() + 1
        ));
        actions.push(Action::Split { range: route.range, epoch: Some(route.epoch), at: at.to_vec() });
    }
    let why = format!(
        "larger than {} MiB: splitting {} at the quantiles of their bytes",
        context.config.split_bytes >> 20,
        parts.join(", ")
    );
    let alternatives = vec!["leave them: a large range takes long to move, and moves all or nothing".into()];
    context.decision(why, context.imbalance.ratio_to_mean, alternatives, actions)
}
