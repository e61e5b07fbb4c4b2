//! Commands about tables: creation, and taking in tables that only shards know (R30).

use super::changes::VersionChange;
use super::effect::Effect;
use super::limits::MAX_TABLES;
use super::moment::Moment;
use super::operator_begin::{may_allocate, start};
use super::placement_state::PlacementState;
use super::refusal::Refusal;
use super::route_changes::replace_by_table;
use super::shard_changes;
use super::table::{Table, check_schema};
use super::work::Work;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{ShardId, TableSchema};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Begins to create a table: gives it a number and starts its operator.
pub(super) fn create(
    state: &mut PlacementState,
    schema: TableSchema,
    shard: Option<ShardId>,
    if_not_exists: bool,
    now: Moment,
) -> Result<Effect, Refusal> {
    may_allocate(state)?;
    if let Some(table) = state.table_named(&schema.name) {
        return match (table.creating, if_not_exists) {
            (_, false) => Err(Refusal::TableExists(schema.name)),
            (Some(operator), true) => Ok(Effect::Begun(vec![operator])),
            (None, true) => Ok(Effect::TableReady(table.schema.id)),
        };
    }
    // It may be making a relation of this name.
    if let Some(operator) = state.schema_operator() {
        return Err(Refusal::SchemaBusy(operator.id));
    }
    check_schema(&schema)?;
    if state.tables.len() >= MAX_TABLES {
        return Err(Refusal::TooMany(format!("there are {MAX_TABLES} tables already")));
    }
    let counts = state.range_counts();
    let active = || state.shards.iter().filter(|(_, shard)| !shard.draining && !shard.lost).map(|(id, _)| *id);
    let shard = match shard {
        Some(id) => shard_changes::active(state, id)?.info.id,
        None => active()
            .min_by_key(|id| (counts.get(id).copied().unwrap_or(0), *id))
            .ok_or_else(|| Refusal::TooMany("there is no shard yet".into()))?,
    };
    let table = state.numbers.give_table();
    let work = Work::CreateTable { table, range: state.numbers.give_range(), shard };
    let operator = start(state, work, table, None, now);
    let schema = Arc::new(TableSchema { id: table, ..schema });
    state.tables.insert(table, Table { schema, creating: Some(operator) });
    Ok(Effect::Begun(vec![operator]))
}

/// Takes in tables that the state lacks, with all of their ranges, and other routes. It is rejected
/// as a whole.
pub(super) fn take(
    state: &mut PlacementState,
    tables: &[TableSchema],
    routes: &[Route],
    now: Moment,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    let mut names = BTreeSet::new();
    for table in tables {
        if state.tables.contains_key(&table.id)
            || state.table_named(&table.name).is_some()
            || !names.insert(&table.name)
        {
            return Err(Refusal::TableExists(table.name.clone()));
        }
        check_schema(table)?;
        if !routes.iter().any(|route| route.table == table.id) {
            return Err(Refusal::BadRoutes(format!("nobody owns table {}", table.id)));
        }
    }
    if state.tables.len() + tables.len() > MAX_TABLES {
        return Err(Refusal::TooMany(format!("there would be more than {MAX_TABLES} tables")));
    }
    for table in tables {
        state.tables.insert(table.id, Table { schema: Arc::new(table.clone()), creating: None });
        change.tables.insert(table.id);
    }
    let replaced = replace_by_table(state, routes, now, change);
    if replaced.is_err() {
        tables.iter().for_each(|table| drop(state.tables.remove(&table.id)));
    }
    replaced.map(|()| Effect::Applied)
}
