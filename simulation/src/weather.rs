//! Faults: what happens to machines, links and servers, when, and for how long.

use crate::machine::Machine;
use crate::process::{self, below, once_in};
use crate::world::{CLIENTS, Part, World};
use evenkeel_host::Server;
use std::collections::BTreeMap;

/// Between two faults, in milliseconds, at most.
const BETWEEN_MS: u64 = 900;
/// How long a fault lasts at most, in milliseconds.
const LASTS_MS: u64 = 2_500;
/// Between two changes of a link that comes and goes, in milliseconds, at most.
const FLAP_MS: u64 = 150;
/// A process whose clock was off by more than this when it started is started again in the end, in milliseconds, unless it is the only one of
/// its shard: then the others' clocks count, and it must serve as it is (R14).
const CLOCK_OFF_MS: u64 = 5_000;

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
    /// A session of a database server is ended in the middle of its next slow COMMIT.
    CommitEnds(Part),
    /// A database server's data is gone.
    DataLost(Part),
    /// A machine is gone, and comes back with an empty disk.
    DiskLost(Part),
    /// A database server gets slow: every statement takes up to so many milliseconds.
    SlowServer(Part, u64),
    /// A machine's disk gets slow.
    SlowDisk(Part, u64),
    /// A machine's wall clock is set, by so many milliseconds from what is right.
    ClockSet(Part, i64),
    /// A database server takes no more sessions.
    ServerFull(Part),
    /// A database server dies and cannot be started.
    StartRefused(Part),
    /// A database server's disk is full.
    DiskFull(Part),
    /// Statements are cancelled now and then.
    Cancelled(Part),
    /// Nothing gets from the one to the other.
    Cut(u32, u32),
    /// A link comes and goes.
    Flap(u32, u32),
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
            Fault::CommitEnds(_) => "database sessions ended in their COMMIT",
            Fault::DataLost(_) => "databases lost",
            Fault::DiskLost(_) => "disks lost",
            Fault::SlowServer(..) => "database servers slowed",
            Fault::SlowDisk(..) => "disks slowed",
            Fault::ClockSet(..) => "clocks set",
            Fault::Flap(..) => "links flapping",
            Fault::ServerFull(_) => "database servers without a free session",
            Fault::StartRefused(_) => "database servers that do not start",
            Fault::DiskFull(_) => "database servers with a full disk",
            Fault::Cancelled(_) => "database servers whose statements are cancelled",
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
    /// Links that come and go: when each changes next, and whether it is cut.
    flapping: BTreeMap<(u32, u32), (u64, bool)>,
}

impl Weather {
    /// Fair so far.
    pub fn over_a_cluster() -> Weather {
        let between_ms = 100 + below(BETWEEN_MS);
        Weather { next_ms: process::now_ms(), between_ms, over: BTreeMap::new(), count: 0, flapping: BTreeMap::new() }
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
        for ((from, to), (next_ms, cut)) in &mut self.flapping {
            if *next_ms <= now_ms {
                *cut = !*cut;
                *next_ms = now_ms + 1 + below(FLAP_MS);
                match cut {
                    true => world.hardware.net.cut(*from, *to),
                    false => world.hardware.net.mend(*from, *to),
                }
            }
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
            let machines: Vec<u32> = world.machines.keys().copied().collect();
            let machine = |n: u64| machines[(n % machines.len() as u64) as usize];
            let first = below(machines.len() as u64);
            (machine(first), machine(first + 1 + below(machines.len() as u64 - 1)))
        };
        let (a, b) = two();
        let fault = match below(58) {
            0..=7 => Fault::Kill(part),
            8..=11 => Fault::PowerCut(part),
            12..=17 => Fault::Freeze(part, 50 + below(LASTS_MS)),
            18..=21 if shard => Fault::ServerDies(part),
            22..=23 if shard => Fault::SessionEnds(part),
            24..=26 if shard => Fault::CommitEnds(part),
            27..=28 if shard => Fault::ServerFull(part),
            29 if shard => Fault::DataLost(part),
            30 if world.site.borrow().may_lose_disk(part.group()) => Fault::DiskLost(part),
            48..=51 if shard => Fault::SlowServer(part, 2 + below(60)),
            52..=53 if shard => Fault::StartRefused(part),
            54..=55 if shard => Fault::DiskFull(part),
            56..=57 if shard => Fault::Cancelled(part),
            31..=32 => Fault::SlowDisk(part, 2 + below(60)),
            33..=34 => Fault::ClockSet(part, drawn_clock()),
            35..=37 => Fault::Cut(a, b),
            38..=39 => Fault::Flap(a, b),
            40..=43 => Fault::Isolate(part.machine(), once_in(2), once_in(2)),
            _ => Fault::Slow(a, b),
        };
        // Most of the time a majority is well: what happens while nothing can, is seldom interesting.
        let hurts = matches!(
            fault,
            Fault::Kill(_) | Fault::PowerCut(_) | Fault::DiskLost(_) | Fault::Freeze(..) | Fault::Isolate(..)
        );
        let ill = |fault: &Fault| match fault {
            Fault::Kill(p) | Fault::PowerCut(p) | Fault::DiskLost(p) | Fault::Freeze(p, _) => {
                p.group() == part.group() && *p != part
            }
            Fault::Isolate(machine, ..) => {
                let of = world.parts.iter().find(|p| p.machine() == *machine);
                of.is_some_and(|p| p.group() == part.group() && *p != part)
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
            Fault::DiskLost(part) => world.lose_disk(part),
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
            Fault::CommitEnds(part) => world.hardware.engine(part.machine()).end_one_committing(),
            Fault::DataLost(part) => world.hardware.engine(part.machine()).discard(),
            Fault::SlowServer(part, ms) => world.hardware.engine(part.machine()).slow(ms),
            Fault::SlowDisk(part, ms) => world.hardware.slow_disk(part.machine(), ms),
            Fault::ClockSet(part, off_ms) => set_clock(world, part, off_ms),
            Fault::Flap(from, to) => _ = self.flapping.insert((from, to), (process::now_ms(), false)),
            Fault::ServerFull(part) => world.hardware.engine(part.machine()).refuse(true),
            Fault::StartRefused(part) => {
                world.hardware.engine(part.machine()).refuse_start(true);
                world.hardware.engine(part.machine()).crash();
            }
            Fault::DiskFull(part) => world.hardware.engine(part.machine()).fill(true),
            Fault::Cancelled(part) => world.hardware.engine(part.machine()).cancel(true),
            Fault::Cut(from, to) => net.cut(from, to),
            Fault::Isolate(machine, out, into) => {
                for other in world.machines.keys().filter(|other| **other != machine && **other != CLIENTS) {
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
            Fault::Kill(part) | Fault::PowerCut(part) | Fault::DiskLost(part) => {
                if world.machines.get(&part.machine()).is_some_and(|machine| !machine.is_up()) {
                    world.start(part);
                }
            }
            Fault::ServerFull(part) => world.hardware.engine(part.machine()).refuse(false),
            Fault::StartRefused(part) => world.hardware.engine(part.machine()).refuse_start(false),
            Fault::DiskFull(part) => world.hardware.engine(part.machine()).fill(false),
            Fault::Cancelled(part) => world.hardware.engine(part.machine()).cancel(false),
            Fault::Cut(from, to) | Fault::Slow(from, to) => net.mend(from, to),
            Fault::Isolate(machine, ..) => {
                for other in world.machines.keys() {
                    net.mend(machine, *other);
                    net.mend(*other, machine);
                }
            }
            Fault::SlowServer(part, _) => world.hardware.engine(part.machine()).slow(0),
            Fault::SlowDisk(part, _) => world.hardware.slow_disk(part.machine(), 0),
            Fault::ClockSet(part, _) => set_clock(world, part, 0),
            Fault::Flap(from, to) => {
                self.flapping.remove(&(from, to));
                net.mend(from, to);
            }
            Fault::Freeze(..)
            | Fault::ServerDies(_)
            | Fault::SessionEnds(_)
            | Fault::CommitEnds(_)
            | Fault::DataLost(_) => {}
        }
    }

    /// Everything is healed.
    pub fn calm(&mut self, world: &mut World) {
        for fault in std::mem::take(&mut self.over).into_values() {
            self.end(world, fault);
        }
        world.hardware.net.mend_all();
        world.machines.values_mut().for_each(|machine| machine.frozen_until_ms = 0);
        for part in world.parts.clone() {
            let off = |machine: &Machine| machine.clocks.wall_at_start_ms.unsigned_abs() > CLOCK_OFF_MS;
            let outvoted = world.hardware.times().outvoted(part.machine());
            if !outvoted && world.machines.get(&part.machine()).is_some_and(off) {
                world.kill(part, false);
                world.start(part);
            }
        }
    }
}

fn set_clock(world: &mut World, part: Part, off_ms: i64) {
    if let Some(machine) = world.machines.get_mut(&part.machine()) {
        machine.clocks.wall_ms = off_ms;
    }
}

/// By how much a clock is set wrong: mostly a little, sometimes by more than anything here waits for.
fn drawn_clock() -> i64 {
    let most_ms = [500, 3_000, 15_000, 60_000, 3_600_000][below(5) as usize];
    below(2 * most_ms + 1) as i64 - most_ms as i64
}
