//! What shards' reports prove about operators and routes.

use crate::balancer::Picture;
use crate::state::{Command, Operator, Shard, State, Step, Transition, Work};
use evenkeel_protocol::report::{OperatorPhase, RangeState, ShardReport};
use evenkeel_protocol::routing::{Route, RoutingTable};
use evenkeel_protocol::{OperatorId, RangeId, ShardId, TableId};
use std::collections::BTreeMap;

/// The transition that reports prove for a move, if any.
pub(super) fn transition(operator: &Operator, picture: &Picture) -> Option<Transition> {
    let Work::Move { range, epoch, from, to } = &operator.work else { return None };
    let phase = |shard: &ShardId| {
        let report = &picture.shards.get(shard)?.report;
        report.operators.iter().find(|o| o.operator == operator.id).map(|o| &o.phase)
    };
    let (source, destination) = (phase(from), phase(to));
    if matches!(operator.step, Step::Open | Step::Copy | Step::Switch | Step::Cancel)
        && let Some(OperatorPhase::Adopted { epoch, pause_us, rows, bytes }) = destination
    {
        return Some(Transition::Adopted { epoch: *epoch, pause_us: *pause_us, rows: *rows, bytes: *bytes });
    }
    match operator.step {
        Step::Copy | Step::Switch if destination == Some(&OperatorPhase::Discarding) => Some(Transition::Declined),
        Step::Copy if matches!(source, Some(OperatorPhase::Fenced | OperatorPhase::HandedOver)) => {
            Some(Transition::Fenced)
        }
        // R23: a decline's proof lets the source take the range back at a higher epoch. Its report says so, whoever else is silent.
        Step::Restore | Step::Switch | Step::Copy => {
            let back = taken_back(picture, from, *range).filter(|found| found > epoch);
            match (back, operator.step) {
                (Some(epoch), Step::Restore) => Some(Transition::TakenBack { epoch }),
                (Some(_), _) => Some(Transition::Declined),
                (None, _) => None,
            }
        }
        _ => None,
    }
}

fn taken_back(picture: &Picture, from: &ShardId, range: RangeId) -> Option<evenkeel_protocol::Epoch> {
    let report = &picture.shards.get(from)?.report;
    report.ranges.iter().find(|r| r.id == range && r.state == RangeState::Owned).map(|r| r.epoch)
}

/// The routes a shard owns, by its own report.
pub(super) fn owned(report: &ShardReport) -> impl Iterator<Item = Route> + '_ {
    report.ranges.iter().filter(|r| matches!(r.state, RangeState::Owned | RangeState::MovingOut { .. })).map(|r| {
        Route { range: r.id, epoch: r.epoch, table: r.table, interval: r.interval.clone(), shard: report.shard }
    })
}

/// What shards own according to their own logs (invariant 6), where that is later than what is known here and no operator is at work: a placement
/// driver that lost a race, or was restored from a backup (R30), converges. `None` if there is nothing to take in, or not yet
/// all of it: a table is never left with a gap.
pub fn take_routes(state: &State, picture: &Picture) -> Option<Command> {
    if state.restoring {
        return reconcile(state, picture);
    }
    let routes = later_routes(state, picture);
    (!routes.is_empty()).then_some(Command::TakeRoutes(routes))
}

/// Who a shard's replicas are by its own report, where that is later than what is known here. The founding members are as they were
/// registered; nothing is to be taken in for them.
pub fn take_members(state: &State, picture: &Picture) -> Option<Command> {
    let later = |(id, shard): (&ShardId, &Shard)| {
        let members = picture.shards.get(id)?.report.members.as_ref()?;
        let differs = members.epoch > shard.epoch.max(1) && members.replicas != shard.info.replicas;
        differs.then(|| Command::TakeMembers { shard: *id, members: members.clone() })
    };
    state.shards.iter().find_map(later)
}

fn reconcile(state: &State, picture: &Picture) -> Option<Command> {
    if !state.shards.keys().all(|id| picture.shards.contains_key(id)) {
        return None;
    }
    let reports = || picture.shards.values().map(|view| &view.report);
    let ranges = || reports().flat_map(|report| &report.ranges);
    let operators = reports().flat_map(|report| &report.operators).map(|o| o.operator);
    let fences = ranges().filter_map(|r| match r.state {
        RangeState::MovingOut { operator, .. }
        | RangeState::Fenced { operator, .. }
        | RangeState::Incoming { operator } => Some(operator),
        RangeState::Owned => None,
    });
    Some(Command::Reconciled {
        range: ranges().map(|r| r.id).max().unwrap_or_default(),
        operator: operators.chain(fences).max().unwrap_or(OperatorId(0)),
        table: ranges().map(|r| r.table).max().unwrap_or_default(),
        routes: later_routes(state, picture),
    })
}

fn later_routes(state: &State, picture: &Picture) -> Vec<Route> {
    let known = |route: &Route| state.ranges.get(&route.range).is_some_and(|r| r.route == *route);
    let ready = |table: &TableId| state.tables.get(table).is_some_and(|t| t.creating.is_none());
    let reported: Vec<Route> =
        picture.shards.values().flat_map(|view| owned(&view.report)).filter(|r| ready(&r.table)).collect();
    // The usual case costs no more than this comparison.
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
    // A piece that nobody reports is what is left of a range whose other pieces are not known yet; so is one with an operator.
    let complete = |routes: &Vec<Route>| {
        routes.iter().all(|route| {
            reported.contains(route)
                && !state.ranges.values().any(|r| {
                    r.operator.is_some()
                        && r.route.table == route.table
                        && (r.route.range == route.range || r.route.interval.overlaps(&route.interval))
                })
        })
    };
    by_table.into_values().filter(complete).flatten().collect()
}

/// Whether something at least as late is known about all of its keys.
fn older(state: &State, route: &Route) -> bool {
    let mut overlapping =
        state.ranges.values().filter(|r| r.route.table == route.table && r.route.interval.overlaps(&route.interval));
    overlapping.any(|r| r.route.epoch >= route.epoch && r.route != *route)
}
