//! Who waits for what becomes of a proposal.
//!
//! A waiter is answered by the entry that carries its proposal. If that entry cannot come any more it is told that nothing was done; if it may have
//! come unseen, it is told that nobody knows.

use super::shared::ProposeFailure;
use crate::state::Effect;
use evenkeel_replicated_log::Term;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// The most proposals whose outcome is waited for.
const MAX_WAITERS: usize = 4096;

/// Whom to tell.
pub(super) type Answer = oneshot::Sender<Result<Effect, ProposeFailure>>;

/// Who waits, by the proposal's nonce, with the term it was proposed in.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<u64, (Term, Answer)>);

impl Waiters {
    /// Whether no more can wait.
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_WAITERS
    }

    /// Adds one; those that have given up go.
    pub fn insert(&mut self, nonce: u64, term: Term, answer: Answer) {
        self.0.retain(|_, (_, answer)| !answer.is_closed());
        self.0.insert(nonce, (term, answer));
    }

    /// Tells what became of a proposal, if somebody waits for it.
    pub fn tell(&mut self, nonce: u64, outcome: Result<Effect, ProposeFailure>) {
        if let Some((_, answer)) = self.0.remove(&nonce) {
            // Whoever waited may have given up.
            answer.send(outcome).ok();
        }
    }

    /// A later term has begun in the log: what was proposed in an earlier one and has not been seen takes no effect any more.
    pub fn begun(&mut self, term: Term) {
        self.end(Some(term), &ProposeFailure::NotLeader);
    }

    /// The state has come from another replica: entries that nobody saw here are part of it, and a proposal may be among them.
    pub fn skipped(&mut self) {
        self.end(None, &ProposeFailure::Unknown);
    }

    fn end(&mut self, before: Option<Term>, failure: &ProposeFailure) {
        let ends = |term: &Term| before.is_none_or(|before| *term < before);
        for (_, (_, answer)) in self.0.extract_if(|_, (term, _)| ends(term)) {
            answer.send(Err(failure.clone())).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn waiting(waiters: &mut Waiters, nonce: u64, term: u64) -> oneshot::Receiver<Result<Effect, ProposeFailure>> {
        let (answer, told) = oneshot::channel();
        waiters.insert(nonce, Term(term), answer);
        told
    }

    #[test]
    fn a_later_term_ends_what_was_proposed_before_it() {
        let mut waiters = Waiters::default();
        let (mut old, mut new) = (waiting(&mut waiters, 1, 4), waiting(&mut waiters, 2, 5));
        waiters.begun(Term(5));
        assert_eq!(old.try_recv().unwrap(), Err(ProposeFailure::NotLeader));
        assert!(new.try_recv().is_err(), "it can still come");
        waiters.tell(2, Ok(Effect::Applied));
        assert_eq!(new.try_recv().unwrap(), Ok(Effect::Applied));
    }

    /// "Nothing was done" would be a lie if the entry is in the state that came: a client would do it again.
    #[test]
    fn a_proposal_that_a_state_transfer_may_have_brought_is_unknown() {
        let mut waiters = Waiters::default();
        let mut told = waiting(&mut waiters, 1, 4);
        waiters.skipped();
        waiters.begun(Term(9));
        assert_eq!(told.try_recv().unwrap(), Err(ProposeFailure::Unknown));
    }
}
