//! The latch of one range, and handles on it.
//!
//! A [`RangeLatch`] counts the statements that use a range. A [`RangeHandle`] is a statement's or
//! transaction's right to use one or several ranges, until it is dropped. There are two kinds of
//! handles:
//!
//! - a *use* handle, of a write or of a transaction: a fence waits until it is dropped;
//! - a *read* handle, of an autocommit read: a fence does not wait for it. The read is answered
//!   only if the handle is still current when the read has ended.
//!
//! A split or a merge makes new latches. Each keeps its predecessors for as long as statements use
//! them, so that a fence on a piece waits for the statements of the whole.

use crate::load::RangeStatistics;
use crate::state_machine::OwnedRange;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::watch;

/// See the module.
#[derive(Debug)]
pub struct RangeLatch {
    /// The range.
    pub range: OwnedRange,
    /// The generation of the latch table in which the range came to this shard (R25).
    pub adopted_in: u64,
    /// Load and size.
    pub statistics: RangeStatistics,
    /// Statements that a fence waits for.
    in_use: AtomicUsize,
    /// Autocommit reads. A fence does not wait for them.
    reading: AtomicUsize,
    blocked: AtomicBool,
    /// The shard no longer owns the range or a part of it. Permanent: a range that comes back gets
    /// another latch.
    departed: AtomicBool,
    /// The latches of the ranges that it was split from or merged of, as long as statements use
    /// them.
    predecessors: Vec<Arc<RangeLatch>>,
}

impl RangeLatch {
    /// The latch of a range that replaces these latches.
    pub(super) fn new(
        range: OwnedRange,
        adopted_in: u64,
        statistics: RangeStatistics,
        predecessors: &[Arc<RangeLatch>],
    ) -> RangeLatch {
        RangeLatch {
            range,
            adopted_in,
            statistics,
            in_use: AtomicUsize::new(0),
            reading: AtomicUsize::new(0),
            blocked: AtomicBool::new(false),
            departed: AtomicBool::new(false),
            predecessors: predecessors.iter().filter(|latch| !latch.is_unused()).cloned().collect(),
        }
    }

    /// Whether a fence has nothing to wait for.
    pub(super) fn is_drained(&self) -> bool {
        self.in_use.load(Ordering::Acquire) == 0 && self.predecessors.iter().all(|latch| latch.is_drained())
    }

    /// Whether no handle on it exists.
    fn is_unused(&self) -> bool {
        let unused = |n: &AtomicUsize| n.load(Ordering::Acquire) == 0;
        unused(&self.in_use) && unused(&self.reading) && self.predecessors.iter().all(|latch| latch.is_unused())
    }

    /// The shard no longer owns the range, and therefore a part of each of its predecessors.
    pub(super) fn depart(&self) {
        self.departed.store(true, Ordering::Release);
        self.predecessors.iter().for_each(|latch| latch.depart());
    }

    /// Whether the shard no longer owns the range or a part of it.
    pub(super) fn has_departed(&self) -> bool {
        self.departed.load(Ordering::Acquire)
    }

    /// Whether it is `other`, or was split from it or merged of it.
    pub fn is_or_comes_from(&self, other: &Arc<RangeLatch>) -> bool {
        std::ptr::eq(self, &**other) || self.predecessors.iter().any(|latch| latch.is_or_comes_from(other))
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    /// Blocks it; `false` if it was blocked already.
    pub(super) fn block(&self) -> bool {
        !self.blocked.swap(true, Ordering::AcqRel)
    }

    pub(super) fn unblock(&self) {
        self.blocked.store(false, Ordering::Release);
    }

    /// Counts one more handle. The caller makes a [`RangeHandle`] of it.
    pub(super) fn enter(&self, kind: HandleKind) {
        self.users(kind).fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one handle less; `true` if it was the last of its kind.
    fn exit(&self, kind: HandleKind) -> bool {
        self.users(kind).fetch_sub(1, Ordering::AcqRel) == 1
    }

    fn users(&self, kind: HandleKind) -> &AtomicUsize {
        match kind {
            HandleKind::Read => &self.reading,
            HandleKind::Use => &self.in_use,
        }
    }
}

/// What a handle allows, and whether a fence waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleKind {
    /// An autocommit read. A fence does not wait for it.
    Read,
    /// A write, or a transaction. A fence waits for it.
    Use,
}

/// A right to use ranges. It is dropped when the outcome of the statement or transaction is final.
#[derive(Debug)]
pub struct RangeHandle {
    latches: Vec<Arc<RangeLatch>>,
    kind: HandleKind,
    changed: watch::Sender<u64>,
}

impl RangeHandle {
    /// A handle on latches that have been [entered](RangeLatch::enter). Dropping it is announced
    /// through `changed`.
    pub(super) fn new(latches: Vec<Arc<RangeLatch>>, kind: HandleKind, changed: watch::Sender<u64>) -> RangeHandle {
        RangeHandle { latches, kind, changed }
    }

    /// The latches of its ranges.
    pub fn latches(&self) -> &[Arc<RangeLatch>] {
        &self.latches
    }

    /// Whether the shard has owned all of its ranges ever since it was given out.
    pub fn is_current(&self) -> bool {
        !self.latches.iter().any(|latch| latch.has_departed())
    }

    /// Takes over another handle of the same kind. A transaction holds one handle, with one count
    /// for each of its ranges, however many statements it has run.
    pub fn join(&mut self, mut other: RangeHandle) {
        debug_assert_eq!(self.kind, other.kind, "handles of one kind");
        for latch in std::mem::take(&mut other.latches) {
            if self.latches.iter().any(|own| Arc::ptr_eq(own, &latch)) {
                // Never the last count: this handle has one, too.
                latch.exit(self.kind);
            } else {
                self.latches.push(latch);
            }
        }
    }
}

impl Drop for RangeHandle {
    fn drop(&mut self) {
        let mut wake = false;
        for latch in &self.latches {
            wake |= latch.exit(self.kind) && self.kind == HandleKind::Use;
        }
        // Only a fence waits for this, and fences are rare.
        if wake && self.changed.receiver_count() > 0 {
            self.changed.send_modify(|n| *n += 1);
        }
    }
}
