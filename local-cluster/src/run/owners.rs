//! The check that every key of every table has exactly one owner, and that the routing table names
//! it. Pure.

use evenkeel_protocol::api::{RouteBody, RoutesBody};
use evenkeel_protocol::{Epoch, KeyInterval, RangeId, ShardId, TableId};
use std::collections::BTreeSet;

/// A range that a shard owns by its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The owner.
    pub shard: ShardId,
    /// The range.
    pub range: RangeId,
    /// Its table.
    pub table: TableId,
    /// Its epoch at the owner.
    pub epoch: Epoch,
    /// Its keys.
    pub interval: KeyInterval,
}

/// The violations of unique ownership, in words. Empty if there are none.
pub fn wrong_owners(routes: &RoutesBody, owned: &[Owned]) -> Vec<String> {
    let mut wrong = Vec::new();
    let tables: BTreeSet<TableId> = routes.tables.iter().map(|t| t.id).chain(owned.iter().map(|o| o.table)).collect();
    for table in tables {
        let mut here: Vec<&Owned> = owned.iter().filter(|o| o.table == table).collect();
        here.sort_by(|a, b| a.interval.start.cmp(&b.interval.start));
        if here.first().is_none_or(|first| first.interval.start != KeyInterval::ALL.start) {
            wrong.push(format!("table {table}: nobody owns its first keys"));
        }
        for pair in here.windows(2) {
            let (left, right) = (pair[0], pair[1]);
            if left.interval.end.as_ref() != Some(&right.interval.start) {
                let what =
                    if left.interval.overlaps(&right.interval) { "both own keys" } else { "nobody owns the keys" };
                wrong.push(format!(
                    "table {table}: {what} between range {} on shard {} and range {} on shard {}",
                    left.range, left.shard, right.range, right.shard
                ));
            }
        }
        if here.last().is_some_and(|last| last.interval.end.is_some()) {
            wrong.push(format!("table {table}: nobody owns its last keys"));
        }
    }
    wrong.extend(routes.routes.iter().filter_map(|route| wrong_route(route, owned)));
    wrong
}

/// The violation of a route, in words: its keys, its epoch and its shard must be the owner's. An id
/// alone proves nothing.
fn wrong_route(route: &RouteBody, owned: &[Owned]) -> Option<String> {
    let Some(known) = route.to_route() else {
        return Some(format!("the route of range {} has a bound that is not hexadecimal", route.range));
    };
    let same = |o: &&Owned| o.table == known.table && o.interval == known.interval;
    let says = format!("the routing table says shard {}, epoch {}", known.shard, known.epoch);
    match owned.iter().find(same) {
        Some(owner) if owner.shard != known.shard || owner.epoch != known.epoch || owner.range != known.range => {
            Some(format!("range {} is on shard {} with epoch {}, but {says}", owner.range, owner.shard, owner.epoch))
        }
        Some(_) => None,
        None => Some(format!("no shard owns a range with the keys of range {}; {says}", known.range)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::Key;

    fn owned(shard: u32, range: u64, start: &[u8], end: Option<&[u8]>) -> Owned {
        let key = |bytes: &[u8]| Key(bytes.to_vec().into());
        let interval = KeyInterval::new(key(start), end.map(key));
        Owned { shard: ShardId(shard), range: RangeId(range), table: TableId(1), epoch: Epoch(1), interval }
    }

    fn routes(shard_of_range_2: u32) -> RoutesBody {
        let route = RouteBody {
            range: RangeId(2),
            epoch: Epoch(1),
            table: TableId(1),
            table_name: "t".into(),
            start: None,
            end: None,
            start_hex: "05".into(),
            end_hex: None,
            shard: ShardId(shard_of_range_2),
        };
        RoutesBody {
            version: "1.1".into(),
            schema_version: 0,
            complete: true,
            tables: vec![],
            shards: vec![],
            removed_shards: vec![],
            removed_tables: vec![],
            routes: vec![route],
        }
    }

    #[test]
    fn every_key_has_exactly_one_owner_and_a_gap_an_overlap_or_a_wrong_route_is_seen() {
        let whole = [owned(1, 1, b"", Some(b"\x05")), owned(2, 2, b"\x05", None)];
        assert_eq!(wrong_owners(&routes(2), &whole), Vec::<String>::new());
        assert_eq!(wrong_owners(&routes(1), &whole).len(), 1);
        // Fails if ids alone are compared: the id differs, the epoch is not the owner's, or no
        // shard owns exactly these keys.
        let mut other = whole.clone();
        other[1].range = RangeId(9);
        assert_eq!(wrong_owners(&routes(2), &other).len(), 1);
        let mut later = whole.clone();
        later[1].epoch = Epoch(2);
        assert!(
            wrong_owners(&routes(2), &later)[0].contains("with epoch 2, but the routing table says shard 2, epoch 1")
        );
        let cut = [owned(1, 1, b"", Some(b"\x06")), owned(2, 2, b"\x06", None)];
        assert!(wrong_owners(&routes(2), &cut)[0].starts_with("no shard owns a range with the keys of range 2"));
        let gap = [owned(1, 1, b"", Some(b"\x04")), owned(2, 2, b"\x05", None)];
        assert!(wrong_owners(&routes(2), &gap)[0].contains("nobody owns the keys between range 1"));
        let twice = [owned(1, 1, b"", Some(b"\x06")), owned(2, 2, b"\x05", None)];
        assert!(wrong_owners(&routes(2), &twice)[0].contains("both own keys"));
        assert_eq!(wrong_owners(&routes(2), &whole[1..]), ["table 1: nobody owns its first keys"]);
        assert_eq!(wrong_owners(&routes(1), &whole[..1])[0], "table 1: nobody owns its last keys");
    }
}
