//! Prepared transactions of a leadership: between the two phases of a commit that another shard
//! decides about (R26).
//!
//! 1. A transaction's changes are read as for a commit, and its session writes the record of the
//!    entry that will resolve it (R5). The changes are proposed as prepared. From that proposal on
//!    the session only waits (R6): nothing ends it but the resolution, or the leadership's end.
//! 2. The resolution is proposed. When it is decided, the session commits or rolls back. So
//!    PostgreSQL commits nothing that is not in the log, as with any other entry (R4, invariant 4).
//!
//! A transaction that an earlier leadership has prepared has no session. Statements on its keys
//! wait (`crate::apply`), and its resolution is applied as on a follower.
//!
//! It owns the sessions. It promises: of several resolutions of one transaction at a time, one is
//! proposed and the others see it.
//!
//! Not done: the question to the deciding shard, which is `crate::maintenance`'s.

use super::claims::OwnedClaim;
use super::commit::EndingSession;
use super::context::LeaderContext;
use super::failures::{moved_away, serialization, too_large, unknown};
use super::latches::RangeHandle;
use super::leadership::EntryOutcome;
use super::open_transaction::TransactionSession;
use super::row_locks::HeldRows;
use super::session_pool::SessionPool;
use crate::log_entry::{Changes, EntryBody, PreparedChanges, Resolution, ShardEntry};
use crate::state_machine::{EntryRefusal, MAX_PREPARED_BYTES};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::{Failure, SqlError, TxnId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// When a resolution is proposed again for which the log had no room, in milliseconds.
const AGAIN_MS: u64 = 10;

/// An id without the time at which it was sent.
type Name = (u64, u64);
/// Locked while the transaction is prepared or resolved.
type Slot = Arc<tokio::sync::Mutex<Option<PreparedSession>>>;

/// A transaction that waits for its resolution. The fields beside the session keep its ranges, rows
/// and keys taken.
pub(super) struct PreparedSession {
    /// It holds the changes.
    pub session: TransactionSession,
    /// The serial of the entry that resolves it, of which the session has written the record.
    pub serial: u64,
    /// A fence waits for it (R22).
    pub ranges: Option<RangeHandle>,
    /// The rows that it locks.
    pub rows: HeldRows,
    /// R4.
    pub claim: OwnedClaim,
}

/// See the module.
pub struct PreparedTransactions {
    context: Arc<LeaderContext>,
    pool: Arc<SessionPool>,
    slots: Mutex<HashMap<Name, Slot>>,
    /// Those whose client has gone.
    abandoned: Mutex<HashSet<TxnId>>,
}

fn name(id: TxnId) -> Name {
    (id.client, id.sequence)
}

impl PreparedTransactions {
    /// None is prepared.
    pub fn new(context: Arc<LeaderContext>, pool: Arc<SessionPool>) -> PreparedTransactions {
        PreparedTransactions { context, pool, slots: Mutex::default(), abandoned: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Name, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abandoned(&self) -> MutexGuard<'_, HashSet<TxnId>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: TxnId) -> Slot {
        self.slots().entry(name(id)).or_default().clone()
    }

    fn remove(&self, id: TxnId) {
        self.slots().remove(&name(id));
        self.abandoned().remove(&id);
    }

    /// Proposes a transaction's changes as prepared.
    ///
    /// # Errors
    /// It is rolled back.
    pub(super) async fn prepare(
        &self,
        id: TxnId,
        decider: ShardInfo,
        changes: Changes,
        prepared: PreparedSession,
    ) -> Result<(), Failure> {
        let leadership = &self.context.leadership;
        let (size, limit) = (changes.size_bytes(), leadership.max_entry_bytes().min(MAX_PREPARED_BYTES));
        if size > limit {
            self.roll_back(prepared).await;
            return Err(too_large(size, limit));
        }
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        let body = EntryBody::Prepared(PreparedChanges { id, decider, changes });
        let entry = ShardEntry { serial: leadership.next_serial(), body };
        let _doubt = leadership.doubt();
        let outcome = match leadership.propose(&entry).await {
            Ok(outcome) => outcome.await,
            Err(failure) => {
                self.remove(id);
                self.roll_back(prepared).await;
                return Err(moved_away(failure));
            }
        };
        match outcome {
            Ok(EntryOutcome::Effective(_)) => {
                *slot = Some(prepared);
                Ok(())
            }
            Ok(EntryOutcome::Rejected(refusal)) => {
                self.remove(id);
                self.roll_back(prepared).await;
                Err(not_prepared(&refusal))
            }
            Ok(EntryOutcome::Deposed) => {
                self.remove(id);
                self.roll_back(prepared).await;
                Err(moved_away(Failure::NotLeader { leader: None }))
            }
            Err(_) => {
                std::mem::forget(prepared.claim);
                Err(moved_away(Failure::NotLeader { leader: None }))
            }
        }
    }

    /// The second phase. Idempotent.
    ///
    /// # Errors
    /// The resolution is not in the log, or not known to be.
    pub(super) async fn resolve(&self, resolution: Resolution) -> Result<(), Failure> {
        let id = resolution.id;
        self.context.check_open()?;
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        if self.context.shared.transactions().prepared(id).is_none() {
            // It has been resolved, or was never prepared and will not be: whoever decides does so
            // once, after all are prepared.
            self.remove(id);
            return self.context.barrier().await;
        }
        match slot.take() {
            Some(prepared) => self.resolve_session(prepared, resolution).await?,
            None => self.resolve_inherited(resolution).await?,
        }
        self.remove(id);
        Ok(())
    }

    async fn resolve_session(&self, prepared: PreparedSession, resolution: Resolution) -> Result<(), Failure> {
        let leadership = &self.context.leadership;
        let PreparedSession { mut session, serial, ranges, rows, claim } = prepared;
        let entry = ShardEntry { serial, body: EntryBody::Resolved(resolution) };
        let _doubt = leadership.doubt();
        let outcome = loop {
            match leadership.propose(&entry).await {
                Ok(outcome) => break outcome.await,
                // It cannot be given up: its locks protect the prepared rows.
                Err(Failure::Busy { .. }) => evenkeel_host::sleep(Duration::from_millis(AGAIN_MS)).await,
                Err(failure) => {
                    std::mem::forget(claim);
                    return Err(failure);
                }
            }
        };
        let ended = match outcome {
            Ok(EntryOutcome::Effective(position)) if resolution.committed => {
                let committed = ending(&mut session).commit().await;
                if committed.is_ok() {
                    self.context.shared.progress.confirm(position);
                }
                committed
            }
            Ok(EntryOutcome::Effective(_)) => ending(&mut session).roll_back().await,
            Ok(EntryOutcome::Rejected(refusal)) => {
                std::mem::forget(claim);
                self.context.break_down(&format!("a resolution was rejected: {refusal}"));
                return Err(unknown("the replica restarts its PostgreSQL"));
            }
            Ok(EntryOutcome::Deposed) => {
                // The next leader resolves it.
                std::mem::forget(claim);
                _ = ending(&mut session).roll_back().await;
                return Err(Failure::NotLeader { leader: None });
            }
            Err(_) => {
                std::mem::forget(claim);
                return Err(unknown("the replica restarts its PostgreSQL"));
            }
        };
        if let Err(error) = ended {
            // R1: the log has the resolution, and this PostgreSQL may not.
            std::mem::forget(claim);
            self.context.break_down(&format!("a prepared transaction cannot be ended: {error}"));
            return Err(unknown("the leader's PostgreSQL failed at COMMIT"));
        }
        drop((claim, rows, ranges));
        self.put_back(session).await;
        Ok(())
    }

    async fn resolve_inherited(&self, resolution: Resolution) -> Result<(), Failure> {
        let leadership = &self.context.leadership;
        let entry = ShardEntry { serial: leadership.next_serial(), body: EntryBody::Resolved(resolution) };
        match leadership.propose_unheld(&entry).await?.await {
            Ok(EntryOutcome::Effective(_)) => Ok(()),
            Ok(EntryOutcome::Rejected(refusal)) => Err(serialization(&refusal.reason)),
            Ok(EntryOutcome::Deposed) => Err(Failure::NotLeader { leader: None }),
            Err(_) => Err(unknown("the replica restarts its PostgreSQL")),
        }
    }

    /// Its client has gone before it resolved the transaction.
    pub(super) fn abandon(&self, id: TxnId) {
        if self.context.shared.transactions().prepared(id).is_some() {
            self.abandoned().insert(id);
        }
    }

    /// Whether its client has gone.
    pub(super) fn is_abandoned(&self, id: TxnId) -> bool {
        self.abandoned().contains(&id)
    }

    async fn roll_back(&self, prepared: PreparedSession) {
        let PreparedSession { mut session, ranges, rows, claim, .. } = prepared;
        let rolled_back = ending(&mut session).roll_back().await;
        drop((claim, rows, ranges));
        if rolled_back.is_ok() {
            self.put_back(session).await;
        }
    }

    async fn put_back(&self, session: TransactionSession) {
        match session {
            TransactionSession::Analysed(session) => self.pool.put_back(*session),
            TransactionSession::Raw(raw) => self.pool.put_back_raw(raw.session).await,
        }
    }
}

fn ending(session: &mut TransactionSession) -> EndingSession<'_> {
    match session {
        TransactionSession::Analysed(session) => EndingSession::Analysed(session),
        TransactionSession::Raw(raw) => EndingSession::Raw(&mut raw.session),
    }
}

fn not_prepared(refusal: &EntryRefusal) -> Failure {
    tracing::debug!(%refusal, "a transaction over several shards is not prepared");
    match refusal.code {
        "too-much-prepared" => SqlError::new(codes::PROGRAM_LIMIT, refusal.reason.clone())
            .hint("Write fewer rows in transactions over several shards.")
            .into(),
        _ => moved_away(Failure::Moved { to: None, range: None }),
    }
}
