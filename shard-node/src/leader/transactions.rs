//! Transactions of several statements, on one shard.
//!
//! A transaction holds a PostgreSQL session, and a ranges for every range it has touched, until it ends: by COMMIT, by ROLLBACK,
//! with its connection, with the leadership, or because it was idle or in the way of a move for too long.

use super::early::{Early, EarlyReply};
use super::gate::Kind;
use super::group::{CommitError, capture, lost};
use super::kept::answered;
use super::latches::{RangeHandle, RangeLatch};
use super::leadership::too_large;
use super::row_locks::HeldRows;
use super::session::{Capturer, Parameters, UserSession, reply};
use super::{Leader, UnderWay, WrittenKey, touches};
use crate::entry::{Body, Entry};
use crate::postgres::{Connector, Role};
use crate::store::StoreError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{StatementReply, StatementRequest, TransactionOptions};
use evenkeel_protocol::{Durability, Failure, Key, SqlError, TableId, TxnId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::types::ToSql;

/// How long a transaction may wait for its client, in milliseconds.
const MAX_IDLE_MS: u64 = 30_000;
/// How often idle transactions are looked for, in milliseconds.
const REAP_MS: u64 = 1_000;
/// Lost COMMITs that are remembered at most.
const MAX_BURIED: usize = 10_000;
/// How long a statement waits for a free session, in milliseconds.
const POOL_WAIT_MS: u64 = 2_000;
/// Sessions beside those of open transactions, for statements that run by themselves: transactions that idle do not keep those out.
pub const RESERVED_SESSIONS: usize = 16;
/// Sessions that may wait for locks and run long, but not for ever. A user cannot change it (R6).
const SESSION_SETTINGS: &str = "SET lock_timeout = '2s'; SET statement_timeout = '30s'";

/// Sessions for what does not go through a lane.
pub struct SessionPool {
    connector: Connector,
    idle: Mutex<Vec<UserSession>>,
    free: Arc<Semaphore>,
    /// Those of them that transactions may take.
    for_transactions: Arc<Semaphore>,
}

/// A session taken from the pool; its place is free again when it is dropped.
pub struct PooledSession {
    session: UserSession,
    _place: OwnedSemaphorePermit,
    _of_transactions: Option<OwnedSemaphorePermit>,
}

/// Why there is no session.
pub enum NoSession {
    /// As many are in use as may be; the answer to that.
    Full(Failure),
    /// PostgreSQL opens none.
    Failed(StoreError),
}

impl std::ops::Deref for PooledSession {
    type Target = UserSession;
    fn deref(&self) -> &UserSession {
        &self.session
    }
}

impl SessionPool {
    /// A pool for at most so many open transactions, with [`RESERVED_SESSIONS`] more for statements that run by themselves.
    pub fn new(connector: Connector, transactions: usize) -> SessionPool {
        let transactions = transactions.max(1);
        SessionPool {
            connector,
            idle: Mutex::default(),
            free: Arc::new(Semaphore::new(transactions + RESERVED_SESSIONS)),
            for_transactions: Arc::new(Semaphore::new(transactions)),
        }
    }

    /// A session outside of any transaction, for a statement that runs by itself. It ends soon, and so do those before it: who finds none free is
    /// to come again.
    pub async fn take(&self) -> Result<PooledSession, NoSession> {
        let Some(place) = place(&self.free).await else {
            let reason = "too many statements on several rows are under way".to_string();
            return Err(NoSession::Full(Failure::Busy { reason, retry_after_ms: 50 }));
        };
        self.session(place, None).await
    }

    /// The same for a transaction, which may last as long as its client likes.
    pub async fn take_for_transaction(&self) -> Result<PooledSession, NoSession> {
        let of_transactions = place(&self.for_transactions).await;
        let place = if of_transactions.is_some() { place(&self.free).await } else { None };
        let Some(place) = place else {
            let error = SqlError::new(codes::TOO_MANY, "too many transactions are open on this shard");
            return Err(NoSession::Full(error.hint("Retry later.").into()));
        };
        self.session(place, of_transactions).await
    }

    async fn session(
        &self,
        place: OwnedSemaphorePermit,
        of_transactions: Option<OwnedSemaphorePermit>,
    ) -> Result<PooledSession, NoSession> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let session = match idle.filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => {
                let open = async {
                    let session = UserSession::new(self.connector.connect(Role::User).await?);
                    session.simple(SESSION_SETTINGS).await?;
                    Ok::<_, StoreError>(session)
                };
                open.await.map_err(NoSession::Failed)?
            }
        };
        Ok(PooledSession { session, _place: place, _of_transactions: of_transactions })
    }

    /// Gives back a session that is outside of any transaction.
    pub fn put_back(&self, session: PooledSession) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session.session);
    }
}

/// A place, unless none becomes free in time.
async fn place(places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let wait = Duration::from_millis(POOL_WAIT_MS);
    tokio::time::timeout(wait, places.clone().acquire_owned()).await.ok()?.ok()
}

/// An open transaction.
pub struct OpenTransaction {
    session: Option<PooledSession>,
    /// The rows that it locks, or may.
    rows: HeldRows,
    captured: Capturer,
    /// Set once a statement failed: only ROLLBACK is possible then.
    failed: bool,
    options: TransactionOptions,
    /// The generation of admission at its snapshot (R25).
    began_in: u64,
    used: Instant,
    affected: u64,
    first_key: Option<(TableId, Key)>,
}

/// An open transaction, as its connection holds it.
pub struct TransactionHandle {
    number: u64,
    inner: tokio::sync::Mutex<OpenTransaction>,
    /// It is in the way of a move, or was idle for too long: it is ended as soon as nothing is executing in it.
    doomed: AtomicBool,
    /// Leave to touch its ranges. Beside what a statement under way locks, so that it is seen who is in the way.
    ranges: Mutex<Option<RangeHandle>>,
}

impl TransactionHandle {
    fn ranges(&self) -> MutexGuard<'_, Option<RangeHandle>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ranges it is in.
    fn latches(&self) -> Vec<Arc<RangeLatch>> {
        self.ranges().as_ref().map(|ranges| ranges.latches().to_vec()).unwrap_or_default()
    }

    fn keep(&self, more: RangeHandle) {
        let mut ranges = self.ranges();
        match &mut *ranges {
            Some(ranges) => ranges.join(more),
            None => *ranges = Some(more),
        }
    }

    fn give_up_ranges(&self) -> Option<RangeHandle> {
        self.ranges().take()
    }

    fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Acquire)
    }
}

/// Ids whose COMMIT this leader has said to be lost. A COMMIT may still lie in a connection that is read late; it must find here that
/// it comes too late, because its client has begun again.
#[derive(Default)]
pub struct Buried(HashMap<(u64, u64), u64>);

impl Buried {
    /// Remembers an id; forgets those that are refused for their age anyway, by `too_old`. `false` if there are too many.
    fn insert(&mut self, id: TxnId, too_old: impl Fn(u64) -> bool) -> bool {
        if self.0.len() >= MAX_BURIED {
            self.0.retain(|_, first_sent_ms| !too_old(*first_sent_ms));
        }
        let room = self.0.len() < MAX_BURIED;
        if room {
            self.0.insert((id.client, id.sequence), id.first_sent_ms);
        }
        room
    }

    fn contains(&self, id: TxnId) -> bool {
        self.0.contains_key(&(id.client, id.sequence))
    }
}

/// All open transactions of a leadership, for what must end them.
#[derive(Default)]
pub struct Registry {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<TransactionHandle>>>,
}

impl Registry {
    fn all(&self) -> Vec<Arc<TransactionHandle>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn remove(&self, number: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

impl Leader {
    /// Begins a transaction.
    pub async fn begin_transaction(&self, options: TransactionOptions) -> Result<Arc<TransactionHandle>, Failure> {
        self.check_open()?;
        // While it waits for a session; once it is open it holds locks, and what it sends is let in.
        let _inside = self.gate.enter(Kind::Write, std::mem::size_of::<OpenTransaction>())?;
        let session = self.took(self.pool.take_for_transaction().await)?;
        let isolation = if options.repeatable_read { "REPEATABLE READ" } else { "READ COMMITTED" };
        let access = if options.read_only { "READ ONLY" } else { "READ WRITE" };
        let began_in = self.shared.latches.generation();
        let begin = format!("BEGIN ISOLATION LEVEL {isolation} {access}");
        session.simple(&begin).await.map_err(|error| lost(&error))?;
        let number = self.open_transactions.next.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(TransactionHandle {
            number,
            inner: tokio::sync::Mutex::new(OpenTransaction {
                session: Some(session),
                rows: self.row_locks.holder(),
                captured: Capturer::default(),
                failed: false,
                options,
                began_in,
                used: Instant::now(),
                affected: 0,
                first_key: None,
            }),
            doomed: AtomicBool::new(false),
            ranges: Mutex::default(),
        });
        let open = &self.open_transactions.open;
        open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, handle.clone());
        Ok(handle)
    }

    /// Runs a statement in a transaction.
    pub async fn in_transaction(
        &self,
        handle: &TransactionHandle,
        request: StatementRequest,
    ) -> Result<StatementReply, Failure> {
        let mut transaction = handle.inner.lock().await;
        let transaction = &mut *transaction;
        transaction.used = Instant::now();
        if handle.is_doomed() {
            return Err(in_the_way());
        }
        if transaction.failed {
            return Err(SqlError::new(
                codes::IN_FAILED_TRANSACTION,
                "the transaction has failed; nothing is executed until it is rolled back",
            )
            .into());
        }
        let result = self.run_in_transaction(handle, transaction, &request).await;
        if result.is_err() {
            transaction.failed = true;
        }
        if handle.is_doomed() {
            // While it was executing it could not be ended.
            self.end_transaction(handle, transaction).await;
            return result.and(Err(in_the_way()));
        }
        result
    }

    async fn run_in_transaction(
        &self,
        handle: &TransactionHandle,
        transaction: &mut OpenTransaction,
        request: &StatementRequest,
    ) -> Result<StatementReply, Failure> {
        let bound = self.bind(request)?;
        if let Some(capacity) = &self.capacity {
            capacity.acquire().await?;
        }
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
        let touched = touches(&bound, request)?;
        let table = bound.schema.as_ref().map(|s| s.id).unwrap_or_default();
        let ranges = self.shared.latches.acquire(table, &touched, &handle.latches()).await.map_err(moved_away)?;
        let adopted_later = ranges.latches().iter().any(|slot| slot.adopted_in > transaction.began_in);
        if transaction.options.repeatable_read && adopted_later {
            // R25: its snapshot cannot hold the rows of a range that came later.
            return Err(serialization("the range came to this shard after the transaction's snapshot"));
        }
        handle.keep(ranges);
        let Some(session) = &transaction.session else { return Err(in_the_way()) };
        let lost = |error: StoreError| lost_in_transaction(&self.examine(error));
        let prepared = session.prepare(&bound.sql, bound.plan.returned()).await.map_err(lost)?;
        let parameters = Parameters::new(&request.params);
        let refs: Vec<&(dyn ToSql + Sync)> = parameters.refs();
        if bound.plan.writes() || bound.plan.locks() {
            transaction.rows.may_hold(table, &touched);
        }
        // Whatever a statement answers depends on data (R8).
        let (rows, fresh) = tokio::join!(session.run(&prepared, &refs), self.barrier());
        fresh.map_err(moved_away)?;
        let rows = rows.map_err(lost)?;
        let before = transaction.captured.len();
        let key = capture(&mut transaction.captured, &bound, &rows)?;
        let (size, limit) = (transaction.captured.size_bytes(), self.leadership.max_entry_bytes());
        if size > limit {
            return Err(too_large(size, limit));
        }
        // R4: a row lock may have been got from a COMMIT that PostgreSQL has not confirmed yet.
        let written = transaction.captured.last_keys(transaction.captured.len() - before);
        transaction.rows.holds(written.iter().map(|change| (change.table, &change.key)));
        self.leadership.confirmed(&written).await?;
        if let (Some(key), None) = (key, &transaction.first_key) {
            transaction.first_key = Some((table, key));
        }
        transaction.affected += rows.len() as u64;
        Ok(reply(&prepared.columns, &rows, rows.len())?)
    }

    /// Commits a transaction under the client's id.
    pub async fn commit_transaction(&self, handle: &TransactionHandle, id: TxnId) -> Result<(), Failure> {
        self.commit_early(handle, id, Durability::Disk, None).await
    }

    /// The same; at a durability below `disk` the commit is answered through `early` when it has reached that (R28).
    pub async fn commit_early(
        &self,
        handle: &TransactionHandle,
        id: TxnId,
        durability: Durability,
        early: Option<EarlyReply>,
    ) -> Result<(), Failure> {
        let mut transaction = handle.inner.lock().await;
        self.open_transactions.remove(handle.number);
        // Its connection does not know it any more: whichever way this ends, the transaction ends with it.
        let ranges = handle.give_up_ranges();
        let Some(session) = transaction.session.take() else { return Err(in_the_way()) };
        let _under_way = match self.enter_commit(id) {
            Ok(under_way) => under_way,
            Err(refused) => {
                self.roll_back_session(session).await;
                transaction.rows = self.row_locks.holder();
                return Err(refused);
            }
        };
        let captured = std::mem::take(&mut transaction.captured);
        // Until its end is confirmed.
        let _rows = std::mem::replace(&mut transaction.rows, self.row_locks.holder());
        if transaction.failed || captured.is_empty() {
            // COMMIT of a failed transaction is a ROLLBACK, as in PostgreSQL; one that only read is a read (R8).
            let ((), fresh) = tokio::join!(self.roll_back_session(session), self.barrier());
            if transaction.failed {
                return Err(serialization("a statement of the transaction failed, so it was rolled back"));
            }
            return fresh.map_err(moved_away);
        }
        let mut answers = Early::default();
        answers.add(durability, early, &StatementReply::default());
        let result = self.commit_captured(&session, captured, id, &transaction, answers).await;
        match result {
            Ok(()) => {
                self.pool.put_back(session);
                drop(ranges);
                Ok(())
            }
            Err(CommitError::RolledBack(failure)) => {
                self.pool.put_back(session);
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
        let serial = self.leadership.next_serial();
        let (term, recorded) = (self.leadership.term.0 as i64, serial as i64);
        let record = async {
            // What PostgreSQL checks only at COMMIT is checked now (invariant 5); the record before the proposal (R5).
            session.simple("SET CONSTRAINTS ALL IMMEDIATE").await?;
            let record = session.prepare(&self.texts.record, 0).await?;
            let no_answers: &[u8] = &[];
            session.run(&record, &[&term, &recorded, &no_answers]).await?;
            Ok::<_, StoreError>(())
        };
        if let Err(error) = record.await.map_err(|error| self.examine(error)) {
            return match session.simple("ROLLBACK").await {
                Ok(()) => Err(CommitError::RolledBack(lost_in_transaction(&error))),
                Err(_) => Err(CommitError::Broken(lost_in_transaction(&error))),
            };
        }
        let mut changes = match captured.finish(self.shared.log.unix_ms()) {
            Ok(changes) => changes,
            Err(error) => return self.roll_back(session, error.into()).await,
        };
        if let Some((table, key)) = transaction.first_key.clone() {
            let affected = StatementReply { affected: transaction.affected, ..StatementReply::default() };
            changes.answered.push(answered(id, table, key, &affected));
        }
        self.commit(session, Entry { serial, body: Body::Changes(changes) }, early).await
    }

    /// The id of a COMMIT whose transaction is open here. Whatever is wrong with it, the transaction is not committed, for certain.
    fn enter_commit(&self, id: TxnId) -> Result<UnderWay<'_>, Failure> {
        let buried = || self.buried.lock().unwrap_or_else(PoisonError::into_inner).contains(id);
        let rolled_back = |reason: &str| serialization(&format!("the transaction was rolled back: {reason}"));
        match self.enter(id) {
            Ok(_) if buried() => Err(rolled_back("its COMMIT came after its client had been told that it was lost")),
            Ok(under_way) => Ok(under_way),
            Err(Failure::Busy { .. }) => Err(rolled_back("its client asks already what became of it")),
            Err(Failure::Sql(error)) => Err(rolled_back(&error.message)),
            Err(other) => Err(moved_away(other)),
        }
    }

    /// Answers a COMMIT whose transaction this replica does not have: from the retry window, or that it cannot have happened.
    pub async fn commit_again(&self, id: TxnId, key: WrittenKey) -> Result<(), Failure> {
        self.check_open()?;
        let _under_way = self.enter(id)?;
        let _ranges = match key {
            Some((table, key)) => {
                let touches = evenkeel_sql::Touches::Keys(vec![key]);
                Some(self.shared.latches.acquire(table, &touches, &[]).await?)
            }
            None => None,
        };
        let known = self.answered_before(id)?.is_some();
        self.barrier().await?;
        if known {
            return Ok(());
        }
        // This leader is whole (invariant 4) and no session of an earlier leadership is left (R3): it was not committed. If its COMMIT still
        // lies in a connection, it must find that it comes too late.
        let too_old = |first_sent_ms| !self.shared.window().can_tell(first_sent_ms, self.shared.log.unix_ms());
        if !self.buried.lock().unwrap_or_else(PoisonError::into_inner).insert(id, too_old) {
            return Err(Failure::Busy {
                reason: "too many lost transactions are asked about".into(),
                retry_after_ms: 1_000,
            });
        }
        Err(serialization("the transaction was lost with its connection and has not been committed"))
    }

    /// Rolls a transaction back.
    pub async fn roll_back_transaction(&self, handle: &TransactionHandle) {
        let mut transaction = handle.inner.lock().await;
        self.end_transaction(handle, &mut transaction).await;
    }

    async fn end_transaction(&self, handle: &TransactionHandle, transaction: &mut OpenTransaction) {
        self.open_transactions.remove(handle.number);
        if let Some(session) = transaction.session.take() {
            self.roll_back_session(session).await;
        }
        drop(handle.give_up_ranges());
        transaction.rows = self.row_locks.holder();
    }

    async fn roll_back_session(&self, session: PooledSession) {
        if session.simple("ROLLBACK").await.is_ok() {
            self.pool.put_back(session);
        }
    }

    /// Ends the transactions that keep a range from its fence (R22): at once, or as soon as what is executing in them has ended.
    pub async fn doom_transactions_on(&self, slot: &Arc<RangeLatch>) {
        for handle in self.open_transactions.all() {
            // One that was begun before a split is in the way of each piece.
            if !handle.latches().iter().any(|held| slot.is_or_comes_from(held)) {
                continue;
            }
            handle.doomed.store(true, Ordering::Release);
            if let Ok(mut transaction) = handle.inner.try_lock() {
                self.end_transaction(&handle, &mut transaction).await;
            }
        }
    }
}

/// Ends transactions whose clients have gone quiet, until the leadership ends.
pub async fn reap(leader: Arc<Leader>) {
    let mut ended = leader.leadership.ended();
    loop {
        let pause = tokio::time::sleep(Duration::from_millis(REAP_MS));
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return,
            () = pause => {}
        }
        for handle in leader.open_transactions.all() {
            let Ok(transaction) = handle.inner.try_lock() else { continue };
            let idle = transaction.used.elapsed() > Duration::from_millis(MAX_IDLE_MS);
            drop(transaction);
            if idle {
                handle.doomed.store(true, Ordering::Release);
                leader.roll_back_transaction(&handle).await;
            }
        }
    }
}

fn serialization(message: &str) -> Failure {
    SqlError::new(codes::SERIALIZATION_FAILURE, message).hint("Retry the transaction.").into()
}

fn in_the_way() -> Failure {
    serialization("the transaction was ended because a range it uses is moving, or because it was idle for too long")
}

/// Inside a transaction there is nowhere else to go: the client must begin again.
fn moved_away(failure: Failure) -> Failure {
    match failure {
        Failure::Moved { .. } => serialization("a range that the transaction uses has moved"),
        Failure::NotLeader { .. } => serialization("the shard's leader has changed"),
        Failure::Busy { reason, .. } => serialization(&reason),
        // Only what has not begun is stopped at the gate.
        Failure::Overloaded { .. } => serialization("the shard is overloaded"),
        // Only a `local` read is ever too stale, and it is none of a transaction on the leader.
        Failure::TooStale { .. } => serialization(&failure.to_string()),
        other @ (Failure::Sql(_) | Failure::OutcomeUnknown { .. }) => other,
    }
}

fn lost_in_transaction(error: &StoreError) -> Failure {
    match error {
        StoreError::Refused(error) if ["55P03", "40P01"].contains(&error.code.as_ref()) => {
            super::group::contention(error)
        }
        other => moved_away(lost(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_commits_are_remembered_as_long_as_they_can_come() {
        let id = |n| TxnId { client: 1, sequence: n, first_sent_ms: n };
        let mut buried = Buried::default();
        for n in 0..MAX_BURIED as u64 {
            assert!(buried.insert(id(n), |_| false));
        }
        assert!(!buried.insert(id(99_999), |_| false), "none is forgotten that could still come");
        assert!(buried.contains(id(0)) && !buried.contains(id(99_999)));
        assert!(buried.insert(id(99_999), |first_sent_ms| first_sent_ms < 5));
        assert!(!buried.contains(id(4)) && buried.contains(id(5)) && buried.contains(id(99_999)));
    }
}
