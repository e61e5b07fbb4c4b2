//! The sessions that autocommit reads share: each read is a transaction of its own, and many are pipelined on one session.
//!
//! It promises that a session that has ended does not stay in use: a read that comes to it opens another in its place. A reader
//! proposes nothing, so its end is not the reign's (R1).

use super::session::UserSession;
use crate::postgres::{Connector, Role};
use crate::store::StoreError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module.
pub struct Readers {
    connector: Connector,
    slots: Vec<Slot>,
    next: AtomicUsize,
}

struct Slot {
    session: Mutex<Arc<UserSession>>,
    /// Held while another session is opened, so that only one is.
    opening: tokio::sync::Mutex<()>,
}

impl Slot {
    /// Its session, unless that has ended.
    fn session(&self) -> Option<Arc<UserSession>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (!session.is_closed()).then_some(session)
    }
}

impl Readers {
    /// On these sessions, of which there is at least one; others are opened in place of those that end.
    pub fn new(connector: &Connector, sessions: Vec<UserSession>) -> Readers {
        let slot = |session| Slot { session: Mutex::new(Arc::new(session)), opening: tokio::sync::Mutex::default() };
        let slots = sessions.into_iter().map(slot).collect();
        Readers { connector: connector.clone(), slots, next: AtomicUsize::new(0) }
    }

    /// The session whose turn it is.
    ///
    /// # Errors
    /// As for [`Connector::connect`], if it has ended and no other can be opened.
    pub async fn next(&self) -> Result<Arc<UserSession>, StoreError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = &self.slots[turn % self.slots.len()];
        if let Some(session) = slot.session() {
            return Ok(session);
        }
        let _opening = slot.opening.lock().await;
        if let Some(session) = slot.session() {
            return Ok(session);
        }
        let session = Arc::new(UserSession::new(self.connector.connect(Role::User).await?));
        *slot.session.lock().unwrap_or_else(PoisonError::into_inner) = session.clone();
        Ok(session)
    }
}
