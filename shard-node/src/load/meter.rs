//! The load meter of a range: rates, where in the range the load falls, and which single keys are
//! hot.
//!
//! Pure: a meter is a function of the recorded statements and of the times passed in. It has three
//! parts:
//!
//! - **Rates.** Each statement counts 1 and decays with a half-life of [`HALF_LIFE_MS`]. The
//!   observed time decays in the same way. The quotient is an unbiased rate from the first tick on,
//!   however the ticks are spaced.
//! - **Sketch.** An ordered sketch holds keys that statements named. A point has two weights: the
//!   load on the key itself while it had a point, and the load on the keys between it and the next
//!   point. A new key gets a point. At [`MAX_POINTS`] points the lightest are merged into their
//!   left neighbours until at most [`COMPRESSED_POINTS`] remain. The total weight is preserved, a
//!   heavy key keeps a point of its own, and the error at any key is at most the weight of one
//!   merged gap: less than 1/512 of the total.
//! - **Hot keys.** A point's own weight is a lower bound of the load on its key. A key is reported
//!   as hot only if enough statements support it.
//!
//! A split gives each piece its share of all sums, so that pieces report plausible rates at once;
//! only [`RangeLoad::observed_ms`] starts again. Old weights are not multiplied at each tick. New
//! weights grow instead: a statement weighs `scale`, which doubles every half-life.

use bytes::Bytes;
use evenkeel_protocol::Key;
use evenkeel_protocol::report::{MAX_HOT_KEYS, MAX_SKETCH_POINTS, RangeLoad};
use std::collections::BTreeMap;

/// After this long, in milliseconds, a statement counts half.
pub const HALF_LIFE_MS: f64 = 1_500.0;
/// The most keys a meter holds.
pub const MAX_POINTS: usize = 2048;
/// How many it keeps, at most, when it has to thin them out.
pub const COMPRESSED_POINTS: usize = 1024;
/// A hot key's weight, in decayed statements, at least: its share is known to about 1/√50 = 14 %
/// (one standard deviation).
const MIN_HOT_STATEMENTS: f64 = 50.0;
/// A hot key's share of the range's load, at least, two standard deviations below the estimate.
/// Less is not worth acting on.
const MIN_HOT_SHARE: f64 = 0.01;
/// Below this many decayed statements there is no load to speak of, and no sketch.
const MIN_STATEMENTS: f64 = 0.5;
/// Weights are scaled back when a statement weighs more than this; far from where a double loses
/// whole statements.
const MAX_SCALE: f64 = (1u64 << 40) as f64;

/// Measures one range.
#[derive(Debug, Clone)]
pub struct RangeMeter {
    /// When this (range, epoch) was first measured here, in milliseconds.
    since_ms: u64,
    /// Up to when everything is decayed, in milliseconds.
    ticked_ms: u64,
    /// What a statement weighs now.
    scale: f64,
    /// The time observed, decayed, in seconds (not scaled).
    observed_s: f64,
    /// Scaled sums.
    reads: f64,
    writes: f64,
    postgres_us: f64,
    /// Scaled weights; together they are `reads + writes`.
    points: BTreeMap<Key, Weight>,
}

/// What fell on a key and right of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Weight {
    /// On the key itself, since it has a point.
    own: f64,
    /// Between it and the next point, or on it before it had one.
    gap: f64,
}

impl Weight {
    fn sum(self) -> f64 {
        self.own + self.gap
    }
}

impl RangeMeter {
    /// A meter that has seen nothing.
    pub fn new(now_ms: u64) -> RangeMeter {
        RangeMeter {
            since_ms: now_ms,
            ticked_ms: now_ms,
            scale: 1.0,
            observed_s: 0.0,
            reads: 0.0,
            writes: 0.0,
            postgres_us: 0.0,
            points: BTreeMap::new(),
        }
    }

    /// Counts a statement on `key` (for a scan: where it starts), for which PostgreSQL worked
    /// `postgres_us` microseconds.
    pub fn record(&mut self, key: &Key, write: bool, postgres_us: f64) {
        *(if write { &mut self.writes } else { &mut self.reads }) += self.scale;
        // An invalid time must not make the sums invalid for ever.
        if postgres_us.is_finite() && postgres_us > 0.0 {
            self.postgres_us += postgres_us * self.scale;
        }
        if let Some(weight) = self.points.get_mut(key) {
            weight.own += self.scale;
            return;
        }
        if self.points.len() >= MAX_POINTS {
            self.compress();
        }
        // The key may be a slice of a whole request, which the meter must not keep alive.
        let key = Key(Bytes::copy_from_slice(key.as_bytes()));
        self.points.insert(key, Weight { own: self.scale, gap: 0.0 });
    }

    /// Lets time pass. Call it every few hundred milliseconds; a time before the last one changes
    /// nothing.
    pub fn tick(&mut self, now_ms: u64) {
        let elapsed_ms = now_ms.saturating_sub(self.ticked_ms) as f64;
        if elapsed_ms == 0.0 {
            return;
        }
        self.ticked_ms = now_ms;
        let decay = (-elapsed_ms / HALF_LIFE_MS).exp2();
        // The statements since the last tick decay over all of it; so must the time, or the rate
        // would be biased.
        self.observed_s = (self.observed_s + elapsed_ms / 1000.0) * decay;
        if decay < 1.0 / MAX_SCALE {
            // After a minute of silence nothing is left to speak of; the points would only take up
            // room.
            *self = RangeMeter { since_ms: self.since_ms, observed_s: self.observed_s, ..RangeMeter::new(now_ms) };
            return;
        }
        self.scale /= decay;
        if self.scale > MAX_SCALE {
            self.rescale(1.0);
        }
    }

    /// The load as of `now_ms`. Rows and bytes are not this meter's and stay 0.
    pub fn load(&mut self, now_ms: u64) -> RangeLoad {
        self.tick(now_ms);
        let mut load = RangeLoad { observed_ms: now_ms.saturating_sub(self.since_ms), ..RangeLoad::default() };
        if self.observed_s <= 0.0 {
            return load;
        }
        let per_s = 1.0 / (self.scale * self.observed_s);
        load.reads_per_s = self.reads * per_s;
        load.writes_per_s = self.writes * per_s;
        load.postgres_us_per_s = self.postgres_us * per_s;
        let total = self.total();
        if total >= MIN_STATEMENTS * self.scale {
            load.sketch = self.sketch();
            load.hot = self.hot(total);
        }
        load
    }

    /// The statements that are still remembered, decayed.
    pub fn statements(&self) -> f64 {
        self.total() / self.scale
    }

    fn total(&self) -> f64 {
        self.reads + self.writes
    }

    /// The meters of the ranges that a split at `keys` (growing) makes: one more than there are
    /// keys. Each takes the part of all sums that the sketch says fell into it.
    pub fn split(mut self, keys: &[Key], now_ms: u64) -> Vec<RangeMeter> {
        self.tick(now_ms);
        let total: f64 = self.points.values().map(|weight| weight.sum()).sum();
        let mut pieces = Vec::with_capacity(keys.len() + 1);
        let mut rest = std::mem::take(&mut self.points);
        for key in keys {
            let mut right = rest.split_off(key);
            if !right.contains_key(key)
                && let Some(mut straddling) = rest.last_entry()
            {
                // Where in the gap the load fell is not known; the key to split at lies somewhere
                // in it.
                let half = straddling.get().gap / 2.0;
                straddling.get_mut().gap -= half;
                right.insert(Key(Bytes::copy_from_slice(key.as_bytes())), Weight { own: 0.0, gap: half });
            }
            pieces.push(std::mem::replace(&mut rest, right));
        }
        pieces.push(rest);
        pieces.into_iter().map(|points| self.piece(points, total, now_ms)).collect()
    }

    /// A meter with these of its points, and with the same share of its sums as of its points'
    /// weight.
    fn piece(&self, points: BTreeMap<Key, Weight>, total: f64, now_ms: u64) -> RangeMeter {
        let part: f64 = points.values().map(|weight| weight.sum()).sum();
        let share = if total > 0.0 { part / total } else { 0.0 };
        RangeMeter {
            since_ms: now_ms,
            ticked_ms: self.ticked_ms,
            scale: self.scale,
            observed_s: self.observed_s,
            reads: self.reads * share,
            writes: self.writes * share,
            postgres_us: self.postgres_us * share,
            points,
        }
    }

    /// The meter of two neighbours made one: its rates are the sums of theirs.
    pub fn merge(mut self, mut right: RangeMeter, now_ms: u64) -> RangeMeter {
        self.tick(now_ms);
        right.tick(now_ms);
        // Both as if observed for the longer of the two times, with a statement weighing 1: then
        // sums of weights are sums of rates.
        let observed_s = self.observed_s.max(right.observed_s);
        for meter in [&mut self, &mut right] {
            let stretch = if meter.observed_s > 0.0 { observed_s / meter.observed_s } else { 1.0 };
            meter.rescale(stretch);
        }
        self.observed_s = observed_s;
        self.since_ms = now_ms;
        self.reads += right.reads;
        self.writes += right.writes;
        self.postgres_us += right.postgres_us;
        for (key, weight) in right.points {
            let here = self.points.entry(key).or_default();
            here.own += weight.own;
            here.gap += weight.gap;
        }
        if self.points.len() > MAX_POINTS {
            self.compress();
        }
        self
    }

    /// Makes a statement weigh 1 again and everything `stretch` times as much as that says.
    fn rescale(&mut self, stretch: f64) {
        let factor = stretch / self.scale;
        self.scale = 1.0;
        for sum in [&mut self.reads, &mut self.writes, &mut self.postgres_us] {
            *sum *= factor;
        }
        for weight in self.points.values_mut() {
            weight.own *= factor;
            weight.gap *= factor;
        }
    }

    /// Thins the points out to [`COMPRESSED_POINTS`]: with the smallest bound on a gap's weight for
    /// which that many suffice.
    fn compress(&mut self) {
        let points: Vec<(Key, Weight)> = std::mem::take(&mut self.points).into_iter().collect();
        let joins = |collected: Weight, next: Weight, bound: f64| collected.gap + next.sum() <= bound;
        // From sorted points the map is built in one go, not key by key.
        self.points = thin_out(points, COMPRESSED_POINTS, joins).into_iter().collect();
    }

    /// At most [`MAX_SKETCH_POINTS`] keys with about equal shares of the load on and after them, as
    /// far as single keys allow that.
    fn sketch(&self) -> Vec<(Key, f64)> {
        let points: Vec<(&Key, Weight)> = self.points.iter().map(|(key, weight)| (key, *weight)).collect();
        let joins = |collected: Weight, next: Weight, bound: f64| collected.sum() + next.sum() <= bound;
        let sketch = thin_out(points, MAX_SKETCH_POINTS, joins);
        // By what the points hold, not by the sums beside them: rounding must not make the shares
        // miss 1.
        let total: f64 = sketch.iter().map(|(_, weight)| weight.sum()).sum();
        sketch.into_iter().map(|(key, weight)| (key.clone(), weight.sum() / total)).collect()
    }

    fn hot(&self, total: f64) -> Vec<(Key, f64)> {
        // Decayed statements vary no more than as many whole ones would.
        let known = |own: f64| {
            let statements = own / self.scale;
            statements >= MIN_HOT_STATEMENTS
                && (statements - 2.0 * statements.sqrt()) * self.scale >= MIN_HOT_SHARE * total
        };
        let mut hot: Vec<(&Key, f64)> =
            self.points.iter().filter(|(_, w)| known(w.own)).map(|(key, w)| (key, w.own / total)).collect();
        // Stable: of equally hot keys the smaller comes first.
        hot.sort_by(|a, b| b.1.total_cmp(&a.1));
        hot.into_iter().take(MAX_HOT_KEYS).map(|(key, share)| (key.clone(), share.min(1.0))).collect()
    }
}

/// Joins points to their left neighbours until at most `limit` are left. `joins` says whether a
/// neighbour with its collected weight may take the next point, for a bound. The bound is about the
/// smallest that suffices; `2·total/limit` always does, because any two remaining neighbours exceed
/// it together.
fn thin_out<K>(
    points: Vec<(K, Weight)>,
    limit: usize,
    joins: impl Fn(Weight, Weight, f64) -> bool,
) -> Vec<(K, Weight)> {
    if points.len() <= limit {
        return points;
    }
    let weights: Vec<Weight> = points.iter().map(|(_, weight)| *weight).collect();
    let total: f64 = weights.iter().map(|weight| weight.sum()).sum();
    let left_with = |bound: f64| {
        let mut collected = weights[0];
        let mut left = 1;
        for weight in &weights[1..] {
            if joins(collected, *weight, bound) {
                collected.gap += weight.sum();
            } else {
                collected = *weight;
                left += 1;
            }
        }
        left
    };
    // Rounding must not leave one point too many.
    let (mut low, mut high) = (0.0, 2.001 * total / limit as f64);
    for _ in 0..8 {
        let middle = (low + high) / 2.0;
        *(if left_with(middle) <= limit { &mut high } else { &mut low }) = middle;
    }
    let mut thinned: Vec<(K, Weight)> = Vec::with_capacity(limit);
    for (key, weight) in points {
        match thinned.last_mut() {
            Some((_, collected)) if joins(*collected, weight, high) => collected.gap += weight.sum(),
            _ => thinned.push((key, weight)),
        }
    }
    thinned
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
