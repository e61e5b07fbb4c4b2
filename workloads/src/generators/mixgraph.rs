//! Facebook's mixgraph: the model of a production key-value store of the social graph (FAST 2020).
//!
//! The key space is cut into 30 equal key ranges. A key range's share of the load follows the
//! two-term exponential `a·exp(b·i) + c·exp(d·i)` of its hotness rank `i`, so that the hottest of
//! them gets about four fifths; which range has which rank is shuffled. Within a range a key's rank
//! follows the power function `a·x^b`, and ranks are hashed onto the range's keys. Values follow a
//! generalised Pareto distribution; 85 % of the operations are gets, 14 % puts, 1 % seeks.
//!
//! Two things differ from RocksDB's benchmark, and why: the draws for the key range and for the key
//! within it are independent (there both come from one number, which ties a key to the ranges it
//! can appear in when ranges are small); and a seek reads at most [`MAX_SCAN_ROWS`] rows instead of
//! 10,000, because the published lengths have no finite mean and a handful of huge scans would
//! dominate the measurement. Its slow sine of the request rate is left to the engine's rate.

use std::time::Duration;

use super::key_chooser::KeyChooser;
use super::mixed::{MixedGenerator, OperationMix, SizeDistribution};
use crate::seed::{SeededRandom, mix64};

/// Key ranges of the model; the table needs at least this many rows.
pub const KEY_RANGES: u64 = 30;

/// The most rows that a seek reads.
pub const MAX_SCAN_ROWS: u32 = 100;

/// The largest value, in bytes, as in RocksDB's benchmark.
pub const MAX_VALUE_BYTES: u32 = 1_024;

const RANGE_A: f64 = 14.18;
const RANGE_B: f64 = -2.917;
const RANGE_C: f64 = 0.0164;
const RANGE_D: f64 = -0.080_82;
const KEY_A: f64 = 0.002_312;
const KEY_B: f64 = 0.346_7;
const VALUE_K: f64 = 0.261_5;
const VALUE_SIGMA: f64 = 25.45;
const SCAN_K: f64 = 2.517;
const SCAN_SIGMA: f64 = 14.236;

/// The share of the load that the key range of each hotness rank gets, hottest first; they add up
/// to 1.
pub fn range_shares() -> [f64; KEY_RANGES as usize] {
    let mut shares = [0.0; KEY_RANGES as usize];
    for (index, share) in shares.iter_mut().enumerate() {
        let rank = index as f64 + 1.0;
        *share = RANGE_A * (RANGE_B * rank).exp() + RANGE_C * (RANGE_D * rank).exp();
    }
    let total: f64 = shares.iter().sum();
    shares.map(|share| share / total)
}

/// Keys as the model draws them.
#[derive(Clone, Debug)]
pub struct MixgraphKeys {
    /// For each key range in key order: the upper edge of its part of `[0, 1)`.
    edges: [f64; KEY_RANGES as usize],
    keys_per_range: u64,
}

impl MixgraphKeys {
    /// Over the first `rows` rows; the seed decides which key range is how hot.
    pub fn new(rows: u64, seed: u64) -> Self {
        let mut shares = range_shares();
        let mut random = SeededRandom::new(seed, 0x6d69_7867);
        for last in (1..shares.len()).rev() {
            shares.swap(last, random.below(last as u64 + 1) as usize);
        }
        let mut edges = [0.0; KEY_RANGES as usize];
        let mut sum = 0.0;
        for (edge, share) in edges.iter_mut().zip(shares) {
            sum += share;
            *edge = sum;
        }
        Self { edges, keys_per_range: (rows / KEY_RANGES).max(1) }
    }
}

impl KeyChooser for MixgraphKeys {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        let place = random.unit();
        let range = self.edges.partition_point(|edge| *edge <= place).min(self.edges.len() - 1) as u64;
        let rank = (random.unit_positive() / KEY_A).powf(1.0 / KEY_B).ceil() as u64;
        // The same rank lies elsewhere in each range, or the ranges would be copies of each other.
        let offset = mix64(rank ^ (range << 48)) % self.keys_per_range;
        (range * self.keys_per_range + offset).min(rows - 1)
    }

    fn hottest_share(&self, _rows: u64, _insert_share: f64) -> f64 {
        // Rank 1 gets the power function's value at 1, and its even part of the load of the ranks
        // that are mapped onto the range's keys.
        let within = KEY_A + (1.0 - KEY_A) / self.keys_per_range as f64;
        range_shares()[0] * within
    }
}

/// The whole workload over `rows` rows (at least [`KEY_RANGES`]).
pub fn mixgraph(rows: u64, seed: u64) -> MixedGenerator<MixgraphKeys> {
    let mix = OperationMix { update: 0.14, scan: 0.01, ..OperationMix::default() };
    let values = SizeDistribution::Pareto { k: VALUE_K, sigma: VALUE_SIGMA, max: MAX_VALUE_BYTES };
    let scans = SizeDistribution::Pareto { k: SCAN_K, sigma: SCAN_SIGMA, max: MAX_SCAN_ROWS };
    MixedGenerator::new(MixgraphKeys::new(rows, seed), mix, values, scans, rows, seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::Generator;
    use crate::operation::OperationKind;

    #[test]
    fn key_ranges_get_the_published_shares() {
        let rows = 300_000;
        let mut generator = mixgraph(rows, 1);
        let mut counts = [0f64; KEY_RANGES as usize];
        let draws = 300_000;
        let mut kinds = [0f64; 3];
        for _ in 0..draws {
            let operation = generator.next(Duration::ZERO);
            counts[(operation.key as u64 / (rows / KEY_RANGES)) as usize] += 1.0 / f64::from(draws);
            match operation.kind {
                OperationKind::Read => kinds[0] += 1.0 / f64::from(draws),
                OperationKind::Update => kinds[1] += 1.0 / f64::from(draws),
                _ => kinds[2] += 1.0 / f64::from(draws),
            }
        }
        counts.sort_by(|a, b| b.total_cmp(a));
        let shares = range_shares();
        assert!((0.75..0.82).contains(&shares[0]), "{}", shares[0]);
        for (count, share) in counts.iter().zip(shares) {
            assert!((count - share).abs() < 0.003, "{count} against {share}");
        }
        for (kind, share) in kinds.iter().zip([0.85, 0.14, 0.01]) {
            assert!((kind - share).abs() < 0.003, "{kinds:?}");
        }
    }

    #[test]
    fn the_hottest_key_has_the_share_it_claims() {
        let rows = 30_000;
        let mut generator = mixgraph(rows, 1);
        let mut counts = vec![0u32; rows as usize];
        for _ in 0..500_000 {
            counts[generator.next(Duration::ZERO).key as usize] += 1;
        }
        let hottest = f64::from(counts.iter().copied().max().unwrap_or(0)) / 500_000.0;
        let claimed = generator.hottest_key_share();
        assert!((hottest - claimed).abs() < 0.000_6, "{hottest} against {claimed}");
        // Far below a shard's share: the floor of the imbalance is 1.
        assert!(claimed * 3.0 < 0.01);
    }

    #[test]
    fn the_seed_decides_where_the_load_is() {
        let hottest_range = |seed| {
            let keys = MixgraphKeys::new(30_000, seed);
            let mut previous = 0.0;
            let widths = keys.edges.map(|edge| edge - std::mem::replace(&mut previous, edge));
            (0..widths.len()).max_by(|a, b| widths[*a].total_cmp(&widths[*b]))
        };
        assert_eq!(hottest_range(1), hottest_range(1));
        assert!((2..10).any(|seed| hottest_range(seed) != hottest_range(1)));
    }
}
