//! The apply writer: the one task that writes decided entries to PostgreSQL, in order.
//!
//! The applier updates the state machine; the apply writer writes to PostgreSQL in a separate task.
//! A leader's own entries therefore do not wait for the rows of an incoming range.
//!
//! Promises: commands run in the order in which they were queued. A snapshot that is queued between
//! two batches shows the first batch and not the second. The queue is bounded in commands and in
//! bytes.

use crate::error::ApplyError;
use crate::move_observations::MoveObservations;
use crate::progress::Progress;
use crate::storage::{ApplyBatch, PinnedSnapshot, Snapshots, Store, StoreError};
use evenkeel_protocol::OperatorId;
use evenkeel_replicated_log::{LogHandle, LogIndex};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Commands in the queue, and bytes of their batches; the applier waits beyond either.
const QUEUE_COMMANDS: usize = 64;
const QUEUE_BYTES: usize = 64 << 20;
/// Bytes are counted in units, so that they fit a semaphore's range.
const UNIT_BYTES: usize = 1 << 10;
const QUEUE_UNITS: usize = QUEUE_BYTES / UNIT_BYTES;
/// Attempts for a batch that PostgreSQL rejects for the moment, and the pause between two, in
/// milliseconds.
const TRIES: usize = 20;
const BETWEEN_TRIES_MS: u64 = 50;

/// A command to the apply writer.
pub enum Command {
    /// Apply a batch.
    Apply {
        /// The batch.
        batch: Box<ApplyBatch>,
        /// Positions that PostgreSQL holds then.
        confirms: Vec<u64>,
        /// How many bytes of rows it brings, about.
        bytes: usize,
    },
    /// The range that this attempt brought is adopted: it must be stored here as it was sent.
    Verify {
        /// The move.
        operator: OperatorId,
        /// The attempt.
        attempt: u64,
    },
    /// Run this once all earlier commands are done.
    Then(Box<dyn FnOnce() + Send>),
    /// Take a snapshot of the stored rows.
    Snapshot(oneshot::Sender<Result<PinnedSnapshot, StoreError>>),
    /// Delete records and positions that are no longer needed.
    Prune {
        /// Records of a leader's own entries.
        records: Vec<(u64, u64)>,
        /// Positions below this.
        positions_below: u64,
    },
    /// Everything up to here is durable once the last batch asked for is (it was synchronous): let
    /// the log forget (R16).
    Compact(u64),
    /// Take another replica's state: drop everything first.
    Clear(oneshot::Sender<Result<(), StoreError>>),
}

/// Queues commands for the apply writer.
#[derive(Clone)]
pub struct ApplyWriter {
    commands: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// A command and its share of the queue, which it keeps until it is done.
struct Waiting {
    command: Command,
    _room: OwnedSemaphorePermit,
}

/// The apply writer has stopped; the replica has received the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the apply writer has stopped")]
pub struct ApplyWriterStopped;

impl From<ApplyWriterStopped> for ApplyError {
    fn from(_: ApplyWriterStopped) -> ApplyError {
        ApplyError::Reopen("the apply writer has stopped".into())
    }
}

impl ApplyWriter {
    /// Starts an apply writer. `failed` receives the error that stops it.
    pub fn start(
        store: Store,
        snapshots: Snapshots,
        progress: Arc<Progress>,
        log: LogHandle,
        checks: Arc<MoveObservations>,
        failed: mpsc::UnboundedSender<StoreError>,
    ) -> ApplyWriter {
        let (commands, queue) = mpsc::channel(QUEUE_COMMANDS);
        tokio::spawn(async move {
            let mut task = Task { store, snapshots, progress, log, checks };
            if let Err(error) = task.run(queue).await {
                // The receiver is the replica. If it has gone, no one needs the reason.
                let _ = failed.send(error);
            }
        });
        ApplyWriter { commands, room: Arc::new(Semaphore::new(QUEUE_UNITS)) }
    }

    /// Queues a command; waits while the queue is full.
    pub async fn ask(&self, command: Command) -> Result<(), ApplyWriterStopped> {
        let bytes = if let Command::Apply { bytes, .. } = &command { *bytes } else { 0 };
        let units = (bytes / UNIT_BYTES).min(QUEUE_UNITS) as u32;
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| ApplyWriterStopped)?;
        self.commands.send(Waiting { command, _room: room }).await.map_err(|_| ApplyWriterStopped)
    }

    /// Bytes of batches that wait or are being stored.
    pub fn waiting_bytes(&self) -> usize {
        (QUEUE_UNITS - self.room.available_permits().min(QUEUE_UNITS)) * UNIT_BYTES
    }

    /// Waits until all earlier commands are done.
    pub async fn idle(&self) -> Result<(), ApplyWriterStopped> {
        let (sender, receiver) = oneshot::channel();
        let then = move || {
            // The caller may have given up waiting.
            let _ = sender.send(());
        };
        self.ask(Command::Then(Box::new(then))).await?;
        receiver.await.map_err(|_| ApplyWriterStopped)
    }

    /// A snapshot of the rows after all earlier commands.
    pub async fn snapshot(&self) -> Result<oneshot::Receiver<Result<PinnedSnapshot, StoreError>>, ApplyWriterStopped> {
        let (sender, receiver) = oneshot::channel();
        self.ask(Command::Snapshot(sender)).await?;
        Ok(receiver)
    }
}

struct Task {
    store: Store,
    snapshots: Snapshots,
    progress: Arc<Progress>,
    log: LogHandle,
    checks: Arc<MoveObservations>,
}

impl Task {
    async fn run(&mut self, mut queue: mpsc::Receiver<Waiting>) -> Result<(), StoreError> {
        while let Some(Waiting { command, _room }) = queue.recv().await {
            match command {
                Command::Apply { batch, confirms, .. } => {
                    self.apply(&batch).await?;
                    for position in confirms {
                        self.progress.confirm(position);
                    }
                    self.log.applied(LogIndex(self.progress.watermark()));
                }
                Command::Verify { operator, attempt } => {
                    // A majority has it right, or it would not have been adopted; this replica
                    // takes their state.
                    if let Some(detail) = self.checks.differing(operator, attempt) {
                        return Err(StoreError::Damaged(detail));
                    }
                }
                Command::Then(run) => run(),
                Command::Snapshot(reply) => {
                    let _ = reply.send(self.snapshots.take().await);
                }
                Command::Prune { records, positions_below } => self.store.prune(&records, positions_below).await?,
                Command::Compact(position) => self.log.compact(LogIndex(position)),
                Command::Clear(reply) => {
                    let cleared = self.store.clear().await;
                    let failed = cleared.as_ref().err().cloned();
                    let _ = reply.send(cleared);
                    if let Some(error) = failed {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    async fn apply(&mut self, batch: &ApplyBatch) -> Result<(), StoreError> {
        let started = evenkeel_host::now();
        let mut tries = 0;
        loop {
            match self.store.apply(batch).await {
                Ok(differing) => {
                    differing.iter().for_each(|differing| self.checks.differs(differing));
                    metrics::histogram!("evenkeel_apply_seconds").record(evenkeel_host::elapsed(started).as_secs_f64());
                    return Ok(());
                }
                Err(StoreError::Refused(error)) if tries < TRIES => {
                    tracing::warn!(%error, "PostgreSQL rejects a batch for the moment; it is tried again");
                    tries += 1;
                    evenkeel_host::sleep(Duration::from_millis(BETWEEN_TRIES_MS)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
