//! Open transactions of a leadership, as their connections and the leader hold them.

use super::capture::Capturer;
use super::latches::{RangeHandle, RangeLatch};
use super::raw_transaction::RawTransaction;
use super::row_locks::HeldRows;
use super::session_pool::PooledSession;
use evenkeel_protocol::shard::TransactionOptions;
use evenkeel_protocol::{Key, TableId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What a transaction runs on. Its first request decides which: the two do not mix.
pub(super) enum TransactionSession {
    /// Statements that the shard analyses.
    Analysed(Box<PooledSession>),
    /// Users' own texts.
    Raw(Box<RawTransaction>),
}

/// An open transaction. Locked while a statement of it executes.
pub struct OpenTransaction {
    /// Its session, until it ends.
    pub(super) session: Option<TransactionSession>,
    /// The rows that it locks or may lock.
    pub(super) rows: HeldRows,
    /// What it wrote.
    pub(super) captured: Capturer,
    /// Set when a statement failed. From then on only ROLLBACK is possible.
    pub(super) failed: bool,
    /// Isolation level and access mode.
    pub(super) options: TransactionOptions,
    /// The generation of the latch table at its snapshot (R25).
    pub(super) began_in: u64,
    /// The time of its last statement.
    pub(super) used: Instant,
    /// Rows that its statements returned or changed.
    pub(super) affected: u64,
    /// The first key that it wrote.
    pub(super) first_key: Option<(TableId, Key)>,
}

/// An open transaction, as its connection holds it.
pub struct TransactionHandle {
    pub(super) number: u64,
    pub(super) open: tokio::sync::Mutex<OpenTransaction>,
    /// It delays a move, or was idle for too long. It is ended as soon as no statement of it
    /// executes.
    doomed: AtomicBool,
    /// Its client wants the step cancelled that is being executed.
    cancel: Notify,
    /// Its right to use its ranges. Outside of `open`, so that it can be read while a statement
    /// executes.
    ranges: Mutex<Option<RangeHandle>>,
}

impl TransactionHandle {
    fn ranges(&self) -> MutexGuard<'_, Option<RangeHandle>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latches of its ranges.
    pub(super) fn latches(&self) -> Vec<Arc<RangeLatch>> {
        self.ranges().as_ref().map(|ranges| ranges.latches().to_vec()).unwrap_or_default()
    }

    /// Keeps a handle until the end of the transaction.
    pub(super) fn keep(&self, more: RangeHandle) {
        let mut ranges = self.ranges();
        match &mut *ranges {
            Some(ranges) => ranges.join(more),
            None => *ranges = Some(more),
        }
    }

    /// Takes its handle, at the end of the transaction.
    pub(super) fn take_ranges(&self) -> Option<RangeHandle> {
        self.ranges().take()
    }

    /// It has to end as soon as possible.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Has the step cancelled that is being executed, if there is one.
    pub fn cancel(&self) {
        self.cancel.notify_waiters();
    }

    /// Completes when [`TransactionHandle::cancel`] is called after this.
    pub(super) fn cancelled(&self) -> Notified<'_> {
        self.cancel.notified()
    }

    /// Whether it has to end as soon as possible.
    pub(super) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Acquire)
    }
}

/// All open transactions of a leadership.
#[derive(Default)]
pub(super) struct OpenTransactions {
    next: AtomicU64,
    by_number: Mutex<HashMap<u64, Arc<TransactionHandle>>>,
}

impl OpenTransactions {
    fn by_number(&self) -> MutexGuard<'_, HashMap<u64, Arc<TransactionHandle>>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a transaction.
    pub(super) fn add(&self, transaction: OpenTransaction) -> Arc<TransactionHandle> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Arc::new(TransactionHandle {
            number,
            open: tokio::sync::Mutex::new(transaction),
            doomed: AtomicBool::new(false),
            cancel: Notify::new(),
            ranges: Mutex::default(),
        });
        self.by_number().insert(number, handle.clone());
        handle
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<TransactionHandle>> {
        self.by_number().values().cloned().collect()
    }

    /// Removes a transaction that has ended.
    pub(super) fn remove(&self, transaction: &TransactionHandle) {
        self.by_number().remove(&transaction.number);
    }
}
