//! State of the log that the event loop publishes to the rest of the process.
//!
//! The event loop puts newly decided entries into the ring and moves the tip; it never waits for a
//! reader. Handles and subscriptions read without a message to the event loop.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::clock;
use crate::core::Lease;
use crate::entry::Entry;
use crate::ids::{LogIndex, ReplicaId};
use crate::membership::Membership;
use crate::ring::{Ring, RingCapacity, entry_bytes};
use crate::role::Role;
use crate::status::{LogStatus, StalenessBound};

/// The end of the published entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The last published position.
    pub(crate) decided: LogIndex,
    /// Nothing will follow.
    pub(crate) stopped: bool,
}

/// State that the event loop publishes to all handles.
#[derive(Debug)]
pub(crate) struct Published {
    ring: Mutex<(Ring, RingCapacity)>,
    pub(crate) tip: watch::Sender<Tip>,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) membership: watch::Sender<Membership>,
    /// The latest staleness bound (R17).
    pub(crate) staleness_bound: watch::Sender<Option<StalenessBound>>,
    status: Mutex<LogStatus>,
    /// [`Lease::until_ms`] and [`Lease::floor`].
    lease_until_ms: AtomicU64,
    lease_floor: AtomicU64,
    /// The largest size of the logs of a majority, in bytes, as of the last turn.
    pub(crate) majority_log_bytes: AtomicU64,
    /// The value to add to this replica's wall clock, in milliseconds.
    pub(crate) clock_correction_ms: AtomicI64,
    /// The applied position of the application.
    pub(crate) applied: AtomicU64,
    /// Proposals handed to the event loop and not yet taken, in bytes.
    pub(crate) queued_bytes: AtomicUsize,
    /// Read barriers handed to the event loop and not yet answered.
    pub(crate) waiting_barriers: AtomicUsize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind; the end of the event loop shows in the tip.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Published {
    pub(crate) fn new(least_ring_bytes: usize, membership: Membership) -> Arc<Published> {
        Arc::new(Published {
            ring: Mutex::new((Ring::default(), RingCapacity::new(least_ring_bytes))),
            tip: watch::Sender::new(Tip::default()),
            role: watch::Sender::new(Role::Follower { leader: None }),
            membership: watch::Sender::new(membership),
            staleness_bound: watch::Sender::new(None),
            status: Mutex::default(),
            lease_until_ms: AtomicU64::new(0),
            lease_floor: AtomicU64::new(0),
            majority_log_bytes: AtomicU64::new(0),
            clock_correction_ms: AtomicI64::new(0),
            applied: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            waiting_barriers: AtomicUsize::new(0),
        })
    }

    /// Publishes decided entries up to `decided`; `entries` are the newest of them that are in
    /// memory, possibly none.
    pub(crate) fn publish(&self, entries: Vec<Entry>, decided: LogIndex) {
        let bytes = entries.iter().map(entry_bytes).sum();
        let (ring, capacity) = &mut *locked(&self.ring);
        capacity.add(clock::now_ms(), bytes);
        ring.push(entries, capacity.bytes);
        self.tip.send_modify(|tip| tip.decided = decided);
    }

    /// The last published position.
    pub(crate) fn decided(&self) -> LogIndex {
        self.tip.borrow().decided
    }

    /// Publishes the lease. The floor only grows, so a reader that pairs an older lease with a
    /// newer floor reads at a later position than necessary, never at an earlier one.
    pub(crate) fn set_lease(&self, lease: Lease) {
        self.lease_floor.fetch_max(lease.floor, Ordering::SeqCst);
        self.lease_until_ms.store(lease.until_ms, Ordering::SeqCst);
    }

    /// Log rule 9: the decided position, if the lease holds. It held when it was loaded, because
    /// the clock is read after that: a thread that sleeps in between finds the lease expired, or
    /// the lease held before it slept.
    pub(crate) fn leased_position(&self) -> Option<LogIndex> {
        let until_ms = self.lease_until_ms.load(Ordering::SeqCst);
        let floor = LogIndex(self.lease_floor.load(Ordering::SeqCst));
        let decided = self.decided();
        (until_ms > 0 && clock::now_ms() < until_ms).then(|| decided.max(floor))
    }

    pub(crate) fn set_role(&self, role: Role) {
        self.role.send_if_modified(|shown| {
            let changed = *shown != role;
            *shown = role;
            changed
        });
    }

    pub(crate) fn set_staleness_bound(&self, bound: StalenessBound) {
        self.staleness_bound.send_if_modified(|shown| {
            let newer = shown.is_none_or(|shown| shown.asked_ms < bound.asked_ms);
            *shown = if newer { Some(bound) } else { *shown };
            newer
        });
    }

    pub(crate) fn set_status(&self, status: LogStatus) {
        *locked(&self.status) = status;
    }

    pub(crate) fn status(&self) -> LogStatus {
        let mut status = locked(&self.status).clone();
        status.decided = status.decided.max(self.tip.borrow().decided);
        status
    }

    /// The log has ended: wakes all waiting calls.
    pub(crate) fn stop(&self) {
        self.set_lease(Lease::default());
        self.set_role(Role::Follower { leader: None });
        self.tip.send_modify(|tip| tip.stopped = true);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.tip.borrow().stopped
    }

    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        self.role.borrow().leader()
    }

    /// At least one and about `max_bytes` of the recent entries from `from` on; `None` if the ring
    /// does not hold `from`.
    pub(crate) fn recent(&self, from: LogIndex, max_bytes: usize) -> Option<Vec<Entry>> {
        locked(&self.ring).0.take(from, max_bytes)
    }

    pub(crate) fn release_queued(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}
