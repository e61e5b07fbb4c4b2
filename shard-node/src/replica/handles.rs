//! [`ReplicaHandles`]: what the parts of a replica share during one start of PostgreSQL.

use crate::error::ApplyError;
use crate::leader::admission::Admission;
use crate::postgres::Connector;
use crate::progress::Progress;
use crate::state_machine::{RetryWindow, ShardState};
use crate::storage::Snapshots;
use evenkeel_replicated_log::LogHandle;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{mpsc, watch};

/// The latest state machine, for readers beside the applier that folds it.
pub type SharedState = Arc<RwLock<Arc<ShardState>>>;

/// What a leadership shares with the rest of the replica.
#[derive(Clone)]
pub struct ReplicaHandles {
    /// The log.
    pub log: LogHandle,
    /// What this replica knows of its log's meaning, as of what it has folded.
    pub state: SharedState,
    /// The retry window.
    pub window: Arc<Mutex<RetryWindow>>,
    /// The last position at which what is owned changed; set before the state machine shows it.
    pub owned_changed: Arc<AtomicU64>,
    /// How far PostgreSQL has followed.
    pub progress: Arc<Progress>,
    /// Who may touch which keys.
    pub admission: Arc<Admission>,
    /// Ways into PostgreSQL.
    pub connector: Connector,
    /// Sessions for snapshots of it.
    pub snapshots: Snapshots,
    /// Whether PostgreSQL has all rows: not while the replica is being re-seeded.
    pub whole: Arc<watch::Sender<bool>>,
    /// Says that the leadership must end and PostgreSQL be opened again (R1), or made again, and why.
    pub broken: mpsc::UnboundedSender<ApplyError>,
}

impl ReplicaHandles {
    /// The latest state machine.
    pub fn state(&self) -> Arc<ShardState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether PostgreSQL has all rows.
    pub fn is_whole(&self) -> bool {
        *self.whole.borrow()
    }

    /// The retry window.
    pub fn window(&self) -> MutexGuard<'_, RetryWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
