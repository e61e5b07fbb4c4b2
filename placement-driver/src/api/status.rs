//! `/livez`, `/readyz`, `/metrics` and `GET /v1/status`: the health and the state of one replica.

use super::failure::ApiFailure;
use super::problem::{self, ApiProblem};
use super::response::{json_with, text};
use crate::metrics;
use crate::replica::ReplicaHandles;
use evenkeel_replicated_log::Role;
use serde_json::json as value;
use warp::http::StatusCode;
use warp::reply::Response;

/// `GET /livez`.
pub(super) fn live() -> Response {
    text("ok\n")
}

/// `GET /readyz`.
pub(super) fn ready(handles: &ReplicaHandles) -> Result<Response, ApiFailure> {
    let role = handles.log.role().borrow().clone();
    not_ready(&role, handles.leader()).map_or_else(|| Ok(text("ready\n")), |problem| Err(ApiFailure::Problem(problem)))
}

/// The reason for which this replica should not be asked yet.
fn not_ready(role: &Role, leader: Option<u64>) -> Option<ApiProblem> {
    match role {
        // It knows the leader, but its state may be old or empty.
        Role::Behind { .. } => {
            let detail = "it is fetching the state from another replica";
            Some(problem::BEHIND.because(detail))
        }
        Role::Leader { .. } | Role::Follower { .. } => leader.is_none().then(ApiProblem::no_leader),
    }
}

/// `GET /metrics`.
pub(super) fn metrics(handles: &ReplicaHandles) -> Response {
    metrics::leads(handles.leading().is_some());
    text(metrics::render())
}

/// `GET /v1/status`.
pub(super) fn status(handles: &ReplicaHandles) -> Response {
    let leader = handles.leader();
    let (leads, missing) = {
        let leading = handles.leading();
        (leading.is_some(), leading.as_ref().map(|leading| leading.missing.clone()))
    };
    let log = handles.log.status();
    let applied = handles.applied();
    let peers: Vec<_> = log
        .peers
        .iter()
        .map(|(id, peer)| value!({ "replica": id.0, "connected": peer.connected, "decided": peer.decided.0 }))
        .collect();
    let body = value!({
        "replica": handles.config.replica,
        "leader": leader,
        "leads": leads,
        "version": applied.state.version.to_string(),
        "restoring": applied.state.restoring,
        "missing": missing,
        "shards": applied.state.shards.len(),
        "tables": applied.state.tables.len(),
        "ranges": applied.state.ranges.len(),
        "operators_running": applied.state.running().count(),
        "log": {
            "applied": applied.index.0,
            "decided": log.decided.0,
            "first": log.first_retained.0,
            "bytes": log.log_bytes,
            "term": applied.term.to_string(),
            "peers": peers,
        },
    });
    json_with(StatusCode::OK, &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_replicated_log::{LogIndex, ReplicaId};

    #[test]
    fn a_replica_without_a_leader_or_without_the_state_is_not_ready() {
        let leader = Some(ReplicaId(2));
        assert_eq!(not_ready(&Role::Follower { leader }, Some(2)), None);
        assert_eq!(not_ready(&Role::Follower { leader: None }, None), Some(ApiProblem::no_leader()));
        let behind = not_ready(&Role::Behind { trimmed: LogIndex(7), leader }, Some(2));
        assert_eq!(behind.map(|problem| (problem.status, problem.code)), Some((503, "behind")));
    }
}
