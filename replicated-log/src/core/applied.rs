//! The distance from the decided position to the applied position of the application, in bytes and
//! in time.
//!
//! A replica whose application lags needs that much longer to serve once it leads. Each replica
//! reports its lag in its standing; the leader's owner decides what to do about it.

use std::collections::VecDeque;

use crate::status::Lag;
use crate::wal::Wal;
use evenkeel_host::Disk;

/// Moments remembered. Above this number every other one is dropped.
const MAX_MOMENTS: usize = 256;

/// The applied position, and the times at which later positions were decided here.
#[derive(Debug, Default)]
pub(super) struct AppliedPosition {
    /// Items applied; 0 until the owner reports a position.
    length: u64,
    /// `(time, length)`: when the log was first seen decided up to `length`; both grow.
    decided: VecDeque<(u64, u64)>,
}

impl AppliedPosition {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The application has applied `length` items.
    pub(super) fn advance(&mut self, length: u64) {
        self.length = self.length.max(length);
    }

    /// Records that `decided` items are decided at `now_ms`.
    pub(super) fn observe(&mut self, now_ms: u64, decided: u64) {
        while self.decided.front().is_some_and(|(_, length)| *length <= self.length) {
            self.decided.pop_front();
        }
        let known = self.decided.back().map_or(self.length, |(_, length)| *length);
        if decided > known {
            self.decided.push_back((now_ms, decided));
        }
        if self.decided.len() > MAX_MOMENTS {
            let mut at = 0;
            // The oldest stays: it tells how long the oldest item has been waiting.
            self.decided.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
    }

    /// Time since the oldest decided and not applied item was decided, in milliseconds.
    fn lag_ms(&self, now_ms: u64) -> u64 {
        self.decided.front().map_or(0, |(since_ms, _)| now_ms.saturating_sub(*since_ms))
    }

    /// The lag at `now_ms`; none until the application reports a position.
    pub(super) fn lag<D: Disk>(&self, now_ms: u64, wal: &Wal<D>) -> Lag {
        if self.length == 0 {
            return Lag::default();
        }
        Lag { bytes: wal.bytes_between(self.length, wal.decided()), ms: self.lag_ms(now_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_item_not_applied() {
        let mut applied = AppliedPosition { length: 10, ..AppliedPosition::default() };
        for step in 0..2_000u64 {
            applied.observe(step * 100, 10 + step);
        }
        assert!(applied.decided.len() <= MAX_MOMENTS);
        // The item at 11 was decided at 100 ms.
        assert_eq!(applied.lag_ms(199_900), 199_800);
        applied.length = 10 + 1_999;
        applied.observe(200_000, 10 + 1_999);
        assert_eq!(applied.lag_ms(200_000), 0);
        applied.observe(200_100, 10 + 2_000);
        applied.observe(200_200, 10 + 2_001);
        assert_eq!(applied.lag_ms(200_300), 200);
    }
}
