//! Splits by load: ranges that are too large to be placed well are cut at the quantiles of their
//! load.

use super::planning_context::PlanningContext;
use super::rejection::Reason;
use super::score::SplitScore;
use crate::load::RangeView;
use crate::load::load_profile::{Segment, cut_off, cut_points};
use crate::state::{Action, NewDecision, Range};
use evenkeel_protocol::{Key, RangeId, ShardId};

/// A split for the sake of one fitting piece relieves the busiest shard by at least this share of
/// the mean.
const TRIM_SHARE: f64 = 0.04;

/// Splits the ranges of overloaded shards that are too large to be placed well, many ways at once.
pub(super) fn split_large(context: &mut PlanningContext<'_>, sources: &[ShardId]) -> Option<NewDecision> {
    let before = context.imbalance.ratio_to_mean;
    let mean = context.imbalance.mean;
    let mut actions = Vec::new();
    let mut parts = Vec::new();
    let mut ranges = context.state.ranges.len();
    for shard in sources {
        for range in context.free_ranges(*shard) {
            let rate = context.load.rate(range.route.range);
            if rate <= context.config.split_above * mean {
                continue;
            }
            let target = mean / context.config.pieces_per_shard / rate;
            let room = context.config.max_ranges.saturating_sub(ranges) + 1;
            let cuts = match splittable(context, range) {
                Ok(_) if room < 2 => Err(Reason::TooManyRanges),
                Ok(view) => {
                    let segments = segments(context, view);
                    let cuts =
                        cut_points(&segments, &range.route.interval, target, context.config.split_ways.min(room));
                    if cuts.is_empty() { Err(Reason::SingleKey) } else { Ok(cuts) }
                }
                Err(reason) => Err(reason),
            };
            match cuts {
                Err(reason) => context.reject_range(range, reason),
                Ok(at) => {
                    ranges += at.len();
                    context.taken.insert(range.route.range);
                    parts.push(format!(
                        "range {} ({rate:.0}/s, {:.2} of a shard's part) on shard {shard} into {}",
                        range.route.range,
                        rate / mean,
                        at.len() + 1
                    ));
                    actions.push(Action::Split { range: range.route.range, epoch: Some(range.route.epoch), at });
                }
            }
        }
    }
    let why = format!(
        "imbalance {before:.2} ({:.2} × its floor {:.2}) for more than {} ms: splitting {} at the quantiles of the load",
        before / context.imbalance.floor,
        context.imbalance.floor,
        context.config.persist_ms,
        parts.join(", ")
    );
    let alternatives = vec!["move whole: it would make its destination as busy as its source is now".to_string()];
    context.decision(why, before, alternatives, actions)
}

/// The load of a range in segments.
fn segments(context: &PlanningContext<'_>, view: &RangeView) -> Vec<Segment> {
    let Some(table) = context.state.tables.get(&view.table) else { return Vec::new() };
    view.profile.segments(&view.interval, &table.schema.codec())
}

/// The load of a range, if it is known well enough to split by.
fn splittable<'a>(context: &PlanningContext<'a>, range: &Range) -> Result<&'a RangeView, Reason> {
    let id: RangeId = range.route.range;
    let view = context.load.ranges.get(&id).ok_or(Reason::TooNew)?;
    let ago_ms = context.now_ms.saturating_sub(range.bounds_since_ms);
    if ago_ms < context.config.resplit_ms {
        return Err(Reason::CutLately { ago_ms });
    }
    match context.load.shift(id) {
        None => Err(Reason::TooNew),
        // A moving front would leave every cut behind at once.
        Some(shift) if shift > context.config.max_shift => Err(Reason::Shifting { shift }),
        Some(_) => Ok(view),
    }
}

/// Cuts a fitting piece off a larger range. It is the last resort: no range fits as it is, nothing
/// is under way, everything is measured, and the piece is worth a split.
pub(super) fn cut_off_piece(context: &mut PlanningContext<'_>, sources: &[ShardId]) -> Option<NewDecision> {
    let (before, mean, ceiling) =
        (context.imbalance.ratio_to_mean, context.imbalance.mean, context.imbalance.ceiling());
    let pending = context.state.running().next().is_some() || context.load.expects();
    if pending || context.state.ranges.len() >= context.config.max_ranges {
        return None;
    }
    let from = *sources.first()?;
    let excess = context.imbalance.loads.get(&from)? - mean;
    let room = ceiling - context.imbalance.loads.values().copied().fold(f64::INFINITY, f64::min);
    let wanted = excess.min(room);
    if wanted < TRIM_SHARE * mean {
        return None;
    }
    let mut ranges = context.free_ranges(from);
    ranges.retain(|range| context.load.rate(range.route.range) > wanted);
    ranges.sort_by_key(|range| {
        let range = range.route.range;
        SplitScore { bytes: context.load.bytes(range), range }
    });
    for range in ranges {
        let rate = context.load.rate(range.route.range);
        match splittable(context, range) {
            Err(reason) => context.reject_range(range, reason),
            Ok(view) => {
                let cut: Option<(Key, f64)> = cut_off(&segments(context, view), &range.route.interval, wanted / rate);
                let Some((key, share)) = cut else {
                    context.reject_range(range, Reason::SingleKey);
                    continue;
                };
                context.taken.insert(range.route.range);
                let why = format!(
                    "shard {from} carries {excess:.0}/s more than its part and no range of it fits elsewhere: cutting {:.0}/s off \
                     range {} ({rate:.0}/s)",
                    share * rate,
                    range.route.range
                );
                let action = Action::Split { range: range.route.range, epoch: Some(range.route.epoch), at: vec![key] };
                let alternatives = vec!["move a whole range: each would overfill its destination".to_string()];
                return context.decision(why, before, alternatives, vec![action]);
            }
        }
    }
    None
}
