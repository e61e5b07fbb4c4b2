//! `POST /v1/shards/{id}/replicas`: the replicas of a shard.
//!
//! A change is idempotent, and is answered once the new configuration of the shard is in force. The
//! shard's next report then brings the new addresses into the routing table.

use super::failure::ApiFailure;
use super::problem::{self, ApiProblem};
use super::request::parse;
use super::response::json_with;
use crate::replica::ReplicaHandles;
use crate::state::Refusal;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, NewReplica};
use serde::Deserialize;
use serde_json::json as value;
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the new configuration, in milliseconds.
const CHANGE_MS: u64 = 20_000;
/// The time limit for one request to one replica of the shard, in milliseconds.
const CALL_MS: u64 = 2_000;
/// The interval between two requests to the shard, in milliseconds.
const ASK_AGAIN_MS: u64 = 100;

/// The body of the request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeReplicasBody {
    #[serde(default)]
    remove: Option<u64>,
    #[serde(default)]
    add: Option<NewReplica>,
}

/// `POST /v1/shards/{id}/replicas`: asks the shard until the change is done.
pub(super) async fn change(handles: &ReplicaHandles, id: ShardId, body: &[u8]) -> Result<Response, ApiFailure> {
    let change: ChangeReplicasBody = parse(body)?;
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(CHANGE_MS);
    if change.remove.is_none() && change.add.is_none() {
        return Err(ApiProblem::bad_request("the body names no replica to remove and none to add").into());
    }
    // Only before the first request to the shard: that request may remove the replica.
    check_exists(handles, id, &change)?;
    loop {
        if handles.leading().is_none() {
            return Err(ApiFailure::NeedsLeader);
        }
        let mut info = shard_info(handles, id)?;
        // The new replica may lead before the routing table has it.
        info.replicas.extend(change.add.map(|new| (new.replica, new.rpc)));
        let leader = handles.shard_leaders().get(&id).copied();
        let request = ControlRequest::ChangeReplicas { remove: change.remove, add: change.add };
        let waiting_for = match handles.calls.ask(&info, leader, &request, Duration::from_millis(CALL_MS)).await {
            Ok(ControlReply::Done) => {
                let body =
                    value!({ "shard": id, "removed": change.remove, "added": change.add.map(|new| new.replica) });
                return Ok(json_with(StatusCode::OK, &body));
            }
            Ok(ControlReply::Refused { reason, .. }) => return Err(problem::NOT_CHANGED.because(reason).into()),
            Ok(ControlReply::Pending { waiting_for }) => waiting_for,
            Ok(_) => return Err(problem::SHARD_ANSWER.because("").into()),
            Err(trouble) => trouble,
        };
        if evenkeel_host::tokio_now() >= deadline {
            return Err(problem::NOT_CHANGED_YET.because(waiting_for).into());
        }
        evenkeel_host::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

/// Rejects the removal of a replica that neither the routing table nor the shard's report has. If
/// the replica to add is there, the request is a repetition of one that is done.
fn check_exists(handles: &ReplicaHandles, id: ShardId, change: &ChangeReplicasBody) -> Result<(), ApiFailure> {
    let mut replicas = shard_info(handles, id)?.replicas;
    if let Some(view) = handles.leading().as_ref().and_then(|leading| leading.balancer.load.shards.get(&id)) {
        replicas.extend(view.report.members.iter().flat_map(|members| members.replicas.clone()));
    }
    let exists = |replica: u64| replicas.contains_key(&replica);
    match change.remove {
        Some(replica) if !exists(replica) && !change.add.is_some_and(|new| exists(new.replica)) => {
            let detail = format!("shard {id} has no replica {replica}: it has left already, or never was one");
            Err(problem::UNKNOWN_REPLICA.because(detail).into())
        }
        _ => Ok(()),
    }
}

fn shard_info(handles: &ReplicaHandles, id: ShardId) -> Result<ShardInfo, Refusal> {
    let info = handles.applied().state.shards.get(&id).map(|shard| shard.info.clone());
    info.ok_or(Refusal::UnknownShard(id))
}
