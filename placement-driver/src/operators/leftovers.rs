//! Leftovers: what ended operators have left at shards, and the requests that delete it.
//!
//! A shard may still report an operator that has ended: a request may have been overtaken by a
//! cancellation, or a move may have ended without its last steps. A shard may also have made a
//! table whose creation was given up.

use super::call::CallName;
use crate::load::LoadModel;
use crate::state::{PlacementState, Status, Step};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::report::{OperatorPhase, OperatorReport};
use evenkeel_protocol::shard::ControlRequest;

/// The requests that delete leftovers of operators that have ended.
pub(super) fn of_operators(state: &PlacementState, load: &LoadModel) -> Vec<(CallName, ControlRequest)> {
    if state.restoring {
        return Vec::new();
    }
    let mut requests = Vec::new();
    let all_reported = state.shards.iter().all(|(id, shard)| shard.lost || load.shards.contains_key(id));
    for (shard, view) in &load.shards {
        for report in &view.report.operators {
            let ended = match state.operators.get(&report.operator) {
                Some(operator) => operator.status.is_over(),
                None => report.operator < state.next_operator(),
            };
            let forgotten = !state.operators.contains_key(&report.operator);
            let Some(request) = request(report, forgotten).filter(|_| ended) else { continue };
            // R20: the source's log decides whether a move is cancelled. Until it has, the range
            // may be fenced and wait for this copy.
            let discards = matches!(request, ControlRequest::IngestCancel { .. });
            let undecided = has_source(report, load) || (forgotten && !all_reported);
            if !(discards && undecided) {
                requests.push((CallName { operator: report.operator, step: Step::End, shard: *shard }, request));
            }
        }
    }
    requests
}

/// The requests that drop tables whose creation was given up. Their names would stay taken at the
/// shard.
pub(super) fn of_tables(state: &PlacementState, load: &LoadModel) -> Vec<(CallName, ControlRequest)> {
    if state.restoring || state.given_up.is_empty() {
        return Vec::new();
    }
    let mut requests = Vec::new();
    for (shard, view) in &load.shards {
        for table in view.unknown_tables.iter().map(|table| table.id) {
            if let Some(operator) = state.given_up.get(&table) {
                let name = CallName { operator: *operator, step: Step::End, shard: *shard };
                requests.push((name, ControlRequest::DropTable { table }));
            }
        }
    }
    requests
}

/// The requests that release tables which a schema change holds that was given up.
pub(super) fn of_schemas(state: &PlacementState, load: &LoadModel) -> Vec<(CallName, ControlRequest)> {
    if state.restoring {
        return Vec::new();
    }
    let given_up = |id: &OperatorId| match state.operators.get(id) {
        Some(operator) => operator.status.is_over() && operator.status != Status::Done,
        // A decided one is not forgotten before the shards have made it: they hold nothing then.
        None => *id < state.next_operator() && state.schema_operator().is_none(),
    };
    let held = load.shards.iter().filter_map(|(shard, view)| Some((*shard, view.report.schema.prepared?)));
    held.filter(|(_, operator)| given_up(operator))
        .map(|(shard, operator)| {
            (CallName { operator, step: Step::End, shard }, ControlRequest::AbortSchema { operator })
        })
        .collect()
}

/// The request to a shard that still reports an operator which has ended, or which is `forgotten`
/// by the state.
fn request(report: &OperatorReport, forgotten: bool) -> Option<ControlRequest> {
    let (operator, range) = (report.operator, report.range);
    match report.phase {
        OperatorPhase::Open => Some(ControlRequest::MoveCancel { operator, range }),
        OperatorPhase::Copying { .. } | OperatorPhase::CatchingUp { .. } => {
            Some(ControlRequest::IngestCancel { operator })
        }
        OperatorPhase::Finished => Some(ControlRequest::MoveForget { operator }),
        // The state was restored from an old copy without the move (R30). The range was verified
        // before its adoption (R24).
        OperatorPhase::HandedOver if forgotten => Some(ControlRequest::Purge { operator }),
        // A fenced move goes forward by itself. After an adoption the source may still ask for its
        // outcome.
        _ => None,
    }
}

/// Whether some shard reports to be the source of this move.
fn has_source(reported: &OperatorReport, load: &LoadModel) -> bool {
    let is_source = |o: &OperatorReport| {
        let phase = matches!(
            o.phase,
            OperatorPhase::Open | OperatorPhase::Fenced | OperatorPhase::HandedOver | OperatorPhase::Purging { .. }
        );
        phase && o.operator == reported.operator && o.range == reported.range
    };
    load.shards.values().any(|view| view.report.operators.iter().any(is_source))
}
