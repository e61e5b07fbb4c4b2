//! Applying commands: which function carries out which command.

use super::changes::VersionChange;
use super::command::{Command, Proposal};
use super::effect::Effect;
use super::moment::Moment;
use super::placement_state::PlacementState;
use super::refusal::Refusal;
use super::{
    operator_advance, operator_begin, operator_cancel, restoration, route_changes, schema_changes, shard_changes,
    table_changes,
};

/// Applies one proposal. It is a deterministic function of the state and the proposal. After a
/// refusal only time has passed.
pub fn apply(state: &mut PlacementState, proposal: Proposal) -> Result<Effect, Refusal> {
    state.time_ms = state.time_ms.saturating_add(proposal.since_ms);
    let now = Moment { at_ms: proposal.at_ms, time_ms: state.time_ms };
    let mut change = VersionChange::default();
    let effect = apply_command(state, proposal.command, now, &mut change)?;
    if !change.is_empty() {
        state.version.number += 1;
        change.number = state.version.number;
        state.changes.push(change);
    }
    Ok(effect)
}

fn apply_command(
    state: &mut PlacementState,
    command: Command,
    now: Moment,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    match command {
        Command::AddShard(info) => shard_changes::add(state, info, change),
        Command::DrainShard(id) => shard_changes::drain(state, id),
        Command::RemoveShard(id) => shard_changes::remove(state, id, change),
        Command::CreateTable { schema, shard, if_not_exists } => {
            table_changes::create(state, schema, shard, if_not_exists, now)
        }
        Command::Begin(action) => operator_begin::begin(state, action, None, now).map(|id| Effect::Begun(vec![id])),
        Command::Decide(decision) => operator_begin::decide(state, *decision, now),
        Command::Advance { operator, from, transition } => {
            operator_advance::advance(state, operator, from, transition, now, change)
        }
        Command::Cancel(id) => operator_cancel::cancel(state, id, now, change),
        Command::TakeBack(id) => operator_cancel::take_back(state, id, now),
        Command::TakeRoutes(routes) => {
            route_changes::take_routes(state, &routes, now, change).map(|()| Effect::Applied)
        }
        Command::SetBalancer { enabled } => Ok(set_balancer(state, enabled)),
        Command::BeginIncarnation(generation) => Ok(restoration::begin_incarnation(state, generation)),
        Command::NameCluster(cluster) => Ok(restoration::name_cluster(state, cluster)),
        Command::Reconciled(found) => restoration::reconciled(state, &found, now, change),
        Command::TakeTables { tables, routes } => table_changes::take(state, &tables, &routes, now, change),
        Command::TakeMembers { shard, members } => shard_changes::take_members(state, shard, members, change),
        Command::UndrainShard(id) => shard_changes::undrain(state, id, now),
        Command::ChangeSchema { body, home } => schema_changes::change(state, *body, home, now),
        Command::TakeSchema(deltas) => schema_changes::take(state, deltas, change),
        Command::Kv(request) => state.kv.apply(*request, state.time_ms).map(Effect::Kv).map_err(Refusal::Kv),
    }
}

fn set_balancer(state: &mut PlacementState, enabled: bool) -> Effect {
    if state.balancer_enabled.replace(enabled) == Some(enabled) { Effect::Unchanged } else { Effect::Applied }
}
