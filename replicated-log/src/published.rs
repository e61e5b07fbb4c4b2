//! What the event loop shows to the rest of the process, and how subscribers take it.
//!
//! The event loop puts newly decided entries into a ring bounded by bytes and moves the tip; it never waits for
//! anybody. A [`Subscription`] pulls: from the ring while it keeps up, through a bounded read by the event loop
//! when it has fallen behind the ring. A slow consumer therefore costs nothing but its own delay, and memory
//! stays bounded without a queue per consumer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::command::{Command, Commands, OldEntries};
use crate::core::Lease;
use crate::item::ITEM_OVERHEAD_BYTES;
use crate::membership::Membership;
use crate::types::{Body, Delivery, Entry, Fresh, LogIndex, LogStatus, LogStopped, Role};

/// How far entries have been published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The last published position.
    pub(crate) decided: LogIndex,
    /// Nothing will follow.
    pub(crate) stopped: bool,
}

/// Recent decided entries, consecutive, the last one at `tip`.
#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    tip: LogIndex,
}

fn entry_bytes(entry: &Entry) -> usize {
    let payload = match &entry.body {
        Body::Data(b) | Body::ConfigChange(b) => b.len(),
        Body::LeaderStart { .. } => 0,
    };
    payload + ITEM_OVERHEAD_BYTES + std::mem::size_of::<Entry>()
}

impl Ring {
    fn push(&mut self, entries: Vec<Entry>, capacity_bytes: usize) {
        for entry in entries {
            if entry.index != self.tip.next() {
                // A state transfer or a long catch-up jumped ahead; what is missing is read from the log.
                self.entries.clear();
                self.bytes = 0;
            }
            self.tip = entry.index;
            self.bytes += entry_bytes(&entry);
            self.entries.push_back(entry);
        }
        while self.bytes > capacity_bytes && self.entries.len() > 1 {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= entry_bytes(&oldest);
            }
        }
    }

    /// Entries from `from` on: `None` if the ring does not reach back (or forward) to it.
    fn take(&self, from: LogIndex, max_bytes: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.index;
        if from < first || from > self.tip {
            return None;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        for entry in self.entries.range((from.0 - first.0) as usize..) {
            bytes += entry_bytes(entry);
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Some(taken)
    }
}

/// The event loop's shop window, shared by all handles.
#[derive(Debug)]
pub(crate) struct Published {
    ring: Mutex<Ring>,
    ring_capacity_bytes: usize,
    tip: watch::Sender<Tip>,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) membership: watch::Sender<Membership>,
    /// The latest proof of freshness.
    pub(crate) fresh: watch::Sender<Option<Fresh>>,
    status: Mutex<LogStatus>,
    /// [`Lease::until_ms`] and [`Lease::floor`].
    lease_until_ms: AtomicU64,
    lease_floor: AtomicU64,
    /// Of the log's files, as of the last turn.
    pub(crate) log_bytes: AtomicU64,
    /// Proposals handed to the event loop and not yet taken, in bytes.
    pub(crate) queued_bytes: AtomicUsize,
    /// Read barriers handed to the event loop and not yet answered.
    pub(crate) waiting_barriers: AtomicUsize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind; the event loop's own end is told through the tip.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Published {
    pub(crate) fn new(ring_capacity_bytes: usize, membership: Membership) -> Arc<Published> {
        Arc::new(Published {
            ring: Mutex::default(),
            ring_capacity_bytes,
            tip: watch::Sender::new(Tip::default()),
            role: watch::Sender::new(Role::Follower { leader: None }),
            membership: watch::Sender::new(membership),
            fresh: watch::Sender::new(None),
            status: Mutex::default(),
            lease_until_ms: AtomicU64::new(0),
            lease_floor: AtomicU64::new(0),
            log_bytes: AtomicU64::new(0),
            queued_bytes: AtomicUsize::new(0),
            waiting_barriers: AtomicUsize::new(0),
        })
    }

    /// Shows decided entries up to `decided`; `entries` are the newest of them that are at hand, possibly none.
    pub(crate) fn publish(&self, entries: Vec<Entry>, decided: LogIndex) {
        locked(&self.ring).push(entries, self.ring_capacity_bytes);
        self.tip.send_modify(|tip| tip.decided = decided);
    }

    /// The last position shown.
    pub(crate) fn decided(&self) -> LogIndex {
        self.tip.borrow().decided
    }

    /// Shows what readers may rely on. The floor only grows, so a reader that pairs an older lease with a newer floor
    /// reads later than it need, never earlier.
    pub(crate) fn set_lease(&self, lease: Lease) {
        self.lease_floor.fetch_max(lease.floor, Ordering::SeqCst);
        self.lease_until_ms.store(lease.until_ms, Ordering::SeqCst);
    }

    /// Log rule 9: the decided position, if the lease holds. It held at the moment when it was loaded here, for the
    /// clock is read after that: a thread that sleeps in between finds the time past, or was right before it slept.
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

    pub(crate) fn set_fresh(&self, fresh: Fresh) {
        self.fresh.send_if_modified(|shown| {
            let newer = shown.is_none_or(|shown| shown.asked_ms < fresh.asked_ms);
            *shown = if newer { Some(fresh) } else { *shown };
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

    /// The log has ended: wakes everyone who waits.
    pub(crate) fn stop(&self) {
        self.set_lease(Lease::default());
        self.set_role(Role::Follower { leader: None });
        self.tip.send_modify(|tip| tip.stopped = true);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.tip.borrow().stopped
    }

    pub(crate) fn leader(&self) -> Option<crate::ReplicaId> {
        match &*self.role.borrow() {
            Role::Leader { term, .. } => Some(term.replica()),
            Role::Follower { leader } | Role::Behind { leader, .. } => *leader,
        }
    }

    pub(crate) fn release_queued(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A reader of decided entries, in order, from a chosen position on.
///
/// Several subscriptions can run side by side; each has its own position. Dropping one frees everything.
#[derive(Debug)]
pub struct Subscription {
    next: LogIndex,
    published: Arc<Published>,
    tip: watch::Receiver<Tip>,
    commands: Commands,
    read_bytes: usize,
}

impl Subscription {
    pub(crate) fn new(
        from: LogIndex,
        published: Arc<Published>,
        commands: Commands,
        read_bytes: usize,
    ) -> Subscription {
        let tip = published.tip.subscribe();
        Subscription { next: from.max(LogIndex(1)), published, tip, commands, read_bytes }
    }

    /// The position of the next entry to be delivered.
    pub fn position(&self) -> LogIndex {
        self.next
    }

    /// Waits for decided entries and takes at least one and about `max_bytes` of them.
    ///
    /// Cancel-safe: dropping the future loses nothing. After [`Delivery::NeedState`] the subscription stays where
    /// it is; make a new one behind the installed state.
    ///
    /// # Errors
    /// [`LogStopped`] once the log has shut down.
    pub async fn next(&mut self, max_bytes: usize) -> Result<Delivery, LogStopped> {
        loop {
            let tip = *self.tip.borrow_and_update();
            if tip.stopped {
                return Err(LogStopped);
            }
            if self.next > tip.decided {
                self.tip.changed().await.map_err(|_| LogStopped)?;
                continue;
            }
            let recent = locked(&self.published.ring).take(self.next, max_bytes);
            if let Some(entries) = recent {
                return Ok(self.advance(entries));
            }
            let (reply, answer) = oneshot::channel();
            let read = Command::Read { from: self.next, max_bytes: max_bytes.min(self.read_bytes), reply };
            self.commands.send(read).map_err(|_| LogStopped)?;
            match answer.await.map_err(|_| LogStopped)? {
                OldEntries::Entries(entries) if entries.is_empty() => {
                    return Err(LogStopped); // decided entries are always readable; only a stop explains this
                }
                OldEntries::Entries(entries) => return Ok(self.advance(entries)),
                OldEntries::Trimmed(trimmed) => {
                    return Ok(Delivery::NeedState { trimmed, leader: self.published.leader() });
                }
            }
        }
    }

    fn advance(&mut self, entries: Vec<Entry>) -> Delivery {
        if let Some(last) = entries.last() {
            self.next = last.index.next();
        }
        Delivery::Entries(entries)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::Term;
    use bytes::Bytes;

    fn entry(index: u64) -> Entry {
        Entry { index: LogIndex(index), term: Term(1), effective: true, body: Body::Data(Bytes::from(vec![0; 100])) }
    }

    #[test]
    fn the_ring_is_bounded_and_consecutive() {
        let mut ring = Ring::default();
        let one = entry_bytes(&entry(1));
        ring.push((1..=10).map(entry).collect(), one * 4);
        assert_eq!(ring.take(LogIndex(6), usize::MAX), None, "evicted");
        let got = ring.take(LogIndex(8), one * 2).unwrap();
        assert_eq!(got.iter().map(|e| e.index.0).collect::<Vec<_>>(), [8, 9]);
        let got = ring.take(LogIndex(10), 0).unwrap();
        assert_eq!(got.len(), 1, "at least one, whatever the limit");
        assert_eq!(ring.take(LogIndex(11), 1), None);
        // After a jump nothing older may be handed out as if it were adjacent.
        ring.push(vec![entry(20)], one * 4);
        assert_eq!(ring.take(LogIndex(10), one), None);
        assert_eq!(ring.take(LogIndex(20), one).unwrap().len(), 1);
    }
}
