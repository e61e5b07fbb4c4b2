//! The routing table in the form in which REST serves it: immutable, indexed by key, with the JSON
//! of each route made once.
//!
//! Each version of the routing table has a view of its own. Routes that did not change keep their
//! JSON. A lookup copies a few hundred bytes and computes nothing.

use crate::json::to_json;
use crate::state::{PlacementState, VersionChange, VersionChanges};
use bytes::Bytes;
use evenkeel_protocol::api::{RouteBody, RoutesBody};
use evenkeel_protocol::routing::{Route, RouteVersion, ShardInfo};
use evenkeel_protocol::{Key, KeyCodec, RangeId, ShardId, TableId, TableSchema};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A route and its JSON.
#[derive(Debug)]
pub struct ServedRoute {
    /// The route.
    pub route: Route,
    /// Its [`RouteBody`], for answers that consist of several.
    pub body: RouteBody,
    json: Bytes,
}

/// A table and its routes.
#[derive(Debug)]
pub struct ServedTable {
    /// Its schema.
    pub schema: Arc<TableSchema>,
    /// The codec of its keys.
    pub codec: KeyCodec,
    /// Its routes in key order.
    pub routes: Vec<Arc<ServedRoute>>,
}

impl ServedTable {
    /// The route of a key.
    pub fn lookup(&self, key: &Key) -> Option<&Arc<ServedRoute>> {
        let after = self.routes.partition_point(|served| served.route.interval.start <= *key);
        let served = self.routes.get(after.checked_sub(1)?)?;
        served.route.interval.contains(key).then_some(served)
    }
}

/// The replicas that lead the shards, as far as known. Changes between versions; 0 is unknown.
#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<ShardId, AtomicU64>);

impl Leaders {
    /// The replica that leads a shard.
    pub fn get(&self, shard: ShardId) -> Option<u64> {
        self.0.get(&shard).map(|leader| leader.load(Ordering::Relaxed)).filter(|leader| *leader != 0)
    }

    /// Sets the replica that leads a shard.
    pub fn set(&self, shard: ShardId, leader: u64) {
        if let Some(known) = self.0.get(&shard) {
            known.store(leader, Ordering::Relaxed);
        }
    }

    /// Forgets all leaders.
    pub fn clear(&self) {
        self.0.values().for_each(|leader| leader.store(0, Ordering::Relaxed));
    }
}

/// One version of the routing table.
#[derive(Debug)]
pub struct RoutingView {
    /// The version.
    pub version: RouteVersion,
    /// The version as text: the `ETag` without quotes, and the id of events.
    pub version_text: String,
    /// The version of the schema.
    pub schema_version: u64,
    /// The shards' leaders.
    pub leaders: Leaders,
    tables: BTreeMap<TableId, Arc<ServedTable>>,
    by_name: HashMap<String, Arc<ServedTable>>,
    by_range: HashMap<RangeId, Arc<ServedRoute>>,
    shards: BTreeMap<ShardId, (ShardInfo, Bytes)>,
    changes: VersionChanges,
    complete: OnceLock<Bytes>,
    latest: OnceLock<Bytes>,
}

impl RoutingView {
    /// The view of a state. JSON and leaders are taken over from the previous view, `before`.
    pub fn new(state: &PlacementState, before: Option<&RoutingView>) -> RoutingView {
        let mut view = RoutingView {
            version: state.version,
            version_text: state.version.to_string(),
            schema_version: state.schema.version,
            leaders: Leaders::default(),
            tables: BTreeMap::new(),
            by_name: HashMap::new(),
            by_range: HashMap::new(),
            shards: BTreeMap::new(),
            changes: state.changes.clone(),
            complete: OnceLock::new(),
            latest: OnceLock::new(),
        };
        for (id, shard) in &state.shards {
            view.shards.insert(*id, (shard.info.clone(), to_json(&shard.info)));
            let leader = before.and_then(|before| before.leaders.get(*id)).unwrap_or(0);
            view.leaders.0.insert(*id, AtomicU64::new(leader));
        }
        let mut ranges = state.ranges_by_table();
        for (id, table) in state.tables.iter().filter(|(_, table)| table.creating.is_none()) {
            let routes: Vec<Arc<ServedRoute>> = ranges
                .remove(id)
                .unwrap_or_default()
                .into_iter()
                .map(|range| {
                    let known = before.and_then(|before| before.by_range.get(&range.route.range));
                    let same = |known: &&Arc<ServedRoute>| {
                        known.route == range.route && known.body.table_name == table.schema.name
                    };
                    match known.filter(same) {
                        Some(known) => known.clone(),
                        None => Arc::new(serve(&range.route, &table.schema)),
                    }
                })
                .collect();
            view.by_range.extend(routes.iter().map(|served| (served.route.range, served.clone())));
            let codec = table.schema.codec();
            let table = Arc::new(ServedTable { schema: table.schema.clone(), codec, routes });
            view.by_name.insert(table.schema.name.clone(), table.clone());
            view.tables.insert(*id, table);
        }
        view
    }

    /// The table called `name`.
    pub fn table(&self, name: &str) -> Option<&Arc<ServedTable>> {
        self.by_name.get(name)
    }

    /// The tables, by id.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<ServedTable>> {
        self.tables.values()
    }

    /// The shards, in order of their numbers.
    pub fn shards(&self) -> impl Iterator<Item = &ShardInfo> {
        self.shards.values().map(|(info, _)| info)
    }

    /// The number of ranges that each shard owns.
    pub fn range_counts(&self) -> HashMap<ShardId, usize> {
        let mut counts = HashMap::new();
        for served in self.by_range.values() {
            *counts.entry(served.route.shard).or_default() += 1;
        }
        counts
    }

    /// A range's route.
    pub fn range(&self, id: RangeId) -> Option<&Arc<ServedRoute>> {
        self.by_range.get(&id)
    }

    /// The body of a lookup (`RouteLookupBody`), concatenated from JSON that was made before.
    pub fn lookup_json(&self, served: &ServedRoute) -> Vec<u8> {
        let shard = self.shards.get(&served.route.shard).map_or(&b"null"[..], |(_, json)| json);
        let mut body = Vec::with_capacity(served.json.len() + shard.len() + 80);
        body.extend_from_slice(b"{\"version\":\"");
        body.extend_from_slice(self.version_text.as_bytes());
        body.extend_from_slice(b"\",\"route\":");
        body.extend_from_slice(&served.json);
        body.extend_from_slice(b",\"shard\":");
        body.extend_from_slice(shard);
        if let Some(leader) = self.leaders.get(served.route.shard) {
            body.extend_from_slice(b",\"leader\":");
            body.extend_from_slice(leader.to_string().as_bytes());
        }
        body.push(b'}');
        body
    }

    /// The whole routing table (`RoutesBody`).
    pub fn complete_json(&self) -> Bytes {
        self.complete.get_or_init(|| to_json(&self.complete_body(None))).clone()
    }

    /// The whole routing table, or the part of one table.
    pub fn complete_body(&self, only: Option<&ServedTable>) -> RoutesBody {
        let tables: Vec<&ServedTable> = match only {
            Some(table) => vec![table],
            None => self.tables.values().map(Arc::as_ref).collect(),
        };
        RoutesBody {
            version: self.version_text.clone(),
            schema_version: self.schema_version,
            complete: true,
            tables: tables.iter().map(|table| table.schema.clone()).collect(),
            shards: self.shards.values().map(|(info, _)| info.clone()).collect(),
            removed_shards: Vec::new(),
            removed_tables: Vec::new(),
            routes: tables.iter().flat_map(|table| &table.routes).map(|served| served.body.clone()).collect(),
        }
    }

    /// The changes in one table since `version`. The whole table if they are no longer known, or
    /// the version is of another incarnation (R30).
    pub fn since_body(&self, version: RouteVersion, only: &ServedTable) -> RoutesBody {
        let known = version.incarnation == self.version.incarnation;
        let change = known.then(|| self.changes.since(version.number, self.version.number)).flatten();
        let Some(change) = change else { return self.complete_body(Some(only)) };
        let mut body = self.changed_body(&change);
        body.tables.retain(|table| table.id == only.schema.id);
        body.routes.retain(|route| route.table == only.schema.id);
        body
    }

    /// The changes since `version`. The whole routing table if they are no longer known, or the
    /// version is of another incarnation (R30).
    pub fn since_json(&self, version: RouteVersion) -> Bytes {
        if version.incarnation != self.version.incarnation {
            return self.complete_json();
        }
        let make = || match self.changes.since(version.number, self.version.number) {
            Some(change) => to_json(&self.changed_body(&change)),
            None => self.complete_json(),
        };
        // All watchers that keep up need the same changes.
        if version.number + 1 == self.version.number { self.latest.get_or_init(make).clone() } else { make() }
    }

    fn changed_body(&self, change: &VersionChange) -> RoutesBody {
        let schema = |id: &TableId| self.tables.get(id).map(|table| table.schema.clone());
        RoutesBody {
            version: self.version_text.clone(),
            schema_version: self.schema_version,
            complete: false,
            tables: change.tables.iter().filter_map(schema).collect(),
            shards: change.shards.iter().filter_map(|id| self.shards.get(id)).map(|(info, _)| info.clone()).collect(),
            removed_shards: change.removed_shards.iter().copied().collect(),
            removed_tables: change.removed_tables.iter().copied().collect(),
            routes: change.ranges.iter().filter_map(|id| self.by_range.get(id)).map(|s| s.body.clone()).collect(),
        }
    }
}

fn serve(route: &Route, schema: &TableSchema) -> ServedRoute {
    let body = RouteBody::new(route, schema);
    ServedRoute { route: route.clone(), json: to_json(&body), body }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::balancer::testing::{key, state_with_table};
    use crate::state::{Action, Command, Proposal, Step, Transition};
    use evenkeel_protocol::OperatorId;
    use evenkeel_protocol::api::RouteLookupBody;
    use evenkeel_protocol::routing::RoutingTable;

    fn split(state: &mut PlacementState, range: u64, at: i64) {
        let action = Action::Split { range: RangeId(range), epoch: None, at: vec![key(at)] };
        let operator = OperatorId(state.next_operator().0);
        for command in
            [Command::Begin(action), Command::Advance { operator, from: Step::Apply, transition: Transition::Applied }]
        {
            crate::state::apply(state, Proposal { at_ms: 1, since_ms: 0, nonce: 0, command }).unwrap();
        }
    }

    #[test]
    fn a_lookup_reads_as_its_type_and_names_the_right_range() {
        let mut state = state_with_table(2);
        split(&mut state, 1, 100);
        let view = RoutingView::new(&state, None);
        view.leaders.set(ShardId(1), 3);
        for n in [-5, 99, 100, 101] {
            let served = view.table("t").unwrap().lookup(&key(n)).unwrap();
            let body: RouteLookupBody = serde_json::from_slice(&view.lookup_json(served)).unwrap();
            assert_eq!(body.route.range, RangeId(if n < 100 { 1 } else { 2 }));
            assert_eq!((body.shard.id, body.leader), (ShardId(1), Some(3)));
            assert_eq!(body.version, view.version.to_string());
        }
    }

    #[test]
    fn changes_on_top_of_any_version_give_the_whole() {
        let mut state = state_with_table(2);
        let mut versions = vec![(state.version, RoutingView::new(&state, None))];
        for at in [100, 50, 25, 10] {
            split(&mut state, 1, at);
            versions.push((state.version, RoutingView::new(&state, versions.last().map(|(_, view)| view))));
        }
        let last = &versions.last().unwrap().1;
        for (version, view) in &versions {
            let mut table = RoutingTable::default();
            let whole: RoutesBody = serde_json::from_slice(&view.complete_json()).unwrap();
            whole.apply_to(&mut table).unwrap();
            let change: RoutesBody = serde_json::from_slice(&last.since_json(*version)).unwrap();
            assert!(!change.complete);
            change.apply_to(&mut table).unwrap();
            assert_eq!(table.version, last.version);
            assert_eq!(table.routes().count(), 5);
            for range in state.ranges.values() {
                assert_eq!(table.lookup(TableId(1), &range.route.interval.start), Some(&range.route));
            }
        }
        let other = RouteVersion { incarnation: 9, number: 1 };
        let whole: RoutesBody = serde_json::from_slice(&last.since_json(other)).unwrap();
        assert!(whole.complete, "another incarnation's version says nothing");
    }

    #[test]
    fn what_did_not_change_keeps_its_json() {
        let mut state = state_with_table(2);
        split(&mut state, 1, 100);
        let before = RoutingView::new(&state, None);
        split(&mut state, 2, 200);
        let after = RoutingView::new(&state, Some(&before));
        let same = |id| Arc::ptr_eq(before.range(RangeId(id)).unwrap(), after.range(RangeId(id)).unwrap());
        assert!(same(1) && !same(2));
    }
}
