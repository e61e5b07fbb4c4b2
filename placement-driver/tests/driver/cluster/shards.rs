//! Fake shards: one replica each, all in one world, so that the two sides of a move agree without
//! rows.

use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_protocol::report::{
    MoveProgress, OperatorPhase, OperatorReport, RangeLoad, RangeReport, RangeState, ReplicaReport, ShardReport,
};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema_change::SchemaReport;
use evenkeel_protocol::scrub::{Comparison, Difference, Place, ScrubReport};
use evenkeel_protocol::shard::{ControlReply, ControlRequest, RangeChecksum, ShardReply, ShardRequest};
use evenkeel_protocol::{Epoch, Failure, Key, KeyInterval, OperatorId, RangeId, SchemaDelta, ShardId, TableId};
use evenkeel_rpc::{Connection, Replier, Service};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpListener;

/// The interval of a shard's reports.
const REPORT: Duration = Duration::from_millis(25);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    Open,
    HandedOver,
}

#[derive(Debug, Clone)]
struct Moving {
    range: RangeId,
    from: ShardId,
    to: ShardId,
    out: Option<Out>,
    incoming: bool,
    adopted: Option<Epoch>,
    cancelled: bool,
}

#[derive(Debug, Clone)]
struct Held {
    epoch: Epoch,
    table: TableId,
    interval: KeyInterval,
}

/// The state of all shards. Tests read it and inject faults.
#[derive(Default)]
pub struct World {
    ranges: BTreeMap<ShardId, BTreeMap<RangeId, Held>>,
    moves: BTreeMap<OperatorId, Moving>,
    applied: BTreeSet<OperatorId>,
    /// Whether moves stop while they copy.
    pub hold_copies: bool,
    /// Whether moves stop between fence and adoption.
    pub hold_switches: bool,
    /// Whether destinations store something else than they are sent.
    pub differ: bool,
    /// The difference that every comparison finds.
    pub difference: Option<Difference>,
    /// Shards that neither answer nor report.
    pub dead: BTreeSet<ShardId>,
    /// Shards that report and do not answer.
    pub deaf: BTreeSet<ShardId>,
    /// The load of each range; a range without an entry has none.
    pub loads: BTreeMap<RangeId, RangeLoad>,
    /// The keys at which each range can be split by size.
    pub size_keys: BTreeMap<RangeId, Vec<Key>>,
    /// The schema changes that each shard has made.
    pub schemas: BTreeMap<ShardId, Vec<SchemaDelta>>,
    /// The schema change that each shard has prepared.
    pub prepared: BTreeMap<ShardId, OperatorId>,
    /// Whether decided schema changes are not made yet.
    pub hold_schema: bool,
    /// The shard that refuses schema changes.
    pub refuse_schema: Option<ShardId>,
    /// Every request, by the name of its kind.
    pub asked: Vec<(ShardId, String)>,
    sequence: u64,
}

impl World {
    /// Advances the moves: fences and adopts.
    fn progress(&mut self) {
        if self.hold_copies {
            return;
        }
        for moving in self.moves.values_mut().filter(|m| m.incoming && !m.cancelled && m.adopted.is_none()) {
            if moving.out == Some(Out::Open) {
                moving.out = Some(Out::HandedOver);
            }
            if self.hold_switches {
                continue;
            }
            let held = self.ranges.entry(moving.from).or_default().remove(&moving.range);
            if let Some(mut held) = held {
                held.epoch = held.epoch.next();
                moving.adopted = Some(held.epoch);
                self.ranges.entry(moving.to).or_default().insert(moving.range, held);
            }
        }
    }

    fn report(&mut self, shard: ShardId) -> ShardReport {
        self.progress();
        self.sequence += 1;
        let fenced = |id: &RangeId| {
            self.moves.values().any(|m| m.range == *id && m.from == shard && m.out == Some(Out::HandedOver))
        };
        let ranges =
            self.ranges.get(&shard).into_iter().flatten().filter(|(id, _)| !fenced(id)).map(|(id, held)| RangeReport {
                id: *id,
                epoch: held.epoch,
                table: held.table,
                interval: held.interval.clone(),
                state: RangeState::Owned,
                load: self.loads.get(id).cloned().unwrap_or_default(),
            });
        let mut operators = Vec::new();
        for (operator, moving) in &self.moves {
            let (operator, range) = (*operator, moving.range);
            if moving.from == shard
                && let Some(out) = moving.out
            {
                let phase = if out == Out::Open { OperatorPhase::Open } else { OperatorPhase::Fenced };
                operators.push(OperatorReport { operator, range, phase, progress: None });
            }
            if moving.to == shard && moving.incoming {
                let phase = match moving.adopted {
                    Some(epoch) => OperatorPhase::Adopted { epoch, pause_us: 3000, rows: 10, bytes: 1000 },
                    None => OperatorPhase::Copying { attempt: 1, rows: 5, bytes: 500 },
                };
                let differs = self.differ.then(|| "replica 1 has stored 9 rows, 10 were sent".to_string());
                let progress = Some(MoveProgress { differs, ..MoveProgress::default() });
                operators.push(OperatorReport { operator, range, phase, progress });
            }
        }
        let differences = self.difference.clone().into_iter().collect();
        ShardReport {
            clock_ms: evenkeel_host::wall_ms(),
            highest: Default::default(),
            tables: None,
            shard,
            leader: 1,
            term: 1,
            sequence: self.sequence,
            applied: 1,
            replicas: vec![ReplicaReport { id: 1, connected: true, decided: 1 }],
            members: None,
            capacity_per_s: None,
            ranges: ranges.collect(),
            operators,
            scrub: ScrubReport { differences, ..ScrubReport::default() },
            schema: SchemaReport {
                version: self.schemas.get(&shard).map_or(0, |deltas| deltas.len() as u64),
                prepared: self.prepared.get(&shard).copied(),
            },
        }
    }

    /// Compares one range per request.
    fn compare(&self, shard: ShardId, from: Option<Place>) -> Comparison {
        let place = |held: &Held| Place { table: held.table, key: held.interval.start.clone() };
        let mut held: Vec<_> = self.ranges.get(&shard).into_iter().flatten().map(|(id, h)| (place(h), *id)).collect();
        held.sort();
        let mut rest = held.into_iter().filter(|(place, _)| from.as_ref().is_none_or(|from| place >= from));
        let compared = rest.next().map(|(_, id)| (id, RangeChecksum { rows: 10, sum: id.0 })).into_iter().collect();
        let differences = self.difference.clone().into_iter().filter(|_| from.is_none()).collect();
        Comparison {
            index: 1,
            compared,
            differences,
            next: rest.next().map(|(place, _)| place),
            ..Comparison::default()
        }
    }

    fn control(&mut self, shard: ShardId, request: ControlRequest) -> ControlReply {
        let name = format!("{request:?}");
        self.asked.push((shard, name.split([' ', '{']).next().unwrap_or_default().to_string()));
        let refused = |code: &str| ControlReply::Refused { code: code.into(), reason: "fake".into() };
        let owned = self.ranges.entry(shard).or_default();
        match request {
            ControlRequest::CreateTable { schema, range } => {
                let held = Held { epoch: Epoch(1), table: schema.id, interval: KeyInterval::ALL };
                owned.entry(range).or_insert(held);
            }
            ControlRequest::Split { operator, range, epoch, at } => {
                if !self.applied.contains(&operator) {
                    let Some(held) = owned.get(&range).cloned().filter(|h| h.epoch == epoch) else {
                        return refused("wrong-epoch");
                    };
                    let keys: Vec<_> = at.iter().map(|(key, _)| key.clone()).collect();
                    let Some(pieces) = held.interval.split(&keys) else { return refused("bad-split") };
                    let ids = std::iter::once(range).chain(at.iter().map(|(_, id)| *id));
                    for (interval, id) in pieces.into_iter().zip(ids) {
                        owned.insert(id, Held { epoch: epoch.next(), table: held.table, interval });
                    }
                    self.applied.insert(operator);
                }
            }
            ControlRequest::SizeSplitKeys { range, .. } => {
                let keys = self.size_keys.get(&range).cloned().unwrap_or_default();
                return ControlReply::SplitKeys(keys);
            }
            ControlRequest::Merge { .. }
            | ControlRequest::ChangeReplicas { .. }
            | ControlRequest::DropTable { .. }
            | ControlRequest::TakeBack { .. } => return refused("not-supported"),
            ControlRequest::MoveOpen { operator, range, epoch, to } => {
                if owned.get(&range).is_none_or(|h| h.epoch != epoch) && !self.moves.contains_key(&operator) {
                    return refused("wrong-epoch");
                }
                self.moves.entry(operator).or_insert(Moving {
                    range,
                    from: shard,
                    to: to.id,
                    out: Some(Out::Open),
                    incoming: false,
                    adopted: None,
                    cancelled: false,
                });
            }
            ControlRequest::IngestOpen { operator, .. } => match self.moves.get_mut(&operator) {
                Some(moving) => moving.incoming = true,
                None => return refused("no-such-operator"),
            },
            ControlRequest::MoveCancel { operator, .. } => match self.moves.get_mut(&operator) {
                Some(moving) if moving.out == Some(Out::HandedOver) => return refused("already-fenced"),
                Some(moving) => {
                    moving.cancelled = true;
                    moving.out = None;
                }
                None => return refused("no-such-operator"),
            },
            ControlRequest::IngestCancel { operator } | ControlRequest::MoveForget { operator } => {
                self.moves.remove(&operator);
            }
            ControlRequest::Purge { operator } => {
                if let Some(moving) = self.moves.get_mut(&operator) {
                    moving.out = None;
                }
            }
            ControlRequest::Compare { from, .. } => return ControlReply::Compared(Box::new(self.compare(shard, from))),
            ControlRequest::TransferLeadership { to } => {
                if to.is_some_and(|to| to != 1) {
                    return refused("no-such-replica");
                }
            }
            ControlRequest::CheckTable { schema } => {
                return match evenkeel_sql::definition::canonical(&schema) {
                    Ok(schema) => ControlReply::Table(Box::new(schema)),
                    Err(reason) => ControlReply::Refused { code: "bad-definition".into(), reason },
                };
            }
            ControlRequest::PrepareSchema { operator, delta } => {
                if self.refuse_schema == Some(shard) {
                    return refused("sql-refused");
                }
                if delta.change.version != self.schemas.entry(shard).or_default().len() as u64 + 1 {
                    return refused("schema-version");
                }
                self.prepared.insert(shard, operator);
            }
            ControlRequest::AbortSchema { operator } => {
                if self.prepared.get(&shard) == Some(&operator) {
                    self.prepared.remove(&shard);
                }
            }
            ControlRequest::ApplySchema { .. } if self.hold_schema => {
                return ControlReply::Pending { waiting_for: "the test".into() };
            }
            ControlRequest::ApplySchema { delta, ranges } => {
                let made = self.schemas.entry(shard).or_default();
                if delta.change.version == made.len() as u64 + 1 {
                    for (table, range) in ranges {
                        owned.insert(range, Held { epoch: Epoch(1), table, interval: KeyInterval::ALL });
                    }
                    owned.retain(|_, held| !delta.dropped.contains(&held.table));
                    made.push(delta);
                    self.prepared.remove(&shard);
                }
            }
            ControlRequest::SchemaAfter { version } => {
                let made = self.schemas.get(&shard).into_iter().flatten();
                return ControlReply::Schema(made.filter(|delta| delta.change.version > version).cloned().collect());
            }
            ControlRequest::Report => return ControlReply::Report(Box::new(self.report(shard))),
        }
        ControlReply::Done
    }

    /// The number of requests of this kind.
    pub fn count(&self, name: &str) -> usize {
        self.asked.iter().filter(|(_, asked)| asked == name).count()
    }

    pub fn owner(&self, range: u64) -> Option<u32> {
        let owners = self.ranges.iter().filter(|(_, held)| held.contains_key(&RangeId(range)));
        owners.map(|(shard, _)| shard.0).next()
    }
}

struct FakeShard {
    shard: ShardId,
    world: Arc<Mutex<World>>,
}

impl Service for FakeShard {
    type Request = ShardRequest;
    type Reply = ShardReply;
    type Session = ();

    fn opened(&self, _: SocketAddr) {}

    async fn call(self: Arc<Self>, _: Arc<()>, request: ShardRequest, replier: Replier<ShardReply>) {
        let reply = {
            let mut world = self.world.lock().unwrap();
            match request {
                _ if world.dead.contains(&self.shard) || world.deaf.contains(&self.shard) => {
                    ShardReply::Failed(Failure::NotLeader { leader: None })
                }
                ShardRequest::Control(request) => ShardReply::Control(world.control(self.shard, request)),
                _ => ShardReply::Failed(Failure::OutcomeUnknown { reason: "not supported".into() }),
            }
        };
        replier.reply(&reply).await;
    }
}

/// The fake shards. Dropping it ends them.
pub struct Shards {
    world: Arc<Mutex<World>>,
    infos: Vec<ShardInfo>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Shards {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Shards {
    pub async fn start(count: u32, report_to: Vec<SocketAddr>) -> Shards {
        let mut shards = Shards { world: Arc::default(), infos: Vec::new(), tasks: Vec::new() };
        for id in 1..=count {
            shards.add(id, report_to.clone()).await;
        }
        shards
    }

    pub async fn add(&mut self, id: u32, report_to: Vec<SocketAddr>) {
        let shard = ShardId(id);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let replicas = BTreeMap::from([(1, listener.local_addr().unwrap())]);
        self.infos.push(ShardInfo { id: shard, replicas });
        self.world().ranges.entry(shard).or_default();
        let service = Arc::new(FakeShard { shard, world: self.world.clone() });
        self.tasks.push(tokio::spawn(evenkeel_rpc::serve(listener, service, std::future::pending())));
        self.tasks.push(tokio::spawn(report(shard, self.world.clone(), report_to)));
    }

    pub fn infos(&self) -> Vec<ShardInfo> {
        self.infos.clone()
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

/// Reports to the replica that accepts reports.
async fn report(shard: ShardId, world: Arc<Mutex<World>>, report_to: Vec<SocketAddr>) {
    let mut connections: HashMap<SocketAddr, Connection<PlacementRequest, PlacementReply>> = HashMap::new();
    loop {
        evenkeel_host::sleep(REPORT).await;
        let report = {
            let mut world = world.lock().unwrap();
            if world.dead.contains(&shard) {
                continue;
            }
            world.report(shard)
        };
        let request = PlacementRequest::Report(Box::new(report));
        for replica in &report_to {
            if connections.get(replica).is_none_or(Connection::is_closed) {
                let Ok(connection) = Connection::connect(*replica, Duration::from_millis(200)).await else { continue };
                connections.insert(*replica, connection);
            }
            let reply = connections[replica].call_within(&request, Duration::from_millis(500)).await;
            if matches!(reply, Ok(PlacementReply::Accepted)) {
                break;
            }
        }
    }
}
