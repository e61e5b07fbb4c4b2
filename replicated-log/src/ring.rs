//! The ring of recent decided entries, bounded by bytes.
//!
//! The ring holds about [`RING_MS`] of log, within bounds: a consumer that stalls for a moment need
//! not read the disk.

use std::collections::VecDeque;

use crate::entry::{Body, Entry};
use crate::ids::LogIndex;
use crate::item::ITEM_OVERHEAD_BYTES;

/// The length of log that the ring holds, as time, in milliseconds.
const RING_MS: u64 = 2_000;
/// The largest size of the ring as a multiple of [`Limits::recent_bytes`](crate::Limits).
const MAX_GROWTH: usize = 8;
/// The window over which the rate is measured, in milliseconds.
const RATE_WINDOW_MS: u64 = 1_000;

/// The capacity of the ring: the bytes that arrive in [`RING_MS`], within bounds.
#[derive(Debug)]
pub(crate) struct RingCapacity {
    least_bytes: usize,
    pub(crate) bytes: usize,
    window_began_ms: u64,
    window_bytes: u64,
}

impl RingCapacity {
    pub(crate) fn new(least_bytes: usize) -> RingCapacity {
        RingCapacity { least_bytes, bytes: least_bytes, window_began_ms: 0, window_bytes: 0 }
    }

    /// `bytes` have arrived by `now_ms`.
    pub(crate) fn add(&mut self, now_ms: u64, bytes: usize) {
        self.window_bytes += bytes as u64;
        let passed_ms = now_ms.saturating_sub(self.window_began_ms);
        if passed_ms >= RATE_WINDOW_MS {
            let wanted = usize::try_from(self.window_bytes * RING_MS / passed_ms).unwrap_or(usize::MAX);
            let most = self.least_bytes.saturating_mul(MAX_GROWTH);
            // It grows at once and shrinks by halves: bursts recur.
            self.bytes = wanted.max(self.bytes / 2).clamp(self.least_bytes, most);
            (self.window_began_ms, self.window_bytes) = (now_ms, 0);
        }
    }
}

/// Recent decided entries, consecutive, the last one at `tip`.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    tip: LogIndex,
}

/// The memory that an entry takes, in bytes.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    let payload = match &entry.body {
        Body::Data(b) | Body::ConfigChange(b) => b.len(),
        Body::LeaderStart { .. } => 0,
    };
    payload + ITEM_OVERHEAD_BYTES + std::mem::size_of::<Entry>()
}

impl Ring {
    pub(crate) fn push(&mut self, entries: Vec<Entry>, capacity_bytes: usize) {
        for entry in entries {
            if entry.index != self.tip.next() {
                // A state transfer or a long catch-up jumped ahead; the gap is read from the log.
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

    /// At least one and about `max_bytes` of the entries from `from` on; `None` if `from` is not in
    /// the ring.
    pub(crate) fn take(&self, from: LogIndex, max_bytes: usize) -> Option<Vec<Entry>> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::Term;
    use bytes::Bytes;

    fn entry(index: u64) -> Entry {
        Entry { index: LogIndex(index), term: Term(1), effective: true, body: Body::Data(Bytes::from(vec![0; 100])) }
    }

    #[test]
    fn the_ring_holds_seconds_of_log_within_bounds() {
        const MIB: usize = 1 << 20;
        let mut capacity = RingCapacity::new(16 * MIB);
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
