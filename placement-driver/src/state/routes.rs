//! Changing routes without ever leaving a gap or an overlap.

use super::{Change, Failures, Moment, Range, Refusal, State};
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{KeyInterval, RangeId, TableId};
use std::collections::BTreeSet;

impl State {
    /// Puts `routes` in the place of every range they overlap, which must cover exactly the same keys and be no later
    /// (invariant 6). All routes are of one table. New ranges inherit when and whence their rows came.
    pub(super) fn replace(&mut self, routes: &[Route], now: Moment, change: &mut Change) -> Result<(), Refusal> {
        let Some(table) = routes.first().map(|route| route.table) else {
            return Ok(());
        };
        let old = self.overlapped(table, routes);
        self.check_replacement(table, routes, &old)?;
        let removed: Vec<Range> = old.iter().filter_map(|id| self.ranges.remove(id)).collect();
        for route in routes {
            let parents = || removed.iter().filter(|r| r.route.interval.overlaps(&route.interval));
            let same_bounds = parents().any(|r| r.route.interval == route.interval);
            let mut left: Vec<_> = parents().flat_map(|r| r.left.iter().copied()).collect();
            left.extend(parents().filter(|r| r.route.shard != route.shard).map(|r| (r.route.shard, now.time_ms)));
            left.sort_by_key(|(shard, at)| (*at, *shard));
            left.dedup();
            left.drain(..left.len().saturating_sub(super::MAX_LEFT));
            let bounds_since_ms = if same_bounds {
                parents().map(|r| r.bounds_since_ms).max().unwrap_or(now.time_ms)
            } else {
                now.time_ms
            };
            // Elsewhere, or cut otherwise, it is another range: what failed may now work.
            let same = |r: &&Range| r.route.interval == route.interval && r.route.shard == route.shard;
            let failures: Failures = parents().find(same).map(|r| r.failures).unwrap_or_default();
            let operator = removed.iter().find(|r| r.route.range == route.range).and_then(|r| r.operator);
            self.ranges.insert(route.range, Range { route: route.clone(), operator, bounds_since_ms, left, failures });
            change.ranges.insert(route.range);
        }
        Ok(())
    }

    fn overlapped(&self, table: TableId, routes: &[Route]) -> BTreeSet<RangeId> {
        let overlaps = |range: &Range| {
            range.route.table == table
                && routes
                    .iter()
                    .any(|route| route.range == range.route.range || route.interval.overlaps(&range.route.interval))
        };
        self.ranges.values().filter(|range| overlaps(range)).map(|range| range.route.range).collect()
    }

    fn check_replacement(&self, table: TableId, routes: &[Route], old: &BTreeSet<RangeId>) -> Result<(), Refusal> {
        let mut ids = BTreeSet::new();
        for route in routes {
            let elsewhere = self.ranges.get(&route.range).is_some_and(|r| r.route.table != table);
            if route.table != table || elsewhere || !ids.insert(route.range) {
                return Err(Refusal::BadRoutes(format!("range {} is named twice", route.range)));
            }
            if !self.shards.contains_key(&route.shard) {
                return Err(Refusal::UnknownShard(route.shard));
            }
            for id in old {
                let known = &self.ranges[id].route;
                if known.interval.overlaps(&route.interval) && known.epoch >= route.epoch && known != route {
                    return Err(Refusal::BadRoutes(format!(
                        "range {} at epoch {} is not later than range {} at epoch {}",
                        route.range, route.epoch, known.range, known.epoch
                    )));
                }
            }
        }
        // Exactly the same keys: cut both sides at each other's bounds by asking that the union is the same.
        let all = KeyInterval::ALL;
        let mut before: Vec<&KeyInterval> = old.iter().map(|id| &self.ranges[id].route.interval).collect();
        if self.ranges.values().all(|range| range.route.table != table) {
            before = vec![&all];
        }
        let after: Vec<&KeyInterval> = routes.iter().map(|route| &route.interval).collect();
        if union(before) != union(after.clone()) || overlap_among(after) {
            return Err(Refusal::BadRoutes("the routes do not cover exactly the ranges they replace".into()));
        }
        Ok(())
    }
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

fn overlap_among(mut parts: Vec<&KeyInterval>) -> bool {
    parts.sort_by(|a, b| a.start.cmp(&b.start));
    parts.iter().any(|part| part.is_empty()) || parts.windows(2).any(|pair| pair[0].overlaps(pair[1]))
}
