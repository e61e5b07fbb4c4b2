//! A generator put together from a chooser of keys, a mix of operations and two distributions of
//! sizes.

use std::time::Duration;

use super::generator::Generator;
use super::key_chooser::KeyChooser;
use crate::operation::{Operation, OperationKind};
use crate::seed::{SeededRandom, mix_pair};

/// Streams of one seed, one per purpose.
const STREAM_OPERATIONS: u64 = 1;
const STREAM_INITIAL_VALUES: u64 = 2;

/// Shares of the kinds of operation. Reads get the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperationMix {
    /// Share of updates.
    pub update: f64,
    /// Share of inserts at the end of the key space.
    pub insert: f64,
    /// Share of scans.
    pub scan: f64,
    /// Share of read-modify-writes.
    pub read_modify_write: f64,
}

/// Sizes from a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SizeDistribution {
    /// Always the same.
    Fixed(u32),
    /// Every size from 1 to `max` alike.
    Uniform {
        /// The greatest size.
        max: u32,
    },
    /// Generalised Pareto with location 0, rounded up, at least 1, and clamped to `max`.
    Pareto {
        /// Shape.
        k: f64,
        /// Scale.
        sigma: f64,
        /// The greatest size; what the distribution puts above it gets this size.
        max: u32,
    },
}

impl SizeDistribution {
    fn draw(&self, random: &mut SeededRandom) -> u32 {
        match *self {
            Self::Fixed(size) => size,
            Self::Uniform { max } => 1 + random.below(u64::from(max.max(1))) as u32,
            Self::Pareto { k, sigma, max } => {
                let u = random.unit_positive();
                let size = if k == 0.0 { -sigma * u.ln() } else { sigma * (u.powf(-k) - 1.0) / k };
                // A float cast saturates, so an infinite tail draw becomes the greatest size.
                (size.ceil() as u32).clamp(1, max.max(1))
            }
        }
    }
}

/// A generator put together from its parts.
pub struct MixedGenerator<C> {
    chooser: C,
    mix: OperationMix,
    values: SizeDistribution,
    scans: SizeDistribution,
    initial_rows: u64,
    rows: u64,
    seed: u64,
    random: SeededRandom,
}

impl<C: KeyChooser> MixedGenerator<C> {
    /// A generator over a table that starts with `rows` rows (at least 1 is assumed). `values` is
    /// in bytes, `scans` in rows.
    pub fn new(
        chooser: C,
        mix: OperationMix,
        values: SizeDistribution,
        scans: SizeDistribution,
        rows: u64,
        seed: u64,
    ) -> Self {
        let rows = rows.clamp(1, i64::MAX as u64 / 2);
        let random = SeededRandom::new(seed, STREAM_OPERATIONS);
        Self { chooser, mix, values, scans, initial_rows: rows, rows, seed, random }
    }

    fn draw_kind(&mut self) -> OperationKind {
        let mut u = self.random.unit();
        let mut falls_in = |share: f64| {
            let hit = u < share;
            u -= share;
            hit
        };
        if falls_in(self.mix.update) {
            OperationKind::Update
        } else if falls_in(self.mix.insert) {
            OperationKind::Insert
        } else if falls_in(self.mix.scan) {
            OperationKind::Scan { limit_rows: self.scans.draw(&mut self.random) }
        } else if falls_in(self.mix.read_modify_write) {
            OperationKind::ReadModifyWrite
        } else {
            OperationKind::Read
        }
    }
}

impl<C: KeyChooser> Generator for MixedGenerator<C> {
    fn next(&mut self, now: Duration) -> Operation {
        let kind = self.draw_kind();
        let key = if kind == OperationKind::Insert {
            self.rows += 1;
            self.rows - 1
        } else {
            self.chooser.choose(&mut self.random, now, self.rows).min(self.rows - 1)
        };
        let value_bytes = if kind.writes() { self.values.draw(&mut self.random) } else { 0 };
        Operation { kind, key: key as i64, value_bytes }
    }

    fn initial_rows(&self) -> u64 {
        self.initial_rows
    }

    fn initial_value_bytes(&self, key: i64) -> u32 {
        let mut random = SeededRandom::new(mix_pair(self.seed, key as u64), STREAM_INITIAL_VALUES);
        self.values.draw(&mut random)
    }

    fn hottest_key_share(&self) -> f64 {
        (1.0 - self.mix.insert) * self.chooser.hottest_share(self.initial_rows, self.mix.insert)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_chooser::Uniform;
    use super::*;

    #[test]
    fn pareto_values_have_the_published_mean_and_median() {
        // Generalised Pareto: mean sigma / (1 - k), median sigma * (2^k - 1) / k; rounding up adds
        // about one half.
        let values = SizeDistribution::Pareto { k: 0.2615, sigma: 25.45, max: 1 << 20 };
        let mut random = SeededRandom::new(3, 0);
        let mut draws: Vec<u32> = (0..200_000).map(|_| values.draw(&mut random)).collect();
        let mean = draws.iter().map(|v| f64::from(*v)).sum::<f64>() / draws.len() as f64;
        assert!((mean - (25.45 / (1.0 - 0.2615) + 0.5)).abs() < 0.7, "mean {mean}");
        draws.sort_unstable();
        let median = f64::from(draws[draws.len() / 2]);
        let expected = 25.45 * (2f64.powf(0.2615) - 1.0) / 0.2615 + 0.5;
        assert!((median - expected).abs() <= 1.0, "median {median}, expected {expected}");
        assert!(draws[0] >= 1);
    }

    #[test]
    fn the_mix_is_kept_and_inserts_append() {
        let mix = OperationMix { update: 0.2, insert: 0.1, scan: 0.05, read_modify_write: 0.15 };
        let sizes = SizeDistribution::Fixed(10);
        let mut generator = MixedGenerator::new(Uniform, mix, sizes, SizeDistribution::Uniform { max: 9 }, 1_000, 5);
        let mut counts = [0f64; 5];
        let mut next_key = 1_000;
        for _ in 0..100_000 {
            let operation = generator.next(Duration::ZERO);
            assert_eq!(operation.kind.writes(), operation.value_bytes == 10);
            let slot = match operation.kind {
                OperationKind::Read => 0,
                OperationKind::Update => 1,
                OperationKind::Insert => {
                    assert_eq!(operation.key, next_key);
                    next_key += 1;
                    2
                }
                OperationKind::Scan { limit_rows } => {
                    assert!((1..=9).contains(&limit_rows));
                    3
                }
                OperationKind::ReadModifyWrite => 4,
                OperationKind::Delete => unreachable!("no mix asks for deletes"),
            };
            counts[slot] += 1e-5;
            assert!(operation.key < next_key);
        }
        for (count, share) in counts.iter().zip([0.5, 0.2, 0.1, 0.05, 0.15]) {
            assert!((count - share).abs() < 0.006, "{counts:?}");
        }
    }

    #[test]
    fn an_initial_value_depends_on_seed_and_key_only() {
        let make = |seed| {
            let values = SizeDistribution::Uniform { max: 1 << 30 };
            MixedGenerator::new(Uniform, OperationMix::default(), values, SizeDistribution::Fixed(1), 10, seed)
        };
        let mut used = make(1);
        used.next(Duration::ZERO);
        assert_eq!(used.initial_value_bytes(4), make(1).initial_value_bytes(4));
        assert_ne!(make(1).initial_value_bytes(4), make(1).initial_value_bytes(5));
        assert_ne!(make(1).initial_value_bytes(4), make(2).initial_value_bytes(4));
    }
}
