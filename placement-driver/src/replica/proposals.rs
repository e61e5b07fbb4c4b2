//! Proposals of the leader: their nonces, their times, and the results for their proposers.

use super::apply::AppliedEntries;
use super::clock::Clock;
use super::deferred_proposals::DeferredProposals;
use super::handles::ReplicaHandles;
use super::leader_state::LeaderState;
use super::message::{ProposeFailure, ResultSender};
use super::waiters::Waiters;
use crate::operators::may_number;
use crate::state::{Command, Proposal};
use evenkeel_replicated_log::{ProposeError, Term};
use std::sync::Arc;

/// Queues proposals in the log and answers their proposers.
pub(super) struct Proposer {
    handles: Arc<ReplicaHandles>,
    clock: Clock,
    waiters: Waiters,
    deferred: DeferredProposals,
    next_nonce: u64,
    /// The term in which this replica leads or has led last, and the time at which the term began
    /// or had its last proposal, by this process's clock.
    last: Option<(Term, u64)>,
    /// The time of this process's clock at which the state machine's time was the present one.
    /// Valid in the term of `last`.
    state_since_ms: u64,
}

impl Proposer {
    pub(super) fn new(handles: Arc<ReplicaHandles>) -> Proposer {
        let clock = Clock::new();
        Proposer {
            // Nonces of different processes and starts must differ, so that a follower does not
            // take another replica's proposal for its own.
            next_nonce: clock.started_ms() << 20 | (handles.config.replica & 0xff) << 12,
            handles,
            clock,
            waiters: Waiters::default(),
            deferred: DeferredProposals::default(),
            last: None,
            state_since_ms: 0,
        }
    }

    /// The time of this process's clock, in milliseconds.
    pub(super) fn clock_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The state machine's time now, in milliseconds: `State::time_ms` and the time since. It has a
    /// meaning only while this replica leads.
    pub(super) fn time_ms(&self) -> u64 {
        self.handles.applied().state.time_ms() + self.clock.now_ms().saturating_sub(self.state_since_ms)
    }

    /// The term in which this replica leads or has led last.
    pub(super) fn own_term(&self) -> Option<Term> {
        self.last.map(|(term, _)| term)
    }

    /// Begins a leadership in `term`. A term can be led twice, if no majority confirmed it for a
    /// while: then its time continues.
    pub(super) fn begin_term(&mut self, term: Term) {
        if self.last.is_none_or(|(of, _)| of != term) {
            self.state_since_ms = self.clock.now_ms();
            self.last = Some((term, self.state_since_ms));
        }
    }

    /// Proposes a client's command, now or as soon as numbers may be assigned.
    pub(super) fn submit(&mut self, command: Command, waiter: ResultSender) {
        if DeferredProposals::needs_numbers(&command) && !self.may_number() {
            self.deferred.push(command, waiter);
        } else {
            // The waiter receives the failure.
            self.propose(command, Some(waiter)).ok();
        }
    }

    /// Whether numbers may be assigned now. Without a leadership the answer is yes: the proposal is
    /// then rejected for that reason.
    fn may_number(&self) -> bool {
        let now_ms = self.time_ms();
        let leading = self.handles.leading();
        let may = |leading: &LeaderState| {
            let applied = self.handles.applied();
            may_number(&applied.state, &leading.balancer.load, &leading.shards_at_start, now_ms)
        };
        leading.as_ref().is_none_or(may)
    }

    /// Proposes the deferred commands once numbers may be assigned.
    pub(super) fn propose_deferred(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        if self.handles.leading().is_none() {
            self.deferred.end();
        } else if self.may_number() {
            for (command, waiter) in self.deferred.take() {
                self.propose(command, Some(waiter)).ok();
            }
        }
    }

    /// Queues a command in the log. The result is its nonce.
    pub(super) fn propose(&mut self, command: Command, waiter: Option<ResultSender>) -> Result<u64, ProposeFailure> {
        match self.queue(command) {
            Ok((term, nonce)) => {
                if let Some(waiter) = waiter {
                    self.waiters.insert(nonce, term, waiter);
                }
                Ok(nonce)
            }
            Err(failure) => {
                if let Some(waiter) = waiter {
                    // An error means that the proposer has given up.
                    waiter.send(Err(failure.clone())).ok();
                }
                Err(failure)
            }
        }
    }

    fn queue(&mut self, command: Command) -> Result<(Term, u64), ProposeFailure> {
        let term = self.handles.leading().as_ref().map(|leading| leading.term).ok_or(ProposeFailure::NotLeader)?;
        if self.waiters.is_full() {
            return Err(ProposeFailure::Overloaded);
        }
        self.next_nonce += 1;
        let at_ms = self.clock.now_ms();
        let last = self.last.filter(|(of, _)| *of == term);
        let since_ms = last.map_or(0, |(_, last_ms)| at_ms.saturating_sub(last_ms));
        let proposal = Proposal { at_ms, since_ms, nonce: self.next_nonce, command };
        queue(&self.handles, term, &proposal)?;
        // Only proposals in the log move this time. The time before a failed one belongs to the
        // next.
        self.last = Some((term, at_ms));
        Ok((term, self.next_nonce))
    }

    /// Takes over the times of applied entries. Call it before the results are published.
    pub(super) fn entries_applied(&mut self, applied: &AppliedEntries) {
        if let Some(at_ms) = applied.own_proposal_ms {
            self.state_since_ms = at_ms;
        }
    }

    /// Answers the proposers of applied entries. Call it after the results are published, so that a
    /// proposer finds its effect.
    pub(super) fn answer(&mut self, applied: AppliedEntries) {
        for (nonce, result) in applied.results {
            self.waiters.answer(nonce, result);
        }
        if let Some(term) = applied.term_began {
            self.waiters.term_began(term);
        }
    }

    /// The state came from another replica: the outcome of every waiting proposal is unknown.
    pub(super) fn state_replaced(&mut self) {
        self.waiters.entries_skipped();
    }
}

fn queue(handles: &ReplicaHandles, term: Term, proposal: &Proposal) -> Result<(), ProposeFailure> {
    let Ok(bytes) = postcard::to_stdvec(proposal) else { return Err(ProposeFailure::Overloaded) };
    handles.log.propose(term, bytes.into()).map_err(|error| match error {
        ProposeError::NotLeader { .. } | ProposeError::Stopped => ProposeFailure::NotLeader,
        ProposeError::Overloaded | ProposeError::TooLarge { .. } => ProposeFailure::Overloaded,
    })
}
