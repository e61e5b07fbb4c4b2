//! The schema of a shard: its version, the changes that made it, and the change that is prepared.
//!
//! A prepared change holds tables: no statement is admitted to them, and they neither move nor
//! split, until the change is made or given up. So what was tried on their rows stays true (R34).

use super::movement::{InPhase, OutPhase};
use super::operators::Operators;
use super::owned_ranges::{OwnedRange, OwnedRanges};
use super::refusal::{EntryRefusal, refuse};
use super::tables::Tables;
use evenkeel_protocol::{Epoch, KeyInterval, OperatorId, RangeId, SchemaDelta, TableId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A schema change that this shard has tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedSchema {
    /// The operator.
    pub operator: OperatorId,
    /// The version that it makes.
    pub version: u64,
    /// The tables that it holds.
    pub tables: BTreeSet<TableId>,
}

/// See the module. The order of the fields is the format on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Schema {
    /// All changes, oldest first: the first makes version 1. A replica that is re-seeded makes them
    /// again. The placement driver limits their number and bytes.
    changes: Arc<Vec<Arc<SchemaDelta>>>,
    prepared: Option<PreparedSchema>,
}

impl Schema {
    /// The version: the number of changes.
    pub(super) fn version(&self) -> u64 {
        self.changes.len() as u64
    }

    /// The changes after a version, oldest first.
    pub(super) fn after(&self, version: u64) -> &[Arc<SchemaDelta>] {
        let from = usize::try_from(version).unwrap_or(usize::MAX).min(self.changes.len());
        &self.changes[from..]
    }

    /// The prepared change.
    pub(super) fn prepared(&self) -> Option<&PreparedSchema> {
        self.prepared.as_ref()
    }

    /// Whether a table is held.
    pub(super) fn holds(&self, table: TableId) -> bool {
        self.prepared.as_ref().is_some_and(|prepared| prepared.tables.contains(&table))
    }

    /// Held tables stay as they are.
    pub(super) fn expect_not_held(&self, table: TableId) -> Result<(), EntryRefusal> {
        match self.prepared() {
            Some(prepared) if prepared.tables.contains(&table) => {
                refuse("schema-prepared", format!("operator {} is about to change table {table}", prepared.operator))
            }
            _ => Ok(()),
        }
    }

    /// Prepares the next change.
    pub(super) fn prepare(&mut self, prepared: PreparedSchema, operators: &Operators) -> Result<(), EntryRefusal> {
        self.expect_next(prepared.version)?;
        if let Some(other) = self.prepared.as_ref().filter(|other| other.operator != prepared.operator) {
            return refuse("schema-prepared", format!("operator {} has prepared another change", other.operator));
        }
        prepared.tables.iter().try_for_each(|table| expect_still(*table, operators))?;
        self.prepared = Some(prepared);
        Ok(())
    }

    /// Gives up the change that an operator has prepared, if it has.
    pub(super) fn abort(&mut self, operator: OperatorId) {
        self.prepared.take_if(|prepared| prepared.operator == operator);
    }

    fn expect_next(&self, version: u64) -> Result<(), EntryRefusal> {
        if version != self.version() + 1 {
            let known = self.version();
            return refuse("schema-version", format!("version {version} does not follow version {known}"));
        }
        Ok(())
    }
}

/// The rows of a table that is altered or dropped must not be on their way.
fn expect_still(table: TableId, operators: &Operators) -> Result<(), EntryRefusal> {
    let leaves = |phase: &OutPhase| matches!(phase, OutPhase::Open | OutPhase::Fenced { .. });
    let out = operators.moves_out.values().find(|m| m.table == table && leaves(&m.phase)).map(|m| m.operator);
    let coming =
        operators.moves_in.values().find(|m| m.table == table && m.phase == InPhase::Copying).map(|m| m.operator);
    match out.or(coming) {
        Some(operator) => refuse("move-open", format!("operator {operator} is moving a range of table {table}")),
        None => Ok(()),
    }
}

/// The parts of the state that a change concerns.
pub(super) struct Change<'a> {
    pub(super) schema: &'a mut Schema,
    pub(super) tables: &'a mut Tables,
    pub(super) owned: &'a mut OwnedRanges,
    pub(super) operators: &'a mut Operators,
}

impl Change<'_> {
    /// Makes a change: the next version.
    pub(super) fn make(
        self,
        delta: &SchemaDelta,
        ranges: &[(TableId, RangeId)],
    ) -> Result<Arc<SchemaDelta>, EntryRefusal> {
        let Change { schema, tables, owned, operators } = self;
        schema.expect_next(delta.change.version)?;
        for table in delta.relations.iter().map(|table| table.id).chain(delta.dropped.iter().copied()) {
            expect_still(table, operators)?;
            if rekeyed(delta, tables, table) && moves(operators, table) {
                return refuse("purge-unfinished", format!("rows of table {table} lie under its keys of before"));
            }
        }
        for (table, range) in ranges {
            let new = delta.relations.iter().any(|schema| schema.id == *table) && !tables.contains(*table);
            if !new || owned.get(*range).is_some() || operators.last_operator.contains_key(range) {
                return refuse("range-exists", format!("range {range} cannot be the first of table {table}"));
            }
        }
        for id in &delta.dropped {
            let gone: Vec<OwnedRange> = owned.iter().filter(|range| range.table == *id).cloned().collect();
            for range in gone {
                owned.remove(&range);
                operators.last_operator.remove(&range.id);
            }
            tables.remove(*id);
        }
        for table in &delta.relations {
            tables.replace(table);
        }
        for (table, range) in ranges {
            owned.add(OwnedRange { id: *range, epoch: Epoch(1), table: *table, interval: KeyInterval::ALL });
        }
        schema.prepared = None;
        let delta = Arc::new(delta.clone());
        Arc::make_mut(&mut schema.changes).push(delta.clone());
        Ok(delta)
    }
}

/// Whether the change gives a known table another key.
fn rekeyed(delta: &SchemaDelta, tables: &Tables, table: TableId) -> bool {
    let after = delta.relations.iter().find(|schema| schema.id == table);
    tables.get(table).zip(after).is_some_and(|(before, after)| before.key_types() != after.key_types())
}

/// Whether any trace of a move of this table is left.
fn moves(operators: &Operators, table: TableId) -> bool {
    operators.moves_out.values().any(|m| m.table == table) || operators.moves_in.values().any(|m| m.table == table)
}
