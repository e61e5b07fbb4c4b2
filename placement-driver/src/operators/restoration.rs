//! Taking in what shards hold and the state does not know: after a restoration from an old copy (R30), and whenever reports show it.
//!
//! Which copy a state came from does not show in it. But a shard has never seen a number that was not given, so one that has seen a higher one
//! than the state would give next proves that the state has lost some: then it is restored too, whether or not anybody has said so
//! ([`crate::Config::incarnation`]). A restored state numbers nothing before every shard has said what it holds, or a grace has passed; then it
//! leaves so many numbers out that those of the shards that were silent cannot come again.

use super::reports::{later_routes, owned, owned_here, take_routes};
use crate::balancer::{Picture, ShardView};
use crate::state::{Command, Found, State, check_schema};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::report::{HighestNumbers, RangeState};
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{KeyInterval, ShardId, TableId, TableSchema};
use std::collections::{BTreeMap, BTreeSet};

/// How long a restored placement driver waits for shards that are silent, for shards that are not registered and own something, and for moves
/// to come to rest, in milliseconds since it leads.
pub const GRACE_MS: u64 = 60_000;

/// How long a new leadership waits for the shards it has found before it gives numbers, in milliseconds: they report several times a second.
pub const FIRST_REPORTS_MS: u64 = 2_000;

/// Whether a leadership may give numbers: once the shards that were registered when it began have reported, for then they show whether the state is an
/// old copy, and it has taken that in; or some time has passed. Who is silent for longer may bring numbers that were given twice: shards refuse them.
pub fn may_number(state: &State, picture: &Picture, first: &BTreeSet<ShardId>, now_ms: u64) -> bool {
    let waited = picture.since_ms.is_some_and(|since_ms| since_ms + FIRST_REPORTS_MS <= now_ms);
    let awaited = |id: &ShardId| state.shards.get(id).is_some_and(|shard| !shard.lost);
    let heard = first.iter().all(|id| picture.shards.contains_key(id) || !awaited(id));
    // A state that is being restored refuses by itself.
    state.restoring || ((waited || heard) && !has_lost_numbers(state, picture))
}

/// What is to be taken in now, if anything.
pub fn take_in(state: &State, picture: &Picture, now_ms: u64) -> Option<Command> {
    if state.restoring {
        return reconcile(state, picture, now_ms);
    }
    if has_lost_numbers(state, picture) {
        return Some(Command::BeginIncarnation(state.version.generation().saturating_add(1)));
    }
    take_tables(state, picture).or_else(|| take_routes(state, picture))
}

/// Whether a shard has seen numbers that this state has not given yet: then it comes from an old copy.
fn has_lost_numbers(state: &State, picture: &Picture) -> bool {
    if deliberate(Bug::NumbersReused) {
        return false;
    }
    let of_this_cluster = |view: &&ShardView| view.foreign_tables.is_empty();
    picture.shards.values().filter(of_this_cluster).any(|view| state.has_not_given(view.report.highest))
}

/// What shards hold and nobody here knows yet, and what is waited for after a restoration: one sentence each.
pub fn missing(state: &State, picture: &Picture) -> Vec<String> {
    let tables =
        unadopted(state, picture).into_iter().map(|(name, why)| format!("table {name:?} is not taken in: {why}"));
    let foreign = picture.shards.iter().flat_map(|(shard, view)| {
        let told = move |table| {
            format!("shard {shard} has another table {table} than this cluster: its ranges of it are left out")
        };
        view.foreign_tables.iter().map(told)
    });
    let mut missing: Vec<String> = tables.chain(foreign).collect();
    missing.extend(waits_for(state, picture));
    missing
}

fn waits_for(state: &State, picture: &Picture) -> Vec<String> {
    if !state.restoring {
        return Vec::new();
    }
    let mut waits: Vec<String> =
        silent(state, picture).iter().map(|shard| format!("shard {shard} has not said what it holds")).collect();
    waits.extend(strangers(picture).map(|shard| format!("shard {shard} owns ranges and is not registered")));
    let reported = by_table(state, picture);
    let unsettled = reported.iter().filter(|(_, routes)| !is_whole(routes));
    waits.extend(unsettled.map(|(table, _)| format!("not all keys of table {table} are reported as owned")));
    waits
}

/// Tables that shards hold, that are not known here, and that cannot be taken in as things are: their names and why.
pub fn unadopted(state: &State, picture: &Picture) -> Vec<(String, String)> {
    let unknown = unknown_tables(state, picture);
    if unknown.is_empty() {
        return Vec::new();
    }
    let reported = by_table(state, picture);
    let adoptable: BTreeSet<TableId> = adoptable(state, &unknown, &reported).iter().map(|table| table.id).collect();
    let left = unknown.values().filter(|table| !adoptable.contains(&table.id));
    let why = |table: &TableSchema| match state.table_named(&table.name) {
        Some(known) => format!("table {}: the name is taken by table {}", table.id, known.schema.id),
        None => format!("table {}: not all of its keys are reported as owned, or it cannot be read here", table.id),
    };
    left.map(|table| (table.name.clone(), why(table))).collect()
}

fn silent(state: &State, picture: &Picture) -> Vec<ShardId> {
    let heard = |id: &ShardId| picture.shards.get(id).is_some_and(|view| view.tables_heard);
    state.shards.iter().filter(|(id, shard)| !shard.lost && !heard(id)).map(|(id, _)| *id).collect()
}

/// Shards that report, own something, and are not registered.
fn strangers(picture: &Picture) -> impl Iterator<Item = ShardId> + '_ {
    picture.strangers.iter().filter(|(_, view)| owned(&view.report).next().is_some()).map(|(shard, _)| *shard)
}

fn reconcile(state: &State, picture: &Picture, now_ms: u64) -> Option<Command> {
    let graced = picture.since_ms.is_some_and(|since_ms| since_ms + GRACE_MS <= now_ms);
    let mut silent = silent(state, picture);
    silent.extend(strangers(picture));
    let reported = by_table(state, picture);
    let settled = reported.values().all(|routes| is_whole(routes));
    if !graced && (!silent.is_empty() || !settled) {
        return None;
    }
    let unknown = unknown_tables(state, picture);
    let tables = adoptable(state, &unknown, &reported);
    let mut routes = later_routes(state, picture, true);
    for table in &tables {
        routes.extend(reported.get(&table.id).into_iter().flatten().cloned());
    }
    let heard = picture.shards.values().chain(picture.strangers.values());
    let highest = heard.map(highest).fold(HighestNumbers::default(), HighestNumbers::max);
    Some(Command::Reconciled(Box::new(Found { highest, tables, routes, silent })))
}

fn take_tables(state: &State, picture: &Picture) -> Option<Command> {
    let unknown = unknown_tables(state, picture);
    if unknown.is_empty() {
        return None;
    }
    let reported = by_table(state, picture);
    let tables = adoptable(state, &unknown, &reported);
    let routes = tables.iter().filter_map(|table| reported.get(&table.id)).flatten().cloned().collect();
    (!tables.is_empty()).then_some(Command::TakeTables { tables, routes })
}

/// Everything that a shard's report names counts as seen.
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

/// Tables that shards hold and nobody here knows. Those whose creation was given up are none of them: they go.
fn unknown_tables(state: &State, picture: &Picture) -> BTreeMap<TableId, TableSchema> {
    let unknown = picture.shards.values().flat_map(|view| view.unknown_tables.iter());
    let of_nobody = |id: &TableId| !state.tables.contains_key(id) && !state.given_up.contains_key(id);
    let unknown = unknown.filter(|table| of_nobody(&table.id));
    unknown.map(|table| (table.id, table.clone())).collect()
}

/// What shards own, by table: of those that are ready, and of those that are not known.
fn by_table(state: &State, picture: &Picture) -> BTreeMap<TableId, Vec<Route>> {
    let ready = state.tables.iter().filter(|(_, table)| table.creating.is_none());
    let mut by_table: BTreeMap<TableId, Vec<Route>> = ready.map(|(id, _)| (*id, Vec::new())).collect();
    for route in picture.shards.values().flat_map(owned_here) {
        let ready = state.tables.get(&route.table).is_none_or(|table| table.creating.is_none());
        if ready && !state.given_up.contains_key(&route.table) {
            by_table.entry(route.table).or_default().push(route);
        }
    }
    by_table
}

fn is_whole(routes: &[Route]) -> bool {
    KeyInterval::ALL.is_partitioned_by(routes.iter().map(|route| &route.interval))
}

/// Of the tables that are not known, those that can be taken in: everything of them is there, and nothing has their name.
fn adoptable(
    state: &State,
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
