//! Which rows are known to be locked in PostgreSQL, so that no batch of statements has to wait for them (R10).
//!
//! What runs beside the lanes (transactions, statements on many rows, statements that run alone) says here which rows it locks. A statement
//! on such a row does not enter a batch, where all others would wait with it:
//!
//! - a row that is *held* is locked for certain: the statement waits here, without a session, until the lock is given back;
//! - a row that *may be held* (a statement whose keys are an interval, or that found no row) is judged by PostgreSQL: the statement runs
//!   alone, and holds the row meanwhile, so that those after it queue behind it.
//!
//! It is an optimisation with a net below it: a lock that is not known here is met in PostgreSQL, whose limit of time then ends the wait.

use evenkeel_protocol::{Key, KeyInterval, TableId};
use evenkeel_sql::Touches;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Intervals that one holder says by themselves; beyond it, it may hold any row of the table.
const MAX_INTERVALS: usize = 8;

/// What is known of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing: as good as unlocked.
    Free,
    /// Something may lock it.
    MayBeHeld,
    /// Something locks it.
    Held,
}

/// How often a row is held, and may be.
#[derive(Debug, Default)]
struct Counts {
    held: usize,
    may_be_held: usize,
}

#[derive(Debug, Default)]
struct Inner {
    rows: HashMap<(TableId, Key), Counts>,
    /// By the holder's number.
    intervals: HashMap<u64, Vec<(TableId, KeyInterval)>>,
    next: u64,
}

impl Inner {
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
    inner: Mutex<Inner>,
    released: watch::Sender<u64>,
}

impl Default for RowLocks {
    fn default() -> RowLocks {
        RowLocks { inner: Mutex::default(), released: watch::Sender::new(0) }
    }
}

/// How a statement on a row may go on.
pub enum Turn {
    /// In a batch: nothing is known of the row.
    Free,
    /// Alone, holding the row until this is dropped.
    Alone(HeldRows),
    /// Not in time.
    Expired,
}

impl RowLocks {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a row.
    pub fn known(&self, table: TableId, key: &Key) -> Known {
        self.inner().known(table, key)
    }

    /// A holder that holds nothing yet.
    pub fn holder(self: &Arc<RowLocks>) -> HeldRows {
        let mut inner = self.inner();
        inner.next += 1;
        HeldRows { locks: self.clone(), number: inner.next, rows: HashMap::new() }
    }

    /// Waits until nothing holds the row; then it is this statement's if it is to run `alone` or something may hold the row.
    pub async fn turn(self: &Arc<RowLocks>, table: TableId, key: &Key, alone: bool, deadline: Instant) -> Turn {
        let mut released = self.released.subscribe();
        loop {
            released.mark_unchanged();
            {
                let mut inner = self.inner();
                match inner.known(table, key) {
                    Known::Held => {}
                    Known::Free if !alone => return Turn::Free,
                    Known::Free | Known::MayBeHeld => {
                        inner.next += 1;
                        let row = (table, key.clone());
                        inner.change(&row, |counts| counts.held += 1);
                        let (number, rows) = (inner.next, HashMap::from([(row, true)]));
                        return Turn::Alone(HeldRows { locks: self.clone(), number, rows });
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // The sender lives as long as `self`.
            if tokio::time::timeout(left, released.changed()).await.is_err() {
                return Turn::Expired;
            }
        }
    }
}

/// What a transaction or statement holds, until it is dropped: to be kept until PostgreSQL has confirmed its end.
#[derive(Debug)]
pub struct HeldRows {
    locks: Arc<RowLocks>,
    number: u64,
    /// Whether it holds them for certain.
    rows: HashMap<(TableId, Key), bool>,
}

impl HeldRows {
    /// A statement that touches these rows, and locks some of them, is about to be executed.
    pub fn may_hold(&mut self, table: TableId, touches: &Touches) {
        let mut inner = self.locks.inner();
        match touches {
            Touches::Nothing => {}
            Touches::Keys(keys) => {
                for key in keys {
                    if let Entry::Vacant(new) = self.rows.entry((table, key.clone())) {
                        inner.change(new.key(), |counts| counts.may_be_held += 1);
                        new.insert(false);
                    }
                }
            }
            Touches::Intervals(intervals) => {
                let said = inner.intervals.entry(self.number).or_default();
                let whole = |(t, interval): &(TableId, KeyInterval)| *t == table && *interval == KeyInterval::ALL;
                if said.iter().any(whole) {
                    return;
                }
                if said.len() + intervals.len() > MAX_INTERVALS {
                    said.retain(|(t, _)| *t != table);
                    said.push((table, KeyInterval::ALL));
                } else {
                    said.extend(intervals.iter().map(|interval| (table, interval.clone())));
                }
            }
        }
    }

    /// It has been executed and wrote these rows.
    pub fn holds<'a>(&mut self, rows: impl IntoIterator<Item = (TableId, &'a Key)>) {
        let mut inner = self.locks.inner();
        for (table, key) in rows {
            match self.rows.entry((table, key.clone())) {
                Entry::Occupied(known) if *known.get() => {}
                Entry::Occupied(mut known) => {
                    known.insert(true);
                    inner.change(known.key(), |counts| {
                        (counts.held, counts.may_be_held) = (counts.held + 1, counts.may_be_held - 1)
                    });
                }
                Entry::Vacant(new) => {
                    inner.change(new.key(), |counts| counts.held += 1);
                    new.insert(true);
                }
            }
        }
    }
}

impl Drop for HeldRows {
    fn drop(&mut self) {
        {
            let mut inner = self.locks.inner();
            for (row, held) in self.rows.drain() {
                inner.change(&row, |counts| match held {
                    true => counts.held -= 1,
                    false => counts.may_be_held -= 1,
                });
            }
            inner.intervals.remove(&self.number);
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
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn who_runs_alone_holds_the_row_and_others_queue_behind() {
        let locks = Arc::new(RowLocks::default());
        assert!(matches!(locks.turn(TABLE, &key(1), false, soon()).await, Turn::Free));
        let Turn::Alone(first) = locks.turn(TABLE, &key(1), true, soon()).await else { panic!("not alone") };
        assert_eq!(locks.known(TABLE, &key(1)), Known::Held);
        assert_eq!(locks.known(TABLE, &key(2)), Known::Free);
        assert!(matches!(locks.turn(TABLE, &key(1), false, Instant::now()).await, Turn::Expired));
        let behind = tokio::spawn({
            let locks = locks.clone();
            async move { matches!(locks.turn(TABLE, &key(1), false, soon()).await, Turn::Free) }
        });
        tokio::task::yield_now().await;
        assert!(!behind.is_finished());
        drop(first);
        assert!(behind.await.unwrap());
        assert!(locks.inner().rows.is_empty(), "nothing is left behind");
    }

    #[tokio::test]
    async fn what_a_transaction_may_hold_is_met_alone_and_what_it_holds_is_waited_for() {
        let locks = Arc::new(RowLocks::default());
        let mut transaction = locks.holder();
        transaction.may_hold(TABLE, &Touches::Intervals(vec![KeyInterval::new(key(10), Some(key(20)))]));
        transaction.may_hold(TABLE, &Touches::Keys(vec![key(1)]));
        assert_eq!(locks.known(TABLE, &key(15)), Known::MayBeHeld);
        assert_eq!(locks.known(TABLE, &key(20)), Known::Free);
        assert_eq!(locks.known(TABLE, &key(1)), Known::MayBeHeld);
        let Turn::Alone(one) = locks.turn(TABLE, &key(15), false, soon()).await else { panic!("not alone") };
        assert_eq!(locks.known(TABLE, &key(15)), Known::Held, "others queue behind the one that runs alone");
        drop(one);
        transaction.holds([(TABLE, &key(1))]);
        assert_eq!(locks.known(TABLE, &key(1)), Known::Held);
        drop(transaction);
        assert_eq!(locks.known(TABLE, &key(1)), Known::Free);
        assert_eq!(locks.known(TABLE, &key(15)), Known::Free);
        assert!(locks.inner().rows.is_empty() && locks.inner().intervals.is_empty());
    }

    #[test]
    fn what_a_transaction_says_is_bounded() {
        let locks = Arc::new(RowLocks::default());
        let mut transaction = locks.holder();
        for n in 0..100u8 {
            let interval = KeyInterval::new(key(2 * n), Some(key(2 * n + 1)));
            transaction.may_hold(TABLE, &Touches::Intervals(vec![interval]));
        }
        assert_eq!(locks.inner().intervals.values().map(Vec::len).sum::<usize>(), 1);
        assert_eq!(locks.known(TABLE, &key(3)), Known::MayBeHeld, "more than it said, never less");
    }
}
