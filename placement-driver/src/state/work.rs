//! Work: what an operator does, with everything that its requests need.

use super::schema::SchemaPlan;
use evenkeel_protocol::api::OperatorKind;
use evenkeel_protocol::{Epoch, Key, RangeId, ShardId, TableId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What an operator does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Creates a table with one range that has all keys.
    CreateTable {
        /// The table.
        table: TableId,
        /// Its first range.
        range: RangeId,
        /// The shard that gets the range.
        shard: ShardId,
    },
    /// Splits a range. The left piece keeps its id.
    Split {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// The shard that owns it.
        shard: ShardId,
        /// The first keys of the further pieces, growing strictly, and their ids.
        at: Vec<(Key, RangeId)>,
    },
    /// Merges two neighbours. The left one keeps its id.
    Merge {
        /// The range on the left and its epoch before.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch before.
        right: (RangeId, Epoch),
        /// The shard that owns both.
        shard: ShardId,
    },
    /// Moves a range.
    Move {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// From this shard.
        from: ShardId,
        /// To this shard.
        to: ShardId,
    },
    /// Changes the schema, on every shard.
    SchemaChange {
        /// The version after it.
        version: u64,
        /// The change; absent once the operator has ended.
        plan: Option<Arc<SchemaPlan>>,
    },
}

impl Work {
    /// The existing ranges that it locks.
    pub fn ranges(&self) -> Vec<RangeId> {
        match self {
            Work::CreateTable { .. } | Work::SchemaChange { .. } => Vec::new(),
            Work::Split { range, .. } | Work::Move { range, .. } => vec![*range],
            Work::Merge { left, right, .. } => vec![left.0, right.0],
        }
    }

    /// The existing ranges that it locks, each with its epoch when the operator began.
    pub fn epochs(&self) -> Vec<(RangeId, Epoch)> {
        match self {
            Work::CreateTable { .. } | Work::SchemaChange { .. } => Vec::new(),
            Work::Split { range, epoch, .. } | Work::Move { range, epoch, .. } => vec![(*range, *epoch)],
            Work::Merge { left, right, .. } => vec![*left, *right],
        }
    }

    /// The schema change, as long as the operator has not ended.
    pub fn schema_plan(&self) -> Option<&Arc<SchemaPlan>> {
        match self {
            Work::SchemaChange { plan, .. } => plan.as_ref(),
            _ => None,
        }
    }

    /// Whether a shard takes part.
    pub fn involves(&self, id: ShardId) -> bool {
        match self {
            Work::CreateTable { shard, .. } | Work::Split { shard, .. } | Work::Merge { shard, .. } => *shard == id,
            Work::Move { from, to, .. } => *from == id || *to == id,
            Work::SchemaChange { .. } => true,
        }
    }

    /// The form in which REST shows it.
    pub fn kind(&self) -> OperatorKind {
        match self {
            Work::CreateTable { table, shard, .. } => OperatorKind::CreateTable { table: *table, shard: *shard },
            Work::Split { range, shard, at, .. } => {
                let into = std::iter::once(*range).chain(at.iter().map(|(_, id)| *id)).collect();
                OperatorKind::Split { range: *range, shard: *shard, into }
            }
            Work::Merge { left, right, shard } => OperatorKind::Merge { left: left.0, right: right.0, shard: *shard },
            Work::Move { range, from, to, .. } => OperatorKind::Move { range: *range, from: *from, to: *to },
            Work::SchemaChange { version, .. } => OperatorKind::SchemaChange { version: *version },
        }
    }
}
