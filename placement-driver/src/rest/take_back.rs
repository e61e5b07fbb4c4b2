//! `POST /v1/operators/{id}/take-back`: the destination of a move is lost for good, and the source takes the range back (R23).
//!
//! Nobody but a person can know that a shard will never come back. So it is asked for in so many words, and refused as long as anything that is seen
//! speaks against it.

use super::{Error, Failure};
use crate::load::LoadModel;
use crate::server::Shared;
use crate::state::{Operator, PlacementState, Refusal, Work};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::report::OperatorPhase;
use serde::Deserialize;

/// A destination that has been heard of less than this ago is not lost, in milliseconds.
const SILENT_MS: u64 = 30_000;

/// The request's body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TakeBackBody {
    /// That the destination's disks are gone for good, or will be emptied before any of its machines starts again.
    destination_is_lost_for_good: bool,
}

/// Refuses what is not confirmed, or not so.
pub(super) fn confirmed(shared: &Shared, id: OperatorId, body: TakeBackBody) -> Result<(), Failure> {
    if !body.destination_is_lost_for_good {
        let detail =
            "destination_is_lost_for_good must be true: if the destination came back, the range would have two owners";
        return Err(Error::bad_request(detail).into());
    }
    let leading = shared.leading();
    let leading = leading.as_ref().ok_or(Failure::NeedsLeader)?;
    let applied = shared.applied();
    let operator = applied.state.operators.get(&id).ok_or(Refusal::UnknownOperator(id))?;
    Ok(speaks_against(operator, &applied.state, &leading.balancer.load, leading.now_ms())?)
}

fn speaks_against(operator: &Operator, state: &PlacementState, load: &LoadModel, now_ms: u64) -> Result<(), Error> {
    let Work::Move { from, to, .. } = operator.work else {
        return Err(Refusal::NotFenced { operator: operator.id, step: operator.shown_step() }.into());
    };
    let heard_ms = load.shards.get(&to).map(|view| view.last_ms).or(load.since_ms).unwrap_or(now_ms);
    let silent_ms = now_ms.saturating_sub(heard_ms);
    let lost = state.shards.get(&to).is_some_and(|shard| shard.lost);
    if silent_ms < SILENT_MS && !lost {
        let detail =
            format!("shard {to} may still be there: it has been silent for {silent_ms} ms, not for {SILENT_MS}");
        return Err(Error::new(409, "shard-speaks", "The destination is not lost", detail));
    }
    let source = load.shards.get(&from).map(|view| &view.report);
    let phase = source.and_then(|report| report.operators.iter().find(|o| o.operator == operator.id)).map(|o| &o.phase);
    match phase {
        Some(OperatorPhase::Fenced) => Ok(()),
        Some(OperatorPhase::Open) => {
            let detail = format!("the range is still served by shard {from}: cancel operator {}", operator.id);
            Err(Error::new(409, "not-fenced", "The range cannot be taken back", detail))
        }
        _ => {
            let detail = format!("shard {from} does not report that it is between the fence and the adoption");
            Err(Error::new(409, "not-fenced", "The range cannot be taken back", detail))
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
    fn what_speaks_against_it_is_named() {
        let mut state = state_with_table(2);
        let action = Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) };
        let Effect::Begun(operators) = must(&mut state, 1, Command::Begin(action)) else { panic!() };
        let operator = &state.operators[&operators[0]];
        let mut load = LoadModel::default();
        let config = BalancerConfig::default();
        load.update(&state, &config, 1000);
        let code = |load: &LoadModel, now_ms| speaks_against(operator, &state, load, now_ms).map_err(|e| e.code);
        assert_eq!(code(&load, 20_000), Err("shard-speaks"), "nobody has had the time to be heard");
        assert_eq!(code(&load, 40_000), Err("not-fenced"), "the source has not said so");
        let mut sequence = 0;
        let mut hear = |load: &mut LoadModel, phase, now_ms| {
            let told = OperatorReport { operator: operator.id, range: RangeId(1), phase, progress: None };
            sequence += 1;
            assert!(load.observe(report(1, sequence, vec![told]), &state, &config, now_ms).taken);
        };
        hear(&mut load, OperatorPhase::Open, 40_000);
        assert_eq!(code(&load, 40_000), Err("not-fenced"));
        hear(&mut load, OperatorPhase::Fenced, 40_100);
        assert_eq!(code(&load, 40_100), Ok(()));
        hear(&mut load, OperatorPhase::HandedOver, 40_200);
        assert_eq!(code(&load, 40_200), Err("not-fenced"), "the destination has adopted it");
        hear(&mut load, OperatorPhase::Fenced, 40_300);
        assert!(load.observe(report(2, 1, vec![]), &state, &config, 40_300).taken);
        assert_eq!(code(&load, 60_000), Err("shard-speaks"));
        assert_eq!(code(&load, 71_000), Ok(()));
    }
}
