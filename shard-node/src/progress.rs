//! How far this replica's PostgreSQL has followed its log (invariant 3).
//!
//! The state machine is applied in the log's order, but a leader's transactions commit in any
//! order. The entries that PostgreSQL holds are therefore no prefix of the log. The *watermark* is
//! the longest prefix that PostgreSQL holds entirely.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

#[derive(Debug, Default)]
struct Positions {
    applied: u64,
    outstanding: BTreeSet<u64>,
    /// Bytes of the log applied so far, and how many they were up to some of its positions, oldest
    /// first.
    bytes: u64,
    marks: VecDeque<(u64, u64)>,
}

/// Bytes of the log between two marks, and how many marks are kept: the question is whether a
/// replica is a few MiB behind.
const MARK_BYTES: u64 = 64 << 10;
const MAX_MARKS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Progress {
    inner: Mutex<Positions>,
    watermark: watch::Sender<u64>,
}

impl Progress {
    /// Everything up to `position` is in PostgreSQL.
    pub fn new(position: u64) -> Progress {
        let marks = VecDeque::from([(position, 0)]);
        let inner = Positions { applied: position, outstanding: BTreeSet::new(), bytes: 0, marks };
        Progress { inner: Mutex::new(inner), watermark: watch::Sender::new(position) }
    }

    fn inner(&self) -> MutexGuard<'_, Positions> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Positions) {
        let watermark = inner.outstanding.first().map_or(inner.applied, |first| first - 1);
        self.watermark.send_if_modified(|known| {
            let grew = watermark > *known;
            *known = watermark.max(*known);
            grew
        });
    }

    /// The entry at `position` has been applied; PostgreSQL does not hold it yet.
    pub fn expect(&self, position: u64) {
        let mut inner = self.inner();
        inner.applied = inner.applied.max(position);
        inner.outstanding.insert(position);
    }

    /// The entry at `position` has been applied, and there is nothing to do for it.
    pub fn pass(&self, position: u64) {
        let mut inner = self.inner();
        inner.applied = inner.applied.max(position);
        self.publish(&inner);
    }

    /// PostgreSQL holds the entry at `position`.
    pub fn confirm(&self, position: u64) {
        let mut inner = self.inner();
        inner.outstanding.remove(&position);
        self.publish(&inner);
    }

    /// The entry at `position`, of this many bytes, is about to be applied.
    pub fn weigh(&self, position: u64, bytes: u64) {
        let mut inner = self.inner();
        inner.bytes += bytes;
        if inner.bytes - inner.marks.back().map_or(0, |(_, marked)| *marked) >= MARK_BYTES {
            let marked = (position, inner.bytes);
            inner.marks.push_back(marked);
            if inner.marks.len() > MAX_MARKS {
                inner.marks.pop_front();
            }
        }
    }

    /// Bytes of the log applied here behind `position`, up to the length of one entry and 64 KiB
    /// too many; of a position that is long past, many.
    pub fn bytes_after(&self, position: u64) -> u64 {
        let inner = self.inner();
        if position >= inner.applied {
            return 0;
        }
        let before = inner.marks.partition_point(|(marked, _)| *marked <= position);
        let marked = before.checked_sub(1).or(Some(0)).and_then(|at| inner.marks.get(at));
        inner.bytes - marked.map_or(0, |(_, bytes)| *bytes)
    }

    /// The last position applied.
    pub fn applied(&self) -> u64 {
        self.inner().applied
    }

    /// The last position up to which PostgreSQL holds everything.
    pub fn watermark(&self) -> u64 {
        *self.watermark.borrow()
    }

    /// The watermark, as it grows.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.watermark.subscribe()
    }

    /// Waits until the watermark has reached `position`.
    pub async fn reached(&self, position: u64) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.watermark.subscribe().wait_for(|watermark| *watermark >= position).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_is_the_longest_prefix_that_postgresql_holds() {
        let progress = Progress::new(10);
        progress.expect(11);
        progress.expect(12);
        progress.pass(13);
        assert_eq!((progress.applied(), progress.watermark()), (13, 10));
        progress.confirm(12);
        assert_eq!(progress.watermark(), 10);
        progress.confirm(11);
        assert_eq!(progress.watermark(), 13);
    }

    #[test]
    fn the_lag_is_measured_in_bytes() {
        let progress = Progress::new(10);
        for position in 11..=200_000 {
            progress.weigh(position, if position % 1000 == 0 { 1 << 20 } else { 100 });
            progress.pass(position);
        }
        assert_eq!(progress.bytes_after(200_000), 0);
        let little = progress.bytes_after(199_999);
        assert!((1 << 20..(1 << 20) + 2 * MARK_BYTES).contains(&little), "{little}");
        assert!(progress.bytes_after(198_900) > 2 << 20);
        assert!(progress.bytes_after(5) > 60 << 20, "long past");
    }
}
