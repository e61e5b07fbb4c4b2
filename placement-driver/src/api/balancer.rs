//! `GET /v1/balancer` and `POST /v1/balancer`: the imbalance, and whether the balancer is on.

use super::failure::ApiFailure;
use super::leader_access::{propose, with_leader};
use super::request::parse;
use super::response::json_with;
use crate::replica::ReplicaHandles;
use crate::state::Command;
use serde::Deserialize;
use serde_json::json as value;
use warp::http::StatusCode;
use warp::reply::Response;

/// The body of `POST /v1/balancer`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBalancerBody {
    enabled: bool,
}

/// `GET /v1/balancer`.
pub(super) fn get(handles: &ReplicaHandles) -> Result<Response, ApiFailure> {
    let body = with_leader(handles, |state, leading| {
        let imbalance = &leading.balancer.imbalance;
        value!({
            "enabled": state.balancer_enabled.unwrap_or(handles.config.balancer.enabled),
            "acting": leading.balancer.rebalancing.active,
            "imbalance": imbalance.ratio_to_mean,
            "imbalance_floor": imbalance.floor,
            "acts_above": imbalance.act_above * imbalance.floor,
            "statements_per_s": imbalance.total,
            "shards": imbalance.loads,
        })
    })?;
    Ok(json_with(StatusCode::OK, &body))
}

/// `POST /v1/balancer`.
pub(super) async fn set(handles: &ReplicaHandles, body: &[u8]) -> Result<Response, ApiFailure> {
    let SetBalancerBody { enabled } = parse(body)?;
    propose(handles, Command::SetBalancer { enabled }).await?;
    Ok(json_with(StatusCode::OK, &value!({ "enabled": enabled })))
}
