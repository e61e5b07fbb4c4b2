//! The fault injector: what happens to the world between the turns of its replicas.

use rand::Rng;

use super::changes;
use super::world::{World, pairs};

/// Injects the faults of one step.
pub(super) fn inject_faults(world: &mut World) {
    if world.rng.random_bool(world.rates.cut) {
        rearrange_cuts(world);
    }
    if world.rng.random_bool(world.rates.lose_session) {
        let keys: Vec<_> = world.sessions.keys().copied().collect();
        if !keys.is_empty() {
            let key = keys[world.rng.random_range(0..keys.len())];
            world.lose_session(key);
        }
    }
    if world.rng.random_bool(world.rates.wipe) {
        let id = world.any();
        changes::lose_disk(world, id);
    }
    if world.rng.random_bool(world.rates.pause) {
        let id = world.any();
        let until_ms = world.now_ms + world.rng.random_range(10..400);
        if let Some(process) = world.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) {
            process.paused_until_ms = until_ms;
        }
    }
}

fn rearrange_cuts(world: &mut World) {
    world.cut.clear();
    let n = world.nodes.len() as u64;
    match world.rng.random_range(0..4) {
        0 => {}
        1 => {
            // Two sides.
            world.stats.count("partitions", 1);
            let side: Vec<bool> = (0..=n).map(|_| world.rng.random_bool(0.5)).collect();
            for (a, b) in pairs(n) {
                if side[a as usize] != side[b as usize] {
                    world.cut.insert((a, b), ());
                    world.cut.insert((b, a), ());
                }
            }
        }
        2 => {
            // One replica hears and is heard by one other only.
            world.stats.count("partitions", 1);
            let (alone, but) = (world.any(), world.any());
            for other in (1..=n).filter(|o| *o != but) {
                world.cut.insert((alone, other), ());
                world.cut.insert((other, alone), ());
            }
        }
        _ => {
            world.stats.count("one-way cuts", 1);
            for (a, b) in pairs(n) {
                if world.rng.random_bool(0.3) {
                    world.cut.insert((a, b), ());
                }
            }
        }
    }
}
