//! Changes of routes. They never leave a gap or an overlap between the ranges of a table.

use super::changes::VersionChange;
use super::limits::MAX_LEFT;
use super::moment::Moment;
use super::placement_state::PlacementState;
use super::range::{Failures, Range};
use super::refusal::Refusal;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{KeyInterval, RangeId, TableId};
use std::collections::{BTreeMap, BTreeSet};

/// Takes in later routes, unless an operator works on one of their ranges: its transitions publish
/// them.
pub(super) fn take_routes(
    state: &mut PlacementState,
    routes: &[Route],
    now: Moment,
    change: &mut VersionChange,
) -> Result<(), Refusal> {
    for range in state.ranges.values() {
        let touches = |route: &Route| {
            route.table == range.route.table
                && (route.range == range.route.range || route.interval.overlaps(&range.route.interval))
        };
        if let Some(operator) = range.operator.filter(|_| routes.iter().any(touches)) {
            return Err(Refusal::RangeBusy { range: range.route.range, operator });
        }
    }
    if let Some(route) = routes.iter().find(|route| route.range >= state.numbers.next_range()) {
        return Err(Refusal::UnknownRange(route.range));
    }
    replace_by_table(state, routes, now, change)
}

/// Takes in the routes of several tables. It is rejected as a whole.
pub(super) fn replace_by_table(
    state: &mut PlacementState,
    routes: &[Route],
    now: Moment,
    change: &mut VersionChange,
) -> Result<(), Refusal> {
    let mut by_table: BTreeMap<TableId, Vec<Route>> = BTreeMap::new();
    for route in routes {
        if !state.tables.contains_key(&route.table) {
            return Err(Refusal::UnknownTable(route.table));
        }
        by_table.entry(route.table).or_default().push(route.clone());
    }
    // The routes of one table must not stay if those of another are rejected.
    let before = (by_table.len() > 1).then(|| state.ranges.clone());
    for routes in by_table.values() {
        if let Err(refusal) = replace(state, routes, now, change) {
            if let Some(before) = before {
                state.ranges = before;
            }
            return Err(refusal);
        }
    }
    Ok(())
}

/// Replaces every range that `routes` overlap. The replaced ranges must cover exactly the same keys
/// and be no later (invariant 6). All routes are of one table. New ranges inherit the shards that
/// their rows have left.
pub(super) fn replace(
    state: &mut PlacementState,
    routes: &[Route],
    now: Moment,
    change: &mut VersionChange,
) -> Result<(), Refusal> {
    let Some(table) = routes.first().map(|route| route.table) else {
        return Ok(());
    };
    let old = overlapped(state, table, routes);
    check_replacement(state, table, routes, &old)?;
    let removed: Vec<Range> = old.iter().filter_map(|id| state.ranges.remove(id)).collect();
    for route in routes {
        let parents = || removed.iter().filter(|r| r.route.interval.overlaps(&route.interval));
        let same_bounds = parents().any(|r| r.route.interval == route.interval);
        let mut left: Vec<_> = parents().flat_map(|r| r.left.iter().copied()).collect();
        left.extend(parents().filter(|r| r.route.shard != route.shard).map(|r| (r.route.shard, now.time_ms)));
        left.sort_by_key(|(shard, at)| (*at, *shard));
        left.dedup();
        left.drain(..left.len().saturating_sub(MAX_LEFT));
        let bounds_since_ms =
            if same_bounds { parents().map(|r| r.bounds_since_ms).max().unwrap_or(now.time_ms) } else { now.time_ms };
        // On another shard or with other bounds, operators that failed before may now succeed.
        let same = |r: &&Range| r.route.interval == route.interval && r.route.shard == route.shard;
        let failures: Failures = parents().find(same).map(|r| r.failures).unwrap_or_default();
        let operator = removed.iter().find(|r| r.route.range == route.range).and_then(|r| r.operator);
        state.ranges.insert(route.range, Range { route: route.clone(), operator, bounds_since_ms, left, failures });
        change.ranges.insert(route.range);
    }
    Ok(())
}

/// The ranges that the routes overlap or name.
fn overlapped(state: &PlacementState, table: TableId, routes: &[Route]) -> BTreeSet<RangeId> {
    let overlaps = |range: &Range| {
        range.route.table == table
            && routes
                .iter()
                .any(|route| route.range == range.route.range || route.interval.overlaps(&range.route.interval))
    };
    state.ranges.values().filter(|range| overlaps(range)).map(|range| range.route.range).collect()
}

/// Checks that `routes` may replace the `old` ranges.
fn check_replacement(
    state: &PlacementState,
    table: TableId,
    routes: &[Route],
    old: &BTreeSet<RangeId>,
) -> Result<(), Refusal> {
    let mut ids = BTreeSet::new();
    for route in routes {
        let elsewhere = state.ranges.get(&route.range).is_some_and(|r| r.route.table != table);
        if route.table != table || elsewhere || !ids.insert(route.range) {
            return Err(Refusal::BadRoutes(format!("range {} is named twice", route.range)));
        }
        if !state.shards.contains_key(&route.shard) {
            return Err(Refusal::UnknownShard(route.shard));
        }
        for id in old {
            let known = &state.ranges[id].route;
            if known.interval.overlaps(&route.interval) && known.epoch >= route.epoch && known != route {
                return Err(Refusal::BadRoutes(format!(
                    "range {} at epoch {} is not later than range {} at epoch {}",
                    route.range, route.epoch, known.range, known.epoch
                )));
            }
        }
    }
    // The keys are the same if the unions of the intervals are.
    let all = KeyInterval::ALL;
    let mut before: Vec<&KeyInterval> = old.iter().map(|id| &state.ranges[id].route.interval).collect();
    if state.ranges.values().all(|range| range.route.table != table) {
        before = vec![&all];
    }
    let after: Vec<&KeyInterval> = routes.iter().map(|route| &route.interval).collect();
    if union(before) != union(after.clone()) || overlap_among(after) {
        return Err(Refusal::BadRoutes("the routes do not cover exactly the ranges they replace".into()));
    }
    Ok(())
}

/// The intervals joined where they touch or overlap, in key order.
fn union(mut parts: Vec<&KeyInterval>) -> Vec<KeyInterval> {
    parts.sort_by(|a, b| a.start.cmp(&b.start));
    let mut joined: Vec<KeyInterval> = Vec::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.end.as_ref().is_none_or(|end| part.start <= *end) => {
                let further = match (&last.end, &part.end) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some(a), Some(b)) => b > a,
                };
                if further {
                    last.end = part.end.clone();
                }
            }
            _ => joined.push(part.clone()),
        }
    }
    joined
}

/// Whether two of the intervals overlap, or one is empty.
fn overlap_among(mut parts: Vec<&KeyInterval>) -> bool {
    parts.sort_by(|a, b| a.start.cmp(&b.start));
    parts.iter().any(|part| part.is_empty()) || parts.windows(2).any(|pair| pair[0].overlaps(pair[1]))
}
