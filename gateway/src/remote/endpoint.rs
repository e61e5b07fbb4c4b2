//! The socket that foreign tables' servers connect to.
//!
//! It lies in the private folder of the gateway's own PostgreSQL, which nobody else can enter.

use super::connection::RemoteConnection;
use super::sessions::{PROCESS_PREFIX, ReadingSessions};
use crate::door::startup::{Startup, Wish, begin};
use crate::wire::backend;
use crate::wire::incoming::Incoming;
use crate::wire::outgoing::Outgoing;
use crate::wire::transport::Transport;
use evenkeel_protocol::ShardId;
use std::collections::HashMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

/// The port that names the socket. PostgreSQL's own is another.
pub const PORT: u16 = 5433;
/// What names a shard as a database begins with this.
pub const SHARD_PREFIX: &str = "shard";
/// How long a connection may take to start, in milliseconds.
const STARTUP_MS: u64 = 30_000;
/// The pause after a connection that could not be accepted, in milliseconds.
const ACCEPT_AGAIN_MS: u64 = 20;

/// What a cancel request has to know of a connection, by its number: the secret. And whom to tell.
type Cancellable = HashMap<i32, (Vec<u8>, Arc<Notify>)>;

/// See the module.
pub struct RemoteEndpoint {
    sessions: Arc<ReadingSessions>,
    listener: UnixListener,
    next_number: AtomicI32,
    connections: Mutex<Cancellable>,
}

impl RemoteEndpoint {
    /// Listens in a folder that only PostgreSQL's account can enter.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(folder: &Path, sessions: Arc<ReadingSessions>) -> io::Result<Arc<RemoteEndpoint>> {
        let path = socket(folder);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // It was left by an earlier gateway, or is not there.
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // PostgreSQL may run as another account. The folder keeps everybody else out.
        std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        let (next_number, connections) = (AtomicI32::new(1), Mutex::default());
        Ok(Arc::new(RemoteEndpoint { sessions, listener, next_number, connections }))
    }

    /// Accepts connections for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let endpoint = self.clone();
                    tokio::spawn(async move {
                        let ended = endpoint.serve(stream).await;
                        tracing::trace!(?ended, "a foreign table's connection has ended");
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a foreign table's connection cannot be accepted");
                    evenkeel_host::sleep(Duration::from_millis(ACCEPT_AGAIN_MS)).await;
                }
            }
        }
    }

    async fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let begun = begin(Transport::Unix(stream), None);
        let begun = evenkeel_host::timeout(Duration::from_millis(STARTUP_MS), begun).await??;
        match begun {
            Ok(Wish::Session(startup)) => self.session(startup).await,
            Ok(Wish::Cancel(number, secret)) => {
                if let Some((own, cancel)) = self.connections().get(&number)
                    && *own == secret
                {
                    cancel.notify_waiters();
                }
                Ok(())
            }
            Err((_, error)) => Err(io::Error::other(error.to_string())),
        }
    }

    async fn session(&self, startup: Startup) -> io::Result<()> {
        let number_of =
            |name: &str, prefix: &str| startup.parameters.get(name)?.strip_prefix(prefix).map(str::to_string);
        let process = number_of("application_name", PROCESS_PREFIX).and_then(|number| number.parse().ok());
        let shard = number_of("database", SHARD_PREFIX).and_then(|number| number.parse().ok());
        let (Some(process), Some(shard)) = (process, shard) else {
            return Err(io::Error::other("a connection that names no process and no shard"));
        };
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let secret: [u8; 4] = evenkeel_host::random();
        let cancel = Arc::new(Notify::new());
        self.connections().insert(number, (secret.to_vec(), cancel.clone()));
        let (read, write) = tokio::io::split(startup.transport);
        let mut out = Outgoing::patient(write);
        backend::authentication(&mut out.buffer, backend::AUTHENTICATION_OK, &[]);
        for (name, value) in REPORTED {
            backend::parameter_status(&mut out.buffer, name, value);
        }
        backend::backend_key_data(&mut out.buffer, number, &secret);
        let incoming = Incoming::start(read, startup.read);
        let sessions = self.sessions.clone();
        let ended = RemoteConnection::new(sessions, process, ShardId(shard), incoming, out, cancel).run().await;
        self.connections().remove(&number);
        ended
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Cancellable> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What postgres_fdw learns of the server: it behaves as PostgreSQL 15 does.
const REPORTED: [(&str, &str); 4] = [
    ("server_version", "15.0"),
    ("client_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("integer_datetimes", "on"),
];

fn socket(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
}
