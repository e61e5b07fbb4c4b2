//! Sessions with the server: the account of each, and the time until which they can be opened.

use super::store_error::StoreError;
use evenkeel_host::{Bug, Server, deliberate};
use evenkeel_postgres_session::Session;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio_postgres::{CancelToken, Client, Config, NoTls};

/// How long connecting may take.
const CONNECT_MS: u64 = 10_000;

/// Whom a session acts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionRole {
    /// The replica itself: a superuser.
    Admin,
    /// A user's statement (R6): reads and changes rows of tables in `public`, adds to
    /// `evenkeel.applied`, and can do nothing else.
    User,
}

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
        let (user, name) = match role {
            SessionRole::Admin => (super::layout::ADMIN, "evenkeel replica"),
            SessionRole::User => ("evenkeel_user", "evenkeel statements"),
        };
        let mut config = Config::new();
        config.user(user).dbname("postgres").application_name(name);
        config.connect_timeout(Duration::from_millis(CONNECT_MS));
        if role == SessionRole::User && !deliberate(Bug::WritesWithoutBegin) {
            // Statements are sent before it is known that BEGIN has come about. One that fails must
            // not let them commit by themselves, past the log (invariant 3): only what follows
            // `BEGIN READ WRITE` may write.
            config.options("-c default_transaction_read_only=on");
        }
        let client = match &self.way {
            Way::Socket(folder) => {
                let (client, connection) = config.host_path(folder).port(5432).connect(NoTls).await?;
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
    /// Opens a raw session.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn raw(&self, role: SessionRole) -> Result<Session, StoreError> {
        let Way::Socket(folder) = &self.way else { return Err(StoreError::SessionLost) };
        let (user, options) = match role {
            SessionRole::Admin => (super::layout::ADMIN, ""),
            SessionRole::User => ("evenkeel_user", "-c default_transaction_read_only=on"),
        };
        let stream = tokio::net::UnixStream::connect(folder.join(".s.PGSQL.5432")).await;
        let stream = stream.map_err(|_| StoreError::SessionLost)?;
        let session = Session::connect(stream, user, "postgres", &[("options", options)]).await;
        session.map_err(|_| StoreError::SessionLost)
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

/// Carries a session's messages until it ends.
async fn carry(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    // The client learns of it too, by the failure of what it was doing.
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a PostgreSQL session has ended");
    }
}
