//! The state of moves: the source's side and the destination's.
//!
//! | source | by |   | destination | by |
//! |---|---|---|---|---|
//! | Open | `MoveOpen` | | Copying | `IngestOpen`, `IngestAttempt`, `IngestChunk`, `IngestTail` |
//! | Fenced | `Fence` | | Adopted | `Adopt` |
//! | HandedOver | `HandedOver` | | | |
//! | Purging | `Purge` | | Discarding | `Decline`, `IngestCancel`, `Discard` |
//! | (gone) | last `Purge`, `MoveCancel`, `TakeBack` | | (gone) | `Forget`, last `Discard` |
//!
//! Everything that comes in is judged by its open operator, not by ownership (R13), and takes
//! effect only if it continues the latest attempt (R21).

use super::effect::{ControlEffect, CopiedRows};
use super::finished_operators::FinishedWork;
use super::movement::{InPhase, MoveIn, MoveOut, OutPhase};
use super::operators::{Operators, no_such};
use super::owned_ranges::{OwnedRange, OwnedRanges};
use super::range_size::RangeSize;
use super::refusal::{EntryRefusal, refuse};
use super::tables::Tables;
use crate::log_entry::{Control, TailEntry};
use bytes::Bytes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, RowBatch, TableId, TableSchema};

/// The parts of the state machine that an entry of a move can change.
pub(super) struct Moves<'a> {
    pub(super) tables: &'a mut Tables,
    pub(super) owned: &'a mut OwnedRanges,
    pub(super) operators: &'a mut Operators,
}

impl Moves<'_> {
    /// Applies an entry that belongs to a move. `position` is its place in the log.
    pub(super) fn apply(&mut self, position: u64, control: &Control) -> Result<Vec<ControlEffect>, EntryRefusal> {
        match control {
            Control::MoveOpen { operator, range, epoch, to } => self.move_open(*operator, *range, *epoch, to),
            Control::MoveCancel { operator } => self.move_cancel(*operator),
            Control::Fence { operator, held_since_us } => self.fence(*operator, position, *held_since_us),
            Control::HandedOver { operator } => self.handed_over(*operator),
            Control::TakeBack { operator } => self.take_back(*operator),
            Control::Purge { operator, interval, last } => self.purge(*operator, interval, *last),
            Control::IngestOpen { operator, schema, range, interval, epoch, from } => {
                self.ingest_open(*operator, schema, *range, interval, *epoch, from)
            }
            Control::IngestAttempt { operator, attempt, position } => {
                self.ingest_attempt(*operator, *attempt, *position)
            }
            Control::IngestChunk { operator, attempt, interval, from, position, rows, checksum } => {
                self.ingest_chunk(*operator, *attempt, interval, (*from, *position), rows, *checksum)
            }
            Control::IngestTail { operator, attempt, from, to, stamp_ms, entries } => {
                self.ingest_tail(*operator, *attempt, (*from, *to), *stamp_ms, entries)
            }
            Control::Adopt { operator, attempt, fence, epoch, held_since_us } => {
                self.adopt(*operator, *attempt, *fence, *epoch, *held_since_us)
            }
            Control::IngestCancel { operator } => self.ingest_cancel(*operator),
            Control::Decline { operator } => {
                self.operators.copying(*operator)?.phase = InPhase::Discarding;
                Ok(vec![])
            }
            Control::Discard { operator, interval, last } => self.discard(*operator, interval, *last),
            Control::Forget { operator } => match self.operators.moves_in.get(operator) {
                Some(m) if m.phase == InPhase::Adopted => {
                    let work = m.work();
                    self.operators.moves_in.remove(operator);
                    self.operators.finish(*operator, work);
                    Ok(vec![])
                }
                Some(_) => refuse("not-adopted", format!("operator {operator} is not resolved yet")),
                None => no_such(*operator),
            },
            Control::CreateTable { .. }
            | Control::DropTable { .. }
            | Control::Split { .. }
            | Control::Merge { .. }
            | Control::Checkpoint { .. }
            | Control::SchemaPrepare { .. }
            | Control::SchemaAbort { .. }
            | Control::SchemaChange { .. } => refuse("not-a-move", "this entry is no part of a move"),
        }
    }

    fn move_open(
        &mut self,
        operator: OperatorId,
        range: RangeId,
        epoch: Epoch,
        to: &ShardInfo,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let owned = self.owned.expect(range, epoch)?;
        self.tables.expect_not_pinned(owned.table)?;
        self.operators.expect_no_move(range)?;
        self.operators.expect_later(operator, range)?;
        self.operators.last_operator.insert(range, operator);
        let (table, interval, to) = (owned.table, owned.interval, to.clone());
        self.operators
            .moves_out
            .insert(operator, MoveOut { operator, range, table, interval, epoch, to, phase: OutPhase::Open });
        Ok(vec![])
    }

    fn move_cancel(&mut self, operator: OperatorId) -> Result<Vec<ControlEffect>, EntryRefusal> {
        match self.operators.moves_out.get(&operator) {
            Some(m) if m.phase == OutPhase::Open => {
                let work = m.work();
                self.operators.moves_out.remove(&operator);
                self.operators.finish(operator, work);
                Ok(vec![ControlEffect::MoveCancelled(operator)])
            }
            Some(_) => refuse("already-fenced", format!("operator {operator} has passed its fence")),
            None if self.operators.is_finished(operator) => no_such(operator),
            // Its opening may still be on its way, and must not come into effect behind its
            // cancellation.
            None => {
                self.operators.finish(operator, FinishedWork::Cancelled);
                Ok(vec![])
            }
        }
    }

    /// Destination: what comes in is discarded; what was not opened yet never will be.
    fn ingest_cancel(&mut self, operator: OperatorId) -> Result<Vec<ControlEffect>, EntryRefusal> {
        if !self.operators.moves_in.contains_key(&operator) && !self.operators.is_finished(operator) {
            self.operators.finish(operator, FinishedWork::Cancelled);
            return Ok(vec![]);
        }
        self.operators.copying(operator)?.phase = InPhase::Discarding;
        Ok(vec![])
    }

    fn fence(
        &mut self,
        operator: OperatorId,
        position: u64,
        held_since_us: u64,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let Some(movement) = self.operators.moves_out.get_mut(&operator) else { return no_such(operator) };
        if movement.phase != OutPhase::Open {
            return refuse("already-fenced", format!("operator {operator} has passed its fence"));
        }
        movement.phase = OutPhase::Fenced { position, held_since_us };
        let range = movement.range;
        let owned = self.owned.get(range).cloned();
        match owned {
            Some(owned) => self.owned.remove(&owned),
            // An open move keeps its range as it is (R20), so this cannot be.
            None => return refuse("no-such-range", format!("range {range} is not owned here")),
        }
        Ok(vec![ControlEffect::Fenced(operator)])
    }

    fn handed_over(&mut self, operator: OperatorId) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let Some(movement) = self.operators.moves_out.get_mut(&operator) else { return no_such(operator) };
        match movement.phase {
            OutPhase::Fenced { .. } => {
                movement.phase = OutPhase::HandedOver;
                Ok(vec![])
            }
            _ => refuse("not-fenced", format!("operator {operator} does not wait for the destination")),
        }
    }

    fn take_back(&mut self, operator: OperatorId) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let Some(movement) = self.operators.moves_out.get(&operator) else { return no_such(operator) };
        if !matches!(movement.phase, OutPhase::Fenced { .. }) {
            return refuse("not-fenced", format!("operator {operator} does not wait for the destination"));
        }
        let MoveOut { range: id, table, interval, epoch, .. } = movement.clone();
        self.operators.moves_out.remove(&operator);
        // The fence announced the epoch after the old one to the destination: this must be above
        // it.
        self.owned.add(OwnedRange { id, epoch: epoch.next().next(), table, interval });
        self.operators.finish(operator, FinishedWork::MoveOut { range: id, epoch });
        Ok(vec![ControlEffect::OwnershipChanged])
    }

    fn purge(
        &mut self,
        operator: OperatorId,
        interval: &KeyInterval,
        last: bool,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let Some(movement) = self.operators.moves_out.get_mut(&operator) else { return no_such(operator) };
        if !matches!(movement.phase, OutPhase::HandedOver | OutPhase::Purging) || !movement.interval.covers(interval) {
            return refuse("not-handed-over", format!("operator {operator} may not delete {interval}"));
        }
        movement.phase = OutPhase::Purging;
        let (table, work) = (movement.table, movement.work());
        if last {
            self.operators.moves_out.remove(&operator);
            self.operators.finish(operator, work);
        }
        Ok(self.delete(table, interval))
    }

    fn discard(
        &mut self,
        operator: OperatorId,
        interval: &KeyInterval,
        last: bool,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let Some(movement) = self.operators.moves_in.get(&operator) else { return no_such(operator) };
        if movement.phase != InPhase::Discarding || !movement.interval.covers(interval) {
            return refuse("not-discarding", format!("operator {operator} may not delete {interval}"));
        }
        let (table, work) = (movement.table, movement.work());
        if last {
            self.operators.moves_in.remove(&operator);
            self.operators.finish(operator, work);
        }
        Ok(self.delete(table, interval))
    }

    fn delete(&self, table: TableId, interval: &KeyInterval) -> Vec<ControlEffect> {
        if interval.is_empty() {
            return Vec::new();
        }
        let table = self.tables.get(table);
        table
            .map(|table| ControlEffect::Delete { table: table.clone(), interval: interval.clone() })
            .into_iter()
            .collect()
    }

    fn ingest_open(
        &mut self,
        operator: OperatorId,
        schema: &TableSchema,
        range: RangeId,
        interval: &KeyInterval,
        epoch: Epoch,
        from: &ShardInfo,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        self.operators.expect_later(operator, range)?;
        let overlaps = |table: TableId, other: &KeyInterval| table == schema.id && other.overlaps(interval);
        if let Some(other) = self.owned.overlapping(schema.id, interval).next() {
            return refuse("owned-here", format!("range {} is owned here and overlaps", other.id));
        }
        if let Some(other) =
            self.operators.moves_in.values().find(|m| m.phase != InPhase::Adopted && overlaps(m.table, &m.interval))
        {
            return refuse("move-open", format!("operator {} is bringing in keys that overlap", other.operator));
        }
        // What was left behind by an earlier move must be gone first (R24).
        if let Some(other) = self.operators.moves_out.values().find(|m| overlaps(m.table, &m.interval)) {
            if other.phase == OutPhase::HandedOver {
                // It is over for the placement driver, which otherwise would not bring the range
                // back: nobody will delete this.
                let left = other.operator;
                let reason = format!(
                    "what operator {left} left is kept, because it was not verified; `evenkeel operators purge {left}` \
                     deletes it"
                );
                return refuse("copy-kept", reason);
            }
            return refuse("purge-unfinished", format!("operator {} has not yet deleted what it left", other.operator));
        }
        self.tables.expect_free_name(schema)?;
        let codec = schema.codec();
        let is_key = |key: &Key| codec.decode(key).is_ok();
        if !(interval.start == Key::MIN || is_key(&interval.start)) || !interval.end.as_ref().is_none_or(is_key) {
            // Its bounds become parameters of statements, on every replica (invariant 5).
            return refuse("bad-interval", format!("{interval} does not begin and end at whole keys of its table"));
        }
        let known = self.tables.contains(schema.id);
        let schema = self.tables.add(schema);
        self.operators.last_operator.insert(range, operator);
        let mut movement = MoveIn {
            operator,
            range,
            table: schema.id,
            interval: interval.clone(),
            epoch,
            from: from.clone(),
            attempt: 0,
            phase: InPhase::Copying,
            rows: 0,
            bytes: 0,
            size: RangeSize::default(),
            next: None,
            tail_to: 0,
        };
        movement.begin_attempt(0, 0);
        self.operators.moves_in.insert(operator, movement);
        let mut effects = vec![ControlEffect::IngestOpened(operator)];
        if !known {
            effects.insert(0, ControlEffect::CreateTable(schema));
        }
        Ok(effects)
    }

    fn ingest_attempt(
        &mut self,
        operator: OperatorId,
        attempt: u64,
        position: u64,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let movement = self.operators.copying(operator)?;
        if attempt <= movement.attempt {
            return refuse("stale-attempt", format!("attempt {} has begun already", movement.attempt));
        }
        movement.begin_attempt(attempt, position);
        Ok(vec![])
    }

    fn ingest_chunk(
        &mut self,
        operator: OperatorId,
        attempt: u64,
        interval: &KeyInterval,
        (from, position): (u64, u64),
        rows: &RowBatch,
        checksum: RangeChecksum,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let movement = self.operators.attempting(operator, attempt)?;
        let continues = movement.next.as_ref() == Some(&interval.start) && movement.interval.covers(interval);
        if !continues || interval.is_empty() || from != movement.tail_to || position < from {
            return refuse("not-continuing", format!("chunk {interval} at {from} does not continue the copy"));
        }
        // What lies below the cursor is as of this position too: nothing has happened there since
        // `from`.
        movement.tail_to = position;
        movement.next = if interval.end == movement.interval.end { None } else { interval.end.clone() };
        movement.rows += u64::from(rows.count);
        movement.size.add_rows(rows);
        movement.bytes += rows.data.len() as u64;
        let table = movement.table;
        let Some(table) = self.tables.get(table).cloned() else { return no_such(operator) };
        let copied = CopiedRows { operator, attempt, checksum };
        Ok(vec![ControlEffect::Replace { table, interval: interval.clone(), rows: rows.clone(), copied }])
    }

    fn ingest_tail(
        &mut self,
        operator: OperatorId,
        attempt: u64,
        (from, to): (u64, u64),
        stamp_ms: u64,
        entries: &[Bytes],
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let movement = self.operators.attempting(operator, attempt)?;
        if from != movement.tail_to || to < from {
            return refuse("not-continuing", format!("changes from {from} to {to} do not continue the copy"));
        }
        let mut tail = Vec::with_capacity(entries.len());
        for encoded in entries {
            let Ok(mut entry) = TailEntry::decode(encoded.clone()) else {
                return refuse("malformed-tail", "the tail cannot be decoded");
            };
            // A change of a key that is not copied yet comes with the key's chunk.
            entry.changes.changes.retain(|change| movement.has_copied(&change.key));
            entry.changes.changes.iter().for_each(|change| movement.size.change(&change.image));
            tail.push(entry);
        }
        movement.tail_to = to;
        movement.bytes += entries.iter().map(|e| e.len() as u64).sum::<u64>();
        Ok(vec![ControlEffect::Tail { stamp_ms, entries: tail }])
    }

    fn adopt(
        &mut self,
        operator: OperatorId,
        attempt: u64,
        fence: u64,
        epoch: Epoch,
        held_since_us: u64,
    ) -> Result<Vec<ControlEffect>, EntryRefusal> {
        let movement = self.operators.attempting(operator, attempt)?;
        if movement.next.is_some() || movement.tail_to < fence {
            return refuse("not-complete", format!("the source's position {fence} has not come in"));
        }
        if epoch <= movement.epoch {
            return refuse("wrong-epoch", format!("epoch {epoch} is not after {}", movement.epoch));
        }
        movement.phase = InPhase::Adopted;
        let owned =
            OwnedRange { id: movement.range, epoch, table: movement.table, interval: movement.interval.clone() };
        self.owned.add(owned);
        Ok(vec![ControlEffect::Adopted { operator, held_since_us }])
    }
}
