//! Waiters for the results of proposals.
//!
//! The entry that carries a proposal answers its waiter. If that entry can no longer come, the
//! answer is that nothing was done. If it may have come unseen, the answer is that the outcome is
//! unknown.

use super::message::{ProposeFailure, ProposeResult, ResultSender};
use evenkeel_replicated_log::Term;
use std::collections::HashMap;

/// The maximum number of proposals with a waiter.
const MAX_WAITERS: usize = 4096;

/// The waiters by their proposals' nonces, each with the term of its proposal.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<u64, (Term, ResultSender)>);

impl Waiters {
    /// Whether no further waiter is possible.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MAX_WAITERS
    }

    /// Adds a waiter, and removes those that have given up.
    pub(super) fn insert(&mut self, nonce: u64, term: Term, waiter: ResultSender) {
        self.0.retain(|_, (_, waiter)| !waiter.is_closed());
        self.0.insert(nonce, (term, waiter));
    }

    /// Answers the waiter of a proposal, if there is one.
    pub(super) fn answer(&mut self, nonce: u64, result: ProposeResult) {
        if let Some((_, waiter)) = self.0.remove(&nonce) {
            // An error means that the waiter has given up.
            waiter.send(result).ok();
        }
    }

    /// A later term has begun in the log: proposals of earlier terms that were not seen can no
    /// longer become effective.
    pub(super) fn term_began(&mut self, term: Term) {
        self.end(Some(term), &ProposeFailure::NotLeader);
    }

    /// The state came from another replica. It contains entries that this replica did not see, and
    /// proposals may be among them.
    pub(super) fn entries_skipped(&mut self) {
        self.end(None, &ProposeFailure::Unknown);
    }

    fn end(&mut self, before: Option<Term>, failure: &ProposeFailure) {
        let ends = |term: &Term| before.is_none_or(|before| *term < before);
        for (_, (_, waiter)) in self.0.extract_if(|_, (term, _)| ends(term)) {
            waiter.send(Err(failure.clone())).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::state::Effect;
    use tokio::sync::oneshot;

    fn waiting(waiters: &mut Waiters, nonce: u64, term: u64) -> oneshot::Receiver<ProposeResult> {
        let (waiter, result) = oneshot::channel();
        waiters.insert(nonce, Term(term), waiter);
        result
    }

    #[test]
    fn a_later_term_ends_what_was_proposed_before_it() {
        let mut waiters = Waiters::default();
        let (mut old, mut new) = (waiting(&mut waiters, 1, 4), waiting(&mut waiters, 2, 5));
        waiters.term_began(Term(5));
        assert_eq!(old.try_recv().unwrap(), Err(ProposeFailure::NotLeader));
        assert!(new.try_recv().is_err(), "it can still come");
        waiters.answer(2, Ok(Effect::Applied));
        assert_eq!(new.try_recv().unwrap(), Ok(Effect::Applied));
    }

    /// "Nothing was done" would be wrong if the entry is in the fetched state: a client would
    /// repeat it.
    #[test]
    fn a_proposal_that_a_state_transfer_may_have_brought_is_unknown() {
        let mut waiters = Waiters::default();
        let mut result = waiting(&mut waiters, 1, 4);
        waiters.entries_skipped();
        waiters.term_began(Term(9));
        assert_eq!(result.try_recv().unwrap(), Err(ProposeFailure::Unknown));
    }
}
