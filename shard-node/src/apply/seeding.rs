//! Following the log while rows are still missing (see [`crate::transfer`]).

use super::keeper::Command;
use super::{Applier, ApplyError};
use crate::entry::Changes;
use crate::store::StoreOperation;
use crate::transfer::{Limit, Missing, Piece};
use evenkeel_host::{Bug, deliberate};
use evenkeel_replicated_log as log;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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

/// Waits until the first of the waiting entries may be applied.
pub(super) async fn may_go_on(seeding: &Option<Seeding>, waiting: &VecDeque<log::Entry>) {
    if let (Some(seeding), Some(first)) = (seeding, waiting.front()) {
        // The limit lives as long as the replica is being re-seeded.
        let _ = seeding.limit.watch().wait_for(|limit| first.index.0 <= *limit).await;
    }
}

impl Applier {
    /// The next entry to apply, unless a piece that is under way might lack it (R32).
    pub(super) fn next_entry(&mut self) -> Option<log::Entry> {
        let limit = self.seeding.as_ref().map_or(u64::MAX, |seeding| *seeding.limit.watch().borrow());
        let next = self.waiting.front()?.index.0 <= limit;
        if next { self.waiting.pop_front() } else { None }
    }

    /// The changes without those of rows that are missing: the rows come later, with these changes in them (R32).
    pub(super) fn not_missing(&self, mut changes: Changes) -> Changes {
        if let Some(seeding) = &self.seeding {
            changes.changes.retain(|change| !seeding.missing.lacks(change.table, &change.key));
        }
        changes
    }

    /// Takes rows that were missing, if they hold everything that has been applied (R32). Says whether they do.
    pub(super) async fn seeded(&mut self, piece: Piece) -> Result<bool, ApplyError> {
        if self.seeding.is_none() {
            return Ok(false);
        }
        if piece.position < self.shared.progress.folded() && !deliberate(Bug::StalePiece) {
            metrics::counter!("evenkeel_seed_stale_pieces_total").increment(1);
            return Ok(false);
        }
        let Some(table) = self.state.table(piece.table).cloned() else { return Ok(false) };
        // What was applied before goes in before, without these rows.
        self.flush(None).await?;
        let bytes = piece.rows.data.len() as u64;
        let taken_bytes = self.seeding.as_mut().map(|seeding| {
            seeding.missing.came(piece.table, &piece.covered, piece.holds_to);
            seeding.taken_bytes.clone()
        });
        let rows = StoreOperation::ReplaceInterval { table, interval: piece.covered, rows: piece.rows, copied: None };
        let batch = self.positioned(self.shared.progress.folded(), vec![rows], (false, false));
        self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms: Vec::new(), bytes: bytes as usize }).await?;
        let (room, asked) = (piece.room, Instant::now());
        let stored = move || {
            metrics::histogram!("evenkeel_seed_store_seconds").record(asked.elapsed().as_secs_f64());
            metrics::counter!("evenkeel_seed_taken_bytes_total").increment(bytes);
            taken_bytes.inspect(|taken| _ = taken.fetch_add(bytes, Ordering::Relaxed));
            drop(room);
        };
        self.keeper.ask(Command::Then(Box::new(stored))).await?;
        Ok(true)
    }

    /// The replica is whole once nothing is missing and it has applied whatever a piece may have held beyond its position.
    pub(super) async fn end_seeding(&mut self) -> Result<(), ApplyError> {
        let folded = self.shared.progress.folded();
        let done = |seeding: &Seeding| seeding.missing.is_nothing() && folded >= seeding.missing.holds_to();
        if !self.seeding.as_ref().is_some_and(done) {
            return Ok(());
        }
        self.flush(None).await?;
        self.seeding = None;
        let batch = self.positioned(folded, Vec::new(), (false, true));
        self.keeper.ask(Command::Apply { batch: Box::new(batch), confirms: Vec::new(), bytes: 0 }).await?;
        let whole = self.shared.whole.clone();
        let then = move || {
            whole.send_replace(true);
        };
        self.keeper.ask(Command::Then(Box::new(then))).await?;
        self.ownership_changed(folded);
        tracing::info!(shard = %self.config.shard, replica = self.config.replica, folded, "has all rows again");
        Ok(())
    }
}
