//! `DELETE /v1/operators/{id}/copy`: the deletion of the copy that an unverified move has left.

use super::failure::ApiFailure;
use super::problem;
use super::response::json_with;
use crate::orphaned_copies::{self, Purge, PurgeFailure};
use crate::replica::ReplicaHandles;
use evenkeel_protocol::OperatorId;
use serde_json::json as value;
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the deletion, in milliseconds.
const PURGED_MS: u64 = 20_000;
/// The interval between two requests to the shard, in milliseconds.
const ASK_AGAIN_MS: u64 = 100;

/// `DELETE /v1/operators/{id}/copy`: asks the shard until the copy is deleted.
pub(super) async fn purge(handles: &ReplicaHandles, operator: OperatorId) -> Result<Response, ApiFailure> {
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(PURGED_MS);
    loop {
        let waiting_for = match orphaned_copies::purge(handles, operator).await.map_err(failure)? {
            Purge::Done(shard) => {
                let body = value!({ "operator": operator, "shard": shard, "purged": true });
                return Ok(json_with(StatusCode::OK, &body));
            }
            Purge::Pending { waiting_for } => waiting_for,
        };
        if evenkeel_host::tokio_now() >= deadline {
            let detail = format!("waiting for {waiting_for}; ask again");
            return Err(problem::NOT_PURGED_YET.because(detail).into());
        }
        evenkeel_host::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

fn failure(failure: PurgeFailure) -> ApiFailure {
    let kind = match failure {
        PurgeFailure::NeedsLeader => return ApiFailure::NeedsLeader,
        PurgeFailure::Unknown(_) => problem::UNKNOWN_OPERATOR,
        PurgeFailure::NotOver { .. } => problem::OPERATOR_RUNNING,
        PurgeFailure::NoMove(_) => problem::NO_COPY,
        PurgeFailure::Refused(_) => problem::NOT_PURGED,
        PurgeFailure::Silent(_) => problem::SHARD_UNREACHABLE,
    };
    kind.because(failure.to_string()).into()
}
