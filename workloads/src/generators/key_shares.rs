//! The hottest key's share of a sample, for workloads that have no formula for it.
//!
//! The floor of the imbalance is `max(1, N·p)`, where `p` is the share of the hottest single key: a
//! key cannot be split, so the shard that owns it carries at least `p` of the load. Counting every
//! key needs memory for every key; this keeps a fixed number of counters (the Space-Saving
//! algorithm, Metwally et al., ICDT 2005), which is exact for keys that are hot enough to matter.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::generator::Generator;

/// Counters that are kept: a key with more than 1/4096 of the sample is certain to have one.
pub const MAX_COUNTERS: usize = 4_096;

#[derive(Clone, Copy, Debug)]
struct Counter {
    count: u64,
    /// How much of `count` may belong to keys that had this counter before.
    inherited: u64,
}

/// A bounded count of how often keys are touched.
#[derive(Clone, Debug, Default)]
pub struct KeyShares {
    counters: HashMap<i64, Counter>,
    /// (count, key), so that the smallest counter is found at once.
    by_count: BTreeSet<(u64, i64)>,
    total: u64,
}

impl KeyShares {
    /// An empty sample.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one touch of `key`.
    pub fn add(&mut self, key: i64) {
        self.total += 1;
        let before = match self.counters.get(&key) {
            Some(counter) => {
                self.by_count.remove(&(counter.count, key));
                *counter
            }
            None if self.counters.len() < MAX_COUNTERS => Counter { count: 0, inherited: 0 },
            None => match self.by_count.pop_first() {
                Some((count, evicted)) => {
                    self.counters.remove(&evicted);
                    Counter { count, inherited: count }
                }
                None => Counter { count: 0, inherited: 0 },
            },
        };
        let after = Counter { count: before.count + 1, inherited: before.inherited };
        self.counters.insert(key, after);
        self.by_count.insert((after.count, key));
    }

    /// The hottest key's share (0 to 1) of the sample: the part that is certain, so it is never too
    /// high. 0 for an empty sample.
    pub fn hottest_share(&self) -> f64 {
        let hottest = self.counters.values().map(|counter| counter.count - counter.inherited).max().unwrap_or(0);
        if self.total == 0 { 0.0 } else { hottest as f64 / self.total as f64 }
    }
}

/// The hottest key's share among the next `operations` operations of a generator at the start of a
/// run.
pub fn sampled_hottest_share(generator: &mut dyn Generator, operations: u32) -> f64 {
    let mut shares = KeyShares::new();
    for _ in 0..operations {
        shares.add(generator.next(Duration::ZERO).key);
    }
    shares.hottest_share()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SeededRandom;

    #[test]
    fn a_hot_key_is_found_among_more_keys_than_counters() {
        let mut random = SeededRandom::new(1, 0);
        let mut shares = KeyShares::new();
        for _ in 0..200_000 {
            let key = if random.chance(0.1) { -5 } else { random.below(1 << 40) as i64 };
            shares.add(key);
        }
        assert_eq!(shares.counters.len(), MAX_COUNTERS);
        assert!((shares.hottest_share() - 0.1).abs() < 0.003, "{}", shares.hottest_share());
    }

    #[test]
    fn an_empty_sample_has_no_hot_key() {
        assert_eq!(KeyShares::new().hottest_share(), 0.0);
    }
}
