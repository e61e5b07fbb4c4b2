//! Proposals that need numbers, and wait until a new leadership may assign them (R30):
//! [`crate::operators::may_number`].

use super::message::{ProposeFailure, ResultSender};
use crate::state::Command;

/// The maximum number of proposals that wait.
const MAX_DEFERRED: usize = 256;

/// The proposals that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct DeferredProposals(Vec<(Command, ResultSender)>);

impl DeferredProposals {
    /// Whether a command assigns numbers to operators, ranges or tables. The balancer's decisions
    /// do too, and wait for reports in any case (R29).
    pub(super) fn needs_numbers(command: &Command) -> bool {
        matches!(command, Command::Begin(_) | Command::CreateTable { .. } | Command::ChangeSchema { .. })
    }

    /// Whether no proposal waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a proposal, and removes those whose proposer has given up.
    pub(super) fn push(&mut self, command: Command, waiter: ResultSender) {
        self.0.retain(|(_, waiter)| !waiter.is_closed());
        if self.0.len() >= MAX_DEFERRED {
            // An error means that the proposer has given up.
            waiter.send(Err(ProposeFailure::Overloaded)).ok();
        } else {
            self.0.push((command, waiter));
        }
    }

    /// Removes all proposals, to be proposed now. A proposal whose proposer has given up is
    /// dropped: the proposer may have repeated it.
    pub(super) fn take(&mut self) -> Vec<(Command, ResultSender)> {
        let mut deferred = std::mem::take(&mut self.0);
        deferred.retain(|(_, waiter)| !waiter.is_closed());
        deferred
    }

    /// The leadership is over: nothing was done.
    pub(super) fn end(&mut self) {
        for (_, waiter) in self.0.drain(..) {
            waiter.send(Err(ProposeFailure::NotLeader)).ok();
        }
    }
}
