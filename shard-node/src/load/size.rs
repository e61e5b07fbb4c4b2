//! Sizes of ranges that have no latch at present and may get one again.
//!
//! A range that a move hands over keeps its size here until the move is over, because the range may
//! come back. A replica that starts finds the stored sizes of all its ranges here.

use crate::state_machine::{InPhase, RangeSize, ShardState};
use evenkeel_protocol::RangeId;
use std::collections::HashMap;

/// See the module.
#[derive(Debug, Default)]
pub struct RememberedSizes(HashMap<RangeId, RangeSize>);

impl RememberedSizes {
    /// Replaces all sizes by those that were stored.
    pub fn restore(&mut self, sizes: Vec<(RangeId, RangeSize)>) {
        self.0 = sizes.into_iter().collect();
    }

    /// Remembers the size of a range that has left.
    pub fn insert(&mut self, range: RangeId, size: RangeSize) {
        self.0.insert(range, size);
    }

    /// Takes the size of a range that was created, was adopted, came back, or was owned when the
    /// replica stopped. `None` if its size has to be derived from the ranges that it was split from
    /// or merged of.
    pub fn take(&mut self, state: &ShardState, range: RangeId) -> Option<RangeSize> {
        let adopted = || state.moves_in().find(|m| m.range == range && m.phase == InPhase::Adopted).map(|m| m.size);
        let created = || state.last_operator(range).is_none().then(RangeSize::default);
        self.0.remove(&range).or_else(adopted).or_else(created)
    }

    /// Forgets ranges that can no longer come back: only a range of a move that is not over can.
    pub fn retain_moving(&mut self, state: &ShardState) {
        self.0.retain(|range, _| state.moves_out().any(|m| m.range == *range));
    }

    /// All sizes.
    pub fn iter(&self) -> impl Iterator<Item = (RangeId, RangeSize)> {
        self.0.iter().map(|(range, size)| (*range, *size))
    }
}
