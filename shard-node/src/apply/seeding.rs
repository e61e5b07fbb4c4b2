//! Rows that are still missing while a replica is re-seeded (see [`crate::state_transfer`]).

use crate::log_entry::Changes;
use crate::log_entry::image::Image;
use crate::state_machine::ShardState;
use crate::state_transfer::{Limit, Missing};
use evenkeel_protocol::TableId;
use evenkeel_protocol::schema::RelationKind;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Whether a table has no key, so that its changes must be applied exactly once (R18).
pub(super) fn has_no_key(state: &ShardState, table: TableId) -> bool {
    state.table(table).is_some_and(|table| table.kind == RelationKind::Table && table.key.is_empty())
}

/// What an applier knows of the rows that are missing.
#[derive(Debug)]
pub struct Seeding {
    /// The rows.
    pub missing: Missing,
    /// How far the log may be applied while pieces are under way.
    pub limit: Arc<Limit>,
    /// Counts the bytes of rows that were taken and stored.
    pub taken_bytes: Arc<AtomicU64>,
}

impl Seeding {
    /// Waits until the entry at `position` may be applied (R32).
    pub(super) async fn may_apply(&self, position: u64) {
        // The limit lives as long as the replica is being re-seeded.
        let _ = self.limit.watch().wait_for(|limit| position <= *limit).await;
    }

    /// The last position that may be applied: a piece that is under way might lack a later entry
    /// (R32).
    pub(super) fn limit(&self) -> u64 {
        *self.limit.watch().borrow()
    }

    /// The changes at `position` without those of missing rows: these rows come later, with the
    /// changes in them (R32). A truncation is one of the rows that have come, too.
    pub(super) fn without_missing(&self, position: u64, mut changes: Changes, state: &ShardState) -> Changes {
        changes.changes.retain(|change| {
            let truncates = change.image == Image::Truncated && !has_no_key(state, change.table);
            truncates || !self.missing.lacks(change.table, &change.key) && !self.missing.holds(change.table, position)
        });
        changes
    }

    /// Whether nothing is missing and everything that a piece may hold beyond its position has been
    /// applied.
    pub(super) fn is_done(&self, applied: u64) -> bool {
        self.missing.is_nothing() && applied >= self.missing.holds_to()
    }
}
