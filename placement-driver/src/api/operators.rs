//! `/v1/operators`: the operators, newest first, one operator, and its cancellation.

use super::failure::ApiFailure;
use super::leader_access::propose;
use super::problem;
use super::response::json_with;
use crate::replica::{LeaderState, ReplicaHandles};
use crate::state::{Command, Operator, Refusal, Work};
use evenkeel_protocol::api::OperatorBody;
use evenkeel_protocol::{OperatorId, ShardId};
use warp::http::StatusCode;
use warp::reply::Response;

/// `GET /v1/operators`: newest first. The leader adds what running operators wait for.
pub(super) fn list(handles: &ReplicaHandles) -> Response {
    let leading = handles.leading();
    let applied = handles.applied();
    let explained = |operator| explained(operator, leading.as_ref());
    let body: Vec<OperatorBody> = applied.state.operators.values().rev().map(explained).collect();
    json_with(StatusCode::OK, &body)
}

/// `GET /v1/operators/{id}`.
pub(super) fn get(handles: &ReplicaHandles, id: OperatorId) -> Result<Response, ApiFailure> {
    let leading = handles.leading();
    let applied = handles.applied();
    let operator = applied.state.operators.get(&id).ok_or(Refusal::UnknownOperator(id))?;
    Ok(json_with(StatusCode::OK, &explained(operator, leading.as_ref())))
}

fn explained(operator: &Operator, leading: Option<&LeaderState>) -> OperatorBody {
    let mut body = operator.body();
    if !operator.status.is_over()
        && let Some(trouble) = leading.and_then(|leading| leading.controller.trouble(operator.id))
    {
        body.detail = Some(trouble.to_string());
    }
    body
}

/// 202 with the operator as it is now.
pub(super) fn accepted(handles: &ReplicaHandles, id: OperatorId) -> Result<Response, ApiFailure> {
    let body = handles.applied().state.operators.get(&id).map(Operator::body);
    Ok(json_with(StatusCode::ACCEPTED, &body.ok_or(Refusal::UnknownOperator(id))?))
}

/// `DELETE /v1/operators/{id}`.
pub(super) async fn cancel(handles: &ReplicaHandles, operator: OperatorId) -> Result<Response, ApiFailure> {
    if let Some(shard) = creating_shard(handles, operator) {
        let detail = format!("shard {shard} has been heard of: it will answer, and then operator {operator} is over");
        return Err(problem::NOT_CANCELLED.because(detail).into());
    }
    propose(handles, Command::Cancel(operator)).await?;
    accepted(handles, operator)
}

/// The shard that is creating a table for this operator, if it reports. It may have created the
/// table already.
fn creating_shard(handles: &ReplicaHandles, operator: OperatorId) -> Option<ShardId> {
    let leading = handles.leading();
    let applied = handles.applied();
    let operator = applied.state.operators.get(&operator).filter(|operator| !operator.status.is_over())?;
    let Work::CreateTable { shard, .. } = operator.work else { return None };
    leading.as_ref()?.balancer.load.shards.contains_key(&shard).then_some(shard)
}
