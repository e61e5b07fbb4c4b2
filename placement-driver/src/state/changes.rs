//! Changes of the routing table by version. A client that has missed some versions fetches their
//! changes instead of the whole table.

use evenkeel_protocol::{RangeId, ShardId, TableId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};

/// Versions that are remembered, at most. A client further behind fetches the whole table.
pub const MAX_CHANGES: usize = 512;

/// The changes of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionChange {
    /// The version's number.
    pub number: u64,
    /// Tables that became known.
    pub tables: BTreeSet<TableId>,
    /// Tables that were dropped.
    pub removed_tables: BTreeSet<TableId>,
    /// Whether the schema has another version, perhaps without a change of any table.
    pub schema: bool,
    /// Shards added or changed.
    pub shards: BTreeSet<ShardId>,
    /// Shards removed.
    pub removed_shards: BTreeSet<ShardId>,
    /// Ranges whose route changed. Ranges that ceased to exist are covered by the ones that took
    /// their keys.
    pub ranges: BTreeSet<RangeId>,
}

impl VersionChange {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        let no_tables = self.tables.is_empty() && self.removed_tables.is_empty() && !self.schema;
        no_tables && self.shards.is_empty() && self.removed_shards.is_empty() && self.ranges.is_empty()
    }

    fn merge(&mut self, later: &VersionChange) {
        self.number = later.number;
        self.tables.extend(&later.tables);
        // The number of a dropped table is not given again.
        self.removed_tables.extend(&later.removed_tables);
        self.tables.retain(|table| !self.removed_tables.contains(table));
        self.schema |= later.schema;
        self.ranges.extend(&later.ranges);
        for shard in &later.shards {
            self.removed_shards.remove(shard);
            self.shards.insert(*shard);
        }
        for shard in &later.removed_shards {
            self.shards.remove(shard);
            self.removed_shards.insert(*shard);
        }
    }
}

/// The latest changes, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionChanges(VecDeque<VersionChange>);

impl VersionChanges {
    /// Adds the next version's change.
    pub fn push(&mut self, change: VersionChange) {
        debug_assert!(self.0.back().is_none_or(|last| last.number < change.number));
        if self.0.len() >= MAX_CHANGES {
            self.0.pop_front();
        }
        self.0.push_back(change);
    }

    /// Forgets all changes: later versions cannot be compared with earlier ones.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Everything that changed after version `number` up to `current`, the latest. `None` if that
    /// is not remembered.
    pub fn since(&self, number: u64, current: u64) -> Option<VersionChange> {
        if number > current {
            return None;
        }
        let mut sum = VersionChange { number: current, ..VersionChange::default() };
        if number == current {
            return Some(sum);
        }
        // Versions follow one another without a gap, so having the next one means having all.
        if self.0.front().is_none_or(|first| first.number > number + 1) {
            return None;
        }
        self.0.iter().filter(|change| change.number > number).for_each(|change| sum.merge(change));
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn changes_too_long_ago_are_not_answered_in_part() {
        let mut changes = VersionChanges::default();
        for number in 1..=MAX_CHANGES as u64 + 10 {
            changes.push(VersionChange { number, ranges: [RangeId(number)].into(), ..VersionChange::default() });
        }
        let last = MAX_CHANGES as u64 + 10;
        assert_eq!(changes.since(9, last), None);
        assert_eq!(changes.since(10, last).unwrap().ranges.len(), MAX_CHANGES);
        assert_eq!(changes.since(last - 1, last).unwrap().ranges, [RangeId(last)].into());
        assert!(changes.since(last, last).unwrap().is_empty());
        assert_eq!(changes.since(last + 1, last), None);
    }

    #[test]
    fn a_shard_that_came_back_is_not_removed() {
        let mut changes = VersionChanges::default();
        changes.push(VersionChange { number: 1, removed_shards: [ShardId(1)].into(), ..VersionChange::default() });
        changes.push(VersionChange { number: 2, shards: [ShardId(1)].into(), ..VersionChange::default() });
        let sum = changes.since(0, 2).unwrap();
        assert!(sum.removed_shards.is_empty() && sum.shards == [ShardId(1)].into());
    }
}
