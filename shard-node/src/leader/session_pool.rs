//! The sessions of transactions, and of statements that run alone.
//!
//! The pool opens sessions when they are needed and reuses them. A number of sessions is reserved
//! for statements, so that open transactions, which may be idle, cannot keep statements out.

use super::postgres_session::UserSession;
use super::raw_session::RawSession;
use crate::postgres::{Connector, SessionRole};
use crate::storage::StoreError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Failure, SqlError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit as OwnedPlace, Semaphore};

/// How long a statement waits for a free session, in milliseconds.
const POOL_WAIT_MS: u64 = 2_000;
/// Sessions in addition to those of transactions, for statements that run alone.
pub const RESERVED_SESSIONS: usize = 16;
/// Limits of waiting for locks and of running. A user cannot change them (R6).
const SESSION_SETTINGS: &str = "SET lock_timeout = '2s'; SET statement_timeout = '30s'";

/// See the module.
pub struct SessionPool {
    connector: Connector,
    idle: Mutex<Idle>,
    /// Sessions of both kinds, in use or idle, at most.
    places: usize,
    free: Arc<Semaphore>,
    /// The sessions that transactions may take.
    for_transactions: Arc<Semaphore>,
}

/// Sessions that nobody uses.
#[derive(Default)]
struct Idle {
    analysed: Vec<UserSession>,
    raw: Vec<RawSession>,
}

/// A raw session taken from the pool. Its place is free again when it is dropped.
pub struct PooledRaw {
    session: RawSession,
    _place: OwnedPlace,
    _of_transactions: OwnedPlace,
}

impl std::ops::Deref for PooledRaw {
    type Target = RawSession;
    fn deref(&self) -> &RawSession {
        &self.session
    }
}

impl std::ops::DerefMut for PooledRaw {
    fn deref_mut(&mut self) -> &mut RawSession {
        &mut self.session
    }
}

/// A session taken from the pool. Its place is free again when it is dropped.
pub struct PooledSession {
    session: UserSession,
    _place: OwnedPlace,
    _of_transactions: Option<OwnedPlace>,
}

/// Why there is no session.
pub enum NoSession {
    /// All sessions are in use. The failure is the answer to the client.
    Full(Failure),
    /// PostgreSQL opens no session.
    Failed(StoreError),
}

impl std::ops::Deref for PooledSession {
    type Target = UserSession;
    fn deref(&self) -> &UserSession {
        &self.session
    }
}

impl SessionPool {
    /// A pool for at most `transactions` open transactions, and [`RESERVED_SESSIONS`] statements
    /// that run alone.
    pub fn new(connector: Connector, transactions: usize) -> SessionPool {
        let transactions = transactions.max(1);
        SessionPool {
            connector,
            idle: Mutex::default(),
            places: transactions + RESERVED_SESSIONS,
            free: Arc::new(Semaphore::new(transactions + RESERVED_SESSIONS)),
            for_transactions: Arc::new(Semaphore::new(transactions)),
        }
    }

    /// A session outside of any transaction, for a statement that runs alone. Such statements end
    /// soon, so a client that finds no free session tries again.
    pub async fn take(&self) -> Result<PooledSession, NoSession> {
        let Some(place) = place(&self.free).await else {
            let reason = "too many statements on several rows are under way".to_string();
            return Err(NoSession::Full(Failure::Busy { reason, retry_after_ms: 50 }));
        };
        self.session(place, None).await
    }

    /// The same for a transaction, whose client decides how long it lasts.
    pub async fn take_for_transaction(&self) -> Result<PooledSession, NoSession> {
        let (place, of_transactions) = self.place_of_transaction().await?;
        self.session(place, Some(of_transactions)).await
    }

    /// The same, for users' own texts.
    pub async fn take_raw(&self) -> Result<PooledRaw, NoSession> {
        let (place, of_transactions) = self.place_of_transaction().await?;
        let session = loop {
            let idle = self.idle().raw.pop();
            match idle {
                Some(mut session) => {
                    // One that cannot be cleaned is of no use.
                    if session.cleaned().await.is_ok() && session.is_reusable() {
                        break session;
                    }
                }
                None => {
                    self.make_room(|idle| _ = idle.analysed.pop());
                    break RawSession::open(&self.connector).await.map_err(NoSession::Failed)?;
                }
            }
        };
        Ok(PooledRaw { session, _place: place, _of_transactions: of_transactions })
    }

    /// A place for a session of a transaction.
    async fn place_of_transaction(&self) -> Result<(OwnedPlace, OwnedPlace), NoSession> {
        let of_transactions = place(&self.for_transactions).await;
        let place = if of_transactions.is_some() { place(&self.free).await } else { None };
        match (place, of_transactions) {
            (Some(place), Some(of_transactions)) => Ok((place, of_transactions)),
            _ => {
                let error = SqlError::new(codes::TOO_MANY, "too many transactions are open on this shard");
                Err(NoSession::Full(error.hint("Retry later.").into()))
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session is about to be opened for a place that is taken: ends an idle one if there would
    /// be too many. PostgreSQL has room for a few whose end it has not noticed yet.
    fn make_room(&self, end: impl FnOnce(&mut Idle)) {
        let mut idle = self.idle();
        let in_use = self.places - self.free.available_permits().min(self.places);
        if in_use + idle.analysed.len() + idle.raw.len() > self.places {
            end(&mut idle);
        }
    }

    async fn session(
        &self,
        place: OwnedPlace,
        of_transactions: Option<OwnedPlace>,
    ) -> Result<PooledSession, NoSession> {
        let idle = self.idle().analysed.pop();
        let session = match idle.filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => {
                self.make_room(|idle| _ = idle.raw.pop());
                let open = async {
                    let session = UserSession::new(self.connector.connect(SessionRole::User).await?, &self.connector);
                    session.simple(SESSION_SETTINGS).await?;
                    Ok::<_, StoreError>(session)
                };
                open.await.map_err(NoSession::Failed)?
            }
        };
        Ok(PooledSession { session, _place: place, _of_transactions: of_transactions })
    }

    /// Returns a session that is outside of any transaction.
    pub fn put_back(&self, session: PooledSession) {
        self.idle().analysed.push(session.session);
    }

    /// The same of a raw session. One that cannot be used again ends.
    pub async fn put_back_raw(&self, mut session: PooledRaw) {
        if session.is_ready() && session.is_reusable() {
            session.clean().await;
            self.idle().raw.push(session.session);
        }
    }
}

/// A free place, unless none becomes free in time.
async fn place(places: &Arc<Semaphore>) -> Option<OwnedPlace> {
    let wait = Duration::from_millis(POOL_WAIT_MS);
    evenkeel_host::timeout(wait, places.clone().acquire_owned()).await.ok()?.ok()
}
