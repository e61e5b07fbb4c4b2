//! What goes into a batch, and executing it in PostgreSQL: one transaction of many statements in one pipeline (R10).
//!
//! One statement must not make the others be executed again. So what may fail is kept apart beforehand, in this order:
//!
//! - a batch ends at so many bytes of requests and of row images, as far as the plans' histories tell ([`Budget`]);
//! - an INSERT that finds its row there inserts nothing, instead of failing, and is run alone afterwards;
//! - a statement whose plan PostgreSQL has refused lately comes at the end of the batch, behind a savepoint of its own.
//!
//! Only what fails unexpectedly has the batch rolled back and executed again, without it.

use super::Leader;
use super::group::{Job, capture};
use super::session::{Capturer, Parameters, Prepared, UserSession, pipeline, reply};
use crate::log_entry::MAX_ENTRY_BYTES;
use crate::storage::StoreError;
use evenkeel_protocol::error::codes::IN_FAILED_TRANSACTION;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{Key, SqlError};
use std::sync::Arc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Statements in one batch.
const MAX_BATCH: usize = 128;
/// The requests in one batch end at so many bytes.
const MAX_BATCH_REQUEST_BYTES: usize = 512 << 10;
/// The row images in one batch end at about so many bytes.
const MAX_BATCH_IMAGE_BYTES: usize = 512 << 10;
/// Statements in one batch of plans whose images have not been measured yet.
const MAX_UNMEASURED: usize = 8;
/// Statements in one batch that need a savepoint. PostgreSQL keeps 64 subtransactions of each session where they are found quickly.
const MAX_DISTRUSTED: usize = 32;

const SAVEPOINT: &str = "SAVEPOINT evenkeel";
const BACK_TO_SAVEPOINT: &str = "ROLLBACK TO SAVEPOINT evenkeel";

/// What a statement takes in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Of its text and parameters.
    pub request_bytes: usize,
    /// Of its row images, if that is known.
    pub image_bytes: Option<usize>,
    /// Whether it needs a savepoint.
    pub distrusted: bool,
}

impl Weight {
    /// Of a statement that waits.
    pub fn of(job: &Job) -> Weight {
        let history = &job.plan.history;
        Weight {
            request_bytes: super::weight(&job.request),
            image_bytes: history.image_bytes(),
            distrusted: history.is_distrusted(),
        }
    }

    /// Whether its entry will probably be proposed in parts (R12). That takes as long as the log takes to store most of them, and
    /// whatever shares its lane would wait for it. By what it brings: its plan's history says what the largest one of lately took, and
    /// small ones of the same plan must not run alone for that.
    pub fn needs_parts(self) -> bool {
        self.request_bytes > MAX_ENTRY_BYTES
    }
}

/// What a batch that gathers has taken in. Pure.
#[derive(Debug, Default)]
pub struct Budget {
    statements: usize,
    request_bytes: usize,
    image_bytes: usize,
    unmeasured: usize,
    distrusted: usize,
}

impl Budget {
    /// Takes a statement in, unless the batch is full without it. The first always fits.
    pub fn take(&mut self, weight: Weight) -> bool {
        let images = weight.image_bytes.unwrap_or(0);
        let fits = self.statements < MAX_BATCH
            && self.request_bytes + weight.request_bytes <= MAX_BATCH_REQUEST_BYTES
            && self.image_bytes + images <= MAX_BATCH_IMAGE_BYTES
            && (weight.image_bytes.is_some() || self.unmeasured < MAX_UNMEASURED)
            && (!weight.distrusted || self.distrusted < MAX_DISTRUSTED);
        if self.statements > 0 && !fits {
            return false;
        }
        self.statements += 1;
        self.request_bytes += weight.request_bytes;
        self.image_bytes += images;
        self.unmeasured += usize::from(weight.image_bytes.is_none());
        self.distrusted += usize::from(weight.distrusted);
        true
    }
}

/// A statement and what PostgreSQL knows it by.
pub(super) struct Ready {
    pub job: Job,
    pub prepared: Arc<Prepared>,
    /// Whether it is the INSERT that inserts nothing where its row is there already.
    pub if_absent: bool,
}

/// What a statement of a group did.
pub(super) enum Done {
    /// It was executed: its reply, and a key that it wrote.
    Executed(StatementReply, Option<Key>),
    /// Nothing happened: PostgreSQL refused it, behind its savepoint.
    Refused(SqlError),
    /// Nothing happened: the row to insert, or one that excludes it, is there.
    Conflict,
}

/// What the statements of a group did.
pub(super) struct Executed {
    /// In the order of the statements.
    pub done: Vec<Done>,
    pub captured: Capturer,
}

pub(super) enum ExecuteError {
    /// The session is lost.
    Lost(String),
    /// All is to be rolled back.
    Refused {
        /// The statement that was refused; if none, something around the statements was.
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

/// The statements that PostgreSQL runs beside the users' own.
struct Around {
    begin: Arc<Prepared>,
    savepoint: Option<Arc<Prepared>>,
    record: Arc<Prepared>,
}

impl Leader {
    /// Begins a transaction, executes the statements and writes the entry's record (R5). From `guarded_from` on each statement has a savepoint.
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
            begin: session.prepare(&self.texts.begin, 0).await.map_err(lost)?,
            record: session.prepare(&self.texts.record, 0).await.map_err(lost)?,
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
            // After a refusal PostgreSQL refuses what follows; where it does not, the answer was refused here and the statement was executed.
            let next = stopped.and_then(|stopped| results.get(stopped + 1));
            let aborted = matches!(next, Some(Err(StoreError::Refused(error))) if error.code == IN_FAILED_TRANSACTION);
            for (step, result) in steps.iter().zip(results) {
                match (result.map_err(|error| self.examine(error)), *step) {
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
        taken(ready, rows)
    }

    /// Sends the steps without waiting in between, and gives their results.
    async fn send(
        &self,
        session: &UserSession,
        ready: &[Ready],
        around: &Around,
        steps: &[Step],
        serial: u64,
    ) -> Vec<Result<Vec<Row>, StoreError>> {
        let (term, serial, no_answers) = (self.leadership.term.0 as i64, serial as i64, &[] as &[u8]);
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
        // BEGIN follows the closing of the batch, so that now() is not before any statement's arrival (R10).
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

/// Takes in what the statements returned.
fn taken(ready: &[Ready], rows: Vec<Result<Vec<Row>, SqlError>>) -> Result<Executed, ExecuteError> {
    let mut captured = Capturer::default();
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
        let before = captured.image_bytes();
        let key = capture(&mut captured, &job.plan, &rows).map_err(refused)?;
        job.plan.history.executed(captured.image_bytes() - before);
        done.push(Done::Executed(reply(&prepared.columns, &rows, rows.len()).map_err(refused)?, key));
    }
    Ok(Executed { done, captured })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(weight: Weight) -> usize {
        let mut budget = Budget::default();
        (0..1_000).take_while(|_| budget.take(weight)).count()
    }

    // E2: a batch is never so large that it has to be executed again in parts.
    #[test]
    fn a_batch_ends_by_count_by_bytes_and_by_what_is_not_known() {
        let small = Weight { request_bytes: 100, image_bytes: Some(100), distrusted: false };
        assert_eq!(taken(small), MAX_BATCH);
        assert_eq!(taken(Weight { request_bytes: 64 << 10, ..small }), 8);
        assert_eq!(taken(Weight { image_bytes: Some(64 << 10), ..small }), 8, "an UPDATE of 8 bytes in 64 KiB");
        assert_eq!(taken(Weight { image_bytes: None, ..small }), MAX_UNMEASURED);
        assert_eq!(taken(Weight { distrusted: true, ..small }), MAX_DISTRUSTED);
        assert_eq!(taken(Weight { request_bytes: 10 << 20, ..small }), 1, "the first always fits");
    }

    // R12: its parts take long, and what shares its lane would wait for them. Others of its plan are not slower for it.
    #[test]
    fn what_brings_more_than_an_entry_holds_runs_alone() {
        let small = Weight { request_bytes: 100, image_bytes: Some(100), distrusted: false };
        assert!(Weight { request_bytes: MAX_ENTRY_BYTES + 1, ..small }.needs_parts());
        assert!(!Weight { image_bytes: Some(8 << 20), ..small }.needs_parts());
        assert!(!small.needs_parts());
    }

    #[test]
    fn what_does_not_fit_leaves_room_for_what_does() {
        let mut budget = Budget::default();
        let small = Weight { request_bytes: 100, image_bytes: Some(100), distrusted: false };
        assert!(budget.take(small));
        assert!(!budget.take(Weight { image_bytes: Some(1 << 20), ..small }));
        assert!(budget.take(small));
    }
}
