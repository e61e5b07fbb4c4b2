//! What is read.

use super::lists::Taken;
use super::view::{RoutingView, ServedTable};
use super::{Error, Failure, checks, json, json_with, members, metrics, parameters, text};
use crate::server::{Leading, Shared};
use crate::state::{Decision, State};
use evenkeel_protocol::api::{DecisionsBody, OperatorBody};
use evenkeel_protocol::value::key_from_json;
use evenkeel_protocol::{Key, OperatorId};
use evenkeel_replicated_log::Role;
use serde_json::json as value;
use warp::http::header::{ETAG, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

/// `GET /v1/routes/{table}?key=`.
pub(super) fn lookup(shared: &Shared, table: &str, query: &str) -> Result<Response, Error> {
    let view = shared.view();
    let table = find_table(&view, table)?;
    let mut key = None;
    for (_, found) in parameters(query, &["key"])? {
        key = Some(found);
    }
    let key = parse_key(table, &key.ok_or_else(|| Error::bad_request("the parameter key is missing"))?)?;
    let served = table.lookup(&key).ok_or_else(|| {
        Error::new(
            503,
            "no-route",
            "No shard is known for this key",
            "no range is known for this key; try again in a second",
        )
    })?;
    Ok(json(view.lookup_json(served)))
}

fn find_table<'a>(view: &'a RoutingView, name: &str) -> Result<&'a ServedTable, Error> {
    if let Some(table) = view.table(name) {
        return Ok(table);
    }
    let decoded = super::percent_decode(name)?;
    if decoded.contains('/') && !name.contains('%') {
        return Err(Error::unknown_path(&format!("/v1/routes/{name}")));
    }
    view.table(&decoded).map(AsRef::as_ref).ok_or_else(|| Error::unknown_table(&decoded))
}

/// A key as JSON: an array of the key columns' values, or the value itself if there is one column.
fn parse_key(table: &ServedTable, text: &str) -> Result<Key, Error> {
    let columns = match serde_json::from_str(text) {
        Ok(serde_json::Value::Array(columns)) => columns,
        Ok(single) => vec![single],
        Err(_) => {
            let hint = "a text, uuid, bytea or timestamptz key is a JSON string, in double quotes";
            return Err(Error::bad_key(format!("{text:?} is not JSON; {hint}: key={}", quoted(text))));
        }
    };
    key_from_json(&table.codec, &columns).map_err(|error| {
        let names: Vec<String> =
            table.schema.key_columns().map(|column| format!("{} {}", column.name, column.type_name)).collect();
        Error::bad_key(format!("{error}; the key of {} is ({})", table.schema.name, names.join(", ")))
    })
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    serde_json::Value::String(short).to_string()
}

/// Everything else that is read.
pub(super) async fn get(
    shared: &std::sync::Arc<Shared>,
    path: &str,
    query: &str,
    known: Option<&str>,
) -> Result<Response, Failure> {
    match path {
        "/livez" => return Ok(text("ok\n")),
        "/readyz" => return ready(shared),
        "/metrics" => {
            metrics::leads(shared.leading().is_some());
            return Ok(text(metrics::render()));
        }
        "/v1/routes" => return Ok(routes(shared, query, known)?),
        _ => {}
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if !matches!(parts[..], ["v1", "checksums"]) {
        parameters(query, &[])?;
    }
    match parts[..] {
        ["v1", "tables"] => {
            let view = shared.view();
            let tables: Vec<_> = view.tables().map(|table| table.schema.clone()).collect();
            Ok(json_with(StatusCode::OK, &tables))
        }
        ["v1", "ranges"] => Ok(json_with(StatusCode::OK, &Taken::of(shared)?.ranges())),
        ["v1", "shards"] => Ok(json_with(StatusCode::OK, &Taken::of(shared)?.shards())),
        ["v1", "operators"] => Ok(json_with(StatusCode::OK, &operators(shared))),
        ["v1", "operators", id] => operator(shared, super::write::number(id, "operator")?),
        ["v1", "decisions"] => {
            let (decisions, rejections) = with_leader(shared, |state, leading| {
                (state.decisions.iter().rev().map(Decision::body).collect(), leading.rejections.clone())
            })?;
            let body = DecisionsBody { decisions, now: rejections.iter().map(ToString::to_string).collect() };
            Ok(json_with(StatusCode::OK, &body))
        }
        ["v1", "balancer"] => {
            let body = with_leader(shared, |state, leading| {
                let level = &leading.picture.level;
                value!({
                    "enabled": state.balancer_enabled.unwrap_or(shared.config.balancer.enabled),
                    "acting": leading.picture.acting,
                    "imbalance": level.imbalance,
                    "imbalance_floor": level.floor,
                    "acts_above": level.act_above * level.floor,
                    "statements_per_s": level.total,
                    "shards": level.loads,
                })
            })?;
            Ok(json_with(StatusCode::OK, &body))
        }
        ["v1", "status"] => Ok(json_with(StatusCode::OK, &status(shared))),
        ["v1", "members"] => Ok(json_with(StatusCode::OK, &members::body_now(shared))),
        ["v1", "checksums"] => checks::checksums(shared).await,
        _ => Err(super::method_not_allowed(&Method::GET, path).into()),
    }
}

/// Takes from what only the leader has. The node waits meanwhile: what is taken is of bounded size, and what is made of it is made afterwards.
pub(super) fn with_leader<T>(shared: &Shared, take: impl FnOnce(&State, &Leading) -> T) -> Result<T, Failure> {
    let leading = shared.leading();
    let leading = leading.as_ref().ok_or(Failure::NeedsLeader)?;
    Ok(take(&shared.applied().state, leading))
}

fn ready(shared: &Shared) -> Result<Response, Failure> {
    let role = shared.log.role().borrow().clone();
    not_ready(&role, shared.leader()).map_or_else(|| Ok(text("ready\n")), |error| Err(Failure::Error(error)))
}

/// Why this replica should not be asked yet.
fn not_ready(role: &Role, leader: Option<u64>) -> Option<Error> {
    match role {
        // It knows who leads, but what it would show may be long past, or nothing at all.
        Role::Behind { .. } => {
            let detail = "it is fetching the state from another replica";
            Some(Error::new(503, "behind", "This replica is behind", detail))
        }
        Role::Leader { .. } | Role::Follower { .. } => leader.is_none().then(Error::no_leader),
    }
}

/// `GET /v1/routes`.
fn routes(shared: &Shared, query: &str, known: Option<&str>) -> Result<Response, Error> {
    let view = shared.view();
    let (mut since, mut only) = (None, None);
    for (name, found) in parameters(query, &["since", "table"])? {
        if name == "since" {
            since = Some(found.parse().map_err(Error::bad_request)?);
        } else {
            only = Some(view.table(&found).ok_or_else(|| Error::unknown_table(&found))?);
        }
    }
    let tag = format!("\"{}\"", view.version_text);
    let unchanged = known.is_some_and(|known| super::matches_tag(known, &tag));
    let mut response = match (unchanged, since, only) {
        (true, ..) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        (_, Some(since), Some(table)) => json(super::view::to_json(&view.since_body(since, table))),
        (_, None, Some(table)) => json(super::view::to_json(&view.complete_body(Some(table)))),
        (_, Some(since), None) => json(view.since_json(since)),
        _ => json(view.complete_json()),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    Ok(response)
}

/// Operators newest first, with what the running ones wait for, as far as this replica knows it.
fn operators(shared: &Shared) -> Vec<OperatorBody> {
    let leading = shared.leading();
    let applied = shared.applied();
    applied.state.operators.values().rev().map(|operator| explained(operator, leading.as_ref())).collect()
}

fn explained(operator: &crate::state::Operator, leading: Option<&Leading>) -> OperatorBody {
    let mut body = operator.body();
    if !operator.status.is_over()
        && let Some(trouble) = leading.and_then(|leading| leading.driver.trouble(operator.id))
    {
        body.detail = Some(trouble.to_string());
    }
    body
}

fn operator(shared: &Shared, id: u64) -> Result<Response, Failure> {
    let id = OperatorId(id);
    let leading = shared.leading();
    let applied = shared.applied();
    let operator = applied.state.operators.get(&id).ok_or(crate::state::Refusal::UnknownOperator(id))?;
    Ok(json_with(StatusCode::OK, &explained(operator, leading.as_ref())))
}

/// One operator as it stands now.
pub(super) fn operator_body(shared: &Shared, id: OperatorId) -> Option<OperatorBody> {
    shared.applied().state.operators.get(&id).map(crate::state::Operator::body)
}

fn status(shared: &Shared) -> serde_json::Value {
    let leader = shared.leader();
    let (leads, missing) = {
        let leading = shared.leading();
        (leading.is_some(), leading.as_ref().map(|leading| leading.missing.clone()))
    };
    let log = shared.log.status();
    let applied = shared.applied();
    let peers: Vec<_> = log
        .peers
        .iter()
        .map(|(id, peer)| value!({ "replica": id.0, "connected": peer.connected, "decided": peer.decided.0 }))
        .collect();
    value!({
        "replica": shared.config.replica,
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_replicated_log::{LogIndex, ReplicaId};

    #[test]
    fn a_replica_without_a_leader_or_without_the_state_is_not_ready() {
        let leader = Some(ReplicaId(2));
        assert_eq!(not_ready(&Role::Follower { leader }, Some(2)), None);
        assert_eq!(not_ready(&Role::Follower { leader: None }, None), Some(Error::no_leader()));
        let behind = not_ready(&Role::Behind { trimmed: LogIndex(7), leader }, Some(2));
        assert_eq!(behind.map(|error| (error.status, error.code)), Some((503, "behind")));
    }
}
