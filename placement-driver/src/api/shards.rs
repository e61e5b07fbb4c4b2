//! `/v1/shards`: the list of shards, their addition and removal, and the transfer of their
//! leadership.

use super::cluster_lists::{ClusterLists, shard_status};
use super::failure::ApiFailure;
use super::leader_access::propose;
use super::problem::{self, ApiProblem};
use super::request::{parse_or_empty, parse_strictly};
use super::response::json_with;
use crate::replica::ReplicaHandles;
use crate::state::{Command, Refusal};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::ShardBody;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use serde::Deserialize;
use serde_json::json as value;
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// The time limit for a shard's transfer of its leadership, in milliseconds.
const TRANSFER_MS: u64 = 10_000;

/// The body of `POST /v1/shards/{id}/transfer-leader`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferLeaderBody {
    #[serde(default)]
    to: Option<u64>,
}

/// `GET /v1/shards`.
pub(super) fn list(handles: &ReplicaHandles) -> Result<Response, ApiFailure> {
    Ok(json_with(StatusCode::OK, &ClusterLists::of(handles)?.shards()))
}

/// `POST /v1/shards`.
pub(super) async fn add(handles: &ReplicaHandles, body: &[u8]) -> Result<Response, ApiFailure> {
    let body = parse_shard(body)?;
    let id = body.info.id;
    let known = handles.applied().state.shards.contains_key(&id);
    propose(handles, Command::AddShard(body.info)).await?;
    shard_body(handles, id, if known { StatusCode::OK } else { StatusCode::CREATED })
}

fn parse_shard(body: &[u8]) -> Result<ShardBody, ApiProblem> {
    let fields = [
        "id",
        "replicas",
        "status",
        "leader",
        "ranges",
        "statements_per_s",
        "capacity_per_s",
        "report_age_ms",
        "clock_off_ms",
        "replicas_seen",
        "scrub",
    ];
    let shard: ShardBody = parse_strictly(body, &fields)?;
    // The numbers may have gaps: a machine that replaces another has a number of its own.
    if shard.info.id.0 == 0 || !shard.info.replicas.keys().all(|replica| (1..=255).contains(replica)) {
        return Err(ApiProblem::bad_request(
            "a shard has a number from 1, and its replicas have numbers from 1 to 255",
        ));
    }
    Ok(shard)
}

/// `DELETE /v1/shards/{id}`.
pub(super) async fn drain(handles: &ReplicaHandles, id: ShardId) -> Result<Response, ApiFailure> {
    propose(handles, Command::DrainShard(id)).await?;
    shard_body(handles, id, StatusCode::ACCEPTED)
}

/// `POST /v1/shards/{id}/undrain`.
pub(super) async fn undrain(handles: &ReplicaHandles, id: ShardId) -> Result<Response, ApiFailure> {
    propose(handles, Command::UndrainShard(id)).await?;
    shard_body(handles, id, StatusCode::OK)
}

fn shard_body(handles: &ReplicaHandles, id: ShardId, status: StatusCode) -> Result<Response, ApiFailure> {
    let leaders = handles.shard_leaders();
    let applied = handles.applied();
    let shard = applied.state.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
    let body = ShardBody {
        info: shard.info.clone(),
        status: shard_status(shard).to_string(),
        leader: leaders.get(&id).copied(),
        ranges: handles.view().range_counts().get(&id).copied().unwrap_or(0),
        statements_per_s: 0.0,
        capacity_per_s: None,
        report_age_ms: None,
        clock_off_ms: None,
        replicas_seen: Vec::new(),
        scrub: None,
    };
    Ok(json_with(status, &body))
}

/// `POST /v1/shards/{id}/transfer-leader`. Asks the shard at once: the placement driver's state has
/// no record of leaders.
pub(super) async fn transfer_leader(
    handles: &ReplicaHandles,
    id: ShardId,
    body: &[u8],
) -> Result<Response, ApiFailure> {
    let body: TransferLeaderBody = parse_or_empty(body)?;
    let leader = handles.shard_leaders().get(&id).copied();
    if handles.leading().is_none() {
        return Err(ApiFailure::NeedsLeader);
    }
    let info = handles.applied().state.shards.get(&id).map(|shard| shard.info.clone());
    let info = info.ok_or(Refusal::UnknownShard(id))?;
    let request = ControlRequest::TransferLeadership { to: body.to };
    match handles.calls.ask(&info, leader, &request, Duration::from_millis(TRANSFER_MS)).await {
        Ok(ControlReply::Done | ControlReply::Pending { .. }) => {
            Ok(json_with(StatusCode::OK, &value!({ "shard": id, "from": leader, "to": body.to })))
        }
        Ok(ControlReply::Refused { reason, .. }) => Err(problem::NOT_TRANSFERRED.because(reason).into()),
        Ok(_) => Err(problem::SHARD_ANSWER.because("").into()),
        Err(trouble) => Err(problem::SHARD_UNREACHABLE.because(trouble).into()),
    }
}
