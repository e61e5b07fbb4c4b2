//! Commands about the schema: a change of it, and taking in changes that only shards know (R30).
//!
//! A change becomes part of the state in two steps. When it begins, its operator carries it with
//! the numbers that its relations get, and nothing else shows it. Its tables, routes and version
//! are published when every shard that can be reached has made it.

use super::changes::VersionChange;
use super::effect::Effect;
use super::limits::{MAX_RANGES, MAX_SCHEMA_BYTES, MAX_SCHEMA_CHANGE_BYTES, MAX_SCHEMA_VERSIONS, MAX_TABLES};
use super::moment::Moment;
use super::operator_begin::{may_allocate, start};
use super::operator_status::Operator;
use super::placement_state::PlacementState;
use super::refusal::Refusal;
use super::route_changes::replace;
use super::schema::SchemaPlan;
use super::table::{Table, check_relation};
use super::work::Work;
use evenkeel_protocol::api::SchemaChangeBody;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::schema_change::{ChangedRelation, SchemaChange};
use evenkeel_protocol::{Epoch, KeyInterval, RangeId, SchemaDelta, ShardId, TableId, TableSchema};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Begins a schema change: gives its relations their numbers, and starts its operator. `home` is
/// the shard for new tables and sequences, if the state knows none.
pub(super) fn change(
    state: &mut PlacementState,
    body: SchemaChangeBody,
    home: Option<ShardId>,
    now: Moment,
) -> Result<Effect, Refusal> {
    if let Some(done) = repeated(state, &body) {
        return Ok(done);
    }
    may_allocate(state)?;
    if let Some(operator) = state.schema_operator() {
        return Err(Refusal::SchemaBusy(operator.id));
    }
    if body.version != state.schema.version {
        return Err(Refusal::SchemaVersion { found: state.schema.version, expected: body.version });
    }
    let home = home_shard(state, home)?;
    let change = SchemaChange { version: body.version + 1, sql: body.sql, settings: body.settings };
    let plan = plan(state, change, &body.relations, &body.dropped, home)?;
    let work = Work::SchemaChange { version: plan.version(), plan: Some(Arc::new(plan)) };
    state.schema.home = Some(home);
    Ok(Effect::Begun(vec![start(state, work, TableId::default(), None, now)]))
}

/// The effect of a change that was made already, or is under way.
fn repeated(state: &PlacementState, body: &SchemaChangeBody) -> Option<Effect> {
    let version = body.version.checked_add(1)?;
    let same =
        |change: &SchemaChange| (change.version, &change.sql, &change.settings) == (version, &body.sql, &body.settings);
    if state.schema.version == version {
        let last = state.schema.changes.get(&version)?;
        return same(&last.delta.change).then_some(Effect::SchemaReady(version));
    }
    let operator = state.schema_operator()?;
    let plan = operator.work.schema_plan()?;
    same(&plan.delta.change).then(|| Effect::Begun(vec![operator.id]))
}

/// The shard of pinned tables and sequences: the known one as long as ranges may come to it.
fn home_shard(state: &PlacementState, proposed: Option<ShardId>) -> Result<ShardId, Refusal> {
    let active = |id: &ShardId| state.shards.get(id).is_some_and(|shard| !shard.draining && !shard.lost);
    let known = state.schema.home.filter(active).or_else(|| proposed.filter(active));
    let any = || state.shards.keys().copied().find(active);
    known.or_else(any).ok_or_else(|| Refusal::TooMany("there is no active shard".into()))
}

/// The change with the numbers of its relations and their ranges.
fn plan(
    state: &mut PlacementState,
    change: SchemaChange,
    relations: &[ChangedRelation],
    dropped: &[String],
    home: ShardId,
) -> Result<SchemaPlan, Refusal> {
    let gone = dropped.iter().map(|name| known(state, name)).collect::<Result<BTreeSet<TableId>, _>>()?;
    let before = relations.iter().map(|relation| relation.was.as_deref().map(|was| known(state, was)).transpose());
    let before = before.collect::<Result<Vec<Option<TableId>>, _>>()?;
    check_names(state, relations, &before, &gone)?;
    for (relation, id) in relations.iter().zip(&before) {
        check_relation(&relation.schema)?;
        if let Some(id) = id {
            check_alteration(state, *id, &relation.schema, home)?;
        }
    }
    check_limits(state, &change, relations, before.iter().filter(|id| id.is_none()).count())?;
    // Nothing is refused from here on: numbers are given.
    let mut ranges = Vec::new();
    let mut schemas = Vec::with_capacity(relations.len());
    for (relation, id) in relations.iter().zip(before) {
        let id = id.unwrap_or_else(|| {
            let id = state.numbers.give_table();
            ranges.push((id, state.numbers.give_range(), home));
            id
        });
        schemas.push(TableSchema { id, create_sql: String::new(), sequences: Vec::new(), ..relation.schema.clone() });
    }
    let by_name: BTreeMap<&str, TableId> = schemas.iter().map(|schema| (schema.name.as_str(), schema.id)).collect();
    let unchanged = |name: &str| state.table_named(name).map(|table| table.schema.id);
    let sequences: Vec<Vec<TableId>> = relations
        .iter()
        .map(|relation| {
            let id = |name: &String| by_name.get(name.as_str()).copied().or_else(|| unchanged(name));
            relation.sequences.iter().filter_map(id).collect()
        })
        .collect();
    schemas.iter_mut().zip(sequences).for_each(|(schema, sequences)| schema.sequences = sequences);
    Ok(SchemaPlan { delta: SchemaDelta { change, relations: schemas, dropped: gone.into_iter().collect() }, ranges })
}

/// The table or sequence of this name, if a schema change has made it.
fn known(state: &PlacementState, name: &str) -> Result<TableId, Refusal> {
    let table = state.table_named(name).ok_or_else(|| Refusal::UnknownRelation(name.to_string()))?;
    if !table.schema.create_sql.is_empty() {
        let reason = "it was made by POST /v1/tables, and lies on some shards only; a schema change cannot change it";
        return Err(Refusal::InvalidTable(format!("table {name:?}: {reason}")));
    }
    Ok(table.schema.id)
}

/// Checks that each relation is named once, and that no name is taken after the change.
fn check_names(
    state: &PlacementState,
    relations: &[ChangedRelation],
    before: &[Option<TableId>],
    gone: &BTreeSet<TableId>,
) -> Result<(), Refusal> {
    let mut seen = gone.clone();
    if let Some(id) = before.iter().flatten().find(|id| !seen.insert(**id)) {
        return Err(Refusal::InvalidTable(format!("table {id} is changed or dropped twice")));
    }
    let mut names = BTreeSet::new();
    for relation in relations {
        let name = &relation.schema.name;
        let taken = state.table_named(name).is_some_and(|table| !seen.contains(&table.schema.id));
        if taken || !names.insert(name) {
            return Err(Refusal::TableExists(name.clone()));
        }
        let is_known = |sequence: &&String| {
            relations.iter().any(|other| other.schema.name == **sequence) || state.table_named(sequence).is_some()
        };
        if let Some(unknown) = relation.sequences.iter().find(|sequence| !is_known(sequence)) {
            return Err(Refusal::UnknownRelation(unknown.clone()));
        }
    }
    Ok(())
}

/// Checks what an altered table may become: its ranges and their keys stay as they are.
fn check_alteration(state: &PlacementState, id: TableId, after: &TableSchema, home: ShardId) -> Result<(), Refusal> {
    let Some(before) = state.tables.get(&id).map(|table| &table.schema) else { return Ok(()) };
    let ranges = state.ranges_of(id);
    let one = ranges.len() == 1;
    if before.kind != after.kind {
        return Err(Refusal::InvalidTable(format!("table {:?} cannot become a sequence, or the reverse", before.name)));
    }
    if !one && (before.key_types(), before.key.len()) != (after.key_types(), after.key.len()) {
        let reason = "its primary key can change only while it is one range";
        return Err(Refusal::InvalidTable(format!("table {:?} has {} ranges: {reason}", before.name, ranges.len())));
    }
    let at_home = one && ranges.iter().all(|range| range.route.shard == home);
    if after.pinned && !before.pinned && !at_home {
        let found = ranges.len();
        return Err(Refusal::NotAtHome { table: before.name.clone(), ranges: found, home });
    }
    Ok(())
}

fn check_limits(
    state: &PlacementState,
    change: &SchemaChange,
    relations: &[ChangedRelation],
    new: usize,
) -> Result<(), Refusal> {
    let size = |relation: &ChangedRelation| {
        let columns = relation.schema.columns.iter();
        relation.schema.name.len() + columns.map(|c| c.name.len() + c.type_name.len() + 16).sum::<usize>() + 64
    };
    let settings: usize = change.settings.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = change.sql.len() + settings + relations.iter().map(size).sum::<usize>();
    let too_many = |reason: String| Err(Refusal::TooMany(reason));
    if bytes > MAX_SCHEMA_CHANGE_BYTES {
        return too_many(format!("a schema change has at most {MAX_SCHEMA_CHANGE_BYTES} bytes, this one {bytes}"));
    }
    if state.schema.changes.len() >= MAX_SCHEMA_VERSIONS {
        return too_many(format!("the schema has changed {MAX_SCHEMA_VERSIONS} times already"));
    }
    if state.schema.sql_bytes() + change.sql.len() > MAX_SCHEMA_BYTES {
        return too_many(format!("all schema changes have more than {MAX_SCHEMA_BYTES} bytes together"));
    }
    if state.tables.len() + new > MAX_TABLES {
        return too_many(format!("there would be more than {MAX_TABLES} tables"));
    }
    if state.ranges.len() + new > MAX_RANGES {
        return too_many(format!("there would be more than {MAX_RANGES} ranges"));
    }
    Ok(())
}

/// Publishes a change that the shards have made.
pub(super) fn publish(state: &mut PlacementState, plan: &Arc<SchemaPlan>, now: Moment, change: &mut VersionChange) {
    take_delta(state, plan, change);
    for (table, range, shard) in &plan.ranges {
        let (range, table, shard) = (*range, *table, *shard);
        let route = Route { range, epoch: Epoch(1), table, interval: KeyInterval::ALL, shard };
        // The table is new, and a shard that takes part is not removed.
        if let Err(refusal) = replace(state, &[route], now, change) {
            tracing::error!(%refusal, %table, "a new table has no route");
        }
    }
}

/// Takes in the next version: its tables without their ranges.
fn take_delta(state: &mut PlacementState, plan: &Arc<SchemaPlan>, change: &mut VersionChange) {
    for id in &plan.delta.dropped {
        state.tables.remove(id);
        let ranges: Vec<RangeId> =
            state.ranges.values().filter(|range| range.route.table == *id).map(|range| range.route.range).collect();
        ranges.iter().for_each(|range| drop(state.ranges.remove(range)));
        change.tables.remove(id);
        change.removed_tables.insert(*id);
    }
    for schema in &plan.delta.relations {
        state.tables.insert(schema.id, Table { schema: Arc::new(schema.clone()), creating: None });
        change.tables.insert(schema.id);
    }
    state.schema.version = plan.version();
    state.schema.changes.insert(plan.version(), plan.clone());
    // Not every command that changes the schema changes a table.
    change.schema = true;
}

/// Takes in changes that shards have made and the state lacks (R30). Their ranges come by the
/// shards' reports.
pub(super) fn take(
    state: &mut PlacementState,
    deltas: Vec<SchemaDelta>,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    let mut taken = false;
    for delta in deltas {
        let version = delta.change.version;
        if version != state.schema.version + 1 || state.schema_operator().is_some_and(has_decided) {
            continue;
        }
        if state.schema.changes.len() >= MAX_SCHEMA_VERSIONS || state.tables.len() + delta.relations.len() > MAX_TABLES
        {
            return Err(Refusal::TooMany("the shards have more schema changes or tables than are possible".into()));
        }
        let home = |table: &TableSchema| state.ranges_of(table.id).first().map(|range| range.route.shard);
        let home = delta.relations.iter().filter(|table| table.pinned).find_map(home);
        state.schema.home = state.schema.home.or(home);
        take_delta(state, &Arc::new(SchemaPlan { delta, ranges: Vec::new() }), change);
        taken = true;
    }
    Ok(if taken { Effect::Applied } else { Effect::Unchanged })
}

/// Whether the change of a running operator is decided: shards may have made it.
fn has_decided(operator: &Operator) -> bool {
    operator.step == super::operator_status::Step::Apply
}
