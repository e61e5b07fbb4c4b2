//! The foreign tables that the engine database has, and how often its schema was changed. Values
//! that statements look at without waiting for a change that is under way.

use evenkeel_client::ShardPart;
use evenkeel_protocol::{ShardId, TableId};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// See the module.
#[derive(Default)]
pub struct EngineChildren {
    there: RwLock<BTreeSet<(ShardId, TableId)>>,
    changes: AtomicU64,
}

impl EngineChildren {
    /// Whether all of these parts have their foreign tables.
    pub fn has_all(&self, parts: &[ShardPart]) -> bool {
        let there = self.there.read().unwrap_or_else(PoisonError::into_inner);
        parts.iter().all(|(shard, tables)| tables.iter().all(|used| there.contains(&(*shard, used.table))))
    }

    /// Whether a table of a shard is there.
    pub fn has(&self, shard: ShardId, table: TableId) -> bool {
        self.there.read().unwrap_or_else(PoisonError::into_inner).contains(&(shard, table))
    }

    /// One has been made.
    pub fn made(&self, shard: ShardId, table: TableId) {
        self.there.write().unwrap_or_else(PoisonError::into_inner).insert((shard, table));
    }

    /// These are there now, and no others.
    pub fn are(&self, there: BTreeSet<(ShardId, TableId)>) {
        *self.there.write().unwrap_or_else(PoisonError::into_inner) = there;
    }

    /// A change of the schema is about to be committed.
    pub fn changing(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// How often the schema was changed. A statement that finds the same number when it is planned
    /// as it found before it looked its tables up is about those tables.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }
}
