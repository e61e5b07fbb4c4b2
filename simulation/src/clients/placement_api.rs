//! The placement driver's API as the simulated clients reach it: what REST does over HTTP, done
//! with the replicas of the run.
//!
//! HTTP does not go through the simulated network. The way there and back takes time all the same,
//! and an answer or a watch may be lost on it. Requests go to the replicas that a client knows: the
//! configured ones and those that it has learnt, one after the other until one answers.

use crate::process::{below, once_in};
use crate::registry::Registry;
use crate::topology::REPLICAS;
use evenkeel_client::placement_driver::{Api, ApiError, Events, SseEvent};
use evenkeel_placement_driver::replica::{ProposeFailure, ReplicaHandles};
use evenkeel_placement_driver::state::{Command, Effect};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{
    CreateTableBody, MemberBody, MembersBody, Problem, RoutesBody, SchemaChangeBody, SchemaChangesBody,
};
use evenkeel_protocol::routing::RouteVersion;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// How long the way to a placement driver takes, and the way back, in milliseconds, at most.
const WAY_MS: u64 = 8;
/// One answer or event in this many is lost.
const LOST_IN: u64 = 30;
/// One watch event in this many does not come, and the client notices after this many milliseconds
/// at most: meanwhile its routing table gets old.
const SILENT_IN: u64 = 10;
const SILENCE_MS: u64 = 3_000;
/// How long a replica that is gone keeps a client waiting, in milliseconds, at most.
const GONE_MS: u64 = 50;
/// The shard that new tables are placed on.
const PLACED_ON: ShardId = ShardId(1);

/// See the module.
pub(super) struct PlacementApi {
    registry: Registry,
    known: Mutex<KnownReplicas>,
}

/// The replicas that a client knows.
struct KnownReplicas {
    /// The configuration of the placement driver's members that the learnt ones belong to.
    configuration: u32,
    learnt: BTreeSet<u64>,
    /// The place of the replica that is asked first; it may be larger than their number.
    first: usize,
}

impl KnownReplicas {
    /// All of them, the one to ask first in front.
    fn in_turn(&self) -> Vec<u64> {
        let mut all: Vec<u64> = (1..=REPLICAS).chain(self.learnt.iter().copied()).collect();
        let first = self.first % all.len();
        all.rotate_left(first);
        all
    }
}

async fn pause(most_ms: u64) {
    evenkeel_host::sleep(Duration::from_millis(below(most_ms))).await;
}

fn unreachable(reason: &str, maybe_done: bool) -> ApiError {
    ApiError::Unreachable { reason: reason.into(), maybe_done }
}

impl PlacementApi {
    /// The API of a client that is configured with the replicas that the run begins with.
    pub fn new(registry: Registry) -> PlacementApi {
        let known = KnownReplicas { configuration: 0, learnt: BTreeSet::new(), first: below(REPLICAS) as usize };
        PlacementApi { registry, known: Mutex::new(known) }
    }

    fn known(&self) -> MutexGuard<'_, KnownReplicas> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first known replica that runs.
    async fn replica(&self) -> Result<Arc<ReplicaHandles>, ApiError> {
        let in_turn = self.known().in_turn();
        for (turn, replica) in in_turn.into_iter().enumerate() {
            pause(WAY_MS).await;
            let handles = self.registry.read().get(&replica).cloned();
            if let Some(handles) = handles {
                self.known().first += turn;
                return Ok(handles);
            }
            pause(GONE_MS).await;
        }
        Err(unreachable("no known replica answers", false))
    }

    /// The way back of an answer.
    async fn answered<T>(&self, by: &Arc<ReplicaHandles>, answer: T) -> Result<T, ApiError> {
        pause(WAY_MS).await;
        if once_in(LOST_IN) || !self.registry.runs(by) {
            return Err(unreachable("the answer was lost", true));
        }
        Ok(answer)
    }

    /// The answer of the first replica whose answer arrives.
    async fn fetch_routes(&self) -> Result<RoutesBody, ApiError> {
        let mut tries = self.known().in_turn().len();
        loop {
            let replica = self.replica().await?;
            let body = replica.view().complete_body(None);
            tries -= 1;
            match self.answered(&replica, body).await {
                Err(_) if tries > 0 => self.pass_over(),
                answered => return answered,
            }
        }
    }

    async fn open_watch(&self, last_event_id: &str) -> Result<Box<dyn Events>, ApiError> {
        let sent = last_event_id.parse::<RouteVersion>();
        let sent = sent.map_err(|reason| ApiError::Refused(problem(400, "bad-request", reason)))?;
        let replica = self.replica().await?;
        let mut members = replica.log.membership();
        members.mark_changed();
        let mut routes = replica.routes_changes();
        routes.mark_changed();
        let stopped = replica.stopped();
        let watch = Watch { registry: self.registry.clone(), replica: replica.clone(), routes, members, stopped, sent };
        self.answered(&replica, Box::new(watch) as Box<dyn Events>).await
    }

    /// Followers redirect to the leader.
    async fn create(&self, body: &CreateTableBody) -> Result<(), ApiError> {
        let asked = self.replica().await?;
        let leader = asked.leader().and_then(|leader| self.registry.read().get(&leader).cloned());
        let leader = leader.ok_or_else(|| unreachable("nobody leads", false))?;
        let CreateTableBody { schema, shard, if_not_exists } = body.clone();
        let name = schema.name.clone();
        let command = Command::CreateTable { schema, shard: shard.or(Some(PLACED_ON)), if_not_exists };
        let mut changes = leader.changes();
        match leader.propose(command).await {
            Ok(Effect::TableReady(_) | Effect::Begun(_)) => {}
            Ok(other) => return Err(unreachable(&format!("the command had the effect {other:?}"), true)),
            Err(ProposeFailure::Refused(refusal)) => {
                return Err(ApiError::Refused(problem(409, "table-exists", refusal.to_string())));
            }
            Err(ProposeFailure::Unknown) => return Err(unreachable("the outcome is not known", true)),
            Err(failure) => return Err(unreachable(&failure.to_string(), false)),
        }
        while leader.view().table(&name).is_none() {
            changes.changed().await.map_err(|_| unreachable("it has ended", true))?;
        }
        self.answered(&leader, ()).await
    }
}

fn problem(status: u16, code: &str, detail: String) -> Problem {
    let kind = format!("urn:evenkeel:problem:{code}");
    Problem { kind, code: code.into(), title: code.into(), status, detail }
}

impl Api for PlacementApi {
    fn routes(&self) -> BoxFuture<'_, Result<RoutesBody, ApiError>> {
        self.fetch_routes().boxed()
    }

    fn watch<'a>(&'a self, last_event_id: &'a str) -> BoxFuture<'a, Result<Box<dyn Events>, ApiError>> {
        self.open_watch(last_event_id).boxed()
    }

    fn create_table<'a>(&'a self, body: &'a CreateTableBody, timeout: Duration) -> BoxFuture<'a, Result<(), ApiError>> {
        async move {
            let created = evenkeel_host::timeout(timeout, self.create(body)).await;
            created.unwrap_or_else(|_| Err(unreachable("no answer in time", true)))
        }
        .boxed()
    }

    // The simulated clients change no schema: its changes have tests on real shards.
    fn schema_after(&self, _version: u64) -> BoxFuture<'_, Result<SchemaChangesBody, ApiError>> {
        async { Err(unreachable("the simulation has no schema changes", false)) }.boxed()
    }

    fn change_schema<'a>(
        &'a self,
        _body: &'a SchemaChangeBody,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<SchemaChangesBody, ApiError>> {
        async { Err(unreachable("the simulation has no schema changes", false)) }.boxed()
    }

    fn learn(&self, members: &MembersBody) {
        let mut known = self.known();
        if members.epoch >= known.configuration {
            known.configuration = members.epoch;
            known.learnt = members.members.iter().map(|member| member.replica).filter(|id| *id > REPLICAS).collect();
        }
    }

    fn pass_over(&self) {
        self.known().first += 1;
    }

    fn endpoints(&self) -> Arc<[String]> {
        self.known().in_turn().into_iter().map(|replica| format!("http://placement-driver-{replica}")).collect()
    }
}

/// A watch, as the placement driver serves it: all changes since the version sent last, in one
/// event.
struct Watch {
    registry: Registry,
    replica: Arc<ReplicaHandles>,
    routes: Receiver<()>,
    members: Receiver<evenkeel_replicated_log::Membership>,
    stopped: Receiver<bool>,
    sent: RouteVersion,
}

impl Watch {
    /// The event that is due, if one is.
    fn due(&mut self) -> Result<Option<SseEvent>, String> {
        if self.members.has_changed().map_err(|error| error.to_string())? {
            let body = members_body(&self.replica, self.members.borrow_and_update().configuration);
            let data = serde_json::to_string(&body).map_err(|error| error.to_string())?;
            return Ok(Some(SseEvent { id: None, name: "members".into(), data }));
        }
        self.routes.borrow_and_update();
        let view = self.replica.view();
        // A replica that is behind the one before reaches that version later.
        let ahead = self.sent.incarnation == view.version.incarnation && self.sent >= view.version;
        if ahead {
            return Ok(None);
        }
        let data = String::from_utf8_lossy(&view.since_json(self.sent)).into_owned();
        self.sent = view.version;
        Ok(Some(SseEvent { id: Some(view.version_text.clone()), name: String::new(), data }))
    }

    async fn next_event(&mut self) -> Result<SseEvent, String> {
        let ended = || "the placement driver closed it".to_string();
        loop {
            if let Some(event) = self.due()? {
                pause(WAY_MS).await;
                if once_in(SILENT_IN) {
                    pause(SILENCE_MS).await;
                    return Err("nothing has come for long".into());
                }
                if once_in(LOST_IN) || !self.registry.runs(&self.replica) {
                    return Err("the connection was lost".into());
                }
                return Ok(event);
            }
            tokio::select! {
                changed = self.routes.changed() => changed.map_err(|_| ended())?,
                changed = self.members.changed() => {
                    changed.map_err(|_| ended())?;
                    self.members.mark_changed();
                }
                _ = self.stopped.changed() => return Err(ended()),
            }
        }
    }
}

impl Events for Watch {
    fn next(&mut self) -> BoxFuture<'_, Result<SseEvent, String>> {
        self.next_event().boxed()
    }
}

fn members_body(replica: &ReplicaHandles, configuration: u32) -> MembersBody {
    let (rest, rpc) = (replica.rest_addresses(), replica.rpc_addresses());
    let membership = replica.log.membership();
    let membership = membership.borrow();
    let member =
        |id: u64, log| MemberBody { replica: id, rest: rest.get(&id).copied(), rpc: rpc.get(&id).copied(), log };
    let members = membership.members.iter().map(|(id, at)| member(id.0, at.log)).collect();
    MembersBody { epoch: configuration, leader: None, members }
}
