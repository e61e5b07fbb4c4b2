//! Users: what they ask for, how they try again, and what they saw.
//!
//! Each client sends a statement under one id until it has an answer, goes where it is redirected, and gives up after a while: then the
//! outcome is unknown. What certainly did not happen is not part of the history.

use crate::operators;
use crate::process::{self, below, once_in};
use crate::world::{REPLICAS, Registry, shard_info};
use evenkeel_placement_driver::server::Shared;
use evenkeel_protocol::shard::{
    Durability, Inspection, ReadLevel, ShardReply, ShardRequest, StatementReply, StatementRequest, TransactionOptions,
};
use evenkeel_protocol::{Failure, Key, KeyInterval, KeyValue, ShardId, TableSchema, TxnId, Value};
use evenkeel_rpc::Connection;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Keys that are counters.
pub const COUNTERS: Range<i64> = 0..40;
/// Keys that are accounts, between which money is moved.
pub const ACCOUNTS: Range<i64> = 50..54;
/// The counter of transfers, in the same transactions.
const TALLY: i64 = 55;
/// Clients at work.
const CLIENTS: u64 = 6;
/// Clients that only read, and stay with whom they ask for as long as it answers.
const WATCHERS: u64 = 2;
/// Between two reads of a watcher, in milliseconds, at most.
const WATCH_MS: u64 = 12;
/// After how long an answered statement is sent once more, in milliseconds, at most.
const AGAIN_MS: u64 = 1_500;
/// How long a transaction that looks twice pauses between the two, in milliseconds, at most.
const LOOK_MS: u64 = 250;
/// Between two operations of a client, in milliseconds, at most.
const THINK_MS: u64 = 40;
/// How long an answer is waited for before it is asked elsewhere, in milliseconds.
const ANSWER_MS: u64 = 700;
/// After this a client gives up, in milliseconds.
const GIVE_UP_MS: u64 = 4_000;
/// How long connecting may take, in milliseconds.
const CONNECT_MS: u64 = 300;

/// The table.
pub const CREATE: &str = "CREATE TABLE counters (id bigint PRIMARY KEY, v bigint)";
const ADD: &str =
    "INSERT INTO counters AS c (id, v) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET v = c.v + 1 RETURNING c.v";
const UPDATE: &str = "UPDATE counters SET v = v + $2 WHERE id = $1 RETURNING v";
const PUT: &str = "INSERT INTO counters (id, v) VALUES ($1, 0) ON CONFLICT (id) DO NOTHING";
const READ: &str = "SELECT v FROM counters WHERE id = $1";
const SCAN: &str = "SELECT id, v FROM counters WHERE id >= $1 AND id < $2";

/// How an addition was made.
pub const ADDITION: &str = "an addition";
const TRANSFER: &str = "a transfer's addition";
/// A read at level `local`.
pub const LOCAL: &str = "a local read";

/// One operation on a counter, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Which counter.
    pub key: i64,
    /// Whether it added one; else it read.
    pub adds: bool,
    /// How, for people.
    pub how: &'static str,
    /// When it was sent, in milliseconds.
    pub sent_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
    /// What it saw; `None` if the outcome is unknown.
    pub seen: Option<i64>,
}

/// What the counters held in the end.
pub type Last = BTreeMap<i64, i64>;

/// What clients and the world tell each other.
#[derive(Debug, Default)]
pub struct Told {
    /// The cluster can be used.
    pub set_up: bool,
    /// Since when everything is healed.
    pub healed_ms: Option<u64>,
    /// Everything works again.
    pub recovered: bool,
    /// The clients must end.
    pub stop: bool,
    /// The last look.
    pub last: Option<Last>,
    /// Who owns what, at the last look.
    pub owners: Vec<(ShardId, KeyInterval)>,
    /// What happened.
    pub history: Vec<Event>,
    /// What must not happen at all.
    pub trouble: Option<String>,
    /// What is waited for, for whoever loses patience.
    pub waiting_for: String,
}

/// What clients share.
#[derive(Clone)]
pub struct Users {
    /// The placement drivers.
    pub registry: Registry,
    /// What they tell.
    pub told: Rc<RefCell<Told>>,
    /// How many shards there are.
    pub shards: u32,
    /// The table.
    pub schema: Arc<TableSchema>,
}

/// Everything that runs on the clients' machine.
pub async fn run(registry: Registry, told: Rc<RefCell<Told>>, shards: u32) -> String {
    let schema = match operators::set_up(&registry, shards).await {
        Ok(schema) => schema,
        Err(reason) => return reason,
    };
    let users = Users { registry, told, shards, schema };
    let mut first = Client::new(users.clone(), 0);
    for account in ACCOUNTS {
        while !matches!(first.statement(PUT, vec![account.into()], account).await, Outcome::Answered(_)) {}
    }
    users.told.borrow_mut().set_up = true;
    let mut working = tokio::task::JoinSet::new();
    for number in 1..=CLIENTS {
        working.spawn_local(work(users.clone(), number));
    }
    for number in 1..=WATCHERS {
        working.spawn_local(watch(users.clone(), CLIENTS + number));
    }
    working.spawn_local(operators::give_orders(users.clone()));
    while working.join_next().await.is_some() {}
    last_look(&users, first).await;
    std::future::pending().await
}

/// A client's work: while it hurts, whatever comes; afterwards until each counter has been written once more.
async fn work(users: Users, number: u64) {
    let mut client = Client::new(users.clone(), number);
    while users.told.borrow().healed_ms.is_none() {
        client.something().await;
        tokio::time::sleep(Duration::from_millis(below(THINK_MS))).await;
    }
    // Everything recovers: every key takes writes again.
    for key in COUNTERS.filter(|key| *key as u64 % CLIENTS + 1 == number) {
        while !client.add(key).await {
            users.told.borrow_mut().waiting_for = format!("(counter {key} takes no write: {})", client.trouble);
        }
    }
}

/// Reads, and nothing else, while it hurts.
async fn watch(users: Users, number: u64) {
    let mut client = Client::new(users.clone(), number);
    while users.told.borrow().healed_ms.is_none() {
        let key = wanted();
        if once_in(4) {
            client.local(key).await;
        } else {
            client.read(key).await;
        }
        tokio::time::sleep(Duration::from_millis(below(WATCH_MS))).await;
    }
}

/// A counter: some are wanted more than others.
fn wanted() -> i64 {
    if once_in(2) { COUNTERS.start + below(4) as i64 * 10 } else { below(COUNTERS.end as u64) as i64 }
}

/// What is there in the end.
async fn last_look(users: &Users, mut client: Client) {
    let running = |users: &Users| {
        let registry = users.registry.borrow();
        let of = |shared: &Arc<Shared>| {
            let operator = shared.applied().state.running().next().cloned()?;
            let trouble = match &*shared.leading() {
                Some(leading) => leading.driver.trouble(operator.id).unwrap_or("no trouble").to_string(),
                None => format!("does not lead, {:?}", shared.log.role().borrow()),
            };
            let replica = shared.config.replica;
            Some(format!("{replica}: {:?} at {:?}: {trouble}", operator.work, operator.step))
        };
        let all: Vec<String> = registry.values().filter_map(of).collect();
        (!all.is_empty()).then(|| all.join("; "))
    };
    while let Some(operator) = running(users) {
        users.told.borrow_mut().waiting_for.clone_from(&operator);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    {
        let mut told = users.told.borrow_mut();
        told.recovered = true;
        told.waiting_for = "(a read of each counter)".into();
    }
    let mut last = Last::new();
    for key in COUNTERS.chain(ACCOUNTS).chain([TALLY]) {
        loop {
            if let Outcome::Answered(reply) = client.statement(READ, vec![key.into()], key).await {
                last.insert(key, reply.rows.int(0, 0).unwrap_or(0));
                break;
            }
            let shard = client.route(key);
            let trouble = format!("(a read of {key} on shard {shard}: {})", client.trouble);
            users.told.borrow_mut().waiting_for = trouble;
        }
    }
    let mut owners = Vec::new();
    for shard in 1..=users.shards {
        users.told.borrow_mut().waiting_for = format!("(shard {shard}'s leader)");
        let inspection = client.leader_of(shard).await;
        owners.extend(inspection.ranges.into_iter().filter(|r| r.4).map(|r| (ShardId(shard), r.3)));
    }
    let mut told = users.told.borrow_mut();
    told.owners = owners;
    told.last = Some(last);
}

/// What became of a statement.
pub enum Outcome {
    /// It was answered.
    Answered(StatementReply),
    /// It certainly did not happen.
    Refused,
    /// Nobody knows.
    Unknown,
}

type ShardConnection = Connection<ShardRequest, ShardReply>;

/// One client.
pub struct Client {
    users: Users,
    number: u64,
    sequence: u64,
    connections: HashMap<SocketAddr, ShardConnection>,
    leaders: HashMap<u32, u64>,
    /// Why it was last refused.
    trouble: String,
}

enum Step {
    Answered(ShardReply),
    /// It did not happen; try again.
    Again,
    /// It did not happen, and will not.
    Never,
    /// It may have happened.
    Perhaps,
}

impl Client {
    /// A client called `number`.
    pub fn new(users: Users, number: u64) -> Client {
        let (connections, leaders) = (HashMap::new(), HashMap::new());
        Client { users, number, sequence: 0, connections, leaders, trouble: String::new() }
    }

    fn id(&mut self) -> TxnId {
        self.sequence += 1;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let first_sent_ms = now.map_or(0, |now| now.as_millis() as u64);
        TxnId { client: self.number, sequence: self.sequence, first_sent_ms }
    }

    fn key(&self, id: i64) -> Key {
        self.users.schema.codec().encode(&[KeyValue::Int(id)]).unwrap_or(Key::MIN)
    }

    /// Where the routing table of some placement driver says that a key is.
    fn route(&self, key: i64) -> u32 {
        let key = self.key(key);
        let registry = self.users.registry.borrow();
        let drivers: Vec<_> = registry.values().collect();
        let driver = drivers.get(below(drivers.len() as u64) as usize);
        let found = driver.and_then(|driver| {
            let applied = driver.applied();
            applied.state.ranges.values().find(|r| r.route.interval.contains(&key)).map(|r| r.route.shard.0)
        });
        found.unwrap_or_else(|| 1 + below(self.users.shards.into()) as u32)
    }

    async fn connection(&mut self, address: SocketAddr) -> Option<ShardConnection> {
        if let Some(known) = self.connections.get(&address).filter(|connection| !connection.is_closed()) {
            return Some(known.clone());
        }
        let made = ShardConnection::connect(address, Duration::from_millis(CONNECT_MS)).await.ok()?;
        self.connections.insert(address, made.clone());
        Some(made)
    }

    /// Asks a shard once.
    async fn ask(&mut self, shard: &mut u32, request: &ShardRequest, key: i64) -> Step {
        let replica = *self.leaders.entry(*shard).or_insert_with(|| 1 + below(REPLICAS));
        let elsewhere = 1 + replica % REPLICAS;
        let Some(address) = shard_info(*shard).replicas.get(&replica).copied() else { return Step::Never };
        self.trouble.clear();
        let Some(connection) = self.connection(address).await else {
            self.leaders.insert(*shard, elsewhere);
            return Step::Again;
        };
        match connection.call_within(request, Duration::from_millis(ANSWER_MS)).await {
            Ok(ShardReply::Failed(failure)) => {
                self.trouble = failure.to_string();
                self.failed(failure, shard, elsewhere, key).await
            }
            Ok(reply) => Step::Answered(reply),
            Err(error) => {
                self.connections.remove(&address);
                self.leaders.insert(*shard, elsewhere);
                if error.never_sent() { Step::Again } else { Step::Perhaps }
            }
        }
    }

    async fn failed(&mut self, failure: Failure, shard: &mut u32, elsewhere: u64, key: i64) -> Step {
        let pause = |ms: u64| tokio::time::sleep(Duration::from_millis(ms));
        match failure {
            // A leader whose clock is wrong does not know what was executed long ago (R14); another may lead soon.
            Failure::Sql(error) if error.code == "08007" => {
                pause(50).await;
                Step::Perhaps
            }
            Failure::Sql(error) => {
                if !["40001", "53300", "53400", "57P01", "57P03"].contains(&error.code.as_ref()) {
                    let sentence = format!("a statement failed: {error}");
                    self.users.told.borrow_mut().trouble.get_or_insert(sentence);
                }
                pause(10).await;
                Step::Never
            }
            Failure::NotLeader { leader } => {
                let next = leader.filter(|leader| (1..=REPLICAS).contains(leader)).unwrap_or(elsewhere);
                self.leaders.insert(*shard, next);
                pause(5 + below(20)).await;
                Step::Again
            }
            Failure::Moved { to, .. } => {
                pause(5 + below(20)).await;
                *shard = to.map_or_else(|| self.route(key), |to| to.0);
                Step::Again
            }
            Failure::Busy { retry_after_ms, .. } => {
                pause(retry_after_ms.into()).await;
                if once_in(4) {
                    self.leaders.insert(*shard, elsewhere);
                }
                Step::Again
            }
            Failure::TooStale { .. } => {
                self.leaders.insert(*shard, elsewhere);
                pause(5 + below(20)).await;
                Step::Again
            }
            Failure::Overloaded { retry_after_ms } => {
                pause(retry_after_ms.into()).await;
                Step::Again
            }
            Failure::OutcomeUnknown { .. } => Step::Perhaps,
        }
    }

    fn request(id: TxnId, sql: &str, params: Vec<Value>) -> StatementRequest {
        StatementRequest {
            id,
            sql: sql.into(),
            params,
            clip: None,
            limit: None,
            read: ReadLevel::Linearizable,
            max_staleness_ms: None,
            durability: Durability::Disk,
        }
    }

    /// Runs a statement on `key`'s shard, under one id, until it is answered.
    pub async fn statement(&mut self, sql: &str, params: Vec<Value>, key: i64) -> Outcome {
        let id = self.id();
        self.statement_under(id, sql, params, key).await
    }

    async fn statement_under(&mut self, id: TxnId, sql: &str, params: Vec<Value>, key: i64) -> Outcome {
        let request = ShardRequest::Statement(Client::request(id, sql, params));
        let mut shard = self.route(key);
        let deadline_ms = process::now_ms() + GIVE_UP_MS;
        let mut perhaps = false;
        while process::now_ms() < deadline_ms {
            match self.ask(&mut shard, &request, key).await {
                Step::Answered(ShardReply::Rows(reply)) => return Outcome::Answered(reply),
                Step::Answered(_) | Step::Perhaps => perhaps = true,
                Step::Never if !perhaps => return Outcome::Refused,
                Step::Never | Step::Again => {}
            }
        }
        if perhaps { Outcome::Unknown } else { Outcome::Refused }
    }

    fn tell(&self, key: i64, how: &'static str, sent_ms: u64, seen: Option<i64>) {
        let answered_ms = process::now_ms();
        let adds = [ADDITION, TRANSFER].contains(&how);
        self.users.told.borrow_mut().history.push(Event { key, adds, how, sent_ms, answered_ms, seen });
    }

    /// Adds one to a counter; `false` if it was not answered.
    async fn add(&mut self, key: i64) -> bool {
        let sent_ms = process::now_ms();
        let id = self.id();
        match self.statement_under(id, ADD, vec![key.into()], key).await {
            Outcome::Answered(reply) => {
                let value = reply.rows.int(0, 0).unwrap_or(-1);
                self.tell(key, ADDITION, sent_ms, Some(value));
                if once_in(4) {
                    self.again(id, key, value).await;
                }
                true
            }
            Outcome::Unknown => {
                self.tell(key, ADDITION, sent_ms, None);
                false
            }
            Outcome::Refused => false,
        }
    }

    async fn something(&mut self) {
        let key = wanted();
        match below(20) {
            0..=7 => _ = self.add(key).await,
            8..=9 => _ = self.add(TALLY).await,
            10..=11 => self.read(key).await,
            12..=13 => self.scan(key / 10 * 10).await,
            14..=15 => self.look_twice(key).await,
            _ => self.transfer().await,
        }
    }

    /// Sends an addition that was answered once more, as a client does that has not got the answer: it must be told the same (R14).
    async fn again(&mut self, id: TxnId, key: i64, value: i64) {
        tokio::time::sleep(Duration::from_millis(below(AGAIN_MS))).await;
        if let Outcome::Answered(reply) = self.statement_under(id, ADD, vec![key.into()], key).await
            && reply.rows.int(0, 0) != Some(value)
        {
            let other = reply.rows.int(0, 0);
            let sentence = format!("an addition to {key} was answered {value}, and sent again {other:?}");
            self.users.told.borrow_mut().trouble.get_or_insert(sentence);
        }
    }

    async fn read(&mut self, key: i64) {
        let sent_ms = process::now_ms();
        if let Outcome::Answered(reply) = self.statement(READ, vec![key.into()], key).await {
            self.tell(key, "a read", sent_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
        }
    }

    /// Reads at any replica. It may be as old as it says (R17), by a clock that may drift by a twentieth.
    async fn local(&mut self, key: i64) {
        let sent_ms = process::now_ms();
        let shard = self.route(key);
        let replica = 1 + below(REPLICAS);
        let Some(address) = shard_info(shard).replicas.get(&replica).copied() else { return };
        let Some(connection) = self.connection(address).await else { return };
        let statement = StatementRequest {
            read: ReadLevel::Local,
            max_staleness_ms: once_in(2).then_some(100),
            ..Client::request(self.id(), READ, vec![key.into()])
        };
        let answer =
            connection.call_within(&ShardRequest::Statement(statement), Duration::from_millis(ANSWER_MS)).await;
        match answer {
            Ok(ShardReply::Rows(reply)) => {
                let Some(age_ms) = reply.staleness_ms else { return };
                let since_ms = sent_ms.saturating_sub(age_ms + age_ms / 20 + 1);
                self.tell(key, LOCAL, since_ms, Some(reply.rows.int(0, 0).unwrap_or(0)));
            }
            Ok(_) => {}
            Err(_) => _ = self.connections.remove(&address),
        }
    }

    /// Reads a counter twice in one transaction, with a pause: whatever is in the way of that, the second look is no older than its
    /// statement (R9, R22).
    async fn look_twice(&mut self, key: i64) {
        let mut shard = self.route(key);
        let transaction = self.id().sequence;
        let mut looks = Vec::new();
        for begin in [Some(TransactionOptions::default()), None] {
            let sent_ms = process::now_ms();
            let statement = Client::request(self.id(), READ, vec![key.into()]);
            let request = ShardRequest::InTransaction { transaction, begin, statement };
            let step = self.ask(&mut shard, &request, key).await;
            let Step::Answered(ShardReply::Rows(reply)) = step else { return self.broken_off(!looks.is_empty()) };
            looks.push((sent_ms, reply.rows.int(0, 0).unwrap_or(0)));
            tokio::time::sleep(Duration::from_millis(below(LOOK_MS))).await;
        }
        let key_of_table = Some((self.users.schema.id, self.key(key)));
        let id = self.id();
        let request = ShardRequest::Commit { transaction, id, key: key_of_table, durability: Durability::Disk };
        if let Step::Answered(ShardReply::Done) = self.ask(&mut shard, &request, key).await {
            for (sent_ms, seen) in looks {
                self.tell(key, "a look in a transaction", sent_ms, Some(seen));
            }
        } else {
            self.broken_off(true);
        }
    }

    /// A transaction came to nothing. If it has touched its range (all keys of one here lie in one), the range cannot have been fenced
    /// under it: the fence waits for it, or ends it first (R22).
    fn broken_off(&mut self, touched: bool) {
        if touched && self.trouble.contains("a range that the transaction uses has moved") {
            let sentence = format!("a range was fenced under a transaction that had touched it: {}", self.trouble);
            self.users.told.borrow_mut().trouble.get_or_insert(sentence);
        }
    }

    /// Reads ten counters at once.
    async fn scan(&mut self, from: i64) {
        let sent_ms = process::now_ms();
        let reply = self.statement(SCAN, vec![from.into(), (from + 10).into()], from).await;
        let Outcome::Answered(reply) = reply else { return };
        let rows: BTreeMap<i64, i64> = (0..reply.rows.count as usize)
            .filter_map(|row| Some((reply.rows.int(row, 0)?, reply.rows.int(row, 1)?)))
            .collect();
        for key in from..from + 10 {
            self.tell(key, "a scan", sent_ms, Some(rows.get(&key).copied().unwrap_or(0)));
        }
    }

    /// Moves money from one account to another and counts it, in one transaction.
    async fn transfer(&mut self) {
        let from = ACCOUNTS.start + below(4) as i64;
        let to = ACCOUNTS.start + (from - ACCOUNTS.start + 1 + below(3) as i64) % 4;
        let sent_ms = process::now_ms();
        let mut shard = self.route(from);
        let transaction = self.id().sequence;
        let mut tally = None;
        let steps =
            [(UPDATE, vec![from.into(), (-1).into()]), (UPDATE, vec![to.into(), 1.into()]), (ADD, vec![TALLY.into()])];
        for (n, (sql, params)) in steps.into_iter().enumerate() {
            let statement = Client::request(self.id(), sql, params);
            let begin = (n == 0).then(TransactionOptions::default);
            let request = ShardRequest::InTransaction { transaction, begin, statement };
            // Only the first may be sent anywhere: the others belong to its connection.
            let step = self.ask(&mut shard, &request, from).await;
            let Step::Answered(ShardReply::Rows(reply)) = step else { return self.broken_off(n > 0) };
            if reply.affected != 1 {
                let sentence = format!("a transfer changed {} rows of an account", reply.affected);
                self.users.told.borrow_mut().trouble.get_or_insert(sentence);
                return;
            }
            tally = reply.rows.int(0, 0);
        }
        let users = self.users.clone();
        let key = Some((users.schema.id, self.key(from)));
        let request = ShardRequest::Commit { transaction, id: self.id(), key, durability: Durability::Disk };
        let deadline_ms = process::now_ms() + GIVE_UP_MS;
        let mut perhaps = false;
        while process::now_ms() < deadline_ms {
            match self.ask(&mut shard, &request, from).await {
                Step::Answered(_) => return self.tell(TALLY, TRANSFER, sent_ms, tally),
                Step::Perhaps => perhaps = true,
                // The shard says so after it has looked in its retry window.
                Step::Never => return self.broken_off(true),
                Step::Again => {}
            }
        }
        if perhaps {
            self.tell(TALLY, TRANSFER, sent_ms, None);
        }
    }

    /// What the leader of a shard says about itself.
    async fn leader_of(&mut self, shard: u32) -> Inspection {
        loop {
            for (_, address) in shard_info(shard).replicas {
                let Some(connection) = self.connection(address).await else { continue };
                let asked = connection.call_within(&ShardRequest::Inspect, Duration::from_millis(ANSWER_MS)).await;
                if let Ok(ShardReply::Inspect(inspection)) = asked
                    && inspection.leads
                {
                    return *inspection;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
