//! `DELETE /v1/operators/{id}/copy`: what an unverified move has left may go.

use super::{Error, Failure, json_with};
use crate::copies::{self, Purge, PurgeFailure};
use crate::server::Shared;
use evenkeel_protocol::OperatorId;
use serde_json::json as value;
use std::time::Duration;
use tokio::time::Instant;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the rows to be gone, in milliseconds.
const PURGED_MS: u64 = 20_000;
/// Between two questions whether they are, in milliseconds.
const ASK_AGAIN_MS: u64 = 100;

/// Asks the shard until nothing is left.
pub(super) async fn purge(shared: &Shared, operator: OperatorId) -> Result<Response, Failure> {
    let deadline = Instant::now() + Duration::from_millis(PURGED_MS);
    loop {
        let waiting_for = match copies::purge(shared, operator).await.map_err(failure)? {
            Purge::Done(shard) => {
                let body = value!({ "operator": operator, "shard": shard, "purged": true });
                return Ok(json_with(StatusCode::OK, &body));
            }
            Purge::Pending { waiting_for } => waiting_for,
        };
        if Instant::now() >= deadline {
            let detail = format!("waiting for {waiting_for}; ask again");
            return Err(Error::new(503, "not-purged-yet", "The copy is still being deleted", detail).into());
        }
        tokio::time::sleep(Duration::from_millis(ASK_AGAIN_MS)).await;
    }
}

fn failure(failure: PurgeFailure) -> Failure {
    let (status, code, title) = match failure {
        PurgeFailure::NeedsLeader => return Failure::NeedsLeader,
        PurgeFailure::Unknown(_) => (404, "unknown-operator", "There is no such operator"),
        PurgeFailure::NotOver { .. } => (409, "operator-running", "The operator is still at work"),
        PurgeFailure::NoMove(_) => (409, "no-copy", "The operator leaves no copy"),
        PurgeFailure::Refused(_) => (409, "not-purged", "The copy stays"),
        PurgeFailure::Silent(_) => (503, "shard-unreachable", "The shard does not answer"),
    };
    Error::new(status, code, title, failure.to_string()).into()
}
