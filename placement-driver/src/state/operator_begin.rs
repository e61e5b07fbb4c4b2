//! Beginning operators: checks, numbers, and locks on ranges.

use super::decision::{Action, Decision, NewDecision};
use super::effect::Effect;
use super::limits::{MAX_DECISIONS, MAX_PIECES, MAX_RANGES, MAX_RUNNING};
use super::moment::Moment;
use super::operator_status::Operator;
use super::placement_state::PlacementState;
use super::range::Range;
use super::refusal::Refusal;
use super::shard_changes;
use super::work::Work;
use evenkeel_protocol::value::{interval_text, key_text};
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, TableId, TableSchema};

/// Whether another operator may begin.
pub(super) fn may_allocate(state: &PlacementState) -> Result<(), Refusal> {
    // R30: after a restoration, numbers could collide with those given after the backup.
    if state.restoring {
        return Err(Refusal::Restoring);
    }
    if state.running().count() >= MAX_RUNNING {
        return Err(Refusal::TooMany(format!("{MAX_RUNNING} operators are under way already")));
    }
    Ok(())
}

/// Starts an operator: gives it the next number (R20) and locks its ranges.
pub(super) fn start(
    state: &mut PlacementState,
    work: Work,
    table: TableId,
    decision: Option<u64>,
    now: Moment,
) -> OperatorId {
    let id = state.numbers.give_operator();
    for range in work.ranges() {
        if let Some(range) = state.ranges.get_mut(&range) {
            range.operator = Some(id);
        }
    }
    state.operators.insert(id, Operator::new(id, work, table, decision, now));
    id
}

/// The range, if no operator works on it and it has the expected epoch.
fn free(state: &PlacementState, id: RangeId, epoch: Option<Epoch>) -> Result<&Range, Refusal> {
    let range = state.ranges.get(&id).ok_or(Refusal::UnknownRange(id))?;
    if let Some(operator) = range.operator {
        return Err(Refusal::RangeBusy { range: id, operator });
    }
    match epoch {
        Some(expected) if expected != range.route.epoch => {
            Err(Refusal::WrongEpoch { range: id, found: range.route.epoch, expected })
        }
        _ => Ok(range),
    }
}

/// The same, if its table may split and move, and no schema change is about to change it.
fn unpinned(state: &PlacementState, id: RangeId, epoch: Option<Epoch>) -> Result<&Range, Refusal> {
    let range = free(state, id, epoch)?;
    if state.is_pinned(range.route.table) {
        return Err(Refusal::Pinned(id));
    }
    let changing = |operator: &&Operator| {
        operator.work.schema_plan().is_some_and(|plan| plan.touched().contains(&range.route.table))
    };
    match state.schema_operator().filter(changing) {
        Some(operator) => Err(Refusal::SchemaBusy(operator.id)),
        None => Ok(range),
    }
}

/// Begins the operator of an action.
pub(super) fn begin(
    state: &mut PlacementState,
    action: Action,
    decision: Option<u64>,
    now: Moment,
) -> Result<OperatorId, Refusal> {
    may_allocate(state)?;
    let (work, table) = match action {
        Action::Split { range, epoch, at } => {
            let Range { route, .. } = unpinned(state, range, epoch)?;
            let schema = state.tables.get(&route.table).map(|table| table.schema.as_ref());
            check_split(&route.interval, &at, schema)?;
            if state.ranges.len() + at.len() > MAX_RANGES {
                return Err(Refusal::TooMany(format!("there would be more than {MAX_RANGES} ranges")));
            }
            let (table, shard, epoch) = (route.table, route.shard, route.epoch);
            let at = at.into_iter().map(|key| (key, state.numbers.give_range())).collect();
            (Work::Split { range, epoch, shard, at }, table)
        }
        Action::Merge { left, right } => {
            let (a, b) =
                (&unpinned(state, left.0, Some(left.1))?.route, &unpinned(state, right.0, Some(right.1))?.route);
            if a.table != b.table || a.shard != b.shard || a.interval.join(&b.interval).is_none() {
                return Err(Refusal::NotNeighbours(left.0, right.0));
            }
            (Work::Merge { left, right, shard: a.shard }, a.table)
        }
        Action::Move { range, epoch, to } => {
            let Range { route, .. } = unpinned(state, range, epoch)?;
            if route.shard == to {
                return Err(Refusal::SameShard { range, shard: to });
            }
            shard_changes::active(state, to)?;
            (Work::Move { range, epoch: route.epoch, from: route.shard, to }, route.table)
        }
    };
    Ok(start(state, work, table, decision, now))
}

/// Begins the operators of a decision. Actions that are no longer possible are left out.
pub(super) fn decide(state: &mut PlacementState, decided: NewDecision, now: Moment) -> Result<Effect, Refusal> {
    let id = state.numbers.next_decision();
    let mut operators = Vec::new();
    let mut refusals = Vec::new();
    for action in decided.actions.clone() {
        match begin(state, action, Some(id), now) {
            Ok(operator) => operators.push(operator),
            Err(refusal) => refusals.push(refusal.to_string()),
        }
    }
    if operators.is_empty() {
        return Err(Refusal::NothingLeft(refusals.join("; ")));
    }
    state.numbers.give_decision();
    if state.decisions.len() >= MAX_DECISIONS {
        state.decisions.pop_front();
    }
    state.decisions.push_back(Decision {
        id,
        at_ms: now.at_ms,
        time_ms: now.time_ms,
        decided,
        operators: operators.clone(),
        outcome: None,
    });
    Ok(Effect::Begun(operators))
}

/// Checks the keys of a split.
fn check_split(interval: &KeyInterval, at: &[Key], schema: Option<&TableSchema>) -> Result<(), Refusal> {
    if at.is_empty() || at.len() >= MAX_PIECES {
        return Err(Refusal::BadSplit(format!("a split is at 1 to {} keys, {} given", MAX_PIECES - 1, at.len())));
    }
    if let Some(key) = at.iter().find(|key| !interval.splits_at(key)) {
        // Shown as `GET /v1/ranges` shows keys.
        let (key, interval) = match schema.map(TableSchema::codec) {
            Some(codec) => (key_text(&codec, key), interval_text(&codec, interval)),
            None => (key.to_hex(), interval.to_string()),
        };
        return Err(Refusal::BadSplit(format!("{key} is not strictly inside {interval}")));
    }
    if interval.split(at).is_none() {
        return Err(Refusal::BadSplit("the keys to split at must grow strictly".into()));
    }
    Ok(())
}
