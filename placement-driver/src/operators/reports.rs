//! What shards' reports prove about operators and routes.

use crate::balancer::{Picture, ShardView};
use crate::state::{Command, Operator, Shard, State, Step, Transition, Work};
use evenkeel_protocol::report::{OperatorPhase, OperatorReport, RangeReport, RangeState, ShardReport};
use evenkeel_protocol::routing::{Route, RoutingTable};
use evenkeel_protocol::{RangeId, ShardId, TableId};
use std::collections::BTreeMap;

/// The transition that reports prove for a move, if any.
pub(super) fn transition(operator: &Operator, state: &State, picture: &Picture) -> Option<Transition> {
    let Work::Move { range, epoch, from, to } = &operator.work else { return None };
    // The number alone does not tell: a placement driver that was restored from an old copy may have given it a second time (R30).
    let told = |shard: &ShardId| {
        let report = &picture.shards.get(shard)?.report;
        report.operators.iter().find(|o| o.operator == operator.id && o.range == *range)
    };
    let phase = |shard: &ShardId| told(shard).map(|o| &o.phase);
    let (source, destination) = (phase(from), phase(to));
    let differs = || told(to)?.progress.as_ref()?.differs.clone();
    if matches!(operator.step, Step::Open | Step::Copy | Step::Switch | Step::Cancel)
        && let Some(OperatorPhase::Adopted { epoch, pause_us, rows, bytes }) = destination
    {
        return Some(Transition::Adopted { epoch: *epoch, pause_us: *pause_us, rows: *rows, bytes: *bytes });
    }
    match operator.step {
        Step::Copy | Step::Switch if destination == Some(&OperatorPhase::Discarding) => Some(Transition::Declined),
        // R24: it is found out before the fence, so the range stays where it is.
        Step::Copy if source == Some(&OperatorPhase::Open) && differs().is_some() => {
            differs().map(|detail| Transition::Differs { detail })
        }
        Step::Copy if matches!(source, Some(OperatorPhase::Fenced | OperatorPhase::HandedOver)) => {
            Some(Transition::Fenced)
        }
        // R23: a decline's proof lets the source take the range back at a higher epoch. Its report says so, whoever else is silent.
        Step::Restore | Step::Switch | Step::Copy => {
            let back = taken_back(state, picture, from, *range).filter(|found| found > epoch);
            match (back, operator.step) {
                (Some(epoch), Step::Restore) => Some(Transition::TakenBack { epoch }),
                (Some(_), _) => Some(Transition::Declined),
                // Before the fence it is cancelled, as its source does not know it (`watchdog`).
                (None, Step::Copy) => None,
                (None, _) => overtaken(operator, state, picture),
            }
        }
        _ => None,
    }
}

/// Whether a move is over whose end this state has never heard of, because it was restored from a copy in which it was under way (R30): both
/// shards have reported and do not know it, and somebody owns some of its keys at a later epoch. While a move is under way nobody does, unless
/// it is this very move's destination, or the source that has taken the range back; and the source knows a move from its opening on.
fn overtaken(operator: &Operator, state: &State, picture: &Picture) -> Option<Transition> {
    let Work::Move { range, epoch, from, to } = &operator.work else { return None };
    let knows = |view: &ShardView| view.report.operators.iter().any(|o| o.operator == operator.id && o.range == *range);
    let lost = |id: &ShardId| state.shards.get(id).is_some_and(|shard| shard.lost);
    let without = |id: &ShardId| lost(id) || picture.shards.get(id).is_some_and(|view| !knows(view));
    if !without(from) || !without(to) {
        return None;
    }
    let of_its_keys = |route: &Route| match state.ranges.get(range) {
        Some(known) => route.table == operator.table && route.interval.overlaps(&known.route.interval),
        None => false,
    };
    let later = |route: Route| route.epoch > *epoch && of_its_keys(&route);
    // The range may be no more, or may be known as later already.
    let gone_on = state.ranges.get(range).is_none_or(|known| known.route.epoch > *epoch);
    (gone_on || picture.shards.values().flat_map(owned_here).any(later)).then_some(Transition::Overtaken)
}

/// Whether some shard says that this operator moves the range out of it.
pub(super) fn has_source(told: &OperatorReport, picture: &Picture) -> bool {
    let is_source = |o: &OperatorReport| {
        let phase = matches!(
            o.phase,
            OperatorPhase::Open | OperatorPhase::Fenced | OperatorPhase::HandedOver | OperatorPhase::Purging { .. }
        );
        phase && o.operator == told.operator && o.range == told.range
    };
    picture.shards.values().any(|view| view.report.operators.iter().any(is_source))
}

/// The epoch at which the source has the whole range again. With other keys it has gone on since the copy that this state was restored from
/// (R30): what is owned then, only the reports of all shards say.
fn taken_back(state: &State, picture: &Picture, from: &ShardId, range: RangeId) -> Option<evenkeel_protocol::Epoch> {
    let report = &picture.shards.get(from)?.report;
    let known = &state.ranges.get(&range)?.route.interval;
    let back = |r: &&RangeReport| r.id == range && r.state == RangeState::Owned && r.interval == *known;
    report.ranges.iter().find(back).map(|r| r.epoch)
}

/// The routes a shard owns, by its own report, of tables that are not other tables here.
pub(super) fn owned_here(view: &ShardView) -> impl Iterator<Item = Route> + '_ {
    owned(&view.report).filter(|route| !view.foreign_tables.contains(&route.table))
}

/// The routes a shard owns, by its own report.
pub(super) fn owned(report: &ShardReport) -> impl Iterator<Item = Route> + '_ {
    report.ranges.iter().filter(|r| matches!(r.state, RangeState::Owned | RangeState::MovingOut { .. })).map(|r| {
        Route { range: r.id, epoch: r.epoch, table: r.table, interval: r.interval.clone(), shard: report.shard }
    })
}

/// What shards own according to their own logs (invariant 6), where that is later than what is known here and no operator is at work: a placement
/// driver that lost a race, or was restored from an old copy (R30), converges. `None` if there is nothing to take in, or not yet
/// all of it: a table is never left with a gap.
pub(super) fn take_routes(state: &State, picture: &Picture) -> Option<Command> {
    let routes = later_routes(state, picture, false);
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

/// What shards own of the tables that are ready, where that is later than what is known here and leaves no gap. Not where an operator is at work,
/// which will bring it itself; unless `restoring`, for then it may have ended long ago.
pub(super) fn later_routes(state: &State, picture: &Picture, restoring: bool) -> Vec<Route> {
    let known = |route: &Route| state.ranges.get(&route.range).is_some_and(|r| r.route == *route);
    let ready = |table: &TableId| state.tables.get(table).is_some_and(|t| t.creating.is_none());
    let reported: Vec<Route> = picture.shards.values().flat_map(owned_here).filter(|r| ready(&r.table)).collect();
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
                        && !restoring
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
