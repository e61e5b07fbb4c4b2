//! Running a group of statements as one PostgreSQL transaction and one log entry.
//!
//! A lane runs many autocommit statements as a group (R10); a statement on its own is a group of one. The order of events is what
//! makes a write durable and nothing else visible:
//!
//! 1. BEGIN, the statements and the entry's record (R5) go to PostgreSQL in one pipeline;
//! 2. the rows they wrote are proposed as one entry; from here on only COMMIT or ROLLBACK is sent (R6);
//! 3. the log says that the entry took effect: COMMIT. Or that it did not: ROLLBACK (invariant 4);
//! 4. PostgreSQL has confirmed the COMMIT: the statements are answered (R10).

use super::Leader;
use super::batch::{Done, ExecuteError, Executed, Ready};
use super::early::{Early, EarlyReply};
use super::kept::answered;
use super::latches::RangeHandle;
use super::leadership::{Outcome, too_large};
use super::plans::BoundPlan;
use super::session::{Capturer, UserSession};
use crate::entry::{Body, Entry, MAX_ENTRY_BYTES};
use crate::store::StoreError;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{StatementReply, StatementRequest};
use evenkeel_protocol::{Failure, Key, SqlError, TableId};
use evenkeel_sql::Capture;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_postgres::Row;

/// PostgreSQL's code for a lock that was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// PostgreSQL's code for a statement that was cancelled, and what it says if that was asked for: a limit of time says other things.
const QUERY_CANCELED: &str = "57014";
const BY_REQUEST: &str = "due to user request";
/// How often a group is executed at most because of what PostgreSQL refuses around its statements, and how often without a savepoint for each.
const MAX_TRIES: usize = 3;
/// PostgreSQL's code for a deadlock.
const DEADLOCK: &str = "40P01";

/// A statement that waits to be executed.
pub struct Job {
    /// What it is.
    pub request: StatementRequest,
    /// What it does.
    pub plan: Arc<BoundPlan>,
    /// Leave to do it; given up when the answer is out.
    pub handle: RangeHandle,
    /// Its table.
    pub table: TableId,
    /// A key that it touches.
    pub key: Option<Key>,
    /// When it came.
    pub arrived: Instant,
    /// Who waits for an answer before the COMMIT, at a durability below `disk` (R28).
    pub early: Option<EarlyReply>,
    /// Who waits for the answer.
    pub answer: oneshot::Sender<Result<StatementReply, Failure>>,
}

impl Job {
    pub(super) fn answer(self, result: Result<StatementReply, Failure>) {
        // A client that has gone does not hear it; what happened, happened.
        let _ = self.answer.send(result);
    }
}

/// How a group ended.
#[derive(Default)]
pub struct Ran {
    /// Nothing happened to these: each is to be run alone.
    pub apart: Vec<Job>,
    /// Nothing happened to these, because together they are too large: they are to be run in smaller groups.
    pub again: Vec<Job>,
    /// The session cannot be used any more.
    pub session_lost: bool,
}

impl Ran {
    fn lost() -> Ran {
        Ran { session_lost: true, ..Ran::default() }
    }
}

impl Leader {
    /// Runs `jobs` on `session` as one transaction and answers them, except for those that it gives back. A job that is `alone` is
    /// always answered.
    pub async fn run_group(&self, session: &UserSession, jobs: Vec<Job>, alone: bool) -> Ran {
        let mut ran = Ran::default();
        let Some(mut ready) = self.prepare_all(session, jobs, alone).await else { return Ran::lost() };
        let mut tries = 0;
        while !ready.is_empty() {
            let guarded_from = order(&mut ready, alone, tries);
            tries += 1;
            let started = Instant::now();
            let serial = self.leadership.next_serial();
            let (index, error) = match self.execute(session, &ready, guarded_from, serial).await {
                Ok(executed) => {
                    let spent = started.elapsed();
                    metrics::histogram!("evenkeel_batch_execute_seconds").record(spent.as_secs_f64());
                    let (jobs, executed) = sort_out(ready, executed, &mut ran.apart);
                    measure(&jobs, spent);
                    self.commit_group(session, jobs, (executed, serial, alone), &mut ran).await;
                    return ran;
                }
                Err(ExecuteError::Refused { index, error }) => (index, error),
                Err(ExecuteError::Lost(reason)) => {
                    give_up(ready, &reason);
                    ran.session_lost = true;
                    return ran;
                }
            };
            if let Err(error) = session.simple("ROLLBACK").await {
                give_up(ready, &error.to_string());
                ran.session_lost = true;
                return ran;
            }
            let why = Why::of(&error);
            if ready.len() > 1 {
                metrics::counter!("evenkeel_batches_split_total", "why" => why.label()).increment(1);
            }
            match index {
                Some(_) if ready.len() == 1 && (alone || why != Why::Locked) => {
                    self.not_executed(ready, &error).await;
                    return ran;
                }
                Some(index) => {
                    let Ready { job, .. } = ready.remove(index);
                    why.note(&job);
                    ran.apart.push(job);
                }
                None if alone || tries >= MAX_TRIES => {
                    self.not_executed(ready, &error).await;
                    return ran;
                }
                None => {}
            }
        }
        ran
    }

    /// Prepares all statements, and answers those that PostgreSQL refuses to prepare. `None` if the session is lost; then all are answered.
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
            match prepared.map_err(|e| self.examine(e)) {
                Ok(prepared) => ready.push(Ready { job, prepared, if_absent }),
                Err(StoreError::Refused(error)) => job.answer(Err(refused(&error))),
                Err(error) => {
                    job.answer(Err(lost(&error)));
                    lost_by = Some(lost(&error));
                }
            }
        }
        if let Some(failure) = lost_by {
            answer_all(ready.into_iter().map(|ready| ready.job).collect(), &failure);
            return None;
        }
        Some(ready)
    }

    /// PostgreSQL refused them; nothing happened.
    async fn not_executed(&self, ready: Vec<Ready>, error: &SqlError) {
        // The answer depends on data, so it is a read (R8).
        let barrier = self.barrier().await;
        for Ready { job, .. } in ready {
            job.answer(Err(match &barrier {
                Err(failure) => failure.clone(),
                Ok(()) if error.code == LOCK_NOT_AVAILABLE || error.code == DEADLOCK => contention(error),
                Ok(()) => refused(error),
            }));
        }
    }

    async fn commit_group(
        &self,
        session: &UserSession,
        mut jobs: Vec<Job>,
        ((replies, captured), serial, alone): ((Vec<Replied>, Capturer), u64, bool),
        ran: &mut Ran,
    ) {
        if captured.is_empty() {
            // Nothing was written, and that is an answer that depends on data (R8).
            let (rolled_back, barrier) = tokio::join!(session.simple("ROLLBACK"), self.barrier());
            for (job, (reply, _)) in jobs.into_iter().zip(replies) {
                job.answer(barrier.clone().map(|()| reply));
            }
            ran.session_lost = rolled_back.is_err();
            return;
        }
        let mut changes = match captured.finish(self.shared.log.unix_ms()) {
            Ok(changes) => changes,
            Err(error) => {
                ran.session_lost = session.simple("ROLLBACK").await.is_err();
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
        let size = changes.size_bytes();
        metrics::histogram!("evenkeel_batch_bytes").record(size as f64);
        // Several go into one entry or none of them: one that needs parts is sent by itself, and in nobody's way.
        let limit = if alone { self.leadership.max_entry_bytes() } else { MAX_ENTRY_BYTES };
        if size > limit {
            match session.simple("ROLLBACK").await {
                Err(error) => {
                    answer_all(jobs, &lost(&error));
                    ran.session_lost = true;
                }
                Ok(()) if jobs.len() > 1 => {
                    metrics::counter!("evenkeel_batches_split_total", "why" => "size").increment(1);
                    ran.again = jobs;
                }
                Ok(()) if !alone => {
                    metrics::counter!("evenkeel_statements_apart_total", "why" => "size").increment(1);
                    ran.apart.append(&mut jobs);
                }
                Ok(()) => answer_all(jobs, &too_large(size, limit)),
            }
            return;
        }
        let mut early = Early::default();
        for (job, (reply, _)) in jobs.iter_mut().zip(&replies) {
            early.add(job.request.durability, job.early.take(), reply);
        }
        let result = self.commit(session, Entry { serial, body: Body::Changes(changes) }, early).await;
        ran.session_lost = matches!(result, Err(CommitError::Broken(_)));
        for (job, (reply, _)) in jobs.into_iter().zip(replies) {
            job.answer(match &result {
                Ok(()) => Ok(reply),
                Err(CommitError::RolledBack(failure) | CommitError::Broken(failure)) => Err(failure.clone()),
            });
        }
    }

    /// Proposes the entry whose changes `session` holds in its open transaction, and commits or rolls back by what the log
    /// says. The early answers are given on the way; the COMMIT does not depend on them (R28).
    pub(super) async fn commit(&self, session: &UserSession, entry: Entry, early: Early) -> Result<(), CommitError> {
        let Body::Changes(changes) = &entry.body else {
            return Err(CommitError::RolledBack(SqlError::new("XX000", "not a change").into()));
        };
        let _doubt = self.leadership.doubt();
        let proposed = async {
            let claim = self.leadership.claim(entry.serial, &changes.changes).await?;
            let (outcome, held) = self.leadership.propose_held(&entry, early.wants_memory()).await?;
            Ok::<_, Failure>((claim, outcome, held))
        };
        let (claim, outcome, held) = match proposed.await {
            Ok(proposed) => proposed,
            Err(failure) => return self.roll_back(session, failure).await,
        };
        if deliberate(Bug::AnswerBeforeDecided) {
            let committed = session.simple("COMMIT").await;
            std::mem::forget((claim, outcome));
            return committed.map_err(|error| CommitError::Broken(lost(&error)));
        }
        if deliberate(Bug::EarlyVisible) && early.is_wanted() {
            _ = session.simple("COMMIT").await;
        }
        let proposed = Instant::now();
        let decided = early.until_decided(outcome, held).await;
        metrics::histogram!("evenkeel_batch_log_seconds").record(proposed.elapsed().as_secs_f64());
        let logged = Instant::now();
        match decided {
            Ok(Outcome::Effective(position)) => match session.simple("COMMIT").await {
                Ok(()) => {
                    metrics::histogram!("evenkeel_batch_commit_seconds").record(logged.elapsed().as_secs_f64());
                    drop(claim);
                    self.progress.confirm(position);
                    Ok(())
                }
                Err(error) => {
                    // R1: the log has it and this PostgreSQL may not. The claim stays: nobody may build on these rows.
                    std::mem::forget(claim);
                    self.break_down(&format!("a COMMIT failed: {error}"));
                    Err(CommitError::Broken(unknown("the leader's PostgreSQL failed at COMMIT")))
                }
            },
            Ok(Outcome::Refused(refusal)) => {
                drop(claim);
                tracing::warn!(%refusal, "an entry came out as nothing");
                self.roll_back(session, Failure::Moved { to: None, range: None }).await
            }
            Ok(Outcome::Deposed) => self.roll_back(session, Failure::NotLeader { leader: None }).await,
            Err(_) => {
                std::mem::forget(claim);
                Err(CommitError::Broken(unknown("the replica restarts its PostgreSQL")))
            }
        }
    }

    pub(super) async fn roll_back(&self, session: &UserSession, failure: Failure) -> Result<(), CommitError> {
        match session.simple("ROLLBACK").await {
            Ok(()) => Err(CommitError::RolledBack(failure)),
            Err(_) => Err(CommitError::Broken(failure)),
        }
    }
}

/// Why a commit did not come about.
pub(super) enum CommitError {
    /// It was rolled back; the session can go on.
    RolledBack(Failure),
    /// The session is gone.
    Broken(Failure),
}

pub(super) fn capture(captured: &mut Capturer, plan: &BoundPlan, rows: &[Row]) -> Result<Option<Key>, SqlError> {
    match &plan.schema {
        Some(schema) if plan.plan.capture() != Capture::None => captured.take(&plan.plan, schema, &plan.codec, rows),
        _ => Ok(None),
    }
}

/// A statement's reply, and a key that it wrote.
type Replied = (StatementReply, Option<Key>);

/// Why a statement was refused, as far as that matters for what is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Locked,
    Cancelled,
    Refused,
}

impl Why {
    fn of(error: &SqlError) -> Why {
        match error.code.as_ref() {
            LOCK_NOT_AVAILABLE | DEADLOCK => Why::Locked,
            QUERY_CANCELED => Why::Cancelled,
            _ => Why::Refused,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Why::Locked => "lock",
            Why::Cancelled => "cancelled",
            Why::Refused => "error",
        }
    }

    /// What others do, or an administrator, says nothing about the plan.
    fn note(self, job: &Job) {
        if self == Why::Refused {
            job.plan.history.refused();
        }
    }
}

/// Puts those that need a savepoint last, and says from where on. After several tries every statement has one, so that the next is the last.
fn order(ready: &mut [Ready], alone: bool, tries: usize) -> usize {
    if alone || ready.len() == 1 {
        return ready.len();
    }
    // Stable: statements on the same row stay in their order as far as possible.
    ready.sort_by_key(|ready| ready.job.plan.history.is_distrusted());
    if tries + 1 >= MAX_TRIES { 0 } else { ready.partition_point(|ready| !ready.job.plan.history.is_distrusted()) }
}

/// Parts what was executed from what is to be run alone.
fn sort_out(ready: Vec<Ready>, executed: Executed, apart: &mut Vec<Job>) -> (Vec<Job>, (Vec<Replied>, Capturer)) {
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
                Why::of(&error).note(&job);
                Why::of(&error).label()
            }
        };
        metrics::counter!("evenkeel_statements_apart_total", "why" => why).increment(1);
        apart.push(job);
    }
    (jobs, (replies, executed.captured))
}

/// What the statements cost, for the placement driver.
fn measure(jobs: &[Job], spent: Duration) {
    let spent_us = spent.as_micros() as f64 / jobs.len().max(1) as f64;
    for job in jobs {
        if let (Some(slot), Some(key)) = (job.handle.latches().first(), &job.key) {
            slot.statistics.meter().record(key, true, spent_us);
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

pub(super) fn busy(reason: &str) -> Failure {
    Failure::Busy { reason: reason.to_string(), retry_after_ms: 50 }
}

/// The answer to a statement that PostgreSQL has refused. If it was cancelled by somebody who is neither its client nor this node, that
/// says nothing about the statement, of which nothing has happened (R6): it is to be sent again.
fn refused(error: &SqlError) -> Failure {
    if error.code == QUERY_CANCELED && error.message.ends_with(BY_REQUEST) {
        return busy("the statement was cancelled in the leader's PostgreSQL");
    }
    error.clone().into()
}

/// Nothing was proposed, so nothing happened.
pub(crate) fn lost(error: &StoreError) -> Failure {
    match error {
        StoreError::Refused(error) => refused(error),
        other => busy(&other.to_string()),
    }
}

pub(super) fn unknown(reason: &str) -> Failure {
    Failure::OutcomeUnknown { reason: reason.to_string() }
}

/// A lock that was not to be had: the statement can be tried again.
pub(super) fn contention(error: &SqlError) -> Failure {
    SqlError::new("40001", format!("another transaction holds a row this needs ({})", error.message))
        .hint("Retry the transaction.")
        .into()
}
