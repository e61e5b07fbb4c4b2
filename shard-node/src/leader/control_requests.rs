//! Requests of the placement driver as control entries, and whether a request has been served
//! already. Pure.

use crate::log_entry::Control;
use crate::state_machine::{FinishedWork, InPhase, OutPhase, ShardState};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};

/// The reply, if the state machine shows that the request was served before. The operator's number
/// alone does not show it: a placement driver that was restored from a backup assigns numbers again
/// (R30). A number under which other work was done is rejected.
pub(super) fn served_before(state: &ShardState, request: &ControlRequest) -> Option<ControlReply> {
    let done = Some(ControlReply::Done);
    match request {
        ControlRequest::CreateTable { schema, .. } => match state.table(schema.id)? {
            known if **known == *schema => done,
            other => Some(stale(&format!("table {} is {:?} here", schema.id, other.name))),
        },
        ControlRequest::DropTable { table } => state.table(*table).is_none().then_some(ControlReply::Done),
        ControlRequest::Split { operator, range, epoch, at } => {
            let pieces = at.iter().map(|(_, id)| *id).collect();
            finished(state, *operator, &FinishedWork::Split { range: *range, epoch: *epoch, pieces })
        }
        ControlRequest::Merge { operator, left, right } => {
            finished(state, *operator, &FinishedWork::Merge { left: *left, right: *right })
        }
        ControlRequest::MoveOpen { operator, range, epoch, to } => match state.move_out(*operator) {
            Some(m) if m.range == *range && m.epoch == *epoch && m.to.id == to.id => done,
            Some(m) => Some(stale(&format!("operator {operator} moves range {} here", m.range))),
            None => finished(state, *operator, &FinishedWork::MoveOut { range: *range, epoch: *epoch }),
        },
        ControlRequest::MoveCancel { operator, range } => match state.move_out(*operator) {
            Some(m) if m.range != *range => Some(stale(&format!("operator {operator} moves range {} here", m.range))),
            Some(m) if m.phase != OutPhase::Open => Some(already_fenced(*operator)),
            Some(_) => None,
            // If the move was never opened, the cancellation must be in the log, because the
            // opening may still arrive. Once any work under this number is finished, the move
            // cannot be opened any more.
            None => state.is_finished(*operator).then_some(ControlReply::Done),
        },
        ControlRequest::TakeBack { operator } => match state.move_out(*operator).map(|m| m.phase) {
            Some(OutPhase::Fenced { .. }) => None,
            Some(_) => {
                let reason = format!("operator {operator} is not between its fence and its adoption");
                Some(ControlReply::Refused { code: "not-fenced".into(), reason })
            }
            None => state.is_finished(*operator).then_some(ControlReply::Done),
        },
        ControlRequest::IngestOpen { operator, range, epoch, interval, from, .. } => {
            let m = state.move_in(*operator)?;
            let same = (m.range, m.epoch, &m.interval, m.from.id) == (*range, *epoch, interval, from.id);
            if same { done } else { Some(stale(&format!("operator {operator} moves range {} here", m.range))) }
        }
        ControlRequest::IngestCancel { operator } => {
            let over = match state.move_in(*operator) {
                None => state.is_finished(*operator),
                Some(m) => m.phase == InPhase::Discarding,
            };
            over.then_some(ControlReply::Done)
        }
        ControlRequest::MoveForget { operator } => state.move_in(*operator).is_none().then_some(ControlReply::Done),
        _ => None,
    }
}

fn finished(state: &ShardState, operator: OperatorId, work: &FinishedWork) -> Option<ControlReply> {
    let done = state.finished(operator)?;
    Some(if done == work {
        ControlReply::Done
    } else {
        stale(&format!("operator {operator} has done something else here: {done:?}"))
    })
}

fn stale(reason: &str) -> ControlReply {
    ControlReply::Refused { code: "stale-operator".into(), reason: reason.to_string() }
}

fn already_fenced(operator: OperatorId) -> ControlReply {
    ControlReply::Refused { code: "already-fenced".into(), reason: format!("operator {operator} has passed its fence") }
}

/// The entry of a request that consists of one entry.
pub(super) fn entry_of(request: &ControlRequest) -> Option<Control> {
    Some(match request.clone() {
        ControlRequest::CreateTable { schema, range } => Control::CreateTable { schema, range },
        ControlRequest::DropTable { table } => Control::DropTable { table },
        ControlRequest::Split { operator, range, epoch, at } => Control::Split { operator, range, epoch, at },
        ControlRequest::Merge { operator, left, right } => Control::Merge { operator, left, right },
        ControlRequest::MoveOpen { operator, range, epoch, to } => Control::MoveOpen { operator, range, epoch, to },
        ControlRequest::MoveCancel { operator, .. } => Control::MoveCancel { operator },
        ControlRequest::TakeBack { operator } => Control::TakeBack { operator },
        ControlRequest::IngestOpen { operator, schema, range, interval, epoch, from } => {
            Control::IngestOpen { operator, schema, range, interval, epoch, from }
        }
        ControlRequest::IngestCancel { operator } => Control::IngestCancel { operator },
        ControlRequest::MoveForget { operator } => Control::Forget { operator },
        ControlRequest::SizeSplitKeys { .. }
        | ControlRequest::Purge { .. }
        | ControlRequest::Compare { .. }
        | ControlRequest::TransferLeadership { .. }
        | ControlRequest::ChangeReplicas { .. }
        | ControlRequest::CheckTable { .. }
        | ControlRequest::PrepareSchema { .. }
        | ControlRequest::AbortSchema { .. }
        | ControlRequest::ApplySchema { .. }
        | ControlRequest::SchemaAfter { .. }
        | ControlRequest::Report => return None,
    })
}

#[cfg(test)]
#[path = "control_requests_tests.rs"]
mod tests;
