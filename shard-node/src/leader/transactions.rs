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
//! Over several shards, a transaction is open on each. One shard's commit decides for all; on the
//! others it is prepared first (R26, [`super::prepared_transactions`]).

use super::begin_text::begin_text;
use super::capture::{Capturer, capture};
use super::clip::touches;
use super::commit::{CommitError, Committer};
use super::context::LeaderContext;
use super::early_acknowledgement::{Early, EarlyReply};
use super::ended_transaction::{Ending, entry_body};
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
use super::prepared_transactions::{PreparedSession, PreparedTransactions};
use super::raw_transaction::RawTransaction;
use super::row_locks::RowLocks;
use super::session_pool::SessionPool;
use super::statement::StatementIntake;
use super::statement_ids::{Attempt, StatementIds};
use crate::log_entry::{Changes, EntryBody, Forgotten, Resolution, ShardEntry};
use crate::storage::{RECORD_SQL, StoreError};
use evenkeel_postgres_session::TransactionStatus;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{PassThroughBegin, PassThroughEnd, PassThroughRequest};
use evenkeel_protocol::routing::ShardInfo;
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
    prepared: PreparedTransactions,
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
            prepared: PreparedTransactions::new(context.clone(), pool.clone()),
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
        let holding = handle.latches();
        // Before it has used anything here, its client finds out where else the keys are.
        let elsewhere = |failure| if holding.is_empty() { failure } else { moved_away(failure) };
        let ranges = latches.acquire(table, &touched, &holding).await.map_err(elsewhere)?;
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
        end: &Ending,
        durability: Durability,
        early: Option<EarlyReply>,
    ) -> Result<(), Failure> {
        let mut transaction = handle.open.lock().await;
        self.open.remove(handle);
        // The connection has already forgotten the transaction, so it ends here in every case.
        let ranges = handle.take_ranges();
        let Some(session) = transaction.session.take() else { return Err(ended_by_leader()) };
        let _attempt = match self.begin_commit(end.id) {
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
                let result = self.commit_raw(raw, failed, end, durability, early).await;
                drop(ranges);
                return result;
            }
        };
        if transaction.failed || (captured.is_empty() && end.participants.is_empty()) {
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
        let result = self.commit_captured(&session, captured, end, &transaction, answers).await;
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
        end: &Ending,
        durability: Durability,
        early: Option<EarlyReply>,
    ) -> Result<(), Failure> {
        if failed || raw.session.status() == TransactionStatus::Failed {
            self.roll_back_session(TransactionSession::Raw(raw)).await;
            return Err(rolled_back_as_failed());
        }
        let mut answers = Early::default();
        answers.add(durability, early, &StatementReply::default());
        let result = self.pass_through_commit.commit(&mut raw, end, answers).await;
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
        end: &Ending,
        transaction: &OpenTransaction,
        early: Early,
    ) -> Result<(), CommitError> {
        let serial = self.context.leadership.next_serial();
        let mut changes = self.captured_changes(session, captured, serial).await?;
        if let Some((table, key)) = transaction.first_key.clone() {
            let affected = StatementReply { affected: transaction.affected, ..StatementReply::default() };
            changes.answered.push(answered(end.id, table, key, &affected));
        }
        self.committer.commit(session, ShardEntry { serial, body: entry_body(end, changes) }, early).await
    }

    /// The changes of a transaction, once its session has written the record of the entry `serial`.
    async fn captured_changes(
        &self,
        session: &UserSession,
        captured: Capturer,
        serial: u64,
    ) -> Result<Changes, CommitError> {
        let (term, recorded) = (self.context.leadership.term.0 as i64, serial as i64);
        let record = async {
            // Constraints that PostgreSQL checks only at COMMIT are checked now (invariant 5). The
            // record is written before the proposal (R5).
            session.simple("SET CONSTRAINTS ALL IMMEDIATE").await?;
            let record = session.prepare(&self.record, 0).await?;
            let no_answers: &[u8] = &[];
            session.run(&record, &[&term, &recorded, &no_answers]).await?;
            Ok::<_, StoreError>(())
        };
        let failure = match record.await.map_err(|error| self.context.examine(error)) {
            Err(error) => lost_in_transaction(&error),
            Ok(()) => match captured.finish(self.context.shared.log.unix_ms()) {
                Ok(changes) => return Ok(changes),
                Err(error) => error.into(),
            },
        };
        match session.simple("ROLLBACK").await {
            Ok(()) => Err(CommitError::RolledBack(failure)),
            Err(_) => Err(CommitError::Broken(failure)),
        }
    }

    /// The first phase of a commit that another shard decides about (R26).
    ///
    /// # Errors
    /// The transaction is rolled back, or will be when its leadership ends.
    pub(super) async fn prepare(
        &self,
        handle: &TransactionHandle,
        id: TxnId,
        decider: ShardInfo,
    ) -> Result<(), Failure> {
        let mut transaction = handle.open.lock().await;
        self.open.remove(handle);
        let ranges = handle.take_ranges();
        let Some(mut session) = transaction.session.take() else { return Err(ended_by_leader()) };
        let captured = std::mem::take(&mut transaction.captured);
        let rows = std::mem::replace(&mut transaction.rows, self.row_locks.holder());
        if transaction.failed || handle.is_doomed() {
            self.roll_back_session(session).await;
            return Err(if transaction.failed { rolled_back_as_failed() } else { ended_by_leader() });
        }
        let leadership = &self.context.leadership;
        let serial = leadership.next_serial();
        let changed = match &mut session {
            TransactionSession::Analysed(session) => match self.captured_changes(session, captured, serial).await {
                Ok(changes) => {
                    let claim = leadership.claim_owned(serial, changes.changes.clone()).await;
                    claim.map(|claim| (changes, claim)).map_err(CommitError::Broken)
                }
                Err(error) => Err(error),
            },
            TransactionSession::Raw(raw) if raw.session.status() == TransactionStatus::Failed => {
                self.roll_back_session(session).await;
                return Err(rolled_back_as_failed());
            }
            TransactionSession::Raw(raw) => self.pass_through_commit.prepare(raw, serial).await,
        };
        match changed {
            Ok((changes, claim)) => {
                let prepared = PreparedSession { session, serial, ranges, rows, claim };
                self.prepared.prepare(id, decider, changes, prepared).await
            }
            Err(CommitError::RolledBack(failure)) => {
                self.roll_back_session(session).await;
                Err(moved_away(failure))
            }
            Err(CommitError::Broken(failure)) => Err(moved_away(failure)),
        }
    }

    /// Transactions that are prepared here.
    pub(super) fn prepared(&self) -> &PreparedTransactions {
        &self.prepared
    }

    /// Whether a transaction that this shard decides about is committed; `None` while its commit is
    /// under way. If it is not, it never will be.
    pub(super) async fn decision(&self, id: TxnId) -> Result<Option<bool>, Failure> {
        self.context.check_open()?;
        // While this lives, no commit under the id begins.
        let Some(_attempt) = self.ids.begin_question(id) else { return Ok(None) };
        let committed = self.context.shared.transactions().is_committed(id);
        self.context.barrier().await?;
        if !committed {
            self.declare_lost(id)?;
        }
        Ok(Some(committed))
    }

    /// A commit under the id that is still to come is rejected from now on.
    fn declare_lost(&self, id: TxnId) -> Result<(), Failure> {
        match self.lost.insert(id, |first_sent_ms| self.ids.is_too_old(first_sent_ms)) {
            true => Ok(()),
            false => Err(Failure::Busy {
                reason: "too many lost transactions are asked about".into(),
                retry_after_ms: 1_000,
            }),
        }
    }

    /// Which of these transactions are still prepared here.
    pub(super) async fn still_prepared(&self, ids: Vec<TxnId>) -> Result<Vec<TxnId>, Failure> {
        self.context.barrier().await?;
        let transactions = self.context.shared.transactions();
        Ok(ids.into_iter().filter(|id| transactions.prepared(*id).is_some()).collect())
    }

    /// Forgets decisions that all participants have in their logs.
    pub(super) async fn forget_decisions(&self, ids: Vec<TxnId>) -> Result<(), Failure> {
        let leadership = &self.context.leadership;
        let entry = ShardEntry { serial: leadership.next_serial(), body: EntryBody::Forgotten(Forgotten { ids }) };
        // Whatever becomes of it: those that are remembered are asked about again.
        leadership.propose(&entry).await.map(drop)
    }

    /// Resolves a prepared transaction.
    pub(super) async fn resolve(&self, resolution: Resolution) -> Result<(), Failure> {
        self.prepared.resolve(resolution).await
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
        let decided = self.context.shared.transactions().is_committed(id);
        let known = decided || self.ids.answered_before(id)?.is_some();
        self.context.barrier().await?;
        if known {
            return Ok(());
        }
        // This leader has applied everything (invariant 4), and no session of an earlier leadership
        // is left (R3). So the transaction is not committed. Its COMMIT may still be in a
        // connection, and must be rejected then.
        self.declare_lost(id)?;
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
