//! `POST /v1/operators/{id}/take-back`: the destination of a move is lost for good, and the source
//! takes the range back (R23).
//!
//! Only an administrator can know that a shard will never return. So the request must say it
//! explicitly, and is rejected while anything that the placement driver observes contradicts it.

use super::failure::ApiFailure;
use super::leader_access::propose;
use super::operators::accepted;
use super::problem::{self, ApiProblem};
use super::request::parse;
use crate::load::LoadModel;
use crate::replica::ReplicaHandles;
use crate::state::{Command, Operator, PlacementState, Refusal, Work};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::report::OperatorPhase;
use serde::Deserialize;
use warp::reply::Response;

/// A destination whose last report is more recent than this is not lost, in milliseconds.
const SILENT_MS: u64 = 30_000;

/// The body of the request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeBackBody {
    /// The administrator's word that the destination's disks are gone for good, or will be emptied
    /// before any of its machines starts again.
    destination_is_lost_for_good: bool,
}

/// `POST /v1/operators/{id}/take-back`.
pub(super) async fn take_back(
    handles: &ReplicaHandles,
    operator: OperatorId,
    body: &[u8],
) -> Result<Response, ApiFailure> {
    check(handles, operator, parse(body)?)?;
    propose(handles, Command::TakeBack(operator)).await?;
    accepted(handles, operator)
}

/// Rejects a request that is not confirmed, or that observations contradict.
fn check(handles: &ReplicaHandles, id: OperatorId, body: TakeBackBody) -> Result<(), ApiFailure> {
    if !body.destination_is_lost_for_good {
        let detail =
            "destination_is_lost_for_good must be true: if the destination came back, the range would have two owners";
        return Err(ApiProblem::bad_request(detail).into());
    }
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
    let applied = handles.applied();
    let operator = applied.state.operators.get(&id).ok_or(Refusal::UnknownOperator(id))?;
    Ok(check_observations(operator, &applied.state, &leading.balancer.load, leading.now_ms())?)
}

fn check_observations(
    operator: &Operator,
    state: &PlacementState,
    load_model: &LoadModel,
    now_ms: u64,
) -> Result<(), ApiProblem> {
    let Work::Move { from, to, .. } = operator.work else {
        return Err(Refusal::NotFenced { operator: operator.id, step: operator.shown_step() }.into());
    };
    let heard_ms = load_model.shards.get(&to).map(|view| view.last_ms).or(load_model.since_ms).unwrap_or(now_ms);
    let silent_ms = now_ms.saturating_sub(heard_ms);
    let lost = state.shards.get(&to).is_some_and(|shard| shard.lost);
    if silent_ms < SILENT_MS && !lost {
        let detail =
            format!("shard {to} may still be there: it has been silent for {silent_ms} ms, not for {SILENT_MS}");
        return Err(problem::SHARD_SPEAKS.because(detail));
    }
    let source = load_model.shards.get(&from).map(|view| &view.report);
    let phase = source.and_then(|report| report.operators.iter().find(|o| o.operator == operator.id)).map(|o| &o.phase);
    match phase {
        Some(OperatorPhase::Fenced) => Ok(()),
        Some(OperatorPhase::Open) => {
            let detail = format!("the range is still served by shard {from}: cancel operator {}", operator.id);
            Err(problem::NOT_FENCED.because(detail))
        }
        _ => {
            let detail = format!("shard {from} does not report that it is between the fence and the adoption");
            Err(problem::NOT_FENCED.because(detail))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::balancer::testing::{must, state_with_table};
    use crate::config::BalancerConfig;
    use crate::operators::testing::report;
    use crate::state::{Action, Command, Effect};
    use evenkeel_protocol::report::OperatorReport;
    use evenkeel_protocol::{RangeId, ShardId};

    #[test]
    fn what_contradicts_it_is_named() {
        let mut state = state_with_table(2);
        let action = Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) };
        let Effect::Begun(operators) = must(&mut state, 1, Command::Begin(action)) else { panic!() };
        let operator = &state.operators[&operators[0]];
        let mut load_model = LoadModel::default();
        let config = BalancerConfig::default();
        load_model.update(&state, &config, 1000);
        let code = |load_model: &LoadModel, now_ms| {
            check_observations(operator, &state, load_model, now_ms).map_err(|problem| problem.code)
        };
        assert_eq!(code(&load_model, 20_000), Err("shard-speaks"), "no shard has had the time to report");
        assert_eq!(code(&load_model, 40_000), Err("not-fenced"), "the source has not reported it");
        let mut sequence = 0;
        let mut hear = |load_model: &mut LoadModel, phase, now_ms| {
            let reported = OperatorReport { operator: operator.id, range: RangeId(1), phase, progress: None };
            sequence += 1;
            assert!(load_model.observe(report(1, sequence, vec![reported]), &state, &config, now_ms).taken);
        };
        hear(&mut load_model, OperatorPhase::Open, 40_000);
        assert_eq!(code(&load_model, 40_000), Err("not-fenced"));
        hear(&mut load_model, OperatorPhase::Fenced, 40_100);
        assert_eq!(code(&load_model, 40_100), Ok(()));
        hear(&mut load_model, OperatorPhase::HandedOver, 40_200);
        assert_eq!(code(&load_model, 40_200), Err("not-fenced"), "the destination has adopted it");
        hear(&mut load_model, OperatorPhase::Fenced, 40_300);
        assert!(load_model.observe(report(2, 1, vec![]), &state, &config, 40_300).taken);
        assert_eq!(code(&load_model, 60_000), Err("shard-speaks"));
        assert_eq!(code(&load_model, 71_000), Ok(()));
    }
}
