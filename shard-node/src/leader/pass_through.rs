//! Steps of transactions in users' own texts.
//!
//! A step is executed in these parts:
//!
//! 1. The declared keys are acquired (R9). If this shard does not own them, nothing is executed.
//! 2. BEGIN (with the first step) and the statement go to PostgreSQL as one series. The read
//!    barrier (R8) runs beside it.
//! 3. PostgreSQL's messages are relayed as they are, once the barrier is through; reports of
//!    changes (R7) are taken out. A row is not shown before the COMMIT is confirmed of every entry
//!    that wrote a key which the step has reported (R4).
//!
//! An error leaves PostgreSQL's transaction open and failed, until a rollback to a savepoint. What
//! is wrong with the step as a whole, such as too many changes, fails the transaction for good.
//!
//! The end of a transaction is in `pass_through_commit`.

use super::change_reports::ChangeReport;
use super::context::LeaderContext;
use super::failures::{QUERY_CANCELED, contention, lost_in_transaction, moved_away, serialization, too_large};
use super::item_stream::{ClientGone, ItemStream};
use super::latches::{RangeHandle, RangeLatch};
use super::open_transaction::TransactionHandle;
use super::raw_transaction::{RawTransaction, SentStep};
use super::row_locks::HeldRows;
use super::statement::StatementIntake;
use crate::log_entry::Change;
use crate::log_entry::image::Image;
use crate::storage::StoreError;
use bytes::Bytes;
use evenkeel_postgres_session::{Message, TransactionStatus, error_response, tags};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughEnd, PassThroughItem, PassThroughRequest};
use evenkeel_protocol::{Failure, Key, SqlError, TableId};
use evenkeel_rpc::Gone;
use evenkeel_sql::Touches;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long PostgreSQL may take to end a statement whose client has gone, in milliseconds. The
/// session ends then.
const CANCEL_MS: u64 = 5_000;
/// The most rows that a transaction registers as locked; beyond that its intervals say enough.
const MAX_HELD_ROWS: usize = 1_000;
/// PostgreSQL's message for a lock that was not to be had within `lock_timeout`. NOWAIT has another
/// one with the same code.
const LOCK_TIMEOUT: &str = "canceling statement due to lock timeout";

/// PostgreSQL's code for a prepared statement that is not there.
const UNDEFINED_STATEMENT: &str = "26000";

/// See the module.
pub struct PassThrough {
    context: Arc<LeaderContext>,
    intake: Arc<StatementIntake>,
}

/// Why a step was not executed to its end.
#[derive(Debug)]
pub enum StepError {
    /// It was not begun; the transaction is as it was before.
    NotExecuted(Failure),
    /// PostgreSQL refused it; its transaction may go on from a savepoint.
    Refused(Failure),
    /// The transaction can only be rolled back.
    Failed(Failure),
    /// The client has gone, or stopped waiting. The statement has been cancelled.
    Gone,
}

/// The transaction of a step.
pub(super) struct StepOf<'a> {
    /// As its connection has it.
    pub handle: &'a TransactionHandle,
    /// As PostgreSQL has it.
    pub raw: &'a mut RawTransaction,
    /// The rows that it may lock.
    pub rows: &'a mut HeldRows,
    /// The generation of the latch table at its snapshot (R25).
    pub began_in: &'a mut u64,
}

/// What a step's messages said.
#[derive(Default)]
struct Heard {
    end: Option<PassThroughEnd>,
    error: Option<SqlError>,
    /// The report of a change that cannot be proposed.
    not_capturable: Option<SqlError>,
    /// Series of answers that have ended.
    ended: usize,
    cancelled: bool,
}

/// What runs beside a step.
struct Beside<'a> {
    barrier: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>,
    /// The barrier's outcome, once it has one.
    led: Option<Result<(), Failure>>,
    gone: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Beside<'_> {
    /// Waits for the barrier.
    async fn led(&mut self) -> Result<(), Failure> {
        if self.led.is_none() {
            self.led = Some(self.barrier.as_mut().await);
        }
        self.led.clone().unwrap_or(Ok(()))
    }
}

impl PassThrough {
    /// Steps of a leadership's transactions.
    pub fn new(context: Arc<LeaderContext>, intake: Arc<StatementIntake>) -> PassThrough {
        PassThrough { context, intake }
    }

    /// Executes a step and sends its items, but for the last.
    pub(super) async fn execute(
        &self,
        mut step: StepOf<'_>,
        request: &PassThroughRequest,
        out: &mut ItemStream<'_>,
        gone: Gone,
    ) -> Result<PassThroughEnd, StepError> {
        self.intake.limit_rate().await.map_err(StepError::NotExecuted)?;
        self.acquire(&mut step, request).await.map_err(StepError::NotExecuted)?;
        let mut sent = step.raw.step(&request.step).map_err(|error| StepError::NotExecuted(error.into()))?;
        step.raw.reported.begin_step();
        step.raw.session.send(std::mem::take(&mut sent.requests));
        let mut beside = Beside { barrier: Box::pin(self.context.barrier()), led: None, gone: Box::pin(gone.gone()) };
        let heard = self.relay(&mut step, &mut sent, out, &mut beside).await?;
        self.conclude(&mut step, sent, heard, out, &mut beside).await
    }

    /// Acquires what the step declares.
    async fn acquire(&self, step: &mut StepOf<'_>, request: &PassThroughRequest) -> Result<(), Failure> {
        self.context.check_open()?;
        let (first, latches) = (step.raw.is_new(), &self.context.shared.latches);
        let holding: Vec<Arc<RangeLatch>> = step.handle.latches();
        let mut acquired: Vec<RangeHandle> = Vec::new();
        for used in &request.tables {
            let touches = Touches::Intervals(used.keys.clone());
            let ranges = latches.acquire(used.table, &touches, &holding).await;
            // Of a transaction that has begun, nobody but its client can say whether it may go on
            // without these rows.
            let ranges = ranges.map_err(|failure| match failure {
                Failure::Moved { .. } => failure,
                other if first => other,
                other => moved_away(other),
            })?;
            acquired.push(ranges);
        }
        if let Some(begin) = &request.begin {
            self.context.check_schema_version(begin.schema_version)?;
        }
        if first {
            *step.began_in = latches.generation();
        }
        let adopted_later = |ranges: &RangeHandle| ranges.latches().iter().any(|l| l.adopted_in > *step.began_in);
        if step.raw.repeatable_read && acquired.iter().any(adopted_later) {
            // R25: its snapshot does not contain the rows of a range that came later.
            return Err(serialization("the range came to this shard after the transaction's snapshot"));
        }
        acquired.into_iter().for_each(|ranges| step.handle.keep(ranges));
        step.raw.declare(&request.tables);
        for used in request.tables.iter().filter(|used| used.writes) {
            step.rows.may_hold(used.table, &Touches::Intervals(used.keys.clone()));
        }
        Ok(())
    }

    /// Takes PostgreSQL's messages until the step has ended, and sends what the client gets.
    async fn relay(
        &self,
        step: &mut StepOf<'_>,
        sent: &mut SentStep,
        out: &mut ItemStream<'_>,
        beside: &mut Beside<'_>,
    ) -> Result<Heard, StepError> {
        let mut heard = Heard::default();
        let cancelled = step.handle.cancelled();
        tokio::pin!(cancelled);
        let series = 1 + usize::from(sent.begins);
        while heard.ended < series {
            let message = tokio::select! {
                biased;
                () = &mut beside.gone => return Err(self.abandon(step).await),
                () = &mut cancelled, if !heard.cancelled => {
                    heard.cancelled = true;
                    step.raw.cancel(&self.context.shared.connector);
                    continue;
                }
                led = &mut beside.barrier, if beside.led.is_none() => {
                    beside.led = Some(led);
                    continue;
                }
                message = step.raw.session.next() => message,
            };
            let message = message.map_err(|error| self.lost(error))?;
            let relayed = self.hear(step, sent, &mut heard, &message);
            if let Some(parameters) = parameter_types(&message) {
                let item = out.item(PassThroughItem::Parameters(parameters)).await;
                self.unless_gone(step, item).await?;
            }
            if relayed {
                if out.is_full_for(message.whole()) {
                    self.send(step, out, beside).await?;
                }
                out.push(message.whole());
            }
        }
        Ok(heard)
    }

    /// What a message says of the step. Returns whether the client gets it.
    fn hear(&self, step: &mut StepOf<'_>, sent: &mut SentStep, heard: &mut Heard, message: &Message) -> bool {
        let of_begin = sent.begins && heard.ended == 0;
        match message.tag() {
            tags::READY_FOR_QUERY => heard.ended += 1,
            tags::ERROR_RESPONSE => _ = heard.error.get_or_insert_with(|| error_response::parse(&message.body())),
            tags::NOTICE_RESPONSE => return !self.take_report(step, heard, &message.body()) && !of_begin,
            tags::PARSE_COMPLETE => step.raw.session.parsed(&mut sent.bound),
            tags::COMMAND_COMPLETE if !of_begin => heard.end = Some(PassThroughEnd::Complete(message.text())),
            tags::EMPTY_QUERY_RESPONSE => heard.end = Some(PassThroughEnd::Empty),
            tags::PORTAL_SUSPENDED => heard.end = Some(PassThroughEnd::Suspended),
            tags::ROW_DESCRIPTION
            | tags::NO_DATA
            | tags::DATA_ROW
            | tags::COPY_OUT_RESPONSE
            | tags::COPY_DATA
            | tags::NOTIFICATION_RESPONSE => return true,
            tags::PARAMETER_STATUS => return !of_begin,
            _ => {}
        }
        false
    }

    /// Takes in a notice if it is a report of changes.
    fn take_report(&self, step: &mut StepOf<'_>, heard: &mut Heard, notice: &Bytes) -> bool {
        let report = match ChangeReport::of_notice(notice) {
            Ok(Some(report)) => report,
            Ok(None) => return false,
            Err(error) => {
                heard.not_capturable.get_or_insert(error);
                return true;
            }
        };
        let state = self.context.shared.state();
        let taken = match state.table(report.table) {
            Some(schema) => step.raw.reported.add(schema, report),
            None => Err(SqlError::new(codes::INTERNAL, "a table was changed that this shard does not know")),
        };
        if let Err(error) = taken {
            heard.not_capturable.get_or_insert(error);
        }
        true
    }

    /// Sends what has been collected, once it may be shown.
    async fn send(
        &self,
        step: &mut StepOf<'_>,
        out: &mut ItemStream<'_>,
        beside: &mut Beside<'_>,
    ) -> Result<(), StepError> {
        self.may_be_shown(step, beside).await?;
        let sent = out.send().await;
        self.unless_gone(step, sent).await
    }

    /// Waits until what the step has read may be shown (R4, R8).
    async fn may_be_shown(&self, step: &mut StepOf<'_>, beside: &mut Beside<'_>) -> Result<(), StepError> {
        let keys = step.raw.reported.take_fresh();
        if keys.len() <= MAX_HELD_ROWS && step.raw.reported.key_count() <= MAX_HELD_ROWS {
            step.rows.holds(keys.iter().map(|(table, key)| (*table, key)));
        }
        let changes = without_images(keys);
        let confirmed = self.context.leadership.confirmed(&changes).await;
        confirmed.and(beside.led().await).map_err(|failure| StepError::Failed(moved_away(failure)))
    }

    /// The step has ended in PostgreSQL.
    async fn conclude(
        &self,
        step: &mut StepOf<'_>,
        sent: SentStep,
        heard: Heard,
        out: &mut ItemStream<'_>,
        beside: &mut Beside<'_>,
    ) -> Result<PassThroughEnd, StepError> {
        if step.raw.session.status() == TransactionStatus::Idle {
            if let Some(error) = heard.error.filter(|_| sent.begins) {
                // It was not begun, so that the statement could not write anything.
                return Err(self.lost(StoreError::Refused(error)));
            }
            // R1: what the transaction has written may be in PostgreSQL, past the log.
            self.context.break_down("a statement has ended its transaction");
            return Err(StepError::Failed(serialization("the transaction was ended by its statement")));
        }
        if let Some(error) = heard.error {
            step.raw.reported.undo_step();
            if let Some(portal) = sent.portal {
                step.raw.ended(portal);
            }
            // An answer that depends on data (R8).
            self.may_be_shown(step, beside).await?;
            let sent = out.send().await;
            self.unless_gone(step, sent).await?;
            return Err(self.refused(step, error, heard.cancelled));
        }
        let failed = |error: SqlError| StepError::Failed(error.into());
        if let Some(error) = heard.not_capturable {
            return Err(failed(error));
        }
        let (size, limit) = (step.raw.reported.size_bytes(), self.context.leadership.max_entry_bytes());
        if size > limit {
            return Err(StepError::Failed(too_large(size, limit)));
        }
        let end = heard.end.unwrap_or(PassThroughEnd::Done);
        match sent.portal {
            Some(portal) if end == PassThroughEnd::Suspended => step.raw.suspended(portal),
            Some(portal) => step.raw.ended(portal),
            None => {}
        }
        if let Some(control) = sent.control {
            step.raw.executed(control).map_err(failed)?;
        }
        self.send(step, out, beside).await?;
        // Also where nothing was collected: that no row was found depends on data.
        self.may_be_shown(step, beside).await?;
        Ok(end)
    }

    /// PostgreSQL refused the step.
    fn refused(&self, step: &mut StepOf<'_>, error: SqlError, cancelled: bool) -> StepError {
        if error.code == UNDEFINED_STATEMENT {
            // A function has deallocated what this node has prepared.
            step.raw.session.spoil();
        }
        let store = self.context.examine(StoreError::Refused(error));
        StepError::Refused(match store {
            // As PostgreSQL says it: these are not the node's doing.
            StoreError::Refused(error) if cancelled && error.code == QUERY_CANCELED => error.into(),
            StoreError::Refused(error) if step.raw.has_own_lock_timeout() && error.message == LOCK_TIMEOUT => {
                contention(&error)
            }
            StoreError::Refused(error) if error.code != QUERY_CANCELED => error.into(),
            other => lost_in_transaction(&other),
        })
    }

    fn lost(&self, error: StoreError) -> StepError {
        StepError::Failed(lost_in_transaction(&self.context.examine(error)))
    }

    async fn unless_gone(&self, step: &mut StepOf<'_>, sent: Result<(), ClientGone>) -> Result<(), StepError> {
        match sent {
            Ok(()) => Ok(()),
            Err(ClientGone) => Err(self.abandon(step).await),
        }
    }

    /// Nobody waits for the step: has its statement cancelled, and waits for its end.
    async fn abandon(&self, step: &mut StepOf<'_>) -> StepError {
        step.raw.cancel(&self.context.shared.connector);
        let session = &mut step.raw.session;
        let ended = evenkeel_host::timeout(Duration::from_millis(CANCEL_MS), session.cleaned()).await;
        tracing::debug!(?ended, "a statement's client has gone");
        StepError::Gone
    }
}

/// The types in a ParameterDescription.
fn parameter_types(message: &Message) -> Option<Vec<u32>> {
    if message.tag() != tags::PARAMETER_DESCRIPTION {
        return None;
    }
    let body = message.body();
    let (types, _) = body.get(2..)?.as_chunks::<4>();
    Some(types.iter().map(|oid| u32::from_be_bytes(*oid)).collect())
}

/// Keys as changes without images, as claims take them.
pub(super) fn without_images(keys: Vec<(TableId, Key)>) -> Vec<Change> {
    keys.into_iter().map(|(table, key)| Change { table, key, image: Image::Gone }).collect()
}
