//! Access of handlers to the leader: its memory, and proposals with a time limit.

use super::failure::ApiFailure;
use super::problem::{self, ApiProblem};
use crate::replica::{LeaderState, ProposeFailure, ReplicaHandles};
use crate::state::{Command, Effect, PlacementState};
use std::time::Duration;

/// How long a request waits for the result of its command, in milliseconds.
const OUTCOME_MS: u64 = 10_000;

/// Reads the state and the leader's memory. The event loop waits meanwhile: `read` takes only
/// copies of bounded size, and the caller builds its answer from them.
pub(super) fn with_leader<T>(
    handles: &ReplicaHandles,
    read: impl FnOnce(&PlacementState, &LeaderState) -> T,
) -> Result<T, ApiFailure> {
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
    Ok(read(&handles.applied().state, leading))
}

/// Proposes a command and waits for its result, for a bounded time.
pub(super) async fn propose(handles: &ReplicaHandles, command: Command) -> Result<Effect, ApiProblem> {
    match evenkeel_host::timeout(Duration::from_millis(OUTCOME_MS), handles.propose(command)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ProposeFailure::Unknown.into()),
    }
}

/// The problem that a command had an effect of another kind.
pub(super) fn unexpected(effect: &Effect) -> ApiProblem {
    problem::INTERNAL.because(format!("the command had the effect {effect:?}"))
}
