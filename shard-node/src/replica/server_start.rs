//! One start of PostgreSQL: recovers the recorded state, applies the log from there, and serves.

use super::handles::ReplicaHandles;
use super::membership;
use super::postgres_supervision::{Relapses, come_back, watch_pulse};
use super::process::{ReplicaProcess, ServerStart};
use crate::apply::{Applier, ApplierRequest, ApplyWriter, SavedState, Seeding, Start};
use crate::error::ApplyError;
use crate::leader::Leader;
use crate::leader::latches::LatchManager;
use crate::local_reads::LocalReads;
use crate::maintenance::leadership_tasks;
use crate::postgres::{Connector, PostgresHandle};
use crate::progress::Progress;
use crate::state_machine::{MultiShardTransactions, RetryWindow};
use crate::state_transfer::{self, Limit, Missing};
use crate::storage::{Recovered, Snapshots, Store};
use evenkeel_replicated_log::{LogIndex, Term};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{mpsc, watch};

/// Requests that may wait for the applier.
const QUEUE_REQUESTS: usize = 64;

/// Follows the log with this start of PostgreSQL until it must end. `spent` is a term that this
/// replica must not lead again.
pub(super) async fn follow_log(
    process: &ReplicaProcess,
    postgres: &PostgresHandle,
    spent: Option<Term>,
    relapses: Relapses,
) -> ApplyError {
    let connector = postgres.connector();
    let mut down = postgres.down();
    let Recovery { store, recovered, saved, window, transactions, missing } = match recover(&connector).await {
        Ok(recovery) => recovery,
        Err(error) => return error,
    };
    let SavedState { state, sizes, unfinished, .. } = saved;
    connector.set_schema_version(state.schema_version());
    let progress = Arc::new(Progress::new(recovered.position));
    let (broken, mut broke) = mpsc::unbounded_channel();
    let (failed, mut fails) = mpsc::unbounded_channel();
    let snapshots = Snapshots::new(connector.clone());
    let writer = ApplyWriter::start(
        store,
        snapshots.clone(),
        progress.clone(),
        process.log.clone(),
        process.observations.clone(),
        failed,
    );
    let handles = ReplicaHandles {
        log: process.log.clone(),
        state: Arc::new(RwLock::new(Arc::new(state.clone()))),
        window: Arc::new(Mutex::new(window)),
        transactions: Arc::new(Mutex::new(transactions)),
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
        unfinished,
        seeding: missing.clone().map(|missing| Seeding {
            missing,
            limit: limit.clone(),
            taken_bytes: process.seeded_bytes.clone(),
        }),
    };
    let observed = (process.observations.clone(), process.scrub.clone());
    let applier = Applier::new(process.config.clone(), handles.clone(), writer, observed, leading, start);
    let subscription = process.log.subscribe(LogIndex(recovered.position + 1));
    let local = Arc::new(LocalReads::new(handles.clone(), process.config.read_lanes));
    let seeding = fetch_missing(process, &handles, &requests, limit, missing);
    process.current.send_replace(Some(ServerStart {
        handles: handles.clone(),
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
        () = postgres.keep_vacuumed(&handles.progress) => ApplyError::LogStopped,
        () = come_back(process, &handles, postgres, relapses.rest()) => ApplyError::LogStopped,
        () = run_tasks(process, lead) => ApplyError::LogStopped,
        () = membership::claim_state(&process.log, recovered.position, Term(recovered.term)) => ApplyError::LogStopped,
    };
    connector.end();
    ended
}

/// The state that PostgreSQL has recorded.
struct Recovery {
    store: Store,
    recovered: Recovered,
    saved: SavedState,
    window: RetryWindow,
    transactions: MultiShardTransactions,
    missing: Option<Missing>,
}

/// Opens the apply session and decodes the recorded state.
async fn recover(connector: &Connector) -> Result<Recovery, ApplyError> {
    let (store, recovered) = Store::open(connector).await?;
    let mut saved = match &recovered.state {
        Some((_, encoded)) => postcard::from_bytes::<SavedState>(encoded)
            .map_err(|error| ApplyError::Diverged(format!("the recorded state cannot be decoded: {error}")))?,
        None => SavedState::default(),
    };
    // Behind the position of the state they have become whole, or another term has begun.
    if recovered.state.as_ref().is_some_and(|(at, _)| *at != recovered.position) {
        saved.unfinished.clear();
    }
    let mut window = RetryWindow::default();
    for answers in &recovered.answers {
        window.restore(answers.clone()).map_err(|error| ApplyError::Diverged(error.to_string()))?;
    }
    let transactions = match &recovered.transactions {
        Some(recorded) => {
            MultiShardTransactions::restore(recorded).map_err(|error| ApplyError::Diverged(error.to_string()))?
        }
        None => MultiShardTransactions::default(),
    };
    let missing = match &recovered.seeding {
        Some(encoded) => {
            let mut missing = Missing::decode(encoded)
                .ok_or_else(|| ApplyError::Diverged("the record of the missing rows cannot be decoded".into()))?;
            missing.may_hold(recovered.reached);
            Some(missing)
        }
        None => None,
    };
    Ok(Recovery { store, recovered, saved, window, transactions, missing })
}

/// Fetches the rows that are missing, if any are. Never returns.
async fn fetch_missing(
    process: &ReplicaProcess,
    handles: &ReplicaHandles,
    requests: &mpsc::Sender<ApplierRequest>,
    limit: Arc<Limit>,
    missing: Option<Missing>,
) {
    match missing {
        Some(missing) => {
            state_transfer::fetch(process.config.clone(), handles.clone(), requests.clone(), limit, missing).await;
        }
        None => std::future::pending().await,
    }
}

/// Runs each leadership's background tasks. Never returns.
async fn run_tasks(process: &ReplicaProcess, mut leading: watch::Receiver<Option<Arc<Leader>>>) {
    loop {
        let leader = leading.borrow_and_update().clone();
        if let Some(leader) = leader {
            let tasks =
                leadership_tasks(leader, process.config.clone(), process.observations.clone(), process.scrub.clone());
            tokio::select! {
                () = tasks => {}
                _ = leading.changed() => continue,
            }
        }
        if leading.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
