//! [`ReplicaHandles`]: what the parts of a replica share during one start of PostgreSQL.

use crate::error::ApplyError;
use crate::leader::latches::LatchManager;
use crate::postgres::Connector;
use crate::progress::Progress;
use crate::state_machine::{MultiShardTransactions, RetryWindow, ShardState};
use crate::storage::Snapshots;
use evenkeel_replicated_log::LogHandle;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{mpsc, watch};

/// The latest state machine, for readers beside the applier.
pub type SharedState = Arc<RwLock<Arc<ShardState>>>;

/// Cheap to clone: clones share everything.
#[derive(Clone)]
pub struct ReplicaHandles {
    /// The log.
    pub log: LogHandle,
    /// The state machine as of the last applied entry.
    pub state: SharedState,
    /// The retry window.
    pub window: Arc<Mutex<RetryWindow>>,
    /// The transactions over several shards, as of the last applied entry.
    pub transactions: Arc<Mutex<MultiShardTransactions>>,
    /// The last position at which ownership changed; set before the state machine shows it.
    pub owned_changed: Arc<AtomicU64>,
    /// How far PostgreSQL has followed.
    pub progress: Arc<Progress>,
    /// Which statements may touch which keys.
    pub latches: Arc<LatchManager>,
    /// Opens sessions with PostgreSQL.
    pub connector: Connector,
    /// Sessions for snapshots of PostgreSQL.
    pub snapshots: Snapshots,
    /// Whether PostgreSQL has all rows: not while the replica is being re-seeded.
    pub whole: Arc<watch::Sender<bool>>,
    /// Reports that the leadership must end and PostgreSQL be opened or made again (R1), with the
    /// reason.
    pub broken: mpsc::UnboundedSender<ApplyError>,
}

impl ReplicaHandles {
    /// The latest state machine.
    pub fn state(&self) -> Arc<ShardState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The version of the schema that PostgreSQL holds.
    pub fn schema_version(&self) -> u64 {
        self.connector.schema_version()
    }

    /// Whether PostgreSQL has all rows.
    pub fn is_whole(&self) -> bool {
        *self.whole.borrow()
    }

    /// The transactions over several shards.
    pub fn transactions(&self) -> MutexGuard<'_, MultiShardTransactions> {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The retry window.
    pub fn window(&self) -> MutexGuard<'_, RetryWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
