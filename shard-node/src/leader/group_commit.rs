//! Group commit: a group of statements as one PostgreSQL transaction and one log entry (R10).
//!
//! A write queue runs many autocommit statements as a group. A statement that runs alone is a group
//! of one. The order of the steps makes a write durable before anything of it is visible:
//!
//! 1. BEGIN, the statements and the entry's record (R5) go to PostgreSQL in one pipeline
//!    ([`super::batch_execution`]).
//! 2. The captured rows are proposed as one entry. From here on only COMMIT or ROLLBACK is sent
//!    (R6).
//! 3. The log decides the entry. If it is effective, COMMIT; otherwise ROLLBACK (invariant 4).
//! 4. PostgreSQL confirms the COMMIT. Then the statements are answered (R10).
//!
//! Steps 2 and 3 are in [`super::commit`]. If PostgreSQL rejects one statement, the group is rolled
//! back and executed again without it, at most `MAX_TRIES` times. The caller runs the removed
//! statement alone.

use super::batch_execution::{BatchExecutor, Done, ExecuteError, Executed, Ready};
use super::capture::Capturer;
use super::commit::{CommitError, Committer};
use super::context::LeaderContext;
use super::early_acknowledgement::Early;
use super::failures::{
    DEADLOCK, LOCK_NOT_AVAILABLE, QUERY_CANCELED, busy, contention, not_executed, rejected_by_postgres, too_large,
};
use super::job::Job;
use super::kept_replies::answered;
use super::postgres_session::UserSession;
use crate::log_entry::{Changes, EntryBody, MAX_ENTRY_BYTES, ShardEntry};
use crate::storage::StoreError;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Failure, Key, SqlError};
use std::sync::Arc;
use std::time::Duration;

/// Executions of a group, at most. In the last one every statement has a savepoint.
const MAX_TRIES: usize = 3;

/// How a group ended. All jobs that are not in it have been answered.
#[derive(Default)]
pub struct GroupResult {
    /// Jobs that had no effect and have to run alone.
    pub run_alone: Vec<Job>,
    /// Jobs that had no effect, because together they are too large. They have to run in smaller
    /// groups.
    pub run_again: Vec<Job>,
    /// The session cannot be used any more.
    pub session_lost: bool,
}

/// See the module.
pub struct GroupCommit {
    context: Arc<LeaderContext>,
    executor: BatchExecutor,
    committer: Arc<Committer>,
}

/// A statement's reply, and a key that it wrote.
type ReplyAndKey = (StatementReply, Option<Key>);

/// An executed group before its commit.
struct ExecutedGroup {
    serial: u64,
    alone: bool,
    replies: Vec<ReplyAndKey>,
    captured: Capturer,
}

impl GroupCommit {
    /// Groups of a leadership.
    pub fn new(context: Arc<LeaderContext>, committer: Arc<Committer>) -> GroupCommit {
        GroupCommit { executor: BatchExecutor::new(context.clone()), context, committer }
    }

    /// Runs `jobs` on `session` as one transaction and answers them, except for those that it
    /// returns. A job that runs `alone` is always answered.
    pub(super) async fn run(&self, session: &UserSession, jobs: Vec<Job>, alone: bool) -> GroupResult {
        let mut result = GroupResult::default();
        let Some(mut ready) = self.prepare_all(session, jobs, alone).await else {
            return GroupResult { session_lost: true, ..result };
        };
        let mut tries = 0;
        while !ready.is_empty() {
            let guarded_from = order(&mut ready, alone, tries);
            tries += 1;
            let started = evenkeel_host::now();
            let serial = self.context.leadership.next_serial();
            let (index, error) = match self.executor.execute(session, &ready, guarded_from, serial).await {
                Ok(executed) => {
                    let spent = evenkeel_host::elapsed(started);
                    metrics::histogram!("evenkeel_batch_execute_seconds").record(spent.as_secs_f64());
                    let (jobs, replies, captured) = sort_out(ready, executed, &mut result.run_alone);
                    measure(&jobs, spent);
                    let group = ExecutedGroup { serial, alone, replies, captured };
                    self.commit(session, jobs, group, &mut result).await;
                    return result;
                }
                Err(ExecuteError::Refused { index, error }) => (index, error),
                Err(ExecuteError::Lost(reason)) => {
                    give_up(ready, &reason);
                    result.session_lost = true;
                    return result;
                }
            };
            if let Err(error) = session.simple("ROLLBACK").await {
                give_up(ready, &error.to_string());
                result.session_lost = true;
                return result;
            }
            let cause = RejectionCause::of(&error);
            if ready.len() > 1 {
                metrics::counter!("evenkeel_batches_split_total", "why" => cause.label()).increment(1);
            }
            match index {
                Some(_) if ready.len() == 1 && (alone || cause != RejectionCause::Locked) => {
                    self.answer_rejected(ready, &error).await;
                    return result;
                }
                Some(index) => {
                    let Ready { job, .. } = ready.remove(index);
                    cause.note(&job);
                    result.run_alone.push(job);
                }
                None if alone || tries >= MAX_TRIES => {
                    self.answer_rejected(ready, &error).await;
                    return result;
                }
                None => {}
            }
        }
        result
    }

    /// Prepares all statements, and answers those that PostgreSQL rejects. `None` if the session is
    /// lost; then all are answered.
    async fn prepare_all(&self, session: &UserSession, jobs: Vec<Job>, alone: bool) -> Option<Vec<Ready>> {
        let batch_sql = |job: &Job| job.plan.batch_sql.clone().filter(|_| !alone);
        let sqls: Vec<Arc<str>> =
            jobs.iter().map(|job| batch_sql(job).unwrap_or_else(|| job.plan.sql.clone())).collect();
        let returned = jobs.iter().map(|job| job.plan.plan.returned());
        let prepared = session.prepare_all(sqls.iter().zip(returned)).await;
        let mut ready: Vec<Ready> = Vec::with_capacity(jobs.len());
        let mut lost_by: Option<Failure> = None;
        for (job, prepared) in jobs.into_iter().zip(prepared) {
            let if_absent = batch_sql(&job).is_some();
            match prepared.map_err(|e| self.context.examine(e)) {
                Ok(prepared) => ready.push(Ready { job, prepared, if_absent }),
                Err(StoreError::Refused(error)) => job.answer(Err(rejected_by_postgres(&error))),
                Err(error) => {
                    job.answer(Err(not_executed(&error)));
                    lost_by = Some(not_executed(&error));
                }
            }
        }
        if let Some(failure) = lost_by {
            answer_all(ready.into_iter().map(|ready| ready.job).collect(), &failure);
            return None;
        }
        Some(ready)
    }

    /// Answers statements that PostgreSQL rejected and that had no effect.
    async fn answer_rejected(&self, ready: Vec<Ready>, error: &SqlError) {
        // The error depends on data, so the answer is a read (R8).
        let barrier = self.context.barrier().await;
        for Ready { job, .. } in ready {
            job.answer(Err(match &barrier {
                Err(failure) => failure.clone(),
                Ok(()) if error.code == LOCK_NOT_AVAILABLE || error.code == DEADLOCK => contention(error),
                Ok(()) => rejected_by_postgres(error),
            }));
        }
    }

    async fn commit(&self, session: &UserSession, mut jobs: Vec<Job>, group: ExecutedGroup, result: &mut GroupResult) {
        let ExecutedGroup { serial, alone, replies, captured } = group;
        if captured.is_empty() {
            // Nothing was written. That answer depends on data, so it is a read (R8).
            let (rolled_back, barrier) = tokio::join!(session.simple("ROLLBACK"), self.context.barrier());
            for (job, (reply, _)) in jobs.into_iter().zip(replies) {
                job.answer(barrier.clone().map(|()| reply));
            }
            result.session_lost = rolled_back.is_err();
            return;
        }
        let mut changes = match captured.finish(self.context.shared.log.unix_ms()) {
            Ok(changes) => changes,
            Err(error) => {
                result.session_lost = session.simple("ROLLBACK").await.is_err();
                return answer_all(jobs, &error.into());
            }
        };
        changes.answered = jobs
            .iter()
            .zip(&replies)
            .filter_map(|(job, (reply, key))| {
                let (schema, key) = (job.plan.schema.as_ref()?, key.clone()?);
                Some(answered(job.request.id, schema.id, key, reply))
            })
            .collect();
        let Some(changes) = self.within_limit(session, &mut jobs, changes, alone, result).await else { return };
        let mut early = Early::default();
        for (job, (reply, _)) in jobs.iter_mut().zip(&replies) {
            early.add(job.request.durability, job.early.take(), reply);
        }
        let entry = ShardEntry { serial, body: EntryBody::Changes(changes) };
        let committed = self.committer.commit(session, entry, early).await;
        result.session_lost = matches!(committed, Err(CommitError::Broken(_)));
        for (job, (reply, _)) in jobs.into_iter().zip(replies) {
            job.answer(match &committed {
                Ok(()) => Ok(reply),
                Err(CommitError::RolledBack(failure) | CommitError::Broken(failure)) => Err(failure.clone()),
            });
        }
    }

    /// The changes, unless they are too large for one entry. Then the group is rolled back, and its
    /// jobs are answered or returned.
    async fn within_limit(
        &self,
        session: &UserSession,
        jobs: &mut Vec<Job>,
        changes: Changes,
        alone: bool,
        result: &mut GroupResult,
    ) -> Option<Changes> {
        let size = changes.size_bytes();
        metrics::histogram!("evenkeel_batch_bytes").record(size as f64);
        // A batch is proposed as one entry without parts. Only a statement that runs alone may need
        // parts, and it delays no other statement.
        let limit = if alone { self.context.leadership.max_entry_bytes() } else { MAX_ENTRY_BYTES };
        if size <= limit {
            return Some(changes);
        }
        let jobs = std::mem::take(jobs);
        match session.simple("ROLLBACK").await {
            Err(error) => {
                answer_all(jobs, &not_executed(&error));
                result.session_lost = true;
            }
            Ok(()) if jobs.len() > 1 => {
                metrics::counter!("evenkeel_batches_split_total", "why" => "size").increment(1);
                result.run_again = jobs;
            }
            Ok(()) if !alone => {
                metrics::counter!("evenkeel_statements_apart_total", "why" => "size").increment(1);
                result.run_alone.extend(jobs);
            }
            Ok(()) => answer_all(jobs, &too_large(size, limit)),
        }
        None
    }
}

/// Why PostgreSQL rejected a statement, as far as it decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RejectionCause {
    Locked,
    Cancelled,
    Other,
}

impl RejectionCause {
    fn of(error: &SqlError) -> RejectionCause {
        match error.code.as_ref() {
            LOCK_NOT_AVAILABLE | DEADLOCK => RejectionCause::Locked,
            QUERY_CANCELED => RejectionCause::Cancelled,
            _ => RejectionCause::Other,
        }
    }

    fn label(self) -> &'static str {
        match self {
            RejectionCause::Locked => "lock",
            RejectionCause::Cancelled => "cancelled",
            RejectionCause::Other => "error",
        }
    }

    /// Notes the rejection in the plan's history. Locks of others, or a cancellation, say nothing
    /// about the plan.
    fn note(self, job: &Job) {
        if self == RejectionCause::Other {
            job.plan.history.refused();
        }
    }
}

/// Puts the statements that need a savepoint last, and returns the index from which on statements
/// have one. In the last try every statement has one, so that no further try is needed.
fn order(ready: &mut [Ready], alone: bool, tries: usize) -> usize {
    if alone || ready.len() == 1 {
        return ready.len();
    }
    // Stable: statements on the same row keep their order as far as possible.
    ready.sort_by_key(|ready| ready.job.plan.history.is_distrusted());
    if tries + 1 >= MAX_TRIES { 0 } else { ready.partition_point(|ready| !ready.job.plan.history.is_distrusted()) }
}

/// Separates the executed statements from those that have to run alone.
fn sort_out(ready: Vec<Ready>, executed: Executed, run_alone: &mut Vec<Job>) -> (Vec<Job>, Vec<ReplyAndKey>, Capturer) {
    let (mut jobs, mut replies) = (Vec::with_capacity(ready.len()), Vec::with_capacity(ready.len()));
    for (Ready { job, .. }, done) in ready.into_iter().zip(executed.done) {
        let why = match done {
            Done::Executed(reply, key) => {
                jobs.push(job);
                replies.push((reply, key));
                continue;
            }
            Done::Conflict => "conflict",
            Done::Refused(error) => {
                RejectionCause::of(&error).note(&job);
                RejectionCause::of(&error).label()
            }
        };
        metrics::counter!("evenkeel_statements_apart_total", "why" => why).increment(1);
        run_alone.push(job);
    }
    (jobs, replies, executed.captured)
}

/// Records the cost of the statements in the load meters of their ranges.
fn measure(jobs: &[Job], spent: Duration) {
    let spent_us = spent.as_micros() as f64 / jobs.len().max(1) as f64;
    for job in jobs {
        if let (Some(latch), Some(key)) = (job.ranges.latches().first(), &job.key) {
            latch.statistics.meter().record(key, true, spent_us);
        }
    }
}

fn give_up(ready: Vec<Ready>, reason: &str) {
    for Ready { job, .. } in ready {
        job.answer(Err(busy(reason)));
    }
}

fn answer_all(jobs: Vec<Job>, failure: &Failure) {
    for job in jobs {
        job.answer(Err(failure.clone()));
    }
}
