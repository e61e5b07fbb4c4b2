//! Open transactions of one client connection. Pure.
//!
//! Requests of one connection run at the same time. A ROLLBACK, or the end of the connection, can
//! therefore overtake the statement that begins the transaction: a client that gives up quickly
//! sends both back to back.
//!
//! Promises: no transaction stays open that way. A transaction whose end has come first is refused
//! when it begins.

use crate::leader::Leader;
use crate::leader::open_transaction::TransactionHandle;
use evenkeel_protocol::{Failure, SqlError, TxnId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Transactions open on one connection.
pub const MAX_TRANSACTIONS_PER_CONNECTION: usize = 1_000;
/// Ends remembered for transactions that have not begun. As many requests may run at once, so none
/// of them is forgotten too early.
const MAX_ENDS: usize = evenkeel_rpc::MAX_REQUESTS_PER_CONNECTION;

/// A transaction and the leadership it belongs to.
pub type Opened = (Arc<Leader>, Arc<TransactionHandle>);

/// See the module.
#[derive(Default)]
pub struct ConnectionTransactions {
    transactions: Mutex<Transactions<Opened>>,
    /// Transactions that were prepared on this connection and are not resolved, with the leadership
    /// (R26).
    prepared: Mutex<HashMap<TxnId, Arc<Leader>>>,
}

impl ConnectionTransactions {
    fn transactions(&self) -> MutexGuard<'_, Transactions<Opened>> {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open transaction.
    pub fn find(&self, transaction: u64) -> Option<Opened> {
        self.transactions().open.get(&transaction).cloned()
    }

    /// Keeps a transaction that has just begun.
    ///
    /// # Errors
    /// It is not kept, and must be rolled back.
    pub fn put(&self, transaction: u64, opened: Opened) -> Result<(), NotKept> {
        self.transactions().put(transaction, opened)
    }

    /// Takes an open transaction out, to end it. A transaction that has not begun is refused when
    /// it begins.
    pub fn take(&self, transaction: u64) -> Option<Opened> {
        self.transactions().take(transaction)
    }

    /// A transaction of this connection is about to be prepared.
    pub fn prepare(&self, id: TxnId, leader: &Arc<Leader>) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(id, leader.clone());
    }

    /// A transaction is resolved, or was not prepared.
    pub fn resolve(&self, id: TxnId) {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// The connection has ended: the transactions whose outcome its client knew.
    pub fn abandoned(&self) -> HashMap<TxnId, Arc<Leader>> {
        std::mem::take(&mut *self.prepared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection has ended: all that is open, and nothing is kept from now on.
    pub fn close(&self) -> Vec<Opened> {
        self.transactions().close()
    }
}

/// Why a transaction is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotKept {
    /// Too many are open.
    TooMany,
    /// Its end has come before its beginning.
    Ended,
}

impl From<NotKept> for Failure {
    fn from(why: NotKept) -> Failure {
        match why {
            NotKept::TooMany => SqlError::new("53300", "too many transactions are open on this connection"),
            NotKept::Ended => SqlError::new("40001", "the transaction was rolled back as it began"),
        }
        .into()
    }
}

/// The answer to a request of a transaction that is not open.
pub fn no_longer_open() -> Failure {
    SqlError::new("40001", "the transaction is no longer open here").hint("Retry the transaction.").into()
}

struct Transactions<T> {
    open: HashMap<u64, T>,
    ends: HashSet<u64>,
    ends_in_order: VecDeque<u64>,
    closed: bool,
}

impl<T> Default for Transactions<T> {
    fn default() -> Self {
        Transactions { open: HashMap::new(), ends: HashSet::new(), ends_in_order: VecDeque::new(), closed: false }
    }
}

impl<T> Transactions<T> {
    fn put(&mut self, transaction: u64, opened: T) -> Result<(), NotKept> {
        if self.closed || self.ends.contains(&transaction) {
            return Err(NotKept::Ended);
        }
        if self.open.len() >= MAX_TRANSACTIONS_PER_CONNECTION {
            return Err(NotKept::TooMany);
        }
        self.open.insert(transaction, opened);
        Ok(())
    }

    fn take(&mut self, transaction: u64) -> Option<T> {
        let opened = self.open.remove(&transaction);
        if opened.is_none() && self.ends.insert(transaction) {
            self.ends_in_order.push_back(transaction);
            if self.ends_in_order.len() > MAX_ENDS
                && let Some(oldest) = self.ends_in_order.pop_front()
            {
                self.ends.remove(&oldest);
            }
        }
        opened
    }

    fn close(&mut self) -> Vec<T> {
        self.closed = true;
        self.open.drain().map(|(_, opened)| opened).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_overtakes_its_beginning_counts() {
        let mut transactions = Transactions::default();
        assert_eq!(transactions.take(1), None);
        assert_eq!(transactions.put(1, "late"), Err(NotKept::Ended));
        assert_eq!(transactions.put(2, "kept"), Ok(()));
        assert_eq!(transactions.take(2), Some("kept"));
        assert_eq!(transactions.close(), Vec::<&str>::new());
    }

    #[test]
    fn nothing_is_kept_after_the_connection_s_end() {
        let mut transactions = Transactions::default();
        assert_eq!(transactions.put(1, "open"), Ok(()));
        assert_eq!(transactions.close(), ["open"]);
        assert_eq!(transactions.put(2, "late"), Err(NotKept::Ended));
    }

    #[test]
    fn remembered_ends_are_bounded() {
        let mut transactions = Transactions::default();
        for number in 0..2 * MAX_ENDS as u64 {
            assert_eq!(transactions.take(number), None);
        }
        assert_eq!((transactions.ends.len(), transactions.ends_in_order.len()), (MAX_ENDS, MAX_ENDS));
        assert_eq!(transactions.put(0, ()), Ok(()), "long forgotten");
        for number in 1..MAX_TRANSACTIONS_PER_CONNECTION as u64 {
            assert_eq!(transactions.put(number, ()), Ok(()));
        }
        assert_eq!(transactions.put(MAX_TRANSACTIONS_PER_CONNECTION as u64, ()), Err(NotKept::TooMany));
    }
}
