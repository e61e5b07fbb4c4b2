//! Zipf with any exponent, also 1 and above, by rejection inversion (Hörmann and Derflinger 1996).
//!
//! The envelope is the integral of the density `x^-s` over cells centred on the integers; a draw
//! inverts the integral and is accepted with a probability that stays above one half for every
//! exponent. Constant time and memory, so a table of any size costs nothing to set up.

use std::time::Duration;

use super::key_chooser::KeyChooser;
use super::zipfian::harmonic;
use crate::seed::{SeededRandom, mix_pair};

/// `(exp(x) - 1) / x`, also at 0.
fn expm1_ratio(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// `ln(1 + x) / x`, also at 0.
fn ln1p_ratio(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

/// Ranks `1 ..= items`, rank `i` in proportion to `i^-exponent`.
#[derive(Clone, Debug)]
pub struct ZipfRanks {
    exponent: f64,
    items: u64,
    /// Integral at the left edge of the first cell, less the first rank's whole weight.
    integral_first: f64,
    /// Integral at the right edge of the last cell.
    integral_last: f64,
    /// Draws closer to their rank than this are accepted without computing a density.
    shortcut: f64,
}

impl ZipfRanks {
    /// Over `items` items (at least 1). The exponent must be finite and not negative; other values
    /// are taken as 0.
    pub fn new(items: u64, exponent: f64) -> Self {
        let exponent = if exponent.is_finite() { exponent.max(0.0) } else { 0.0 };
        let mut ranks = Self { exponent, items: items.max(1), integral_first: 0.0, integral_last: 0.0, shortcut: 0.0 };
        ranks.integral_first = ranks.integral(1.5) - 1.0;
        ranks.integral_last = ranks.integral(ranks.items as f64 + 0.5);
        ranks.shortcut = 2.0 - ranks.integral_inverse(ranks.integral(2.5) - ranks.density(2.0));
        ranks
    }

    /// The integral of `t^-s` from 1 to `x`, in a form that is stable around `s = 1`.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        expm1_ratio((1.0 - self.exponent) * log) * log
    }

    fn integral_inverse(&self, y: f64) -> f64 {
        // Rounding can push the argument past the pole at -1.
        let t = (y * (1.0 - self.exponent)).max(-1.0);
        (ln1p_ratio(t) * y).exp()
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// A rank in `0 .. items`; 0 is the hottest.
    pub fn draw(&self, random: &mut SeededRandom) -> u64 {
        loop {
            let u = self.integral_last + random.unit() * (self.integral_first - self.integral_last);
            let x = self.integral_inverse(u);
            let rank = x.round().clamp(1.0, self.items as f64);
            if rank - x <= self.shortcut || u >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64 - 1;
            }
        }
    }

    /// Share of the draws that the hottest rank gets.
    pub fn hottest_share(&self) -> f64 {
        1.0 / harmonic(self.items, self.exponent)
    }
}

/// Where a rank lies in the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Rank is key: the hottest keys lie together at the start of the key space.
    Adjacent,
    /// Ranks are scattered by a seeded one-to-one map, so shares stay exact (unlike hashing, which
    /// maps several keys to one).
    Scattered,
}

/// Zipf-distributed keys with any exponent.
#[derive(Clone, Debug)]
pub struct Zipf {
    ranks: ZipfRanks,
    multiplier: u64,
    offset: u64,
}

impl Zipf {
    /// Over the first `rows` rows of the table; rows that are added later are not drawn, so that
    /// shares stay what the exponent says.
    pub fn new(rows: u64, exponent: f64, placement: Placement, seed: u64) -> Self {
        let ranks = ZipfRanks::new(rows, exponent);
        let (multiplier, offset) = match placement {
            Placement::Adjacent => (1, 0),
            Placement::Scattered => {
                let mut multiplier = mix_pair(seed, 0x5ca7) % ranks.items;
                while gcd(multiplier, ranks.items) != 1 {
                    multiplier = (multiplier + 1) % ranks.items.max(2);
                }
                (multiplier, mix_pair(seed, 0x0ff5) % ranks.items)
            }
        };
        Self { ranks, multiplier, offset }
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl KeyChooser for Zipf {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        let rank = u128::from(self.ranks.draw(random));
        // A multiplier coprime to the number of items makes this a permutation.
        let place = (rank * u128::from(self.multiplier) + u128::from(self.offset)) % u128::from(self.ranks.items);
        (place as u64).min(rows - 1)
    }

    fn hottest_share(&self, _rows: u64, _insert_share: f64) -> f64 {
        self.ranks.hottest_share()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_follow_the_harmonic_sum_below_at_and_above_one() {
        for exponent in [0.0, 0.5, 0.99, 1.0, 1.000_001, 1.2, 2.0, 3.5] {
            let items = 1_000;
            let ranks = ZipfRanks::new(items, exponent);
            let mut random = SeededRandom::new(5, 0);
            let mut counts = vec![0u32; items as usize];
            let draws = 300_000;
            for _ in 0..draws {
                counts[ranks.draw(&mut random) as usize] += 1;
            }
            let total = harmonic(items, exponent);
            for rank in [1u64, 2, 3, 10, 100] {
                let expected = (rank as f64).powf(-exponent) / total;
                let got = f64::from(counts[rank as usize - 1]) / f64::from(draws);
                // Four standard deviations of a binomial share.
                let tolerance = 4.0 * (expected * (1.0 - expected) / f64::from(draws)).sqrt() + 1e-6;
                assert!((got - expected).abs() < tolerance, "s={exponent} rank {rank}: {got} against {expected}");
            }
            assert!((ranks.hottest_share() - 1.0 / total).abs() < 1e-12);
        }
    }

    #[test]
    fn scattering_moves_keys_and_keeps_shares() {
        let rows = 1_000;
        let mut random = SeededRandom::new(5, 0);
        let mut zipf = Zipf::new(rows, 1.2, Placement::Scattered, 9);
        let mut counts = vec![0u32; rows as usize];
        for _ in 0..100_000 {
            counts[zipf.choose(&mut random, Duration::ZERO, rows) as usize] += 1;
        }
        let hottest = counts.iter().copied().max().unwrap_or(0);
        assert!((f64::from(hottest) / 1e5 - zipf.hottest_share(rows, 0.0)).abs() < 0.006);
        let first_tenth: u32 = counts[..100].iter().sum();
        assert!(first_tenth < 60_000, "hot keys lie together: {first_tenth}");
    }

    proptest! {
        #[test]
        fn every_draw_is_a_row(items in 1u64..5_000, exponent in 0.0f64..6.0, seed: u64) {
            let mut random = SeededRandom::new(seed, 0);
            for placement in [Placement::Adjacent, Placement::Scattered] {
                let mut zipf = Zipf::new(items, exponent, placement, seed);
                for _ in 0..50 {
                    prop_assert!(zipf.choose(&mut random, Duration::ZERO, items) < items);
                }
            }
        }

        #[test]
        fn scattering_is_one_to_one(items in 1u64..2_000, seed: u64) {
            let zipf = Zipf::new(items, 1.0, Placement::Scattered, seed);
            let mut seen = vec![false; items as usize];
            for rank in 0..items {
                let place = (u128::from(rank) * u128::from(zipf.multiplier) + u128::from(zipf.offset))
                    % u128::from(items);
                prop_assert!(!std::mem::replace(&mut seen[place as usize], true));
            }
        }
    }
}
