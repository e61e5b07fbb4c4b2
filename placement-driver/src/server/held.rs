//! Proposals that need numbers, and wait until a new leadership may give them (R30): [`crate::operators::may_number`].

use super::shared::ProposeFailure;
use super::waiters::Answer;
use crate::state::Command;

/// The most proposals that wait.
const MAX_HELD: usize = 256;

/// What waits, oldest first.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<(Command, Answer)>);

impl Held {
    /// Whether a command gives numbers to operators, ranges or tables. What the balancer decides waits for reports in any case (R29).
    pub fn needs_numbers(command: &Command) -> bool {
        matches!(command, Command::Begin(_) | Command::CreateTable { .. })
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one; those whose asker has given up go.
    pub fn push(&mut self, command: Command, answer: Answer) {
        self.0.retain(|(_, answer)| !answer.is_closed());
        if self.0.len() >= MAX_HELD {
            // Whoever asks may have given up meanwhile.
            answer.send(Err(ProposeFailure::Overloaded)).ok();
        } else {
            self.0.push((command, answer));
        }
    }

    /// All of them, to be proposed. One whose asker has given up is none: it may have been asked for again.
    pub fn take(&mut self) -> Vec<(Command, Answer)> {
        let mut held = std::mem::take(&mut self.0);
        held.retain(|(_, answer)| !answer.is_closed());
        held
    }

    /// The leadership is over: nothing was done.
    pub fn end(&mut self) {
        for (_, answer) in self.0.drain(..) {
            answer.send(Err(ProposeFailure::NotLeader)).ok();
        }
    }
}
