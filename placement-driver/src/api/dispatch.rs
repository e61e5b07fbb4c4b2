//! Dispatch: from the method and path of a request to its handler.

use super::balancer;
use super::checksums;
use super::context::ApiContext;
use super::coordination;
use super::coordination_watch;
use super::decisions;
use super::failure::ApiFailure;
use super::operators;
use super::orphaned_copies;
use super::placement_members;
use super::problem::{self, ApiProblem};
use super::ranges;
use super::request::{number, parameters, read_body, shard_number};
use super::routes;
use super::routes_watch;
use super::schema;
use super::shard_replicas;
use super::shards;
use super::status;
use super::tables;
use super::take_back;
use bytes::Buf;
use evenkeel_protocol::{OperatorId, RangeId};
use futures::Stream;
use metrics::counter;
use warp::http::Method;
use warp::http::header::{ALLOW, HeaderMap, HeaderValue, LOCATION};
use warp::reply::Response;

/// The maximum size of a body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// The maximum size of the body of `POST /v1/tables`, in bytes.
pub const MAX_TABLE_BODY_BYTES: usize = 256 << 10;
/// The maximum size of the body of `POST /v1/schema`, in bytes: what it says is smaller than its
/// JSON.
pub const MAX_SCHEMA_BODY_BYTES: usize = 4 << 20;

/// Answers a GET or HEAD. `known` is `If-None-Match`, `last` is `Last-Event-ID`.
pub(super) async fn get(
    api: &ApiContext,
    path: &str,
    query: &str,
    known: Option<&str>,
    last: Option<&str>,
) -> Response {
    // The hot path comes first. It is counted on its own.
    if let Some(table) = path.strip_prefix("/v1/routes/")
        && table != "watch"
    {
        api.lookups.increment(1);
        return match routes::lookup(&api.handles, table, query) {
            Ok(response) => response,
            Err(problem) => failed(api, path, query, leader_may_know(api, problem.into())),
        };
    }
    let result = match path {
        "/v1/routes/watch" => routes_watch::watch(api, query, last),
        "/v1/watch/kv" => coordination_watch::watch(api, query, last),
        _ if coordination::is_path(path) => coordination::get(&api.handles, path, query, known).await,
        _ => read(api, path, query, known).await,
    };
    answer(api, path, query, result.map_err(|failure| leader_may_know(api, failure)))
}

async fn read(api: &ApiContext, path: &str, query: &str, known: Option<&str>) -> Result<Response, ApiFailure> {
    let handles = &api.handles;
    match path {
        "/livez" => return Ok(status::live()),
        "/readyz" => return status::ready(handles),
        "/metrics" => return Ok(status::metrics(handles)),
        "/v1/routes" => return Ok(routes::table(handles, query, known)?),
        _ => {}
    }
    let parts = parts(path);
    if !matches!(parts[..], ["v1", "checksums" | "schema"]) {
        parameters(query, &[])?;
    }
    match parts[..] {
        ["v1", "tables"] => Ok(tables::list(handles)),
        ["v1", "schema"] => schema::list(handles, query),
        ["v1", "ranges"] => ranges::list(handles),
        ["v1", "shards"] => shards::list(handles),
        ["v1", "operators"] => Ok(operators::list(handles)),
        ["v1", "operators", id] => operators::get(handles, operator_id(id)?),
        ["v1", "decisions"] => decisions::list(handles),
        ["v1", "balancer"] => balancer::get(handles),
        ["v1", "status"] => Ok(status::status(handles)),
        ["v1", "members"] => Ok(placement_members::get(handles)),
        ["v1", "checksums"] => checksums::get(handles).await,
        _ => Err(method_not_allowed(&Method::GET, path).into()),
    }
}

/// Answers every other method, and a GET whose headers cannot be read: the filter for GET passes it
/// on, and it must not change anything.
pub(super) async fn other<B: Buf>(
    api: &ApiContext,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
) -> Response {
    if matches!(*method, Method::GET | Method::HEAD) {
        let problem = ApiProblem::bad_request("the header If-None-Match or Last-Event-ID is not printable ASCII");
        return answer(api, path, query, Err(problem.into()));
    }
    let allowed = allowed(path);
    if !allowed.contains(&method.as_str()) {
        let mut response = answer(api, path, query, Err(method_not_allowed(method, path).into()));
        if let Some(value) = HeaderValue::from_str(&allowed.join(", ")).ok().filter(|_| !allowed.is_empty()) {
            response.headers_mut().insert(ALLOW, value);
        }
        return response;
    }
    let limit_bytes = match path {
        "/v1/tables" => MAX_TABLE_BODY_BYTES,
        "/v1/schema" => MAX_SCHEMA_BODY_BYTES,
        _ if coordination::is_path(path) => coordination::MAX_BODY_BYTES,
        _ => MAX_BODY_BYTES,
    };
    let result = match read_body(headers, body, limit_bytes).await {
        Ok(body) if coordination::is_path(path) => {
            coordination::write(&api.handles, method, path, query, headers, body).await
        }
        Ok(body) => write(api, method, path, &body).await,
        Err(problem) => Err(problem.into()),
    };
    answer(api, path, query, result)
}

async fn write(api: &ApiContext, method: &Method, path: &str, body: &[u8]) -> Result<Response, ApiFailure> {
    let handles = &api.handles;
    // A follower may not know yet what another replica has just answered to the client.
    if handles.leading().is_none() {
        return Err(ApiFailure::NeedsLeader);
    }
    match (method, &parts(path)[..]) {
        (&Method::POST, ["v1", "tables"]) => tables::create(handles, body).await,
        (&Method::POST, ["v1", "schema"]) => schema::change(handles, body).await,
        (&Method::POST, ["v1", "ranges", id, "split"]) => ranges::split(handles, range_id(id)?, body).await,
        (&Method::POST, ["v1", "ranges", id, "move"]) => ranges::move_to(handles, range_id(id)?, body).await,
        (&Method::DELETE, ["v1", "operators", id]) => operators::cancel(handles, operator_id(id)?).await,
        (&Method::DELETE, ["v1", "operators", id, "copy"]) => orphaned_copies::purge(handles, operator_id(id)?).await,
        (&Method::POST, ["v1", "operators", id, "take-back"]) => {
            take_back::take_back(handles, operator_id(id)?, body).await
        }
        (&Method::POST, ["v1", "shards"]) => shards::add(handles, body).await,
        (&Method::DELETE, ["v1", "shards", id]) => shards::drain(handles, shard_number(id)?).await,
        (&Method::POST, ["v1", "shards", id, "undrain"]) => shards::undrain(handles, shard_number(id)?).await,
        (&Method::POST, ["v1", "shards", id, "transfer-leader"]) => {
            shards::transfer_leader(handles, shard_number(id)?, body).await
        }
        (&Method::POST, ["v1", "shards", id, "replicas"]) => {
            shard_replicas::change(handles, shard_number(id)?, body).await
        }
        (&Method::POST, ["v1", "members"]) => placement_members::change(handles, body).await,
        (&Method::POST, ["v1", "balancer"]) => balancer::set(handles, body).await,
        _ => Err(method_not_allowed(method, path).into()),
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.trim_start_matches('/').split('/').collect()
}

fn operator_id(text: &str) -> Result<OperatorId, ApiProblem> {
    number(text, "operator").map(OperatorId)
}

fn range_id(text: &str) -> Result<RangeId, ApiProblem> {
    number(text, "range").map(RangeId)
}

/// An object that is unknown here may have been created a moment ago: only the leader can answer
/// that it does not exist.
fn leader_may_know(api: &ApiContext, failure: ApiFailure) -> ApiFailure {
    let unknown = matches!(&failure, ApiFailure::Problem(problem) if problem.may_be_newer_at_leader());
    let leader = api.handles.leader().filter(|leader| *leader != api.handles.config.replica);
    if unknown && leader.is_some() { ApiFailure::NeedsLeader } else { failure }
}

/// Turns the result of a handler into a response, and counts it.
fn answer(api: &ApiContext, path: &str, query: &str, result: Result<Response, ApiFailure>) -> Response {
    let response = result.unwrap_or_else(|failure| failed(api, path, query, failure));
    let status = response.status().as_u16().to_string();
    counter!("evenkeel_placement_rest_requests_total", "status" => status).increment(1);
    response
}

fn failed(api: &ApiContext, path: &str, query: &str, failure: ApiFailure) -> Response {
    match failure {
        ApiFailure::Problem(problem) => problem.response(),
        ApiFailure::NeedsLeader => redirect(api, path, query),
    }
}

/// 307 to the leader's URL, or 503 while there is none.
fn redirect(api: &ApiContext, path: &str, query: &str) -> Response {
    let leader = api.handles.leader().filter(|leader| *leader != api.handles.config.replica);
    let addresses = api.handles.rest_addresses();
    let Some(address) = leader.and_then(|leader| addresses.get(&leader)) else {
        return ApiProblem::no_leader().response();
    };
    let mark = if query.is_empty() { "" } else { "?" };
    let Ok(location) = HeaderValue::from_str(&format!("http://{address}{path}{mark}{query}")) else {
        return ApiProblem::no_leader().response();
    };
    let detail = format!("ask http://{address}; with curl -L that is done by itself");
    let mut response = problem::NOT_LEADER.because(detail).response();
    response.headers_mut().insert(LOCATION, location);
    response
}

/// 405, or 404 if there is no such path.
fn method_not_allowed(method: &Method, path: &str) -> ApiProblem {
    match allowed(path) {
        [] => ApiProblem::unknown_path(path),
        allowed => {
            let detail = format!("{method} is not possible here; {} is", allowed.join(", "));
            problem::METHOD_NOT_ALLOWED.because(detail)
        }
    }
}

/// The methods that a path accepts; empty if there is no such path.
fn allowed(path: &str) -> &'static [&'static str] {
    match parts(path)[..] {
        ["livez" | "readyz" | "metrics"] => &["GET", "HEAD"],
        ["v1", "routes" | "ranges" | "operators" | "decisions" | "status" | "checksums"] => &["GET", "HEAD"],
        ["v1", "routes", _] => &["GET", "HEAD"],
        ["v1", "shards" | "tables" | "schema" | "balancer" | "members"] => &["GET", "HEAD", "POST"],
        ["v1", "kv"] | ["v1", "watch", "kv"] => &["GET", "HEAD"],
        ["v1", "kv", ..] => &["GET", "HEAD", "PUT", "DELETE"],
        ["v1", "ranges", _, "split" | "move"] => &["POST"],
        ["v1", "shards", _, "undrain" | "transfer-leader" | "replicas"] => &["POST"],
        ["v1", "shards", _] | ["v1", "operators", _, "copy"] => &["DELETE"],
        ["v1", "operators", _, "take-back"] => &["POST"],
        ["v1", "operators", _] => &["GET", "HEAD", "DELETE"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_do_not_exist_take_no_method() {
        assert!(allowed("/").is_empty() && allowed("/v1").is_empty() && allowed("/v1/routes/t/x").is_empty());
        assert_eq!(allowed("/v1/shards/1"), ["DELETE"]);
    }
}
