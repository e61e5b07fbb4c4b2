//! [`ReplicaProcess`]: what a replica's process owns for as long as it lives.

use super::handles::ReplicaHandles;
use crate::apply::ApplierRequest;
use crate::config::Config;
use crate::leader::Leader;
use crate::local_reads::LocalReads;
use crate::migration::fence::FenceTries;
use crate::migration::source::Copies;
use crate::move_observations::MoveObservations;
use crate::scrub::Scrub;
use crate::state_transfer::Pacer;
use evenkeel_protocol::Failure;
use evenkeel_replicated_log::{LogHandle, Role};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a statement waits for a leadership that is about to begin here, in milliseconds.
const READY_MS: u64 = 500;

/// One start of PostgreSQL, as the service sees it.
#[derive(Clone)]
pub struct ServerStart {
    /// What the replica's parts share.
    pub handles: ReplicaHandles,
    /// The way to the applier.
    pub requests: mpsc::Sender<ApplierRequest>,
    /// The leadership that serves, if any.
    pub leading: watch::Receiver<Option<Arc<Leader>>>,
    /// Reads at level `local`.
    pub local: Arc<LocalReads>,
    /// The server's process.
    pub postgres_pid: Option<u32>,
}

/// A replica.
pub struct ReplicaProcess {
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its log.
    pub log: LogHandle,
    /// What this replica has observed of moves.
    pub observations: Arc<MoveObservations>,
    /// Comparisons with the other replicas.
    pub scrub: Arc<Scrub>,
    /// Copies that it streams.
    pub copies: Copies,
    /// Fences tried in vain.
    pub fences: FenceTries,
    /// Bytes of rows taken from peers since the process began.
    pub seeded_bytes: Arc<AtomicU64>,
    /// How fast rows are given to a replica that is re-seeded.
    pub pacer: Pacer,
    /// The incarnation; `None` while PostgreSQL starts.
    pub current: watch::Sender<Option<ServerStart>>,
}

impl ReplicaProcess {
    /// The present start of PostgreSQL; `None` while it starts.
    pub fn current(&self) -> Option<ServerStart> {
        self.current.borrow().clone()
    }

    /// The same, if no rows are missing.
    pub fn whole(&self) -> Option<ServerStart> {
        self.current().filter(|start| start.handles.is_whole())
    }

    /// The leadership that serves, or where to go instead.
    pub fn leader(&self) -> Result<Arc<Leader>, Failure> {
        let serving = self.current().and_then(|start| start.leading.borrow().clone());
        if let Some(leader) = serving.filter(|leader| !leader.leadership.has_ended()) {
            return Ok(leader);
        }
        Err(match &*self.log.role().borrow() {
            // Elected, and not whole yet (invariant 4).
            Role::Leader { .. } => {
                Failure::Busy { reason: "the new leader is getting ready".into(), retry_after_ms: 5 }
            }
            Role::Follower { leader } | Role::Behind { leader, .. } => {
                Failure::NotLeader { leader: leader.map(|l| l.0).filter(|l| *l != self.config.replica) }
            }
        })
    }

    /// The same for statements: waits a little for a leadership that is about to begin here, so
    /// that clients that were sent on to the new leader need not ask again and again.
    pub async fn leader_soon(&self) -> Result<Arc<Leader>, Failure> {
        let soon = async {
            let mut role = self.log.role();
            let mut current = self.current.subscribe();
            while matches!(*role.borrow_and_update(), Role::Leader { .. }) {
                let Some(mut leading) = current.borrow_and_update().as_ref().map(|c| c.leading.clone()) else { break };
                if leading.borrow_and_update().as_ref().is_some_and(|leader| !leader.leadership.has_ended()) {
                    break;
                }
                // Whichever changes, the next look tells; the end of a sender is the end of this
                // replica.
                let changed = tokio::select! {
                    changed = role.changed() => changed.is_ok(),
                    changed = current.changed() => changed.is_ok(),
                    changed = leading.changed() => changed.is_ok(),
                };
                if !changed {
                    break;
                }
            }
        };
        if self.leader().is_err() {
            // If the time is over, `leader` gives the answer.
            let _ = evenkeel_host::timeout(Duration::from_millis(READY_MS), soon).await;
        }
        self.leader()
    }

    /// Ends the leadership that serves, if any.
    pub(super) fn end_leadership(&self) {
        if let Some(start) = self.current.send_replace(None)
            && let Some(leader) = &*start.leading.borrow()
        {
            leader.leadership.end();
        }
    }
}
