//! Transactions of several statements on one shard.
//!
//! A transaction holds a PostgreSQL session, and a handle on each range that it has used. It ends
//! by COMMIT, by ROLLBACK, with its connection, or with the leadership. The leader also ends it
//! when its client is idle for `MAX_IDLE_MS`, and when it delays the fence of a move for too long
//! (R22).
//!
//! After the COMMIT the client may lose its connection. It then asks for the outcome under the same
//! id (`Transactions::commit_again`), and gets a definite answer: committed, or not committed and
//! never will be.
//!
//! Not done: transactions over several shards.

use super::begin_text::begin_text;
use super::capture::{Capturer, capture};
use super::clip::touches;
use super::commit::{CommitError, Committer, EndingSession};
use super::context::LeaderContext;
use super::early_acknowledgement::{Early, EarlyReply};
use super::failures::{
    ended_by_leader, in_failed_transaction, lost_in_transaction, moved_away, not_executed, serialization, too_large,
};
use super::item_stream::ItemStream;
use super::kept_replies::answered;
use super::latches::RangeLatch;
use super::lost_commits::LostCommits;
use super::open_transaction::{OpenTransaction, OpenTransactions, TransactionHandle, TransactionSession};
use super::pass_through::{PassThrough, StepError, StepOf};
use super::pass_through_commit::PassThroughCommit;
use super::plan_cache::BoundPlan;
use super::postgres_session::{Parameters, UserSession, reply};
use super::raw_transaction::RawTransaction;
use super::row_locks::RowLocks;
use super::session_pool::SessionPool;
use super::statement::StatementIntake;
use super::statement_ids::{Attempt, StatementIds};
use crate::log_entry::{EntryBody, ShardEntry};
use crate::storage::{RECORD_SQL, StoreError};
use evenkeel_postgres_session::TransactionStatus;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughBegin, PassThroughEnd, PassThroughRequest};
use evenkeel_protocol::shard::{StatementReply, StatementRequest, TransactionOptions};
use evenkeel_protocol::{Durability, Failure, Key, SqlError, TableId, TxnId};
use evenkeel_rpc::Gone;
use evenkeel_sql::Touches;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::ToSql;

/// How long a transaction waits for its client, in milliseconds.
const MAX_IDLE_MS: u64 = 30_000;
/// The interval at which idle transactions are looked for, in milliseconds.
const REAP_MS: u64 = 1_000;

/// A table and key that a transaction wrote. The retry window is asked by it after a lost
/// connection.
pub(crate) type WrittenKey = Option<(TableId, Key)>;

/// See the module.
pub struct Transactions {
    context: Arc<LeaderContext>,
    intake: Arc<StatementIntake>,
    ids: Arc<StatementIds>,
    pool: Arc<SessionPool>,
    committer: Arc<Committer>,
    pass_through: PassThrough,
    pass_through_commit: PassThroughCommit,
    row_locks: Arc<RowLocks>,
    record: Arc<str>,
    open: OpenTransactions,
    lost: LostCommits,
}

impl Transactions {
    /// No transaction is open.
    pub fn new(
        context: Arc<LeaderContext>,
        intake: Arc<StatementIntake>,
        ids: Arc<StatementIds>,
        pool: Arc<SessionPool>,
        committer: Arc<Committer>,
        row_locks: Arc<RowLocks>,
    ) -> Transactions {
        Transactions {
            pass_through: PassThrough::new(context.clone(), intake.clone()),
            pass_through_commit: PassThroughCommit::new(context.clone(), committer.clone()),
            context,
            intake,
            ids,
            pool,
            committer,
            row_locks,
            record: RECORD_SQL.into(),
            open: OpenTransactions::default(),
            lost: LostCommits::default(),
        }
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self, options: TransactionOptions) -> Result<Arc<TransactionHandle>, Failure> {
        let session = self.context.took(self.pool.take_for_transaction().await)?;
        let isolation = if options.repeatable_read { "REPEATABLE READ" } else { "READ COMMITTED" };
        let access = if options.read_only { "READ ONLY" } else { "READ WRITE" };
        let began_in = self.context.shared.latches.generation();
        let begin = format!("BEGIN ISOLATION LEVEL {isolation} {access}");
        session.simple(&begin).await.map_err(|error| not_executed(&error))?;
        Ok(self.open.add(self.opened(TransactionSession::Analysed(Box::new(session)), options, began_in)))
    }

    /// Begins a transaction in users' own texts. Nothing is sent to PostgreSQL before its first
    /// step.
    pub(super) async fn begin_pass_through(&self, begin: &PassThroughBegin) -> Result<Arc<TransactionHandle>, Failure> {
        let text = begin_text(begin.options, &begin.settings)?;
        let session = self.context.took(self.pool.take_raw().await)?;
        let raw = TransactionSession::Raw(Box::new(RawTransaction::new(session, begin, text)));
        Ok(self.open.add(self.opened(raw, begin.options, 0)))
    }

    fn opened(&self, session: TransactionSession, options: TransactionOptions, began_in: u64) -> OpenTransaction {
        OpenTransaction {
            session: Some(session),
            rows: self.row_locks.holder(),
            captured: Capturer::default(),
            failed: false,
            options,
            began_in,
            used: evenkeel_host::now(),
            affected: 0,
            first_key: None,
        }
    }

    /// Executes a step of a transaction in users' own texts, and sends its items but for the last.
    pub(super) async fn step(
        &self,
        handle: &TransactionHandle,
        request: &PassThroughRequest,
        out: &mut ItemStream<'_>,
        gone: Gone,
    ) -> Result<PassThroughEnd, StepError> {
        let mut transaction = handle.open.lock().await;
        let transaction = &mut *transaction;
        transaction.used = evenkeel_host::now();
        if handle.is_doomed() {
            return Err(StepError::Failed(ended_by_leader()));
        }
        if transaction.failed {
            return Err(StepError::Failed(in_failed_transaction()));
        }
        let result = match &mut transaction.session {
            Some(TransactionSession::Raw(raw)) => {
                let (rows, began_in) = (&mut transaction.rows, &mut transaction.began_in);
                self.pass_through.execute(StepOf { handle, raw, rows, began_in }, request, out, gone).await
            }
            Some(TransactionSession::Analysed(_)) => Err(StepError::NotExecuted(mixed())),
            None => Err(StepError::Failed(ended_by_leader())),
        };
        // How long it took is not the client's doing.
        transaction.used = evenkeel_host::now();
        if matches!(result, Err(StepError::Failed(_) | StepError::Gone)) {
            transaction.failed = true;
        }
        if handle.is_doomed() || matches!(result, Err(StepError::Gone)) {
            // It could not be ended while it was executing.
            self.end(handle, transaction).await;
            return result.and(Err(StepError::Failed(ended_by_leader())));
        }
        result
    }

    /// Runs a statement in a transaction.
    pub(super) async fn execute(
        &self,
        handle: &TransactionHandle,
        request: StatementRequest,
    ) -> Result<StatementReply, Failure> {
        let mut transaction = handle.open.lock().await;
        let transaction = &mut *transaction;
        transaction.used = evenkeel_host::now();
        if handle.is_doomed() {
            return Err(ended_by_leader());
        }
        if transaction.failed {
            return Err(in_failed_transaction());
        }
        let result = self.execute_open(handle, transaction, &request).await;
        if result.is_err() {
            transaction.failed = true;
        }
        if handle.is_doomed() {
            // It could not be ended while it was executing.
            self.end(handle, transaction).await;
            return result.and(Err(ended_by_leader()));
        }
        result
    }

    async fn execute_open(
        &self,
        handle: &TransactionHandle,
        transaction: &mut OpenTransaction,
        request: &StatementRequest,
    ) -> Result<StatementReply, Failure> {
        let bound = self.intake.bind(request)?;
        self.intake.limit_rate().await?;
        check_allowed(&bound, transaction, request)?;
        let touched = touches(&bound, request)?;
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let latches = &self.context.shared.latches;
        let ranges = latches.acquire(table, &touched, &handle.latches()).await.map_err(moved_away)?;
        self.context.check_plan(&bound).map_err(moved_away)?;
        let adopted_later = ranges.latches().iter().any(|latch| latch.adopted_in > transaction.began_in);
        if transaction.options.repeatable_read && adopted_later {
            // R25: its snapshot does not contain the rows of a range that came later.
            return Err(serialization("the range came to this shard after the transaction's snapshot"));
        }
        handle.keep(ranges);
        let session = match &transaction.session {
            Some(TransactionSession::Analysed(session)) => session,
            Some(TransactionSession::Raw(_)) => return Err(mixed()),
            None => return Err(ended_by_leader()),
        };
        let lost = |error: StoreError| lost_in_transaction(&self.context.examine(error));
        let prepared = session.prepare(&bound.sql, bound.plan.returned()).await.map_err(lost)?;
        let parameters = Parameters::new(&request.params);
        let refs: Vec<&(dyn ToSql + Sync)> = parameters.refs();
        if bound.plan.writes() || bound.plan.locks() {
            transaction.rows.may_hold(table, &touched);
        }
        // Every answer of a statement depends on data (R8).
        let (rows, led) = tokio::join!(session.run(&prepared, &refs), self.context.barrier());
        led.map_err(moved_away)?;
        let rows = rows.map_err(lost)?;
        let before = transaction.captured.len();
        let key = capture(&mut transaction.captured, &bound, &rows)?;
        let (size, limit) = (transaction.captured.size_bytes(), self.context.leadership.max_entry_bytes());
        if size > limit {
            return Err(too_large(size, limit));
        }
        // R4: a row lock may have been released by a COMMIT that PostgreSQL has not confirmed yet.
        let written = transaction.captured.last_keys(transaction.captured.len() - before);
        transaction.rows.holds(written.iter().map(|change| (change.table, &change.key)));
        self.context.leadership.confirmed(&written).await?;
        if let (Some(key), None) = (key, &transaction.first_key) {
            transaction.first_key = Some((table, key));
        }
        transaction.affected += rows.len() as u64;
        Ok(reply(&prepared.columns, &rows, rows.len())?)
    }

    /// Commits a transaction under the client's id. At a durability below `disk` the commit is also
    /// answered through `early` (R28).
    pub(super) async fn commit(
        &self,
        handle: &TransactionHandle,
        id: TxnId,
        durability: Durability,
        early: Option<EarlyReply>,
    ) -> Result<(), Failure> {
        let mut transaction = handle.open.lock().await;
        self.open.remove(handle);
        // The connection has already forgotten the transaction, so it ends here in every case.
        let ranges = handle.take_ranges();
        let Some(session) = transaction.session.take() else { return Err(ended_by_leader()) };
        let _attempt = match self.begin_commit(id) {
            Ok(attempt) => attempt,
            Err(rejected) => {
                self.roll_back_session(session).await;
                transaction.rows = self.row_locks.holder();
                return Err(rejected);
            }
        };
        let captured = std::mem::take(&mut transaction.captured);
        // Held until PostgreSQL has confirmed the transaction's end.
        let _rows = std::mem::replace(&mut transaction.rows, self.row_locks.holder());
        let session = match session {
            TransactionSession::Analysed(session) => session,
            TransactionSession::Raw(raw) => {
                let failed = transaction.failed;
                let result = self.commit_raw(raw, failed, id, durability, early).await;
                drop(ranges);
                return result;
            }
        };
        if transaction.failed || captured.is_empty() {
            // As in PostgreSQL, COMMIT of a failed transaction is a ROLLBACK. COMMIT of a
            // transaction that only read is a read (R8).
            let session = TransactionSession::Analysed(session);
            let ((), led) = tokio::join!(self.roll_back_session(session), self.context.barrier());
            if transaction.failed {
                return Err(rolled_back_as_failed());
            }
            return led.map_err(moved_away);
        }
        let mut answers = Early::default();
        answers.add(durability, early, &StatementReply::default());
        let result = self.commit_captured(&session, captured, id, &transaction, answers).await;
        match result {
            Ok(()) => {
                self.pool.put_back(*session);
                drop(ranges);
                Ok(())
            }
            Err(CommitError::RolledBack(failure)) => {
                self.pool.put_back(*session);
                Err(moved_away(failure))
            }
            Err(CommitError::Broken(failure)) => Err(failure),
        }
    }

    /// Commits a transaction in users' own texts.
    async fn commit_raw(
        &self,
        mut raw: Box<RawTransaction>,
        failed: bool,
        id: TxnId,
        durability: Durability,
        early: Option<EarlyReply>,
    ) -> Result<(), Failure> {
        if failed || raw.session.status() == TransactionStatus::Failed {
            self.roll_back_session(TransactionSession::Raw(raw)).await;
            return Err(rolled_back_as_failed());
        }
        let mut answers = Early::default();
        answers.add(durability, early, &StatementReply::default());
        let result = self.pass_through_commit.commit(&mut raw, id, answers).await;
        match result {
            Ok(()) => {
                self.pool.put_back_raw(raw.session).await;
                Ok(())
            }
            Err(CommitError::RolledBack(failure)) => {
                self.pool.put_back_raw(raw.session).await;
                Err(moved_away(failure))
            }
            Err(CommitError::Broken(failure)) => Err(failure),
        }
    }

    async fn commit_captured(
        &self,
        session: &UserSession,
        captured: Capturer,
        id: TxnId,
        transaction: &OpenTransaction,
        early: Early,
    ) -> Result<(), CommitError> {
        let leadership = &self.context.leadership;
        let serial = leadership.next_serial();
        let (term, recorded) = (leadership.term.0 as i64, serial as i64);
        let record = async {
            // Constraints that PostgreSQL checks only at COMMIT are checked now (invariant 5). The
            // record is written before the proposal (R5).
            session.simple("SET CONSTRAINTS ALL IMMEDIATE").await?;
            let record = session.prepare(&self.record, 0).await?;
            let no_answers: &[u8] = &[];
            session.run(&record, &[&term, &recorded, &no_answers]).await?;
            Ok::<_, StoreError>(())
        };
        if let Err(error) = record.await.map_err(|error| self.context.examine(error)) {
            let session = EndingSession::Analysed(session);
            return self.committer.roll_back(session, lost_in_transaction(&error)).await;
        }
        let mut changes = match captured.finish(self.context.shared.log.unix_ms()) {
            Ok(changes) => changes,
            Err(error) => {
                return self.committer.roll_back(EndingSession::Analysed(session), error.into()).await;
            }
        };
        if let Some((table, key)) = transaction.first_key.clone() {
            let affected = StatementReply { affected: transaction.affected, ..StatementReply::default() };
            changes.answered.push(answered(id, table, key, &affected));
        }
        self.committer.commit(session, ShardEntry { serial, body: EntryBody::Changes(changes) }, early).await
    }

    /// Begins the attempt of a COMMIT whose transaction is open here. On every error the
    /// transaction is certainly not committed.
    fn begin_commit(&self, id: TxnId) -> Result<Attempt<'_>, Failure> {
        let rolled_back = |reason: &str| serialization(&format!("the transaction was rolled back: {reason}"));
        match self.ids.begin(id) {
            Ok(_) if self.lost.contains(id) => {
                Err(rolled_back("its COMMIT arrived after its client had been notified that it was lost"))
            }
            Ok(attempt) => Ok(attempt),
            Err(Failure::Busy { .. }) => Err(rolled_back("its client asks already for its outcome")),
            Err(Failure::Sql(error)) => Err(rolled_back(&error.message)),
            Err(other) => Err(moved_away(other)),
        }
    }

    /// Answers a COMMIT whose transaction is not open here: the answer in the retry window, or that
    /// the transaction is not committed and will not be.
    pub(super) async fn commit_again(&self, id: TxnId, key: WrittenKey) -> Result<(), Failure> {
        self.context.check_open()?;
        let _attempt = self.ids.begin(id)?;
        let _ranges = match key {
            Some((table, key)) => {
                Some(self.context.shared.latches.acquire(table, &Touches::Keys(vec![key]), &[]).await?)
            }
            None => None,
        };
        let known = self.ids.answered_before(id)?.is_some();
        self.context.barrier().await?;
        if known {
            return Ok(());
        }
        // This leader has applied everything (invariant 4), and no session of an earlier leadership
        // is left (R3). So the transaction is not committed. Its COMMIT may still be in a
        // connection, and must be rejected then.
        if !self.lost.insert(id, |first_sent_ms| self.ids.is_too_old(first_sent_ms)) {
            return Err(Failure::Busy {
                reason: "too many lost transactions are asked about".into(),
                retry_after_ms: 1_000,
            });
        }
        Err(serialization("the transaction was lost with its connection and has not been committed"))
    }

    /// Rolls a transaction back.
    pub(super) async fn roll_back(&self, handle: &TransactionHandle) {
        let mut transaction = handle.open.lock().await;
        self.end(handle, &mut transaction).await;
    }

    async fn end(&self, handle: &TransactionHandle, transaction: &mut OpenTransaction) {
        self.open.remove(handle);
        if let Some(session) = transaction.session.take() {
            self.roll_back_session(session).await;
        }
        drop(handle.take_ranges());
        transaction.rows = self.row_locks.holder();
    }

    async fn roll_back_session(&self, session: TransactionSession) {
        match session {
            TransactionSession::Analysed(session) => {
                if session.simple("ROLLBACK").await.is_ok() {
                    self.pool.put_back(*session);
                }
            }
            TransactionSession::Raw(mut raw) => {
                // One that does not answer ends when it is dropped.
                if raw.is_new() || (raw.session.is_ready() && raw.session.roll_back().await.is_ok()) {
                    self.pool.put_back_raw(raw.session).await;
                }
            }
        }
    }

    /// Ends the transactions that delay the fence of a range (R22): at once, or as soon as their
    /// statement has ended.
    pub(super) async fn doom_on(&self, latch: &Arc<RangeLatch>) {
        for handle in self.open.all() {
            // A transaction that began before a split delays the fence of each piece.
            if !handle.latches().iter().any(|held| latch.is_or_comes_from(held)) {
                continue;
            }
            handle.doom();
            if let Ok(mut transaction) = handle.open.try_lock() {
                self.end(&handle, &mut transaction).await;
            }
        }
    }

    /// Ends idle transactions, until the leadership ends.
    pub(super) async fn reap(self: Arc<Self>) {
        let mut ended = self.context.leadership.ended();
        loop {
            let pause = evenkeel_host::sleep(Duration::from_millis(REAP_MS));
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                () = pause => {}
            }
            for handle in self.open.all() {
                let Ok(transaction) = handle.open.try_lock() else { continue };
                let idle = evenkeel_host::elapsed(transaction.used) > Duration::from_millis(MAX_IDLE_MS);
                drop(transaction);
                if idle {
                    handle.doom();
                    self.roll_back(&handle).await;
                }
            }
        }
    }
}

/// A transaction's first request decides what it runs on.
fn mixed() -> Failure {
    let message = "a transaction cannot mix analysed statements and statements that are passed through";
    SqlError::new(codes::INTERNAL, message).into()
}

fn rolled_back_as_failed() -> Failure {
    serialization("a statement of the transaction failed, so it was rolled back")
}

/// Whether a transaction may run a statement.
fn check_allowed(bound: &BoundPlan, transaction: &OpenTransaction, request: &StatementRequest) -> Result<(), Failure> {
    if bound.plan.writes() && transaction.options.read_only {
        return Err(SqlError::new("25006", "the transaction is read-only").into());
    }
    if request.clip.is_some() || request.limit.is_some() {
        return Err(SqlError::unsupported(
            "a transaction's statement over several ranges is not possible",
            "Read it outside of the transaction, or name its rows by key.",
        )
        .into());
    }
    Ok(())
}
