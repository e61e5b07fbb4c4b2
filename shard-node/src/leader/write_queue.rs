//! Write queues: autocommit statements on single rows, many to a PostgreSQL transaction and a log
//! entry (R10).
//!
//! Each queue has a session and a worker. The worker takes the waiting statements, up to the limits
//! of [`super::batch_budget`], runs them as one group, and waits for the log. Meanwhile the next
//! batch collects. All statements on one row go through the same queue, so that queues never wait
//! for each other's row locks.
//!
//! Three kinds of statements leave the queue and do not delay the others:
//!
//! - a statement on a row that is known to be locked waits outside, and returns to the queue when
//!   the row is free;
//! - a statement that PostgreSQL rejected runs alone;
//! - a statement whose entry needs several parts (R12) runs alone.
//!
//! At most `ALONE_PER_QUEUE` statements per queue run alone at a time.
//!
//! Not done: statements that read and write other rows than their own; PostgreSQL's locks order
//! those.

use super::batch_budget::{BatchBudget, Weight};
use super::context::LeaderContext;
use super::failures::contention;
use super::group_commit::GroupCommit;
use super::job::Job;
use super::postgres_session::UserSession;
use super::row_locks::{Known, RowLocks, Turn};
use super::standalone::StandaloneStatements;
use crate::postgres::{Connector, SessionRole};
use crate::storage::StoreError;
use evenkeel_protocol::{Failure, Key, SqlError, TableId};
use std::collections::VecDeque;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Statements that may wait in one queue.
const QUEUE_JOBS: usize = 8192;
/// Statements per queue that run alone at the same time.
const ALONE_PER_QUEUE: usize = 4;
/// How long a statement waits for a locked row before it is rejected, in milliseconds. PostgreSQL
/// waits as long for a lock outside of write queues.
const ROW_WAIT_MS: u64 = 2_000;
/// Limits of a queue's session: it does not wait long for a lock that is not known (R10), nor for a
/// slow statement.
const SESSION_SETTINGS: &str = "SET lock_timeout = '50ms'; SET statement_timeout = '5s'";

/// Opens a session for a write queue.
///
/// # Errors
/// As [`Connector::connect`].
pub async fn open(connector: &Connector) -> Result<UserSession, StoreError> {
    let session = UserSession::new(connector.connect(SessionRole::User).await?, connector);
    session.simple(SESSION_SETTINGS).await?;
    Ok(session)
}

/// The queues of a leadership.
pub struct WriteQueues(Vec<mpsc::Sender<Job>>);

impl WriteQueues {
    /// One queue for each session, and the queues' other ends. The number of queues is at least
    /// one.
    pub fn new(queues: usize) -> (WriteQueues, Vec<mpsc::Receiver<Job>>) {
        let (senders, receivers) = (0..queues).map(|_| mpsc::channel(QUEUE_JOBS)).unzip();
        (WriteQueues(senders), receivers)
    }

    /// The queue of a row's statements.
    fn queue_of(&self, table: TableId, key: &Key) -> usize {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((table, key));
        (hash % self.0.len() as u64) as usize
    }

    /// Puts a job into the queue of its row. A job for which there is no room is answered.
    pub(super) fn enqueue(&self, job: Job) {
        let queue = job.key.as_ref().map_or(0, |key| self.queue_of(job.table, key));
        match self.0[queue].try_send(job) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(job)) => {
                let reason = "too many statements are waiting".into();
                job.answer(Err(Failure::Busy { reason, retry_after_ms: 20 }));
            }
            Err(mpsc::error::TrySendError::Closed(job)) => job.answer(Err(Failure::NotLeader { leader: None })),
        }
    }
}

/// The workers of the queues.
pub struct WriteQueueWorkers {
    context: Arc<LeaderContext>,
    queues: Arc<WriteQueues>,
    group: Arc<GroupCommit>,
    standalone: Arc<StandaloneStatements>,
    row_locks: Arc<RowLocks>,
    /// Places for statements that left a queue and run alone.
    alone: Semaphore,
}

impl WriteQueueWorkers {
    /// Starts a worker for each session and queue.
    pub fn start(
        context: Arc<LeaderContext>,
        queues: Arc<WriteQueues>,
        group: Arc<GroupCommit>,
        standalone: Arc<StandaloneStatements>,
        row_locks: Arc<RowLocks>,
        sessions: Vec<(UserSession, mpsc::Receiver<Job>)>,
    ) {
        let alone = Semaphore::new(sessions.len() * ALONE_PER_QUEUE);
        let workers = Arc::new(WriteQueueWorkers { context, queues, group, standalone, row_locks, alone });
        for (session, queue) in sessions {
            tokio::spawn(workers.clone().run(session, queue));
        }
    }

    /// Works on a queue until the leadership ends.
    async fn run(self: Arc<Self>, mut session: UserSession, mut queue: mpsc::Receiver<Job>) {
        let mut ended = self.context.leadership.ended();
        // Taken from the queue and not executed yet.
        let mut waiting: VecDeque<Job> = VecDeque::new();
        while !self.context.leadership.has_ended() {
            if waiting.is_empty() {
                let first = tokio::select! {
                    biased;
                    _ = ended.wait_for(|ended| *ended) => break,
                    job = queue.recv() => job,
                };
                match first {
                    Some(job) => waiting.push_back(job),
                    None => return,
                }
            }
            let batch = self.next_batch(&mut waiting, &mut queue);
            if batch.is_empty() {
                continue;
            }
            metrics::histogram!("evenkeel_batch_statements").record(batch.len() as f64);
            let result = self.group.run(&session, batch, false).await;
            for job in result.run_alone {
                self.take_out(job, true);
            }
            for job in result.run_again.into_iter().rev() {
                waiting.push_front(job);
            }
            if result.session_lost {
                match self.reopen().await {
                    Some(opened) => session = opened,
                    None => break,
                }
            }
        }
        queue.close();
        for job in waiting {
            job.answer(Err(Failure::NotLeader { leader: None }));
        }
        while let Some(job) = queue.recv().await {
            job.answer(Err(Failure::NotLeader { leader: None }));
        }
    }

    /// Takes waiting jobs into one batch until it is full. Jobs on rows that are known to be locked
    /// leave the queue.
    fn next_batch(self: &Arc<Self>, waiting: &mut VecDeque<Job>, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
        let (mut batch, mut budget) = (Vec::new(), BatchBudget::default());
        while let Some(job) = waiting.pop_front().or_else(|| queue.try_recv().ok()) {
            let free = job.key.as_ref().is_none_or(|key| self.row_locks.known(job.table, key) == Known::Free);
            let weight = Weight::of(&job);
            if !free {
                self.take_out(job, false);
            } else if weight.needs_parts() {
                self.take_out(job, true);
            } else if budget.take(weight) {
                batch.push(job);
            } else {
                waiting.push_front(job);
                break;
            }
        }
        batch
    }

    /// Takes a job out of its queue. It waits until its row is free. Then it runs alone if it has
    /// to (`alone`) or if the row may still be locked; otherwise it returns to its queue.
    fn take_out(self: &Arc<Self>, job: Job, alone: bool) {
        let workers = self.clone();
        tokio::spawn(async move {
            let since = if alone { evenkeel_host::now() } else { job.arrived };
            let deadline = since + Duration::from_millis(ROW_WAIT_MS);
            let key = job.key.clone().unwrap_or_default();
            let mut ended = workers.context.leadership.ended();
            let turn = tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => return job.answer(Err(Failure::NotLeader { leader: None })),
                turn = workers.row_locks.turn(job.table, &key, alone, deadline) => turn,
            };
            match turn {
                Turn::Free => workers.queues.enqueue(job),
                Turn::Alone(row) => {
                    // The semaphore is never closed.
                    let _place = workers.alone.acquire().await;
                    workers.standalone.run(job).await;
                    drop(row);
                }
                Turn::Expired => job.answer(Err(contention(&SqlError::new("55P03", "the row stayed locked")))),
            }
        });
    }

    /// Opens a session in place of one that was lost while no proposal of it was open.
    async fn reopen(&self) -> Option<UserSession> {
        if self.context.leadership.has_ended() {
            return None;
        }
        match open(&self.context.shared.connector).await {
            Ok(session) => Some(session),
            Err(error) => {
                self.context.no_session(&error);
                None
            }
        }
    }
}
