//! The pace at which a replica gives rows to a replica that is re-seeded.
//!
//! It yields to its own log: as long as it lags more than [`LAG_MS`] behind, one piece is read at a
//! time, with a rest of [`RESTS`] times as long as that took before the next. It does not stop: on
//! a machine whose clients want all there is, a replica may lag like that for as long as they do
//! (the leader holds writes back at such a lag, and no sooner), and a shard short of a replica is
//! what must end first.

use crate::progress::Progress;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{MutexGuard, Semaphore, SemaphorePermit};

/// Pieces that are read at once.
const READERS: usize = 4;
/// A replica that lags behind its log by more than this reads one piece at a time and rests in
/// between, in milliseconds.
const LAG_MS: u64 = 1_000;
/// How long it rests, in times that the last piece took; and at most, in milliseconds.
const RESTS: u32 = 3;
const MOST_REST_MS: u64 = 1_000;
/// How often it is noted how far the log is, in milliseconds.
const NOTE_MS: u64 = 100;

/// See the module.
#[derive(Debug)]
pub struct Pacer {
    readers: Semaphore,
    decided: Mutex<Decided>,
    /// How long the last piece took that was read while this replica lagged.
    lagging: tokio::sync::Mutex<Duration>,
}

/// Leave to read a piece, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    began: Instant,
    /// Of a replica that lags.
    lagging: Option<MutexGuard<'a, Duration>>,
    // Never closed.
    _reader: Option<SemaphorePermit<'a>>,
}

impl Default for Pacer {
    fn default() -> Pacer {
        let lagging = tokio::sync::Mutex::new(Duration::ZERO);
        Pacer { readers: Semaphore::new(READERS), decided: Mutex::default(), lagging }
    }
}

impl Pacer {
    /// Waits until a piece may be read. `decided` says how far the log is, `progress` how far
    /// PostgreSQL.
    pub async fn turn(&self, decided: impl Fn() -> u64, progress: &Progress) -> Turn<'_> {
        let _reader = self.readers.acquire().await.ok();
        let due = self.due(evenkeel_host::now(), decided());
        if progress.watermark() >= due {
            return Turn { began: evenkeel_host::now(), lagging: None, _reader };
        }
        let lagging = self.lagging.lock().await;
        // It may have caught up meanwhile.
        let due = self.due(evenkeel_host::now(), decided());
        let rest = (*lagging * RESTS).min(Duration::from_millis(MOST_REST_MS));
        let rested = evenkeel_host::timeout(rest, progress.reached(due)).await.is_err();
        metrics::counter!("evenkeel_seed_rests_total").increment(rested.into());
        Turn { began: evenkeel_host::now(), lagging: Some(lagging), _reader }
    }

    /// The position that is applied here unless this replica lags: what was decided `LAG_MS` ago,
    /// as far as that is known.
    fn due(&self, now: Instant, decided: u64) -> u64 {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).note(now, decided)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(took) = &mut self.lagging {
            **took = evenkeel_host::elapsed(self.began);
        }
    }
}

/// How far the log was, and when; oldest first. Pure.
#[derive(Debug, Default)]
struct Decided {
    noted: VecDeque<(Instant, u64)>,
}

impl Decided {
    fn note(&mut self, now: Instant, decided: u64) -> u64 {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        if self.noted.back().is_none_or(|(at, _)| age(at) >= Duration::from_millis(NOTE_MS)) {
            self.noted.push_back((now, decided));
        }
        let lag = Duration::from_millis(LAG_MS);
        // The last one that is old enough stays for the next call.
        while self.noted.get(1).is_some_and(|(at, _)| age(at) >= lag) {
            self.noted.pop_front();
        }
        self.noted.front().filter(|(at, _)| age(at) >= lag).map_or(0, |(_, position)| *position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A replica that always lags gives rows all the same, one piece at a time.
    #[tokio::test]
    async fn a_replica_that_lags_reads_one_piece_at_a_time_and_does_not_stop() {
        let (pacer, progress) = (Pacer::default(), Progress::new(10));
        let long_ago = evenkeel_host::now() - 2 * Duration::from_millis(LAG_MS);
        pacer.decided.lock().unwrap_or_else(PoisonError::into_inner).noted.push_back((long_ago, 100));
        let first = pacer.turn(|| 100, &progress).await;
        assert!(first.lagging.is_some());
        let mut second = std::pin::pin!(pacer.turn(|| 100, &progress));
        assert!(futures::poll!(&mut second).is_pending(), "two at once");
        drop(first);
        let second = second.await;
        progress.pass(100);
        let third = pacer.turn(|| 100, &progress).await;
        assert!(second.lagging.is_some() && third.lagging.is_none(), "it has caught up");
    }

    #[test]
    fn what_was_decided_a_second_ago_is_due() {
        let (mut decided, begun) = (Decided::default(), evenkeel_host::now());
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(decided.note(at(0), 10), 0, "nothing is known yet");
        assert_eq!(decided.note(at(500), 20), 0);
        assert_eq!(decided.note(at(1_000), 30), 10);
        assert_eq!(decided.note(at(1_499), 40), 10);
        assert_eq!(decided.note(at(1_500), 50), 20);
        assert_eq!(decided.note(at(9_000), 60), 40);
        for ms in 0..10_000 {
            decided.note(at(9_000 + ms), 60);
        }
        assert!(decided.noted.len() <= 12, "it does not grow");
    }
}
