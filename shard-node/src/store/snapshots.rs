//! Sessions for snapshots, kept ready.
//!
//! Opening a session costs PostgreSQL a process, which on a busy machine takes tens of milliseconds. A move needs a snapshot at its switch,
//! while statements wait (R24: the adopted rows are looked at before anybody changes them), and its clean-up needs one for every
//! piece. So sessions are used again, and as many as moves will want are opened ahead and reserved for them. A session that lies here
//! holds no transaction, so no dead rows are kept for it. The owner is one start of PostgreSQL.

use super::errors::StoreError;
use super::snapshot::{IdleSession, PinnedSnapshot};
use crate::postgres::Connector;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most sessions that are kept ready.
const MAX_IDLE: usize = 4;

#[derive(Debug, Default)]
struct Inner {
    idle: Vec<IdleSession>,
    /// How many of them are not for everybody.
    reserved: usize,
    /// Sessions that are being opened ahead.
    opening: usize,
}

/// See the module.
#[derive(Clone)]
pub struct Snapshots {
    connector: Connector,
    inner: Arc<Mutex<Inner>>,
}

impl Snapshots {
    /// None is ready yet.
    pub fn new(connector: Connector) -> Snapshots {
        Snapshots { connector, inner: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `wanted` sessions for [`Snapshots::take_reserved`], as far as that many are kept, and has those that are missing opened
    /// in the background. A failure is not told: whoever takes meets it again.
    pub fn reserve(&self, wanted: usize) {
        let mut inner = self.inner();
        inner.reserved = wanted.min(MAX_IDLE);
        let missing = inner.reserved.saturating_sub(inner.idle.len() + inner.opening);
        inner.opening += missing;
        drop(inner);
        for _ in 0..missing {
            let snapshots = self.clone();
            tokio::spawn(async move {
                let opened = IdleSession::open(&snapshots.connector).await;
                let mut inner = snapshots.inner();
                inner.opening -= 1;
                match opened {
                    Ok(session) => inner.idle.push(session),
                    Err(error) => tracing::debug!(%error, "no session for a snapshot"),
                }
            });
        }
    }

    /// A snapshot of now, for whom sessions are reserved.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::open`].
    pub async fn take_reserved(&self) -> Result<PinnedSnapshot, StoreError> {
        self.take_leaving(|_| 0).await
    }

    /// A snapshot of now, for everybody else.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::open`].
    pub async fn take(&self) -> Result<PinnedSnapshot, StoreError> {
        self.take_leaving(|inner| inner.reserved).await
    }

    async fn take_leaving(&self, left: impl Fn(&Inner) -> usize) -> Result<PinnedSnapshot, StoreError> {
        let next = || {
            let mut inner = self.inner();
            if inner.idle.len() > left(&inner) { inner.idle.pop() } else { None }
        };
        while let Some(session) = next() {
            // One that was lost meanwhile says nothing about the next.
            if let Ok(snapshot) = session.pin().await {
                return Ok(snapshot);
            }
        }
        PinnedSnapshot::open(&self.connector).await
    }

    /// Takes back what is no longer read. One that is dropped instead is closed.
    pub async fn give_back(&self, snapshot: PinnedSnapshot) {
        if let Ok(session) = snapshot.unpin().await {
            let mut inner = self.inner();
            if inner.idle.len() < MAX_IDLE {
                inner.idle.push(session);
            }
        }
    }
}

#[cfg(test)]
impl Snapshots {
    /// Sessions that lie here.
    pub fn idle(&self) -> usize {
        self.inner().idle.len()
    }
}
