//! How much of a copy is under way at once: as much as both shards take beside their statements.
//!
//! A copy is background work on machines that have other work to do. It looks at how long a chunk takes from the moment its rows are read
//! until the destination has stored it. Where nobody else wants the processors and disks that is about what it took at best so far, and
//! the window grows; where statements wait for them it is longer, and the window shrinks, as LEDBAT (RFC 6817) has it for the network:
//! who sees the queue grow first gives way. A window smaller than a chunk is a rest between two chunks. It never closes: a range that is
//! to leave an overloaded shard must leave in the end.
//!
//! Pure; the shell measures and waits.

use std::time::Duration;

/// Bytes of a chunk: large enough that an entry and a snapshot for each cost little, small enough that applying one delays the
/// destination's own statements by little.
pub const CHUNK_BYTES: usize = 256 << 10;
/// What may be under way at most, in bytes: enough that the destination's storage is never idle.
pub const MOST_BYTES: u64 = 2 << 20;
/// What is under way at least in the mean, in bytes: a third of a chunk, or a rest of twice what the last chunk took. Less would leave more
/// to statements, and an overloaded shard with its load for longer.
const LEAST_BYTES: f64 = CHUNK_BYTES as f64 / 3.0;
/// How much longer than at best a chunk may take for the window to stay as it is.
const QUEUED: Duration = Duration::from_millis(10);
/// How long it may take at most: a copy that began where statements waited already has never seen the best. A machine with nothing else to
/// do needs a third of it.
const LONGEST: Duration = Duration::from_millis(40);
/// By which share the window changes at most with one chunk.
const GAIN: f64 = 0.25;
/// How long a rest is at most: the copy goes on while a machine stands still, and its watchdogs see it go on.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    window_bytes: f64,
    rest: Duration,
    /// The least that a chunk has taken.
    best: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { window_bytes: CHUNK_BYTES as f64, rest: Duration::ZERO, best: LONGEST }
    }
}

impl Pace {
    /// A chunk of so many bytes was stored, so long after its rows began to be read. A row that is longer than a chunk may take longer.
    pub fn stored(&mut self, bytes: u64, took: Duration) {
        let chunks = (bytes as f64 / CHUNK_BYTES as f64).max(1.0);
        let each = took.div_f64(chunks);
        // What is smaller, the end of a range for example, says nothing about a chunk.
        if bytes >= CHUNK_BYTES as u64 / 2 {
            self.best = self.best.min(each);
        }
        let target = (self.best + QUEUED).min(LONGEST);
        let room = 1.0 - each.as_secs_f64() / target.as_secs_f64();
        self.window_bytes = (self.window_bytes * (1.0 + GAIN * room.max(-1.0))).clamp(LEAST_BYTES, MOST_BYTES as f64);
        let missing = (CHUNK_BYTES as f64 / self.window_bytes - 1.0).max(0.0);
        self.rest = took.mul_f64(missing).min(LONGEST_REST);
    }

    /// What may be under way, in bytes.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes as u64
    }

    /// How long to wait after the last chunk was stored before the next is read.
    pub fn rest(&self) -> Duration {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A copy through a storage that takes so long for a chunk by itself, and so long for what others keep waiting there; gives its bytes/s.
    fn rate(service: Duration, others: Duration) -> f64 {
        let (mut pace, mut spent, mut bytes) = (Pace::default(), Duration::ZERO, 0);
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
    fn a_copy_takes_what_nobody_else_wants() {
        let alone = rate(ms(8), ms(0));
        assert!((31e6..34e6).contains(&alone), "as fast as it is stored: {alone}");
        let (beside, crowded) = (rate(ms(8), ms(25)), rate(ms(8), ms(100)));
        assert!(beside < alone / 2.0 && crowded < alone / 10.0, "{alone} {beside} {crowded}");
        assert!(crowded > 0.2e6, "it goes on: {crowded}");
    }

    // Nearly half of a saturated machine's statements were lost beside copies that were content with 40 ms where 10 are the best.
    #[test]
    fn a_copy_gives_way_by_what_it_took_at_best() {
        let mut pace = Pace::default();
        pace.stored(CHUNK_BYTES as u64, ms(8));
        (0..100).for_each(|_| pace.stored(CHUNK_BYTES as u64, ms(30)));
        assert_eq!(pace.window_bytes(), LEAST_BYTES as u64);
        let mut slow = Pace::default();
        (0..100).for_each(|_| slow.stored(CHUNK_BYTES as u64, ms(25)));
        assert_eq!(slow.window_bytes(), MOST_BYTES, "a slow disk is no reason");
        slow.stored(1_000, ms(1));
        assert_eq!(slow.best, ms(25), "neither is a small piece a measure");
    }

    #[test]
    fn the_window_opens_again_when_the_others_have_gone() {
        let mut pace = Pace::default();
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
        let mut pace = Pace::default();
        (0..100).for_each(|_| pace.stored(64 << 20, ms(2_000)));
        assert_eq!(pace.window_bytes(), MOST_BYTES);
    }
}
