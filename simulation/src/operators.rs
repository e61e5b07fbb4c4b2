//! Requests of an administrator: the shards to begin with, and during the run splits, merges,
//! moves, cancellations, drains and transfers of leadership.
//!
//! The drain of a shard is sometimes cancelled before the shard is empty; a removed shard is added
//! again. If the balancer is on, it splits, moves and merges beside these requests. It carries out
//! drains in any case.

use crate::clients::table::NAME;
use crate::clients::users::Users;
use crate::membership_model::{MachineCommand, MembershipModel};
use crate::process::{below, once_in};
use crate::registry::Registry;
use crate::topology::{Group, shard_info};
use evenkeel_placement_driver::operators::orphaned_copies::unverified;
use evenkeel_placement_driver::replica::ReplicaHandles;
use evenkeel_placement_driver::state::{Action, Command, Effect, PlacementState};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{KeyValue, OperatorId, ShardId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Between two requests, in milliseconds, at most.
const BETWEEN_MS: u64 = 500;
/// The time limit of a request, in milliseconds.
const REQUEST_MS: u64 = 2_000;
/// Ranges are split at multiples of this key.
const SPLIT_EVERY: i64 = 10;
/// One request in this many is about a whole shard.
const DRAIN_IN: u64 = 10;
/// Splits are at this many different keys; accounts lie above them.
const SPLIT_BELOW: u64 = 5;

/// A placement driver that leads, as far as is known.
pub fn leader(registry: &Registry) -> Option<Arc<ReplicaHandles>> {
    registry.read().values().find(|shared| shared.leading().is_some()).cloned()
}

/// Sends a request; `None` if it was not carried out, or its outcome is unknown.
async fn request(registry: &Registry, command: Command) -> Option<Effect> {
    let shared = leader(registry)?;
    evenkeel_host::timeout(Duration::from_millis(REQUEST_MS), shared.propose(command)).await.ok()?.ok()
}

/// Adds the shards.
pub async fn add_shards(registry: &Registry, shards: u32) {
    for shard in 1..=shards {
        while request(registry, Command::AddShard(shard_info(shard))).await.is_none() {
            evenkeel_host::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Sends requests until the faults have ended.
pub async fn send_requests(users: Users) {
    while users.history.borrow().healed_ms.is_none() {
        register_strangers(&users).await;
        if once_in(6) {
            transfer_leadership(&users).await;
        } else if let Some(command) = leader(&users.registry).and_then(|shared| draw(&users, &shared)) {
            let kind = drain_of(&command);
            let effect = request(&users.registry, command).await;
            if let (Some(kind), Some(Effect::Applied)) = (kind, effect) {
                users.membership.borrow_mut().count(kind);
            }
        }
        evenkeel_host::sleep(Duration::from_millis(below(BETWEEN_MS))).await;
    }
    // The operators of the balancer end, and it begins no others, so that the last look is final.
    while request(&users.registry, Command::SetBalancer { enabled: false }).await.is_none() {
        evenkeel_host::sleep(Duration::from_millis(below(BETWEEN_MS))).await;
    }
}

/// Registers shards that a restored placement driver does not know and that own ranges, as an
/// administrator does.
pub async fn register_strangers(users: &Users) {
    let strangers: Vec<ShardId> = {
        let Some(shared) = leader(&users.registry) else { return };
        let leading = shared.leading();
        leading.iter().flat_map(|leading| leading.balancer.load.strangers.keys().copied()).collect()
    };
    for id in strangers.into_iter().filter(|_| users.membership.borrow().restored) {
        let replicas = users.membership.borrow().addresses(id);
        if request(&users.registry, Command::AddShard(ShardInfo { id, replicas })).await.is_some() {
            users.membership.borrow_mut().count("shards registered with a restored placement driver");
        }
    }
}

/// The kind of a request about a whole shard; `None` for other requests.
fn drain_of(command: &Command) -> Option<&'static str> {
    match command {
        Command::DrainShard(_) => Some("drains begun"),
        Command::UndrainShard(_) => Some("drains taken back"),
        Command::AddShard(_) => Some("shards drained, removed and added again"),
        _ => None,
    }
}

/// Switches off machines that came, left again and still run: they may never have heard that they
/// were members.
pub fn clear_away(users: &Users) {
    let mut membership = users.membership.borrow_mut();
    let late: Vec<_> = membership.lingering().filter(|part| membership.configured(*part).1).collect();
    late.into_iter().for_each(|part| membership.command(MachineCommand::SwitchOff(part)));
}

/// Unfinished work, by the state of one placement driver: an operator, a drain, or a change of a
/// shard's replicas of which it has not heard.
pub fn unfinished(shared: &ReplicaHandles, membership: &MembershipModel) -> Option<String> {
    let applied = shared.applied();
    let state = &applied.state;
    if state.restoring {
        let missing = shared.leading().as_ref().map(|leading| leading.missing.clone());
        return Some(format!("it is being restored: {missing:?}"));
    }
    if let Some(operator) = state.running().next() {
        let trouble = match &*shared.leading() {
            Some(leading) => leading.controller.trouble(operator.id).unwrap_or("no trouble").to_string(),
            None => format!("does not lead, {:?}", shared.log.role().borrow()),
        };
        return Some(format!("{:?} at {:?}: {trouble}", operator.work, operator.step));
    }
    state.shards.values().find_map(|shard| {
        let replicas = membership.replicas(Group::Shard(shard.info.id));
        if shard.draining {
            let ranges = state.range_counts().get(&shard.info.id).copied().unwrap_or(0);
            return Some(format!("shard {} is draining and has {ranges} ranges", shard.info.id));
        }
        let differs = !shard.info.replicas.keys().eq(&replicas);
        differs.then(|| format!("shard {} has the replicas {replicas:?}, not {:?}", shard.info.id, shard.info.replicas))
    })
}

/// Deletes copies that moves could not verify, as an administrator does after a look at them.
pub async fn purge_copies(users: &Users, purged: &mut BTreeSet<OperatorId>) {
    let Some(shared) = leader(&users.registry) else { return };
    let kept: Vec<_> = unverified(&shared.applied().state).filter(|(operator, _)| !purged.contains(operator)).collect();
    for (operator, source) in kept {
        if let Ok(ControlReply::Done) = ask(users, source, &ControlRequest::Purge { operator }).await {
            purged.insert(operator);
            users.history.borrow_mut().count("copies deleted by people");
        }
    }
}

/// Draws a request that is possible now.
fn draw(users: &Users, shared: &ReplicaHandles) -> Option<Command> {
    let applied = shared.applied();
    let state = &applied.state;
    if once_in(DRAIN_IN) {
        return draw_drain(users, state);
    }
    let schema = &state.table_named(NAME)?.schema;
    let ranges = state.ranges_of(schema.id);
    let at = below(ranges.len() as u64) as usize;
    let range = ranges.get(at)?;
    Some(match below(10) {
        0..=2 => {
            let key = KeyValue::Int(SPLIT_EVERY * (1 + below(SPLIT_BELOW) as i64));
            let key = schema.codec().encode(&[key]).ok()?;
            let range = ranges.iter().find(|range| range.route.interval.splits_at(&key))?;
            Command::Begin(Action::Split { range: range.route.range, epoch: None, at: vec![key] })
        }
        3 => {
            let right = ranges.get(at + 1)?;
            let of = |range: &evenkeel_placement_driver::state::Range| (range.route.range, range.route.epoch);
            Command::Begin(Action::Merge { left: of(range), right: of(right) })
        }
        4 => Command::Cancel(OperatorId(state.next_operator().0.saturating_sub(1 + below(2)))),
        _ => {
            let to = ShardId(1 + below(users.shards.into()) as u32);
            Command::Begin(Action::Move { range: range.route.range, epoch: None, to })
        }
    })
}

/// Drains a shard, cancels its drain, or adds it again after it was removed.
fn draw_drain(users: &Users, state: &PlacementState) -> Option<Command> {
    let busy = |id: &ShardId| state.shards.get(id).is_none_or(|shard| shard.draining);
    let all = (1..=users.shards).map(ShardId);
    let counts = state.range_counts();
    let owns = |id: &ShardId| counts.get(id).is_some_and(|ranges| *ranges > 0);
    // One shard at a time, so that the others keep working; and only a shard that owns ranges.
    match all.clone().find(busy) {
        Some(id) if state.shards.contains_key(&id) => Some(Command::UndrainShard(id)),
        Some(id) => Some(Command::AddShard(ShardInfo { id, replicas: users.membership.borrow().addresses(id) })),
        None => all.filter(owns).nth(below(users.shards.into()) as usize).map(Command::DrainShard),
    }
}

/// Has a replica lead its shard (log rule 15).
async fn transfer_leadership(users: &Users) {
    let shard = ShardId(1 + below(users.shards.into()) as u32);
    let replicas = users.membership.borrow().addresses(shard);
    let to = replicas.keys().nth(below(replicas.len() as u64) as usize).copied();
    // Whether it came about does not matter here.
    let _ = ask(users, shard, &ControlRequest::TransferLeadership { to }).await;
}

/// Asks the leader of a shard.
///
/// # Errors
/// Why there is no answer.
pub async fn ask(users: &Users, shard: ShardId, request: &ControlRequest) -> Result<ControlReply, String> {
    let replicas = users.membership.borrow().addresses(shard);
    users.calls.control(replicas, request).await
}
