//! The choice of keys.

use std::time::Duration;

use crate::seed::SeededRandom;

/// Chooses which existing key an operation touches.
pub trait KeyChooser: Send {
    /// An index in `0 .. rows`; `rows` is at least 1 and never shrinks from call to call.
    fn choose(&mut self, random: &mut SeededRandom, now: Duration, rows: u64) -> u64;

    /// The share of this chooser's draws that the hottest key gets while the table has `rows` rows
    /// and `insert_share` of all operations append a row.
    fn hottest_share(&self, rows: u64, insert_share: f64) -> f64;
}

/// Every key alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uniform;

impl KeyChooser for Uniform {
    fn choose(&mut self, random: &mut SeededRandom, _now: Duration, rows: u64) -> u64 {
        random.below(rows)
    }

    fn hottest_share(&self, rows: u64, _insert_share: f64) -> f64 {
        1.0 / rows.max(1) as f64
    }
}
