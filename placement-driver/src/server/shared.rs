//! What the node's task and the servers share.

use crate::balancer::{Balancer, Rejection};
use crate::config::Config;
use crate::coordination::MAX_WRITES;
use crate::operators::OperatorController;
use crate::rest::view::RoutingView;
use crate::server::{ShardCalls, members};
use crate::snapshot::{Snapshot, SnapshotFile};
use crate::state::{Command, Effect, PlacementState, Refusal};
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::shard::ControlReply;
use evenkeel_protocol::{Epoch, RangeId, ShardId};
use evenkeel_replicated_log::{LogHandle, LogIndex, Role, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Why a proposal brought no effect, by what must happen next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeFailure {
    /// Answer: it was applied and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Redirect: it did not happen here.
    #[error("this replica does not lead")]
    NotLeader,
    /// Retry: too much is waiting.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Look: it may have happened or not.
    #[error("what became of it is not known")]
    Unknown,
}

/// What the node is told.
pub(super) enum Message {
    /// A shard has reported; whether it was taken is answered.
    Report(Box<ShardReport>, oneshot::Sender<bool>),
    /// Somebody wants this done.
    Propose(Command, oneshot::Sender<Result<Effect, ProposeFailure>>),
    /// A shard has answered.
    Answered(crate::operators::CallName, Result<ControlReply, String>),
    /// A shard has said where to split a range that is too large, or has not.
    Sized(RangeId, Epoch, Result<ControlReply, String>),
    /// A snapshot is durable, or could not be written.
    Written(Result<LogIndex, String>),
    /// Whether a majority has confirmed the leadership of this term.
    Confirmed(Term, bool),
    /// Another replica's state is durable here, or could not be had.
    Fetched(Result<Box<Snapshot>, String>),
}

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

impl Leading {
    /// The state machine's time now, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        let (round_ms, at) = self.round;
        round_ms + at.elapsed().as_millis() as u64
    }
}

/// What a leader has beyond the state, for as long as its leadership lasts.
#[derive(Debug)]
pub struct Leading {
    /// Its term.
    pub term: Term,
    /// The shards that were registered when it began.
    pub first: BTreeSet<ShardId>,
    /// The balancer, with the load model.
    pub balancer: Balancer,
    /// The operator controller.
    pub controller: OperatorController,
    /// Why the balancer did no more in its last round. Shared with whoever shows it: there can be one for each range.
    pub rejections: Arc<Vec<Rejection>>,
    /// What shards hold and the state does not know, and what is waited for after a restoration (R30): one sentence each.
    pub missing: Vec<String>,
    /// The shards whose clocks are off, as last logged.
    pub clocks_off: BTreeSet<ShardId>,
    /// The balancer's proposals that have not come out of the log yet: it plans no further before it has seen them.
    pub deciding: Vec<u64>,
    /// When something that is no operator's step was last proposed, in milliseconds of the state machine's time.
    pub housekept_ms: u64,
    /// How many of the proposals that are no operator's step were refused, one after the other: each makes the next wait longer.
    pub refused: u32,
    /// The state machine's time at the last round, in milliseconds, and when that was.
    pub round: (u64, Instant),
}

/// Shared by the node and the servers of one replica.
pub struct Shared {
    /// Its configuration.
    pub config: Config,
    /// Its log.
    pub log: LogHandle,
    /// Its connections to shards.
    pub calls: ShardCalls,
    pub(super) snapshots: Arc<SnapshotFile>,
    applied: RwLock<Applied>,
    view: RwLock<Arc<RoutingView>>,
    leading: Mutex<Option<Leading>>,
    changed: watch::Sender<u64>,
    routes_changed: watch::Sender<()>,
    kv_changed: watch::Sender<u64>,
    stopped: watch::Receiver<bool>,
    pub(super) messages: mpsc::Sender<Message>,
    /// Writes to the coordination store that may begin.
    pub(crate) kv_writes: Semaphore,
}

impl Shared {
    pub(super) fn new(
        config: Config,
        snapshot: Snapshot,
        log: LogHandle,
        messages: mpsc::Sender<Message>,
        stopped: watch::Receiver<bool>,
    ) -> Shared {
        let view = Arc::new(RoutingView::new(&snapshot.state, None));
        let Snapshot { index, term, state } = snapshot;
        let kv_revision = state.kv.revision();
        Shared {
            snapshots: Arc::new(SnapshotFile::new(config.data_dir.clone(), index)),
            config,
            log,
            calls: ShardCalls::default(),
            applied: RwLock::new(Applied { state, index, term }),
            view: RwLock::new(view),
            leading: Mutex::new(None),
            changed: watch::Sender::new(0),
            routes_changed: watch::Sender::new(()),
            kv_changed: watch::Sender::new(kv_revision),
            stopped,
            messages,
            kv_writes: Semaphore::new(MAX_WRITES),
        }
    }

    /// The state, for reading. Never held across an await: the node waits for it.
    pub fn applied(&self) -> RwLockReadGuard<'_, Applied> {
        self.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn applied_mut(&self) -> RwLockWriteGuard<'_, Applied> {
        self.applied.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routing table as it is served.
    pub fn view(&self) -> Arc<RoutingView> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the leader knows; `None` on a replica that does not lead, or does not serve as leader yet.
    pub fn leading(&self) -> MutexGuard<'_, Option<Leading>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the leadership here at once.
    pub fn end_leadership(&self) {
        if self.leading().take().is_some() {
            self.view().leaders.clear();
        }
    }

    /// The leader's number, if one is known. This replica's own only once it serves.
    pub fn leader(&self) -> Option<u64> {
        match &*self.log.role().borrow() {
            Role::Leader { .. } => self.leading().is_some().then_some(self.config.replica),
            Role::Follower { leader } | Role::Behind { leader, .. } => leader.map(|id| id.0),
        }
    }

    /// Where the replicas listen for reports, by number: those of the newest membership known.
    pub fn rpc_addresses(&self) -> BTreeMap<u64, SocketAddr> {
        members::contacts(&self.log.membership().borrow(), members::RPC)
    }

    /// Where the replicas listen for REST, by number.
    pub fn rest_addresses(&self) -> BTreeMap<u64, SocketAddr> {
        members::contacts(&self.log.membership().borrow(), members::REST)
    }

    /// Publishes what has been applied: a new view if routes changed, and a word to everyone who waits for a change.
    pub(super) fn publish(&self) {
        let before = self.view();
        let (next, kv_revision) = {
            let applied = self.applied();
            let routes = applied.state.version != before.version;
            (routes.then(|| RoutingView::new(&applied.state, Some(&before))), applied.state.kv.revision())
        };
        if let Some(next) = next {
            *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
            self.routes_changed.send_replace(());
        }
        self.kv_changed.send_if_modified(|revision| std::mem::replace(revision, kv_revision) != kv_revision);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Ticks with every batch applied.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Ticks when the routing table has a new version, and for nothing else: thousands of watches must not wake for every write to the
    /// coordination store.
    pub fn routes_changes(&self) -> watch::Receiver<()> {
        self.routes_changed.subscribe()
    }

    /// The revision of the coordination store, as it changes.
    pub fn kv_changes(&self) -> watch::Receiver<u64> {
        self.kv_changed.subscribe()
    }

    /// Becomes true when the replica shuts down.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.clone()
    }

    /// Gives a command to the node and waits for what becomes of it.
    pub async fn propose(&self, command: Command) -> Result<Effect, ProposeFailure> {
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Propose(command, reply)).await.is_err() {
            return Err(ProposeFailure::NotLeader);
        }
        answer.await.unwrap_or(Err(ProposeFailure::Unknown))
    }

    /// The replicas that lead shards, as far as they have reported in this leadership.
    pub fn shard_leaders(&self) -> BTreeMap<ShardId, u64> {
        let leading = self.leading();
        let shards = leading.iter().flat_map(|leading| &leading.balancer.load.shards);
        shards.map(|(id, view)| (*id, view.report.leader)).collect()
    }
}
