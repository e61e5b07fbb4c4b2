//! The one task that writes decided things into PostgreSQL, in order.
//!
//! The applier folds and the keeper stores, so that a leader's own entries are not held up behind the rows of a range that is
//! coming in. What is asked of the keeper is done in the order it was asked; a snapshot asked for between two batches lies between them.

use crate::progress::Progress;
use crate::store::{ApplyBatch, PinnedSnapshot, Snapshots, Store, StoreError};
use evenkeel_replicated_log::{LogHandle, LogIndex};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Batches that wait to be stored; the applier waits beyond it.
const QUEUE_BATCHES: usize = 64;
/// How often an apply that PostgreSQL refuses for the moment is tried, and how long between tries, in milliseconds.
const TRIES: usize = 20;
const BETWEEN_TRIES_MS: u64 = 50;

/// What the keeper is asked to do.
pub enum Command {
    /// Apply a batch.
    Apply {
        /// The batch.
        batch: Box<ApplyBatch>,
        /// Positions that PostgreSQL holds then.
        confirms: Vec<u64>,
    },
    /// Run this once everything asked for before is stored.
    Then(Box<dyn FnOnce() + Send>),
    /// Take a snapshot of what is stored now.
    Snapshot(oneshot::Sender<Result<PinnedSnapshot, StoreError>>),
    /// Delete records and positions that are no longer needed.
    Prune {
        /// Records of a leader's own entries.
        records: Vec<(u64, u64)>,
        /// Positions below this.
        positions_below: u64,
    },
    /// Everything up to here is durable once the last batch asked for is (it was synchronous): let the log forget (R16).
    Compact(u64),
    /// Take another replica's state: drop everything first.
    Clear(oneshot::Sender<Result<(), StoreError>>),
}

/// A way to the keeper.
#[derive(Clone)]
pub struct Keeper {
    commands: mpsc::Sender<Command>,
}

/// The keeper has stopped; why has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the keeper has stopped")]
pub struct KeeperStopped;

impl Keeper {
    /// Starts a keeper. `failed` is told the error that stops it.
    pub fn start(
        store: Store,
        snapshots: Snapshots,
        progress: Arc<Progress>,
        log: LogHandle,
        failed: mpsc::UnboundedSender<StoreError>,
    ) -> Keeper {
        let (commands, queue) = mpsc::channel(QUEUE_BATCHES);
        tokio::spawn(async move {
            let mut task = Task { store, snapshots, progress, log };
            if let Err(error) = task.run(queue).await {
                // The receiver is the replica; if it has gone, so has the reason to tell it.
                let _ = failed.send(error);
            }
        });
        Keeper { commands }
    }

    /// Asks for something; waits while too much is waiting already.
    pub async fn ask(&self, command: Command) -> Result<(), KeeperStopped> {
        self.commands.send(command).await.map_err(|_| KeeperStopped)
    }

    /// Waits until everything asked for before is done.
    pub async fn idle(&self) -> Result<(), KeeperStopped> {
        let (sender, receiver) = oneshot::channel();
        let then = move || {
            // Whoever gave up waiting need not know.
            let _ = sender.send(());
        };
        self.ask(Command::Then(Box::new(then))).await?;
        receiver.await.map_err(|_| KeeperStopped)
    }

    /// A snapshot of what everything asked for before leaves behind.
    pub async fn snapshot(&self) -> Result<oneshot::Receiver<Result<PinnedSnapshot, StoreError>>, KeeperStopped> {
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
}

impl Task {
    async fn run(&mut self, mut queue: mpsc::Receiver<Command>) -> Result<(), StoreError> {
        while let Some(command) = queue.recv().await {
            match command {
                Command::Apply { batch, confirms } => {
                    self.apply(&batch).await?;
                    for position in confirms {
                        self.progress.confirm(position);
                    }
                }
                Command::Then(run) => run(),
                Command::Snapshot(reply) => {
                    let _ = reply.send(self.snapshots.take_reserved().await);
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
        let started = Instant::now();
        let mut tries = 0;
        loop {
            match self.store.apply(batch).await {
                Ok(()) => {
                    metrics::histogram!("evenkeel_apply_seconds").record(started.elapsed().as_secs_f64());
                    return Ok(());
                }
                Err(StoreError::Refused(error)) if tries < TRIES => {
                    tracing::warn!(%error, "PostgreSQL refuses an apply for the moment");
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(BETWEEN_TRIES_MS)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
