//! Scores: the order in which candidates are taken. The lowest score is taken first.
//!
//! A score is a struct with derived order. The order of its members is the policy: a later member
//! decides only if the earlier ones are equal. The last member is the candidate's id, so that no
//! two scores are equal and every leader decides alike.
//!
//! Units are integers, except for loads that are compared exactly: [`TotalLoad`] orders them by
//! `f64::total_cmp`. Rounding them to integers would change decisions between shards that differ by
//! less than one statement per second.

use evenkeel_protocol::{RangeId, ShardId};
use std::cmp::{Ordering, Reverse};

/// A load in statements per second, in the total order of `f64`.
#[derive(Debug, Clone, Copy)]
pub struct TotalLoad(pub f64);

impl Ord for TotalLoad {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for TotalLoad {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for TotalLoad {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for TotalLoad {}

/// Order in which shards are relieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceScore {
    /// The busiest shard first.
    pub load: Reverse<TotalLoad>,
    /// Its number.
    pub shard: ShardId,
}

/// Order in which destinations are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TargetScore {
    /// The least loaded shard first.
    pub load: TotalLoad,
    /// Its number.
    pub shard: ShardId,
}

/// Order in which the ranges that fit a destination are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MoveScore {
    /// The largest load first, in steps of a twentieth of a shard's mean load: loads that differ by
    /// less are equal.
    pub load_steps: Reverse<u64>,
    /// Among equal loads the fewest bytes first, because they are copied soonest.
    pub bytes: u64,
    /// Its number.
    pub range: RangeId,
}

/// Order in which the ranges of a draining shard leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DrainScore {
    /// The largest load first, so that the later, smaller ones even out the destinations.
    pub load: Reverse<TotalLoad>,
    /// Its number.
    pub range: RangeId,
}

/// Order in which ranges are tried for a split that cuts a fitting piece off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SplitScore {
    /// The fewest bytes first, because the piece is copied soonest.
    pub bytes: u64,
    /// Its number.
    pub range: RangeId,
}

/// Order in which ranges that are too large are split by size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeScore {
    /// The most bytes first.
    pub bytes: Reverse<u64>,
    /// Its number.
    pub range: RangeId,
}

/// Order in which shards are considered for the range of a new table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewRangeScore {
    /// The least load first, in units of ten statements per second: loads that differ by less are
    /// equal.
    pub load_tens: u64,
    /// Among equal loads the fewest ranges first.
    pub ranges: usize,
    /// Its number.
    pub shard: ShardId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_member_that_differs_decides() {
        let score = |steps, bytes, range| MoveScore { load_steps: Reverse(steps), bytes, range: RangeId(range) };
        assert!(score(3, 900, 9) < score(2, 1, 1), "load before bytes");
        assert!(score(2, 1, 9) < score(2, 2, 1), "bytes before number");
        assert!(score(2, 1, 1) < score(2, 1, 2), "the number decides last");
    }

    #[test]
    fn loads_have_a_total_order() {
        let target = |load, shard| TargetScore { load: TotalLoad(load), shard: ShardId(shard) };
        assert!(target(1.0, 2) < target(1.5, 1) && target(1.0, 1) < target(1.0, 2));
        assert!(TotalLoad(-0.0) < TotalLoad(0.0), "as f64::total_cmp orders them");
        let source = |load, shard| SourceScore { load: Reverse(TotalLoad(load)), shard: ShardId(shard) };
        assert!(source(9.0, 2) < source(8.0, 1));
    }
}
