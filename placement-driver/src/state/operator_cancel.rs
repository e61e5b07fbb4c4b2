//! Stopping operators: cancellation (R20), and taking a range back from a lost destination (R23).

use super::changes::VersionChange;
use super::effect::Effect;
use super::moment::Moment;
use super::operator_advance::finish;
use super::operator_status::{Status, Step};
use super::placement_state::PlacementState;
use super::refusal::Refusal;
use super::work::Work;
use evenkeel_protocol::OperatorId;

/// Cancels an operator, if it is still possible.
pub(super) fn cancel(
    state: &mut PlacementState,
    id: OperatorId,
    now: Moment,
    change: &mut VersionChange,
) -> Result<Effect, Refusal> {
    let operator = state.operators.get_mut(&id).ok_or(Refusal::UnknownOperator(id))?;
    if operator.status == Status::Cancelling {
        return Ok(Effect::Unchanged);
    }
    if operator.status.is_over() {
        return Err(Refusal::AlreadyOver { operator: id, status: operator.status.name() });
    }
    // The creation of a table is given up only at a shard that owns nothing, which may not exist at
    // all. If it does, it is asked to drop the table (`PlacementState::given_up`).
    let creation = match operator.work {
        Work::CreateTable { shard, .. } if operator.step == Step::Apply => {
            (!state.ranges.values().any(|range| range.route.shard == shard)).then_some(shard)
        }
        _ => None,
    };
    if let Some(shard) = creation {
        operator.detail = Some(format!("cancelled before shard {shard} had answered"));
        operator.enter(Step::End, Status::Cancelled, now);
        finish(state, id, now, change);
    } else if operator.step == Step::Prepare {
        operator.detail = Some("cancelled before it was decided".into());
        operator.enter(Step::End, Status::Cancelled, now);
        finish(state, id, now, change);
    } else if operator.cancellable() {
        operator.enter(Step::Cancel, Status::Cancelling, now);
    } else {
        let step = operator.step.name();
        return Err(Refusal::NotCancellable { operator: id, step });
    }
    Ok(Effect::Applied)
}

/// R23: an administrator declares the destination lost for good. Its reports are refused from now
/// on.
pub(super) fn take_back(state: &mut PlacementState, id: OperatorId, now: Moment) -> Result<Effect, Refusal> {
    let operator = state.operators.get_mut(&id).ok_or(Refusal::UnknownOperator(id))?;
    let Work::Move { to, .. } = operator.work else {
        return Err(Refusal::NotFenced { operator: id, step: operator.shown_step() });
    };
    if operator.destination_lost && operator.step == Step::Restore {
        return Ok(Effect::Unchanged);
    }
    if !matches!(operator.step, Step::Copy | Step::Switch) || operator.status != Status::Running {
        return Err(Refusal::NotFenced { operator: id, step: operator.shown_step() });
    }
    operator.destination_lost = true;
    operator.detail = Some(format!("shard {to} was declared lost; the source takes the range back"));
    operator.enter(Step::Restore, Status::Running, now);
    if let Some(shard) = state.shards.get_mut(&to) {
        shard.lost = true;
    }
    Ok(Effect::Applied)
}
