//! The sessions that keyed autocommit reads share: each read is a transaction of its own, and many are pipelined on one session.
//!
//! It promises that a session that has ended does not stay in use: a read that comes to it opens another in its place. A reader
//! proposes nothing, so its end is not the leadership's (R1). PostgreSQL answers in order, so a scan would hold up every read behind it:
//! scans have sessions of their own ([`super::scans`]). Every read has a time limit.

use super::session::UserSession;
use crate::postgres::{Connector, Role};
use crate::storage::StoreError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a reader's session begins with: the server ends a read that takes longer, whether anybody waits for it or not.
pub const SESSION_SETTINGS: &str = "SET statement_timeout = '30s'";

/// See the module.
pub struct Readers {
    connector: Connector,
    slots: Vec<Slot>,
    turn: AtomicUsize,
}

struct Slot {
    session: Mutex<Arc<UserSession>>,
    /// Held while another session is opened, so that only one is.
    opening: tokio::sync::Mutex<()>,
}

impl Slot {
    fn new(session: UserSession) -> Slot {
        Slot { session: Mutex::new(Arc::new(session)), opening: tokio::sync::Mutex::default() }
    }

    /// Its session, unless that has ended.
    fn session(&self) -> Option<Arc<UserSession>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(session).filter(|session| !session.is_closed())
    }
}

/// A session for reads.
///
/// # Errors
/// As for [`Connector::connect`].
pub async fn open(connector: &Connector) -> Result<UserSession, StoreError> {
    let session = UserSession::new(connector.connect(Role::User).await?);
    session.simple(SESSION_SETTINGS).await?;
    Ok(session)
}

impl Readers {
    /// Reads on these sessions, of which there is at least one; others are opened in place of those that end.
    pub fn new(connector: &Connector, sessions: Vec<UserSession>) -> Readers {
        let slots = sessions.into_iter().map(Slot::new).collect();
        Readers { connector: connector.clone(), slots, turn: AtomicUsize::new(0) }
    }

    /// The session whose turn it is.
    ///
    /// # Errors
    /// As for [`Connector::connect`], if it has ended and no other can be opened.
    pub async fn next(&self) -> Result<Arc<UserSession>, StoreError> {
        let slot = &self.slots[self.turn.fetch_add(1, Ordering::Relaxed) % self.slots.len()];
        if let Some(session) = slot.session() {
            return Ok(session);
        }
        let _opening = slot.opening.lock().await;
        if let Some(session) = slot.session() {
            return Ok(session);
        }
        let session = Arc::new(open(&self.connector).await?);
        *slot.session.lock().unwrap_or_else(PoisonError::into_inner) = session.clone();
        Ok(session)
    }
}
