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
use super::admission::Permit;
use super::early::{Early, EarlyReply};
use super::plans::BoundPlan;
use super::reign::{Outcome, too_large};
use super::session::{Capturer, Parameters, Prepared, UserSession, pipeline, reply};
use crate::entry::{Answered, Body, Entry, MAX_ENTRY_BYTES};
use crate::store::StoreError;
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{StatementReply, StatementRequest};
use evenkeel_protocol::sql::{Capture, RowEffect};
use evenkeel_protocol::{Failure, Key, SqlError};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// A reply with RETURNING is kept in the retry window up to this size, in bytes.
const MAX_KEPT_REPLY_BYTES: usize = 4 << 10;
/// PostgreSQL's code for a lock that was not to be had in time.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// PostgreSQL's code for a statement that was cancelled, and what it says if that was asked for: a limit of time says other things.
const QUERY_CANCELED: &str = "57014";
const BY_REQUEST: &str = "due to user request";
/// PostgreSQL's code for a deadlock.
const DEADLOCK: &str = "40P01";

/// A statement that waits to be executed.
pub struct Job {
    /// What it is.
    pub request: StatementRequest,
    /// What it does.
    pub plan: Arc<BoundPlan>,
    /// Leave to do it; given up when the answer is out.
    pub permit: Permit,
    /// A key that it touches.
    pub key: Option<Key>,
    /// Who waits for an answer before the COMMIT, at a durability below `disk` (R28).
    pub early: Option<EarlyReply>,
    /// Who waits for the answer.
    pub answer: oneshot::Sender<Result<StatementReply, Failure>>,
}

impl Job {
    fn answer(self, result: Result<StatementReply, Failure>) {
        // A client that has gone does not hear it; what happened, happened.
        let _ = self.answer.send(result);
    }
}

/// How a group ended.
pub enum Ended {
    /// All are answered, and the session can go on.
    Answered,
    /// PostgreSQL refused one of several, or a lock was taken: none happened, each must be run alone.
    Split(Vec<Job>),
    /// The session cannot be used any more; all are answered.
    SessionLost,
}

/// What the statements of a group did.
struct Executed {
    replies: Vec<(StatementReply, Option<Key>)>,
    captured: Capturer,
}

enum ExecuteError {
    Lost(String),
    Sql(SqlError),
}

impl Leader {
    /// Runs `jobs` on `session` as one transaction and answers them.
    pub async fn run_group(&self, session: &UserSession, jobs: Vec<Job>, alone: bool) -> Ended {
        let started = Instant::now();
        let mut ready: Vec<(Job, Arc<Prepared>)> = Vec::with_capacity(jobs.len());
        for job in jobs {
            match session.prepare(&job.plan.sql, job.plan.plan.returned()).await.map_err(|e| self.examine(e)) {
                Ok(prepared) => ready.push((job, prepared)),
                Err(StoreError::Refused(error)) => job.answer(Err(refused(&error))),
                Err(error) => {
                    job.answer(Err(lost(&error)));
                    return give_up(ready, &error.to_string());
                }
            }
        }
        if ready.is_empty() {
            return Ended::Answered;
        }
        let serial = self.reign.next_serial();
        let result = self.execute(session, &ready, serial).await;
        let executed = match result {
            Ok(executed) => executed,
            Err(ExecuteError::Lost(reason)) => return give_up(ready, &reason),
            Err(ExecuteError::Sql(error)) => {
                if let Err(error) = session.simple("ROLLBACK").await {
                    return give_up(ready, &error.to_string());
                }
                return self.not_executed(ready, error, alone).await;
            }
        };
        let spent_us = started.elapsed().as_micros() as f64 / ready.len() as f64;
        for (job, _) in &ready {
            if let (Some(slot), Some(key)) = (job.permit.slots().first(), &job.key) {
                slot.meter().record(key, true, spent_us);
            }
        }
        let jobs = ready.into_iter().map(|(job, _)| job).collect();
        self.commit_group(session, jobs, executed, serial).await
    }

    async fn execute(
        &self,
        session: &UserSession,
        ready: &[(Job, Arc<Prepared>)],
        serial: u64,
    ) -> Result<Executed, ExecuteError> {
        let lost = |error: StoreError| ExecuteError::Lost(error.to_string());
        let begin = session.prepare(&self.texts.begin, 0).await.map_err(lost)?;
        let record = session.prepare(&self.texts.record, 0).await.map_err(lost)?;
        let (term, serial) = (self.reign.term.0 as i64, serial as i64);
        let parameters: Vec<Parameters<'_>> =
            ready.iter().map(|(job, _)| Parameters::new(&job.request.params)).collect();
        let refs: Vec<Vec<&(dyn ToSql + Sync)>> = parameters.iter().map(Parameters::refs).collect();
        let no_answers: &[u8] = &[];
        let record_refs: Vec<&(dyn ToSql + Sync)> = vec![&term, &serial, &no_answers];
        let mut sent = Vec::with_capacity(ready.len() + 2);
        // BEGIN follows the closing of the batch, so that now() is not before any statement's arrival (R10).
        sent.push(Box::pin(session.run(&begin, &[])));
        for ((_, prepared), refs) in ready.iter().zip(&refs) {
            sent.push(Box::pin(session.run(prepared, refs)));
        }
        sent.push(Box::pin(session.run(&record, &record_refs)));
        let mut results = Vec::with_capacity(sent.len());
        for result in pipeline(sent).await {
            results.push(result.map_err(|error| match self.examine(error) {
                StoreError::Refused(error) => ExecuteError::Sql(error),
                other => ExecuteError::Lost(other.to_string()),
            })?);
        }
        let mut captured = Capturer::default();
        let mut replies = Vec::with_capacity(ready.len());
        for ((job, prepared), rows) in ready.iter().zip(&results[1..]) {
            let key = capture(&mut captured, &job.plan, rows).map_err(ExecuteError::Sql)?;
            replies.push((reply(&prepared.columns, rows, rows.len()).map_err(ExecuteError::Sql)?, key));
        }
        Ok(Executed { replies, captured })
    }

    /// PostgreSQL refused something; nothing happened.
    async fn not_executed(&self, ready: Vec<(Job, Arc<Prepared>)>, error: SqlError, alone: bool) -> Ended {
        let mut jobs: Vec<Job> = ready.into_iter().map(|(job, _)| job).collect();
        let locked = error.code == LOCK_NOT_AVAILABLE;
        if jobs.len() > 1 || (locked && !alone) {
            return Ended::Split(jobs);
        }
        // The answer depends on data, so it is a read (R8).
        let barrier = self.barrier().await;
        for job in jobs.drain(..) {
            job.answer(Err(match &barrier {
                Err(failure) => failure.clone(),
                Ok(()) if locked || error.code == DEADLOCK => contention(&error),
                Ok(()) => refused(&error),
            }));
        }
        Ended::Answered
    }

    async fn commit_group(&self, session: &UserSession, mut jobs: Vec<Job>, executed: Executed, serial: u64) -> Ended {
        let Executed { replies, captured } = executed;
        if captured.is_empty() {
            // Nothing was written, and that is an answer that depends on data (R8).
            let (rolled_back, barrier) = tokio::join!(session.simple("ROLLBACK"), self.barrier());
            for (job, (reply, _)) in jobs.into_iter().zip(replies) {
                job.answer(barrier.clone().map(|()| reply));
            }
            return if rolled_back.is_ok() { Ended::Answered } else { Ended::SessionLost };
        }
        let mut changes = captured.finish(super::now_ms());
        changes.answered = jobs
            .iter()
            .zip(&replies)
            .filter_map(|(job, (reply, key))| {
                let (schema, key) = (job.plan.schema.as_ref()?, key.clone()?);
                Some(answered(job.request.id, schema.id, key, reply))
            })
            .collect();
        let size = changes.size_bytes();
        if size > MAX_ENTRY_BYTES {
            return match session.simple("ROLLBACK").await {
                Err(error) => {
                    answer_all(jobs, &lost(&error));
                    Ended::SessionLost
                }
                Ok(()) if jobs.len() > 1 => Ended::Split(jobs),
                Ok(()) => {
                    answer_all(jobs, &too_large(size));
                    Ended::Answered
                }
            };
        }
        let effects: Vec<(RowEffect, usize)> =
            jobs.iter().zip(&replies).map(|(j, (r, _))| (j.plan.plan.effect(), r.affected as usize)).collect();
        let bytes_per_change = size as f64 / changes.changes.len().max(1) as f64;
        let mut early = Early::default();
        for (job, (reply, _)) in jobs.iter_mut().zip(&replies) {
            early.add(job.request.durability, job.early.take(), reply);
        }
        let result = self.commit(session, Entry { serial, body: Body::Changes(changes) }, early).await;
        if result.is_ok() {
            for (job, (effect, count)) in jobs.iter().zip(effects) {
                super::count_rows(&job.permit, effect, count, bytes_per_change);
            }
        }
        let ended = match &result {
            Ok(()) | Err(CommitError::RolledBack(_)) => Ended::Answered,
            Err(CommitError::Broken(_)) => Ended::SessionLost,
        };
        for (job, (reply, _)) in jobs.into_iter().zip(replies) {
            job.answer(match &result {
                Ok(()) => Ok(reply),
                Err(CommitError::RolledBack(failure) | CommitError::Broken(failure)) => Err(failure.clone()),
            });
        }
        ended
    }

    /// Proposes the entry whose changes `session` holds in its open transaction, and commits or rolls back by what the log
    /// says. The early answers are given on the way; the COMMIT does not depend on them (R28).
    pub(super) async fn commit(&self, session: &UserSession, entry: Entry, early: Early) -> Result<(), CommitError> {
        let Body::Changes(changes) = &entry.body else {
            return Err(CommitError::RolledBack(SqlError::new("XX000", "not a change").into()));
        };
        let _doubt = self.reign.doubt();
        let proposed = async {
            let claim = self.reign.claim(entry.serial, &changes.changes).await?;
            let (outcome, held) = self.reign.propose_held(&entry, early.wants_memory())?;
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
        match early.until_decided(outcome, held).await {
            Ok(Outcome::Effective(position)) => match session.simple("COMMIT").await {
                Ok(()) => {
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

    async fn roll_back(&self, session: &UserSession, failure: Failure) -> Result<(), CommitError> {
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

pub(super) fn answered(
    id: evenkeel_protocol::TxnId,
    table: evenkeel_protocol::TableId,
    key: Key,
    reply: &StatementReply,
) -> Answered {
    let encoded = if reply.columns.is_empty() || reply.rows.data.len() > MAX_KEPT_REPLY_BYTES {
        Bytes::new()
    } else {
        // Encoding our own values into memory cannot fail; an empty reply is answered as one that was not kept.
        postcard::to_stdvec(reply).map(Bytes::from).unwrap_or_default()
    };
    Answered { id, table, key, affected: reply.affected, reply: encoded }
}

fn give_up(ready: Vec<(Job, Arc<Prepared>)>, reason: &str) -> Ended {
    for (job, _) in ready {
        job.answer(Err(busy(reason)));
    }
    Ended::SessionLost
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
