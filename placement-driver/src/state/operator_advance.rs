//! Transitions of operators: the next step, the routes that it publishes, and the end.

use super::changes::VersionChange;
use super::effect::Effect;
use super::limits::{MAX_ENDED, MAX_GIVEN_UP};
use super::moment::Moment;
use super::operator_status::{Operator, Status, Step, Transition};
use super::placement_state::PlacementState;
use super::range::Failures;
use super::refusal::Refusal;
use super::route_changes::replace;
use super::schema_changes;
use super::work::Work;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId};

/// Takes an operator to its next step, and publishes the routes that the transition brings.
pub(super) fn advance(
    state: &mut PlacementState,
    id: OperatorId,
    from: Step,
    transition: Transition,
    now: Moment,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    let operator = state.operators.get(&id).ok_or(Refusal::UnknownOperator(id))?;
    if operator.step != from || !transition.sources().contains(&from) {
        return Err(Refusal::OtherStep { operator: id, found: operator.shown_step() });
    }
    let routes = routes_after(state, operator, &transition);
    let status = transition.status(operator);
    replace(state, &routes, now, change)?;
    let Some(operator) = state.operators.get_mut(&id) else {
        return Err(Refusal::UnknownOperator(id));
    };
    note(operator, &transition);
    operator.enter(transition.target(), status, now);
    if status.is_over() {
        finish(state, id, now, change);
    } else if transition.releases() {
        release(state, id, now);
    }
    Ok(Effect::Applied)
}

/// The routes that a transition publishes. There are none for a range whose epoch has changed since
/// the operator began: the operator comes from an old copy of the state, and reports of the shards
/// are later (R30).
fn routes_after(state: &PlacementState, operator: &Operator, transition: &Transition) -> Vec<Route> {
    let at = operator.work.epochs();
    let route = |id: &RangeId| {
        let route = state.ranges.get(id).map(|range| &range.route);
        route.filter(|route| at.iter().any(|(range, epoch)| (range, epoch) == (id, &route.epoch))).cloned()
    };
    match (transition, &operator.work) {
        (Transition::Applied, Work::CreateTable { table, range, shard }) => {
            if state.ranges.values().any(|range| range.route.table == *table) {
                return Vec::new();
            }
            let interval = KeyInterval::ALL;
            vec![Route { range: *range, epoch: Epoch(1), table: *table, interval, shard: *shard }]
        }
        (Transition::Applied, Work::Split { range, epoch, at, .. }) => {
            let keys: Vec<Key> = at.iter().map(|(key, _)| key.clone()).collect();
            let Some(old) = route(range) else { return Vec::new() };
            let pieces = old.interval.split(&keys).unwrap_or_default();
            let ids = std::iter::once(*range).chain(at.iter().map(|(_, id)| *id));
            let piece = |(interval, range)| Route { range, interval, epoch: epoch.next(), ..old.clone() };
            pieces.into_iter().zip(ids).map(piece).collect()
        }
        (Transition::Applied, Work::Merge { left, right, .. }) => {
            let (Some(a), Some(b)) = (route(&left.0), route(&right.0)) else { return Vec::new() };
            let epoch = left.1.max(right.1).next();
            let join = |interval| Route { interval, epoch, ..a.clone() };
            a.interval.join(&b.interval).map(join).into_iter().collect()
        }
        (Transition::Adopted { epoch, .. }, Work::Move { range, to, .. }) => {
            route(range).map(|old| Route { epoch: *epoch, shard: *to, ..old }).into_iter().collect()
        }
        (Transition::TakenBack { epoch }, Work::Move { range, .. }) => {
            route(range).map(|old| Route { epoch: *epoch, ..old }).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Unlocks the ranges of an operator, so that the next one may begin on them, and counts its
/// failure or success.
fn release(state: &mut PlacementState, id: OperatorId, now: Moment) {
    let Some(operator) = state.operators.get(&id) else { return };
    let in_vain = operator.is_in_vain();
    let asked = !operator.given_up && operator.status != Status::Failed;
    for range in state.ranges.values_mut().filter(|range| range.operator == Some(id)) {
        range.operator = None;
        // A cancellation by an administrator does not show that the operator would have failed
        // again.
        let times = if asked { range.failures.times.max(1) } else { range.failures.times.saturating_add(1) };
        range.failures = if in_vain { Failures { times, last_ms: now.time_ms } } else { Failures::default() };
    }
}

/// Ends an operator: unlocks its ranges, publishes or removes the table it creates, records the
/// outcome of its decision, and forgets operators that ended long ago.
pub(super) fn finish(state: &mut PlacementState, id: OperatorId, now: Moment, change: &mut VersionChange) {
    release(state, id, now);
    let Some(operator) = state.operators.get(&id) else { return };
    if let Work::CreateTable { table, .. } = operator.work {
        if operator.status == Status::Done {
            if let Some(table) = state.tables.get_mut(&table) {
                table.creating = None;
            }
            change.tables.insert(table);
        } else {
            state.tables.remove(&table);
            state.given_up.insert(table, id);
            if state.given_up.len() > MAX_GIVEN_UP {
                state.given_up.pop_first();
            }
        }
    }
    let plan = operator.work.schema_plan().cloned();
    let done = operator.status == Status::Done;
    let decision = operator.decision;
    if let Some(plan) = plan {
        if done {
            schema_changes::publish(state, &plan, now, change);
        }
        if let Some(operator) = state.operators.get_mut(&id) {
            operator.work = Work::SchemaChange { version: plan.version(), plan: None };
        }
    }
    if let Some(decision) = decision {
        note_outcome(state, decision);
    }
    let ended: Vec<OperatorId> =
        state.operators.values().filter(|operator| operator.status.is_over()).map(|operator| operator.id).collect();
    for id in &ended[..ended.len().saturating_sub(MAX_ENDED)] {
        state.operators.remove(id);
    }
}

fn note_outcome(state: &mut PlacementState, id: u64) {
    let Some(decision) = state.decisions.iter_mut().find(|decision| decision.id == id) else { return };
    let operators: Vec<&Operator> = decision.operators.iter().filter_map(|id| state.operators.get(id)).collect();
    if operators.iter().any(|operator| !operator.status.is_over()) {
        return;
    }
    let count = |status| operators.iter().filter(|operator| operator.status == status).count();
    let ended_ms = operators.iter().map(|operator| operator.step_since_ms).max().unwrap_or(0);
    let took_ms = ended_ms.saturating_sub(decision.time_ms);
    let mut outcome = format!("{} of {} done after {took_ms} ms", count(Status::Done), decision.operators.len());
    for status in [Status::Cancelled, Status::Failed, Status::Differs] {
        if count(status) > 0 {
            outcome.push_str(&format!(", {} {}", count(status), status.name()));
        }
    }
    let bytes: u64 = operators.iter().map(|operator| operator.bytes).sum();
    if bytes > 0 {
        let pause = operators.iter().filter_map(|operator| operator.pause_us).max().unwrap_or(0);
        outcome.push_str(&format!("; {bytes} bytes moved, longest pause {pause} µs"));
    }
    decision.outcome = Some(outcome);
}

/// Records in the operator what its transition carries.
fn note(operator: &mut Operator, transition: &Transition) {
    match transition {
        Transition::Adopted { pause_us, rows, bytes, .. } => {
            operator.pause_us = Some(*pause_us);
            operator.rows = *rows;
            operator.bytes = *bytes;
        }
        Transition::Refused { reason } | Transition::NotTakenBack { reason } => operator.detail = Some(reason.clone()),
        Transition::GiveUp { reason } => {
            operator.given_up = true;
            operator.detail = Some(reason.clone());
        }
        Transition::Declined => {
            operator.detail = Some("the destination declined; the source takes the range back".into());
        }
        Transition::Overtaken => {
            let detail =
                "it was under way in the copy that the placement driver was restored from, and has ended since";
            operator.detail = Some(detail.into());
        }
        Transition::Differs { detail } => {
            (operator.given_up, operator.differs) = (true, true);
            operator.detail = Some(format!("what was stored differs from what was sent: {detail}"));
        }
        _ => {}
    }
}
