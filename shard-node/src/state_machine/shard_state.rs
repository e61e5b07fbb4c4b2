//! [`ShardState`]: the state, and the entries that create tables, split ranges and merge them.

use super::effect::Effect;
use super::finished_operators::{self, Work};
use super::movement::{MoveIn, MoveOut};
use super::moves::Moves;
use super::operators::Operators;
use super::owned_ranges::{OwnedRange, OwnedRanges};
use super::refusal::{Refusal, refuse};
use super::tables::Tables;
use super::unclaimed;
use crate::log_entry::image::Image;
use crate::log_entry::{Change, Changes, Control};
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, TableId, TableSchema};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The state machine of a shard. A copy shares memory with the original, so that copying costs the
/// same at any size. The order of the fields is the format on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    tables: Tables,
    owned: OwnedRanges,
    operators: Operators,
    highest: HighestNumbers,
}

impl ShardState {
    /// A table.
    pub fn table(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.tables.get(id)
    }

    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.tables.iter()
    }

    /// All owned ranges, by table and key.
    pub fn owned(&self) -> impl Iterator<Item = &OwnedRange> {
        self.owned.iter()
    }

    /// The owned ranges of a table that share keys with `interval`, by key.
    pub fn overlapping<'a>(
        &'a self,
        table: TableId,
        interval: &'a KeyInterval,
    ) -> impl Iterator<Item = &'a OwnedRange> {
        self.owned.overlapping(table, interval)
    }

    /// The keys that the last control entry gave to this shard, took from it, or put under another
    /// range: of each range that is new, and of each that is no more.
    pub fn changed_hands(&self) -> &[(TableId, KeyInterval)] {
        self.owned.changed()
    }

    /// The owned range that holds the key.
    pub fn owner(&self, table: TableId, key: &Key) -> Option<&OwnedRange> {
        self.owned.at(table, key)
    }

    /// An owned range by its id.
    pub fn range(&self, id: RangeId) -> Option<&OwnedRange> {
        self.owned.get(id)
    }

    /// Moves out of this shard that are not finished.
    pub fn moves_out(&self) -> impl Iterator<Item = &MoveOut> {
        self.operators.moves_out.values()
    }

    /// Moves into this shard that are not forgotten.
    pub fn moves_in(&self) -> impl Iterator<Item = &MoveIn> {
        self.operators.moves_in.values()
    }

    /// A move out by its operator.
    pub fn move_out(&self, operator: OperatorId) -> Option<&MoveOut> {
        self.operators.moves_out.get(&operator)
    }

    /// A move in by its operator.
    pub fn move_in(&self, operator: OperatorId) -> Option<&MoveIn> {
        self.operators.moves_in.get(&operator)
    }

    /// The keys of a table that this shard neither owns nor moves, as sorted intervals: at most one
    /// more than it has ranges and moves.
    pub fn unclaimed(&self, table: TableId) -> Vec<KeyInterval> {
        let all = KeyInterval::ALL;
        let owned = self.overlapping(table, &all).map(|range| &range.interval);
        let out = self.moves_out().filter(|moved| moved.table == table).map(|moved| &moved.interval);
        let coming = self.moves_in().filter(|moved| moved.table == table).map(|moved| &moved.interval);
        unclaimed::complement(owned.chain(out).chain(coming).cloned().collect())
    }

    /// Destination: the outcome of a move, as far as this log knows it (R23): whether its range was
    /// adopted.
    pub fn resolved(&self, operator: OperatorId) -> Option<bool> {
        self.operators.resolved(operator)
    }

    /// Whether the operator has run its course here.
    pub fn is_finished(&self, operator: OperatorId) -> bool {
        self.operators.is_finished(operator)
    }

    /// What an operator did that has run its course here; `None` if it has not, or so long ago that
    /// it is forgotten.
    pub fn finished(&self, operator: OperatorId) -> Option<&Work> {
        self.operators.finished(operator)
    }

    /// The highest numbers that have ever come here.
    pub fn highest(&self) -> HighestNumbers {
        self.highest
    }

    /// The last operator that changed a range's bounds or began to move it.
    pub fn last_operator(&self, range: RangeId) -> Option<OperatorId> {
        self.operators.last_operator.get(&range).copied()
    }

    /// The ownership fence (invariant 2): whether every changed key is owned, unfenced, here in the
    /// log.
    pub fn judge(&self, changes: &Changes) -> Result<(), Refusal> {
        for Change { table, key, image } in &changes.changes {
            if *image == Image::Truncated {
                self.judge_truncation(*table)?;
            } else if self.owner(*table, key).is_none() {
                return refuse("not-owned", format!("key {} of table {table} is not owned here", key.to_hex()));
            }
        }
        Ok(())
    }

    /// The same of all of a table's keys. A range that is about to move is not truncated: its copy
    /// would not be.
    fn judge_truncation(&self, table: TableId) -> Result<(), Refusal> {
        if !self.owns_whole(table) {
            return refuse("not-owned", format!("not all of table {table} is owned here"));
        }
        match self.moves_out().find(|moved| moved.table == table) {
            Some(moved) => refuse("move-open", format!("range {} of table {table} moves", moved.range)),
            None => Ok(()),
        }
    }

    /// Whether this shard owns all keys of a table.
    pub fn owns_whole(&self, table: TableId) -> bool {
        let mut next = Some(Key::MIN);
        for range in self.overlapping(table, &KeyInterval::ALL) {
            if next.as_ref() != Some(&range.interval.start) {
                return false;
            }
            next.clone_from(&range.interval.end);
            if next.is_none() {
                return true;
            }
        }
        false
    }

    /// Applies a control entry. `position` is its place in the log.
    pub fn control(&mut self, position: u64, control: &Control) -> Result<Vec<Effect>, Refusal> {
        self.owned.begin();
        self.highest = self.highest.max(finished_operators::numbers(control));
        match control {
            Control::CreateTable { schema, range } => self.create_table(schema, *range),
            Control::DropTable { table } => self.drop_table(*table),
            Control::Split { operator, range, epoch, at } => self.split(*operator, *range, *epoch, at),
            Control::Merge { operator, left, right } => self.merge(*operator, *left, *right),
            // It changes nothing.
            Control::Checkpoint { .. } => Ok(Vec::new()),
            movement => {
                let (tables, owned, operators) = (&mut self.tables, &mut self.owned, &mut self.operators);
                Moves { tables, owned, operators }.apply(position, movement)
            }
        }
    }

    fn create_table(&mut self, schema: &TableSchema, range: RangeId) -> Result<Vec<Effect>, Refusal> {
        if self.tables.contains(schema.id) {
            return refuse("table-exists", format!("table {} exists already", schema.id));
        }
        self.tables.expect_free_name(schema)?;
        self.expect_new(range)?;
        // Invariant 8: it is new, so no open transaction has touched it and there is nothing to
        // drain.
        let schema = self.tables.add(schema);
        self.owned.add(OwnedRange { id: range, epoch: Epoch(1), table: schema.id, interval: KeyInterval::ALL });
        Ok(vec![Effect::CreateTable(schema), Effect::OwnershipChanged])
    }

    /// Drops a table whose creation was given up: only what its creation made may exist of it.
    fn drop_table(&mut self, id: TableId) -> Result<Vec<Effect>, Refusal> {
        let Some(schema) = self.tables.get(id).cloned() else {
            return refuse("no-such-table", format!("there is no table {id} here"));
        };
        let moved = self.operators.moves_out.values().any(|m| m.table == id)
            || self.operators.moves_in.values().any(|m| m.table == id);
        let owned: Vec<OwnedRange> = self.owned().filter(|range| range.table == id).cloned().collect();
        let untouched = |range: &OwnedRange| range.epoch == Epoch(1) && range.interval == KeyInterval::ALL;
        let [only] = owned.as_slice() else {
            return refuse("table-in-use", format!("table {id} has {} ranges here", owned.len()));
        };
        if moved || !untouched(only) {
            return refuse("table-in-use", format!("range {} of table {id} has been split or moved", only.id));
        }
        // Its range's number stays used.
        self.operators.last_operator.insert(only.id, OperatorId(0));
        self.owned.remove(only);
        self.tables.remove(id);
        Ok(vec![Effect::DropTable(schema), Effect::OwnershipChanged])
    }

    fn split(
        &mut self,
        operator: OperatorId,
        range: RangeId,
        epoch: Epoch,
        at: &[(Key, RangeId)],
    ) -> Result<Vec<Effect>, Refusal> {
        let old = self.owned.expect(range, epoch)?;
        self.tables.expect_not_pinned(old.table)?;
        self.operators.expect_no_move(range)?;
        let codec = self.tables.get(old.table).map(|schema| schema.codec()).unwrap_or_default();
        let points: Vec<Key> = at.iter().map(|(key, _)| key.clone()).collect();
        if points.is_empty() || points.iter().any(|key| codec.decode(key).is_err()) {
            return refuse("bad-split", "a range is split at whole keys of its table, at least one");
        }
        let Some(pieces) = old.interval.split(&points) else {
            return refuse("bad-split", "the points must grow and lie strictly inside the range");
        };
        self.operators.expect_unused(operator)?;
        let new: Vec<RangeId> = at.iter().map(|(_, id)| *id).collect();
        for (n, id) in new.iter().enumerate() {
            self.expect_new(*id)?;
            if *id == range || new[..n].contains(id) {
                return refuse("bad-split", format!("two pieces would be range {id}"));
            }
        }
        self.owned.remove(&old);
        let ids = std::iter::once(range).chain(at.iter().map(|(_, id)| *id));
        for (interval, id) in pieces.into_iter().zip(ids) {
            self.owned.add(OwnedRange { id, epoch: epoch.next(), table: old.table, interval });
            self.operators.last_operator.insert(id, operator);
        }
        self.operators.finish(operator, Work::Split { range, epoch, pieces: new });
        Ok(vec![Effect::OwnershipChanged])
    }

    fn merge(
        &mut self,
        operator: OperatorId,
        left: (RangeId, Epoch),
        right: (RangeId, Epoch),
    ) -> Result<Vec<Effect>, Refusal> {
        let (l, r) = (self.owned.expect(left.0, left.1)?, self.owned.expect(right.0, right.1)?);
        self.operators.expect_no_move(left.0)?;
        self.operators.expect_no_move(right.0)?;
        let joined = if l.table == r.table { l.interval.join(&r.interval) } else { None };
        let Some(interval) = joined else {
            return refuse("not-neighbours", format!("range {} does not end where {} begins", left.0, right.0));
        };
        self.operators.expect_unused(operator)?;
        self.owned.remove(&l);
        self.owned.remove(&r);
        self.owned.add(OwnedRange { id: l.id, epoch: left.1.max(right.1).next(), table: l.table, interval });
        self.operators.last_operator.insert(l.id, operator);
        self.operators.last_operator.remove(&r.id);
        self.operators.finish(operator, Work::Merge { left, right });
        Ok(vec![Effect::OwnershipChanged])
    }

    /// The same of a new range's id.
    fn expect_new(&self, id: RangeId) -> Result<(), Refusal> {
        match self.operators.last_operator.contains_key(&id) || self.range(id).is_some() {
            true => refuse("range-exists", format!("there is, or was, a range {id} here")),
            false => Ok(()),
        }
    }
}
