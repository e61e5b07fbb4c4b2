//! Reported routes: what shards own and who their replicas are, by their own reports, where that is
//! later than the state.

use crate::load::{LoadModel, ShardView};
use crate::state::{Command, PlacementState, Shard};
use evenkeel_protocol::report::{RangeState, ShardReport};
use evenkeel_protocol::routing::{Route, RoutingTable};
use evenkeel_protocol::{ShardId, TableId};
use std::collections::BTreeMap;

/// The routes that a shard owns by its own report, without tables of other clusters.
pub(super) fn owned_here(view: &ShardView) -> impl Iterator<Item = Route> + '_ {
    owned(&view.report).filter(|route| !view.foreign_tables.contains(&route.table))
}

/// The routes that a shard owns by its own report.
pub(super) fn owned(report: &ShardReport) -> impl Iterator<Item = Route> + '_ {
    report.ranges.iter().filter(|r| matches!(r.state, RangeState::Owned | RangeState::MovingOut { .. })).map(|r| {
        Route { range: r.id, epoch: r.epoch, table: r.table, interval: r.interval.clone(), shard: report.shard }
    })
}

/// The command that takes in later routes of shards (invariant 6), where no operator works. By it a
/// placement driver that lost a race, or was restored from an old copy (R30), converges. `None` if
/// there are no later routes, or if they are not yet complete: a table is never left with a gap.
pub(super) fn take_routes(state: &PlacementState, load: &LoadModel) -> Option<Command> {
    let routes = later_routes(state, load, false);
    (!routes.is_empty()).then_some(Command::TakeRoutes(routes))
}

/// The command that takes in a shard's replicas by its own report, where its configuration is later
/// than the known one. The first configuration is as it was registered.
pub fn take_members(state: &PlacementState, load: &LoadModel) -> Option<Command> {
    let later = |(id, shard): (&ShardId, &Shard)| {
        let members = load.shards.get(id)?.report.members.as_ref()?;
        let differs = members.epoch > shard.epoch.max(1) && members.replicas != shard.info.replicas;
        differs.then(|| Command::TakeMembers { shard: *id, members: members.clone() })
    };
    state.shards.iter().find_map(later)
}

/// The routes of ready tables that shards own, where they are later than the known ones and leave
/// no gap. Ranges on which an operator works are left out, because its transitions bring their
/// routes; but not if `restoring`, when the operator may have ended long ago.
pub(super) fn later_routes(state: &PlacementState, load: &LoadModel, restoring: bool) -> Vec<Route> {
    let known = |route: &Route| state.ranges.get(&route.range).is_some_and(|r| r.route == *route);
    let ready = |table: &TableId| state.tables.get(table).is_some_and(|t| t.creating.is_none());
    let reported: Vec<Route> = load.shards.values().flat_map(owned_here).filter(|r| ready(&r.table)).collect();
    // In the usual case there is nothing to do.
    if reported.iter().all(|route| known(route) || older(state, route)) {
        return Vec::new();
    }
    let mut merged = RoutingTable::new(state.version, [], [], state.ranges.values().map(|r| r.route.clone()));
    for route in &reported {
        merged.put_route(route.clone());
    }
    let mut by_table: BTreeMap<TableId, Vec<Route>> = BTreeMap::new();
    for route in merged.routes().filter(|route| !known(route)) {
        by_table.entry(route.table).or_default().push(route.clone());
    }
    // A piece that no shard reports is the rest of a range whose other pieces are not known yet.
    let complete = |routes: &Vec<Route>| {
        routes.iter().all(|route| {
            reported.contains(route)
                && !state.ranges.values().any(|r| {
                    r.operator.is_some()
                        && !restoring
                        && r.route.table == route.table
                        && (r.route.range == route.range || r.route.interval.overlaps(&route.interval))
                })
        })
    };
    by_table.into_values().filter(complete).flatten().collect()
}

/// Whether a route at least as late is known for its keys.
fn older(state: &PlacementState, route: &Route) -> bool {
    let mut overlapping =
        state.ranges.values().filter(|r| r.route.table == route.table && r.route.interval.overlaps(&route.interval));
    overlapping.any(|r| r.route.epoch >= route.epoch && r.route != *route)
}
