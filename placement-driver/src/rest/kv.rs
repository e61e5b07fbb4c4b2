//! `/v1/kv`: the coordination store over REST, and `/v1/watch/kv`, its changes as server-sent events.
//!
//! A key is everything behind `/v1/kv/`, percent-decoded once: it may contain slashes. The watch has a path that no key can have.
//!
//! A read is linearizable unless it asks for less: `sequential`, perhaps with a `min_revision`. What both mean, and what a watch
//! promises, is in [`crate::coordination`]; here it is put into HTTP. Replicas that do not lead send what needs the leader there.

use super::watch::{KEEP_ALIVE_MS, Watching};
use super::{Api, Error, Failure, json_with, method_not_allowed, parameters, percent_decode};
use crate::coordination::{self, Consistency, Listing, ReadFailure, Told, Watcher, WriteFailure};
use crate::kv::{self, Action, Entry, Expect, MAX_VALUE_BYTES};
use crate::server::{ProposeFailure, Shared};
use bytes::Bytes;
use evenkeel_protocol::coordination::{ID_HEADER, KvEventBody, KvMarkBody, KvWrittenBody, MAX_LIST, REVISION_HEADER};
use futures::stream;
use std::convert::Infallible;
use std::time::Duration;
use warp::Reply;
use warp::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH,
    X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{Method, StatusCode};
use warp::reply::Response;
use warp::sse::Event;

/// The largest body of a `PUT`, in bytes.
pub(super) const MAX_BODY_BYTES: usize = MAX_VALUE_BYTES;
/// Entries in a page if the request does not say.
const DEFAULT_LIST: usize = 100;

/// Which requests this module answers.
pub(super) fn takes(path: &str) -> bool {
    path == "/v1/kv" || path.starts_with("/v1/kv/") || path == "/v1/watch/kv"
}

/// The key of a path.
fn key_of(path: &str) -> Option<Result<String, Error>> {
    let key = percent_decode(path.strip_prefix("/v1/kv/")?);
    Some(key.and_then(|key| kv::check_key(&key).map(|()| key).map_err(Error::from)))
}

/// The parameters of a read: the consistency, and whatever else the request takes.
fn read_parameters(query: &str, accepted: &[&str]) -> Result<(Consistency, Vec<(String, String)>), Error> {
    let all: Vec<&str> = ["consistency", "min_revision"].iter().chain(accepted).copied().collect();
    let (mut sequential, mut min_revision, mut rest) = (None, None, Vec::new());
    for (name, value) in parameters(query, &all)? {
        match (name.as_str(), value.as_str()) {
            ("consistency", "linearizable") => sequential = Some(false),
            ("consistency", "sequential") => sequential = Some(true),
            ("consistency", other) => {
                let accepted = "accepted: linearizable, sequential";
                return Err(Error::bad_request(format!("unknown consistency {other:?}; {accepted}")));
            }
            ("min_revision", text) => min_revision = Some(revision(text)?),
            _ => rest.push((name, value)),
        }
    }
    match (sequential.unwrap_or(false), min_revision) {
        (true, min_revision) => Ok((Consistency::Sequential { min_revision: min_revision.unwrap_or(0) }, rest)),
        (false, None) => Ok((Consistency::Linearizable, rest)),
        (false, Some(_)) => Err(Error::bad_request("min_revision is for consistency=sequential")),
    }
}

fn revision(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| Error::bad_request(format!("{text:?} is not a revision")))
}

/// `GET /v1/kv` and `GET /v1/kv/{key}`.
pub(super) async fn get(api: &Api, path: &str, query: &str, known: Option<&str>) -> Result<Response, Failure> {
    let shared = &api.shared;
    let Some(key) = key_of(path) else { return list(shared, query).await };
    let key = key?;
    let (consistency, _) = read_parameters(query, &[])?;
    let (entry, revision) = coordination::get(shared, &key, consistency).await?;
    let response = match entry {
        None => Error::from(kv::Refusal::Absent).response(),
        Some(entry) if known.is_some_and(|known| super::matches_tag(known, &etag(entry.modified))) => {
            let mut response = tagged(Response::default(), entry.modified);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        Some(entry) => tagged(value(&entry), entry.modified),
    };
    Ok(at_revision(response, revision))
}

fn value(entry: &Entry) -> Response {
    let mut response = Response::new(entry.value.clone().into());
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(&entry.content_type) {
        headers.insert(CONTENT_TYPE, kind);
    }
    // Whoever may write a key must not be able to run a script in the name of this address in somebody's browser.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    response
}

fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

fn tagged(mut response: Response, revision: u64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&etag(revision)) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn at_revision(mut response: Response, revision: u64) -> Response {
    response.headers_mut().insert(REVISION_HEADER, HeaderValue::from(revision));
    response
}

impl From<ReadFailure> for Failure {
    fn from(failure: ReadFailure) -> Failure {
        let detail = failure.to_string();
        match failure {
            ReadFailure::NeedsLeader => Failure::NeedsLeader,
            ReadFailure::NoQuorum => Error::new(503, "no-quorum", "No majority answers", detail).into(),
            ReadFailure::Behind => Error::new(503, "behind", "This replica is behind", detail).into(),
        }
    }
}

async fn list(shared: &Shared, query: &str) -> Result<Response, Failure> {
    let (consistency, rest) = read_parameters(query, &["prefix", "after", "limit", "values"])?;
    let (mut prefix, mut after, mut limit, mut values) = (String::new(), None, DEFAULT_LIST, true);
    for (name, value) in rest {
        match name.as_str() {
            "prefix" => prefix = value,
            "after" => after = Some(value),
            "values" => {
                let wrong = || Error::bad_request(format!("values = {value:?}; accepted: true, false"));
                values = value.parse().map_err(|_| wrong())?;
            }
            _ => {
                let wrong = || Error::bad_request(format!("limit = {value:?}; accepted: 1 to {MAX_LIST}"));
                limit = value.parse().ok().filter(|limit| (1..=MAX_LIST).contains(limit)).ok_or_else(wrong)?;
            }
        }
    }
    let listing = Listing { prefix, after, limit, values };
    let body = coordination::list(shared, &listing, consistency).await?;
    let revision = body.revision;
    Ok(at_revision(json_with(StatusCode::OK, &body), revision))
}

/// `PUT` and `DELETE /v1/kv/{key}`.
pub(super) async fn write(
    api: &Api,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    let shared = &api.shared;
    if shared.leading().is_none() {
        return Err(Failure::NeedsLeader);
    }
    parameters(query, &[])?;
    let key = key_of(path).ok_or_else(|| Error::unknown_path(path))??;
    let action = match *method {
        Method::PUT => {
            let content_type = text(headers, CONTENT_TYPE.as_str())?.unwrap_or("application/octet-stream").to_string();
            Action::Put { value: body, content_type }
        }
        Method::DELETE => Action::Delete,
        _ => return Err(method_not_allowed(method, path).into()),
    };
    let id = text(headers, ID_HEADER)?.map(String::from);
    let expect = expectation(headers, matches!(action, Action::Put { .. }))?;
    let request = kv::Request { key, expect, action, id };
    kv::check(&request).map_err(Error::from)?;
    match coordination::write(shared, request).await {
        Ok(written) => Ok(written_response(written)),
        Err(WriteFailure::NeedsLeader) => Err(Failure::NeedsLeader),
        Err(failure @ WriteFailure::TooMany) => {
            Err(Error::new(429, "too-many-writes", "Too many writes are under way", failure.to_string()).into())
        }
        // The refusal says what the condition should have been.
        Err(WriteFailure::Refused(refusal @ kv::Refusal::Mismatch(found))) => {
            let response = Error::from(refusal).response();
            Ok(match found {
                Some(revision) => tagged(response, revision),
                None => response,
            })
        }
        Err(WriteFailure::Refused(refusal)) => Err(Error::from(refusal).into()),
        // 503 promises that nothing was done, which is not known here.
        Err(WriteFailure::Proposal(ProposeFailure::Unknown)) => {
            let detail =
                "it may have happened or not: read the key, or repeat the request if it has an idempotency key";
            Err(Error::new(504, "outcome-unknown", "What became of it is not known", detail).into())
        }
        Err(WriteFailure::Proposal(failure)) => Err(Error::from(failure).into()),
        Err(failure @ WriteFailure::Internal(_)) => {
            Err(Error::new(500, "internal", "Something that cannot be", failure.to_string()).into())
        }
    }
}

fn written_response(written: kv::Written) -> Response {
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let body = KvWrittenBody { revision: written.revision, created: written.created };
    at_revision(tagged(json_with(status, &body), written.revision), written.revision)
}

/// A header's text, if it is there.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let mut found = headers.get_all(name).iter();
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let wrong = |_| Error::bad_request(format!("the header {name} is not printable ASCII"));
            value.to_str().map(|text| Some(text.trim())).map_err(wrong)
        }
        _ => Err(Error::bad_request(format!("the header {name} is there more than once"))),
    }
}

/// What `If-Match` and `If-None-Match` say.
fn expectation(headers: &HeaderMap, put: bool) -> Result<Expect, Error> {
    match (text(headers, IF_MATCH.as_str())?, text(headers, IF_NONE_MATCH.as_str())?) {
        (None, None) => Ok(Expect::Anything),
        (Some("*"), None) => Ok(Expect::Present),
        (Some(tag), None) => {
            // curl users forget the quotes, and nothing else can be meant.
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
            let accepted = "accepted: one revision in double quotes, as an ETag says, or *";
            let wrong = |_| Error::bad_request(format!("If-Match: {tag}; {accepted}"));
            number.parse().map(Expect::Revision).map_err(wrong)
        }
        (None, Some("*")) if put => Ok(Expect::Absent),
        (None, Some(other)) => {
            Err(Error::bad_request(format!("If-None-Match: {other}; accepted: * with PUT, to create only")))
        }
        _ => Err(Error::bad_request("If-Match and If-None-Match together cannot be met")),
    }
}

/// `GET /v1/watch/kv`: changes after `Last-Event-ID`, or `?since=`, or from now on.
pub(super) fn watch(api: &Api, query: &str, last: Option<&str>) -> Result<Response, Failure> {
    let (mut prefix, mut since) = (String::new(), None);
    for (name, value) in parameters(query, &["prefix", "since"])? {
        match name.as_str() {
            "prefix" => prefix = value,
            _ => since = Some(revision(&value)?),
        }
    }
    // A reconnecting EventSource repeats its first URL: what it has seen since comes in the header.
    if let Some(last) = last {
        since = Some(revision(last)?);
    }
    let watcher = Watcher::open(api.shared.clone(), prefix, since).map_err(|compacted| {
        let detail = format!("{compacted}; list the keys, and watch from the revision of the list");
        Error::new(410, "compacted", "These changes are no longer remembered", detail)
    })?;
    let open: Watching = api.watchers.enter()?;
    let events = stream::unfold((watcher, open), |(mut watcher, open)| async {
        let event = event(watcher.next().await?);
        Some((Ok::<_, Infallible>(event), (watcher, open)))
    });
    let keep_alive = warp::sse::keep_alive().interval(Duration::from_millis(KEEP_ALIVE_MS));
    Ok(warp::sse::reply(keep_alive.stream(events)).into_response())
}

fn event(told: Told) -> Event {
    match told {
        Told::Begin(revision) => mark("begin", revision),
        Told::Change(event) => change(&event),
        Told::Progress(revision) => mark("progress", revision),
        // Without an id: an EventSource that reconnects with the last one it was given is refused, instead of going on behind the gap.
        Told::Compacted(oldest) => unnumbered("compacted", oldest),
    }
}

fn mark(name: &'static str, revision: u64) -> Event {
    unnumbered(name, revision).id(revision.to_string())
}

fn unnumbered(name: &'static str, revision: u64) -> Event {
    let data = super::view::to_json(&KvMarkBody { revision });
    Event::default().event(name).data(String::from_utf8_lossy(&data))
}

fn change(event: &kv::Event) -> Event {
    let entry = event.entry.as_ref().map(|entry| entry.body(&event.key, true));
    let name = if entry.is_some() { "put" } else { "delete" };
    let data = super::view::to_json(&KvEventBody { revision: event.revision, key: event.key.to_string(), entry });
    Event::default().event(name).id(event.revision.to_string()).data(String::from_utf8_lossy(&data))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn conditions_are_read_or_refused() {
        let read = |pairs: &[(&'static str, &'static str)], put| expectation(&headers(pairs), put);
        assert_eq!(read(&[], true), Ok(Expect::Anything));
        assert_eq!(read(&[("if-match", "\"12\"")], true), Ok(Expect::Revision(12)));
        assert_eq!(read(&[("if-match", "12")], false), Ok(Expect::Revision(12)));
        assert_eq!(read(&[("if-match", "*")], false), Ok(Expect::Present));
        assert_eq!(read(&[("if-none-match", "*")], true), Ok(Expect::Absent));
        // A list, a weak tag, or half a quote must never be taken for no condition.
        for tag in ["\"1\", \"2\"", "W/\"1\"", "\"1", "", "\"\"", "one"] {
            assert!(read(&[("if-match", tag)], true).is_err(), "{tag}");
        }
        assert!(read(&[("if-none-match", "*")], false).is_err() && read(&[("if-none-match", "\"1\"")], true).is_err());
        assert!(read(&[("if-match", "*"), ("if-none-match", "*")], true).is_err());
    }

    /// A browser's `EventSource` reconnects with the last id that it was given. After a gap that must be one that is refused.
    #[test]
    fn an_event_about_a_gap_has_no_id() {
        let text = |told| event(told).to_string();
        assert!(!text(Told::Compacted(12)).contains("id:"), "{}", text(Told::Compacted(12)));
        assert!(text(Told::Compacted(12)).contains(r#"{"revision":12}"#));
        assert!(text(Told::Progress(12)).contains("id:12"));
    }

    #[test]
    fn keys_may_have_slashes_and_no_key_is_the_watch() {
        assert_eq!(key_of("/v1/kv/a/b%2Fc%20%C3%A4").unwrap().unwrap(), "a/b/c ä");
        assert_eq!(key_of("/v1/kv/").unwrap().unwrap_err().code, "bad-key");
        assert_eq!(key_of("/v1/kv/%ff").unwrap().unwrap_err().code, "bad-request");
        assert_eq!(key_of(&format!("/v1/kv/{}", "k".repeat(600))).unwrap().unwrap_err().code, "key-too-long");
        assert!(key_of("/v1/kv").is_none() && key_of("/v1/watch/kv").is_none());
        assert!(takes("/v1/kv/watch") && takes("/v1/watch/kv") && !takes("/v1/kvs"));
    }

    #[test]
    fn consistency_is_chosen_or_refused() {
        let read = |query| read_parameters(query, &[]).map(|(consistency, _)| consistency);
        assert_eq!(read(""), Ok(Consistency::Linearizable));
        assert_eq!(read("consistency=sequential&min_revision=7"), Ok(Consistency::Sequential { min_revision: 7 }));
        for wrong in ["consistency=eventual", "min_revision=7", "consistency=sequential&min_revision=x", "x=1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
