//! Moves by load: from shards above the ceiling to the least loaded ones.

use super::imbalance::Imbalance;
use super::planning_context::PlanningContext;
use super::rejection::Reason;
use super::score::{MoveScore, TargetScore, TotalLoad};
use crate::state::{NewDecision, Range};
use evenkeel_protocol::ShardId;
use std::cmp::Reverse;

/// Loads that differ by less than this share of the mean are equal when a range is chosen; then
/// bytes decide.
const EQUAL_SHARE: f64 = 0.05;
/// A move relieves the busiest shard by at least this share of the mean.
const WORTH_SHARE: f64 = 0.02;

/// Begins moves from shards above the ceiling to the least loaded ones, as many as there are slots
/// for.
pub(super) fn moves(context: &mut PlanningContext<'_>) -> Option<NewDecision> {
    let before = context.imbalance.clone();
    let mut actions = Vec::new();
    let mut parts = Vec::new();
    while let Some((range, to)) = best_move(context) {
        parts.push(format!(
            "range {} ({:.0}/s) from shard {} to {to}",
            range.route.range,
            context.load.rate(range.route.range),
            range.route.shard
        ));
        actions.push(context.take_move(range, to));
    }
    if actions.is_empty() {
        explain_no_moves(context);
        return None;
    }
    let loads = |imbalance: &Imbalance| {
        let loads: Vec<String> = imbalance.loads.iter().map(|(id, load)| format!("{id}: {load:.0}")).collect();
        loads.join(", ")
    };
    let why = format!(
        "loads per shard {{{}}} (imbalance {:.2}, floor {:.2}): moving {}, to come to {{{}}}",
        loads(&before),
        before.ratio_to_mean,
        before.floor,
        parts.join(", "),
        loads(&context.imbalance)
    );
    let alternatives = vec![format!(
        "larger pieces would overfill their destination (at most {:.0}/s); of equal ones those with the fewest bytes were taken",
        before.ceiling()
    )];
    context.decision(why, before.ratio_to_mean, alternatives, actions)
}

/// The move that brings the busiest shard that can be relieved closest to the mean without
/// overfilling the destination. The destination is filled up to the goal if a range fits so well,
/// otherwise up to `close_enough`.
fn best_move<'a>(context: &PlanningContext<'a>) -> Option<(&'a Range, ShardId)> {
    let full = context.imbalance.floor * context.imbalance.mean;
    [context.imbalance.goal, context.imbalance.close_enough()]
        .into_iter()
        .find_map(|filled| best_move_up_to(context, filled * full))
}

/// The best move that fills its destination at most up to `ceiling` statements per second.
fn best_move_up_to<'a>(context: &PlanningContext<'a>, ceiling: f64) -> Option<(&'a Range, ShardId)> {
    let (mean, full) = (context.imbalance.mean, context.imbalance.floor * context.imbalance.mean);
    for from in context.overloaded() {
        if !context.may_send(from) || !context.reports(from) {
            continue;
        }
        let excess = context.imbalance.loads.get(&from).copied().unwrap_or(0.0) - mean;
        let open = context.imbalance.loads.iter().filter(|(id, _)| **id != from && context.may_receive(**id));
        let mut targets: Vec<TargetScore> =
            open.map(|(shard, load)| TargetScore { load: TotalLoad(*load), shard: *shard }).collect();
        targets.sort();
        for TargetScore { load: TotalLoad(load), shard: to } in targets {
            // The source must not fall below the mean by more than rounding. A destination that is
            // nearly full is left alone rather than filled completely.
            let room = (ceiling - load).min(excess + EQUAL_SHARE * mean).min(2.0 * (full - load));
            let fitting = context.free_ranges(from).into_iter().filter(|range| {
                let rate = context.load.rate(range.route.range);
                rate <= room
                    && rate > WORTH_SHARE * mean
                    && context.known(range)
                    && context.cooling_ms(range, to).is_none()
            });
            let best = fitting.min_by_key(|range| {
                let range = range.route.range;
                let load_steps = (context.load.rate(range) / (EQUAL_SHARE * mean)).round() as u64;
                MoveScore { load_steps: Reverse(load_steps), bytes: context.load.bytes(range), range }
            });
            if let Some(range) = best {
                return Some((range, to));
            }
        }
    }
    None
}

/// Rejects the ranges of overloaded shards, none of which can move.
fn explain_no_moves(context: &mut PlanningContext<'_>) {
    for from in context.overloaded() {
        if !context.may_send(from) {
            context.reject_shard(from, Reason::EnoughMoves { moves: context.moves_at(from) });
            continue;
        }
        context.reject_unfree(from);
        for range in context.free_ranges(from) {
            let cooling =
                context.imbalance.loads.keys().find_map(|to| context.cooling_ms(range, *to).map(|ms| (*to, ms)));
            let reason = match cooling {
                _ if !context.known(range) => Reason::TooNew,
                Some((left, for_ms)) => Reason::CoolingDown { left, for_ms },
                None => Reason::DoesNotFit,
            };
            context.reject_range(range, reason);
        }
    }
}
