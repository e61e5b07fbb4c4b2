//! Errors as `application/problem+json` (RFC 9457) with stable codes.

use crate::kv;
use crate::server::ProposeFailure;
use crate::state::Refusal;
use evenkeel_protocol::api::Problem;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::reply::Response;

/// An error to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// The title, the same for every occurrence.
    pub title: &'static str,
    /// What happened this time.
    pub detail: String,
}

impl Error {
    /// An error.
    pub fn new(status: u16, code: &'static str, title: &'static str, detail: impl Into<String>) -> Error {
        Error { status, code, title, detail: detail.into() }
    }

    /// 400: the key cannot be a key of the table.
    pub fn bad_key(detail: impl Into<String>) -> Error {
        Error::new(400, "bad-key", "The key is not one of this table", detail)
    }

    /// 400: the request is malformed.
    pub fn bad_request(detail: impl Into<String>) -> Error {
        Error::new(400, "bad-request", "The request is malformed", detail)
    }

    /// 404: no such path.
    pub fn unknown_path(path: &str) -> Error {
        Error::new(404, "unknown-path", "There is nothing at this path", format!("nothing is at {path}"))
    }

    /// 404: no such table.
    pub fn unknown_table(name: &str) -> Error {
        Error::new(404, "unknown-table", "There is no such table", format!("there is no table {name:?}"))
    }

    /// 503: no leader is known; to be tried again.
    pub fn no_leader() -> Error {
        Error::new(
            503,
            "no-leader",
            "No replica leads at the moment",
            "an election is under way; try again in a second",
        )
    }

    /// The response.
    pub fn response(&self) -> Response {
        let problem = Problem {
            kind: format!("urn:evenkeel:problem:{}", self.code),
            code: self.code.to_string(),
            title: self.title.to_string(),
            status: self.status,
            detail: self.detail.clone(),
        };
        let mut response = Response::new(super::view::to_json(&problem).into());
        *response.status_mut() =
            warp::http::StatusCode::from_u16(self.status).unwrap_or(warp::http::StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, 429 | 503) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let (status, code, title) = match &refusal {
            Refusal::UnknownTable(_) => (404, "unknown-table", "There is no such table"),
            Refusal::UnknownRange(_) => (404, "unknown-range", "There is no such range"),
            Refusal::UnknownShard(_) => (404, "unknown-shard", "There is no such shard"),
            Refusal::UnknownOperator(_) => (404, "unknown-operator", "There is no such operator"),
            Refusal::TableExists(_) => (409, "table-exists", "A table of this name exists"),
            Refusal::InvalidTable(_) => (400, "bad-table", "The table cannot be"),
            Refusal::RangeBusy { .. } => (409, "operator-running", "An operator is at work on the range"),
            Refusal::WrongEpoch { .. } => (409, "range-changed", "The range has changed"),
            Refusal::BadSplit(_) => (400, "bad-split", "The range cannot be split there"),
            Refusal::Lost(_) => (409, "shard-lost", "The shard was declared lost"),
            Refusal::NotFenced { .. } => (409, "not-fenced", "The range cannot be taken back"),
            Refusal::SameShard { .. } => (409, "same-shard", "The range is on this shard already"),
            Refusal::Draining(_) => (409, "shard-draining", "The shard is being emptied"),
            Refusal::NotDraining(_) => (409, "shard-not-draining", "The shard is not being emptied"),
            Refusal::LastShard(_) => (409, "last-shard", "The last shard cannot be removed"),
            Refusal::NotEmpty(_) => (409, "shard-not-empty", "The shard is not empty yet"),
            Refusal::NotNeighbours(..) => (409, "not-neighbours", "The ranges are not neighbours on one shard"),
            Refusal::NotCancellable { .. } => (409, "not-cancellable", "The operator can no longer be cancelled"),
            Refusal::AlreadyOver { .. } => (409, "not-cancellable", "The operator can no longer be cancelled"),
            Refusal::OtherStep { .. } => (409, "other-step", "The operator is at another step"),
            Refusal::TooMany(_) => (409, "limit-reached", "A limit is reached"),
            Refusal::NothingLeft(_) => (409, "nothing-left", "Nothing of it is possible any more"),
            Refusal::BadRoutes(_) => (409, "bad-routes", "The routes contradict what is known"),
            Refusal::Restoring => (503, "restoring", "The state was restored and is not whole yet"),
            Refusal::Kv(refusal) => kv_refusal(refusal),
        };
        Error::new(status, code, title, refusal.to_string())
    }
}

/// Status, code and title of what the coordination store refuses.
fn kv_refusal(refusal: &kv::Refusal) -> (u16, &'static str, &'static str) {
    match refusal {
        kv::Refusal::KeyLength(0) => (400, "bad-key", "The key is empty"),
        kv::Refusal::KeyLength(_) => (414, "key-too-long", "The key is too long"),
        kv::Refusal::ValueTooLarge(_) => (413, "value-too-large", "The value is too large"),
        kv::Refusal::BadText(_) => (400, "bad-request", "The request is malformed"),
        kv::Refusal::Mismatch(_) => (412, "revision-mismatch", "The key is not as expected"),
        kv::Refusal::Absent => (404, "unknown-key", "There is no such key"),
        kv::Refusal::Full(_) => (507, "kv-full", "The store is full"),
        kv::Refusal::IdReused => (422, "idempotency-key-reused", "The idempotency key belongs to another request"),
        kv::Refusal::TooManyIds => (429, "too-many-idempotency-keys", "Too many idempotency keys are remembered"),
    }
}

impl From<kv::Refusal> for Error {
    fn from(refusal: kv::Refusal) -> Error {
        Refusal::Kv(refusal).into()
    }
}

impl From<ProposeFailure> for Error {
    fn from(failure: ProposeFailure) -> Error {
        match failure {
            ProposeFailure::Refused(refusal) => refusal.into(),
            ProposeFailure::NotLeader => Error::no_leader(),
            ProposeFailure::Overloaded => Error::new(
                503,
                "overloaded",
                "Too much is waiting",
                "too many proposals are waiting; try again in a second",
            ),
            ProposeFailure::Unknown => Error::new(
                504,
                "outcome-unknown",
                "What became of it is not known",
                "leadership changed meanwhile: look whether it happened before you try again",
            ),
        }
    }
}
