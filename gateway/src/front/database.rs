//! The databases of the front PostgreSQL, and the way into each.

use evenkeel_host::timeout;
use evenkeel_postgres_session::Session;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use evenkeel_shard_node::postgres::{Connector, SessionRole};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// The name of the database that executes what reads several shards.
pub const ENGINE: &str = "engine";
/// The server's superuser, and the role of users' sessions.
pub const ROLES: (&str, &str) = ("evenkeel", "evenkeel_user");
/// The server's port: a part of its socket's name.
const PORT: u16 = 5432;
/// How long connecting may take, in milliseconds.
const CONNECT_MS: u64 = 10_000;
/// The start-up setting of users' sessions.
const READ_ONLY: &str = "-c default_transaction_read_only=on";

/// A database of the front PostgreSQL.
#[derive(Clone)]
pub enum FrontDatabase {
    /// The one that clients see: tables as users made them, without rows.
    Catalog(Connector),
    /// The one whose tables have the shards' rows. With the folder of the server's socket.
    Engine(PathBuf),
}

impl FrontDatabase {
    /// Opens a session for users' statements.
    ///
    /// # Errors
    /// 57P03: the server is not there.
    pub async fn user_session(&self) -> Result<Session, SqlError> {
        match self {
            FrontDatabase::Catalog(connector) => {
                connector.raw(SessionRole::User).await.map_err(|error| unavailable(&error.to_string()))
            }
            FrontDatabase::Engine(folder) => engine_session(folder, ROLES.1, READ_ONLY).await,
        }
    }
}

/// Opens a session with the engine database.
///
/// # Errors
/// As [`FrontDatabase::user_session`].
pub async fn engine_session(folder: &std::path::Path, role: &str, options: &str) -> Result<Session, SqlError> {
    let open = async {
        let stream = UnixStream::connect(folder.join(format!(".s.PGSQL.{PORT}"))).await?;
        let options = [("application_name", "evenkeel statements"), ("options", options)];
        Session::connect(stream, role, ENGINE, &options).await
    };
    match timeout(Duration::from_millis(CONNECT_MS), open).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) => Err(unavailable(&error.to_string())),
        Err(_) => Err(unavailable("it does not answer")),
    }
}

/// 57P03.
pub fn unavailable(why: &str) -> SqlError {
    SqlError::new(codes::CANNOT_CONNECT_NOW, format!("the gateway's own PostgreSQL is not available: {why}"))
}
