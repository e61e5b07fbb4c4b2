//! Proofs of the age of this replica's state (R17). Pure, with times passed in.
//!
//! A [`StalenessBound`] says that every write acknowledged before this replica's question is at or
//! before a position of the log. When PostgreSQL has applied that position, its state is at most as
//! old as the question. Proofs arrive faster than entries are applied, so several proofs may wait
//! for their positions.

use evenkeel_replicated_log::{CLOCK_DRIFT_PERCENT, StalenessBound};
use std::collections::VecDeque;

/// The most proofs that wait for their positions.
const MAX_WAITING: usize = 64;
/// An unanswered question is repeated after this long, in milliseconds.
pub const ASK_AGAIN_MS: u64 = 20;

/// See the module. All times are milliseconds of the log's clock.
#[derive(Debug, Default)]
pub struct Proofs {
    /// Sorted by time and by position.
    waiting: VecDeque<StalenessBound>,
    /// The time of the question of the latest proof whose position has been applied.
    proven_ms: Option<u64>,
    last_asked_ms: Option<u64>,
    unanswered_since_ms: Option<u64>,
}

impl Proofs {
    /// Whether to ask now. If so, the question is taken as asked.
    pub fn ask(&mut self, now_ms: u64) -> bool {
        let due = self.last_asked_ms.is_none_or(|last| now_ms.saturating_sub(last) >= ASK_AGAIN_MS);
        if due {
            self.last_asked_ms = Some(now_ms);
            self.unanswered_since_ms.get_or_insert(now_ms);
        }
        due
    }

    /// The time since which a question has been unanswered.
    pub fn unanswered_since_ms(&self) -> Option<u64> {
        self.unanswered_since_ms
    }

    /// Adds the latest proof. The same proof again changes nothing.
    pub fn learn(&mut self, fresh: StalenessBound) {
        let last_ms = self.waiting.back().map(|last| last.asked_ms).max(self.proven_ms);
        if last_ms.is_some_and(|last| fresh.asked_ms <= last) {
            return;
        }
        self.unanswered_since_ms = None;
        // A later question with the same or a lower position is the stronger proof.
        while self.waiting.back().is_some_and(|last| last.index >= fresh.index) {
            self.waiting.pop_back();
        }
        if self.waiting.len() >= MAX_WAITING {
            // The oldest are applied first, and the newest is the strongest. The one before the
            // newest can go.
            self.waiting.pop_back();
        }
        self.waiting.push_back(fresh);
    }

    /// The time of the question of the strongest proof about a state that has applied everything up
    /// to `applied`.
    pub fn proven_ms(&mut self, applied: u64) -> Option<u64> {
        while let Some(first) = self.waiting.front().filter(|first| first.index.0 <= applied) {
            self.proven_ms = Some(first.asked_ms);
            self.waiting.pop_front();
        }
        self.proven_ms
    }
}

/// The age at `now_ms` of a state that was proven by a question at `asked_ms`. At least the real
/// time that has passed, although this clock may run slow and shows whole milliseconds.
pub fn age_ms(asked_ms: u64, now_ms: u64) -> u64 {
    let passed_ms = now_ms.saturating_sub(asked_ms).saturating_add(1);
    passed_ms.saturating_mul(100).div_ceil(100 - CLOCK_DRIFT_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_replicated_log::LogIndex;

    fn fresh(asked_ms: u64, index: u64) -> StalenessBound {
        StalenessBound { asked_ms, index: LogIndex(index) }
    }

    #[test]
    fn a_proof_counts_once_its_position_is_applied() {
        let mut proofs = Proofs::default();
        assert_eq!(proofs.proven_ms(u64::MAX), None, "nothing is proven without a question");
        proofs.learn(fresh(100, 5));
        assert_eq!(proofs.proven_ms(4), None);
        proofs.learn(fresh(120, 9));
        assert_eq!(proofs.proven_ms(8), Some(100));
        assert_eq!(proofs.proven_ms(9), Some(120));
        // It does not go away, and an older one does not replace it.
        proofs.learn(fresh(110, 2));
        assert_eq!(proofs.proven_ms(9), Some(120));
    }

    #[test]
    fn weaker_proofs_are_dropped_and_waiting_proofs_are_bounded() {
        let mut proofs = Proofs::default();
        proofs.learn(fresh(100, 9));
        proofs.learn(fresh(101, 9));
        assert_eq!(proofs.waiting.len(), 1);
        (0..1_000).for_each(|i| proofs.learn(fresh(200 + i, 10 + i)));
        assert_eq!(proofs.waiting.len(), MAX_WAITING);
        assert_eq!(proofs.proven_ms(9), Some(101), "the oldest that waits is still there");
        assert_eq!(proofs.proven_ms(1_009), Some(1_199), "and so is the newest");
    }

    #[test]
    fn questions_are_repeated_and_known_to_be_unanswered() {
        let mut proofs = Proofs::default();
        assert!(proofs.ask(1_000));
        assert!(!proofs.ask(1_000 + ASK_AGAIN_MS - 1));
        assert!(proofs.ask(1_000 + ASK_AGAIN_MS));
        assert_eq!(proofs.unanswered_since_ms(), Some(1_000));
        proofs.learn(fresh(1_000, 1));
        assert_eq!(proofs.unanswered_since_ms(), None);
    }

    #[test]
    fn the_age_allows_for_a_clock_that_runs_slow() {
        // 95 ms on a clock that is 5 % slow are 100 ms.
        assert!(age_ms(1_000, 1_095) >= 101);
        assert!(age_ms(1_000, 1_000) >= 1);
        assert_eq!(age_ms(1_000, 999), age_ms(1_000, 1_000), "a clock never goes back; nothing may underflow");
    }
}
