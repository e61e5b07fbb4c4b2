//! What each step asks of whom, and what the answers prove.

use crate::state::{Operator, State, Step, Transition, Work};
use evenkeel_protocol::report::{OperatorPhase, OperatorReport};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{RangeId, ShardId};

/// The requests of an operator's present step.
pub(super) fn of(operator: &Operator, state: &State) -> Vec<(ShardId, ControlRequest)> {
    let id = operator.id;
    match &operator.work {
        Work::CreateTable { table, range, shard } => {
            let Some(table) = state.tables.get(table) else { return Vec::new() };
            vec![(*shard, ControlRequest::CreateTable { schema: (*table.schema).clone(), range: *range })]
        }
        Work::Split { range, epoch, shard, at } => {
            vec![(*shard, ControlRequest::Split { operator: id, range: *range, epoch: *epoch, at: at.clone() })]
        }
        Work::Merge { left, right, shard } => {
            vec![(*shard, ControlRequest::Merge { operator: id, left: *left, right: *right })]
        }
        Work::Move { range, from, to, .. } => of_move(operator, *range, *from, *to, state),
    }
}

fn of_move(
    operator: &Operator,
    range: RangeId,
    from: ShardId,
    to: ShardId,
    state: &State,
) -> Vec<(ShardId, ControlRequest)> {
    let id = operator.id;
    let (Some(source), Some(destination)) = (state.shards.get(&from), state.shards.get(&to)) else {
        return Vec::new();
    };
    match operator.step {
        Step::Open => {
            let Work::Move { epoch, .. } = operator.work else { return Vec::new() };
            let to = destination.info.clone();
            vec![(from, ControlRequest::MoveOpen { operator: id, range, epoch, to })]
        }
        Step::Copy => {
            let (Some(held), Some(table)) = (state.ranges.get(&range), state.tables.get(&operator.table)) else {
                return Vec::new();
            };
            let request = ControlRequest::IngestOpen {
                operator: id,
                schema: (*table.schema).clone(),
                range,
                interval: held.route.interval.clone(),
                epoch: held.route.epoch,
                from: source.info.clone(),
            };
            vec![(to, request)]
        }
        Step::Purge => vec![(from, ControlRequest::Purge { operator: id })],
        Step::Forget => vec![(to, ControlRequest::MoveForget { operator: id })],
        Step::Cancel => vec![(from, ControlRequest::MoveCancel { operator: id, range })],
        Step::Discard => vec![(to, ControlRequest::IngestCancel { operator: id })],
        Step::Restore if operator.destination_lost => vec![(from, ControlRequest::TakeBack { operator: id })],
        Step::Apply | Step::Switch | Step::Restore | Step::End => Vec::new(),
    }
}

/// What an answer proves. `None`: nothing yet.
pub(super) fn outcome(operator: &Operator, shard: ShardId, reply: &ControlReply) -> Option<Transition> {
    let refused = match reply {
        ControlReply::Done => None,
        ControlReply::Refused { code, reason } => Some((code.as_str(), reason)),
        // An answer to another question proves nothing.
        _ => return None,
    };
    let because = |reason: &str| format!("shard {shard}: {reason}");
    Some(match (operator.step, refused) {
        (Step::Apply, None) => Transition::Applied,
        (Step::Apply | Step::Open, Some((_, reason))) => Transition::Refused { reason: because(reason) },
        (Step::Open, None) => Transition::Opened,
        // The destination drives from here on; its reports say what comes of it.
        (Step::Copy, None) => return None,
        (Step::Copy, Some((_, reason))) => Transition::GiveUp { reason: because(reason) },
        // R20: the fence came first. The move goes forward.
        (Step::Cancel, Some(("already-fenced", _))) => Transition::TooLateToCancel,
        // Done, or the source knows nothing of the move. Should its opening still be on the way, sweeping cancels it.
        (Step::Cancel, _) => Transition::CancelledAtSource,
        (Step::Discard, _) => Transition::Discarded,
        // What is refused here is gone already.
        (Step::Purge, _) => Transition::Purged,
        (Step::Forget, _) => Transition::Forgotten,
        // R23: the destination has adopted the range. If it has been taken back, the source's reports say so.
        (Step::Restore, Some((_, reason))) => Transition::NotTakenBack { reason: because(reason) },
        (Step::Switch | Step::Restore | Step::End, _) => return None,
    })
}

/// What to ask a shard that still remembers an operator which is over, or which is `forgotten` here.
pub(super) fn sweeping(report: &OperatorReport, forgotten: bool) -> Option<ControlRequest> {
    let (operator, range) = (report.operator, report.range);
    match report.phase {
        OperatorPhase::Open => Some(ControlRequest::MoveCancel { operator, range }),
        OperatorPhase::Copying { .. } | OperatorPhase::CatchingUp { .. } => {
            Some(ControlRequest::IngestCancel { operator })
        }
        OperatorPhase::Finished => Some(ControlRequest::MoveForget { operator }),
        // The state was restored from an old copy, in which the move does not exist (R30). The range was verified before it was adopted (R24).
        OperatorPhase::HandedOver if forgotten => Some(ControlRequest::Purge { operator }),
        // Fenced: only forward, by itself. Adopted: the source may still ask what became of it.
        _ => None,
    }
}
