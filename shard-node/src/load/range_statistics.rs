//! Load meter and size of one range, and how a split or a merge passes them on.

use super::clock::now_ms;
use super::meter::RangeMeter;
use crate::state_machine::RangeSize;
use evenkeel_protocol::report::RangeLoad;
use evenkeel_protocol::{Key, KeyInterval};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug)]
pub struct RangeStatistics {
    meter: Mutex<RangeMeter>,
    size: Mutex<RangeSize>,
}

/// A range that a new range was split from or merged of.
pub struct Predecessor<'a> {
    /// Its keys.
    pub interval: &'a KeyInterval,
    /// Its load and size.
    pub statistics: &'a RangeStatistics,
    /// The number of ranges that it has become.
    pub pieces: u64,
}

impl RangeStatistics {
    /// The statistics of a range with these keys. Load and size come from its predecessors. The
    /// size is `known` where it does not have to be derived from them.
    pub fn succeed(interval: &KeyInterval, known: Option<RangeSize>, predecessors: &[Predecessor<'_>]) -> Self {
        let now_ms = now_ms();
        let meter = predecessors
            .iter()
            .map(|before| before.meter_within(interval, now_ms))
            .reduce(|left, right| left.merge(right, now_ms))
            .unwrap_or_else(|| RangeMeter::new(now_ms));
        let of = |before: &Predecessor<'_>| {
            let covered = interval.covers(before.interval);
            before.statistics.size().part(if covered { 1 } else { before.pieces })
        };
        let size = known.or_else(|| predecessors.iter().map(of).reduce(RangeSize::join)).unwrap_or(RangeSize::UNKNOWN);
        RangeStatistics { meter: Mutex::new(meter), size: Mutex::new(size) }
    }

    /// The size.
    pub fn size(&self) -> RangeSize {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the size.
    pub fn resize<T>(&self, change: impl FnOnce(&mut RangeSize) -> T) -> T {
        change(&mut self.size.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The meter.
    pub fn meter(&self) -> MutexGuard<'_, RangeMeter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the load measured so far: it was not the load of this leader.
    pub fn reset_meter(&self, now_ms: u64) {
        *self.meter() = RangeMeter::new(now_ms);
    }

    /// Load and size, as they are reported to the placement driver.
    pub fn report(&self, now_ms: u64) -> RangeLoad {
        let mut load = self.meter().load(now_ms);
        let size = self.size();
        (load.rows, load.bytes) = (size.rows, size.bytes);
        load
    }
}

impl Predecessor<'_> {
    /// The part of its load that fell inside `interval`.
    fn meter_within(&self, interval: &KeyInterval, now_ms: u64) -> RangeMeter {
        let bounds: Vec<Key> = [Some(&interval.start), interval.end.as_ref()]
            .into_iter()
            .flatten()
            .filter(|key| self.interval.splits_at(key))
            .cloned()
            .collect();
        let wanted = usize::from(bounds.first() == Some(&interval.start));
        let mut pieces = self.statistics.meter().clone().split(&bounds, now_ms);
        if wanted < pieces.len() { pieces.swap_remove(wanted) } else { RangeMeter::new(now_ms) }
    }
}
