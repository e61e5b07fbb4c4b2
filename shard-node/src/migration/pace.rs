//! Pacing of a copy: the bytes that are in flight to the destination at a time. Pure;
//! [`super::source`] measures and waits.
//!
//! A copy is background work. Its pace follows the time of a chunk, from the reading of its rows
//! until the destination has stored it. On idle machines this time is close to the shortest seen so
//! far, and the window grows. When statements compete for processors and disks the time is longer,
//! and the window shrinks, as in LEDBAT (RFC 6817): the background transfer notices the growing
//! queue and yields. A window smaller than a chunk means a rest between two chunks. The window
//! never closes, because a range that is to leave an overloaded shard must leave in the end.

use std::time::Duration;

/// Bytes of a chunk. Large enough that the cost of its entry and its snapshot is small; small
/// enough that applying it hardly delays the destination's statements.
pub const CHUNK_BYTES: usize = 256 << 10;
/// The largest window, in bytes. Enough to keep the destination's storage busy.
pub const MOST_BYTES: u64 = 2 << 20;
/// The smallest window on average, in bytes: a third of a chunk, which is a rest of twice the time
/// of the last chunk. With less, an overloaded shard would keep its load for longer.
const LEAST_BYTES: f64 = CHUNK_BYTES as f64 / 3.0;
/// The time above the shortest at which the window stays as it is.
const QUEUED: Duration = Duration::from_millis(10);
/// The longest time of a chunk at which the window does not shrink. A copy that begins under load
/// never sees the shortest time. An idle machine needs a third of this.
const LONGEST: Duration = Duration::from_millis(40);
/// The largest relative change of the window with one chunk.
const GAIN: f64 = 0.25;
/// The longest rest. The copy continues on a stalled machine, and watchdogs see it continue.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyPace {
    window_bytes: f64,
    rest: Duration,
    /// The shortest time of a chunk so far.
    best: Duration,
}

impl Default for CopyPace {
    fn default() -> CopyPace {
        CopyPace { window_bytes: CHUNK_BYTES as f64, rest: Duration::ZERO, best: LONGEST }
    }
}

impl CopyPace {
    /// A chunk was stored, `took` after its rows began to be read. A row that is larger than a
    /// chunk may take longer.
    pub fn stored(&mut self, bytes: u64, took: Duration) {
        let chunks = (bytes as f64 / CHUNK_BYTES as f64).max(1.0);
        let each = took.div_f64(chunks);
        // A smaller piece, for example the end of a range, says nothing about a chunk.
        if bytes >= CHUNK_BYTES as u64 / 2 {
            self.best = self.best.min(each);
        }
        let target = (self.best + QUEUED).min(LONGEST);
        let room = 1.0 - each.as_secs_f64() / target.as_secs_f64();
        self.window_bytes = (self.window_bytes * (1.0 + GAIN * room.max(-1.0))).clamp(LEAST_BYTES, MOST_BYTES as f64);
        let missing = (CHUNK_BYTES as f64 / self.window_bytes - 1.0).max(0.0);
        self.rest = took.mul_f64(missing).min(LONGEST_REST);
    }

    /// The window, in bytes.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes as u64
    }

    /// The rest between the storing of the last chunk and the reading of the next.
    pub fn rest(&self) -> Duration {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes per second of a copy. The storage takes `service` for a chunk; other work delays
    /// it by `others`.
    fn rate(service: Duration, others: Duration) -> f64 {
        let (mut pace, mut spent, mut bytes) = (CopyPace::default(), Duration::ZERO, 0);
        for _ in 0..2_000 {
            let under_way = (pace.window_bytes() as f64 / CHUNK_BYTES as f64).max(1.0);
            let took = service.mul_f64(under_way) + others;
            pace.stored(CHUNK_BYTES as u64, took);
            spent += took.div_f64(under_way) + pace.rest();
            bytes += CHUNK_BYTES;
        }
        bytes as f64 / spent.as_secs_f64()
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_copy_uses_idle_capacity() {
        let alone = rate(ms(8), ms(0));
        assert!((31e6..34e6).contains(&alone), "as fast as it is stored: {alone}");
        let (beside, loaded) = (rate(ms(8), ms(25)), rate(ms(8), ms(100)));
        assert!(beside < alone / 2.0 && loaded < alone / 10.0, "{alone} {beside} {loaded}");
        assert!(loaded > 0.2e6, "it continues: {loaded}");
    }

    // Beside copies that accepted 40 ms where 10 ms are the shortest time, a saturated machine lost
    // nearly half of its throughput.
    #[test]
    fn a_copy_yields_relative_to_its_shortest_time() {
        let mut pace = CopyPace::default();
        pace.stored(CHUNK_BYTES as u64, ms(8));
        (0..100).for_each(|_| pace.stored(CHUNK_BYTES as u64, ms(30)));
        assert_eq!(pace.window_bytes(), LEAST_BYTES as u64);
        let mut slow = CopyPace::default();
        (0..100).for_each(|_| slow.stored(CHUNK_BYTES as u64, ms(25)));
        assert_eq!(slow.window_bytes(), MOST_BYTES, "a slow disk is no reason to yield");
        slow.stored(1_000, ms(1));
        assert_eq!(slow.best, ms(25), "a small piece is not measured");
    }

    #[test]
    fn the_window_opens_again_when_the_load_has_gone() {
        let mut pace = CopyPace::default();
        (0..100).for_each(|_| pace.stored(CHUNK_BYTES as u64, ms(500)));
        assert_eq!((pace.window_bytes(), pace.rest()), (LEAST_BYTES as u64, LONGEST_REST));
        let chunks = (1..100).find(|_| {
            pace.stored(CHUNK_BYTES as u64, ms(10));
            pace.window_bytes() == MOST_BYTES
        });
        assert!(chunks.is_some_and(|chunks| chunks < 30), "{chunks:?}");
        assert_eq!(pace.rest(), Duration::ZERO);
    }

    #[test]
    fn a_long_row_may_take_long() {
        let mut pace = CopyPace::default();
        (0..100).for_each(|_| pace.stored(64 << 20, ms(2_000)));
        assert_eq!(pace.window_bytes(), MOST_BYTES);
    }
}
