//! A replica's process: PostgreSQL, the log, the applier, the service, and what happens when one of them fails.
//!
//! PostgreSQL and the applier come and go together: each start of PostgreSQL is an *incarnation*, which reads what PostgreSQL holds,
//! takes the log up from there, and ends when PostgreSQL or a session that had proposed an entry fails (R1). The log and
//! the RPC service live as long as the process; between two incarnations the replica stands aside ([`crate::supervision`]).

use crate::apply::keeper::Keeper;
use crate::apply::{Applier, ApplyError, Request, SavedState, Seeding, Start};
use crate::checks::Checks;
use crate::config::Config;
use crate::engine::Engine;
use crate::fold::{RetryWindow, ShardState};
use crate::housekeeping::keep_house;
use crate::leader::latches::LatchManager;
use crate::leader::scan_sessions::SCAN_SESSIONS;
use crate::leader::session_pool::RESERVED_SESSIONS;
use crate::leader::{Leader, Shared};
use crate::local_reads::{LOCAL_SCAN_SESSIONS, LocalReads};
use crate::members;
use crate::migration::fence::FenceTries;
use crate::migration::source::Copies;
use crate::postgres::{PostgresConfig, PostgresError, Resources};
use crate::progress::Progress;
use crate::store::{Snapshots, Store, StoreError};
use crate::supervision::{Relapses, watch_pulse};
use crate::transfer::{self, Limit, Missing, Pacer};
use evenkeel_host::{Bug, deliberate};
use evenkeel_replicated_log::{
    self as log, GroupConfig, Limits, LogHandle, LogIndex, ReplicaId, StartError, Term, Timing,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// PostgreSQL sessions beside the lanes, readers and transactions: the apply session, snapshots of copies and checks.
const OTHER_SESSIONS: u32 = 40;
/// Requests that may wait for the applier.
const QUEUE_REQUESTS: usize = 64;
/// Between tries to take a peer's state, in milliseconds.
const BETWEEN_TRIES_MS: u64 = 300;

/// The smallest segment of the log, in bytes.
const MIN_SEGMENT_BYTES: u64 = 1 << 20;
/// The same in a simulation, where logs are short: they must be compacted all the same.
const SIMULATED_SEGMENT_BYTES: u64 = 16 << 10;

/// Why the process ends before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// PostgreSQL cannot be found, made or started.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The log cannot be opened.
    #[error("the log cannot be opened: {0}")]
    Log(#[from] StartError),
    /// Going on would make this replica differ from its peers.
    #[error("stopped, because going on would make this replica differ: {0}")]
    Diverged(String),
    /// The log has stopped.
    #[error("the log has stopped")]
    LogStopped,
    /// Another replica has taken its place; nothing is left to do.
    #[error(
        "replica {replica} is no longer a member of shard {shard} since its epoch {epoch}; once the shard has a leader its folder can go"
    )]
    Removed {
        /// The shard.
        shard: evenkeel_protocol::ShardId,
        /// The replica.
        replica: u64,
        /// The first epoch without it.
        epoch: u32,
    },
}

/// One start of PostgreSQL, as the service sees it.
#[derive(Clone)]
pub struct Current {
    /// What the replica's parts share.
    pub shared: Shared,
    /// The way to the applier.
    pub requests: mpsc::Sender<Request>,
    /// The leadership that serves, if any.
    pub leading: watch::Receiver<Option<Arc<Leader>>>,
    /// Reads at level `local`.
    pub local: Arc<LocalReads>,
    /// The server's process.
    pub postgres_pid: Option<u32>,
}

/// A replica.
pub struct Node {
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its log.
    pub log: LogHandle,
    /// What it has checked of its rows.
    pub checks: Arc<Checks>,
    /// Copies that it streams.
    pub copies: Copies,
    /// Fences tried in vain.
    pub fences: FenceTries,
    /// Bytes of rows taken from peers since the process began.
    pub seeded_bytes: Arc<AtomicU64>,
    /// How fast rows are given to a replica that is re-seeded.
    pub pacer: Pacer,
    /// The incarnation; `None` while PostgreSQL starts.
    pub current: watch::Sender<Option<Current>>,
}

/// Runs a shard replica until `shutdown` completes or it cannot go on.
///
/// # Errors
/// See [`RunError`]; each says in one line what is wrong.
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
    run_until(config, shutdown).boxed()
}

async fn run_until(config: Config, shutdown: BoxFuture<'static, ()>) -> Result<(), RunError> {
    let own = |map: &std::collections::BTreeMap<u64, SocketAddr>, what: &str| {
        let missing = || RunError::Config(format!("{what} has no address for replica {}", config.replica));
        map.get(&config.replica).copied().ok_or_else(missing)
    };
    let rpc = config.listen_rpc.unwrap_or(own(&config.rpc, "rpc")?);
    let log_address = config.listen_log.unwrap_or(own(&config.log, "log")?);
    let listen = |error| RunError::Listen { address: rpc, error };
    let listener = evenkeel_host::bind(rpc).map_err(listen)?;
    // Readers twice: the leadership's, and those of `local` reads; of those for scans as many again for pieces.
    let readers = 2 * config.read_lanes + 2 * SCAN_SESSIONS + 2 * LOCAL_SCAN_SESSIONS;
    let sessions = (config.write_lanes + readers + config.max_transactions + RESERVED_SESSIONS) as u32;
    let mut postgres = Engine::claim(PostgresConfig {
        bin_dir: config.postgres_bin.clone(),
        data_dir: config.data_dir.clone(),
        resources: Resources {
            servers: config.servers_on_machine,
            memory_mib: config.postgres_memory_mib,
            shared_buffers_mib: config.shared_buffers_mib,
            max_wal_mib: config.max_wal_mib,
        },
        max_connections: sessions + OTHER_SESSIONS,
    })
    .await?;
    let member = |(id, log): (&u64, &SocketAddr)| Some((ReplicaId(*id), members::member(*config.rpc.get(id)?, *log)));
    let peers = config.log.iter().filter_map(member).collect();
    let log_dir = config.data_dir.join("log");
    if evenkeel_host::simulation().is_none() && !log_dir.exists() {
        // Nothing has been promised or kept here yet. What keeps a new replica from starting is told at once.
        postgres.restart().await?;
    }
    let log = log::start(GroupConfig {
        group: u64::from(config.shard.0),
        join: config.join,
        me: ReplicaId(config.replica),
        listen: log_address,
        peers,
        dir: log_dir,
        timing: log_timing(),
        limits: log_limits(config.log_cap_bytes),
    })?;
    log.stand_aside(true);
    let checks = Arc::new(Checks::new(config.shard, config.replica));
    let node = Arc::new(Node {
        config: Arc::new(config),
        log: log.clone(),
        checks,
        copies: Copies::default(),
        fences: FenceTries::default(),
        seeded_bytes: Arc::default(),
        pacer: Pacer::default(),
        current: watch::Sender::new(None),
    });
    let (stop, stopped) = watch::channel(false);
    let mut stopping = stopped.clone();
    let service = tokio::spawn(evenkeel_rpc::serve(listener, node.clone(), async move {
        // An error means that `run` has ended.
        let _ = stopping.wait_for(|stop| *stop).await;
    }));
    let result = tokio::select! {
        result = node.live(&mut postgres) => result,
        epoch = log.removed() => {
            let (shard, replica) = (node.config.shard, node.config.replica);
            Err(RunError::Removed { shard, replica, epoch })
        }
        () = shutdown => Ok(()),
    };
    node.end_leadership();
    stop.send_replace(true);
    let _ = service.await;
    log.shutdown().await;
    postgres.stop().await?;
    result
}

/// For how long the log is kept for a replica that is down, unless it comes to half of its cap, in milliseconds. What a replica that
/// was away for less needs is there, and no state has to be transferred.
const ABSENT_MS: u64 = 600_000;

/// The log's clock settings. A simulation, which lasts for seconds, keeps the shorter absence.
fn log_timing() -> Timing {
    let default = Timing::default();
    let simulated = evenkeel_host::simulation().is_some();
    Timing { forget_peer_ms: if simulated { default.forget_peer_ms } else { ABSENT_MS }, ..default }
}

/// The log's limits under this cap: a log that must stay small keeps less for replicas that are down, in smaller segments.
fn log_limits(log_cap_bytes: u64) -> Limits {
    let default = Limits::default();
    let least = if evenkeel_host::simulation().is_some() { SIMULATED_SEGMENT_BYTES } else { MIN_SEGMENT_BYTES };
    Limits {
        log_cap_bytes,
        retention_bytes: default.retention_bytes.min(log_cap_bytes / 4),
        segment_bytes: default.segment_bytes.min((log_cap_bytes / 8).max(least)),
        ..default
    }
}

impl Node {
    /// One incarnation after the other.
    async fn live(&self, postgres: &mut Engine) -> Result<(), RunError> {
        let (mut spent, mut relapses) = (None, Relapses::default());
        if postgres.pid().is_none() {
            self.bring_up(postgres).await;
        }
        loop {
            let begun = Instant::now();
            let ended = self.incarnate(postgres, spent, relapses).await;
            let leading = self.log.role().borrow().leading();
            // R1: this term is over on this replica, whatever becomes of the leadership.
            if !deliberate(Bug::LeadershipSurvivesRestart) {
                spent = leading.or(spent);
                self.log.stand_aside(true);
            }
            self.end_leadership();
            relapses.failed_after(begun.elapsed());
            match ended {
                ApplyError::Diverged(reason) => return Err(RunError::Diverged(reason)),
                ApplyError::LogStopped => return Err(RunError::LogStopped),
                ApplyError::Reopen(reason) => {
                    tracing::warn!(shard = %self.config.shard, replica = self.config.replica, reason, "opens PostgreSQL again");
                    metrics::counter!("evenkeel_postgres_reopened_total").increment(1);
                    self.bring_up(postgres).await;
                }
                ApplyError::Damaged(reason) => {
                    tracing::error!(shard = %self.config.shard, replica = self.config.replica, reason, "PostgreSQL's data is damaged");
                    // If not, it is found damaged again: this replica does not lead meanwhile more than it must.
                    self.rebuild(postgres).await;
                    self.bring_up(postgres).await;
                }
                ApplyError::NeedState { trimmed } => self.take_state(postgres, trimmed).await,
            }
        }
    }

    fn end_leadership(&self) {
        if let Some(current) = self.current.send_replace(None)
            && let Some(leader) = &*current.leading.borrow()
        {
            leader.leadership.end();
        }
    }

    async fn take_state(&self, postgres: &mut Engine, trimmed: LogIndex) {
        loop {
            let taken = async {
                let (mut store, _) = Store::open(&postgres.connector()).await?;
                transfer::begin(&self.config, &self.log, &mut store, trimmed).await
            };
            match taken.await {
                Ok(()) => return,
                Err(transfer::TransferError::Store(error)) => {
                    tracing::warn!(shard = %self.config.shard, replica = self.config.replica, %error, "opens PostgreSQL again");
                    if matches!(error, StoreError::Damaged(_)) {
                        self.rebuild(postgres).await;
                    }
                    self.bring_up(postgres).await;
                }
                Err(error) => {
                    tracing::info!(shard = %self.config.shard, replica = self.config.replica, %error, "no state yet");
                    tokio::time::sleep(Duration::from_millis(BETWEEN_TRIES_MS)).await;
                }
            }
        }
    }

    /// Follows the log with this start of PostgreSQL until that must end.
    async fn incarnate(&self, postgres: &Engine, spent: Option<Term>, relapses: Relapses) -> ApplyError {
        let connector = postgres.connector();
        let mut down = postgres.down();
        let opened = async {
            let (store, recovered) = Store::open(&connector).await?;
            let saved = match &recovered.state {
                Some((_, encoded)) => postcard::from_bytes::<SavedState>(encoded)
                    .map_err(|error| ApplyError::Diverged(format!("the recorded state cannot be decoded: {error}")))?,
                None => SavedState { state: ShardState::default(), sizes: Vec::new() },
            };
            let mut window = RetryWindow::default();
            for answers in &recovered.answers {
                window.restore(answers.clone()).map_err(|error| ApplyError::Diverged(error.to_string()))?;
            }
            let missing = match &recovered.seeding {
                Some(encoded) => {
                    let mut missing = Missing::decode(encoded).ok_or_else(|| {
                        ApplyError::Diverged("the record of the missing rows cannot be decoded".into())
                    })?;
                    missing.may_hold(recovered.reached);
                    Some(missing)
                }
                None => None,
            };
            Ok::<_, ApplyError>((store, recovered, saved, window, missing))
        };
        let (store, recovered, saved, window, missing) = match opened.await {
            Ok(opened) => opened,
            Err(error) => return error,
        };
        let SavedState { state, sizes } = saved;
        let progress = Arc::new(Progress::new(recovered.position));
        let (broken, mut broke) = mpsc::unbounded_channel();
        let (failed, mut fails) = mpsc::unbounded_channel();
        let snapshots = Snapshots::new(connector.clone());
        let keeper =
            Keeper::start(store, snapshots.clone(), progress.clone(), self.log.clone(), self.checks.clone(), failed);
        let shared = Shared {
            log: self.log.clone(),
            state: Arc::new(RwLock::new(Arc::new(state.clone()))),
            window: Arc::new(Mutex::new(window)),
            owned_changed: Arc::default(),
            progress: progress.clone(),
            latches: Arc::new(LatchManager::default()),
            connector: connector.clone(),
            snapshots,
            whole: Arc::new(watch::Sender::new(missing.is_none())),
            broken,
        };
        let (leading, lead) = watch::channel(None);
        let (requests, queue) = mpsc::channel(QUEUE_REQUESTS);
        let limit = Arc::new(Limit::default());
        let start = Start {
            state,
            sizes,
            position: recovered.position,
            reached: recovered.reached,
            term: Term(recovered.term),
            records: recovered.records.iter().map(|record| (record.term, record.serial)).collect(),
            spent,
            seeding: missing.clone().map(|missing| Seeding {
                missing,
                limit: limit.clone(),
                taken_bytes: self.seeded_bytes.clone(),
            }),
        };
        let applier = Applier::new(self.config.clone(), shared.clone(), keeper, self.checks.clone(), leading, start);
        let subscription = self.log.subscribe(LogIndex(recovered.position + 1));
        let local = Arc::new(LocalReads::new(shared.clone(), self.config.read_lanes));
        let seeding = self.fetch_missing(&shared, &requests, limit, missing);
        self.current.send_replace(Some(Current {
            shared: shared.clone(),
            requests: requests.clone(),
            leading: lead.clone(),
            local: local.clone(),
            postgres_pid: postgres.pid(),
        }));
        let ended = tokio::select! {
            error = applier.run(subscription, queue) => error,
            Some(error) = broke.recv() => error,
            Some(error) = fails.recv() => error.into(),
            _ = down.wait_for(|down| *down) => ApplyError::Reopen("the PostgreSQL server has exited".into()),
            reason = watch_pulse(&connector) => ApplyError::Reopen(reason),
            () = seeding => ApplyError::LogStopped,
            () = postgres.keep_clean(&shared.progress) => ApplyError::LogStopped,
            () = self.come_back(&shared, postgres, relapses.rest()) => ApplyError::LogStopped,
            () = self.keep_house(lead) => ApplyError::LogStopped,
            () = members::claim_state(&self.log, recovered.position, Term(recovered.term)) => ApplyError::LogStopped,
        };
        connector.end();
        ended
    }

    /// Fetches the rows that are missing, if any are. Never returns.
    async fn fetch_missing(
        &self,
        shared: &Shared,
        requests: &mpsc::Sender<Request>,
        limit: Arc<Limit>,
        missing: Option<Missing>,
    ) {
        match missing {
            Some(missing) => {
                transfer::fetch(self.config.clone(), shared.clone(), requests.clone(), limit, missing).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Runs each leadership's housekeeping. Never returns.
    async fn keep_house(&self, mut leading: watch::Receiver<Option<Arc<Leader>>>) {
        loop {
            let leader = leading.borrow_and_update().clone();
            if let Some(leader) = leader {
                let house = keep_house(leader, self.config.clone(), self.checks.clone());
                tokio::select! {
                    () = house => {}
                    _ = leading.changed() => continue,
                }
            }
            if leading.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
