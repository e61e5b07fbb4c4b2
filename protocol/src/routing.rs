//! The routing table: which shard owns which range.
//!
//! A routing table is a hint. A stale one does no harm, because shards judge every statement by
//! their own logs (invariant 6). A routing table only has to become correct eventually. Of two
//! routes of a range, the one with the larger epoch is the later.

use crate::ids::{Epoch, RangeId, ShardId, TableId};
use crate::interval::KeyInterval;
use crate::key::Key;
use crate::schema::TableSchema;
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A version of the routing table. `incarnation` changes when the placement driver is restored from
/// a backup (R30), and versions of different incarnations cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RouteVersion {
    /// The restore generation: in the upper 32 bits a number that the cluster drew when it was
    /// founded, in the lower ones how often the placement driver was restored, from 1. Versions of
    /// another cluster, or of a cluster that was founded again, therefore differ from its own.
    pub incarnation: u64,
    /// Counts changes, from 0.
    pub number: u64,
}

impl RouteVersion {
    /// The number that the cluster drew; 0 as long as it has drawn none.
    pub fn cluster(self) -> u32 {
        (self.incarnation >> 32) as u32
    }

    /// How often the placement driver was restored, from 1.
    pub fn generation(self) -> u32 {
        self.incarnation as u32
    }
}

impl fmt::Display for RouteVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.number)
    }
}

impl std::str::FromStr for RouteVersion {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parse = || {
            let (incarnation, number) = s.split_once('.')?;
            Some(RouteVersion { incarnation: incarnation.parse().ok()?, number: number.parse().ok()? })
        };
        parse().ok_or_else(|| format!("{s:?} is not a version: expected INCARNATION.NUMBER, for example 1.42"))
    }
}

/// A shard and where its replicas listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The shard.
    pub id: ShardId,
    /// Its replicas, by number.
    #[serde(deserialize_with = "numbered_addresses")]
    pub replicas: BTreeMap<u64, SocketAddr>,
}

/// JSON's keys are texts. serde_json turns them into numbers by itself, but not inside a flattened
/// structure, whose fields it has already taken apart; so texts are accepted here wherever the
/// format is one for people.
fn numbered_addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u64, SocketAddr>, D::Error> {
    if !deserializer.is_human_readable() {
        return BTreeMap::deserialize(deserializer);
    }
    let texts = BTreeMap::<String, SocketAddr>::deserialize(deserializer)?;
    let number = |text: &str| {
        let wrong = || D::Error::invalid_value(Unexpected::Str(text), &"a replica's number");
        text.parse().map_err(|_| wrong())
    };
    texts.into_iter().map(|(text, address)| Ok((number(&text)?, address))).collect()
}

/// One range's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The range.
    pub range: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
    /// The shard that owns it.
    pub shard: ShardId,
}

/// The whole table, as clients hold it.
#[derive(Debug, Clone, Default)]
pub struct RoutingTable {
    /// Its version.
    pub version: RouteVersion,
    /// The version of the schema.
    pub schema_version: u64,
    tables: HashMap<TableId, Arc<TableSchema>>,
    by_name: HashMap<String, TableId>,
    shards: BTreeMap<ShardId, ShardInfo>,
    /// Shared between copies of the routing table, which are made at each change: the cost of a
    /// copy grows with the number of tables, and a change of one table's routes copies only those.
    routes: HashMap<TableId, Arc<BTreeMap<Key, Route>>>,
}

impl RoutingTable {
    /// A table from its parts.
    pub fn new(
        version: RouteVersion,
        tables: impl IntoIterator<Item = Arc<TableSchema>>,
        shards: impl IntoIterator<Item = ShardInfo>,
        routes: impl IntoIterator<Item = Route>,
    ) -> RoutingTable {
        let mut table = RoutingTable { version, ..RoutingTable::default() };
        for schema in tables {
            table.put_schema(schema);
        }
        for shard in shards {
            table.shards.insert(shard.id, shard);
        }
        for route in routes {
            table.put_route(route);
        }
        table
    }

    /// Adds or replaces a table. Its former name means nothing any more, unless another table has
    /// taken it.
    pub fn put_schema(&mut self, schema: Arc<TableSchema>) {
        self.forget_name(schema.id);
        self.by_name.insert(schema.name.clone(), schema.id);
        self.tables.insert(schema.id, schema);
    }

    /// Removes a table with its routes.
    pub fn remove_table(&mut self, id: TableId) {
        self.forget_name(id);
        self.tables.remove(&id);
        self.routes.remove(&id);
    }

    fn forget_name(&mut self, id: TableId) {
        if let Some(known) = self.tables.get(&id)
            && self.by_name.get(&known.name) == Some(&id)
        {
            self.by_name.remove(&known.name);
        }
    }

    /// Adds or replaces a shard.
    pub fn put_shard(&mut self, shard: ShardInfo) {
        self.shards.insert(shard.id, shard);
    }

    /// Removes a shard. Its routes stay until newer ones arrive: they are hints, and lead nowhere
    /// for a while.
    pub fn remove_shard(&mut self, id: ShardId) {
        self.shards.remove(&id);
    }

    /// Adds a route, unless a later one is known for any of its keys. Returns whether it was added.
    /// Routes that it overlaps are cut to their parts outside of it.
    pub fn put_route(&mut self, route: Route) -> bool {
        let overlapping: Vec<Route> = self.overlapping(route.table, &route.interval).into_iter().cloned().collect();
        if overlapping.iter().any(|r| r.epoch > route.epoch) {
            return false;
        }
        let routes = Arc::make_mut(self.routes.entry(route.table).or_default());
        for old in overlapping {
            routes.remove(&old.interval.start);
            let left = KeyInterval::new(old.interval.start.clone(), Some(route.interval.start.clone()));
            if !left.is_empty() {
                routes.insert(left.start.clone(), Route { interval: left, ..old.clone() });
            }
            if let Some(end) = &route.interval.end {
                let right = KeyInterval::new(end.clone(), old.interval.end.clone());
                if !right.is_empty() {
                    routes.insert(right.start.clone(), Route { interval: right, ..old });
                }
            }
        }
        routes.insert(route.interval.start.clone(), route);
        true
    }

    /// The table called `name`.
    pub fn table(&self, name: &str) -> Option<&Arc<TableSchema>> {
        self.tables.get(self.by_name.get(name)?)
    }

    /// The table with this id.
    pub fn schema(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.tables.get(&id)
    }

    /// All tables, in no order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.tables.values()
    }

    /// A shard's replicas.
    pub fn shard(&self, id: ShardId) -> Option<&ShardInfo> {
        self.shards.get(&id)
    }

    /// All shards, in order of their ids.
    pub fn shards(&self) -> impl Iterator<Item = &ShardInfo> {
        self.shards.values()
    }

    /// The route of `key`.
    pub fn lookup(&self, table: TableId, key: &Key) -> Option<&Route> {
        let (_, route) = self.routes.get(&table)?.range(..=key.clone()).next_back()?;
        route.interval.contains(key).then_some(route)
    }

    /// The routes that overlap `interval`, in key order.
    pub fn overlapping(&self, table: TableId, interval: &KeyInterval) -> Vec<&Route> {
        let Some(routes) = self.routes.get(&table) else {
            return Vec::new();
        };
        let before = routes.range(..=interval.start.clone()).next_back().map(|(start, _)| start.clone());
        let first = before.unwrap_or_else(|| interval.start.clone());
        routes
            .range(first..)
            .map(|(_, route)| route)
            .take_while(|route| interval.end.as_ref().is_none_or(|end| route.interval.start < *end))
            .filter(|route| route.interval.overlaps(interval))
            .collect()
    }

    /// Every route, by table and key.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().flat_map(|routes| routes.values())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(n: u8) -> Key {
        if n == 0 { Key::MIN } else { Key(vec![n].into()) }
    }

    fn route(range: u64, epoch: u64, start: u8, end: Option<u8>, shard: u32) -> Route {
        let interval = KeyInterval::new(key(start), end.map(key));
        Route { range: RangeId(range), epoch: Epoch(epoch), table: TableId(1), interval, shard: ShardId(shard) }
    }

    fn owners(table: &RoutingTable) -> Vec<Option<u32>> {
        (0..10).map(|n| table.lookup(TableId(1), &key(n)).map(|r| r.shard.0)).collect()
    }

    #[test]
    fn a_later_epoch_wins_in_whatever_order_the_news_comes() {
        let news =
            [route(1, 1, 0, None, 1), route(1, 2, 0, Some(5), 1), route(2, 2, 5, None, 1), route(2, 3, 5, None, 2)];
        let mut expected = vec![Some(1); 5];
        expected.extend([Some(2); 5]);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
            let mut table = RoutingTable::default();
            for i in order {
                table.put_route(news[i].clone());
            }
            let known: Vec<_> = owners(&table);
            for (known, expected) in known.iter().zip(&expected) {
                assert!(known.is_none() || known == expected, "{order:?}: {known:?}");
            }
            table.put_route(news[1].clone());
            table.put_route(news[3].clone());
            assert_eq!(owners(&table), expected, "{order:?}");
        }
    }

    /// Names that are exchanged, in either order of the news, and a table that is dropped.
    #[test]
    fn a_name_means_the_table_that_has_it_now() {
        let schema = |id: u32, name: &str| {
            Arc::new(TableSchema { id: TableId(id), name: name.into(), ..TableSchema::default() })
        };
        for swapped in [[schema(1, "b"), schema(2, "a")], [schema(2, "a"), schema(1, "b")]] {
            let mut table = RoutingTable::new(
                RouteVersion::default(),
                [schema(1, "a"), schema(2, "b")],
                [],
                [route(1, 1, 0, None, 1)],
            );
            swapped.into_iter().for_each(|schema| table.put_schema(schema));
            assert_eq!(table.table("a").map(|schema| schema.id), Some(TableId(2)));
            assert_eq!(table.table("b").map(|schema| schema.id), Some(TableId(1)));
            table.put_schema(schema(2, "c"));
            assert!(table.table("a").is_none());
            table.remove_table(TableId(1));
            assert!(table.table("b").is_none() && table.routes().next().is_none());
        }
    }

    /// Breaks if a route is looked for among all of them, or if a copy of the whole copies every
    /// table's routes.
    #[test]
    fn large_tables_are_built_and_copied_quickly() {
        let key = |n: u32| if n == 0 { Key::MIN } else { Key(n.to_be_bytes().to_vec().into()) };
        let route = |table: u32, n: u32| Route {
            range: RangeId(n.into()),
            epoch: Epoch(1),
            table: TableId(table),
            interval: KeyInterval::new(key(n), Some(key(n + 1))),
            shard: ShardId(1),
        };
        let all = (0..20_000).map(|n| route(1, n)).chain([route(2, 0)]);
        // 200 million comparisons if each were held against all.
        let table = RoutingTable::new(RouteVersion::default(), [], [], all);
        let mut copy = table.clone();
        assert!(copy.put_route(Route { epoch: Epoch(2), ..route(2, 0) }));
        assert!(Arc::ptr_eq(&table.routes[&TableId(1)], &copy.routes[&TableId(1)]), "what did not change is shared");
        assert_eq!(table.lookup(TableId(2), &key(0)).map(|r| r.epoch), Some(Epoch(1)), "the copy is another table");
        assert_eq!(table.routes().count(), 20_001);
    }

    #[test]
    fn overlapping_gives_the_ranges_of_a_scan_in_order() {
        let mut table = RoutingTable::default();
        for r in [route(1, 1, 0, Some(3), 1), route(2, 1, 3, Some(6), 2), route(3, 1, 6, None, 3)] {
            table.put_route(r);
        }
        let ids = |start, end: Option<u8>| -> Vec<u64> {
            let interval = KeyInterval::new(key(start), end.map(key));
            table.overlapping(TableId(1), &interval).iter().map(|r| r.range.0).collect()
        };
        assert_eq!(ids(0, None), [1, 2, 3]);
        assert_eq!(ids(4, Some(5)), [2]);
        assert_eq!(ids(3, Some(7)), [2, 3]);
        assert_eq!(ids(2, Some(3)), [1]);
    }
}
