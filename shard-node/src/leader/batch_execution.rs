//! Execution of a group in PostgreSQL: one transaction of many statements in one pipeline (R10).
//!
//! One statement must not cause the others to be executed again. Statements that may fail are
//! treated separately:
//!
//! - an INSERT whose row exists inserts nothing instead of failing, and runs alone afterwards;
//! - a statement whose plan PostgreSQL rejected lately comes at the end of the batch, after a
//!   savepoint of its own.
//!
//! Only an unexpected failure causes the group to be rolled back and executed again, without the
//! failed statement ([`super::group_commit`]).

use super::capture::{Capturer, capture};
use super::context::LeaderContext;
use super::job::Job;
use super::postgres_session::{Parameters, Prepared, UserSession, pipeline, reply};
use crate::storage::{RECORD_SQL, StoreError};
use evenkeel_protocol::error::codes::IN_FAILED_TRANSACTION;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Key, SqlError};
use std::sync::Arc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

const SAVEPOINT: &str = "SAVEPOINT evenkeel";
const BACK_TO_SAVEPOINT: &str = "ROLLBACK TO SAVEPOINT evenkeel";

/// A statement that the session has prepared.
pub(super) struct Ready {
    pub job: Job,
    pub prepared: Arc<Prepared>,
    /// Whether it is the form of INSERT that inserts nothing where its row exists.
    pub if_absent: bool,
}

/// The result of one statement of a group.
pub(super) enum Done {
    /// It was executed. Its reply, and a key that it wrote.
    Executed(StatementReply, Option<Key>),
    /// It had no effect: PostgreSQL rejected it, after its savepoint.
    Refused(SqlError),
    /// It had no effect: the row to insert, or a row that excludes it, exists.
    Conflict,
}

/// The results of the statements of a group.
pub(super) struct Executed {
    /// In the order of the statements.
    pub done: Vec<Done>,
    pub captured: Capturer,
}

/// Why a group was not executed.
pub(super) enum ExecuteError {
    /// The session is lost.
    Lost(String),
    /// The whole group has to be rolled back.
    Refused {
        /// The rejected statement; `None` if PostgreSQL rejected BEGIN, a savepoint or the record.
        index: Option<usize>,
        error: SqlError,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Savepoint,
    Statement(usize),
    Record,
}

/// The statements around the users' statements.
struct Around {
    begin: Arc<Prepared>,
    savepoint: Option<Arc<Prepared>>,
    record: Arc<Prepared>,
}

/// See the module.
pub struct BatchExecutor {
    context: Arc<LeaderContext>,
    begin: Arc<str>,
    record: Arc<str>,
}

impl BatchExecutor {
    /// The executor of a leadership.
    pub fn new(context: Arc<LeaderContext>) -> BatchExecutor {
        BatchExecutor { context, begin: "BEGIN READ WRITE".into(), record: RECORD_SQL.into() }
    }

    /// Begins a transaction, executes the statements and writes the entry's record (R5). The
    /// statements from index `guarded_from` on have savepoints.
    pub(super) async fn execute(
        &self,
        session: &UserSession,
        ready: &[Ready],
        guarded_from: usize,
        serial: u64,
    ) -> Result<Executed, ExecuteError> {
        let lost = |error: StoreError| ExecuteError::Lost(error.to_string());
        let savepoint = match guarded_from < ready.len() {
            true => Some(session.prepare(&SAVEPOINT.into(), 0).await.map_err(lost)?),
            false => None,
        };
        let around = Around {
            begin: session.prepare(&self.begin, 0).await.map_err(lost)?,
            record: session.prepare(&self.record, 0).await.map_err(lost)?,
            savepoint,
        };
        let mut steps = vec![Step::Begin];
        for index in 0..ready.len() {
            if index >= guarded_from {
                steps.push(Step::Savepoint);
            }
            steps.push(Step::Statement(index));
        }
        steps.push(Step::Record);
        let mut rows: Vec<Result<Vec<Row>, SqlError>> = ready.iter().map(|_| Ok(Vec::new())).collect();
        let mut steps = steps.as_slice();
        while !steps.is_empty() {
            let results = self.send(session, ready, &around, steps, serial).await;
            let stopped = results.iter().position(Result::is_err);
            // After an error PostgreSQL rejects the statements that follow. If it does not, then
            // the result was rejected here, and PostgreSQL executed the statement.
            let next = stopped.and_then(|stopped| results.get(stopped + 1));
            let aborted = matches!(next, Some(Err(StoreError::Refused(error))) if error.code == IN_FAILED_TRANSACTION);
            for (step, result) in steps.iter().zip(results) {
                match (result.map_err(|error| self.context.examine(error)), *step) {
                    (Ok(found), Step::Statement(index)) => rows[index] = Ok(found),
                    (Ok(_), _) => {}
                    (Err(StoreError::Refused(error)), Step::Statement(index)) if index >= guarded_from && aborted => {
                        rows[index] = Err(error);
                        session.simple(BACK_TO_SAVEPOINT).await.map_err(lost)?;
                        break;
                    }
                    (Err(StoreError::Refused(error)), step) => {
                        let index = if let Step::Statement(index) = step { Some(index) } else { None };
                        return Err(ExecuteError::Refused { index, error });
                    }
                    (Err(error), _) => return Err(lost(error)),
                }
            }
            steps = stopped.map_or(&[], |stopped| &steps[stopped + 1..]);
        }
        captured(ready, rows)
    }

    /// Sends the steps without waiting in between, and returns their results.
    async fn send(
        &self,
        session: &UserSession,
        ready: &[Ready],
        around: &Around,
        steps: &[Step],
        serial: u64,
    ) -> Vec<Result<Vec<Row>, StoreError>> {
        let (term, serial, no_answers) = (self.context.leadership.term.0 as i64, serial as i64, &[] as &[u8]);
        let of_steps: Vec<Option<Parameters<'_>>> = steps
            .iter()
            .map(|step| match step {
                Step::Statement(index) => Some(Parameters::new(&ready[*index].job.request.params)),
                Step::Begin | Step::Savepoint | Step::Record => None,
            })
            .collect();
        let refs: Vec<Vec<&(dyn ToSql + Sync)>> = steps
            .iter()
            .zip(&of_steps)
            .map(|(step, parameters)| match (step, parameters) {
                (_, Some(parameters)) => parameters.refs(),
                (Step::Record, _) => vec![&term as &(dyn ToSql + Sync), &serial, &no_answers],
                _ => Vec::new(),
            })
            .collect();
        let mut sent = Vec::with_capacity(steps.len());
        // BEGIN is sent after the batch is complete, so that now() is not before any statement's
        // arrival (R10).
        for (step, refs) in steps.iter().zip(&refs) {
            let prepared = match *step {
                Step::Begin => &around.begin,
                Step::Savepoint => around.savepoint.as_ref().unwrap_or(&around.begin),
                Step::Statement(index) => &ready[index].prepared,
                Step::Record => &around.record,
            };
            sent.push(Box::pin(session.run(prepared, refs)));
        }
        pipeline(sent).await
    }
}

/// Captures the rows that the statements returned.
fn captured(ready: &[Ready], rows: Vec<Result<Vec<Row>, SqlError>>) -> Result<Executed, ExecuteError> {
    let mut capturer = Capturer::default();
    let mut done = Vec::with_capacity(ready.len());
    for (index, (Ready { job, prepared, if_absent }, rows)) in ready.iter().zip(rows).enumerate() {
        let refused = |error| ExecuteError::Refused { index: Some(index), error };
        let rows = match rows {
            Ok(rows) if rows.is_empty() && *if_absent => {
                done.push(Done::Conflict);
                continue;
            }
            Ok(rows) => rows,
            Err(error) => {
                done.push(Done::Refused(error));
                continue;
            }
        };
        let before = capturer.image_bytes();
        let key = capture(&mut capturer, &job.plan, &rows).map_err(refused)?;
        job.plan.history.executed(capturer.image_bytes() - before);
        done.push(Done::Executed(reply(&prepared.columns, &rows, rows.len()).map_err(refused)?, key));
    }
    Ok(Executed { done, captured: capturer })
}
