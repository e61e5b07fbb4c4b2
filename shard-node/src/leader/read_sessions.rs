//! Read sessions: the PostgreSQL sessions that autocommit reads by key share.
//!
//! Each read is a transaction of its own, and many reads are pipelined on one session. Every read
//! has a time limit. A session that has ended is replaced by the next read that comes to it. A read
//! proposes nothing, so the loss of a read session does not end the leadership (R1).
//!
//! PostgreSQL answers a session's statements in order, so a scan would delay all reads behind it.
//! Scans have sessions of their own ([`super::scan_sessions`]).

use super::postgres_session::UserSession;
use crate::postgres::{Connector, SessionRole};
use crate::storage::StoreError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The settings of a read session. The server ends a read that takes longer, even if its client has
/// gone.
pub const SESSION_SETTINGS: &str = "SET statement_timeout = '30s'";

/// See the module.
pub struct ReadSessions {
    connector: Connector,
    places: Vec<SessionPlace>,
    turn: AtomicUsize,
}

struct SessionPlace {
    session: Mutex<Arc<UserSession>>,
    /// Locked while another session is opened, so that only one is.
    opening: tokio::sync::Mutex<()>,
}

impl SessionPlace {
    fn new(session: UserSession) -> SessionPlace {
        SessionPlace { session: Mutex::new(Arc::new(session)), opening: tokio::sync::Mutex::default() }
    }

    /// Its session, unless it has ended.
    fn session(&self) -> Option<Arc<UserSession>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(session).filter(|session| !session.is_closed())
    }
}

/// Opens a session for reads.
///
/// # Errors
/// As for [`Connector::connect`].
pub async fn open(connector: &Connector) -> Result<UserSession, StoreError> {
    let session = UserSession::new(connector.connect(SessionRole::User).await?, connector);
    session.simple(SESSION_SETTINGS).await?;
    Ok(session)
}

impl ReadSessions {
    /// Reads on these sessions, at least one. Sessions that end are replaced.
    pub fn new(connector: &Connector, sessions: Vec<UserSession>) -> ReadSessions {
        let places = sessions.into_iter().map(SessionPlace::new).collect();
        ReadSessions { connector: connector.clone(), places, turn: AtomicUsize::new(0) }
    }

    /// The next session, in turn.
    ///
    /// # Errors
    /// As for [`Connector::connect`], if the session has ended and no other can be opened.
    pub async fn next(&self) -> Result<Arc<UserSession>, StoreError> {
        let place = &self.places[self.turn.fetch_add(1, Ordering::Relaxed) % self.places.len()];
        if let Some(session) = place.session() {
            return Ok(session);
        }
        let _opening = place.opening.lock().await;
        if let Some(session) = place.session() {
            return Ok(session);
        }
        let session = Arc::new(open(&self.connector).await?);
        *place.session.lock().unwrap_or_else(PoisonError::into_inner) = session.clone();
        Ok(session)
    }
}
