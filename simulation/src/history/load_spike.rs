//! Answers before, during and after a load spike.

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When it was asked, in milliseconds.
    pub asked_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
    /// Whether it was refused by admission control.
    pub refused: bool,
}

/// The answers to some clients during a period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Period {
    /// When the clients began, in milliseconds.
    pub began_ms: u64,
    /// For how long they asked.
    pub for_ms: u64,
    /// The answers.
    pub answers: Vec<Answer>,
}

/// A load below the capacity of the shards, a load above it, and the first again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overload {
    /// Before.
    pub before: Period,
    /// The overload.
    pub during: Period,
    /// After.
    pub after: Period,
}

impl Period {
    /// The answers to requests that were sent at least `after_ms` milliseconds after the beginning.
    pub fn since(&self, after_ms: u64) -> Vec<Answer> {
        let from_ms = self.began_ms + after_ms;
        self.answers.iter().copied().filter(|answer| answer.asked_ms >= from_ms).collect()
    }

    /// Statements done per second, from `after_ms` milliseconds after the beginning to the end of
    /// the period.
    pub fn done_per_s(&self, after_ms: u64) -> u64 {
        let window = self.began_ms + after_ms..self.began_ms + self.for_ms;
        let done = self.answers.iter().filter(|answer| !answer.refused && window.contains(&answer.answered_ms)).count();
        done as u64 * 1_000 / (self.for_ms - after_ms).max(1)
    }
}
