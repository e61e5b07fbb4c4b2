//! Ways into the server.

use crate::store::StoreError;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls};

/// How long connecting may take.
const CONNECT_MS: u64 = 10_000;

/// Whom a session acts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The replica itself: a superuser.
    Admin,
    /// A user's statement (R6): reads and changes rows of tables in `public`, adds to `evenkeel.applied`, and can do
    /// nothing else.
    User,
}

/// Makes sessions. Cheap to clone; valid over restarts of the server.
#[derive(Debug, Clone)]
pub struct Connector {
    socket_dir: PathBuf,
}

impl Connector {
    pub(super) fn new(socket_dir: PathBuf) -> Connector {
        Connector { socket_dir }
    }

    /// Opens a session. It ends when the client is dropped.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`] if the server is not there; [`StoreError::Refused`] if it takes no more sessions.
    pub async fn connect(&self, role: Role) -> Result<Client, StoreError> {
        let (user, name) = match role {
            Role::Admin => (super::layout::ADMIN, "evenkeel replica"),
            Role::User => ("evenkeel_user", "evenkeel statements"),
        };
        let mut config = Config::new();
        config.host_path(&self.socket_dir).port(5432).user(user).dbname("postgres").application_name(name);
        config.connect_timeout(Duration::from_millis(CONNECT_MS));
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(async move {
            // The client learns of it too, by the failure of what it was doing.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a PostgreSQL session has ended");
            }
        });
        Ok(client)
    }
}
