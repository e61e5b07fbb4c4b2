//! The time that leaders of shards stamp their logs with (R14): while a majority of a shard's replicas have had a clock that was right, it is
//! not ahead of the true one by more than clocks may be.

use std::collections::{BTreeMap, BTreeSet};

/// A clock that is within this of the true one is right, in milliseconds.
const RIGHT_MS: u64 = 1_000;
/// A replica keeps to its own clock that far from its group's, in milliseconds.
const OFF_MS: u64 = 2_000;
/// By how much clocks run fast or slow at most, in thousandths.
const DRIFT: u64 = 20;
/// How many of a shard's replicas may have been wrong; three is the least number there are.
const MINORITY: usize = 1;

/// What was said.
#[derive(Debug, Default)]
pub struct Times {
    /// By shard, the machines on which a replica has begun with a clock that was wrong.
    wrong: BTreeMap<u32, BTreeSet<u32>>,
    /// The first sentence that is wrong.
    found: Option<String>,
}

fn shard(machine: u32) -> u32 {
    machine / 10
}

impl Times {
    /// A process starts on `machine`, whose clock is ahead by so much, in milliseconds.
    pub fn started(&mut self, machine: u32, ahead_ms: i64) {
        if ahead_ms.unsigned_abs() > RIGHT_MS {
            self.wrong.entry(shard(machine)).or_default().insert(machine);
        }
    }

    /// The replica on `machine` says that it is `unix_ms`, when it is `true_ms`, `passed_ms` after the beginning.
    pub fn told(&mut self, machine: u32, unix_ms: u64, true_ms: u64, passed_ms: u64) {
        let bound_ms = RIGHT_MS + OFF_MS + passed_ms * DRIFT / 1_000;
        let judged = self.wrong.get(&shard(machine)).is_none_or(|machines| machines.len() <= MINORITY);
        if judged && unix_ms > true_ms + bound_ms && self.found.is_none() {
            let ahead_ms = unix_ms - true_ms;
            self.found = Some(format!(
                "machine {machine} stamps {ahead_ms} ms ahead, with one clock of its group wrong at most"
            ));
        }
    }

    /// Whether the replica on `machine` can be left with the clock it has: its group goes by those of the others.
    pub fn outvoted(&self, machine: u32) -> bool {
        shard(machine) > 0 && self.wrong.get(&shard(machine)).is_none_or(|machines| machines.len() <= MINORITY)
    }

    /// What is wrong.
    pub fn wrong(&self) -> Option<String> {
        self.found.clone()
    }
}
