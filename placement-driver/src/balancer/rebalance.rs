//! Splitting and moving until every shard carries its part.

use super::Reason;
use super::board::Board;
use super::picture::RangeView;
use super::sketch::{cut_off, cut_points};
use crate::state::{Action, NewDecision, Range};
use evenkeel_protocol::{Key, RangeId, ShardId};
use std::cmp::Reverse;

/// Loads closer than this share of the mean are equal when pieces are chosen; then bytes decide.
const EQUAL_SHARE: f64 = 0.05;
/// A move or split that would not bring the busiest shard down by at least this share of the mean is not worth it.
const WORTH_SHARE: f64 = 0.02;
/// A split for the sake of one fitting piece must be worth this share of the mean.
const TRIM_SHARE: f64 = 0.04;

/// Moves what draining shards have to where the least load is.
pub(super) fn drain(board: &mut Board<'_>) -> Option<NewDecision> {
    let before = board.level.imbalance;
    let draining: Vec<ShardId> = board.state.shards.values().filter(|s| s.draining).map(|s| s.info.id).collect();
    let mut actions = Vec::new();
    for shard in &draining {
        if !board.speaks(*shard) {
            board.reject_shard(*shard, Reason::Silent);
            continue;
        }
        board.reject_unfree(*shard);
        let mut ranges = board.free_ranges(*shard);
        ranges.sort_by(|a, b| {
            let rate = |range: &Range| board.picture.rate(range.route.range);
            rate(b).total_cmp(&rate(a)).then_with(|| a.route.range.cmp(&b.route.range))
        });
        for range in ranges {
            let Some(to) = least_loaded(board) else {
                board.reject_range(range, Reason::EnoughMoves { moves: board.moves_at(*shard) });
                continue;
            };
            if !board.may_send(*shard) {
                board.reject_range(range, Reason::EnoughMoves { moves: board.moves_at(*shard) });
                continue;
            }
            actions.push(board.take_move(range, to));
        }
    }
    let names: Vec<String> = draining.iter().map(ToString::to_string).collect();
    decision(
        format!("shard(s) {} draining: {} range(s) go to the least loaded shards", names.join(", "), actions.len()),
        before,
        board,
        vec!["wait: a drain goes on whatever the load is".into()],
        actions,
    )
}

fn least_loaded(board: &Board<'_>) -> Option<ShardId> {
    let open = board.level.loads.iter().filter(|(id, _)| board.may_receive(**id));
    open.min_by(|a, b| a.1.total_cmp(b.1).then_with(|| a.0.cmp(b.0))).map(|(id, _)| *id)
}

fn decision(
    why: String,
    before: f64,
    board: &Board<'_>,
    alternatives: Vec<String>,
    actions: Vec<Action>,
) -> Option<NewDecision> {
    (!actions.is_empty()).then(|| NewDecision {
        why,
        imbalance_before: before,
        imbalance_expected: board.level.imbalance,
        alternatives,
        actions,
    })
}

/// One round towards the goal: splits first; when nothing is left to split, moves.
pub(super) fn rebalance(board: &mut Board<'_>) -> Option<NewDecision> {
    if board.level.ratio() <= board.level.close_enough() && board.state.running().next().is_none() {
        board.refuse_shards();
        return None;
    }
    let sources = overloaded(board);
    for shard in board.state.shards.keys().copied().filter(|id| !sources.contains(id)).collect::<Vec<_>>() {
        let reason =
            if board.speaks(shard) { Reason::BelowCeiling { ceiling: board.level.ceiling() } } else { Reason::Silent };
        board.reject_shard(shard, reason);
    }
    split_large(board, &sources).or_else(|| moves(board)).or_else(|| trim(board, &sources))
}

/// Shards above the ceiling, busiest first.
fn overloaded(board: &Board<'_>) -> Vec<ShardId> {
    let ceiling = board.level.ceiling();
    let mut shards: Vec<(ShardId, f64)> =
        board.level.loads.iter().filter(|(_, load)| **load > ceiling).map(|(id, load)| (*id, *load)).collect();
    shards.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    shards.into_iter().map(|(id, _)| id).collect()
}

/// Splits what is too large to be placed well, many ways at once.
fn split_large(board: &mut Board<'_>, sources: &[ShardId]) -> Option<NewDecision> {
    let before = board.level.imbalance;
    let mean = board.level.mean;
    let mut actions = Vec::new();
    let mut parts = Vec::new();
    let mut ranges = board.state.ranges.len();
    for shard in sources {
        for range in board.free_ranges(*shard) {
            let rate = board.picture.rate(range.route.range);
            if rate <= board.config.split_above * mean {
                continue;
            }
            let target = mean / board.config.pieces_per_shard / rate;
            let room = board.config.max_ranges.saturating_sub(ranges) + 1;
            let cuts = match splittable(board, range) {
                Ok(_) if room < 2 => Err(Reason::TooManyRanges),
                Ok(view) => {
                    let segments = segments(board, view);
                    let cuts = cut_points(&segments, &range.route.interval, target, board.config.split_ways.min(room));
                    if cuts.is_empty() { Err(Reason::SingleKey) } else { Ok(cuts) }
                }
                Err(reason) => Err(reason),
            };
            match cuts {
                Err(reason) => board.reject_range(range, reason),
                Ok(at) => {
                    ranges += at.len();
                    board.taken.insert(range.route.range);
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
        before / board.level.floor,
        board.level.floor,
        board.config.persist_ms,
        parts.join(", ")
    );
    let alternatives = vec!["move whole: it would make its destination as busy as its source is now".to_string()];
    decision(why, before, board, alternatives, actions)
}

fn segments(board: &Board<'_>, view: &RangeView) -> Vec<super::sketch::Segment> {
    let Some(table) = board.state.tables.get(&view.table) else { return Vec::new() };
    view.profile.segments(&view.interval, &table.schema.codec())
}

/// Whether what is known of a range is good enough to split by.
fn splittable<'a>(board: &Board<'a>, range: &Range) -> Result<&'a RangeView, Reason> {
    let id: RangeId = range.route.range;
    let view = board.picture.ranges.get(&id).ok_or(Reason::TooNew)?;
    let ago_ms = board.now_ms.saturating_sub(range.bounds_since_ms);
    if ago_ms < board.config.resplit_ms {
        return Err(Reason::CutLately { ago_ms });
    }
    match board.picture.shift(id) {
        None => Err(Reason::TooNew),
        // A front that moves on would leave every cut behind at once.
        Some(shift) if shift > board.config.max_shift => Err(Reason::Shifting { shift }),
        Some(_) => Ok(view),
    }
}

/// Moves ranges from shards above the ceiling to the least loaded, as many as may be under way at once.
fn moves(board: &mut Board<'_>) -> Option<NewDecision> {
    let before = board.level.clone();
    let mut actions = Vec::new();
    let mut parts = Vec::new();
    while let Some((range, to)) = best_move(board) {
        parts.push(format!(
            "range {} ({:.0}/s) from shard {} to {to}",
            range.route.range,
            board.picture.rate(range.route.range),
            range.route.shard
        ));
        actions.push(board.take_move(range, to));
    }
    if actions.is_empty() {
        explain_no_moves(board);
        return None;
    }
    let loads = |level: &super::Level| {
        let loads: Vec<String> = level.loads.iter().map(|(id, load)| format!("{id}: {load:.0}")).collect();
        loads.join(", ")
    };
    let why = format!(
        "loads per shard {{{}}} (imbalance {:.2}, floor {:.2}): moving {}, to come to {{{}}}",
        loads(&before),
        before.imbalance,
        before.floor,
        parts.join(", "),
        loads(&board.level)
    );
    let alternatives = vec![format!(
        "larger pieces would overfill their destination (at most {:.0}/s); of equal ones those with the fewest bytes were taken",
        before.ceiling()
    )];
    decision(why, before.imbalance, board, alternatives, actions)
}

/// The move that brings the busiest shard that can be relieved closest to its part without overfilling the destination: up to the goal if a range
/// fits so well, else to what is close enough.
fn best_move<'a>(board: &Board<'a>) -> Option<(&'a Range, ShardId)> {
    let full = board.level.floor * board.level.mean;
    [board.level.goal, board.level.close_enough()].into_iter().find_map(|filled| best_move_up_to(board, filled * full))
}

fn best_move_up_to<'a>(board: &Board<'a>, ceiling: f64) -> Option<(&'a Range, ShardId)> {
    let (mean, full) = (board.level.mean, board.level.floor * board.level.mean);
    for from in overloaded(board) {
        if !board.may_send(from) || !board.speaks(from) {
            continue;
        }
        let excess = board.level.loads.get(&from).copied().unwrap_or(0.0) - mean;
        let open = board.level.loads.iter().filter(|(id, _)| **id != from && board.may_receive(**id));
        let mut destinations: Vec<(ShardId, f64)> = open.map(|(id, load)| (*id, *load)).collect();
        destinations.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
        for (to, load) in destinations {
            // The source is not to become idler than the destination may become busy.
            // And a destination that is nearly full already is left alone rather than filled to the brim.
            let room = (ceiling - load).min(excess + EQUAL_SHARE * mean).min(2.0 * (full - load));
            let fitting = board.free_ranges(from).into_iter().filter(|range| {
                let rate = board.picture.rate(range.route.range);
                rate <= room && rate > WORTH_SHARE * mean && board.known(range) && board.cooling_ms(range, to).is_none()
            });
            let best = fitting.min_by_key(|range| {
                let id = range.route.range;
                let size = (board.picture.rate(id) / (EQUAL_SHARE * mean)).round() as u64;
                let bytes = board.picture.ranges.get(&id).map_or(0, |view| view.bytes);
                (Reverse(size), bytes, id)
            });
            if let Some(range) = best {
                return Some((range, to));
            }
        }
    }
    None
}

fn explain_no_moves(board: &mut Board<'_>) {
    for from in overloaded(board) {
        if !board.may_send(from) {
            board.reject_shard(from, Reason::EnoughMoves { moves: board.moves_at(from) });
            continue;
        }
        board.reject_unfree(from);
        for range in board.free_ranges(from) {
            let cooling = board.level.loads.keys().find_map(|to| board.cooling_ms(range, *to).map(|ms| (*to, ms)));
            let reason = match cooling {
                _ if !board.known(range) => Reason::TooNew,
                Some((left, for_ms)) => Reason::CoolingDown { left, for_ms },
                None => Reason::DoesNotFit,
            };
            board.reject_range(range, reason);
        }
    }
}

/// Nothing fits as it is: cuts a fitting piece off a larger range, if that is worth it, nothing is under way and everything is measured.
fn trim(board: &mut Board<'_>, sources: &[ShardId]) -> Option<NewDecision> {
    let (before, mean, ceiling) = (board.level.imbalance, board.level.mean, board.level.ceiling());
    let pending = board.state.running().next().is_some() || board.picture.expects();
    if pending || board.state.ranges.len() >= board.config.max_ranges {
        return None;
    }
    let from = *sources.first()?;
    let excess = board.level.loads.get(&from)? - mean;
    let room = ceiling - board.level.loads.values().copied().fold(f64::INFINITY, f64::min);
    let wanted = excess.min(room);
    if wanted < TRIM_SHARE * mean {
        return None;
    }
    let mut ranges = board.free_ranges(from);
    ranges.retain(|range| board.picture.rate(range.route.range) > wanted);
    ranges.sort_by_key(|range| {
        let bytes = board.picture.ranges.get(&range.route.range).map_or(0, |view| view.bytes);
        (bytes, range.route.range)
    });
    for range in ranges {
        let rate = board.picture.rate(range.route.range);
        match splittable(board, range) {
            Err(reason) => board.reject_range(range, reason),
            Ok(view) => {
                let cut: Option<(Key, f64)> = cut_off(&segments(board, view), &range.route.interval, wanted / rate);
                let Some((key, share)) = cut else {
                    board.reject_range(range, Reason::SingleKey);
                    continue;
                };
                board.taken.insert(range.route.range);
                let why = format!(
                    "shard {from} carries {excess:.0}/s more than its part and no range of it fits elsewhere: cutting {:.0}/s off \
                     range {} ({rate:.0}/s)",
                    share * rate,
                    range.route.range
                );
                let action = Action::Split { range: range.route.range, epoch: Some(range.route.epoch), at: vec![key] };
                let alternatives = vec!["move a whole range: each would overfill its destination".to_string()];
                return decision(why, before, board, alternatives, vec![action]);
            }
        }
    }
    None
}
