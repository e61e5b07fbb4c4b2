//! Commands about shards: registration, draining, removal, and changes of their replicas.

use super::changes::VersionChange;
use super::effect::Effect;
use super::limits::{MAX_REPLICAS, MAX_SHARDS};
use super::moment::Moment;
use super::operator_status::{Operator, Status, Step};
use super::placement_state::PlacementState;
use super::refusal::Refusal;
use super::shard::Shard;
use super::work::Work;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::report::ShardMembers;
use evenkeel_protocol::routing::ShardInfo;

/// Names that a sentence lists, at most.
const SHOWN_NAMES: usize = 5;

/// Registers a shard, or changes the addresses of its replicas.
pub(super) fn add(state: &mut PlacementState, info: ShardInfo, change: &mut VersionChange) -> Result<Effect, Refusal> {
    if info.replicas.is_empty() || info.replicas.len() > MAX_REPLICAS {
        let found = info.replicas.len();
        return Err(Refusal::TooMany(format!("a shard has 1 to {MAX_REPLICAS} replicas, {found} given")));
    }
    if state.shards.len() >= MAX_SHARDS && !state.shards.contains_key(&info.id) {
        return Err(Refusal::TooMany(format!("there are {MAX_SHARDS} shards already")));
    }
    // The shard's own report of its replicas is later than a registration.
    let known = state.shards.get(&info.id).filter(|known| known.epoch > 0);
    let (info, epoch) = known.map_or((info, 0), |known| (known.info.clone(), known.epoch));
    // A script that registers the shards at every start must not undo an administrator's decision.
    let draining = state.shards.get(&info.id).is_some_and(|known| known.draining);
    if state.shards.get(&info.id).is_some_and(|known| known.lost) {
        return Err(Refusal::Lost(info.id));
    }
    let shard = Shard { info, epoch, draining, lost: false };
    if state.shards.get(&shard.info.id) == Some(&shard) {
        return Ok(Effect::Unchanged);
    }
    change.shards.insert(shard.info.id);
    state.shards.insert(shard.info.id, shard);
    Ok(Effect::Applied)
}

/// Takes in the replicas of a shard by its own log.
pub(super) fn take_members(
    state: &mut PlacementState,
    id: ShardId,
    members: ShardMembers,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    let found = members.replicas.len();
    if found == 0 || found > MAX_REPLICAS {
        return Err(Refusal::TooMany(format!("a shard has 1 to {MAX_REPLICAS} replicas, {found} told")));
    }
    let shard = state.shards.get_mut(&id).ok_or(Refusal::UnknownShard(id))?;
    if members.epoch <= shard.epoch {
        return Ok(Effect::Unchanged);
    }
    shard.epoch = members.epoch;
    shard.info.replicas = members.replicas;
    change.shards.insert(id);
    Ok(Effect::Applied)
}

/// Begins to empty a shard. At least one active shard remains.
pub(super) fn drain(state: &mut PlacementState, id: ShardId) -> Result<Effect, Refusal> {
    let active = state.shards.values().filter(|shard| !shard.draining).count();
    let shard = state.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
    if shard.draining {
        return Ok(Effect::Unchanged);
    }
    if active <= 1 {
        return Err(Refusal::LastShard(id));
    }
    // Not done: moving pinned tables as a whole. A drain would never end.
    let pinned = state.pinned_on(id);
    if !pinned.is_empty() {
        return Err(Refusal::HasPinned { shard: id, tables: shown(&pinned) });
    }
    if let Some(shard) = state.shards.get_mut(&id) {
        shard.draining = true;
    }
    Ok(Effect::Applied)
}

/// The first of these names, for a sentence.
fn shown(names: &[&str]) -> String {
    let more = names.len().saturating_sub(SHOWN_NAMES);
    let first = names.iter().take(SHOWN_NAMES).copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

/// Takes a draining shard back into service, and cancels the moves that the drain has begun. Moves
/// that an administrator has asked for go on.
pub(super) fn undrain(state: &mut PlacementState, id: ShardId, now: Moment) -> Result<Effect, Refusal> {
    let shard = state.shards.get_mut(&id).ok_or(Refusal::UnknownShard(id))?;
    if !std::mem::take(&mut shard.draining) {
        return Err(Refusal::NotDraining(id));
    }
    let leaves = |o: &Operator| matches!(o.work, Work::Move { from, .. } if from == id) && o.decision.is_some();
    for operator in state.operators.values_mut().filter(|o| leaves(o) && o.cancellable()) {
        operator.detail = Some(format!("shard {id} is no longer being drained"));
        operator.enter(Step::Cancel, Status::Cancelling, now);
    }
    Ok(Effect::Applied)
}

/// Removes a drained shard.
pub(super) fn remove(state: &mut PlacementState, id: ShardId, change: &mut VersionChange) -> Result<Effect, Refusal> {
    let shard = state.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
    if !shard.draining || !state.is_empty(id) {
        return Err(Refusal::NotEmpty(id));
    }
    state.shards.remove(&id);
    change.removed_shards.insert(id);
    Ok(Effect::Applied)
}

/// The shard, if ranges may come to it.
pub(super) fn active(state: &PlacementState, id: ShardId) -> Result<&Shard, Refusal> {
    let shard = state.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
    match (shard.lost, shard.draining) {
        (true, _) => Err(Refusal::Lost(id)),
        (_, true) => Err(Refusal::Draining(id)),
        _ => Ok(shard),
    }
}
