//! How far the application has applied what is decided, in bytes and in time.
//!
//! A replica whose application lags takes so much longer to serve once it leads. Each says in its standing how far it is; what a
//! leader makes of that is its owner's business.

use std::collections::VecDeque;

use crate::types::Lag;
use crate::wal::Disk;

use super::Core;

/// Moments remembered; when there are more, every other one is forgotten.
const MAX_MOMENTS: usize = 256;

/// What is applied, and when later positions were decided here.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Items applied; 0 until the owner has said.
    pub(super) length: u64,
    /// When the log was first seen to be decided so far; both grow.
    decided: VecDeque<(u64, u64)>,
}

impl Applied {
    fn see(&mut self, now_ms: u64, decided: u64) {
        while self.decided.front().is_some_and(|(_, length)| *length <= self.length) {
            self.decided.pop_front();
        }
        let known = self.decided.back().map_or(self.length, |(_, length)| *length);
        if decided > known {
            self.decided.push_back((now_ms, decided));
        }
        if self.decided.len() > MAX_MOMENTS {
            let mut at = 0;
            // The oldest stays: it says how long something has been waiting.
            self.decided.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
    }

    /// For how long the oldest decided and not applied item has been so, in milliseconds.
    fn lag_ms(&self, now_ms: u64) -> u64 {
        self.decided.front().map_or(0, |(since_ms, _)| now_ms.saturating_sub(*since_ms))
    }
}

impl<D: Disk> Core<D> {
    pub(super) fn applied(&mut self, length: u64) {
        self.applied.length = self.applied.length.max(length);
    }

    /// Looks again how far the application is.
    pub(super) fn see_applied(&mut self) {
        let decided = self.wal.borrow().decided();
        self.applied.see(self.now_ms, decided);
    }

    /// How far the application is behind what is decided here. None until it has said how far it is.
    pub(super) fn lag(&self) -> Lag {
        if self.applied.length == 0 {
            return Lag::default();
        }
        let wal = self.wal.borrow();
        Lag { bytes: wal.bytes_between(self.applied.length, wal.decided()), ms: self.applied.lag_ms(self.now_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_item_not_applied() {
        let mut applied = Applied { length: 10, ..Applied::default() };
        for step in 0..2_000u64 {
            applied.see(step * 100, 10 + step);
        }
        assert!(applied.decided.len() <= MAX_MOMENTS);
        // The item at 11 was decided at 100 ms.
        assert_eq!(applied.lag_ms(199_900), 199_800);
        applied.length = 10 + 1_999;
        applied.see(200_000, 10 + 1_999);
        assert_eq!(applied.lag_ms(200_000), 0);
        applied.see(200_100, 10 + 2_000);
        applied.see(200_200, 10 + 2_001);
        assert_eq!(applied.lag_ms(200_300), 200);
    }
}
