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

mod extent;
mod finished;
mod moves;
mod owned;
mod shared_map;
mod size;
mod window;

pub use finished::Work;
pub use moves::{InPhase, MoveIn, MoveOut, OutPhase};
pub use owned::OwnedRange;
pub use size::{ROW_OVERHEAD_BYTES, RangeSize, Sampled};
pub use window::{MAX_ID_AGE_MS, RETRY_WINDOW_MS, RangeAnswers, RetryWindow};

use crate::entry::{Change, Changes, Control, TailEntry};
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, RowBatch, TableId, TableSchema};
use finished::Finished;
use owned::Owned;
use serde::{Deserialize, Serialize};
use shared_map::SharedMap;
use std::sync::Arc;

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

/// Where a chunk of rows belongs, and what its source says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedRows {
    /// The move.
    pub operator: OperatorId,
    /// The attempt.
    pub attempt: u64,
    /// The rows' checksum by the source's PostgreSQL.
    pub checksum: RangeChecksum,
}

/// What an effective control entry does outside the state machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Create this table in PostgreSQL.
    CreateTable(Arc<TableSchema>),
    /// Drop this table in PostgreSQL.
    DropTable(Arc<TableSchema>),
    /// Put these rows in the place of all that lies in the interval.
    Replace {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
        /// The rows.
        rows: RowBatch,
        /// What the copy says of them.
        copied: CopiedRows,
    },
    /// Apply the changes, and take the answers into the retry window.
    Tail {
        /// The leader's clock, in milliseconds since the Unix epoch.
        stamp_ms: u64,
        /// What came.
        entries: Vec<TailEntry>,
    },
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
}

/// The state machine. A copy shares everything with the original that neither changes later, so that it costs the same however much there is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardState {
    tables: SharedMap<TableId, Arc<TableSchema>>,
    owned: Owned,
    moves_out: SharedMap<OperatorId, MoveOut>,
    moves_in: SharedMap<OperatorId, MoveIn>,
    last_operator: SharedMap<RangeId, OperatorId>,
    finished: Arc<Finished>,
    highest: HighestNumbers,
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

    /// The keys that the last control entry gave to this shard, took from it, or put under another range: of each range that is new,
    /// and of each that is no more.
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
        self.finished(operator).is_some()
    }

    /// What an operator did that has run its course here; `None` if it has not, or so long ago that it is forgotten.
    pub fn finished(&self, operator: OperatorId) -> Option<&Work> {
        self.finished.get(operator)
    }

    /// The highest numbers that have ever come here.
    pub fn highest(&self) -> HighestNumbers {
        self.highest
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
        self.owned.begin();
        self.highest = self.highest.max(finished::numbers(control));
        match control {
            Control::CreateTable { schema, range } => self.create_table(schema, *range),
            Control::DropTable { table } => self.drop_table(*table),
            Control::Split { operator, range, epoch, at } => self.split(*operator, *range, *epoch, at),
            Control::Merge { operator, left, right } => self.merge(*operator, *left, *right),
            // It changes nothing.
            Control::Checkpoint { .. } => Ok(Vec::new()),
            movement => self.movement(position, movement),
        }
    }

    fn create_table(&mut self, schema: &TableSchema, range: RangeId) -> Result<Vec<Effect>, Refusal> {
        if self.tables.contains_key(&schema.id) {
            return refuse("table-exists", format!("table {} exists already", schema.id));
        }
        self.expect_free_name(schema)?;
        self.expect_new(range)?;
        // Invariant 8: it is new, so no open transaction has touched it and there is nothing to drain.
        let schema = self.add_table(schema);
        self.owned.add(OwnedRange { id: range, epoch: Epoch(1), table: schema.id, interval: KeyInterval::ALL });
        Ok(vec![Effect::CreateTable(schema), Effect::OwnershipChanged])
    }

    /// A table that nobody was told of: all that there is of it is what its creation made.
    fn drop_table(&mut self, id: TableId) -> Result<Vec<Effect>, Refusal> {
        let Some(schema) = self.tables.get(&id).cloned() else {
            return refuse("no-such-table", format!("there is no table {id} here"));
        };
        let moved = self.moves_out.values().any(|m| m.table == id) || self.moves_in.values().any(|m| m.table == id);
        let owned: Vec<OwnedRange> = self.owned().filter(|range| range.table == id).cloned().collect();
        let untouched = |range: &OwnedRange| range.epoch == Epoch(1) && range.interval == KeyInterval::ALL;
        let [only] = owned.as_slice() else {
            return refuse("table-in-use", format!("table {id} has {} ranges here", owned.len()));
        };
        if moved || !untouched(only) {
            return refuse("table-in-use", format!("range {} of table {id} has been split or moved", only.id));
        }
        // Its range's number stays used.
        self.last_operator.insert(only.id, OperatorId(0));
        self.owned.remove(only);
        self.tables.remove(&id);
        Ok(vec![Effect::DropTable(schema), Effect::OwnershipChanged])
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
        self.expect_unused(operator)?;
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
            self.last_operator.insert(id, operator);
        }
        self.finish(operator, Work::Split { range, epoch, pieces: new });
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
        self.expect_unused(operator)?;
        self.owned.remove(&l);
        self.owned.remove(&r);
        self.owned.add(OwnedRange { id: l.id, epoch: left.1.max(right.1).next(), table: l.table, interval });
        self.last_operator.insert(l.id, operator);
        self.last_operator.remove(&r.id);
        self.finish(operator, Work::Merge { left, right });
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
        if let Some(known) = self.tables.get(&schema.id) {
            return known.clone();
        }
        let schema = Arc::new(schema.clone());
        self.tables.insert(schema.id, schema.clone());
        schema
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

    /// A number is given once. A placement driver that was restored from a backup may give it again (R30).
    fn expect_unused(&self, operator: OperatorId) -> Result<(), Refusal> {
        let moving = self.moves_out.contains_key(&operator) || self.moves_in.contains_key(&operator);
        match moving || self.is_finished(operator) {
            true => refuse("stale-operator", format!("operator {operator} has come here already")),
            false => Ok(()),
        }
    }

    /// The same of a new range's id.
    fn expect_new(&self, id: RangeId) -> Result<(), Refusal> {
        match self.last_operator.contains_key(&id) || self.range(id).is_some() {
            true => refuse("range-exists", format!("there is, or was, a range {id} here")),
            false => Ok(()),
        }
    }

    /// While a move is open its range stays as it is (R20).
    fn expect_no_move(&self, id: RangeId) -> Result<(), Refusal> {
        match self.moves_out.values().find(|m| m.range == id && m.phase == OutPhase::Open) {
            Some(open) => refuse("move-open", format!("operator {} is moving range {id}", open.operator)),
            None => Ok(()),
        }
    }

    fn finish(&mut self, operator: OperatorId, work: Work) {
        Arc::make_mut(&mut self.finished).push(operator, work);
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod move_script_tests;
