//! Sessions with the server: the account of each, and the time until which they can be opened.

use super::store_error::StoreError;
use evenkeel_host::{Bug, Server, deliberate};
use evenkeel_postgres_session::{CancelKey, Session, SessionError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_postgres::{CancelToken, Client, Config, NoTls};

/// How long connecting may take, in milliseconds.
const CONNECT_MS: u64 = 10_000;
/// The server's port: a part of its socket's name.
const PORT: u16 = 5432;

/// Whom a session acts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRole {
    /// The replica itself: a superuser.
    Admin,
    /// A user's statement (R6): reads and changes rows of users' tables, adds to
    /// `evenkeel.applied`, and can do nothing else. Triggers do not fire: RETURNING tells what the
    /// statement writes.
    User,
    /// A user's statement in the user's own text. It may do the same, and truncate tables; triggers
    /// fire, and those that report changes cannot be turned off in such a session (R7).
    PassThrough,
}

impl SessionRole {
    /// The server's name of the account, and what its sessions are called.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            SessionRole::Admin => (super::layout::ADMIN, "evenkeel replica"),
            SessionRole::User => (super::settings::USER, "evenkeel statements"),
            SessionRole::PassThrough => (super::settings::PASS_THROUGH_USER, "evenkeel pass-through"),
        }
    }
}

/// The settings of sessions for users' own texts, at their beginning and after each RESET: limits
/// of waiting for locks and of running, and [`READ_ONLY`].
const PASS_THROUGH_OPTIONS: &str = "-c lock_timeout=2s -c statement_timeout=30s";
/// Statements are sent before it is known that BEGIN has come about. One that fails must not let
/// them commit by themselves, past the log (invariant 3): only what follows `BEGIN READ WRITE` may
/// write.
const READ_ONLY: &str = "-c default_transaction_read_only=on";

/// Makes sessions, until it is ended. Cheap to clone: clones end together.
#[derive(Clone)]
pub struct Connector {
    way: Way,
    over: Arc<AtomicBool>,
    schema: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Way {
    /// The folder of the server's socket.
    Socket(PathBuf),
    /// A simulation's server.
    Simulated(Arc<dyn Server>),
}

impl Connector {
    pub(super) fn new(socket_dir: PathBuf) -> Connector {
        Connector::by(Way::Socket(socket_dir))
    }

    /// Into a simulation's server.
    pub(crate) fn simulated(server: Arc<dyn Server>) -> Connector {
        Connector::by(Way::Simulated(server))
    }

    /// Into no server.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Connector {
        Connector::new(PathBuf::new())
    }

    fn by(way: Way) -> Connector {
        Connector { way, over: Arc::default(), schema: Arc::default() }
    }

    /// R1: the start of PostgreSQL that this led to is over, and it opens no more sessions. The
    /// next start may hold less than what was under way here takes for applied. To be called before
    /// there is a next one.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// The version of the schema that the server holds (R34). What a session has prepared at an
    /// earlier one is of no use.
    pub fn schema_version(&self) -> u64 {
        self.schema.load(Ordering::SeqCst)
    }

    /// The server holds this version of the schema now.
    pub fn set_schema_version(&self, version: u64) {
        self.schema.store(version, Ordering::SeqCst);
    }

    /// Opens a session. It ends when the client is dropped.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`] if the server is not there or this has [ended](Connector::end);
    /// [`StoreError::Refused`] if it takes no more sessions.
    pub async fn connect(&self, role: SessionRole) -> Result<Client, StoreError> {
        let (user, name) = role.names();
        let mut config = Config::new();
        config.user(user).dbname("postgres").application_name(name);
        config.connect_timeout(Duration::from_millis(CONNECT_MS));
        if role != SessionRole::Admin && !deliberate(Bug::WritesWithoutBegin) {
            config.options(READ_ONLY);
        }
        let client = match &self.way {
            Way::Socket(folder) => {
                let (client, connection) = config.host_path(folder).port(PORT).connect(NoTls).await?;
                tokio::spawn(carry(connection));
                client
            }
            Way::Simulated(server) => {
                let stream = server.connect().map_err(|_| StoreError::SessionLost)?;
                let (client, connection) = config.connect_raw(stream, NoTls).await?;
                tokio::spawn(carry(connection));
                client
            }
        };
        // Looked at when the session is there: only then is it known which start of the server it
        // reached.
        if self.over.load(Ordering::SeqCst) { Err(StoreError::SessionLost) } else { Ok(client) }
    }
}

impl Connector {
    /// Opens a raw session for users' own texts. It ends when it is dropped.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn connect_raw(&self) -> Result<Session, StoreError> {
        self.raw(SessionRole::PassThrough).await
    }

    /// Opens a raw session for anybody.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn raw(&self, role: SessionRole) -> Result<Session, StoreError> {
        let (user, name) = role.names();
        let settings = match role {
            SessionRole::Admin => String::new(),
            SessionRole::User => READ_ONLY.to_string(),
            SessionRole::PassThrough => format!("{READ_ONLY} {PASS_THROUGH_OPTIONS}"),
        };
        let options = [("application_name", name), ("options", settings.as_str())];
        let open = async {
            match &self.way {
                Way::Socket(folder) => {
                    let stream = UnixStream::connect(socket_in(folder)).await?;
                    Session::connect(stream, user, "postgres", &options).await
                }
                Way::Simulated(server) => Session::connect(server.connect()?, user, "postgres", &options).await,
            }
        };
        let opened = evenkeel_host::timeout(Duration::from_millis(CONNECT_MS), open).await;
        let session = opened.map_err(|_| StoreError::SessionLost)?.map_err(StoreError::from)?;
        // As above.
        if self.over.load(Ordering::SeqCst) { Err(StoreError::SessionLost) } else { Ok(session) }
    }

    /// The same as [`Connector::cancel`], for a raw session.
    pub async fn cancel_raw(&self, key: CancelKey) {
        if let Way::Socket(folder) = &self.way {
            let cancel = async {
                let stream = UnixStream::connect(socket_in(folder)).await?;
                key.cancel(stream).await
            };
            let cancelled: Result<Result<(), SessionError>, _> =
                evenkeel_host::timeout(Duration::from_millis(CONNECT_MS), cancel).await;
            tracing::debug!(?cancelled, "a statement was cancelled");
        }
    }

    /// Has the statement cancelled that runs on a session. Best effort: it may have ended, and be
    /// followed by another, so the session is to be closed afterwards.
    pub async fn cancel(&self, token: CancelToken) {
        // A simulation's session notices by itself that it is closed.
        if let Way::Socket(_) = self.way {
            let cancelled = evenkeel_host::timeout(Duration::from_millis(CONNECT_MS), token.cancel_query(NoTls)).await;
            tracing::debug!(?cancelled, "a statement was cancelled");
        }
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
}

/// Carries a session's messages until it ends.
async fn carry(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    // The client learns of it too, by the failure of what it was doing.
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a PostgreSQL session has ended");
    }
}
