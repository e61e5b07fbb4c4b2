//! Membership changes and lost disks in the simulated world.
//!
//! Leaders propose memberships: one replica replaced, two more, fewer, or the same replicas with a
//! new disk of one of them. A disk is lost only where the group must survive that: for a minority
//! of the newest configuration's members, once that configuration has decided an entry (until then
//! the disks of the previous one are needed), and not during a change. In the founding
//! configuration every replica must have seen the disk before (see the notes on the membership in
//! `docs/decisions/replicated-log.md`).

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;

use crate::core::{AfterSync, Input};
use crate::ids::ReplicaId;
use crate::item::Kind;
use crate::membership::{self, Membership};
use crate::role::Role;

use super::oracle::{AppState, Checked, ensure};
use super::simulated_replica::{Node, Process, members};
use super::world::World;
use evenkeel_host::ForgetfulDisk as SimDisk;

/// The most replicas there ever are in a run, members or not.
const MAX_REPLICAS: u64 = 9;

/// Ends the sessions that the turn closes: those of an ended configuration, and those with a
/// peer that has another disk.
pub(super) fn end_sessions(world: &mut World, id: u64, ready: &AfterSync) -> Checked<()> {
    for (peer, _) in &ready.refused {
        let peer = *peer;
        let lost_once = world.nodes[&peer].store != peer;
        ensure(lost_once, || format!("replica {id} refuses replica {peer} with the disk that it always had"))?;
        world.lose_session((id.min(peer), id.max(peer)));
    }
    if ready.entered {
        let began = world.nodes[&id].membership().map_or(0, |membership| membership.began.0);
        let transferred = world.nodes[&id].process.as_ref().is_some_and(|p| p.core.status().compacted.0 == began);
        if let Some(process) = world.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) {
            // The retained entries may be gone with the whole log.
            process.lease = process.lease.filter(|_| !transferred);
        }
        world.stats.count(if transferred { "configurations entered by transfer" } else { "configurations entered" }, 1);
        let keys: Vec<_> = world.sessions.keys().copied().filter(|(a, b)| *a == id || *b == id).collect();
        keys.into_iter().for_each(|key| world.lose_session(key));
    }
    Ok(())
}

/// Replaces a replica's disk by an empty one, if the group must survive that.
pub(super) fn lose_disk(world: &mut World, id: u64) {
    let began = world.oracle.configurations.last().map_or(0, |(began, _)| *began);
    let n = world.newest().len();
    let has_lost = |other: u64, disk: u64| world.nodes[&other].store != if disk == 0 { other } else { disk };
    let others = world.newest().iter().filter(|(other, _)| other.0 != id);
    let lost = others.filter(|(other, member)| has_lost(other.0, member.disk)).count();
    let enough = lost < n - (n / 2 + 1);
    // During a change the group tolerates fewer failures.
    let steady = |node: &Node| node.process.as_ref().is_some_and(|p| p.frozen.is_none() && !p.core.has_barrier());
    let changing = !world.nodes.values().all(steady) || world.oracle.len() <= began;
    if !world.is_member(id) || !enough || changing || !all_have_seen_the_disk_of(world, id) {
        return;
    }
    world.stats.count("disks lost", 1);
    let keys: Vec<_> = world.sessions.keys().copied().filter(|(a, b)| *a == id || *b == id).collect();
    keys.into_iter().for_each(|key| world.lose_session(key));
    world.ends.retain(|(me, ..)| *me != id);
    let (skip_every, prepared_bytes) = world.disks;
    let store = world.next_store;
    world.next_store += 1;
    let up_at_ms = world.now_ms + world.rng.random_range(1..200);
    if let Some(node) = world.nodes.get_mut(&id) {
        node.wipe(SimDisk::new(skip_every, prepared_bytes), store, up_at_ms);
    }
}

fn all_have_seen_the_disk_of(world: &World, id: u64) -> bool {
    let store = world.nodes[&id].store;
    let seen = |node: &Node| node.process.as_ref().is_some_and(|p| p.core.knows_disk(id) == Some(store));
    // A barrier names the disks.
    let named = world.newest()[&ReplicaId(id)].disk == store;
    let others = world.newest().keys().filter(|other| other.0 != id);
    named || (world.newest_configuration() == 1 && others.copied().all(|other| seen(&world.nodes[&other.0])))
}

/// Adds a replica that asks to join.
pub(super) fn add_replica(world: &mut World) -> u64 {
    let id = world.nodes.len() as u64 + 1;
    let (skip_every, prepared_bytes) = world.disks;
    let mut config = world.nodes[&1].config.clone();
    config.me = id;
    let asked = members(world.newest().keys().map(|id| id.0).chain([id]));
    let node = Node {
        id,
        disk: SimDisk::new(skip_every, prepared_bytes),
        config,
        founding: Membership { configuration: 0, members: asked, ..Membership::default() },
        store: id,
        process: None,
        durable: AppState::default(),
        up_at_ms: world.now_ms,
        drift_permille: world.rng.random_range(-50..=50),
        told: Default::default(),
    };
    world.nodes.insert(id, node);
    id
}

/// Starts one more replica now and then, so that a change can add it.
pub(super) fn prepare_changes(world: &mut World) {
    let waiting = world.nodes.keys().filter(|id| !world.is_member(**id)).count();
    if waiting < 2 && (world.nodes.len() as u64) < MAX_REPLICAS && world.rng.random_bool(world.rates.change) {
        add_replica(world);
    }
}

/// The members that a leader asks for: with probability `chance`, or more often if some replica has
/// come with another disk.
pub(super) fn wanted(id: u64, process: &Process, rng: &mut StdRng, chance: f64) -> Option<Input> {
    let Role::Leader { term, .. } = process.role else { return None };
    let status = process.core.status();
    let now = process.core.membership();
    let lost = status.peers.values().any(|peer| peer.other_disk);
    if !rng.random_bool(if lost { 0.05 } else { chance }) {
        return None;
    }
    let mut next = now.members.clone();
    let mut others: Vec<_> = status.applicants.keys().copied().collect();
    if !lost {
        match rng.random_range(0..4) {
            // Others come in the place of some.
            0 | 1 if next.len() > 3 || !others.is_empty() => {
                let leaving: Vec<_> = next.keys().copied().collect();
                next.remove(&leaving[rng.random_range(0..leaving.len())]);
                others.truncate(1);
            }
            // More.
            0..=2 => {}
            // Fewer.
            _ => {
                while next.len() > 3 {
                    next.pop_first();
                }
                others.clear();
            }
        }
        others.truncate(5usize.saturating_sub(next.len()));
        next.extend(members(others.into_iter().map(|id| id.0)));
    }
    let me = (ReplicaId(id), process.store);
    let next = membership::complete(now, me, &next, &BTreeSet::new(), &status).ok()?;
    Some(Input::Propose { kind: Kind::ConfigChange, term, payload: Membership::barrier(&next), tracked: None })
}
