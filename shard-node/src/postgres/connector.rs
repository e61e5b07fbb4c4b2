//! Ways into the server.

use crate::store::StoreError;
use evenkeel_host::Server;
use std::path::PathBuf;
use std::sync::Arc;
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
#[derive(Clone)]
pub struct Connector(Way);

#[derive(Clone)]
enum Way {
    /// The folder of the server's socket.
    Socket(PathBuf),
    /// A simulation's server.
    Simulated(Arc<dyn Server>),
}

impl Connector {
    pub(super) fn new(socket_dir: PathBuf) -> Connector {
        Connector(Way::Socket(socket_dir))
    }

    /// Into a simulation's server.
    pub(crate) fn simulated(server: Arc<dyn Server>) -> Connector {
        Connector(Way::Simulated(server))
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
        config.user(user).dbname("postgres").application_name(name);
        config.connect_timeout(Duration::from_millis(CONNECT_MS));
        match &self.0 {
            Way::Socket(folder) => {
                let (client, connection) = config.host_path(folder).port(5432).connect(NoTls).await?;
                tokio::spawn(carry(connection));
                Ok(client)
            }
            Way::Simulated(server) => {
                let stream = server.connect().map_err(|_| StoreError::SessionLost)?;
                let (client, connection) = config.connect_raw(stream, NoTls).await?;
                tokio::spawn(carry(connection));
                Ok(client)
            }
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
