//! The state behind the scripts: the ranges of each shard, its rows, its retry window, and its next
//! faults.

use crate::placement::Endpoint;
use crate::shards::ReplicaServer;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::routing::{Route, RouteVersion, RoutingTable, ShardInfo};
use evenkeel_protocol::rows::{Column, RowBuilder};
use evenkeel_protocol::schema::{ColumnSchema, TableSchema};
use evenkeel_protocol::shard::{Piece, PieceRequest, ShardReply, StatementReply, StatementRequest};
use evenkeel_protocol::{Epoch, Failure, Key, KeyValue, RangeId, ShardId, SqlError, TableId, TxnId};
use evenkeel_sql::{self as sql, Command, Plan, PlanKind, Touches};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

pub const TABLE: TableId = TableId(1);

/// Rows of a piece, at most.
pub const PIECE_ROWS: u64 = 4;

/// The fault of a shard's leader at its next request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Executes it and gives no answer.
    ForgetAnswer,
    /// Gives no answer and does not execute it.
    ForgetRequest,
    /// Executes it, dies, and another replica takes over.
    DieAfter,
    /// Dies without executing it; another replica takes over.
    DieBefore,
    /// Reports that it is busy.
    Busy(u32),
    /// Executes it and reports that the outcome is unknown.
    Unsure,
    /// Takes this long, in milliseconds.
    Slow(u64),
    /// Answers with this error.
    Error(SqlError),
    /// Takes as long as its caller waits, and records when the caller is gone.
    UntilGone,
    /// Executes it without a fault.
    Nothing,
}

/// A request that reached a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub shard: u32,
    pub id: TxnId,
    pub what: String,
}

/// A transaction's connection and its number on it.
pub type OpenId = (u64, u64);

#[derive(Debug)]
pub enum Undo {
    CountDown(Key),
    Remove(Key),
    Put(Key, (i64, i64)),
}

#[derive(Debug, Default)]
pub struct Shard {
    pub leader: Option<u64>,
    pub owned: Vec<Route>,
    /// Ranges handed over, with their new owners.
    pub gone: Vec<Route>,
    pub rows: BTreeMap<Key, (i64, i64)>,
    pub window: HashMap<TxnId, ShardReply>,
    pub faults: VecDeque<Fault>,
    /// The changes that the rollback of an open transaction undoes. They are relative, since there
    /// are no row locks.
    pub open: HashMap<OpenId, Vec<Undo>>,
    /// Prepared transactions; they stay open.
    pub prepared: HashMap<TxnId, OpenId>,
}

#[derive(Debug)]
pub struct World {
    pub schema: Arc<TableSchema>,
    pub shards: BTreeMap<u32, Shard>,
    pub infos: Vec<ShardInfo>,
    /// The routes that the placement driver publishes.
    pub published: RoutingTable,
    pub seen: Vec<Seen>,
    /// Requests whose callers were noticed to have stopped waiting.
    pub gone: usize,
    /// The placement driver's replicas that a watch reports; none: it reports nothing.
    pub members: Vec<std::net::SocketAddr>,
    /// The statuses of the next `POST /v1/tables`, and whether they follow the work.
    pub table_faults: VecDeque<u16>,
    plans: HashMap<String, Plan>,
}

pub fn schema() -> TableSchema {
    let column = |name: &str| ColumnSchema { name: name.into(), type_name: "bigint".into(), type_oid: 20 };
    TableSchema {
        id: TABLE,
        name: "t".into(),
        columns: vec![column("id"), column("n")],
        key: vec![0],
        create_sql: "CREATE TABLE t".into(),
        ..TableSchema::default()
    }
}

pub fn key(id: i64) -> Key {
    schema().codec().encode(&[KeyValue::Int(id)]).unwrap()
}

impl World {
    /// Every route according to the shards' own logs.
    pub fn truth(&self) -> Vec<Route> {
        self.shards.values().flat_map(|shard| shard.owned.clone()).collect()
    }

    pub fn publish(&mut self) {
        let version = RouteVersion { incarnation: 1, number: self.published.version.number + 1 };
        let mut tables: Vec<_> = self.published.tables().cloned().collect();
        tables.retain(|table| table.id != TABLE);
        tables.push(self.schema.clone());
        self.published = RoutingTable::new(version, tables, self.infos.clone(), self.truth());
    }

    fn plan(&mut self, sql: &str) -> Plan {
        if let Some(plan) = self.plans.get(sql) {
            return plan.clone();
        }
        let Command::Statement(parsed) = sql::parse(sql).unwrap() else { panic!("{sql}") };
        let schema = parsed.table_name().map(|_| &*self.schema);
        let plan = parsed.bind(schema).unwrap();
        self.plans.insert(sql.into(), plan.clone());
        plan
    }

    pub fn move_range(&mut self, range: u64, to: u32) {
        let from = self.shards.iter().find(|(_, s)| s.owned.iter().any(|r| r.range.0 == range)).map(|(id, _)| *id);
        let source = self.shards.get_mut(&from.unwrap()).unwrap();
        let at = source.owned.iter().position(|route| route.range.0 == range).unwrap();
        let mut route = source.owned.remove(at);
        route.epoch = route.epoch.next();
        route.shard = ShardId(to);
        // Open transactions do not survive the fence.
        let open: Vec<OpenId> = source.open.keys().copied().collect();
        open.into_iter().for_each(|id| source.undo(id));
        source.gone.retain(|gone| !route.interval.covers(&gone.interval));
        source.gone.push(route.clone());
        let rows: Vec<_> = source.rows.keys().filter(|k| route.interval.contains(k)).cloned().collect();
        let rows: Vec<_> = rows.into_iter().map(|k| (k.clone(), source.rows.remove(&k).unwrap())).collect();
        let window = source.window.clone();
        let destination = self.shards.get_mut(&to).unwrap();
        destination.gone.retain(|gone| !gone.interval.overlaps(&route.interval));
        destination.rows.extend(rows);
        destination.window.extend(window);
        destination.owned.push(route);
    }

    pub fn split(&mut self, range: u64, at: i64, right: u64) {
        let shard = self.shards.values_mut().find(|s| s.owned.iter().any(|r| r.range.0 == range)).unwrap();
        let at_route = shard.owned.iter().position(|route| route.range.0 == range).unwrap();
        let route = shard.owned.remove(at_route);
        let pieces = route.interval.split(&[key(at)]).unwrap();
        for (interval, range) in pieces.into_iter().zip([route.range, RangeId(right)]) {
            shard.owned.push(Route { range, epoch: route.epoch.next(), interval, ..route.clone() });
        }
    }

    /// Executes a statement on a shard, if the shard owns the touched keys.
    pub fn execute(&mut self, shard: u32, request: &StatementRequest, open: Option<OpenId>) -> ShardReply {
        let plan = self.plan(&request.sql);
        let state = self.shards.get_mut(&shard).unwrap();
        let touches = match plan.touches(&request.params) {
            Ok(touches) => touches,
            Err(error) => return error.into(),
        };
        let clip = request.clip.clone().unwrap_or(KeyInterval::ALL);
        let intervals: Vec<KeyInterval> = match &touches {
            Touches::Nothing => vec![],
            Touches::Keys(keys) => keys.iter().map(point).collect(),
            Touches::Intervals(intervals) => intervals.clone(),
        };
        let intervals: Vec<_> = intervals.iter().map(|i| i.intersection(&clip)).filter(|i| !i.is_empty()).collect();
        if let Some(elsewhere) = intervals.iter().find_map(|interval| state.elsewhere(interval)) {
            return ShardReply::Failed(elsewhere);
        }
        // After ownership: the answers of a range move with it.
        if open.is_none()
            && let Some(reply) = state.window.get(&request.id)
        {
            return reply.clone();
        }
        let limit = plan.row_limit(&request.params).unwrap().into_iter().chain(request.limit).min();
        match state.run(&plan, &intervals, limit, open) {
            Ok(reply) => {
                let reply = ShardReply::Rows(reply);
                if plan.writes() && open.is_none() {
                    state.window.insert(request.id, reply.clone());
                }
                reply
            }
            Err(error) => error.into(),
        }
    }
}

impl World {
    /// Executes a piece of a SELECT.
    pub fn piece(&mut self, shard: u32, request: &PieceRequest) -> ShardReply {
        let descending = self.plan(&request.statement.sql).descending();
        let mut statement = request.statement.clone();
        let clip = statement.clip.clone().unwrap_or(KeyInterval::ALL);
        let behind = request.after.as_ref().map_or(KeyInterval::ALL, |after| match descending {
            true => KeyInterval::new(Key::MIN, Some(after.clone())),
            false => KeyInterval::new(schema().codec().successor(after).unwrap().unwrap(), None),
        });
        statement.clip = Some(clip.intersection(&behind));
        let most = statement.limit.map_or(PIECE_ROWS, |limit| limit.min(PIECE_ROWS));
        statement.limit = Some(most);
        match self.execute(shard, &statement, None) {
            ShardReply::Rows(reply) => {
                let last = (reply.rows.count as usize).checked_sub(1).and_then(|last| reply.rows.int(last, 0));
                let more_after = last.filter(|_| u64::from(reply.rows.count) == most).map(key);
                ShardReply::Piece(Piece { reply, more_after })
            }
            other => other,
        }
    }
}

fn point(key: &Key) -> KeyInterval {
    KeyInterval::new(key.clone(), schema().codec().successor(key).unwrap())
}

impl Shard {
    /// The owner of an interval, if not all of it is on this shard.
    pub fn elsewhere(&self, interval: &KeyInterval) -> Option<Failure> {
        let mut at = Some(interval.start.clone());
        while let Some(key) = at.clone() {
            if interval.end.as_ref().is_some_and(|end| key >= *end) {
                return None;
            }
            let Some(owned) = self.owned.iter().find(|route| route.interval.contains(&key)) else {
                let gone = self.gone.iter().find(|route| route.interval.contains(&key));
                return Some(Failure::Moved { to: gone.map(|r| r.shard), range: gone.map(|r| (r.range, r.epoch)) });
            };
            at = owned.interval.end.clone();
        }
        None
    }

    fn run(
        &mut self,
        plan: &Plan,
        intervals: &[KeyInterval],
        limit: Option<u64>,
        open: Option<OpenId>,
    ) -> Result<StatementReply, SqlError> {
        let codec = schema().codec();
        let matching: Vec<Key> =
            self.rows.keys().filter(|key| intervals.iter().any(|i| i.contains(key))).cloned().collect();
        let mut changes: Vec<(Key, Option<(i64, i64)>)> = Vec::new();
        let mut affected = matching.len() as u64;
        let mut builder = RowBuilder::new(2);
        match plan.kind() {
            PlanKind::Select => {
                let ordered: Vec<&Key> = match plan.descending() {
                    true => matching.iter().rev().collect(),
                    false => matching.iter().collect(),
                };
                for key in ordered.into_iter().take(limit.unwrap_or(u64::MAX) as usize) {
                    let (id, n) = self.rows[key];
                    builder.push([Some(&id.to_be_bytes()[..]), Some(&n.to_be_bytes()[..])]);
                }
                affected = builder.count().into();
            }
            PlanKind::Insert => {
                if !matching.is_empty() {
                    return Err(SqlError::new("23505", "duplicate key"));
                }
                for interval in intervals {
                    let KeyValue::Int(id) = codec.decode(&interval.start).unwrap()[0] else { unreachable!() };
                    changes.push((interval.start.clone(), Some((id, 1))));
                }
                affected = changes.len() as u64;
            }
            PlanKind::Update => {
                changes.extend(matching.iter().map(|k| (k.clone(), Some((self.rows[k].0, self.rows[k].1 + 1)))));
            }
            PlanKind::Delete => changes.extend(matching.iter().map(|k| (k.clone(), None))),
        }
        for (key, row) in changes {
            let before = match row {
                Some(row) => self.rows.insert(key.clone(), row),
                None => self.rows.remove(&key),
            };
            let undo = match (before, row) {
                (Some(_), Some(_)) => Undo::CountDown(key),
                (None, _) => Undo::Remove(key),
                (Some(before), None) => Undo::Put(key, before),
            };
            if let Some(open) = open {
                self.open.entry(open).or_default().push(undo);
            }
        }
        let columns: Arc<[Column]> = match plan.kind() {
            PlanKind::Select => ["id", "n"].map(|name| Column { name: name.into(), type_oid: 20 }).into(),
            _ => Arc::default(),
        };
        Ok(StatementReply { columns, rows: builder.finish(), affected, staleness_ms: None })
    }

    pub fn undo(&mut self, open: OpenId) {
        for undo in self.open.remove(&open).into_iter().flatten().rev() {
            match undo {
                Undo::CountDown(key) => self.rows.get_mut(&key).unwrap().1 -= 1,
                Undo::Remove(key) => drop(self.rows.remove(&key)),
                Undo::Put(key, row) => drop(self.rows.insert(key, row)),
            }
        }
    }

    /// Makes another replica the leader: the transactions of the one before are gone.
    pub fn elect(&mut self, leader: Option<u64>) {
        let open: Vec<OpenId> = self.open.keys().copied().collect();
        open.into_iter().for_each(|id| self.undo(id));
        self.leader = leader;
    }
}

/// The whole cluster.
pub struct Cluster {
    pub world: Arc<Mutex<World>>,
    replicas: BTreeMap<(u32, u64), ReplicaServer>,
    pub placement: Vec<Endpoint>,
}

impl Cluster {
    /// Three shards of three replicas, all known to the placement driver. `layout` as `(shard,
    /// end)`, the last one without an end; ranges are numbered from 1.
    pub async fn start(layout: &[(u32, i64)]) -> Cluster {
        let mut start = Key::MIN;
        let mut shards: BTreeMap<u32, Shard> =
            (1..=3).map(|id| (id, Shard { leader: Some(1), ..Shard::default() })).collect();
        for (i, (shard, end)) in layout.iter().enumerate() {
            let end = (i + 1 < layout.len()).then(|| key(*end));
            let interval = KeyInterval::new(start, end.clone());
            let range = RangeId(i as u64 + 1);
            let route = Route { range, epoch: Epoch(1), table: TABLE, interval, shard: ShardId(*shard) };
            shards.get_mut(shard).unwrap().owned.push(route);
            start = end.unwrap_or_default();
        }
        let world = Arc::new(Mutex::new(World {
            members: Vec::new(),
            schema: Arc::new(schema()),
            shards,
            infos: vec![],
            published: RoutingTable::default(),
            seen: vec![],
            gone: 0,
            table_faults: VecDeque::new(),
            plans: HashMap::new(),
        }));
        let mut replicas = BTreeMap::new();
        for shard in 1..=3 {
            let mut info = ShardInfo { id: ShardId(shard), replicas: BTreeMap::new() };
            for number in 1..=3 {
                let server = ReplicaServer::start(world.clone(), shard, number);
                info.replicas.insert(number, server.address);
                replicas.insert((shard, number), server);
            }
            world.lock().unwrap().infos.push(info);
        }
        world.lock().unwrap().publish();
        let placement = vec![Endpoint::start(world.clone()), Endpoint::start(world.clone())];
        Cluster { world, replicas, placement }
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.placement.iter().map(|endpoint| format!("http://{}", endpoint.address)).collect()
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Sets the faults of `shard`'s leader at its next requests, in order.
    pub fn script(&self, shard: u32, faults: impl IntoIterator<Item = Fault>) {
        self.world().shards.get_mut(&shard).unwrap().faults.extend(faults);
    }

    pub fn elect(&self, shard: u32, leader: Option<u64>) {
        self.world().shards.get_mut(&shard).unwrap().elect(leader);
    }

    /// Makes a replica stop answering while it stays connected.
    pub fn pause(&self, shard: u32, replica: u64) {
        self.replicas[&(shard, replica)].pause(true);
    }

    pub fn resume(&self, shard: u32, replica: u64) {
        self.replicas[&(shard, replica)].pause(false);
    }

    pub async fn kill(&self, shard: u32, replica: u64) {
        self.replicas[&(shard, replica)].kill().await;
    }

    pub fn publish(&self) {
        self.world().publish();
        self.placement.iter().for_each(Endpoint::tell);
    }

    /// The ids of the requests that reached a leader since the last call, with their shards.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.world().seen)
    }

    /// The number in a row, on any shard.
    pub fn value(&self, id: i64) -> Option<i64> {
        let world = self.world();
        let found: Vec<i64> = world.shards.values().filter_map(|s| s.rows.get(&key(id))).map(|row| row.1).collect();
        assert!(found.len() <= 1, "a row on two shards");
        found.first().copied()
    }

    pub fn put(&self, ids: impl IntoIterator<Item = i64>) {
        let mut world = self.world();
        for id in ids {
            let k = key(id);
            let owner = world.shards.values_mut().find(|s| s.owned.iter().any(|r| r.interval.contains(&k))).unwrap();
            owner.rows.insert(k, (id, 1));
        }
    }

    pub fn open_transactions(&self) -> usize {
        self.world().shards.values().map(|shard| shard.open.len()).sum()
    }
}
