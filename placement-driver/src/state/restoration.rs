//! Restoration from an old copy of the state (R30).
//!
//! The copy lacks every number that was given after it was taken. The shards have seen these
//! numbers and report them, with their tables and routes. Until they have,
//! [`PlacementState::restoring`] is set and no numbers are given.

use super::changes::VersionChange;
use super::effect::Effect;
use super::found::Found;
use super::moment::Moment;
use super::placement_state::PlacementState;
use super::refusal::Refusal;
use super::table_changes;
use evenkeel_host::{Bug, deliberate};

/// Gives the cluster its number. A number that it has stays.
pub(super) fn name_cluster(state: &mut PlacementState, cluster: u32) -> Effect {
    if state.version.cluster() != 0 || cluster == 0 {
        return Effect::Unchanged;
    }
    state.version.incarnation |= u64::from(cluster) << 32;
    state.changes.clear();
    Effect::Applied
}

/// Begins a later restore generation. An equal or earlier one changes nothing.
pub(super) fn begin_incarnation(state: &mut PlacementState, generation: u32) -> Effect {
    let ahead = u64::from(generation.saturating_sub(state.version.generation()));
    if ahead == 0 {
        return Effect::Unchanged;
    }
    state.kv.begin_incarnation(ahead);
    state.version.incarnation += ahead;
    state.restoring = true;
    state.changes.clear();
    Effect::Applied
}

/// Ends the restoration: takes in what the shards have reported, and continues above their numbers.
pub(super) fn reconciled(
    state: &mut PlacementState,
    found: &Found,
    now: Moment,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    if !state.restoring {
        return Ok(Effect::Unchanged);
    }
    table_changes::take(state, &found.tables, &found.routes, now, change)?;
    state.restoring = false;
    if !deliberate(Bug::NumbersReused) {
        state.numbers.raise_above(found.highest, !found.silent.is_empty());
    }
    Ok(Effect::Applied)
}
