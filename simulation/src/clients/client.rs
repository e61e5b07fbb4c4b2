//! A client: it finds the shard and its leader, follows redirections, and repeats a statement under
//! its id until it has an answer.

use super::users::Users;
use crate::history::events::{ADDITION, Denial, Event, ShardReplica, TRANSFER};
use crate::process::{self, below, once_in};
use evenkeel_protocol::shard::{
    Durability, Inspection, ReadLevel, ShardReply, ShardRequest, StatementReply, StatementRequest,
};
use evenkeel_protocol::{Failure, Key, KeyValue, ShardId, TxnId, Value};
use evenkeel_rpc::{Connection, ReplyStream, RpcError};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

/// How long an answer is waited for before it is asked elsewhere, in milliseconds.
pub(super) const ANSWER_MS: u64 = 700;
/// After this a client gives up, in milliseconds.
pub(super) const GIVE_UP_MS: u64 = 4_000;
/// How long connecting may take, in milliseconds.
const CONNECT_MS: u64 = 300;

/// The outcome of a statement.
pub(super) enum StatementOutcome {
    /// It was answered.
    Answered(StatementReply),
    /// It certainly did not happen.
    Refused,
    /// The outcome is unknown.
    Unknown,
}

/// The outcome of one request.
pub(super) enum Step<T = ShardReply> {
    Answered(T),
    /// It did not happen; try again.
    Again,
    /// It did not happen, and will not.
    Never,
    /// It may have happened.
    Perhaps,
}

pub(super) type ShardConnection = Connection<ShardRequest, ShardReply>;

/// One client.
pub struct SimulatedClient {
    pub(super) users: Users,
    number: u64,
    sequence: u64,
    connections: HashMap<SocketAddr, ShardConnection>,
    leaders: HashMap<u32, u64>,
    /// The replica that answered last.
    pub(super) by: Option<ShardReplica>,
    /// Why it was last refused.
    refused: Option<Failure>,
}

impl SimulatedClient {
    /// A client called `number`.
    pub fn new(users: Users, number: u64) -> SimulatedClient {
        let (connections, leaders) = (HashMap::new(), HashMap::new());
        SimulatedClient { users, number, sequence: 0, connections, leaders, by: None, refused: None }
    }

    /// Why it was last refused, for people.
    pub(super) fn trouble(&self) -> String {
        self.refused.as_ref().map_or_else(String::new, ToString::to_string)
    }

    /// Whether it was last refused with this code.
    pub(super) fn refused_with(&self, code: &str) -> bool {
        matches!(&self.refused, Some(Failure::Sql(error)) if error.code == code)
    }

    pub(super) fn id(&mut self) -> TxnId {
        self.sequence += 1;
        TxnId { client: self.number, sequence: self.sequence, first_sent_ms: evenkeel_host::wall_ms() }
    }

    pub(super) fn key(&self, id: i64) -> Key {
        self.users.schema.codec().encode(&[KeyValue::Int(id)]).unwrap_or(Key::MIN)
    }

    /// The shard of a key by the routing table of some placement driver.
    pub(super) fn route(&self, key: i64) -> u32 {
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

    pub(super) async fn connection(&mut self, address: SocketAddr) -> Option<ShardConnection> {
        if let Some(known) = self.connections.get(&address).filter(|connection| !connection.is_closed()) {
            return Some(known.clone());
        }
        let made = ShardConnection::connect(address, Duration::from_millis(CONNECT_MS)).await.ok()?;
        self.connections.insert(address, made.clone());
        Some(made)
    }

    /// A connection does not answer: the next request makes another.
    pub(super) fn leave(&mut self, address: SocketAddr) {
        self.connections.remove(&address);
    }

    /// The replica that is assumed to lead a shard.
    pub(super) fn leader_known(&mut self, shard: u32) -> u64 {
        let replicas = self.users.replicas(shard);
        *self.leaders.entry(shard).or_insert_with(|| after(below(replicas.len() as u64), &replicas))
    }

    /// The replica that is assumed to lead a shard, and a connection to it.
    pub(super) async fn leader_of(&mut self, shard: u32) -> Option<(ShardReplica, SocketAddr, ShardConnection)> {
        let replica = self.leader_known(shard);
        self.refused = None;
        let address = self.users.replicas(shard).get(&replica).copied();
        let connection = match address {
            Some(address) => self.connection(address).await.map(|connection| (address, connection)),
            None => None,
        };
        if connection.is_none() {
            self.try_after(shard, replica);
        }
        connection.map(|(address, connection)| ((shard, replica), address, connection))
    }

    /// Assumes that the next replica leads the shard.
    fn try_after(&mut self, shard: u32, replica: u64) {
        let next = after(replica, &self.users.replicas(shard));
        self.leaders.insert(shard, next);
    }

    /// Asks a shard once.
    pub(super) async fn ask(&mut self, shard: &mut u32, request: &ShardRequest, key: i64) -> Step {
        let Some((replica, address, connection)) = self.leader_of(*shard).await else { return Step::Again };
        let asked_ms = process::now_ms();
        match connection.call_within(request, Duration::from_millis(ANSWER_MS)).await {
            Ok(reply) => self.answered(replica, asked_ms, reply, shard, key).await,
            Err(error) => self.unanswered(replica, address, &error),
        }
    }

    /// Asks a shard once, for a reply now and another later.
    pub(super) async fn ask_early(
        &mut self,
        shard: &mut u32,
        request: &ShardRequest,
        key: i64,
    ) -> Step<(ShardReply, ReplyStream<ShardReply>)> {
        let Some((replica, address, connection)) = self.leader_of(*shard).await else { return Step::Again };
        let asked_ms = process::now_ms();
        let bound = Duration::from_millis(ANSWER_MS);
        let asked = async {
            let mut replies = connection.stream(request).await?;
            let first = replies.next().await.ok_or_else(|| RpcError::Lost("it has ended".into()))?;
            Ok((first, replies))
        };
        let asked = evenkeel_host::timeout(bound, asked).await;
        match asked.unwrap_or(Err(RpcError::TimedOut(ANSWER_MS))) {
            Ok((first, rest)) => match self.answered(replica, asked_ms, first, shard, key).await {
                Step::Answered(first) => Step::Answered((first, rest)),
                Step::Again => Step::Again,
                Step::Never => Step::Never,
                Step::Perhaps => Step::Perhaps,
            },
            Err(error) => match self.unanswered::<ShardReply>(replica, address, &error) {
                Step::Again => Step::Again,
                _ => Step::Perhaps,
            },
        }
    }

    pub(super) fn unanswered<T>(
        &mut self,
        (shard, replica): ShardReplica,
        address: SocketAddr,
        error: &RpcError,
    ) -> Step<T> {
        self.leave(address);
        self.try_after(shard, replica);
        if error.never_sent() { Step::Again } else { Step::Perhaps }
    }

    pub(super) async fn answered(
        &mut self,
        by: ShardReplica,
        asked_ms: u64,
        reply: ShardReply,
        shard: &mut u32,
        key: i64,
    ) -> Step {
        self.by = Some(by);
        let ShardReply::Failed(failure) = reply else { return Step::Answered(reply) };
        self.refused = Some(failure.clone());
        self.failed(failure, by, asked_ms, shard, key).await
    }

    async fn failed(&mut self, failure: Failure, by: ShardReplica, asked_ms: u64, shard: &mut u32, key: i64) -> Step {
        let pause = |ms: u64| evenkeel_host::sleep(Duration::from_millis(ms));
        match failure {
            // A leader whose clock is wrong does not know what was executed long ago (R14); another
            // may lead soon.
            Failure::Sql(error) if error.code == "08007" => {
                pause(50).await;
                Step::Perhaps
            }
            Failure::Sql(error) => {
                if !["40001", "53100", "53300", "53400", "57014", "57P01", "57P03"].contains(&error.code.as_ref()) {
                    self.users.history.borrow_mut().wrong(format!("a statement failed: {error}"));
                }
                pause(10).await;
                Step::Never
            }
            Failure::NotLeader { leader } => {
                self.denied(by, asked_ms);
                match leader.filter(|leader| self.users.replicas(*shard).contains_key(leader)) {
                    Some(leader) => _ = self.leaders.insert(*shard, leader),
                    None => self.try_after(*shard, by.1),
                }
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
                    self.try_after(*shard, by.1);
                }
                Step::Again
            }
            Failure::TooStale { .. } => {
                self.try_after(*shard, by.1);
                pause(5 + below(20)).await;
                Step::Again
            }
            Failure::Overloaded { retry_after_ms } => {
                pause(retry_after_ms.into()).await;
                Step::Again
            }
            Failure::SchemaChanged { .. } => Step::Again,
            Failure::OutcomeUnknown { .. } => Step::Perhaps,
        }
    }

    /// Records an operation.
    pub(super) fn record(&self, key: i64, how: &'static str, sent_ms: u64, seen: Option<i64>) {
        let answered_ms = process::now_ms();
        let adds = [ADDITION, TRANSFER].contains(&how);
        self.users.history.borrow_mut().events.push(Event { key, adds, how, sent_ms, answered_ms, seen, by: self.by });
    }

    /// A replica that was asked at `asked_ms` says that it does not lead.
    pub(super) fn denied(&self, by: ShardReplica, asked_ms: u64) {
        let denial = Denial { by, asked_ms, answered_ms: process::now_ms() };
        self.users.history.borrow_mut().denials.push(denial);
    }

    /// A statement with the strongest read and durability levels.
    pub(super) fn request(id: TxnId, sql: &str, params: Vec<Value>) -> StatementRequest {
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
    pub(super) async fn statement(&mut self, sql: &str, params: Vec<Value>, key: i64) -> StatementOutcome {
        let id = self.id();
        self.statement_under(id, sql, params, key).await
    }

    pub(super) async fn statement_under(
        &mut self,
        id: TxnId,
        sql: &str,
        params: Vec<Value>,
        key: i64,
    ) -> StatementOutcome {
        let request = ShardRequest::Statement(SimulatedClient::request(id, sql, params));
        let mut shard = self.route(key);
        let deadline_ms = process::now_ms() + GIVE_UP_MS;
        let mut perhaps = false;
        while process::now_ms() < deadline_ms {
            match self.ask(&mut shard, &request, key).await {
                Step::Answered(ShardReply::Rows(reply)) => return StatementOutcome::Answered(reply),
                Step::Answered(_) | Step::Perhaps => perhaps = true,
                Step::Never if !perhaps => return StatementOutcome::Refused,
                Step::Never | Step::Again => {}
            }
        }
        if perhaps { StatementOutcome::Unknown } else { StatementOutcome::Refused }
    }

    /// The state of a shard's leader.
    pub(super) async fn inspect_leader(&mut self, shard: u32) -> Inspection {
        loop {
            let members = self.users.membership.borrow().addresses(ShardId(shard));
            for address in members.into_values() {
                let Some(connection) = self.connection(address).await else { continue };
                let asked = connection.call_within(&ShardRequest::Inspect, Duration::from_millis(ANSWER_MS)).await;
                if let Ok(ShardReply::Inspect(inspection)) = asked
                    && inspection.leads
                {
                    return *inspection;
                }
            }
            evenkeel_host::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The replica after this one, in a circle.
fn after(replica: u64, all: &BTreeMap<u64, SocketAddr>) -> u64 {
    all.range(replica + 1..).chain(all).next().map_or(1, |(next, _)| *next)
}
