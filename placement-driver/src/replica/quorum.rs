//! Confirmation of a leadership by a majority.
//!
//! A leader that is partitioned from the other replicas may not learn that they have elected
//! another. It would accept the reports of shards that still reach it, and its successor would wait
//! for them. So a leader asks for confirmation at intervals, and stops serving while the last
//! confirmation is too old. A leadership here is only memory of reports and requests; the same term
//! may serve again later.

use evenkeel_replicated_log::Term;

/// The interval between two questions, in milliseconds.
const ASK_MS: u64 = 500;
/// How long a confirmation is valid, in milliseconds: longer than a busy machine is unresponsive,
/// shorter than a client waits.
const VALID_MS: u64 = 2_000;

/// The confirmation of one term.
#[derive(Debug, Default)]
pub(super) struct Quorum {
    term: Term,
    /// The time of the latest question that was confirmed.
    confirmed_ms: u64,
    asked_ms: u64,
    under_way: bool,
}

impl Quorum {
    /// This replica leads in `term` and has just applied its `LeaderStart`, which a majority has
    /// decided not long ago. Has no effect if the term began before.
    pub(super) fn begin(&mut self, term: Term, now_ms: u64) {
        if self.term != term {
            *self = Quorum { term, confirmed_ms: now_ms, asked_ms: now_ms, under_way: false };
        }
    }

    /// Whether to ask now. If so, the caller asks and passes the answer to [`Quorum::answered`].
    pub(super) fn ask(&mut self, now_ms: u64) -> bool {
        let due = self.term != Term::NONE && !self.under_way && now_ms >= self.asked_ms + ASK_MS;
        if due {
            (self.under_way, self.asked_ms) = (true, now_ms);
        }
        due
    }

    /// The answer to the question that was asked in `term`.
    pub(super) fn answered(&mut self, term: Term, confirmed: bool) {
        if term == self.term {
            self.under_way = false;
            if confirmed {
                self.confirmed_ms = self.asked_ms;
            }
        }
    }

    /// Whether the term, which has begun, is confirmed.
    pub(super) fn is_confirmed(&self, now_ms: u64) -> bool {
        now_ms <= self.confirmed_ms + VALID_MS
    }

    /// The term that the questions are about.
    pub(super) fn term(&self) -> Term {
        self.term
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leadership_serves_while_it_is_confirmed() {
        let mut quorum = Quorum::default();
        assert!(!quorum.ask(10_000), "nobody leads");
        quorum.begin(Term(7), 10_000);
        assert!(quorum.is_confirmed(10_000) && !quorum.ask(10_499));
        assert!(quorum.ask(10_500) && !quorum.ask(20_000), "one question at a time");
        quorum.answered(Term(7), true);
        assert!(quorum.is_confirmed(12_500) && !quorum.is_confirmed(12_501), "good from when it was asked");
        // It continues to ask, and is confirmed again.
        assert!(quorum.ask(12_600));
        quorum.answered(Term(7), false);
        assert!(!quorum.is_confirmed(12_601));
        assert!(quorum.ask(13_100));
        quorum.answered(Term(7), true);
        assert!(quorum.is_confirmed(13_200));
        // A later term is confirmed from its beginning. An answer about the earlier term says
        // nothing about it.
        quorum.begin(Term(9), 20_000);
        assert!(quorum.is_confirmed(20_000) && quorum.ask(20_600));
        quorum.answered(Term(7), true);
        assert!(!quorum.ask(21_200) && !quorum.is_confirmed(22_700));
        quorum.begin(Term(9), 22_700);
        assert!(!quorum.is_confirmed(22_700), "the same leadership does not begin twice");
    }
}
