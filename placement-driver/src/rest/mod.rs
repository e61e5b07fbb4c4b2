//! The REST API.
//!
//! Any replica serves the routing table, tables, operators and its own state. What needs the leader (writes, and reads of load, which only the leader
//! has) is answered 307 with the leader's URL by the others (`curl -L` follows it), or 503 while there is none. Every error is `application/problem+json` with a
//! stable code.
//!
//! Requests are dispatched by hand inside two warp filters, one for GET and HEAD and one for everything else: the lookup of a key's route is a
//! hot path, and a chain of filters would cost it more than the lookup itself. HEAD is answered as GET; its body is left out when it is sent.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/routes` | [`evenkeel_protocol::api::RoutesBody`]; `?since=`, `?table=`, `ETag`/`If-None-Match` |
//! | `GET /v1/routes/{table}?key=` | [`evenkeel_protocol::api::RouteLookupBody`] |
//! | `GET /v1/routes/watch` | server-sent events of `RoutesBody`; resumable by `Last-Event-ID` |
//! | `GET /v1/{ranges,shards,tables,operators,decisions}` | lists; operators and decisions newest first |
//! | `GET /v1/operators/{id}`, `GET /v1/status`, `GET /v1/balancer`, `GET /v1/checksums` | one object |
//! | `POST /v1/tables` | 201 and the table |
//! | `POST /v1/ranges/{id}/split`, `/move` | 202 and the operator |
//! | `DELETE /v1/operators/{id}` | 202 and the operator |
//! | `POST /v1/operators/{id}/take-back` | 202 and the operator: the destination is lost for good |
//! | `POST /v1/shards` | 201, or 200 if it is there: a shard that is being drained stays so |
//! | `DELETE /v1/shards/{id}`, `POST /v1/shards/{id}/undrain` | 202: it is drained, then removed; 200: it is taken back |
//! | `POST /v1/shards/{id}/transfer-leader`, `POST /v1/balancer` | 200 |
//! | `POST /v1/shards/{id}/replicas` | 200, once the replicas are so |
//! | `GET /v1/members`, `POST /v1/members` | the placement driver's own replicas |
//! | `GET`, `PUT`, `DELETE /v1/kv/{key}` | the coordination store: values as they are, `ETag`, `If-Match`, `If-None-Match` |
//! | `GET /v1/kv?prefix=` | [`evenkeel_protocol::coordination::KvListBody`] |
//! | `GET /v1/watch/kv?prefix=` | server-sent events of [`evenkeel_protocol::coordination::KvEventBody`]; resumable by `Last-Event-ID` |
//! | `GET /livez`, `/readyz`, `/metrics` | text |

mod checks;
mod copies;
mod kv;
mod lists;
mod members;
pub mod metrics;
mod problem;
mod read;
mod tables;
mod take_back;
pub mod view;
mod watch;
mod write;

pub use problem::Error;

use crate::server::Shared;
use bytes::{Buf, Bytes, BytesMut};
use evenkeel_protocol::key::hex_byte;
use futures::{Stream, StreamExt};
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use warp::Filter;
use warp::http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use warp::http::{Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;

/// The largest body of a request, in bytes.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// The largest body of `POST /v1/tables`, in bytes.
pub const MAX_TABLE_BODY_BYTES: usize = 256 << 10;
/// How much of a body that is refused is read before the connection is closed all the same, in bytes.
const DISCARDED_BYTES: usize = 16 << 20;
/// How long the client may take to send a body, in milliseconds.
const BODY_MS: u64 = 10_000;

/// What handlers work with.
pub(crate) struct Api {
    shared: Arc<Shared>,
    lookups: ::metrics::Counter,
    watchers: watch::Watchers,
}

/// Serves until `end` completes; connections then finish what they are answering.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, end: impl Future<Output = ()> + Send + 'static) {
    let lookups = ::metrics::counter!("evenkeel_placement_lookups_total");
    let api = Arc::new(Api { shared, lookups, watchers: watch::Watchers::default() });
    warp::serve(filter(api)).incoming(listener).graceful(end).run().await;
}

fn filter(api: Arc<Api>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let query = || warp::query::raw().or(warp::any().map(String::new)).unify();
    let reading = api.clone();
    let get = warp::get()
        .or(warp::head())
        .unify()
        .and(warp::path::full())
        .and(query())
        .and(warp::header::optional::<String>("if-none-match"))
        .and(warp::header::optional::<String>("last-event-id"))
        .then(move |path: FullPath, query: String, known: Option<String>, last: Option<String>| {
            let api = reading.clone();
            async move { api.get(path.as_str(), &query, known.as_deref(), last.as_deref()).await }
        });
    let other = warp::method()
        .and(warp::path::full())
        .and(query())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method: Method, path: FullPath, query: String, headers: HeaderMap, body| {
            let api = api.clone();
            async move { api.other(&method, path.as_str(), &query, &headers, body).await }
        });
    get.or(other).unify().recover(refuse).unify()
}

/// What warp itself refuses, such as a header that is not text.
async fn refuse(_: warp::Rejection) -> Result<Response, Infallible> {
    Ok(Error::bad_request("the request's headers cannot be read").response())
}

/// 200 with a JSON body.
fn json(body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON body with another status.
fn json_with(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let mut response = json(view::to_json(body));
    *response.status_mut() = status;
    response
}

fn text(body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Api {
    async fn get(self: &Arc<Self>, path: &str, query: &str, known: Option<&str>, last: Option<&str>) -> Response {
        // The hot path first.
        if let Some(table) = path.strip_prefix("/v1/routes/")
            && table != "watch"
        {
            self.lookups.increment(1);
            return match read::lookup(&self.shared, table, query) {
                Ok(response) => response,
                Err(error) => match self.known_elsewhere(error.into()) {
                    Failure::Error(error) => error.response(),
                    Failure::NeedsLeader => self.redirect(path, query),
                },
            };
        }
        let response = match path {
            "/v1/routes/watch" => watch::watch(self, query, last),
            "/v1/watch/kv" => kv::watch(self, query, last),
            _ if kv::takes(path) => kv::get(self, path, query, known).await,
            _ => read::get(&self.shared, path, query, known).await,
        };
        self.answer(path, query, response.map_err(|failure| self.known_elsewhere(failure)))
    }

    /// What is not known here may have been made a moment ago: only the leader can say that there is no such thing.
    fn known_elsewhere(&self, failure: Failure) -> Failure {
        let unknown = matches!(&failure, Failure::Error(e) if ["unknown-operator", "unknown-table"].contains(&e.code));
        let leader = self.shared.leader().filter(|leader| *leader != self.shared.config.replica);
        if unknown && leader.is_some() { Failure::NeedsLeader } else { failure }
    }

    /// Everything that is no GET, and the GETs whose headers cannot be read: the first filter lets them through, and they must not be taken
    /// for anything that changes something.
    async fn other<B: Buf>(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Response {
        if matches!(*method, Method::GET | Method::HEAD) {
            let error = Error::bad_request("the header If-None-Match or Last-Event-ID is not printable ASCII");
            return self.answer(path, query, Err(error.into()));
        }
        let allowed = allowed(path);
        if allowed.is_empty() {
            return self.answer(path, query, Err(Failure::from(Error::unknown_path(path))));
        }
        if !allowed.contains(&method.as_str()) {
            let mut response = self.answer(path, query, Err(method_not_allowed(method, path).into()));
            if let Ok(value) = HeaderValue::from_str(&allowed.join(", ")) {
                response.headers_mut().insert(ALLOW, value);
            }
            return response;
        }
        let limit_bytes = match path {
            "/v1/tables" => MAX_TABLE_BODY_BYTES,
            _ if kv::takes(path) => kv::MAX_BODY_BYTES,
            _ => MAX_BODY_BYTES,
        };
        let response = match read_body(headers, body, limit_bytes).await {
            Ok(body) if kv::takes(path) => kv::write(self, method, path, query, headers, body).await,
            Ok(body) => write::write(&self.shared, method, path, &body).await,
            Err(error) => Err(error.into()),
        };
        self.answer(path, query, response)
    }

    /// Turns what a handler says into a response, and counts it.
    fn answer(&self, path: &str, query: &str, result: Result<Response, Failure>) -> Response {
        let response = match result {
            Ok(response) => response,
            Err(Failure::Error(error)) => error.response(),
            Err(Failure::NeedsLeader) => self.redirect(path, query),
        };
        let status = response.status().as_u16().to_string();
        ::metrics::counter!("evenkeel_placement_rest_requests_total", "status" => status).increment(1);
        response
    }

    /// 307 to the leader's URL, or 503 while there is none.
    fn redirect(&self, path: &str, query: &str) -> Response {
        let leader = self.shared.leader().filter(|leader| *leader != self.shared.config.replica);
        let addresses = self.shared.rest_addresses();
        let Some(address) = leader.and_then(|leader| addresses.get(&leader)) else {
            return Error::no_leader().response();
        };
        let mark = if query.is_empty() { "" } else { "?" };
        let Ok(location) = HeaderValue::from_str(&format!("http://{address}{path}{mark}{query}")) else {
            return Error::no_leader().response();
        };
        let detail = format!("ask http://{address}; with curl -L that is done by itself");
        let mut response = Error::new(307, "not-leader", "Another replica leads", detail).response();
        response.headers_mut().insert(LOCATION, location);
        response
    }
}

/// What a handler says instead of a response.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Answer this.
    Error(Error),
    /// Redirect to the leader.
    NeedsLeader,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error = error.into();
        // Whoever was asked to propose did not lead: whoever does will be asked by the client itself.
        if error.code == "no-leader" { Failure::NeedsLeader } else { Failure::Error(error) }
    }
}

/// 405, or 404 if nothing is there.
fn method_not_allowed(method: &Method, path: &str) -> Error {
    match allowed(path) {
        [] => Error::unknown_path(path),
        allowed => {
            let detail = format!("{method} is not possible here; {} is", allowed.join(", "));
            Error::new(405, "method-not-allowed", "The method is not possible here", detail)
        }
    }
}

/// The methods that a path takes; empty if there is no such path.
fn allowed(path: &str) -> &'static [&'static str] {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts[..] {
        ["livez" | "readyz" | "metrics"] => &["GET", "HEAD"],
        ["v1", "routes" | "ranges" | "operators" | "decisions" | "status" | "checksums"] => &["GET", "HEAD"],
        ["v1", "routes", _] => &["GET", "HEAD"],
        ["v1", "shards" | "tables" | "balancer" | "members"] => &["GET", "HEAD", "POST"],
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

async fn read_body<B: Buf>(
    headers: &HeaderMap,
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit_bytes: usize,
) -> Result<Bytes, Error> {
    let too_large =
        || Error::new(413, "body-too-large", "The body is too large", format!("at most {limit_bytes} bytes are taken"));
    let announced = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut refused = announced.is_some_and(|bytes| bytes > limit_bytes as u64);
    let read = async {
        let mut body = pin!(body);
        let mut whole = BytesMut::new();
        let mut discarded_bytes = 0;
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk.map_err(|error| Error::bad_request(format!("the body broke off: {error}")))?;
            refused |= whole.len() + chunk.remaining() > limit_bytes;
            if refused {
                // A connection closed with bytes unread is reset, and the reset can overtake the answer: a client that is
                // still sending would see a broken connection instead of what it did wrong.
                discarded_bytes += chunk.remaining();
                if discarded_bytes > DISCARDED_BYTES {
                    return Err(too_large());
                }
                continue;
            }
            while chunk.has_remaining() {
                let length = chunk.chunk().len();
                whole.extend_from_slice(chunk.chunk());
                chunk.advance(length);
            }
        }
        if refused { Err(too_large()) } else { Ok(whole.freeze()) }
    };
    match tokio::time::timeout(Duration::from_millis(BODY_MS), read).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(408, "body-too-slow", "The body did not come", "the body did not come in time")),
    }
}

/// The parameters of a query, decoded. An error names what is wrong.
fn parameters(query: &str, accepted: &[&str]) -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if !accepted.contains(&name) {
            let list = if accepted.is_empty() { "none".to_string() } else { accepted.join(", ") };
            return Err(Error::bad_request(format!("unknown parameter {name:?}; accepted: {list}")));
        }
        found.push((name.to_string(), percent_decode(value)?));
    }
    Ok(found)
}

/// Whether `If-None-Match` names this entity tag. The comparison is weak, as RFC 9110 wants it there: `W/"1"` is `"1"`, and `*` is any.
fn matches_tag(known: &str, tag: &str) -> bool {
    known.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// Decodes percent-encoding; `+` is a plus, as RFC 3986 has it.
fn percent_decode(text: &str) -> Result<String, Error> {
    let wrong = || Error::bad_request(format!("{text:?} is not percent-encoded UTF-8"));
    if !text.contains('%') {
        return Ok(text.to_string());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (digits, tail) = tail.split_first_chunk::<2>().ok_or_else(wrong)?;
            bytes.push(hex_byte(*digits).ok_or_else(wrong)?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        assert_eq!(percent_decode("%22a%20b%22").unwrap(), "\"a b\"");
        assert_eq!(percent_decode("a+b").unwrap(), "a+b");
        for wrong in ["%", "%2", "%zz", "%ff", "%+1", "%-1"] {
            assert!(percent_decode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags_are_compared_weakly_where_nothing_is_changed() {
        for same in ["\"1.5\"", "W/\"1.5\"", "*", "\"1.4\", W/\"1.5\""] {
            assert!(matches_tag(same, "\"1.5\""), "{same}");
        }
        for other in ["\"1.4\"", "1.5", "W/1.5", "w/\"1.5\"", ""] {
            assert!(!matches_tag(other, "\"1.5\""), "{other}");
        }
    }

    #[test]
    fn unknown_parameters_are_refused() {
        assert_eq!(parameters("key=1", &["key"]).unwrap(), [("key".to_string(), "1".to_string())]);
        assert!(parameters("kye=1", &["key"]).is_err());
    }

    #[test]
    fn paths_that_do_not_exist_take_no_method() {
        assert!(allowed("/").is_empty() && allowed("/v1").is_empty() && allowed("/v1/routes/t/x").is_empty());
        assert_eq!(allowed("/v1/shards/1"), ["DELETE"]);
    }
}
