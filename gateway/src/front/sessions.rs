//! Sessions of the front PostgreSQL for users' statements.
//!
//! A session is taken for one statement or one transaction and then serves another user. It keeps
//! the settings of its last user, and takes over those of the next one only where they differ.

use super::database::{FrontDatabase, unavailable};
use super::settings::{Settings, set};
use bytes::Bytes;
use evenkeel_host::timeout;
use evenkeel_postgres_session::session_error::SessionError;
use evenkeel_postgres_session::{Named, Requests, Session, TransactionStatus, tags};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a statement waits for a session, in milliseconds.
const WAIT_MS: u64 = 5_000;

/// See the module.
pub struct FrontSessions {
    database: FrontDatabase,
    idle: Mutex<Vec<Kept>>,
    places: Arc<Semaphore>,
}

struct Kept {
    session: Session,
    settings: Settings,
}

/// A session that serves one user. Dropped, it is closed; see [`FrontSessions::put_back`].
pub struct FrontSession {
    /// The session.
    pub session: Session,
    /// Whether it may keep something that its next user must not find, such as a lock.
    pub spent: bool,
    settings: Settings,
    _place: OwnedSemaphorePermit,
}

impl FrontSessions {
    /// No session is open. At most `places` serve users at a time.
    pub fn new(database: FrontDatabase, places: usize) -> Arc<FrontSessions> {
        Arc::new(FrontSessions { database, idle: Mutex::default(), places: Arc::new(Semaphore::new(places)) })
    }

    /// Closes the idle sessions: what they have prepared belongs to an earlier schema.
    pub fn forget(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A session with these settings.
    ///
    /// # Errors
    /// 53300: all are in use. PostgreSQL's own error about a setting. 57P03: the server is not
    /// there.
    pub async fn take(self: &Arc<FrontSessions>, settings: &Settings) -> Result<FrontSession, SqlError> {
        let place = timeout(Duration::from_millis(WAIT_MS), self.places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(SqlError::new(codes::TOO_MANY, "too many statements are under way at this gateway"));
        };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let kept = match idle {
            Some(kept) => kept,
            None => Kept { session: self.database.user_session().await?, settings: Settings::new() },
        };
        let Kept { session, settings: had } = kept;
        let mut taken = FrontSession { session, spent: false, settings: had, _place: place };
        taken.adopt(settings).await?;
        Ok(taken)
    }

    /// Keeps a session for the next user, if it is outside of any transaction and not spent.
    pub fn put_back(&self, taken: FrontSession) {
        let FrontSession { session, settings, spent, .. } = taken;
        if !spent && session.is_ready() && session.status() == TransactionStatus::Idle {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(Kept { session, settings });
        }
    }
}

impl FrontSession {
    /// Makes the session's settings these.
    ///
    /// # Errors
    /// PostgreSQL's own. The session is not reused then.
    pub async fn adopt(&mut self, settings: &Settings) -> Result<(), SqlError> {
        if self.settings == *settings {
            return Ok(());
        }
        let reset = self.settings.keys().filter(|name| !settings.contains_key(*name));
        let mut sql: Vec<String> = reset.map(|name| format!("RESET \"{}\"", name.replace('"', "\"\""))).collect();
        let differing = settings.iter().filter(|(name, value)| self.settings.get(*name) != Some(*value));
        sql.extend(differing.map(|(name, value)| set(name, value, false)));
        // A setting made in a transaction ends with it if that is rolled back.
        self.spent |= self.session.status() != TransactionStatus::Idle;
        self.session.simple(&sql.join("; ")).await.map_err(sql_error)?;
        self.settings = settings.clone();
        Ok(())
    }
}

impl FrontSession {
    /// The RowDescription of a statement, if it returns rows.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn describe(&mut self, sql: &str) -> Result<Option<Bytes>, SqlError> {
        let mut requests = Requests::default();
        requests.parse("", sql, &[])?;
        requests.describe(Named::Statement(""))?;
        requests.sync();
        self.session.send(requests);
        let mut description = None;
        let described = self.session.until_ready(|message| {
            if message.tag() == tags::ROW_DESCRIPTION {
                description = Some(message.whole().clone());
            }
        });
        described.await.map_err(sql_error)?;
        Ok(description)
    }
}

/// The error of a session for a user.
pub fn sql_error(error: SessionError) -> SqlError {
    match error {
        SessionError::Refused(error) => error,
        other => unavailable(&other.to_string()),
    }
}
