//! The shell: it applies the log, feeds reports and answers to the pure parts, and carries out what they say. It makes no choices of its own.
//!
//! ```text
//!  shards --reports--> intake --+                     +--> log (proposals)
//!  clients --REST--> rest ------+--> node (one task) --+--> calls --> shards' leaders
//!  log --decided entries--------+        |
//!                                        +--> shared: state, routing view (read by REST)
//! ```
//!
//! One task, the node, owns the order of things: whatever changes the state or the leadership goes through it. Only the leader plans and drives, and it
//! stops at once when it loses its leadership: requests under way end as they end, since each is idempotent and names its operator.

mod calls;
mod held;
mod intake;
mod members;
mod node;
mod quorum;
mod shared;
mod transfer;
mod waiters;

pub use calls::ShardCalls;
pub use members::{NewDriver, next_members};
pub(crate) use members::{REST, RPC, contacts};
use shared::Message;
pub use shared::{Applied, Leading, ProposeFailure, Shared};

use crate::config::Config;
use crate::rest;
use crate::snapshot::{self, Snapshot, SnapshotError};
use crate::state::PlacementState;
use evenkeel_host::Listener;
use evenkeel_replicated_log::{GroupConfig, Limits, LogHandle, LogIndex, ReplicaId, Term, Timing};
use futures::FutureExt;
use futures::future::BoxFuture;
use node::Node;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The log's group number of the placement driver; shards' groups have their shard's number, from 1.
const GROUP: u64 = 0;
/// The smallest segment file of the log, in bytes.
const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// The largest segment file of the log, in bytes.
const MAX_SEGMENT_BYTES: u64 = 16 << 20;
/// Messages waiting for the node; senders wait when it is full.
const INBOX_MESSAGES: usize = 1024;
/// How long connections may take to end at shutdown, in milliseconds.
const SHUTDOWN_MS: u64 = 1000;

/// Why a replica stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration contradicts itself; one line that names the key.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on, or a file not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The log could not start.
    #[error(transparent)]
    Log(#[from] evenkeel_replicated_log::StartError),
    /// The snapshot cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The replica cannot go on: the log has stopped, or holds what this version cannot read.
    #[error("{0}")]
    Stopped(String),
}

/// Runs a replica until `shutdown` completes.
///
/// # Errors
/// [`RunError`] if it cannot start, or cannot go on; trying again unchanged does not help.
pub fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, Result<(), RunError>> {
    boxed(config, shutdown.boxed())
}

/// The body of an `async fn` is compiled by whoever awaits it, and a replica's is most of this crate: once boxed it is compiled here, and
/// only here.
#[inline(never)]
fn boxed(config: Config, shutdown: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<(), RunError>> {
    with_rest(config, shutdown).boxed()
}

async fn with_rest(config: Config, shutdown: BoxFuture<'static, ()>) -> Result<(), RunError> {
    config.check().map_err(RunError::Config)?;
    rest::metrics::install();
    let Some(address) = config.listen_rest.or(config.rest.get(&config.replica).copied()) else {
        return Err(RunError::Config(format!("rest: replica {} has no address", config.replica)));
    };
    let bound = tokio::net::TcpListener::bind(address).await;
    let listener = bound.map_err(|source| RunError::Io { what: format!("rest: {address}"), source })?;
    serve(config, |shared, stopped| rest::serve(listener, shared, ended(stopped)), shutdown).await
}

/// As [`run`], with another way in than REST: `front` is given what the replica shares and a channel that becomes true at its end.
///
/// # Errors
/// As for [`run`].
pub async fn serve<F>(
    config: Config,
    front: impl FnOnce(Arc<Shared>, watch::Receiver<bool>) -> F,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let replica = Replica::open(config)?;
    let front = tokio::spawn(front(replica.shared.clone(), replica.stop.subscribe()));
    replica.live(front, shutdown.boxed()).await
}

/// A replica that is ready to run.
struct Replica {
    shared: Arc<Shared>,
    log: LogHandle,
    inbox: mpsc::Receiver<Message>,
    rpc: Listener,
    stop: watch::Sender<bool>,
}

impl Replica {
    fn open(config: Config) -> Result<Replica, RunError> {
        let dir = config.data_dir.clone();
        std::fs::create_dir_all(&dir).map_err(|source| RunError::Io { what: dir.display().to_string(), source })?;
        let snapshot = snapshot::read(&dir)?.unwrap_or(Snapshot {
            index: LogIndex(0),
            term: Term::NONE,
            state: PlacementState::default(),
        });
        let rpc = listen(&config, "rpc", config.listen_rpc.as_ref().or(config.rpc.get(&config.replica)))?;
        let log = evenkeel_replicated_log::start(group(&config)?)?;
        let (messages, inbox) = mpsc::channel(INBOX_MESSAGES);
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared::new(config, snapshot, log.clone(), messages, stopped));
        Ok(Replica { shared, log, inbox, rpc, stop })
    }

    /// Boxed: see [`boxed`].
    #[inline(never)]
    fn live(self, front: JoinHandle<()>, shutdown: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<(), RunError>> {
        self.live_until(front, shutdown).boxed()
    }

    async fn live_until(self, mut front: JoinHandle<()>, shutdown: BoxFuture<'static, ()>) -> Result<(), RunError> {
        let Replica { shared, log, inbox, rpc, stop } = self;
        let intake = Arc::new(intake::Intake(shared.clone()));
        let mut rpc = tokio::spawn(evenkeel_rpc::serve(rpc, intake, ended(stop.subscribe())));
        let node = Node::new(shared.clone(), inbox);
        let result = tokio::select! {
            () = shutdown => Ok(()),
            result = node.run() => result,
            epoch = log.removed() => {
                let what = "this replica is no longer a member of the placement driver";
                Err(RunError::Stopped(format!("{what} since epoch {epoch}; once there is a leader its folder can go")))
            }
        };
        shared.end_leadership();
        // An error would mean that nobody listens any more.
        stop.send(true).ok();
        let patience = Duration::from_millis(SHUTDOWN_MS);
        if tokio::time::timeout(patience, async { (&mut rpc).await.ok().zip((&mut front).await.ok()) }).await.is_err() {
            rpc.abort();
            front.abort();
        }
        // Before the log lets go of the folder: then it may be somebody else's.
        let file = shared.snapshots.clone();
        evenkeel_host::blocking(move || file.close()).await.ok();
        log.shutdown().await;
        result
    }
}

async fn ended(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is an end too.
    stopped.wait_for(|stopped| *stopped).await.ok();
}

fn listen(config: &Config, name: &str, address: Option<&SocketAddr>) -> Result<Listener, RunError> {
    let Some(address) = address else {
        return Err(RunError::Config(format!("{name}: replica {} has no address", config.replica)));
    };
    evenkeel_host::bind(*address).map_err(|source| RunError::Io { what: format!("{name}: {address}"), source })
}

fn group(config: &Config) -> Result<GroupConfig, RunError> {
    let Some(listen) = config.listen_log.as_ref().or(config.log.get(&config.replica)) else {
        return Err(RunError::Config(format!("log: replica {} has no address", config.replica)));
    };
    Ok(GroupConfig {
        group: GROUP,
        join: config.join,
        me: ReplicaId(config.replica),
        listen: *listen,
        peers: members::founding(config),
        dir: config.data_dir.join("log"),
        timing: Timing::default(),
        limits: Limits {
            // Whole segments are dropped: several of them make up the retention.
            segment_bytes: (config.log_retention_bytes / 4).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES),
            retention_bytes: config.log_retention_bytes,
            log_cap_bytes: config.log_cap_bytes,
            ..Limits::default()
        },
    })
}
