//! `/v1/schema`: the schema changes that were made, and the next one.

use super::failure::ApiFailure;
use super::leader_access::{propose, unexpected};
use super::problem;
use super::request::{number, parameters, parse_strictly};
use super::response::json_with;
use crate::replica::ReplicaHandles;
use crate::state::{Command, Effect, Status, Step};
use evenkeel_protocol::OperatorId;
use evenkeel_protocol::api::{MAX_SCHEMA_CHANGES, SchemaChangeBody, SchemaChangesBody};
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the shards, in milliseconds: longer than they may take to prepare.
const CHANGE_MS: u64 = 28_000;

/// `GET /v1/schema?after=VERSION`.
pub(super) fn list(handles: &ReplicaHandles, query: &str) -> Result<Response, ApiFailure> {
    let after = match parameters(query, &["after"])?.pop() {
        Some((_, text)) => number(&text, "version")?,
        None => 0,
    };
    let applied = handles.applied();
    let schema = &applied.state.schema;
    let later = schema.changes.range(after.saturating_add(1)..);
    let changes = later.map(|(_, plan)| plan.delta.change.clone()).take(MAX_SCHEMA_CHANGES).collect();
    Ok(json_with(StatusCode::OK, &SchemaChangesBody { version: schema.version, changes }))
}

/// `POST /v1/schema`: answered when every shard that can be reached has made the change.
pub(super) async fn change(handles: &ReplicaHandles, body: &[u8]) -> Result<Response, ApiFailure> {
    let fields = ["version", "sql", "settings", "relations", "dropped"];
    let body: SchemaChangeBody = parse_strictly(body, &fields)?;
    let version = body.version.saturating_add(1);
    let home = {
        let leading = handles.leading();
        let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
        leading.balancer.shard_for_new_range(&handles.applied().state)
    };
    let mut changes = handles.changes();
    let operator = match propose(handles, Command::ChangeSchema { body: Box::new(body), home }).await? {
        Effect::SchemaReady(version) => return made(handles, version),
        Effect::Begun(operators) => operators.first().copied().unwrap_or_default(),
        other => return Err(unexpected(&other).into()),
    };
    let ended = async {
        loop {
            if let Some(ended) = ended(handles, operator) {
                return Some(ended);
            }
            changes.changed().await.ok()?;
        }
    };
    match evenkeel_host::timeout(Duration::from_millis(CHANGE_MS), ended).await {
        Ok(Some((Status::Done, _))) => made(handles, version),
        Ok(Some((_, detail))) => Err(problem::SCHEMA_REFUSED.because(detail.unwrap_or_default()).into()),
        Ok(None) | Err(_) => {
            let decided = handles.applied().state.operators.get(&operator).is_some_and(|o| o.step == Step::Apply);
            let what = if decided { "is decided, and shards are still making it" } else { "is still being prepared" };
            let detail = format!("the change to version {version} (operator {operator}) {what}; send it again to wait");
            Err(problem::STILL_CHANGING.because(detail).into())
        }
    }
}

fn ended(handles: &ReplicaHandles, operator: OperatorId) -> Option<(Status, Option<String>)> {
    let applied = handles.applied();
    let operator = applied.state.operators.get(&operator)?;
    operator.status.is_over().then(|| (operator.status, operator.detail.clone()))
}

/// The change that made this version, alone.
fn made(handles: &ReplicaHandles, version: u64) -> Result<Response, ApiFailure> {
    let applied = handles.applied();
    let schema = &applied.state.schema;
    let changes = schema.changes.get(&version).map(|plan| plan.delta.change.clone()).into_iter().collect();
    Ok(json_with(StatusCode::OK, &SchemaChangesBody { version: schema.version, changes }))
}
