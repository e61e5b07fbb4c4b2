//! R14: the time that leaders of shards stamp into their logs is ahead of the true time by no more
//! than clocks may be, as long as a majority of the shard's replicas has had correct clocks.

use std::collections::{BTreeMap, BTreeSet};

/// A clock is correct if it differs from the true one by at most this, in milliseconds.
const RIGHT_MS: u64 = 1_000;
/// How far a replica's clock may be from its group's before the replica follows the group, in
/// milliseconds.
const OFF_MS: u64 = 2_000;
/// By how much clocks run fast or slow at most, in thousandths.
const DRIFT: u64 = 20;
/// How many of a shard's clocks may have been wrong; a shard has at least three replicas.
const MINORITY: usize = 1;

/// See the module.
#[derive(Debug, Default)]
pub struct ClockChecker {
    /// By shard, the machines on which a replica has started with a wrong clock.
    wrong: BTreeMap<u32, BTreeSet<u32>>,
    /// The first violation.
    found: Option<String>,
}

fn shard(machine: u32) -> u32 {
    machine / 10
}

impl ClockChecker {
    /// A process starts on `machine`, whose clock is ahead by `ahead_ms` milliseconds.
    pub fn started(&mut self, machine: u32, ahead_ms: i64) {
        if ahead_ms.unsigned_abs() > RIGHT_MS {
            self.wrong.entry(shard(machine)).or_default().insert(machine);
        }
    }

    /// The replica on `machine` stamps `unix_ms` when the time is `true_ms`, `passed_ms` after the
    /// beginning.
    pub fn stamped(&mut self, machine: u32, unix_ms: u64, true_ms: u64, passed_ms: u64) {
        let bound_ms = RIGHT_MS + OFF_MS + passed_ms * DRIFT / 1_000;
        let judged = self.wrong.get(&shard(machine)).is_none_or(|machines| machines.len() <= MINORITY);
        if judged && unix_ms > true_ms + bound_ms && self.found.is_none() {
            let ahead_ms = unix_ms - true_ms;
            self.found = Some(format!(
                "machine {machine} stamps {ahead_ms} ms ahead, with one clock of its group wrong at most"
            ));
        }
    }

    /// Whether the replica on `machine` can keep its clock, because its group follows the clocks of
    /// the others.
    pub fn outvoted(&self, machine: u32) -> bool {
        shard(machine) > 0 && self.wrong.get(&shard(machine)).is_none_or(|machines| machines.len() <= MINORITY)
    }

    /// The first violation, in words.
    pub fn wrong(&self) -> Option<String> {
        self.found.clone()
    }
}
