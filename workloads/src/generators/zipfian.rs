//! Zipfian keys as YCSB draws them: exponent θ below 1, by Gray's method, plain, scrambled or
//! "latest".
//!
//! Rank `i` (from 1) is drawn in proportion to `1 / i^θ`. Gray's method inverts an approximation of
//! the cumulative distribution in constant time; it is exact for the two hottest ranks, which is
//! what a balancer cares about.
//!
//! *Scrambled* follows YCSB to the letter: ranks come from a universe of ten thousand million items
//! and are hashed onto the table. Mapping these ranks onto a smaller table flattens the tail, so
//! its hottest key has 1/26.469 of the load whatever the table's size. That is a property of the
//! published workload and not a slip.

use std::time::Duration;

use super::key_chooser::KeyChooser;
use crate::seed::{SeededRandom, fnv1a64};

/// YCSB's default exponent.
pub const YCSB_THETA: f64 = 0.99;

/// Number of ranks that YCSB's scrambled zipfian draws from.
pub const SCRAMBLED_UNIVERSE: u64 = 10_000_000_000;

/// Terms that [`harmonic`] adds one by one; past them the Euler-Maclaurin remainder is below 1e-12.
const EXACT_TERMS: u64 = 4_096;

/// Generalised harmonic number: the sum of `i^-exponent` for `i` in `1 ..= n`, to about twelve
/// digits, in bounded time (the tail by Euler-Maclaurin).
pub fn harmonic(n: u64, exponent: f64) -> f64 {
    let exact = n.min(EXACT_TERMS);
    // Smallest terms first, so that they are not lost beside the large ones.
    let head: f64 = (1..=exact).rev().map(|i| (i as f64).powf(-exponent)).sum();
    if n <= EXACT_TERMS {
        return head;
    }
    let (m, n) = (exact as f64, n as f64);
    let term = |x: f64| x.powf(-exponent);
    let slope = |x: f64| -exponent * x.powf(-exponent - 1.0);
    let integral = if (exponent - 1.0).abs() < 1e-12 {
        (n / m).ln()
    } else {
        (n.powf(1.0 - exponent) - m.powf(1.0 - exponent)) / (1.0 - exponent)
    };
    head + integral + (term(n) - term(m)) / 2.0 + (slope(n) - slope(m)) / 12.0
}

/// Zipfian ranks over a set that may grow.
#[derive(Clone, Debug)]
pub struct ZipfianRanks {
    theta: f64,
    items: u64,
    zeta: f64,
    eta: f64,
}

impl ZipfianRanks {
    /// Ranks over `items` items (at least 1). `theta` is clamped into `[0, 0.9999]`: the method
    /// divides by `1 - theta`; for steeper exponents there is [`super::zipf::Zipf`].
    pub fn new(items: u64, theta: f64) -> Self {
        let (items, theta) = (items.max(1), theta.clamp(0.0, 0.9999));
        let mut ranks = Self { theta, items, zeta: harmonic(items, theta), eta: 0.0 };
        ranks.set_eta();
        ranks
    }

    fn set_eta(&mut self) {
        let zeta_two = 1.0 + 0.5f64.powf(self.theta);
        let top = 1.0 - (2.0 / self.items as f64).powf(1.0 - self.theta);
        self.eta = if self.items > 2 { top / (1.0 - zeta_two / self.zeta) } else { 0.0 };
    }

    /// Makes room for `items` items; fewer than before changes nothing. Costs one step per added
    /// item.
    pub fn grow_to(&mut self, items: u64) {
        if items <= self.items {
            return;
        }
        if items - self.items > EXACT_TERMS {
            self.zeta = harmonic(items, self.theta);
        } else {
            for item in self.items + 1..=items {
                self.zeta += (item as f64).powf(-self.theta);
            }
        }
        self.items = items;
        self.set_eta();
    }

    /// A rank in `0 .. items`; 0 is the hottest.
    pub fn draw(&self, random: &mut SeededRandom) -> u64 {
        let u = random.unit();
        let scaled = u * self.zeta;
        if scaled < 1.0 || self.items == 1 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(self.theta) || self.items == 2 {
            return 1;
        }
        let rank = self.items as f64 * (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - self.theta));
        (rank as u64).min(self.items - 1)
    }

    /// Share of the draws that rank `rank` (from 0) gets.
    pub fn share(&self, rank: u64) -> f64 {
        (rank as f64 + 1.0).powf(-self.theta) / self.zeta
    }
}

/// The hottest keys first: key 0 is the hottest, key 1 the next.
#[derive(Clone, Debug)]
pub struct Zipfian {
    ranks: ZipfianRanks,
}

impl Zipfian {
    /// Over `rows` rows with exponent `theta` below 1.
    pub fn new(rows: u64, theta: f64) -> Self {
        Self { ranks: ZipfianRanks::new(rows, theta) }
    }
}

impl KeyChooser for Zipfian {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        self.ranks.grow_to(rows);
        self.ranks.draw(random)
    }

    fn hottest_share(&self, _rows: u64, _insert_share: f64) -> f64 {
        self.ranks.share(0)
    }
}

/// YCSB's scrambled zipfian: hot keys lie anywhere.
#[derive(Clone, Debug)]
pub struct ScrambledZipfian {
    ranks: ZipfianRanks,
}

impl ScrambledZipfian {
    /// With exponent `theta` below 1; the table's size is passed with every draw.
    pub fn new(theta: f64) -> Self {
        Self { ranks: ZipfianRanks::new(SCRAMBLED_UNIVERSE, theta) }
    }
}

impl KeyChooser for ScrambledZipfian {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        let rank = self.ranks.draw(random);
        fnv1a64(&rank.to_le_bytes()) % rows
    }

    fn hottest_share(&self, rows: u64, _insert_share: f64) -> f64 {
        let hottest = self.ranks.share(0);
        // The other ranks map, on average, an even share of their load onto the hottest key.
        hottest + (1.0 - hottest) / rows.max(1) as f64
    }
}

/// YCSB's "latest": zipfian by age, the newest row is the hottest.
#[derive(Clone, Debug)]
pub struct Latest {
    ranks: ZipfianRanks,
}

impl Latest {
    /// Operations over which the hottest key's share is taken: about what a balancer sees in a few
    /// seconds.
    const WINDOW_OPERATIONS: f64 = 10_000.0;

    /// Over a table that starts with `rows` rows, with exponent `theta` below 1.
    pub fn new(rows: u64, theta: f64) -> Self {
        Self { ranks: ZipfianRanks::new(rows, theta) }
    }
}

impl KeyChooser for Latest {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        self.ranks.grow_to(rows);
        rows - 1 - self.ranks.draw(random).min(rows - 1)
    }

    /// While rows are added, no key stays the newest: a key passes through the first `m` ranks
    /// within a window in which `m` rows are added, and its share is the mean of theirs.
    fn hottest_share(&self, rows: u64, insert_share: f64) -> f64 {
        let added = (insert_share * Self::WINDOW_OPERATIONS).round().max(1.0) as u64;
        let ranks = added.min(rows.max(1));
        harmonic(ranks, self.ranks.theta) / (self.ranks.zeta * ranks as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(chooser: &mut impl KeyChooser, rows: u64, draws: u32) -> Vec<f64> {
        let mut random = SeededRandom::new(11, 0);
        let mut counts = vec![0u32; rows as usize];
        for _ in 0..draws {
            counts[chooser.choose(&mut random, Duration::ZERO, rows) as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(draws)).collect()
    }

    #[test]
    fn harmonic_numbers_match_published_ones() {
        assert!((harmonic(10, 1.0) - 2.928_968_253_968_254).abs() < 1e-12);
        assert!((harmonic(1_000_000, 1.0) - 14.392_726_722_865_724).abs() < 1e-9);
        // YCSB's constant for ten thousand million items at 0.99, added up there term by term.
        assert!((harmonic(SCRAMBLED_UNIVERSE, 0.99) - 26.469_028_201_783_02).abs() < 1e-6);
        let direct: f64 = (1..=50_000u64).rev().map(|i| (i as f64).powf(-0.7)).sum();
        assert!((harmonic(50_000, 0.7) - direct).abs() < 1e-9);
    }

    #[test]
    fn the_hottest_keys_get_their_share() {
        let rows = 10_000;
        let mut zipfian = Zipfian::new(rows, YCSB_THETA);
        let expected = 1.0 / harmonic(rows, YCSB_THETA);
        assert!((zipfian.hottest_share(rows, 0.0) - expected).abs() < 1e-12);
        let shares = shares(&mut zipfian, rows, 400_000);
        assert!((shares[0] - expected).abs() < 0.002, "{} against {expected}", shares[0]);
        assert!((shares[1] - expected / 2f64.powf(YCSB_THETA)).abs() < 0.002);
        // The top tenth of the keys has its share of the harmonic sum; the method is an
        // approximation there.
        let top: f64 = shares[..1_000].iter().sum();
        let exact = harmonic(1_000, YCSB_THETA) / harmonic(rows, YCSB_THETA);
        assert!((top - exact).abs() < 0.02, "{top} against {exact}");
    }

    #[test]
    fn scrambled_keeps_the_skew_and_scatters_the_keys() {
        let rows = 10_000;
        let mut scrambled = ScrambledZipfian::new(YCSB_THETA);
        let shares = shares(&mut scrambled, rows, 400_000);
        let hottest = (0..rows as usize).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap_or(0);
        assert!((shares[hottest] - scrambled.hottest_share(rows, 0.0)).abs() < 0.003, "{}", shares[hottest]);
        assert!((scrambled.hottest_share(rows, 0.0) - 1.0 / 26.469).abs() < 0.001);
        let first_tenth: f64 = shares[..1_000].iter().sum();
        assert!((0.04..0.25).contains(&first_tenth), "hot keys lie together: {first_tenth}");
    }

    #[test]
    fn latest_follows_the_newest_row_and_growth_is_cheap_and_exact() {
        let mut latest = Latest::new(1_000, YCSB_THETA);
        let shares = shares(&mut latest, 2_000, 200_000);
        let expected = 1.0 / harmonic(2_000, YCSB_THETA);
        assert!((shares[1_999] - expected).abs() < 0.003, "{} against {expected}", shares[1_999]);
        assert!((latest.ranks.zeta - harmonic(2_000, YCSB_THETA)).abs() < 1e-9);
        // With no inserts the newest row stays the hottest; with inserts no key does.
        assert!((latest.hottest_share(2_000, 0.0) - expected).abs() < 1e-9);
        assert!(latest.hottest_share(2_000, 0.05) < expected / 40.0);
    }

    #[test]
    fn tiny_tables_work() {
        let mut random = SeededRandom::new(1, 0);
        for rows in 1..4 {
            let mut zipfian = Zipfian::new(rows, YCSB_THETA);
            for _ in 0..1_000 {
                assert!(zipfian.choose(&mut random, Duration::ZERO, rows) < rows);
            }
        }
    }
}
