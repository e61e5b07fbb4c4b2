//! Decided entries of the log, applied to the state machine.

use super::handles::Applied;
use super::message::{ProposeFailure, ProposeResult};
use super::run_error::RunError;
use crate::metrics;
use crate::state::{Command, Effect, PlacementState, Proposal, Refusal};
use evenkeel_replicated_log::{Body, Entry, Term};

/// The result of applying some entries.
#[derive(Debug)]
pub(super) struct AppliedEntries {
    /// The results of the proposals by their nonces, in order.
    pub results: Vec<(u64, ProposeResult)>,
    /// Whether all entries concerned only keys of the coordination store.
    pub coordination_only: bool,
    /// The last term that began.
    pub term_began: Option<Term>,
    /// The time of the last effective proposal of this replica's own term, in milliseconds of its
    /// proposer's clock.
    pub own_proposal_ms: Option<u64>,
    /// The size of the entries, in bytes.
    pub bytes: u64,
}

/// Applies entries. `own_term` is the term in which this replica leads or has led last.
///
/// # Errors
/// [`RunError::Stopped`] if an entry cannot be read.
pub(super) fn apply_entries(
    applied: &mut Applied,
    entries: Vec<Entry>,
    own_term: Option<Term>,
) -> Result<AppliedEntries, RunError> {
    let mut result = AppliedEntries {
        results: Vec::new(),
        coordination_only: true,
        term_began: None,
        own_proposal_ms: None,
        bytes: 0,
    };
    for entry in entries {
        applied.index = entry.index;
        match entry.body {
            Body::Data(bytes) => {
                result.bytes += bytes.len() as u64;
                let proposal: Proposal = postcard::from_bytes(&bytes).map_err(|error| {
                    RunError::Stopped(format!("entry {} of the log cannot be read: {error}", entry.index))
                })?;
                let nonce = proposal.nonce;
                result.coordination_only &= matches!(proposal.command, Command::Kv(_));
                // Invariant 1: every replica rejects the proposals of a deposed leader.
                let of_proposal = if entry.effective {
                    if own_term == Some(entry.term) {
                        result.own_proposal_ms = Some(proposal.at_ms);
                    }
                    apply_proposal(&mut applied.state, proposal).map_err(ProposeFailure::Refused)
                } else {
                    Err(ProposeFailure::NotLeader)
                };
                result.results.push((nonce, of_proposal));
            }
            Body::LeaderStart { .. } => {
                result.coordination_only = false;
                applied.term = entry.term;
                result.term_began = Some(entry.term);
            }
            Body::ConfigChange(_) => {}
        }
    }
    Ok(result)
}

fn apply_proposal(state: &mut PlacementState, proposal: Proposal) -> Result<Effect, Refusal> {
    let advanced = match &proposal.command {
        Command::Advance { operator, .. } => Some(*operator),
        _ => None,
    };
    let result = crate::state::apply(state, proposal);
    match (&result, advanced.and_then(|id| state.operators.get(&id))) {
        (Ok(_), Some(operator)) => metrics::advanced(operator),
        (Err(refusal), _) => tracing::debug!(%refusal, "the state machine rejected a proposal"),
        _ => {}
    }
    result
}
