//! Cutting what a statement reads by the shards that own it. Pure.
//!
//! It promises that the parts of a table tile the ranges that the statement touches: each key
//! belongs to one part, and no touched key to none. All parts come from one routing table; whether
//! that is out of date, the shards say.

use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::pass_through::TableUse;
use evenkeel_protocol::routing::{Route, RoutingTable};
use evenkeel_protocol::{Key, ShardId};
use std::collections::BTreeMap;

/// A shard, and what a statement touches there.
pub type ShardPart = (ShardId, Vec<TableUse>);

/// The parts by shard; `None` if the table has no route for some of the keys.
///
/// Parts are bounded by ranges and not by the touched keys, which need not be whole keys: the
/// statement's conditions choose among a part's rows.
pub(crate) fn cut(tables: &[TableUse], routes: &RoutingTable) -> Option<Vec<ShardPart>> {
    let mut parts: BTreeMap<ShardId, Vec<TableUse>> = BTreeMap::new();
    for used in tables {
        let mut touched: BTreeMap<&Key, &Route> = BTreeMap::new();
        for interval in used.keys.iter().filter(|interval| !interval.is_empty()) {
            let mut covered_to = Some(interval.start.clone());
            for route in routes.overlapping(used.table, interval) {
                let common = route.interval.intersection(interval);
                if covered_to.as_ref() != Some(&common.start) {
                    return None;
                }
                covered_to = common.end;
                touched.insert(&route.interval.start, route);
            }
            if covered_to != interval.end {
                return None;
            }
        }
        for route in touched.into_values() {
            let tables = parts.entry(route.shard).or_default();
            match tables.last_mut().filter(|last| last.table == used.table) {
                Some(last) => extend(&mut last.keys, &route.interval),
                None => {
                    let keys = vec![route.interval.clone()];
                    tables.push(TableUse { table: used.table, keys, writes: used.writes });
                }
            }
        }
    }
    Some(parts.into_iter().collect())
}

/// Adds a range behind the others. Neighbours become one interval.
fn extend(keys: &mut Vec<KeyInterval>, next: &KeyInterval) {
    match keys.last_mut() {
        Some(last) if last.end.as_ref() == Some(&next.start) => last.end.clone_from(&next.end),
        _ => keys.push(next.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::routing::RouteVersion;
    use evenkeel_protocol::{Epoch, RangeId, TableId};

    fn key(n: u8) -> Key {
        if n == 0 { Key::MIN } else { Key(vec![n].into()) }
    }

    fn interval(start: u8, end: Option<u8>) -> KeyInterval {
        KeyInterval::new(key(start), end.map(key))
    }

    fn routes(cuts: &[(u8, Option<u8>, u32)]) -> RoutingTable {
        let each = cuts.iter().enumerate().map(|(at, (start, end, shard))| Route {
            range: RangeId(at as u64 + 1),
            epoch: Epoch(1),
            table: TableId(1),
            interval: interval(*start, *end),
            shard: ShardId(*shard),
        });
        RoutingTable::new(RouteVersion::default(), [], [], each)
    }

    fn used(keys: &[KeyInterval]) -> TableUse {
        TableUse { table: TableId(1), keys: keys.to_vec(), writes: false }
    }

    #[test]
    fn parts_tile_the_touched_ranges() {
        let routes = routes(&[(0, Some(3), 1), (3, Some(5), 1), (5, Some(7), 2), (7, None, 1)]);
        let parts = cut(&[used(&[KeyInterval::ALL])], &routes).unwrap();
        let one = [interval(0, Some(5)), interval(7, None)];
        let expected = [(ShardId(1), vec![used(&one)]), (ShardId(2), vec![used(&[interval(5, Some(7))])])];
        assert_eq!(parts, expected);
        assert!(KeyInterval::ALL.is_partitioned_by(parts.iter().flat_map(|(_, tables)| &tables[0].keys)));
    }

    #[test]
    fn a_range_is_read_once_however_often_it_is_touched() {
        let routes = routes(&[(0, Some(5), 1), (5, None, 2)]);
        let parts = cut(&[used(&[interval(3, Some(4)), interval(1, Some(2))])], &routes).unwrap();
        assert_eq!(parts, [(ShardId(1), vec![used(&[interval(0, Some(5))])])]);
    }

    #[test]
    fn keys_without_a_route_are_noticed() {
        for gaps in [&[(0, Some(3), 1), (5, None, 2)][..], &[(3, None, 1)], &[(0, Some(3), 1)], &[]] {
            assert_eq!(cut(&[used(&[KeyInterval::ALL])], &routes(gaps)), None, "{gaps:?}");
        }
    }
}
