//! Start and end of a replica.

use super::event_loop::EventLoop;
use super::handles::ReplicaHandles;
use super::membership;
use super::message::LoopMessage;
use super::report_service::ReportService;
use super::run_error::RunError;
use crate::config::Config;
use crate::snapshot::{self, Snapshot};
use crate::state::PlacementState;
use evenkeel_host::Listener;
use evenkeel_replicated_log::{GroupConfig, Limits, LogHandle, LogIndex, ReplicaId, Term, Timing};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The log's group number of the placement driver. The group of a shard has the shard's number,
/// from 1.
const GROUP: u64 = 0;
/// The minimum size of the log's segment files, in bytes.
const MIN_SEGMENT_BYTES: u64 = 64 << 10;
/// The maximum size of the log's segment files, in bytes.
const MAX_SEGMENT_BYTES: u64 = 16 << 20;
/// The maximum number of messages that wait for the event loop. Above it senders wait.
const INBOX_MESSAGES: usize = 1024;
/// The time limit for connections to end at shutdown, in milliseconds.
const SHUTDOWN_MS: u64 = 1000;

/// Runs a replica until `shutdown` completes, with any front end: [`crate::run()`] passes the REST
/// API, a simulation its clients. `front` receives the replica's handles, and a channel that
/// becomes true when the replica ends.
///
/// # Errors
/// [`RunError`] if the replica cannot start or cannot continue. A retry without a change does not
/// help.
pub async fn serve<F>(
    config: Config,
    front: impl FnOnce(Arc<ReplicaHandles>, watch::Receiver<bool>) -> F,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let replica = OpenReplica::open(config)?;
    let front = tokio::spawn(front(replica.handles.clone(), replica.stop.subscribe()));
    replica.run(front, shutdown.boxed()).await
}

/// A replica that is ready to run.
struct OpenReplica {
    handles: Arc<ReplicaHandles>,
    log: LogHandle,
    inbox: mpsc::Receiver<LoopMessage>,
    rpc: Listener,
    stop: watch::Sender<bool>,
}

impl OpenReplica {
    fn open(config: Config) -> Result<OpenReplica, RunError> {
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
        let handles = Arc::new(ReplicaHandles::new(config, snapshot, log.clone(), messages, stopped));
        Ok(OpenReplica { handles, log, inbox, rpc, stop })
    }

    /// Boxed: see [`crate::run()`].
    #[inline(never)]
    fn run(self, front: JoinHandle<()>, shutdown: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<(), RunError>> {
        self.run_until(front, shutdown).boxed()
    }

    async fn run_until(self, mut front: JoinHandle<()>, shutdown: BoxFuture<'static, ()>) -> Result<(), RunError> {
        let OpenReplica { handles, log, inbox, rpc, stop } = self;
        let service = Arc::new(ReportService(handles.clone()));
        let mut rpc = tokio::spawn(evenkeel_rpc::serve(rpc, service, ended(stop.subscribe())));
        let event_loop = EventLoop::new(handles.clone(), inbox);
        let result = tokio::select! {
            () = shutdown => Ok(()),
            result = event_loop.run() => result,
            configuration = log.removed() => {
                let what = "this replica is no longer a member of the placement driver";
                Err(RunError::Stopped(format!("{what} since configuration {configuration}; once there is a leader its folder can be deleted")))
            }
        };
        handles.end_leadership();
        // An error means that nobody listens any more.
        stop.send(true).ok();
        let limit = Duration::from_millis(SHUTDOWN_MS);
        if evenkeel_host::timeout(limit, async { (&mut rpc).await.ok().zip((&mut front).await.ok()) }).await.is_err() {
            rpc.abort();
            front.abort();
        }
        // Before the log releases the folder: another process may then use it.
        let file = handles.snapshots.clone();
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
        peers: membership::founding(config),
        dir: config.data_dir.join("log"),
        timing: Timing::default(),
        limits: Limits {
            // The log drops whole segments: the retention consists of several.
            segment_bytes: (config.log_retention_bytes / 4).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES),
            retention_bytes: config.log_retention_bytes,
            log_cap_bytes: config.log_cap_bytes,
            ..Limits::default()
        },
    })
}
