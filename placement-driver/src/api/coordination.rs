//! `/v1/kv`: the coordination store over REST.
//!
//! The key is the path behind `/v1/kv/`, percent-decoded once; it may contain slashes. A read is
//! linearizable unless it asks for `sequential`, perhaps with a `min_revision`.
//! [`crate::coordination`] defines both. A replica that does not lead redirects requests that need
//! the leader.

use super::failure::ApiFailure;
use super::problem::{self, ApiProblem};
use super::request::{header_text, matches_tag, parameters, percent_decode};
use super::response::{json_with, not_modified, tagged};
use crate::coordination::service;
use crate::coordination::{
    self, Consistency, Expect, Listing, MAX_VALUE_BYTES, ReadFailure, Request, RequestRefusal, StoredValue,
    WriteAction, WriteFailure, Written,
};
use crate::replica::{ProposeFailure, ReplicaHandles};
use bytes::Bytes;
use evenkeel_protocol::coordination::{ID_HEADER, KvWrittenBody, MAX_LIST, REVISION_HEADER};
use warp::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

/// The maximum size of the body of a `PUT`, in bytes.
pub(super) const MAX_BODY_BYTES: usize = MAX_VALUE_BYTES;
/// The number of entries in a page if the request does not state one.
const DEFAULT_LIST: usize = 100;

/// Whether a path belongs to the coordination store.
pub(super) fn is_path(path: &str) -> bool {
    path == "/v1/kv" || path.starts_with("/v1/kv/") || path == "/v1/watch/kv"
}

/// The key of a path; `None` if the path has no key.
fn key_of(path: &str) -> Option<Result<String, ApiProblem>> {
    let key = percent_decode(path.strip_prefix("/v1/kv/")?);
    Some(key.and_then(|key| coordination::check_key(&key).map(|()| key).map_err(ApiProblem::from)))
}

/// The parameters of a read: the consistency, and those that are `accepted` besides.
fn read_parameters(query: &str, accepted: &[&str]) -> Result<(Consistency, Vec<(String, String)>), ApiProblem> {
    let all: Vec<&str> = ["consistency", "min_revision"].iter().chain(accepted).copied().collect();
    let (mut sequential, mut min_revision, mut rest) = (None, None, Vec::new());
    for (name, value) in parameters(query, &all)? {
        match (name.as_str(), value.as_str()) {
            ("consistency", "linearizable") => sequential = Some(false),
            ("consistency", "sequential") => sequential = Some(true),
            ("consistency", other) => {
                let accepted = "accepted: linearizable, sequential";
                return Err(ApiProblem::bad_request(format!("unknown consistency {other:?}; {accepted}")));
            }
            ("min_revision", text) => min_revision = Some(revision(text)?),
            _ => rest.push((name, value)),
        }
    }
    match (sequential.unwrap_or(false), min_revision) {
        (true, min_revision) => Ok((Consistency::Sequential { min_revision: min_revision.unwrap_or(0) }, rest)),
        (false, None) => Ok((Consistency::Linearizable, rest)),
        (false, Some(_)) => Err(ApiProblem::bad_request("min_revision is for consistency=sequential")),
    }
}

/// A revision in a parameter or header.
pub(super) fn revision(text: &str) -> Result<u64, ApiProblem> {
    text.parse().map_err(|_| ApiProblem::bad_request(format!("{text:?} is not a revision")))
}

/// `GET /v1/kv` and `GET /v1/kv/{key}`.
pub(super) async fn get(
    handles: &ReplicaHandles,
    path: &str,
    query: &str,
    known: Option<&str>,
) -> Result<Response, ApiFailure> {
    let Some(key) = key_of(path) else { return list(handles, query).await };
    let key = key?;
    let (consistency, _) = read_parameters(query, &[])?;
    let (entry, revision) = service::get(handles, &key, consistency).await?;
    let response = match entry {
        None => ApiProblem::from(RequestRefusal::Absent).response(),
        Some(entry) if known.is_some_and(|known| matches_tag(known, &etag(entry.modified))) => {
            tagged(not_modified(), &etag(entry.modified))
        }
        Some(entry) => tagged(value(&entry), &etag(entry.modified)),
    };
    Ok(at_revision(response, revision))
}

fn value(entry: &StoredValue) -> Response {
    let mut response = Response::new(entry.value.clone().into());
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(&entry.content_type) {
        headers.insert(CONTENT_TYPE, kind);
    }
    // A client that writes a key must not be able to run a script from this address in a browser.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    response
}

fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

fn at_revision(mut response: Response, revision: u64) -> Response {
    response.headers_mut().insert(REVISION_HEADER, HeaderValue::from(revision));
    response
}

impl From<ReadFailure> for ApiFailure {
    fn from(failure: ReadFailure) -> ApiFailure {
        let detail = failure.to_string();
        match failure {
            ReadFailure::NeedsLeader => ApiFailure::NeedsLeader,
            ReadFailure::NoQuorum => problem::NO_QUORUM.because(detail).into(),
            ReadFailure::Behind => problem::BEHIND.because(detail).into(),
        }
    }
}

async fn list(handles: &ReplicaHandles, query: &str) -> Result<Response, ApiFailure> {
    let (consistency, rest) = read_parameters(query, &["prefix", "after", "limit", "values"])?;
    let (mut prefix, mut after, mut limit, mut values) = (String::new(), None, DEFAULT_LIST, true);
    for (name, value) in rest {
        match name.as_str() {
            "prefix" => prefix = value,
            "after" => after = Some(value),
            "values" => {
                let wrong = || ApiProblem::bad_request(format!("values = {value:?}; accepted: true, false"));
                values = value.parse().map_err(|_| wrong())?;
            }
            _ => {
                let wrong = || ApiProblem::bad_request(format!("limit = {value:?}; accepted: 1 to {MAX_LIST}"));
                limit = value.parse().ok().filter(|limit| (1..=MAX_LIST).contains(limit)).ok_or_else(wrong)?;
            }
        }
    }
    let listing = Listing { prefix, after, limit, values };
    let body = service::list(handles, &listing, consistency).await?;
    let revision = body.revision;
    Ok(at_revision(json_with(StatusCode::OK, &body), revision))
}

/// `PUT` and `DELETE /v1/kv/{key}`.
pub(super) async fn write(
    handles: &ReplicaHandles,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Response, ApiFailure> {
    if handles.leading().is_none() {
        return Err(ApiFailure::NeedsLeader);
    }
    parameters(query, &[])?;
    let key = key_of(path).ok_or_else(|| ApiProblem::unknown_path(path))??;
    let action = match *method {
        Method::PUT => {
            let content_type =
                header_text(headers, CONTENT_TYPE.as_str())?.unwrap_or("application/octet-stream").to_string();
            WriteAction::Put { value: body, content_type }
        }
        // Dispatch accepts PUT and DELETE.
        _ => WriteAction::Delete,
    };
    let id = header_text(headers, ID_HEADER)?.map(String::from);
    let expect = expectation(headers, matches!(action, WriteAction::Put { .. }))?;
    let request = Request { key, expect, action, id };
    coordination::check(&request).map_err(ApiProblem::from)?;
    match service::write(handles, request).await {
        Ok(written) => Ok(written_response(written)),
        Err(WriteFailure::NeedsLeader) => Err(ApiFailure::NeedsLeader),
        Err(failure @ WriteFailure::TooMany) => Err(problem::TOO_MANY_WRITES.because(failure.to_string()).into()),
        // The answer has the entity tag that the condition should have had.
        Err(WriteFailure::Refused(refusal @ RequestRefusal::Mismatch(found))) => {
            let response = ApiProblem::from(refusal).response();
            Ok(match found {
                Some(revision) => tagged(response, &etag(revision)),
                None => response,
            })
        }
        Err(WriteFailure::Refused(refusal)) => Err(ApiProblem::from(refusal).into()),
        // 503 would promise that nothing was done.
        Err(WriteFailure::Proposal(ProposeFailure::Unknown)) => {
            let detail =
                "it may have happened or not: read the key, or repeat the request if it has an idempotency key";
            Err(problem::OUTCOME_UNKNOWN.because(detail).into())
        }
        Err(WriteFailure::Proposal(failure)) => Err(ApiProblem::from(failure).into()),
        Err(failure @ WriteFailure::Internal(_)) => Err(problem::INTERNAL.because(failure.to_string()).into()),
    }
}

fn written_response(written: Written) -> Response {
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let body = KvWrittenBody { revision: written.revision, created: written.created };
    at_revision(tagged(json_with(status, &body), &etag(written.revision)), written.revision)
}

/// The condition that `If-Match` and `If-None-Match` state.
fn expectation(headers: &HeaderMap, put: bool) -> Result<Expect, ApiProblem> {
    match (header_text(headers, IF_MATCH.as_str())?, header_text(headers, IF_NONE_MATCH.as_str())?) {
        (None, None) => Ok(Expect::Anything),
        (Some("*"), None) => Ok(Expect::Present),
        (Some(tag), None) => {
            // Users of curl forget the quotes, and the meaning is clear.
            let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag);
            let accepted = "accepted: one revision in double quotes, as an ETag says, or *";
            let wrong = |_| ApiProblem::bad_request(format!("If-Match: {tag}; {accepted}"));
            number.parse().map(Expect::Revision).map_err(wrong)
        }
        (None, Some("*")) if put => Ok(Expect::Absent),
        (None, Some(other)) => {
            Err(ApiProblem::bad_request(format!("If-None-Match: {other}; accepted: * with PUT, to create only")))
        }
        _ => Err(ApiProblem::bad_request("If-Match and If-None-Match together cannot be met")),
    }
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
        // A list, a weak tag, or half a quote must never be read as no condition.
        for tag in ["\"1\", \"2\"", "W/\"1\"", "\"1", "", "\"\"", "one"] {
            assert!(read(&[("if-match", tag)], true).is_err(), "{tag}");
        }
        assert!(read(&[("if-none-match", "*")], false).is_err() && read(&[("if-none-match", "\"1\"")], true).is_err());
        assert!(read(&[("if-match", "*"), ("if-none-match", "*")], true).is_err());
    }

    #[test]
    fn keys_may_have_slashes_and_no_key_is_the_watch() {
        assert_eq!(key_of("/v1/kv/a/b%2Fc%20%C3%A4").unwrap().unwrap(), "a/b/c ä");
        assert_eq!(key_of("/v1/kv/").unwrap().unwrap_err().code, "bad-key");
        assert_eq!(key_of("/v1/kv/%ff").unwrap().unwrap_err().code, "bad-request");
        assert_eq!(key_of(&format!("/v1/kv/{}", "k".repeat(600))).unwrap().unwrap_err().code, "key-too-long");
        assert!(key_of("/v1/kv").is_none() && key_of("/v1/watch/kv").is_none());
        assert!(is_path("/v1/kv/watch") && is_path("/v1/watch/kv") && !is_path("/v1/kvs"));
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
