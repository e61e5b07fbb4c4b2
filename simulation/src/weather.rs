//! Faults: what happens to machines, links and servers, when, and for how long.

use crate::process::{self, below, once_in};
use crate::world::{CLIENTS, Part, World};
use std::collections::BTreeMap;

/// Between two faults, in milliseconds, at most.
const BETWEEN_MS: u64 = 900;
/// How long a fault lasts at most, in milliseconds.
const LASTS_MS: u64 = 2_500;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A process is killed; its database server lives on.
    Kill(Part),
    /// A machine loses power.
    PowerCut(Part),
    /// A machine stands still for so long.
    Freeze(Part, u64),
    /// A database server dies.
    ServerDies(Part),
    /// A session of a database server is ended.
    SessionEnds(Part),
    /// A database server takes no more sessions.
    ServerFull(Part),
    /// Nothing gets from the one to the other.
    Cut(u32, u32),
    /// A machine hears nobody, or nobody hears it, or both.
    Isolate(u32, bool, bool),
    /// A link gets slow.
    Slow(u32, u32),
}

impl Fault {
    /// Its kind.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill(_) => "processes killed",
            Fault::PowerCut(_) => "power cuts",
            Fault::Freeze(..) => "machines frozen",
            Fault::ServerDies(_) => "database servers killed",
            Fault::SessionEnds(_) => "database sessions ended",
            Fault::ServerFull(_) => "database servers full",
            Fault::Cut(..) => "links cut",
            Fault::Isolate(..) => "machines cut off",
            Fault::Slow(..) => "links slowed",
        }
    }
}

/// The weather of a run.
pub struct Weather {
    next_ms: u64,
    between_ms: u64,
    /// What ends when.
    over: BTreeMap<(u64, u64), Fault>,
    count: u64,
    machines: Vec<u32>,
}

impl Weather {
    /// The weather over a cluster.
    pub fn new(world: &World) -> Weather {
        let machines = world.machines.keys().copied().collect();
        let between_ms = 100 + below(BETWEEN_MS);
        Weather { next_ms: process::now_ms(), between_ms, over: BTreeMap::new(), count: 0, machines }
    }

    /// What happens now.
    pub fn blow(&mut self, world: &mut World) {
        let now_ms = process::now_ms();
        while let Some(entry) = self.over.first_entry()
            && entry.key().0 <= now_ms
        {
            let fault = entry.remove();
            self.end(world, fault);
        }
        if now_ms < self.next_ms {
            return;
        }
        self.next_ms = now_ms + 1 + below(self.between_ms);
        if let Some(fault) = self.draw(world) {
            self.begin(world, fault);
        }
    }

    fn draw(&self, world: &World) -> Option<Fault> {
        let part = world.parts[below(world.parts.len() as u64) as usize];
        let shard = matches!(part, Part::Shard(..));
        let two = || {
            let machine = |n: u64| self.machines[(n % self.machines.len() as u64) as usize];
            let first = below(self.machines.len() as u64);
            (machine(first), machine(first + 1 + below(self.machines.len() as u64 - 1)))
        };
        let (a, b) = two();
        let fault = match below(20) {
            0..=3 => Fault::Kill(part),
            4..=5 => Fault::PowerCut(part),
            6..=8 => Fault::Freeze(part, 50 + below(LASTS_MS)),
            9..=10 if shard => Fault::ServerDies(part),
            11..=12 if shard => Fault::SessionEnds(part),
            13 if shard => Fault::ServerFull(part),
            14..=15 => Fault::Cut(a, b),
            16..=17 => Fault::Isolate(part.machine(), once_in(2), once_in(2)),
            _ => Fault::Slow(a, b),
        };
        // Most of the time a majority is well: what happens while nothing can, is seldom interesting.
        let hurts = matches!(fault, Fault::Kill(_) | Fault::PowerCut(_) | Fault::Freeze(..) | Fault::Isolate(..));
        let ill = |fault: &Fault| match fault {
            Fault::Kill(p) | Fault::PowerCut(p) | Fault::Freeze(p, _) => same_group(*p, part) && *p != part,
            Fault::Isolate(machine, ..) => {
                let of = world.parts.iter().find(|p| p.machine() == *machine);
                of.is_some_and(|p| same_group(*p, part) && *p != part)
            }
            _ => false,
        };
        (!hurts || !self.over.values().any(ill) || once_in(8)).then_some(fault)
    }

    fn begin(&mut self, world: &mut World, fault: Fault) {
        let up = |world: &World, part: Part| world.machines.get(&part.machine()).is_some_and(|m| m.is_up());
        let net = world.hardware.net.clone();
        let mut lasts_ms = 20 + below(LASTS_MS);
        match fault {
            Fault::Kill(part) | Fault::PowerCut(part) => {
                if !up(world, part) {
                    return;
                }
                world.kill(part, matches!(fault, Fault::PowerCut(_)));
            }
            Fault::Freeze(part, for_ms) => {
                if let Some(machine) = world.machines.get_mut(&part.machine()) {
                    machine.frozen_until_ms = process::now_ms() + for_ms;
                }
                lasts_ms = for_ms;
            }
            Fault::ServerDies(part) => world.hardware.engine(part.machine()).crash(),
            Fault::SessionEnds(part) => {
                if !world.hardware.engine(part.machine()).end_one_session(below(1 << 20)) {
                    return;
                }
            }
            Fault::ServerFull(part) => world.hardware.engine(part.machine()).refuse(true),
            Fault::Cut(from, to) => net.cut(from, to),
            Fault::Isolate(machine, out, into) => {
                for other in self.machines.iter().filter(|other| **other != machine && **other != CLIENTS) {
                    if out || !into {
                        net.cut(machine, *other);
                    }
                    if into || !out {
                        net.cut(*other, machine);
                    }
                }
            }
            Fault::Slow(from, to) => net.slow(from, to, 5 + below(200)),
        }
        world.note(fault);
        self.count += 1;
        self.over.insert((process::now_ms() + lasts_ms, self.count), fault);
    }

    fn end(&mut self, world: &mut World, fault: Fault) {
        let net = world.hardware.net.clone();
        match fault {
            Fault::Kill(part) | Fault::PowerCut(part) => {
                if world.machines.get(&part.machine()).is_some_and(|machine| !machine.is_up()) {
                    world.start(part);
                }
            }
            Fault::ServerFull(part) => world.hardware.engine(part.machine()).refuse(false),
            Fault::Cut(from, to) | Fault::Slow(from, to) => net.mend(from, to),
            Fault::Isolate(machine, ..) => {
                for other in &self.machines {
                    net.mend(machine, *other);
                    net.mend(*other, machine);
                }
            }
            Fault::Freeze(..) | Fault::ServerDies(_) | Fault::SessionEnds(_) => {}
        }
    }

    /// Everything is healed.
    pub fn calm(&mut self, world: &mut World) {
        for fault in std::mem::take(&mut self.over).into_values() {
            self.end(world, fault);
        }
        world.hardware.net.mend_all();
        world.machines.values_mut().for_each(|machine| machine.frozen_until_ms = 0);
    }
}

fn same_group(a: Part, b: Part) -> bool {
    match (a, b) {
        (Part::PlacementDriver(_), Part::PlacementDriver(_)) => true,
        (Part::Shard(a, _), Part::Shard(b, _)) => a == b,
        _ => false,
    }
}
