//! Hotspots: one that stays (YCSB's), one that jumps, one that drifts, and the front of a growing
//! table.
//!
//! A hotspot that stays is a balancing problem that ends. The others never end: a jump asks how
//! soon load that appears elsewhere is levelled again, a drift asks whether the balancer keeps up
//! without thrashing, and a sequential front is the case where the hot place is always the newest
//! key, which no earlier split can have prepared for.
//!
//! Where a moving hotspot is at a time is a pure function of (seed, time); replaying at another
//! speed or with another number of workers does not change it.

use std::time::Duration;

use super::key_chooser::KeyChooser;
use crate::seed::{SeededRandom, mix_pair};

/// How a hotspot moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Motion {
    /// It stays at the start of the key space.
    Still,
    /// It is somewhere else in every period, at a place that the seed decides.
    Jump {
        /// Time that it stays at a place.
        period: Duration,
    },
    /// It moves through the key space at constant speed, around the end to the start again.
    Drift {
        /// Share of the key space that it passes per second.
        key_space_per_s: f64,
    },
}

/// A contiguous part of the key space that gets a fixed share of the operations; the rest goes to
/// all other keys. Keys within either are alike.
#[derive(Clone, Debug)]
pub struct Hotspot {
    hot_keys: f64,
    hot_operations: f64,
    motion: Motion,
    seed: u64,
}

impl Hotspot {
    /// `hot_keys` (share of the key space, clamped to 0 to 1) gets `hot_operations` (share of the
    /// operations, likewise).
    pub fn new(hot_keys: f64, hot_operations: f64, motion: Motion, seed: u64) -> Self {
        Self { hot_keys: hot_keys.clamp(0.0, 1.0), hot_operations: hot_operations.clamp(0.0, 1.0), motion, seed }
    }

    fn width(&self, rows: u64) -> u64 {
        ((self.hot_keys * rows as f64).round() as u64).clamp(1, rows)
    }

    /// The first hot key at `now`, in a table of `rows` rows.
    pub fn start_at(&self, now: Duration, rows: u64) -> u64 {
        match self.motion {
            Motion::Still => 0,
            Motion::Jump { period } => {
                let turn = (now.as_nanos() / period.as_nanos().max(1)) as u64;
                let places = (rows - self.width(rows)).max(1);
                mix_pair(self.seed, turn) % places
            }
            Motion::Drift { key_space_per_s } => {
                let passed = (now.as_secs_f64() * key_space_per_s).rem_euclid(1.0);
                ((passed * rows as f64) as u64).min(rows - 1)
            }
        }
    }
}

impl KeyChooser for Hotspot {
    fn choose(&mut self, random: &mut SeededRandom, now: Duration, rows: u64) -> u64 {
        let width = self.width(rows);
        let start = self.start_at(now, rows);
        let offset = if width == rows || random.chance(self.hot_operations) {
            random.below(width)
        } else {
            width + random.below(rows - width)
        };
        // A drifting hotspot wraps around the end of the key space.
        (start + offset) % rows
    }

    fn hottest_share(&self, rows: u64, _insert_share: f64) -> f64 {
        let width = self.width(rows);
        if width == rows {
            return 1.0 / rows as f64;
        }
        (self.hot_operations / width as f64).max((1.0 - self.hot_operations) / (rows - width) as f64)
    }
}

/// Reads near the end of a growing table: the age of the row read is exponentially distributed.
#[derive(Clone, Debug)]
pub struct Front {
    mean_age_rows: f64,
}

impl Front {
    /// Operations over which the hottest key's share is taken: about what a balancer sees in a few
    /// seconds.
    const WINDOW_OPERATIONS: f64 = 10_000.0;

    /// Reads are on average `mean_age_rows` rows (at least 1) behind the newest.
    pub fn new(mean_age_rows: f64) -> Self {
        Self { mean_age_rows: if mean_age_rows.is_finite() { mean_age_rows.max(1.0) } else { 1.0 } }
    }
}

impl KeyChooser for Front {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        let age = -random.unit_positive().ln() * self.mean_age_rows;
        rows - 1 - (age as u64).min(rows - 1)
    }

    /// While rows are added a key soon ages: of the draws in a window in which `m` rows are added
    /// it gets at most 1/m.
    fn hottest_share(&self, _rows: u64, insert_share: f64) -> f64 {
        let at_once = 1.0 - (-1.0 / self.mean_age_rows).exp();
        let added = insert_share * Self::WINDOW_OPERATIONS;
        if added > 1.0 { at_once.min(1.0 / added) } else { at_once }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn share_in(hotspot: &mut Hotspot, now: Duration, rows: u64, keys: std::ops::Range<u64>) -> f64 {
        let mut random = SeededRandom::new(2, 0);
        let hits = (0..50_000).filter(|_| keys.contains(&hotspot.choose(&mut random, now, rows))).count();
        hits as f64 / 50_000.0
    }

    #[test]
    fn a_fifth_of_the_keys_gets_four_fifths_of_the_load() {
        let mut hotspot = Hotspot::new(0.2, 0.8, Motion::Still, 0);
        let share = share_in(&mut hotspot, Duration::ZERO, 1_000, 0..200);
        assert!((share - 0.8).abs() < 0.01, "{share}");
        assert!((hotspot.hottest_share(1_000, 0.0) - 0.8 / 200.0).abs() < 1e-12);
    }

    #[test]
    fn a_jump_happens_at_the_period_and_takes_the_load_along() {
        let period = Duration::from_secs(10);
        let mut hotspot = Hotspot::new(0.01, 0.9, Motion::Jump { period }, 4);
        let rows = 100_000;
        let before = hotspot.start_at(period - Duration::from_nanos(1), rows);
        let after = hotspot.start_at(period, rows);
        assert_eq!(before, hotspot.start_at(Duration::ZERO, rows));
        assert!(before.abs_diff(after) > 1_000, "it hardly moved: {before} to {after}");
        assert!(share_in(&mut hotspot, SECOND, rows, before..before + 1_000) > 0.88);
        assert!(share_in(&mut hotspot, SECOND * 11, rows, before..before + 1_000) < 0.02);
        assert!(share_in(&mut hotspot, SECOND * 11, rows, after..after + 1_000) > 0.88);
    }

    #[test]
    fn a_drift_moves_at_its_speed_and_wraps() {
        let mut hotspot = Hotspot::new(0.05, 1.0, Motion::Drift { key_space_per_s: 0.01 }, 0);
        assert_eq!(hotspot.start_at(SECOND * 50, 1_000), 500);
        assert_eq!(hotspot.start_at(SECOND * 150, 1_000), 500);
        // At 98 s the window of 50 keys lies around the end: 980..1000 and 0..30.
        let share = share_in(&mut hotspot, SECOND * 98, 1_000, 0..30);
        assert!((share - 0.6).abs() < 0.02, "{share}");
    }

    #[test]
    fn the_front_is_read_where_it_is() {
        let mut front = Front::new(100.0);
        let mut random = SeededRandom::new(2, 0);
        let mean = (0..50_000).map(|_| 9_999 - front.choose(&mut random, Duration::ZERO, 10_000)).sum::<u64>() as f64
            / 50_000.0;
        assert!((mean - 99.5).abs() < 3.0, "{mean}");
    }

    proptest! {
        #[test]
        fn every_draw_is_a_row(rows in 1u64..500, keys in 0.0f64..1.0, load in 0.0f64..1.0, at_ms in 0u64..1_000_000) {
            let mut random = SeededRandom::new(1, 0);
            let motions = [
                Motion::Still,
                Motion::Jump { period: Duration::from_millis(7) },
                Motion::Drift { key_space_per_s: 0.3 },
            ];
            for motion in motions {
                let mut hotspot = Hotspot::new(keys, load, motion, 3);
                prop_assert!(hotspot.choose(&mut random, Duration::from_millis(at_ms), rows) < rows);
            }
            prop_assert!(Front::new(50.0).choose(&mut random, Duration::ZERO, rows) < rows);
        }
    }
}
