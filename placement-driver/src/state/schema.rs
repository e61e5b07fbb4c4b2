//! The schema as the placement state knows it: its version, and the changes that made it.

use evenkeel_protocol::{RangeId, SchemaDelta, ShardId, TableId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A schema change with the ranges that it makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaPlan {
    /// The change, with the numbers of its relations.
    pub delta: SchemaDelta,
    /// The only range of each new table and sequence, and the shard that gets it.
    pub ranges: Vec<(TableId, RangeId, ShardId)>,
}

impl SchemaPlan {
    /// The version of the schema after it.
    pub fn version(&self) -> u64 {
        self.delta.change.version
    }

    /// Every table and sequence that is new, different or gone after it.
    pub fn touched(&self) -> BTreeSet<TableId> {
        self.delta.relations.iter().map(|table| table.id).chain(self.delta.dropped.iter().copied()).collect()
    }

    /// The ranges that a shard gets.
    pub fn ranges_of(&self, shard: ShardId) -> Vec<(TableId, RangeId)> {
        let here = self.ranges.iter().filter(|(_, _, at)| *at == shard);
        here.map(|(table, range, _)| (*table, *range)).collect()
    }
}

/// See the module. The order of the fields is the format of the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Schema {
    /// Its version: the number of changes that were made.
    pub version: u64,
    /// The changes by version, all from the first: a new shard makes them one after the other.
    pub changes: BTreeMap<u64, Arc<SchemaPlan>>,
    /// The shard of pinned tables and sequences. `None` before there were any.
    pub home: Option<ShardId>,
}

impl Schema {
    /// The bytes of all statements, for the limit on them.
    pub(super) fn sql_bytes(&self) -> usize {
        self.changes.values().map(|plan| plan.delta.change.sql.len()).sum()
    }
}
