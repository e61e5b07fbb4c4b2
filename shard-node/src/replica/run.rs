//! [`run`]: a replica's process from start to end.

use super::log_settings::{log_limits, log_timing};
use super::membership;
use super::postgres_supervision::{Relapses, bring_up, rebuild};
use super::process::ReplicaProcess;
use super::run_error::RunError;
use super::server_start::follow_log;
use crate::config::Config;
use crate::error::ApplyError;
use crate::leader::scan_sessions::SCAN_SESSIONS;
use crate::leader::session_pool::RESERVED_SESSIONS;
use crate::local_reads::LOCAL_SCAN_SESSIONS;
use crate::migration::fence::FenceTries;
use crate::migration::source::Copies;
use crate::move_observations::MoveObservations;
use crate::postgres::{PostgresConfig, PostgresHandle, Resources};
use crate::scrub::Scrub;
use crate::state_transfer::{self, Pacer};
use crate::storage::{Store, StoreError};
use evenkeel_host::{Bug, deliberate};
use evenkeel_replicated_log::{self as log, GroupConfig, LogIndex, ReplicaId};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// PostgreSQL sessions beside those of write queues, readers and transactions: the apply session,
/// snapshots of copies and of comparisons.
const OTHER_SESSIONS: u32 = 40;
/// Between tries to take a peer's state, in milliseconds.
const BETWEEN_TRIES_MS: u64 = 300;

/// Runs a shard replica until `shutdown` completes or it cannot go on.
///
/// # Errors
/// See [`RunError`]; each gives the reason in one line.
pub fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, Result<(), RunError>> {
    boxed(config, shutdown.boxed())
}

/// The body of an `async fn` is compiled by every crate that awaits it, and a replica's is most of
/// this crate: once boxed it is compiled here, and only here.
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
    let mut postgres = PostgresHandle::claim(postgres_config(&config)).await?;
    let member =
        |(id, log): (&u64, &SocketAddr)| Some((ReplicaId(*id), membership::member(*config.rpc.get(id)?, *log)));
    let peers = config.log.iter().filter_map(member).collect();
    let log_dir = config.data_dir.join("log");
    if evenkeel_host::simulation().is_none() && !log_dir.exists() {
        // Nothing has been promised or stored here yet: an error that keeps a new replica from
        // starting is reported at once.
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
    log.set_ineligible(true);
    let observations = Arc::new(MoveObservations::new(config.replica));
    let scrub = Arc::new(Scrub::new(config.shard, config.replica));
    let process = Arc::new(ReplicaProcess {
        config: Arc::new(config),
        log: log.clone(),
        observations,
        scrub,
        copies: Copies::default(),
        fences: FenceTries::default(),
        seeded_bytes: Arc::default(),
        pacer: Pacer::default(),
        current: watch::Sender::new(None),
    });
    let (stop, stopped) = watch::channel(false);
    let mut stopping = stopped.clone();
    let service = tokio::spawn(evenkeel_rpc::serve(listener, process.clone(), async move {
        // An error means that `run` has ended.
        let _ = stopping.wait_for(|stop| *stop).await;
    }));
    let result = tokio::select! {
        result = supervise(&process, &mut postgres) => result,
        epoch = log.removed() => {
            let (shard, replica) = (process.config.shard, process.config.replica);
            Err(RunError::Removed { shard, replica, epoch })
        }
        () = shutdown => Ok(()),
    };
    process.end_leadership();
    stop.send_replace(true);
    let _ = service.await;
    log.shutdown().await;
    postgres.stop().await?;
    result
}

/// The configuration of the replica's PostgreSQL.
fn postgres_config(config: &Config) -> PostgresConfig {
    // Readers twice: the leadership's, and those of `local` reads; of those for scans as many again
    // for pieces.
    let readers = 2 * config.read_lanes + 2 * SCAN_SESSIONS + 2 * LOCAL_SCAN_SESSIONS;
    let sessions = (config.write_lanes + readers + config.max_transactions + RESERVED_SESSIONS) as u32;
    PostgresConfig {
        bin_dir: config.postgres_bin.clone(),
        data_dir: config.data_dir.clone(),
        resources: Resources {
            servers: config.servers_on_machine,
            memory_mib: config.postgres_memory_mib,
            shared_buffers_mib: config.shared_buffers_mib,
            max_wal_mib: config.max_wal_mib,
        },
        max_connections: sessions + OTHER_SESSIONS,
    }
}

/// Runs one start of PostgreSQL after the other.
async fn supervise(process: &ReplicaProcess, postgres: &mut PostgresHandle) -> Result<(), RunError> {
    let (mut spent, mut relapses) = (None, Relapses::default());
    if postgres.pid().is_none() {
        bring_up(process, postgres).await;
    }
    loop {
        let begun = evenkeel_host::now();
        let ended = follow_log(process, postgres, spent, relapses).await;
        let leading = process.log.role().borrow().leading();
        // R1: this term is over on this replica, whatever becomes of the leadership.
        if !deliberate(Bug::LeadershipSurvivesRestart) {
            spent = leading.or(spent);
            process.log.set_ineligible(true);
        }
        process.end_leadership();
        relapses.failed_after(evenkeel_host::elapsed(begun));
        match ended {
            ApplyError::Diverged(reason) => return Err(RunError::Diverged(reason)),
            ApplyError::LogStopped => return Err(RunError::LogStopped),
            ApplyError::Reopen(reason) => {
                tracing::warn!(shard = %process.config.shard, replica = process.config.replica, reason, "opens PostgreSQL again");
                metrics::counter!("evenkeel_postgres_reopened_total").increment(1);
                bring_up(process, postgres).await;
            }
            ApplyError::Damaged(reason) => {
                tracing::error!(shard = %process.config.shard, replica = process.config.replica, reason, "PostgreSQL's data is damaged");
                // If not, it is found damaged again: this replica does not lead meanwhile more than
                // it must.
                rebuild(process, postgres).await;
                bring_up(process, postgres).await;
            }
            ApplyError::NeedState { trimmed } => take_state(process, postgres, trimmed).await,
        }
    }
}

async fn take_state(process: &ReplicaProcess, postgres: &mut PostgresHandle, trimmed: LogIndex) {
    loop {
        let taken = async {
            let (mut store, _) = Store::open(&postgres.connector()).await?;
            state_transfer::begin(&process.config, &process.log, &mut store, trimmed).await
        };
        match taken.await {
            Ok(()) => return,
            Err(state_transfer::TransferError::Store(error)) => {
                tracing::warn!(shard = %process.config.shard, replica = process.config.replica, %error, "opens PostgreSQL again");
                if matches!(error, StoreError::Damaged(_)) {
                    rebuild(process, postgres).await;
                }
                bring_up(process, postgres).await;
            }
            Err(error) => {
                tracing::info!(shard = %process.config.shard, replica = process.config.replica, %error, "no state yet");
                evenkeel_host::sleep(Duration::from_millis(BETWEEN_TRIES_MS)).await;
            }
        }
    }
}
