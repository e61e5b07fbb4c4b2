//! Faults, applied to the cluster and undone.

use super::cluster::Cluster;
use crate::fault::Fault;
use crate::machine::Machine;
use crate::process::below;
use crate::topology::{CLIENTS, Part};
use evenkeel_host::Server;

/// A process whose clock was off by more than this when it started is started again in the end, in
/// milliseconds. If it is the only such process of its shard it keeps its clock: the clocks of the
/// others count, and it must serve as it is (R14).
const CLOCK_OFF_MS: u64 = 5_000;

/// Begins a fault; `false` if it has no effect.
pub(super) fn begin(cluster: &mut Cluster, fault: Fault) -> bool {
    let net = cluster.hardware.net.clone();
    match fault {
        Fault::Kill(part) | Fault::PowerCut(part) => {
            if !cluster.is_up(part) {
                return false;
            }
            cluster.kill(part, matches!(fault, Fault::PowerCut(_)));
        }
        Fault::DiskLost(part) => cluster.lose_disk(part),
        Fault::Freeze(part, for_ms) => cluster.freeze(part, for_ms),
        Fault::SlowDisk(part, ms) => cluster.hardware.slow_disk(part.machine(), ms),
        Fault::ClockSet(part, off_ms) => set_clock(cluster, part, off_ms),
        Fault::Cut(from, to) => net.cut(from, to),
        Fault::Isolate(machine, out, into) => {
            for other in cluster.machines.keys().filter(|other| **other != machine && **other != CLIENTS) {
                if out || !into {
                    net.cut(machine, *other);
                }
                if into || !out {
                    net.cut(*other, machine);
                }
            }
        }
        Fault::Slow(from, to) => net.slow(from, to, 5 + below(200)),
        // The fault injector cuts and restores the link.
        Fault::Flap(..) => {}
        _ => return begin_on_server(cluster, fault),
    }
    true
}

/// Begins a fault of a database server.
fn begin_on_server(cluster: &Cluster, fault: Fault) -> bool {
    let server = |part: Part| cluster.hardware.postgres(part.machine());
    match fault {
        Fault::ServerDies(part) => server(part).crash(),
        Fault::SessionEnds(part) => return server(part).end_one_session(below(1 << 20)),
        Fault::CommitEnds(part) => server(part).end_one_committing(),
        Fault::DataLost(part) => server(part).discard(),
        Fault::SlowServer(part, ms) => server(part).slow(ms),
        Fault::ServerFull(part) => server(part).refuse(true),
        Fault::StartRefused(part) => {
            server(part).refuse_start(true);
            server(part).crash();
        }
        Fault::DiskFull(part) => server(part).fill(true),
        Fault::Cancelled(part) => server(part).cancel(true),
        _ => {}
    }
    true
}

/// Undoes a fault.
pub(super) fn end(cluster: &mut Cluster, fault: Fault) {
    let net = cluster.hardware.net.clone();
    let server = |cluster: &Cluster, part: Part| cluster.hardware.postgres(part.machine());
    match fault {
        Fault::Kill(part) | Fault::PowerCut(part) | Fault::DiskLost(part) => {
            if cluster.machines.get(&part.machine()).is_some_and(|machine| !machine.is_up()) {
                cluster.start(part);
            }
        }
        Fault::ServerFull(part) => server(cluster, part).refuse(false),
        Fault::StartRefused(part) => server(cluster, part).refuse_start(false),
        Fault::DiskFull(part) => server(cluster, part).fill(false),
        Fault::Cancelled(part) => server(cluster, part).cancel(false),
        Fault::Cut(from, to) | Fault::Slow(from, to) | Fault::Flap(from, to) => net.restore(from, to),
        Fault::Isolate(machine, ..) => {
            for other in cluster.machines.keys() {
                net.restore(machine, *other);
                net.restore(*other, machine);
            }
        }
        Fault::SlowServer(part, _) => server(cluster, part).slow(0),
        Fault::SlowDisk(part, _) => cluster.hardware.slow_disk(part.machine(), 0),
        Fault::ClockSet(part, _) => set_clock(cluster, part, 0),
        Fault::Freeze(..)
        | Fault::ServerDies(_)
        | Fault::SessionEnds(_)
        | Fault::CommitEnds(_)
        | Fault::DataLost(_) => {}
    }
}

/// Restores all links, machines and clocks, after the active faults have ended.
pub(super) fn heal(cluster: &mut Cluster) {
    cluster.hardware.net.restore_all();
    cluster.machines.values_mut().for_each(|machine| machine.frozen_until_ms = 0);
    for part in cluster.parts.clone() {
        let off = |machine: &Machine| machine.clocks.wall_at_start_ms.unsigned_abs() > CLOCK_OFF_MS;
        let outvoted = cluster.hardware.times().outvoted(part.machine());
        if !outvoted && cluster.machines.get(&part.machine()).is_some_and(off) {
            cluster.kill(part, false);
            cluster.start(part);
        }
    }
}

fn set_clock(cluster: &mut Cluster, part: Part, off_ms: i64) {
    if let Some(machine) = cluster.machines.get_mut(&part.machine()) {
        machine.clocks.wall_ms = off_ms;
    }
}
