//! The part of the applied log that PostgreSQL holds, that is on its way there, and that is
//! recorded.
//!
//! On a follower, changes are collected in a write batch and applied as row images, many entries to
//! a PostgreSQL transaction; the position is recorded in that transaction (invariant 3). On a
//! leader, sessions commit in any order, so each entry is recorded by itself (R5).

use super::applied_records::AppliedRecords;
use super::applied_state::AppliedState;
use super::apply_writer::{ApplyWriter, Command};
use super::checkpointing::RecordedPosition;
use super::saved_state::SavedState;
use super::seeding::{Seeding, has_no_key};
use super::write_batch::WriteBatch;
use crate::config::Config;
use crate::error::ApplyError;
use crate::log_entry::Changes;
use crate::log_entry::parts::{FirstParts, Unfinished};
use crate::replica::ReplicaHandles;
use crate::state_machine::{ControlEffect, ShardState};
use crate::state_transfer::SeedPiece;
use crate::storage::{ApplyBatch, StoreOperation};
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_replicated_log::{LogIndex, Term};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes collected before they are applied at once: while PostgreSQL keeps up, and while it is
/// behind. A replica that is behind needs larger transactions.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_BYTES_BEHIND: usize = 4 << 20;
/// PostgreSQL is behind from this many waiting bytes on.
const BEHIND_BYTES: usize = 8 << 20;
/// How long a follower collects a batch, in milliseconds: fewer, larger applies cost less.
const COLLECT_MS: u64 = 20;
/// The same while PostgreSQL is behind; and the interval of checkpointing.
pub(super) const CHECKPOINT_MS: u64 = 500;
/// AppliedRecords that one round deletes at most.
const PRUNE_RECORDS: usize = 10_000;

/// What a recorded batch is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// A position a little further back will do.
    Any,
    /// The position is needed now.
    Now,
    /// The batch, and with it everything before, must be durable.
    Durable,
}

/// See the module.
pub(super) struct Persistence {
    config: Arc<Config>,
    handles: ReplicaHandles,
    pub(super) writer: ApplyWriter,
    batch: WriteBatch,
    /// The first and last position in `batch`.
    span: Option<(u64, u64)>,
    collecting_since: Option<Instant>,
    /// PostgreSQL may hold entries up to here that are not applied yet; 0 once they are.
    ahead: u64,
    /// PostgreSQL held the rows of entries up to here at the start.
    reached_at_start: u64,
    records: AppliedRecords,
    pub(super) unfinished: Unfinished,
    /// First parts that came with another replica's state, and the position of that.
    taken_parts: (u64, Vec<FirstParts>),
    pub(super) recorded: RecordedPosition,
    pub(super) seeding: Option<Seeding>,
}

impl Persistence {
    /// PostgreSQL holds everything up to `position`, and perhaps entries up to `reached`.
    pub(super) fn new(
        config: Arc<Config>,
        handles: ReplicaHandles,
        writer: ApplyWriter,
        records: AppliedRecords,
        (position, reached, term): (u64, u64, Term),
        (seeding, taken): (Option<Seeding>, Vec<FirstParts>),
    ) -> Persistence {
        Persistence {
            config,
            handles,
            writer,
            batch: WriteBatch::default(),
            span: None,
            collecting_since: None,
            ahead: if reached > position { reached } else { 0 },
            reached_at_start: reached.max(position),
            records,
            unfinished: Unfinished::continued(&taken, position),
            taken_parts: (position, taken),
            recorded: RecordedPosition::at(position, term.0, reached.max(position)),
            seeding,
        }
    }

    /// Whether PostgreSQL may hold entries after the one that is being applied: entries of an
    /// earlier leadership on this replica whose records have not been met yet, or entries that were
    /// applied while an earlier one was unfinished (R12). This ends at the latest when the next
    /// leadership begins.
    pub(super) fn holds_later(&self) -> bool {
        self.records.are_ahead() || self.ahead > 0 || self.seeding.is_some()
    }

    /// From this position on, PostgreSQL's rows and the state machine's ownership belong together
    /// (R9). They do not while PostgreSQL is ahead: rows that are owned here may already be purged
    /// in it.
    pub(super) fn ownership_changed(&self, position: u64) {
        let together = if self.holds_later() { u64::MAX } else { position };
        self.handles.owned_changed.store(together, Ordering::SeqCst);
    }

    /// Whether PostgreSQL holds this entry already, by its record.
    pub(super) fn meet(&mut self, position: u64, term: Term, serial: u64) -> bool {
        let stored = self.records.meet(position, (term.0, serial));
        if stored && !self.holds_later() {
            self.ownership_changed(position);
        }
        stored
    }

    /// A leadership begins: no entry of an earlier one comes any more (invariant 1), so their
    /// records are of entries before this position.
    pub(super) fn begin_term(&mut self, position: u64, term: Term) {
        let ahead = self.holds_later();
        self.records.begin_term(position, term);
        if ahead && !self.holds_later() {
            self.ownership_changed(position);
        }
    }

    /// The entry at `position` has been applied to the state machine.
    pub(super) fn applied(&mut self, position: u64) {
        if self.ahead > 0 && position >= self.ahead {
            self.ahead = 0;
            if !self.holds_later() {
                self.ownership_changed(position);
            }
        }
    }

    /// The leader records the entry at `position` itself; PostgreSQL does not hold it yet.
    pub(super) fn record_own(&mut self, position: u64, record: (u64, u64)) {
        self.records.write(position, record);
        self.handles.progress.expect(position);
    }

    /// Collects the changes of the entry at `position`.
    pub(super) fn add_changes(&mut self, position: u64, mut changes: Changes, state: &ShardState) {
        if let Some(seeding) = &self.seeding {
            changes = seeding.without_missing(position, changes, state);
        }
        if position <= self.reached_at_start {
            // R12: it is applied again. To rows without a key that would happen twice (R18).
            changes.changes.retain(|change| !has_no_key(state, change.table));
        }
        self.batch.add_changes(changes);
        self.collect(position);
    }

    /// Collects what a control entry changes in rows and tables.
    pub(super) fn add_effects(&mut self, effects: &[ControlEffect], state: &ShardState) {
        effects.iter().for_each(|effect| self.batch.add_effect(effect.clone(), state));
    }

    /// The entry at `position` is complete: PostgreSQL lacks it if anything is collected.
    pub(super) fn collect_or_pass(&mut self, position: u64) {
        if self.batch.is_empty() {
            self.handles.progress.pass(position);
        } else {
            self.collect(position);
        }
    }

    /// PostgreSQL lacks the entry at `position` until the batch has been applied.
    fn collect(&mut self, position: u64) {
        self.collecting_since.get_or_insert_with(evenkeel_host::now);
        match &mut self.span {
            Some((_, last)) => {
                *last = position;
                self.handles.progress.pass(position);
            }
            None => {
                self.span = Some((position, position));
                self.handles.progress.expect(position);
            }
        }
    }

    /// When the batch is due. While PostgreSQL is behind, batches end by size: waiting in the queue
    /// takes longer than any collecting.
    pub(super) fn due(&self) -> Option<Instant> {
        let collect_ms = if self.is_behind() { CHECKPOINT_MS } else { COLLECT_MS };
        self.collecting_since.map(|since| since + Duration::from_millis(collect_ms))
    }

    /// Whether the batch is large enough to be applied.
    pub(super) fn is_full(&self) -> bool {
        self.batch.size_bytes() >= if self.is_behind() { BATCH_BYTES_BEHIND } else { BATCH_BYTES }
    }

    fn is_behind(&self) -> bool {
        self.writer.waiting_bytes() >= BEHIND_BYTES
    }

    /// Hands the batch to the apply writer. With `at`, the position is recorded up to there even if
    /// the batch is empty.
    pub(super) async fn flush(&mut self, applied: &AppliedState, at: Option<u64>) -> Result<(), ApplyError> {
        self.collecting_since = None;
        let span = self.span.take();
        let Some(last) = at.or(span.map(|(_, last)| last)) else { return Ok(()) };
        let bytes = self.batch.size_bytes();
        let operations = self.batch.take(&applied.state);
        let batch = self.positioned(applied, last, operations, if at.is_some() { Urgency::Now } else { Urgency::Any });
        let confirms = span.map(|(first, _)| first).into_iter().collect();
        self.writer.ask(Command::Apply { batch: Box::new(batch), confirms, bytes }).await?;
        Ok(())
    }

    /// A batch that records `position`, the state machine if that has changed, and the answers
    /// since the last batch. An [`Urgency::Any`] batch may record a position a little further back.
    fn positioned(
        &mut self,
        applied: &AppliedState,
        position: u64,
        operations: Vec<StoreOperation>,
        urgency: Urgency,
    ) -> ApplyBatch {
        let before = self.recorded.position;
        let (recordable, now) = (self.unfinished.recordable(position), urgency != Urgency::Any);
        let changed = self.recorded.record(recordable, applied.term.0, position, now);
        let state = if changed { self.encoded_state(applied) } else { None };
        let (position, term, reached) = (self.recorded.position, self.recorded.term, self.recorded.reached);
        self.unfinished.recorded(position);
        if let Some(state) = &state {
            self.recorded.state_stored(state.len());
        }
        let answers = self.handles.window().since(before, position);
        self.recorded.history.push_back((evenkeel_host::now(), position));
        let seeding = self.seeding.as_ref().map(|seeding| seeding.missing.encode());
        let sync = urgency == Urgency::Durable;
        let transactions = self.recorded_transactions(before);
        let records = Vec::new();
        ApplyBatch { operations, position, reached, term, state, answers, seeding, transactions, sync, records }
    }

    /// The transactions over several shards as of the position that is recorded, unless it is the
    /// one `before`, with which they have been recorded.
    fn recorded_transactions(&mut self, before: u64) -> Option<Bytes> {
        let position = self.recorded.position;
        if position == before {
            return None;
        }
        let mut transactions = self.handles.transactions();
        // Encoding our own values into memory cannot fail.
        let recorded = transactions.recorded_at(position).unwrap_or_default();
        transactions.recorded(position);
        drop(transactions);
        self.recorded.transactions_stored(recorded.as_ref().map_or(0, Bytes::len));
        recorded
    }

    /// The state that is stored beside the rows.
    pub(super) fn saved_state(&self, applied: &AppliedState) -> SavedState {
        let (state, sizes) = (applied.state.clone(), self.handles.latches.sizes());
        let (at, taken) = &self.taken_parts;
        let unfinished = if *at == self.recorded.position { taken.clone() } else { Vec::new() };
        SavedState { state, sizes, transactions: None, unfinished }
    }

    fn encoded_state(&self, applied: &AppliedState) -> Option<Bytes> {
        // An error here shows at the next state transfer too; the recorded state stays, and entries
        // are applied to it again.
        self.saved_state(applied).encode().ok()
    }

    /// A leader applies the effects of its own control entry at once, with the entry's record.
    pub(super) async fn apply_own(
        &mut self,
        state: &ShardState,
        position: u64,
        record: (u64, u64),
        mut batch: WriteBatch,
    ) -> Result<(), ApplyError> {
        self.record_own(position, record);
        let bytes = batch.size_bytes();
        let batch = ApplyBatch { operations: batch.take(state), records: vec![record], ..ApplyBatch::default() };
        self.writer.ask(Command::Apply { batch: Box::new(batch), confirms: vec![position], bytes }).await?;
        Ok(())
    }

    /// AppliedRecords positions, makes them durable, lets the log be compacted, and deletes records
    /// that are no longer needed.
    pub(super) async fn checkpoint(&mut self, applied: &AppliedState) -> Result<(), ApplyError> {
        // A leader collects nothing; a busy follower always does.
        self.flush(applied, None).await?;
        // The apply writer stores in the order in which it is asked.
        let watermark = self.handles.progress.watermark();
        let reached = self.unfinished.recordable(watermark).max(self.recorded.position);
        self.handles.log.applied(LogIndex(self.handles.progress.watermark()));
        // The state machine is ahead of PostgreSQL: a position and the state machine recorded with
        // it must belong together.
        if self.recorded.state_changed_at > reached {
            return Ok(());
        }
        let log_is_large = self.handles.log.status().log_bytes > self.config.log_cap_bytes / 8 * 3;
        let sync = self.recorded.is_durable_due(log_is_large, reached);
        if reached > self.recorded.position || sync {
            let urgency = if sync { Urgency::Durable } else { Urgency::Any };
            let batch = self.positioned(applied, reached, Vec::new(), urgency);
            self.writer.ask(Command::Apply { batch: Box::new(batch), confirms: Vec::new(), bytes: 0 }).await?;
        }
        if sync {
            self.recorded.durable(reached);
            // The writer does this after it has stored the batch.
            self.writer.ask(Command::Compact(reached)).await?;
        }
        self.prune(reached).await
    }

    async fn prune(&mut self, reached: u64) -> Result<(), ApplyError> {
        // Only what a *durable* position covers may lose its record: after a crash PostgreSQL may
        // be back at that position (R16).
        let covered = reached.min(self.recorded.durable_position);
        let records = self.records.covered(covered, PRUNE_RECORDS);
        let positions_below = self.recorded.outlived();
        if !records.is_empty() || positions_below > 0 {
            self.writer.ask(Command::Prune { records, positions_below }).await?;
        }
        Ok(())
    }

    /// Takes rows that were missing, if they hold everything that has been applied (R32). Returns
    /// whether they do.
    pub(super) async fn take_piece(&mut self, applied: &AppliedState, piece: SeedPiece) -> Result<bool, ApplyError> {
        if self.seeding.is_none() {
            return Ok(false);
        }
        if piece.position < self.handles.progress.applied() && !deliberate(Bug::StalePiece) {
            metrics::counter!("evenkeel_seed_stale_pieces_total").increment(1);
            return Ok(false);
        }
        // R34: rows of a later version of the schema do not fit the tables here.
        if piece.schema != applied.state.schema_version() {
            metrics::counter!("evenkeel_seed_stale_pieces_total").increment(1);
            return Ok(false);
        }
        let Some(table) = applied.state.table(piece.table).cloned() else { return Ok(false) };
        // Earlier changes go in first, without these rows.
        self.flush(applied, None).await?;
        let bytes = piece.rows.data.len() as u64;
        let taken_bytes = self.seeding.as_mut().map(|seeding| {
            seeding.missing.came(piece.table, &piece.covered, piece.holds_to);
            if has_no_key(&applied.state, piece.table) {
                seeding.missing.came_exactly(piece.table, piece.position);
            }
            seeding.taken_bytes.clone()
        });
        let rows = StoreOperation::ReplaceInterval { table, interval: piece.covered, rows: piece.rows, copied: None };
        let batch = self.positioned(applied, self.handles.progress.applied(), vec![rows], Urgency::Any);
        self.writer.ask(Command::Apply { batch: Box::new(batch), confirms: Vec::new(), bytes: bytes as usize }).await?;
        let (room, asked) = (piece.room, evenkeel_host::now());
        let stored = move || {
            metrics::histogram!("evenkeel_seed_store_seconds").record(evenkeel_host::elapsed(asked).as_secs_f64());
            metrics::counter!("evenkeel_seed_taken_bytes_total").increment(bytes);
            taken_bytes.inspect(|taken| _ = taken.fetch_add(bytes, Ordering::Relaxed));
            drop(room);
        };
        self.writer.ask(Command::Then(Box::new(stored))).await?;
        Ok(true)
    }

    /// Ends the re-seeding once no row is missing and everything that a piece may hold beyond its
    /// position is applied.
    pub(super) async fn end_seeding(&mut self, applied: &AppliedState) -> Result<(), ApplyError> {
        let position = self.handles.progress.applied();
        if !self.seeding.as_ref().is_some_and(|seeding| seeding.is_done(position)) {
            return Ok(());
        }
        self.flush(applied, None).await?;
        self.seeding = None;
        let batch = self.positioned(applied, position, Vec::new(), Urgency::Durable);
        self.writer.ask(Command::Apply { batch: Box::new(batch), confirms: Vec::new(), bytes: 0 }).await?;
        let whole = self.handles.whole.clone();
        let then = move || {
            whole.send_replace(true);
        };
        self.writer.ask(Command::Then(Box::new(then))).await?;
        self.ownership_changed(position);
        tracing::info!(shard = %self.config.shard, replica = self.config.replica, applied = position, "has all rows again");
        Ok(())
    }
}
