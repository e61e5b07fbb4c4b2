//! Fault injector: decides which fault begins when, and when each ends.
//!
//! It only decides. [`FaultInjector::next`] returns one change at a time, and the world applies it
//! before it asks again, so that the numbers that both draw from the seed keep their order.

use crate::fault::Fault;
use crate::membership_model::MembershipModel;
use crate::process::{self, below, once_in};
use crate::topology::Part;
use std::collections::BTreeMap;

/// Between two faults, in milliseconds, at most.
const BETWEEN_MS: u64 = 900;
/// How long a fault lasts at most, in milliseconds.
const LASTS_MS: u64 = 2_500;
/// Between two changes of a link that comes and goes, in milliseconds, at most.
const FLAP_MS: u64 = 150;
/// The machines and replicas that faults can hit at the moment.
pub struct Targets<'a> {
    /// The replicas that are not switched off for good.
    pub parts: &'a [Part],
    /// The machines, those of the clients included.
    pub machines: &'a [u32],
    /// The members of each group.
    pub membership: &'a MembershipModel,
}

/// A change that the world has to apply.
#[derive(Debug, Clone, Copy)]
pub enum FaultChange {
    /// A fault begins and lasts this many milliseconds, unless it says otherwise itself. The world
    /// confirms by [`FaultInjector::began`], if the fault had an effect.
    Begin(Fault, u64),
    /// A fault ends.
    End(Fault),
    /// A link in one direction is cut.
    Cut(u32, u32),
    /// It works again.
    Restore(u32, u32),
}

/// See the module.
pub struct FaultInjector {
    next_ms: u64,
    between_ms: u64,
    /// The faults that last, by when they end and in which order they began.
    active: BTreeMap<(u64, u64), Fault>,
    count: u64,
    /// Flapping links: when each changes next, and whether it is cut.
    flapping: BTreeMap<(u32, u32), (u64, bool)>,
}

impl FaultInjector {
    /// An injector without an active fault; the seed decides how often faults come.
    pub fn new() -> FaultInjector {
        let between_ms = 100 + below(BETWEEN_MS);
        let (active, flapping) = (BTreeMap::new(), BTreeMap::new());
        FaultInjector { next_ms: process::now_ms(), between_ms, active, count: 0, flapping }
    }

    /// The next change at this time, or `None` if there is no other.
    pub fn next(&mut self, targets: &Targets<'_>) -> Option<FaultChange> {
        let now_ms = process::now_ms();
        if let Some(entry) = self.active.first_entry()
            && entry.key().0 <= now_ms
        {
            let fault = entry.remove();
            if let Fault::Flap(from, to) = fault {
                self.flapping.remove(&(from, to));
            }
            return Some(FaultChange::End(fault));
        }
        if let Some(((from, to), (next_ms, cut))) =
            self.flapping.iter_mut().find(|(_, (next_ms, _))| *next_ms <= now_ms)
        {
            *cut = !*cut;
            *next_ms = now_ms + 1 + below(FLAP_MS);
            return Some(if *cut { FaultChange::Cut(*from, *to) } else { FaultChange::Restore(*from, *to) });
        }
        if now_ms < self.next_ms {
            return None;
        }
        self.next_ms = now_ms + 1 + below(self.between_ms);
        let fault = self.draw(targets)?;
        Some(FaultChange::Begin(fault, 20 + below(LASTS_MS)))
    }

    /// A fault that [`FaultInjector::next`] has returned has begun.
    pub fn began(&mut self, fault: Fault, lasts_ms: u64) {
        let now_ms = process::now_ms();
        let lasts_ms = match fault {
            Fault::Freeze(_, for_ms) => for_ms,
            _ => lasts_ms,
        };
        if let Fault::Flap(from, to) = fault {
            self.flapping.insert((from, to), (now_ms, false));
        }
        self.count += 1;
        self.active.insert((now_ms + lasts_ms, self.count), fault);
    }

    /// Ends all faults; the world has to undo each.
    pub fn end_all(&mut self) -> Vec<Fault> {
        self.flapping.clear();
        std::mem::take(&mut self.active).into_values().collect()
    }

    fn draw(&self, targets: &Targets<'_>) -> Option<Fault> {
        let part = targets.parts[below(targets.parts.len() as u64) as usize];
        let shard = matches!(part, Part::Shard(..));
        let two = || {
            let machines = targets.machines;
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
            30 if targets.membership.may_lose_disk(part.group()) => Fault::DiskLost(part),
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
        // Most of the time a majority stays healthy: a run in which nothing can proceed tests
        // little.
        let hurts = matches!(
            fault,
            Fault::Kill(_) | Fault::PowerCut(_) | Fault::DiskLost(_) | Fault::Freeze(..) | Fault::Isolate(..)
        );
        let ill = |fault: &Fault| match fault {
            Fault::Kill(p) | Fault::PowerCut(p) | Fault::DiskLost(p) | Fault::Freeze(p, _) => {
                p.group() == part.group() && *p != part
            }
            Fault::Isolate(machine, ..) => {
                let of = targets.parts.iter().find(|p| p.machine() == *machine);
                of.is_some_and(|p| p.group() == part.group() && *p != part)
            }
            _ => false,
        };
        (!hurts || !self.active.values().any(ill) || once_in(8)).then_some(fault)
    }
}

impl Default for FaultInjector {
    fn default() -> FaultInjector {
        FaultInjector::new()
    }
}

/// By how much a clock is set wrong: mostly a little, sometimes by more than anything here waits
/// for.
fn drawn_clock() -> i64 {
    let most_ms = [500, 3_000, 15_000, 60_000, 3_600_000][below(5) as usize];
    below(2 * most_ms + 1) as i64 - most_ms as i64
}
