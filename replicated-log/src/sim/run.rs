//! A run: steps with faults, and then the recovery that every group must manage by itself.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::role::Role;

use super::options::{Options, Stats};
use super::oracle::{Checked, ensure};
use super::world::World;
use super::{changes, fault_injector, turn};

/// Simulated time between two steps, in milliseconds.
const STEP_MS: u64 = 2;
/// The time within which a healed group must recover: forty election timeouts, in milliseconds.
const RECOVERY_MS: u64 = 2_000;

/// One run, from its seed to the end of the recovery.
pub(super) fn run(seed: u64, options: &Options) -> Checked<Stats> {
    let world = &mut World::new(seed, options)?;
    while world.now_ms < world.rates.chaos_ms {
        step(world)?;
    }
    world.calm = true;
    world.cut.clear();
    if world.rates.lose_message > 0.0 {
        // Lost AcceptDecides are not sent again by themselves (log rule 3): only new sessions
        // bring them back.
        world.rates.lose_message = 0.0;
        let keys: Vec<_> = world.sessions.keys().copied().collect();
        keys.into_iter().for_each(|key| world.lose_session(key));
    }
    let healed_ms = world.now_ms;
    // Writes continue for a moment, then every replica must reach the same state.
    while world.now_ms < healed_ms + 200 || !recovered(world) {
        step(world)?;
        ensure(world.now_ms < healed_ms + RECOVERY_MS, || format!("not recovered: {}", describe(world)))?;
        if world.now_ms > healed_ms + 200 {
            world.rates.write = 0.01;
            world.rates.read = 0.0;
        }
    }
    world.stats.count("entries", world.oracle.len());
    world.stats.count("rejected entries", world.oracle.rejected_entries);
    world.stats.count("writes lost from memory", world.oracle.lost_from_memory()?);
    Ok(std::mem::take(&mut world.stats))
}

/// Whether one leader serves, all replicas have applied everything, none is behind, and no read
/// waits.
fn recovered(world: &World) -> bool {
    let mut leader = None;
    for node in world.nodes.values().filter(|node| world.is_member(node.id)) {
        let Some(process) = &node.process else {
            return false;
        };
        if process.core.membership().configuration != world.newest_configuration() {
            return false;
        }
        if let Some(term) = process.serves()
            && leader.replace(term).is_some()
        {
            return false;
        }
        // Nothing is on its way either: the outcome of every write is known.
        let resolved = process.core.status().accepted.0 == world.oracle.len();
        let whole = process.state.applied == world.oracle.len() && process.barriers.is_empty() && resolved;
        if !whole || matches!(process.role, Role::Behind { .. }) {
            return false;
        }
    }
    let last = world.oracle.state_at(world.oracle.len()).term;
    leader == Some(last)
}

fn describe(world: &World) -> String {
    let lines = world.nodes.values().map(|node| match &node.process {
        Some(p) => format!(
            "\n  {} in configuration {} of {}: {:?}, applied {} of {}, {} reads wait, {:?}",
            node.id,
            p.core.membership().configuration,
            world.newest_configuration(),
            p.role,
            p.state.applied,
            world.oracle.len(),
            p.barriers.len(),
            p.core.status()
        ),
        None => format!("\n  {}: down", node.id),
    });
    lines.collect()
}

fn step(world: &mut World) -> Checked<()> {
    world.now_ms += STEP_MS;
    if !world.calm {
        fault_injector::inject_faults(world);
        if world.rng.random_bool(world.rates.power_cut) {
            let up: Vec<u64> = world.nodes.values().filter(|n| n.process.is_some()).map(|n| n.id).collect();
            up.into_iter().try_for_each(|id| world.crash(id, "crashes in a power cut"))?;
        }
    }
    changes::prepare_changes(world);
    world.connect();
    if world.known_by.last().is_none_or(|(_, known)| *known < world.oracle.known) {
        world.known_by.push((world.now_ms, world.oracle.known));
    }
    let mut ids: Vec<u64> = world.nodes.keys().copied().collect();
    ids.shuffle(&mut world.rng);
    for id in ids {
        let node = &world.nodes[&id];
        match &node.process {
            // A removed replica is stopped when the others do not need it any more.
            _ if world.calm && !world.is_member(id) => world.retire(id),
            None if world.now_ms >= node.up_at_ms || world.calm => world.start(id)?,
            Some(p) if world.now_ms >= p.paused_until_ms && world.rng.random_bool(0.8) => turn::turn(world, id)?,
            _ => {}
        }
    }
    Ok(())
}
