//! The handles of one replica: what its event loop shares with REST, RPC and simulations.

use super::leader_state::LeaderState;
use super::membership;
use super::message::{LoopMessage, ProposeFailure};
use super::shard_calls::ShardCalls;
use crate::config::Config;
use crate::coordination::limits::MAX_WRITES;
use crate::routing_view::RoutingView;
use crate::snapshot::{Snapshot, SnapshotFile};
use crate::state::{Command, Effect, PlacementState};
use evenkeel_protocol::ShardId;
use evenkeel_replicated_log::{LogHandle, LogIndex, Role, Term};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// The state as of a position in the log.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The state.
    pub state: PlacementState,
    /// The last position applied.
    pub index: LogIndex,
    /// The term in force there.
    pub term: Term,
}

/// The handles of one replica.
pub struct ReplicaHandles {
    /// The configuration.
    pub config: Config,
    /// The log.
    pub log: LogHandle,
    /// Connections to the shards' replicas.
    pub calls: ShardCalls,
    pub(super) snapshots: Arc<SnapshotFile>,
    applied: RwLock<Applied>,
    view: RwLock<Arc<RoutingView>>,
    leading: Mutex<Option<LeaderState>>,
    changed: watch::Sender<u64>,
    routes_changed: watch::Sender<()>,
    coordination_changed: watch::Sender<u64>,
    stopped: watch::Receiver<bool>,
    pub(super) messages: mpsc::Sender<LoopMessage>,
    /// Limits the writes to the coordination store that are under way.
    pub(crate) coordination_writes: Semaphore,
}

impl ReplicaHandles {
    pub(super) fn new(
        config: Config,
        snapshot: Snapshot,
        log: LogHandle,
        messages: mpsc::Sender<LoopMessage>,
        stopped: watch::Receiver<bool>,
    ) -> ReplicaHandles {
        let view = Arc::new(RoutingView::new(&snapshot.state, None));
        let Snapshot { index, term, state } = snapshot;
        let revision = state.kv.revision();
        ReplicaHandles {
            snapshots: Arc::new(SnapshotFile::new(config.data_dir.clone(), index)),
            config,
            log,
            calls: ShardCalls::default(),
            applied: RwLock::new(Applied { state, index, term }),
            view: RwLock::new(view),
            leading: Mutex::new(None),
            changed: watch::Sender::new(0),
            routes_changed: watch::Sender::new(()),
            coordination_changed: watch::Sender::new(revision),
            stopped,
            messages,
            coordination_writes: Semaphore::new(MAX_WRITES),
        }
    }

    /// The state, for reading. Do not hold it across an `await`: the event loop waits for it.
    pub fn applied(&self) -> RwLockReadGuard<'_, Applied> {
        self.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn applied_mut(&self) -> RwLockWriteGuard<'_, Applied> {
        self.applied.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routing table in the form in which REST serves it.
    pub fn view(&self) -> Arc<RoutingView> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The leader's memory. `None` on a replica that does not lead, or does not serve as leader
    /// yet. Lock it before [`ReplicaHandles::applied`] if you need both.
    pub fn leading(&self) -> MutexGuard<'_, Option<LeaderState>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the leadership of this replica at once.
    pub fn end_leadership(&self) {
        if self.leading().take().is_some() {
            self.view().leaders.clear();
        }
    }

    /// The leader's number, if a leader is known. This replica names itself only once it serves.
    pub fn leader(&self) -> Option<u64> {
        match &*self.log.role().borrow() {
            Role::Leader { .. } => self.leading().is_some().then_some(self.config.replica),
            Role::Follower { leader } | Role::Behind { leader, .. } => leader.map(|id| id.0),
        }
    }

    /// The replicas' RPC addresses by number, of the newest membership known.
    pub fn rpc_addresses(&self) -> BTreeMap<u64, SocketAddr> {
        membership::contacts(&self.log.membership().borrow(), membership::RPC)
    }

    /// The replicas' REST addresses by number, of the newest membership known.
    pub fn rest_addresses(&self) -> BTreeMap<u64, SocketAddr> {
        membership::contacts(&self.log.membership().borrow(), membership::REST)
    }

    /// Publishes the applied state: a new routing view if routes changed, and a notification to all
    /// that wait for a change.
    pub(super) fn publish(&self) {
        let before = self.view();
        let (next, now) = {
            let applied = self.applied();
            let routes = applied.state.version != before.version;
            (routes.then(|| RoutingView::new(&applied.state, Some(&before))), applied.state.kv.revision())
        };
        if let Some(next) = next {
            *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
            self.routes_changed.send_replace(());
        }
        self.coordination_changed.send_if_modified(|revision| std::mem::replace(revision, now) != now);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Changes with every applied batch.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes when the routing table has a new version, and only then: thousands of watches must
    /// not wake for every write to the coordination store.
    pub fn routes_changes(&self) -> watch::Receiver<()> {
        self.routes_changed.subscribe()
    }

    /// The revision of the coordination store. Changes with each new revision.
    pub fn coordination_changes(&self) -> watch::Receiver<u64> {
        self.coordination_changed.subscribe()
    }

    /// Becomes true when the replica shuts down.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.clone()
    }

    /// Passes a command to the event loop and waits for its result, without a time limit.
    pub async fn propose(&self, command: Command) -> Result<Effect, ProposeFailure> {
        let (waiter, result) = oneshot::channel();
        if self.messages.send(LoopMessage::Propose(command, waiter)).await.is_err() {
            return Err(ProposeFailure::NotLeader);
        }
        result.await.unwrap_or(Err(ProposeFailure::Unknown))
    }

    /// The replicas that lead shards, of those shards that have reported in this leadership.
    pub fn shard_leaders(&self) -> BTreeMap<ShardId, u64> {
        let leading = self.leading();
        let shards = leading.iter().flat_map(|leading| &leading.balancer.load.shards);
        shards.map(|(id, view)| (*id, view.report.leader)).collect()
    }
}
