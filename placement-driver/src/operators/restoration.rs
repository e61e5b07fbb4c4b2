//! Restoration: taking in what shards hold and the state lacks, after the state was restored from
//! an old copy (R30) and whenever reports show it.
//!
//! A state does not show from which copy it came. But a shard only sees numbers that were given. A
//! shard that has seen a higher number than the state would give next proves that the state has
//! lost some. A restoration then begins, whether or not an administrator has configured it
//! ([`crate::Config::incarnation`]). A restored state gives no numbers before every shard has
//! reported what it holds, or [`GRACE_MS`] has passed. In the latter case it skips enough numbers
//! that those of the silent shards are not given again.

use super::reported_routes::{later_routes, owned, owned_here, take_routes};
use super::schema_change::lacked;
use crate::load::{LoadModel, ShardView};
use crate::state::{Command, Found, PlacementState, check_schema};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::report::{HighestNumbers, RangeState};
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{KeyInterval, ShardId, TableId, TableSchema};
use std::collections::{BTreeMap, BTreeSet};

/// How long a restored placement driver waits for silent shards, for unregistered shards that own
/// ranges, and for moves to end, in milliseconds since its leadership began.
pub const GRACE_MS: u64 = 60_000;

/// How long a new leadership waits for registered shards before it gives numbers, in milliseconds.
/// Shards report several times a second.
pub const FIRST_REPORTS_MS: u64 = 2_000;

/// Whether a leadership may give numbers: the shards that were registered when it began have
/// reported, or `FIRST_REPORTS_MS` have passed, and no report shows that the state is an old
/// copy. A shard that is silent for longer may have seen numbers that are then given twice; shards
/// refuse those.
pub fn may_number(state: &PlacementState, load: &LoadModel, first: &BTreeSet<ShardId>, now_ms: u64) -> bool {
    let waited = load.since_ms.is_some_and(|since_ms| since_ms + FIRST_REPORTS_MS <= now_ms);
    let awaited = |id: &ShardId| state.shards.get(id).is_some_and(|shard| !shard.lost);
    let heard = first.iter().all(|id| load.shards.contains_key(id) || !awaited(id));
    // A state under restoration rejects the commands by itself.
    state.restoring || ((waited || heard) && !has_lost_numbers(state, load))
}

/// The command that takes in what the state lacks now, if anything.
pub fn take_in(state: &PlacementState, load: &LoadModel, now_ms: u64) -> Option<Command> {
    // Tables that only the lacked schema changes know cannot be judged before.
    if lacked(state, load).is_some() && !graced(load, now_ms) {
        return has_lost_numbers(state, load)
            .then(|| Command::BeginIncarnation(state.version.generation().saturating_add(1)))
            .filter(|_| !state.restoring);
    }
    if state.restoring {
        return reconcile(state, load, now_ms);
    }
    if has_lost_numbers(state, load) {
        return Some(Command::BeginIncarnation(state.version.generation().saturating_add(1)));
    }
    take_tables(state, load).or_else(|| take_routes(state, load))
}

/// Whether a shard has seen numbers that this state has not given: the state comes from an old
/// copy.
fn has_lost_numbers(state: &PlacementState, load: &LoadModel) -> bool {
    if deliberate(Bug::NumbersReused) {
        return false;
    }
    let of_this_cluster = |view: &&ShardView| view.foreign_tables.is_empty();
    load.shards.values().filter(of_this_cluster).any(|view| state.has_not_given(view.report.highest))
}

/// What shards hold and the state lacks, and what a restoration waits for: one sentence each.
pub fn missing(state: &PlacementState, load: &LoadModel) -> Vec<String> {
    let tables = unadopted(state, load).into_iter().map(|(name, why)| format!("table {name:?} is not taken in: {why}"));
    let foreign = load.shards.iter().flat_map(|(shard, view)| {
        let told = move |table| {
            format!("shard {shard} has another table {table} than this cluster: its ranges of it are left out")
        };
        view.foreign_tables.iter().map(told)
    });
    let mut missing: Vec<String> = tables.chain(foreign).collect();
    missing.extend(waits_for(state, load));
    missing
}

fn waits_for(state: &PlacementState, load: &LoadModel) -> Vec<String> {
    if !state.restoring {
        return Vec::new();
    }
    let lacks = lacked(state, load).map(|(shard, _)| format!("shard {shard} has later versions of the schema"));
    let mut waits: Vec<String> =
        silent(state, load).iter().map(|shard| format!("shard {shard} has not said what it holds")).collect();
    waits.extend(lacks);
    waits.extend(strangers(load).map(|shard| format!("shard {shard} owns ranges and is not registered")));
    let reported = by_table(state, load);
    let incomplete = reported.iter().filter(|(_, routes)| !is_whole(routes));
    waits.extend(incomplete.map(|(table, _)| format!("not all keys of table {table} are reported as owned")));
    waits
}

/// The tables that shards hold, that the state lacks, and that cannot be taken in at present: their
/// names and the reasons.
pub fn unadopted(state: &PlacementState, load: &LoadModel) -> Vec<(String, String)> {
    let unknown = unknown_tables(state, load);
    if unknown.is_empty() {
        return Vec::new();
    }
    let reported = by_table(state, load);
    let adoptable: BTreeSet<TableId> = adoptable(state, &unknown, &reported).iter().map(|table| table.id).collect();
    let left = unknown.values().filter(|table| !adoptable.contains(&table.id));
    let why = |table: &TableSchema| match state.table_named(&table.name) {
        Some(known) => format!("table {}: the name is taken by table {}", table.id, known.schema.id),
        None => format!("table {}: not all of its keys are reported as owned, or it cannot be read here", table.id),
    };
    left.map(|table| (table.name.clone(), why(table))).collect()
}

fn silent(state: &PlacementState, load: &LoadModel) -> Vec<ShardId> {
    let heard = |id: &ShardId| load.shards.get(id).is_some_and(|view| view.tables_heard);
    state.shards.iter().filter(|(id, shard)| !shard.lost && !heard(id)).map(|(id, _)| *id).collect()
}

/// Shards that report, own ranges, and are not registered.
fn strangers(load: &LoadModel) -> impl Iterator<Item = ShardId> + '_ {
    load.strangers.iter().filter(|(_, view)| owned(&view.report).next().is_some()).map(|(shard, _)| *shard)
}

/// Whether a restoration has waited long enough.
fn graced(load: &LoadModel, now_ms: u64) -> bool {
    load.since_ms.is_some_and(|since_ms| since_ms + GRACE_MS <= now_ms)
}

fn reconcile(state: &PlacementState, load: &LoadModel, now_ms: u64) -> Option<Command> {
    let graced = graced(load, now_ms);
    let mut silent = silent(state, load);
    silent.extend(strangers(load));
    let reported = by_table(state, load);
    let complete = reported.values().all(|routes| is_whole(routes));
    if !graced && (!silent.is_empty() || !complete) {
        return None;
    }
    let unknown = unknown_tables(state, load);
    let tables = adoptable(state, &unknown, &reported);
    let mut routes = later_routes(state, load, true);
    for table in &tables {
        routes.extend(reported.get(&table.id).into_iter().flatten().cloned());
    }
    let heard = load.shards.values().chain(load.strangers.values());
    let highest = heard.map(highest).fold(HighestNumbers::default(), HighestNumbers::max);
    Some(Command::Reconciled(Box::new(Found { highest, tables, routes, silent })))
}

fn take_tables(state: &PlacementState, load: &LoadModel) -> Option<Command> {
    let unknown = unknown_tables(state, load);
    if unknown.is_empty() {
        return None;
    }
    let reported = by_table(state, load);
    let tables = adoptable(state, &unknown, &reported);
    let routes = tables.iter().filter_map(|table| reported.get(&table.id)).flatten().cloned().collect();
    (!tables.is_empty()).then_some(Command::TakeTables { tables, routes })
}

/// The highest numbers that a shard has seen: everything that its report names.
fn highest(view: &ShardView) -> HighestNumbers {
    let report = &view.report;
    let mut highest = report.highest;
    for range in &report.ranges {
        highest.range = highest.range.max(range.id);
        highest.table = highest.table.max(range.table);
        match range.state {
            RangeState::MovingOut { operator, .. }
            | RangeState::Fenced { operator, .. }
            | RangeState::Incoming { operator } => highest.operator = highest.operator.max(operator),
            RangeState::Owned => {}
        }
    }
    for operator in &report.operators {
        highest.operator = highest.operator.max(operator.operator);
    }
    highest
}

/// The tables that shards hold and the state lacks, without those whose creation was given up: they
/// are dropped.
fn unknown_tables(state: &PlacementState, load: &LoadModel) -> BTreeMap<TableId, TableSchema> {
    let unknown = load.shards.values().flat_map(|view| view.unknown_tables.iter());
    let of_nobody = |id: &TableId| !state.tables.contains_key(id) && !state.given_up.contains_key(id);
    let unknown = unknown.filter(|table| of_nobody(&table.id));
    unknown.map(|table| (table.id, table.clone())).collect()
}

/// What shards own, by table: of tables that are ready, and of tables that the state lacks.
fn by_table(state: &PlacementState, load: &LoadModel) -> BTreeMap<TableId, Vec<Route>> {
    let ready = state.tables.iter().filter(|(_, table)| table.creating.is_none());
    let mut by_table: BTreeMap<TableId, Vec<Route>> = ready.map(|(id, _)| (*id, Vec::new())).collect();
    let unknown = unknown_tables(state, load);
    for route in load.shards.values().flat_map(owned_here) {
        // A table that the state lacks and no shard tells of as made by itself was dropped by a
        // schema change that the shard has yet to make.
        let ready = state.tables.get(&route.table).map_or(unknown.contains_key(&route.table), |t| t.creating.is_none());
        if ready && !state.given_up.contains_key(&route.table) {
            by_table.entry(route.table).or_default().push(route);
        }
    }
    by_table
}

fn is_whole(routes: &[Route]) -> bool {
    KeyInterval::ALL.is_partitioned_by(routes.iter().map(|route| &route.interval))
}

/// The unknown tables that can be taken in: all of their keys are owned, and their names are free.
fn adoptable(
    state: &PlacementState,
    unknown: &BTreeMap<TableId, TableSchema>,
    reported: &BTreeMap<TableId, Vec<Route>>,
) -> Vec<TableSchema> {
    let mut names = BTreeSet::new();
    let whole = |table: &&TableSchema| {
        reported
            .get(&table.id)
            .is_some_and(|routes| is_whole(routes) && routes.iter().all(|r| bounds_are_keys(r, table)))
    };
    let free = |table: &&TableSchema| state.table_named(&table.name).is_none() && names.insert(table.name.clone());
    unknown.values().filter(|table| check_schema(table).is_ok()).filter(whole).filter(free).cloned().collect()
}

fn bounds_are_keys(route: &Route, table: &TableSchema) -> bool {
    let codec = table.codec();
    let mut bounds = [Some(&route.interval.start), route.interval.end.as_ref()].into_iter().flatten();
    bounds.all(|key| *key == evenkeel_protocol::Key::MIN || codec.decode(key).is_ok())
}
