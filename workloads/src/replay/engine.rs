//! The shell of the engine: workers, the clock, the target. It decides nothing; the scheduler does.
//!
//! Each worker draws an operation, waits until it is due, sends it, and reports the answer. At a
//! rate there are as many workers as operations may be under way: a worker that waits for its
//! operation's time costs a timer and nothing else.
//!
//! Locks are held for a few synchronous steps and never across an await. There are two, so that
//! counting does not wait for decisions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::{MAX_RUN_S, ReplayConfig};
use super::error::ReplayError;
use super::key_order::WriteStart;
use super::ledger::Ledger;
use super::recorder::{Recorder, ReplayRecord, SecondSummary};
use super::scheduler::{Scheduler, Ticket, WriteStep, check_row, plain, write};
use super::target::{Statement, Target, TargetAnswer, TargetFailure, TargetStatementKind};
use crate::operation::{Operation, OperationKind, OperationSource};

/// The grain of the runtime's timers. A worker asks to be woken this much early; an operation may
/// so start up to one grain before it is due, and is then timed from its start, instead of being
/// charged for the timer's rounding up.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// Receives each second of a run, once, when it is over.
pub trait Observer: Send + 'static {
    /// The second is over. Called between two ticks of a timer: must not block.
    fn second(&mut self, summary: &SecondSummary);
}

impl<F: FnMut(&SecondSummary) + Send + 'static> Observer for F {
    fn second(&mut self, summary: &SecondSummary) {
        self(summary);
    }
}

/// The end of a replay.
#[derive(Debug)]
pub struct Replayed {
    /// The answers that were recorded.
    pub record: ReplayRecord,
    /// The acknowledged writes; verify them before trusting the record.
    pub ledger: Ledger,
}

struct ReplayState {
    scheduler: Mutex<Scheduler>,
    recorder: Mutex<Recorder>,
    /// Notified whenever a write has ended.
    left: Notify,
    stop: watch::Sender<bool>,
    in_flight: AtomicU64,
    /// When the run began; control handles exist before it has.
    start: OnceLock<Instant>,
}

impl ReplayState {
    fn now(&self) -> Duration {
        self.start.get().map_or(Duration::ZERO, |start| evenkeel_host::tokio_now().duration_since(*start))
    }
}

/// A panic while the lock was held leaves counters that are at worst one step behind; the panic
/// itself ends the run.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes a replay while it runs.
#[derive(Clone)]
pub struct ReplayControl {
    shared: Arc<ReplayState>,
}

impl ReplayControl {
    /// From now on the load is divided among `shards` shards.
    pub fn set_shards(&self, shards: u32) {
        lock(&self.shared.recorder).set_shards(shards.max(1));
    }

    /// Starts no more operations; those under way end.
    pub fn stop(&self) {
        self.shared.stop.send_replace(true);
        lock(&self.shared.scheduler).stop(self.shared.now());
    }

    /// Time since the run began; zero before.
    pub fn elapsed(&self) -> Duration {
        self.shared.now()
    }

    /// Writes that wait behind another write of their key.
    pub fn parked_operations(&self) -> usize {
        lock(&self.shared.scheduler).parked()
    }
}

/// One replay, ready to run.
pub struct Replay {
    shared: Arc<ReplayState>,
    config: ReplayConfig,
}

impl Replay {
    /// Prepares a replay of `source`. The ledger knows the rows that were loaded.
    pub fn new(config: ReplayConfig, source: Box<dyn OperationSource>, ledger: Ledger) -> Result<Self, ReplayError> {
        config.validate()?;
        let max_seconds = (MAX_RUN_S + config.drain_timeout_ms / 1_000 + 2) as usize;
        let shared = ReplayState {
            scheduler: Mutex::new(Scheduler::new(&config, source, ledger)),
            recorder: Mutex::new(Recorder::new(config.shards, max_seconds)),
            left: Notify::new(),
            stop: watch::Sender::new(false),
            in_flight: AtomicU64::new(0),
            start: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared), config })
    }

    /// A handle that changes the replay while it runs.
    pub fn control(&self) -> ReplayControl {
        ReplayControl { shared: self.shared.clone() }
    }

    /// Runs to the end: of the duration, of the source, or by [`ReplayControl::stop`].
    pub async fn run<T: Target>(self, target: Arc<T>, observer: impl Observer) -> Result<Replayed, ReplayError> {
        let start = *self.shared.start.get_or_init(evenkeel_host::tokio_now);
        let mut workers = JoinSet::new();
        for _ in 0..self.config.pace.max_in_flight() {
            workers.spawn(Worker { shared: self.shared.clone(), target: target.clone() }.run());
        }
        let mut ticker = Ticker { observer, next_second: 0, start };
        let abandoned = self.join(&mut workers, &mut ticker).await?;

        let hottest_key_share = lock(&self.shared.scheduler).hottest_key_share();
        let (ledger, duration, not_started) = lock(&self.shared.scheduler).finish(self.shared.now());
        ticker.catch_up(&self.shared, duration);
        let record = lock(&self.shared.recorder).finish(duration, hottest_key_share, not_started, abandoned);
        Ok(Replayed { record, ledger })
    }

    /// Waits until every worker has ended, or for the drain's time limit. Returns how many
    /// operations were abandoned.
    async fn join(
        &self,
        workers: &mut JoinSet<Result<(), ReplayError>>,
        ticker: &mut Ticker<impl Observer>,
    ) -> Result<u64, ReplayError> {
        let drain = Duration::from_millis(self.config.drain_timeout_ms);
        let mut deadline = ticker.start + self.config.duration + drain;
        loop {
            tokio::select! {
                joined = workers.join_next() => match joined {
                    None => return Ok(0),
                    Some(Ok(Ok(()))) => {
                        // Workers draw ahead of time, so the first may end long before the run
                        // does.
                        let ended = lock(&self.shared.scheduler).ended_at().unwrap_or(self.config.duration);
                        deadline = ticker.start + ended.max(self.shared.now().min(self.config.duration)) + drain;
                    }
                    Some(Ok(Err(error))) => return Err(error),
                    Some(Err(error)) => return Err(ReplayError::Task(error.to_string())),
                },
                () = evenkeel_host::sleep_until(ticker.due()) => ticker.tick(&self.shared),
                () = evenkeel_host::sleep_until(deadline) => {
                    let abandoned = self.shared.in_flight.load(Ordering::Relaxed);
                    workers.shutdown().await;
                    return Ok(abandoned);
                }
            }
        }
    }
}

/// Hands each second to the observer when it is over.
struct Ticker<O> {
    observer: O,
    next_second: u64,
    start: Instant,
}

impl<O: Observer> Ticker<O> {
    fn due(&self) -> Instant {
        self.start + Duration::from_secs(self.next_second + 1)
    }

    fn tick(&mut self, shared: &ReplayState) {
        let summary = lock(&shared.recorder).summary(self.next_second);
        self.observer.second(&summary);
        self.next_second += 1;
    }

    /// At the end of the run: the seconds that were not handed over yet, up to `duration`.
    fn catch_up(&mut self, shared: &ReplayState, duration: Duration) {
        while (self.next_second as f64) < duration.as_secs_f64() {
            self.tick(shared);
        }
    }
}

/// One of the tasks that send operations.
struct Worker<T> {
    shared: Arc<ReplayState>,
    target: Arc<T>,
}

impl<T: Target> Worker<T> {
    async fn run(self) -> Result<(), ReplayError> {
        let mut stop = self.shared.stop.subscribe();
        loop {
            let drawn = lock(&self.shared.scheduler).draw(self.shared.now())?;
            let Some(ticket) = drawn else { return Ok(()) };
            if !self.wait_until_due(&ticket, &mut stop).await {
                return Ok(());
            }
            let mut next = self.admit(ticket).await;
            while let Some(ticket) = next {
                next = self.perform(&ticket).await?;
            }
        }
    }

    /// Waits for the operation's time; false if the run was stopped before.
    async fn wait_until_due(&self, ticket: &Ticket, stop: &mut watch::Receiver<bool>) -> bool {
        let (Some(due), Some(start)) = (ticket.due, self.shared.start.get()) else { return true };
        let early = *start + due.saturating_sub(TIMER_GRAIN);
        if early <= evenkeel_host::tokio_now() {
            return true;
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => false,
            () = evenkeel_host::sleep_until(early) => true,
        }
    }

    /// The operation if it may start now; `None` if it was parked: the end of the write before it
    /// starts it.
    async fn admit(&self, ticket: Ticket) -> Option<Ticket> {
        if !ticket.operation.kind.writes() {
            return Some(ticket);
        }
        let mut ticket = ticket;
        loop {
            match lock(&self.shared.scheduler).enter(ticket) {
                WriteStart::Started(ticket) => return Some(ticket),
                WriteStart::Parked => return None,
                WriteStart::Full(back) => ticket = back,
            }
            // A notification between the check and this wait is kept for it.
            self.shared.left.notified().await;
        }
    }

    /// Carries out one operation. Returns the next write of the same key, if one was parked.
    async fn perform(&self, ticket: &Ticket) -> Result<Option<Ticket>, ReplayError> {
        let operation = ticket.operation;
        let started = self.shared.now();
        let counts_from = ticket.due.map_or(started, |due| due.min(started));
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        match operation.kind {
            OperationKind::Read => {
                self.read(operation.key).await;
            }
            OperationKind::Scan { limit_rows } => self.scan(operation.key, limit_rows).await,
            OperationKind::ReadModifyWrite => {
                if self.read(operation.key).await {
                    self.write(&operation).await?;
                }
            }
            OperationKind::Update | OperationKind::Insert | OperationKind::Delete => self.write(&operation).await?,
        }
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        let now = self.shared.now();
        lock(&self.shared.recorder).ended(now, now.saturating_sub(counts_from));
        if !operation.kind.writes() {
            return Ok(None);
        }
        let next = lock(&self.shared.scheduler).leave(ticket);
        self.shared.left.notify_one();
        Ok(next)
    }

    /// Sends a statement and counts its outcome.
    async fn send(&self, statement: &Statement) -> Result<TargetAnswer, TargetFailure> {
        let outcome = self.target.execute(statement).await;
        let now = self.shared.now();
        let mut recorder = lock(&self.shared.recorder);
        match &outcome.result {
            Ok(_) => recorder.answered(now, outcome.shard, outcome.retries),
            Err(failure) => {
                recorder.failed(now, || format!("{:?} of {}", statement.kind, statement.key), failure);
            }
        }
        outcome.result
    }

    fn wrong(&self, what: String) {
        lock(&self.shared.recorder).wrong(self.shared.now(), || what);
    }

    /// Reads a row and checks it; false if the read failed.
    async fn read(&self, key: i64) -> bool {
        let floor = lock(&self.shared.scheduler).read_floor(key);
        match self.send(&plain(TargetStatementKind::Read, key, 0)).await {
            Ok(TargetAnswer::Row(row)) => {
                let (seed, check) = {
                    let scheduler = lock(&self.shared.scheduler);
                    (scheduler.seed(), scheduler.check_read(key, floor, row.as_ref()))
                };
                let value = || row.as_ref().map_or(Ok(()), |row| check_row(seed, key, row));
                check.and_then(|()| value()).unwrap_or_else(|what| self.wrong(what));
                true
            }
            Ok(other) => {
                self.wrong(format!("read of {key} was answered with {other:?}"));
                true
            }
            Err(_) => false,
        }
    }

    async fn scan(&self, key: i64, limit_rows: u32) {
        let began = lock(&self.shared.scheduler).scan_begins();
        match self.send(&plain(TargetStatementKind::Scan, key, limit_rows)).await {
            Ok(TargetAnswer::Rows(rows)) => {
                let (seed, check) = {
                    let scheduler = lock(&self.shared.scheduler);
                    (scheduler.seed(), scheduler.check_scan(began, key, limit_rows, &rows))
                };
                let values = || rows.iter().try_for_each(|row| check_row(seed, row.key, row));
                check.and_then(|()| values()).unwrap_or_else(|what| self.wrong(what));
            }
            Ok(other) => self.wrong(format!("scan from {key} was answered with {other:?}")),
            Err(_) => {}
        }
    }

    /// Writes a row; no other write of its key is under way.
    async fn write(&self, operation: &Operation) -> Result<(), ReplayError> {
        let mut step = lock(&self.shared.scheduler).write_step(operation)?;
        if step == WriteStep::ReadFirst {
            let Ok(TargetAnswer::Row(row)) = self.send(&plain(TargetStatementKind::Read, operation.key, 0)).await
            else {
                return Ok(());
            };
            step = lock(&self.shared.scheduler).resolved(operation, row.as_ref())?;
        }
        if let WriteStep::Write { kind, issued } = step {
            let seed = lock(&self.shared.scheduler).seed();
            let statement = write(seed, kind, operation.key, issued, operation.value_bytes);
            let result = self.send(&statement).await;
            let check = lock(&self.shared.scheduler).written(operation.key, kind, &result);
            check.unwrap_or_else(|what| self.wrong(what));
        }
        Ok(())
    }
}
