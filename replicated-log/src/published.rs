//! What the event loop shows to the rest of the process, and how subscribers take it.
//!
//! The event loop puts newly decided entries into a ring bounded by bytes and moves the tip; it never waits for
//! anybody. A [`Subscription`] pulls: from the ring while it keeps up. When it has fallen behind the ring it asks the event loop where
//! the entries are and reads them itself, on another thread, each record once. A slow consumer therefore costs nothing but its
//! own delay, and memory stays bounded without a queue per consumer.
//!
//! The ring holds about [`RING_MS`] of log, within bounds: a consumer that stalls for a moment need not read the disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::clock;
use crate::command::{Command, Commands, OldEntries};
use crate::core::Lease;
use crate::item::ITEM_OVERHEAD_BYTES;
use crate::membership::Membership;
use crate::types::{Body, Delivery, Entry, Fresh, LogIndex, LogStatus, LogStopped, Role};
use crate::wal::WalError;

/// How far entries have been published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The last published position.
    pub(crate) decided: LogIndex,
    /// Nothing will follow.
    pub(crate) stopped: bool,
}

/// How much of the log the ring holds, as time, in milliseconds.
const RING_MS: u64 = 2_000;
/// How much larger than [`Limits::recent_bytes`](crate::Limits) the ring becomes at most.
const MAX_GROWTH: usize = 8;
/// Over how long the rate is measured, in milliseconds.
const RATE_WINDOW_MS: u64 = 1_000;

/// How large the ring should be: as much as comes in [`RING_MS`].
#[derive(Debug)]
struct Capacity {
    least_bytes: usize,
    bytes: usize,
    window_began_ms: u64,
    window_bytes: u64,
}

impl Capacity {
    fn new(least_bytes: usize) -> Capacity {
        Capacity { least_bytes, bytes: least_bytes, window_began_ms: 0, window_bytes: 0 }
    }

    /// So much more has come in by `now_ms`.
    fn add(&mut self, now_ms: u64, bytes: usize) {
        self.window_bytes += bytes as u64;
        let passed_ms = now_ms.saturating_sub(self.window_began_ms);
        if passed_ms >= RATE_WINDOW_MS {
            let wanted = usize::try_from(self.window_bytes * RING_MS / passed_ms).unwrap_or(usize::MAX);
            let most = self.least_bytes.saturating_mul(MAX_GROWTH);
            // Grows at once, shrinks by halves: bursts come again.
            self.bytes = wanted.max(self.bytes / 2).clamp(self.least_bytes, most);
            (self.window_began_ms, self.window_bytes) = (now_ms, 0);
        }
    }
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
    ring: Mutex<(Ring, Capacity)>,
    tip: watch::Sender<Tip>,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) membership: watch::Sender<Membership>,
    /// The latest proof of freshness.
    pub(crate) fresh: watch::Sender<Option<Fresh>>,
    status: Mutex<LogStatus>,
    /// [`Lease::until_ms`] and [`Lease::floor`].
    lease_until_ms: AtomicU64,
    lease_floor: AtomicU64,
    /// What the logs of a majority take at most, as of the last turn.
    pub(crate) majority_log_bytes: AtomicU64,
    /// What to add to this replica's wall clock, in milliseconds.
    pub(crate) clock_correction_ms: AtomicI64,
    /// What the application has applied, as a position.
    pub(crate) applied: AtomicU64,
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
    pub(crate) fn new(least_ring_bytes: usize, membership: Membership) -> Arc<Published> {
        Arc::new(Published {
            ring: Mutex::new((Ring::default(), Capacity::new(least_ring_bytes))),
            tip: watch::Sender::new(Tip::default()),
            role: watch::Sender::new(Role::Follower { leader: None }),
            membership: watch::Sender::new(membership),
            fresh: watch::Sender::new(None),
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

    /// Shows decided entries up to `decided`; `entries` are the newest of them that are at hand, possibly none.
    pub(crate) fn publish(&self, entries: Vec<Entry>, decided: LogIndex) {
        let bytes = entries.iter().map(entry_bytes).sum();
        let (ring, capacity) = &mut *locked(&self.ring);
        capacity.add(clock::now_ms(), bytes);
        ring.push(entries, capacity.bytes);
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
    /// Read and not handed out yet; the first one is at `next`.
    ahead: VecDeque<Entry>,
    /// Kept here, so that whoever gives up waiting finds it again.
    asked: Option<oneshot::Receiver<OldEntries>>,
    reading: Option<JoinHandle<Result<Vec<Entry>, WalError>>>,
}

impl Subscription {
    pub(crate) fn new(
        from: LogIndex,
        published: Arc<Published>,
        commands: Commands,
        read_bytes: usize,
    ) -> Subscription {
        let tip = published.tip.subscribe();
        let next = from.max(LogIndex(1));
        let (ahead, asked, reading) = (VecDeque::new(), None, None);
        Subscription { next, published, tip, commands, read_bytes, ahead, asked, reading }
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
            if let Some(entries) = self.take_ahead(max_bytes) {
                return Ok(self.advance(entries));
            }
            if let Some(reading) = &mut self.reading {
                let read = reading.await;
                self.reading = None;
                match read {
                    Ok(Ok(entries)) => self.ahead = entries.into(),
                    // Log rule 13.
                    Ok(Err(error)) => crate::runtime::die(&error),
                    Err(_) => return Err(LogStopped),
                }
                continue;
            }
            let recent = locked(&self.published.ring).0.take(self.next, max_bytes);
            if let Some(entries) = recent {
                self.asked = None;
                return Ok(self.advance(entries));
            }
            let answer = match &mut self.asked {
                Some(asked) => asked.await,
                None => {
                    let (reply, answer) = oneshot::channel();
                    let read = Command::Read { from: self.next, max_bytes: self.read_bytes, reply };
                    self.commands.send(read).map_err(|_| LogStopped)?;
                    self.asked.insert(answer).await
                }
            };
            self.asked = None;
            match answer.map_err(|_| LogStopped)? {
                OldEntries::Entries(entries) if entries.is_empty() => {
                    return Err(LogStopped); // decided entries are always readable; only a stop explains this
                }
                OldEntries::Entries(entries) => self.ahead = entries.into(),
                OldEntries::OnDisk(plan) => self.reading = Some(tokio::task::spawn_blocking(move || plan.read())),
                OldEntries::Trimmed(trimmed) => {
                    return Ok(Delivery::NeedState { trimmed, leader: self.published.leader() });
                }
            }
        }
    }

    /// At least one and about `max_bytes` of what has been read ahead.
    fn take_ahead(&mut self, max_bytes: usize) -> Option<Vec<Entry>> {
        let mut bytes = 0;
        let fitting = self.ahead.iter().take_while(|entry| {
            bytes += entry_bytes(entry);
            bytes <= max_bytes
        });
        let count = fitting.count().max(1).min(self.ahead.len());
        (count > 0).then(|| self.ahead.drain(..count).collect())
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
    fn the_ring_holds_seconds_of_log_within_bounds() {
        const MIB: usize = 1 << 20;
        let mut capacity = Capacity::new(16 * MIB);
        let mut run = |mib_per_s: usize, from_s: u64, to_s: u64| {
            for ms in (from_s * 1_000..to_s * 1_000).step_by(10) {
                capacity.add(ms, mib_per_s * MIB / 100);
            }
            capacity.bytes / MIB
        };
        assert_eq!(run(1, 0, 5), 16);
        assert!((38..=42).contains(&run(20, 5, 10)));
        assert_eq!(run(500, 10, 15), 128);
        assert_eq!(run(1, 15, 30), 16);
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
