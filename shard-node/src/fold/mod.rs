//! The shard's state machine: what a prefix of its log means.
//!
//! [`ShardState`] is a pure fold: the same entries in the same order give the same state and the same verdicts on every
//! replica. It owns the answer to "does this shard own this key, here in the log?" (invariants 2 and 6) and the state of every move.
//! It holds no rows; it says what must be done to them, as [`Effect`]s.
//!
//! Ownership passes in two entries: `Fence` takes the range out of `owned` here, `Adopt` puts it into `owned` at the
//! destination. Between the two nobody owns it, and no statement can be answered that would depend on it.
//!
//! A verdict judges a whole entry, never a part of it (R13). An entry that is refused is *void*: it has no effect, on every
//! replica alike. The term fence (invariant 1) has been applied before, by the replicated log.

mod moves;
mod window;

pub use moves::{InPhase, MoveIn, MoveOut, OutPhase};
pub use window::{MAX_ID_AGE_MS, RETRY_WINDOW_MS, RetryWindow};

use crate::entry::{Change, Changes, Control, TailEntry};
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, RowBatch, TableId, TableSchema};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How many finished operators are remembered, so that a repeated request is answered "done".
const REMEMBERED_OPERATORS: usize = 512;

/// A range that this shard owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedRange {
    /// Its id.
    pub id: RangeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
}

/// Why an entry has no effect. The code is stable and reaches the placement driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub reason: String,
}

fn refuse<T>(code: &'static str, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, reason: reason.into() })
}

/// What an effective control entry does outside the state machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Create this table in PostgreSQL.
    CreateTable(Arc<TableSchema>),
    /// Put these rows in the place of all that lies in the interval.
    Replace {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
        /// The rows.
        rows: RowBatch,
    },
    /// Apply the changes, and take the answers into the retry window.
    Tail(Vec<TailEntry>),
    /// Delete all rows in the interval.
    Delete {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
    },
    /// What this shard owns has changed, by an entry that moves no rows.
    OwnershipChanged,
    /// A fence was passed: what is owned has shrunk.
    Fenced(OperatorId),
    /// A range was adopted.
    Adopted {
        /// The operator.
        operator: OperatorId,
        /// When the source began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// A move was cancelled before its fence.
    MoveCancelled(OperatorId),
    /// A move in has been opened, or wants a new attempt.
    IngestOpened(OperatorId),
    /// Take checksums here.
    Checkpoint(u64),
}

/// The state machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    tables: BTreeMap<TableId, Arc<TableSchema>>,
    owned: BTreeMap<TableId, BTreeMap<Key, OwnedRange>>,
    moves_out: BTreeMap<OperatorId, MoveOut>,
    moves_in: BTreeMap<OperatorId, MoveIn>,
    last_operator: BTreeMap<RangeId, OperatorId>,
    finished: VecDeque<OperatorId>,
}

impl ShardState {
    /// A table.
    pub fn table(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.tables.get(&id)
    }

    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.tables.values()
    }

    /// All owned ranges, by table and key.
    pub fn owned(&self) -> impl Iterator<Item = &OwnedRange> {
        self.owned.values().flat_map(BTreeMap::values)
    }

    /// The owned range that holds the key.
    pub fn owner(&self, table: TableId, key: &Key) -> Option<&OwnedRange> {
        let (_, range) = self.owned.get(&table)?.range::<Key, _>(..=key).next_back()?;
        range.interval.contains(key).then_some(range)
    }

    /// An owned range by its id.
    pub fn range(&self, id: RangeId) -> Option<&OwnedRange> {
        self.owned().find(|range| range.id == id)
    }

    /// Moves out of this shard that are not finished.
    pub fn moves_out(&self) -> impl Iterator<Item = &MoveOut> {
        self.moves_out.values()
    }

    /// Moves into this shard that are not forgotten.
    pub fn moves_in(&self) -> impl Iterator<Item = &MoveIn> {
        self.moves_in.values()
    }

    /// A move out by its operator.
    pub fn move_out(&self, operator: OperatorId) -> Option<&MoveOut> {
        self.moves_out.get(&operator)
    }

    /// A move in by its operator.
    pub fn move_in(&self, operator: OperatorId) -> Option<&MoveIn> {
        self.moves_in.get(&operator)
    }

    /// Whether the operator has run its course here.
    pub fn is_finished(&self, operator: OperatorId) -> bool {
        self.finished.contains(&operator)
    }

    /// The last operator that changed a range's bounds or began to move it.
    pub fn last_operator(&self, range: RangeId) -> Option<OperatorId> {
        self.last_operator.get(&range).copied()
    }

    /// The ownership fence (invariant 2): whether every changed key is owned, unfenced, here in the log.
    pub fn judge(&self, changes: &Changes) -> Result<(), Refusal> {
        let foreign = changes.changes.iter().find(|change| self.owner(change.table, &change.key).is_none());
        match foreign {
            None => Ok(()),
            Some(Change { table, key, .. }) => {
                refuse("not-owned", format!("key {} of table {table} is not owned here", key.to_hex()))
            }
        }
    }

    /// Folds a control entry in. `position` is its place in the log.
    pub fn control(&mut self, position: u64, control: &Control) -> Result<Vec<Effect>, Refusal> {
        match control {
            Control::CreateTable { schema, range } => self.create_table(schema, *range),
            Control::Split { operator, range, epoch, at } => self.split(*operator, *range, *epoch, at),
            Control::Merge { operator, left, right } => self.merge(*operator, *left, *right),
            Control::Checkpoint { nonce } => Ok(vec![Effect::Checkpoint(*nonce)]),
            movement => self.movement(position, movement),
        }
    }

    fn create_table(&mut self, schema: &TableSchema, range: RangeId) -> Result<Vec<Effect>, Refusal> {
        if self.tables.contains_key(&schema.id) {
            return refuse("table-exists", format!("table {} exists already", schema.id));
        }
        self.expect_free_name(schema)?;
        // Invariant 8: it is new, so no open transaction has touched it and there is nothing to drain.
        let schema = self.add_table(schema);
        self.own(OwnedRange { id: range, epoch: Epoch(1), table: schema.id, interval: KeyInterval::ALL });
        Ok(vec![Effect::CreateTable(schema), Effect::OwnershipChanged])
    }

    fn split(
        &mut self,
        operator: OperatorId,
        range: RangeId,
        epoch: Epoch,
        at: &[(Key, RangeId)],
    ) -> Result<Vec<Effect>, Refusal> {
        let old = self.expect_range(range, epoch)?;
        self.expect_no_move(range)?;
        let codec = self.tables.get(&old.table).map(|schema| schema.codec()).unwrap_or_default();
        let points: Vec<Key> = at.iter().map(|(key, _)| key.clone()).collect();
        if points.is_empty() || points.iter().any(|key| codec.decode(key).is_err()) {
            return refuse("bad-split", "a range is split at whole keys of its table, at least one");
        }
        let Some(pieces) = old.interval.split(&points) else {
            return refuse("bad-split", "the points must grow and lie strictly inside the range");
        };
        self.disown(&old);
        let ids = std::iter::once(range).chain(at.iter().map(|(_, id)| *id));
        for (interval, id) in pieces.into_iter().zip(ids) {
            self.own(OwnedRange { id, epoch: epoch.next(), table: old.table, interval });
            self.last_operator.insert(id, operator);
        }
        self.finish(operator);
        Ok(vec![Effect::OwnershipChanged])
    }

    fn merge(
        &mut self,
        operator: OperatorId,
        left: (RangeId, Epoch),
        right: (RangeId, Epoch),
    ) -> Result<Vec<Effect>, Refusal> {
        let (l, r) = (self.expect_range(left.0, left.1)?, self.expect_range(right.0, right.1)?);
        self.expect_no_move(left.0)?;
        self.expect_no_move(right.0)?;
        let joined = if l.table == r.table { l.interval.join(&r.interval) } else { None };
        let Some(interval) = joined else {
            return refuse("not-neighbours", format!("range {} does not end where {} begins", left.0, right.0));
        };
        self.disown(&l);
        self.disown(&r);
        self.own(OwnedRange { id: l.id, epoch: left.1.max(right.1).next(), table: l.table, interval });
        self.last_operator.insert(l.id, operator);
        self.last_operator.remove(&r.id);
        self.finish(operator);
        Ok(vec![Effect::OwnershipChanged])
    }

    /// Making a table whose name another one has would change nothing in PostgreSQL, and its rows would not fit there (invariant 5).
    fn expect_free_name(&self, schema: &TableSchema) -> Result<(), Refusal> {
        match self.tables.values().find(|other| other.name == schema.name && other.id != schema.id) {
            Some(other) => refuse("name-taken", format!("table {} is named {:?} here", other.id, other.name)),
            None => Ok(()),
        }
    }

    fn add_table(&mut self, schema: &TableSchema) -> Arc<TableSchema> {
        self.tables.entry(schema.id).or_insert_with(|| Arc::new(schema.clone())).clone()
    }

    fn own(&mut self, range: OwnedRange) {
        let ranges = self.owned.entry(range.table).or_default();
        debug_assert!(ranges.values().all(|r| !r.interval.overlaps(&range.interval)), "one owner per key");
        ranges.insert(range.interval.start.clone(), range);
    }

    fn disown(&mut self, range: &OwnedRange) {
        if let Some(ranges) = self.owned.get_mut(&range.table) {
            ranges.remove(&range.interval.start);
        }
    }

    fn expect_range(&self, id: RangeId, epoch: Epoch) -> Result<OwnedRange, Refusal> {
        match self.range(id) {
            None => refuse("no-such-range", format!("range {id} is not owned here")),
            Some(range) if range.epoch != epoch => {
                refuse("wrong-epoch", format!("range {id} is at epoch {}, not {epoch}", range.epoch))
            }
            Some(range) => Ok(range.clone()),
        }
    }

    /// While a move is open its range stays as it is (R20).
    fn expect_no_move(&self, id: RangeId) -> Result<(), Refusal> {
        match self.moves_out.values().find(|m| m.range == id && m.phase == OutPhase::Open) {
            Some(open) => refuse("move-open", format!("operator {} is moving range {id}", open.operator)),
            None => Ok(()),
        }
    }

    fn finish(&mut self, operator: OperatorId) {
        if self.finished.len() == REMEMBERED_OPERATORS {
            self.finished.pop_front();
        }
        self.finished.push_back(operator);
    }
}

#[cfg(test)]
mod tests;
