//! `GET /v1/decisions`: the balancer's decisions, newest first, and why it does no more now.

use super::failure::ApiFailure;
use super::leader_access::with_leader;
use super::response::json_with;
use crate::balancer::Rejection;
use crate::replica::ReplicaHandles;
use crate::state::Decision;
use evenkeel_protocol::api::DecisionsBody;
use warp::http::StatusCode;
use warp::reply::Response;

/// `GET /v1/decisions`.
pub(super) fn list(handles: &ReplicaHandles) -> Result<Response, ApiFailure> {
    let (decisions, rejections) = with_leader(handles, |state, leading| {
        (state.decisions.iter().rev().map(Decision::body).collect(), leading.rejections.clone())
    })?;
    let body = DecisionsBody { decisions, now: rejections.iter().map(Rejection::body).collect() };
    Ok(json_with(StatusCode::OK, &body))
}
