//! Sessions for snapshots, kept ready.
//!
//! Opening a session costs PostgreSQL a process, which on a busy machine takes tens of
//! milliseconds. A copy and a clean-up take one for as long as they go on, and a count of rows now
//! and then. So sessions are used again. A session that lies here holds no transaction, so no dead
//! rows are kept for it. The owner is one start of PostgreSQL.

use super::StoreError;
use super::snapshot::{IdleSession, PinnedSnapshot};
use crate::postgres::Connector;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most sessions that are kept ready.
const MAX_IDLE: usize = 4;

/// See the module.
#[derive(Clone)]
pub struct Snapshots {
    connector: Connector,
    idle: Arc<Mutex<Vec<IdleSession>>>,
    /// Counts schema changes: what a session has prepared before one is of no use behind it.
    generation: Arc<AtomicU64>,
}

impl Snapshots {
    /// None is ready yet.
    pub fn new(connector: Connector) -> Snapshots {
        Snapshots { connector, idle: Arc::default(), generation: Arc::default() }
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<IdleSession>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot of now.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::open`].
    pub async fn take(&self) -> Result<PinnedSnapshot, StoreError> {
        let generation = self.generation.load(Ordering::SeqCst);
        let next = || self.sessions().pop();
        while let Some(session) = next() {
            // A lost session says nothing about the next one.
            if session.generation() == generation
                && let Ok(snapshot) = session.pin().await
            {
                return Ok(snapshot);
            }
        }
        Ok(PinnedSnapshot::open(&self.connector).await?.of_generation(generation))
    }

    /// The schema has changed: sessions that are open are not used again.
    pub fn schema_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.sessions().clear();
    }

    /// Takes back a snapshot that is no longer read. A snapshot that is dropped instead is closed.
    pub async fn give_back(&self, snapshot: PinnedSnapshot) {
        if let Ok(session) = snapshot.unpin().await {
            let mut sessions = self.sessions();
            if sessions.len() < MAX_IDLE {
                sessions.push(session);
            }
        }
    }
}

#[cfg(test)]
impl Snapshots {
    /// Sessions that lie here.
    pub fn idle(&self) -> usize {
        self.sessions().len()
    }
}
