//! Whether a majority still confirms the leader's leadership.
//!
//! A leader that is cut off from the other replicas need not learn that they have elected another. It would go on taking in reports of
//! shards that reach it still, and its successor would wait for them in vain. So a leader asks now and then, and one that has not been
//! confirmed for a while leaderships no more, for as long as it takes. A leadership here is nothing but memory of reports and calls; the same term may
//! leadership again later.

use evenkeel_replicated_log::Term;

/// How often a leader asks, in milliseconds.
const ASK_MS: u64 = 500;
/// How long a confirmation is good for, in milliseconds: longer than a busy machine stands still, shorter than anybody waits.
const GOOD_FOR_MS: u64 = 2_000;

/// What is known of one term's majority.
#[derive(Debug, Default)]
pub(super) struct Quorum {
    term: Term,
    /// When the latest question that was confirmed had been asked.
    confirmed_ms: u64,
    asked_ms: u64,
    under_way: bool,
}

impl Quorum {
    /// This replica leads in `term`, whose `LeaderStart` it has just applied: a majority decided it not long ago.
    pub(super) fn begin(&mut self, term: Term, now_ms: u64) {
        if self.term != term {
            *self = Quorum { term, confirmed_ms: now_ms, asked_ms: now_ms, under_way: false };
        }
    }

    /// Whether to ask now. Whoever is told so asks, and tells [`Quorum::answered`].
    pub(super) fn ask(&mut self, now_ms: u64) -> bool {
        let due = self.term != Term::NONE && !self.under_way && now_ms >= self.asked_ms + ASK_MS;
        if due {
            (self.under_way, self.asked_ms) = (true, now_ms);
        }
        due
    }

    /// What came of the question asked in `term`.
    pub(super) fn answered(&mut self, term: Term, confirmed: bool) {
        if term == self.term {
            self.under_way = false;
            if confirmed {
                self.confirmed_ms = self.asked_ms;
            }
        }
    }

    /// Whether `term`, which has begun, may leadership.
    pub(super) fn stands(&self, now_ms: u64) -> bool {
        now_ms <= self.confirmed_ms + GOOD_FOR_MS
    }

    /// The term that questions are asked about.
    pub(super) fn term(&self) -> Term {
        self.term
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leadership_stands_for_as_long_as_it_is_confirmed() {
        let mut quorum = Quorum::default();
        assert!(!quorum.ask(10_000), "nobody leads");
        quorum.begin(Term(7), 10_000);
        assert!(quorum.stands(10_000) && !quorum.ask(10_499));
        assert!(quorum.ask(10_500) && !quorum.ask(20_000), "one question at a time");
        quorum.answered(Term(7), true);
        assert!(quorum.stands(12_500) && !quorum.stands(12_501), "good from when it was asked");
        // It goes on asking, and stands again.
        assert!(quorum.ask(12_600));
        quorum.answered(Term(7), false);
        assert!(!quorum.stands(12_601));
        assert!(quorum.ask(13_100));
        quorum.answered(Term(7), true);
        assert!(quorum.stands(13_200));
        // A later term stands from its beginning; an answer about the earlier one says nothing about it.
        quorum.begin(Term(9), 20_000);
        assert!(quorum.stands(20_000) && quorum.ask(20_600));
        quorum.answered(Term(7), true);
        assert!(!quorum.ask(21_200) && !quorum.stands(22_700));
        quorum.begin(Term(9), 22_700);
        assert!(!quorum.stands(22_700), "the same leadership does not begin twice");
    }
}
