//! Rows that are known to be locked in PostgreSQL, so that batches do not wait for them (R10).
//!
//! Transactions and statements that run alone register the rows that they lock. A statement on such
//! a row does not enter a batch, where all others would wait with it:
//!
//! - A row that is *held* is certainly locked. The statement waits here, without a session, until
//!   the lock is released.
//! - A row that *may be held* (by a statement whose keys are an interval, or that found no row) is
//!   decided by PostgreSQL. The statement runs alone and holds the row meanwhile, so that later
//!   statements queue behind it.
//!
//! This is an optimisation. A statement that meets an unknown lock waits in PostgreSQL, up to a
//! time limit.
//!
//! Not done: detection of deadlocks, which is PostgreSQL's.

use evenkeel_protocol::{Key, KeyInterval, TableId};
use evenkeel_sql::Touches;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// The most intervals that one holder registers. Beyond that, it may hold any row of the table.
const MAX_INTERVALS: usize = 8;

/// The knowledge about a row's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// No lock is known.
    Free,
    /// A holder may lock it.
    MayBeHeld,
    /// A holder locks it.
    Held,
}

/// The numbers of holders that hold a row, and that may hold it.
#[derive(Debug, Default)]
struct Counts {
    held: usize,
    may_be_held: usize,
}

#[derive(Debug, Default)]
struct LockTable {
    rows: HashMap<(TableId, Key), Counts>,
    /// By the holder's number.
    intervals: HashMap<u64, Vec<(TableId, KeyInterval)>>,
    next: u64,
}

impl LockTable {
    fn known(&self, table: TableId, key: &Key) -> Known {
        if !self.rows.is_empty()
            && let Some(counts) = self.rows.get(&(table, key.clone()))
        {
            if counts.held > 0 {
                return Known::Held;
            }
            return Known::MayBeHeld;
        }
        let inside = |(t, interval): &(TableId, KeyInterval)| *t == table && interval.contains(key);
        if self.intervals.values().flatten().any(inside) { Known::MayBeHeld } else { Known::Free }
    }

    fn change(&mut self, row: &(TableId, Key), change: impl FnOnce(&mut Counts)) {
        let counts = self.rows.entry(row.clone()).or_default();
        change(counts);
        if counts.held == 0 && counts.may_be_held == 0 {
            self.rows.remove(row);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct RowLocks {
    table: Mutex<LockTable>,
    released: watch::Sender<u64>,
}

impl Default for RowLocks {
    fn default() -> RowLocks {
        RowLocks { table: Mutex::default(), released: watch::Sender::new(0) }
    }
}

/// How a statement on a row continues.
pub enum Turn {
    /// In a batch: no lock of the row is known.
    Free,
    /// Alone, holding the row until this is dropped.
    Alone(HeldRows),
    /// The row was not free in time.
    Expired,
}

impl RowLocks {
    fn table(&self) -> MutexGuard<'_, LockTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The knowledge about a row's lock.
    pub fn known(&self, table: TableId, key: &Key) -> Known {
        self.table().known(table, key)
    }

    /// A new holder, which holds nothing.
    pub fn holder(self: &Arc<RowLocks>) -> HeldRows {
        let mut locks = self.table();
        locks.next += 1;
        HeldRows { locks: self.clone(), number: locks.next, rows: HashMap::new() }
    }

    /// Waits until no holder holds the row. The statement holds the row then if it has to run
    /// `alone`, or if a holder may hold the row.
    pub async fn turn(self: &Arc<RowLocks>, table: TableId, key: &Key, alone: bool, deadline: Instant) -> Turn {
        let mut released = self.released.subscribe();
        loop {
            released.mark_unchanged();
            {
                let mut locks = self.table();
                match locks.known(table, key) {
                    Known::Held => {}
                    Known::Free if !alone => return Turn::Free,
                    Known::Free | Known::MayBeHeld => {
                        locks.next += 1;
                        let row = (table, key.clone());
                        locks.change(&row, |counts| counts.held += 1);
                        let (number, rows) = (locks.next, HashMap::from([(row, true)]));
                        return Turn::Alone(HeldRows { locks: self.clone(), number, rows });
                    }
                }
            }
            let left = deadline.saturating_duration_since(evenkeel_host::now());
            // The sender lives as long as `self`.
            if evenkeel_host::timeout(left, released.changed()).await.is_err() {
                return Turn::Expired;
            }
        }
    }
}

/// The rows that a transaction or statement holds. Dropped when PostgreSQL has confirmed its end.
#[derive(Debug)]
pub struct HeldRows {
    locks: Arc<RowLocks>,
    number: u64,
    /// Each row with whether it is certainly held.
    rows: HashMap<(TableId, Key), bool>,
}

impl HeldRows {
    /// A statement that touches these rows, and may lock some of them, will be executed next.
    pub fn may_hold(&mut self, table: TableId, touches: &Touches) {
        let mut locks = self.locks.table();
        match touches {
            Touches::Nothing => {}
            Touches::Keys(keys) => {
                for key in keys {
                    if let Entry::Vacant(new) = self.rows.entry((table, key.clone())) {
                        locks.change(new.key(), |counts| counts.may_be_held += 1);
                        new.insert(false);
                    }
                }
            }
            Touches::Intervals(intervals) => {
                let registered = locks.intervals.entry(self.number).or_default();
                let whole = |(t, interval): &(TableId, KeyInterval)| *t == table && *interval == KeyInterval::ALL;
                if registered.iter().any(whole) {
                    return;
                }
                if registered.len() + intervals.len() > MAX_INTERVALS {
                    registered.retain(|(t, _)| *t != table);
                    registered.push((table, KeyInterval::ALL));
                } else {
                    registered.extend(intervals.iter().map(|interval| (table, interval.clone())));
                }
            }
        }
    }

    /// The statement has been executed and wrote these rows.
    pub fn holds<'a>(&mut self, rows: impl IntoIterator<Item = (TableId, &'a Key)>) {
        let mut locks = self.locks.table();
        for (table, key) in rows {
            match self.rows.entry((table, key.clone())) {
                Entry::Occupied(known) if *known.get() => {}
                Entry::Occupied(mut known) => {
                    known.insert(true);
                    locks.change(known.key(), |counts| {
                        (counts.held, counts.may_be_held) = (counts.held + 1, counts.may_be_held - 1)
                    });
                }
                Entry::Vacant(new) => {
                    locks.change(new.key(), |counts| counts.held += 1);
                    new.insert(true);
                }
            }
        }
    }
}

impl Drop for HeldRows {
    fn drop(&mut self) {
        {
            let mut locks = self.locks.table();
            for (row, held) in self.rows.drain() {
                locks.change(&row, |counts| match held {
                    true => counts.held -= 1,
                    false => counts.may_be_held -= 1,
                });
            }
            locks.intervals.remove(&self.number);
        }
        if self.locks.released.receiver_count() > 0 {
            self.locks.released.send_modify(|n| *n += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    const TABLE: TableId = TableId(1);

    fn key(byte: u8) -> Key {
        Key(vec![byte].into())
    }

    fn soon() -> Instant {
        evenkeel_host::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn a_statement_that_runs_alone_holds_the_row_and_others_queue_behind() {
        let locks = Arc::new(RowLocks::default());
        assert!(matches!(locks.turn(TABLE, &key(1), false, soon()).await, Turn::Free));
        let Turn::Alone(first) = locks.turn(TABLE, &key(1), true, soon()).await else { panic!("not alone") };
        assert_eq!(locks.known(TABLE, &key(1)), Known::Held);
        assert_eq!(locks.known(TABLE, &key(2)), Known::Free);
        assert!(matches!(locks.turn(TABLE, &key(1), false, evenkeel_host::now()).await, Turn::Expired));
        let behind = tokio::spawn({
            let locks = locks.clone();
            async move { matches!(locks.turn(TABLE, &key(1), false, soon()).await, Turn::Free) }
        });
        tokio::task::yield_now().await;
        assert!(!behind.is_finished());
        drop(first);
        assert!(behind.await.unwrap());
        assert!(locks.table().rows.is_empty(), "nothing is left");
    }

    #[tokio::test]
    async fn rows_that_may_be_held_are_met_alone_and_held_rows_are_waited_for() {
        let locks = Arc::new(RowLocks::default());
        let mut transaction = locks.holder();
        transaction.may_hold(TABLE, &Touches::Intervals(vec![KeyInterval::new(key(10), Some(key(20)))]));
        transaction.may_hold(TABLE, &Touches::Keys(vec![key(1)]));
        assert_eq!(locks.known(TABLE, &key(15)), Known::MayBeHeld);
        assert_eq!(locks.known(TABLE, &key(20)), Known::Free);
        assert_eq!(locks.known(TABLE, &key(1)), Known::MayBeHeld);
        let Turn::Alone(one) = locks.turn(TABLE, &key(15), false, soon()).await else { panic!("not alone") };
        assert_eq!(locks.known(TABLE, &key(15)), Known::Held, "others queue behind the statement that runs alone");
        drop(one);
        transaction.holds([(TABLE, &key(1))]);
        assert_eq!(locks.known(TABLE, &key(1)), Known::Held);
        drop(transaction);
        assert_eq!(locks.known(TABLE, &key(1)), Known::Free);
        assert_eq!(locks.known(TABLE, &key(15)), Known::Free);
        assert!(locks.table().rows.is_empty() && locks.table().intervals.is_empty());
    }

    #[test]
    fn the_registered_intervals_are_bounded() {
        let locks = Arc::new(RowLocks::default());
        let mut transaction = locks.holder();
        for n in 0..100u8 {
            let interval = KeyInterval::new(key(2 * n), Some(key(2 * n + 1)));
            transaction.may_hold(TABLE, &Touches::Intervals(vec![interval]));
        }
        assert_eq!(locks.table().intervals.values().map(Vec::len).sum::<usize>(), 1);
        assert_eq!(locks.known(TABLE, &key(3)), Known::MayBeHeld, "more than was registered, never less");
    }
}
