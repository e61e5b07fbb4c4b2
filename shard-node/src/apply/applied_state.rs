//! The state machine as of the last applied entry.

use crate::state_machine::ShardState;
use evenkeel_replicated_log::Term;

/// The state machine and the term in force, as of the last applied entry.
pub(super) struct AppliedState {
    /// The state machine.
    pub(super) state: ShardState,
    /// The term.
    pub(super) term: Term,
}
