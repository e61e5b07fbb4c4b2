//! Problems: errors as `application/problem+json` (RFC 9457) with stable codes. All codes of the
//! REST API are in this file.
//!
//! A client may rely on the status and the code. Titles and details are for people. 503 and 429
//! mean that nothing was done, and carry `Retry-After`; 504 means that the request may be
//! effective.

use crate::coordination;
use crate::json::to_json;
use crate::replica::ProposeFailure;
use crate::state::Refusal;
use evenkeel_protocol::api::Problem;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use warp::reply::Response;

/// A kind of problem: everything that all its occurrences have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProblemKind {
    status: u16,
    code: &'static str,
    title: &'static str,
}

const fn kind(status: u16, code: &'static str, title: &'static str) -> ProblemKind {
    ProblemKind { status, code, title }
}

// The request itself.
const BAD_REQUEST: ProblemKind = kind(400, "bad-request", "The request is malformed");
const BAD_KEY: ProblemKind = kind(400, "bad-key", "The key is not one of this table");
const UNKNOWN_PATH: ProblemKind = kind(404, "unknown-path", "There is nothing at this path");
pub(super) const METHOD_NOT_ALLOWED: ProblemKind = kind(405, "method-not-allowed", "The method is not possible here");
pub(super) const BODY_TOO_SLOW: ProblemKind = kind(408, "body-too-slow", "The body did not come");
pub(super) const BODY_TOO_LARGE: ProblemKind = kind(413, "body-too-large", "The body is too large");

// The replica, and its leader.
pub(super) const NOT_LEADER: ProblemKind = kind(307, "not-leader", "Another replica leads");
const NO_LEADER: ProblemKind = kind(503, "no-leader", "No replica leads at the moment");
pub(super) const NO_QUORUM: ProblemKind = kind(503, "no-quorum", "No majority answers");
pub(super) const BEHIND: ProblemKind = kind(503, "behind", "This replica is behind");
const OVERLOADED: ProblemKind = kind(503, "overloaded", "Too much is waiting");
pub(super) const TOO_MANY_WATCHERS: ProblemKind = kind(503, "too-many-watchers", "Too many watches are open");
pub(super) const OUTCOME_UNKNOWN: ProblemKind = kind(504, "outcome-unknown", "What became of it is not known");
pub(super) const INTERNAL: ProblemKind = kind(500, "internal", "Something that cannot be");

// Tables.
const UNKNOWN_TABLE: ProblemKind = kind(404, "unknown-table", "There is no such table");
const TABLE_EXISTS: ProblemKind = kind(409, "table-exists", "A table of this name exists");
const BAD_TABLE: ProblemKind = kind(400, "bad-table", "The table cannot be");
pub(super) const TABLE_NOT_TAKEN_IN: ProblemKind = kind(409, "table-not-taken-in", "A shard has a table of this name");
pub(super) const NOT_CREATED: ProblemKind = kind(409, "not-created", "The table could not be created");
pub(super) const STILL_CREATING: ProblemKind = kind(504, "still-creating", "The table is not ready yet");
pub(super) const NO_SHARD: ProblemKind = kind(503, "no-shard", "No shard can take the table");

// The schema.
const SCHEMA_VERSION: ProblemKind = kind(409, "schema-version", "The schema has another version");
const SCHEMA_BUSY: ProblemKind = kind(409, "schema-change-running", "Another schema change is under way");
const UNKNOWN_RELATION: ProblemKind = kind(404, "unknown-relation", "There is no such table or sequence");
const NOT_AT_HOME: ProblemKind = kind(409, "not-at-home", "The table is not one range on the shard of pinned tables");
pub(super) const SCHEMA_REFUSED: ProblemKind = kind(422, "schema-refused", "The schema stays as it is");
pub(super) const STILL_CHANGING: ProblemKind = kind(504, "still-changing", "The schema change is not done yet");

// Ranges.
const PINNED: ProblemKind = kind(409, "pinned", "The table neither splits nor moves");
const UNKNOWN_RANGE: ProblemKind = kind(404, "unknown-range", "There is no such range");
pub(super) const NO_ROUTE: ProblemKind = kind(503, "no-route", "No shard is known for this key");
pub(super) const NO_MEDIAN: ProblemKind = kind(409, "no-median", "The load has no median yet");
const RANGE_BUSY: ProblemKind = kind(409, "operator-running", "An operator is at work on the range");
const RANGE_CHANGED: ProblemKind = kind(409, "range-changed", "The range has changed");
const BAD_SPLIT: ProblemKind = kind(400, "bad-split", "The range cannot be split there");
const SAME_SHARD: ProblemKind = kind(409, "same-shard", "The range is on this shard already");
const NOT_NEIGHBOURS: ProblemKind = kind(409, "not-neighbours", "The ranges are not neighbours on one shard");
const BAD_ROUTES: ProblemKind = kind(409, "bad-routes", "The routes contradict the routing table");

// Shards and replicas.
const UNKNOWN_SHARD: ProblemKind = kind(404, "unknown-shard", "There is no such shard");
pub(super) const UNKNOWN_REPLICA: ProblemKind = kind(409, "unknown-replica", "There is no such replica");
const SHARD_LOST: ProblemKind = kind(409, "shard-lost", "The shard was declared lost");
const SHARD_DRAINING: ProblemKind = kind(409, "shard-draining", "The shard is being emptied");
const SHARD_NOT_DRAINING: ProblemKind = kind(409, "shard-not-draining", "The shard is not being emptied");
const LAST_SHARD: ProblemKind = kind(409, "last-shard", "The last shard cannot be removed");
const SHARD_HAS_PINNED: ProblemKind = kind(409, "shard-has-pinned-tables", "The shard cannot be emptied");
const SHARD_NOT_EMPTY: ProblemKind = kind(409, "shard-not-empty", "The shard is not empty yet");
pub(super) const SHARD_SILENT: ProblemKind = kind(409, "shard-silent", "The shard does not report");
pub(super) const SHARD_CLOCK_OFF: ProblemKind = kind(409, "shard-clock-off", "The shard's clock is off");
pub(super) const SHARD_SPEAKS: ProblemKind = kind(409, "shard-speaks", "The destination is not lost");
pub(super) const SHARD_UNREACHABLE: ProblemKind = kind(503, "shard-unreachable", "The shard does not answer");
pub(super) const SHARD_ANSWER: ProblemKind = kind(502, "shard-answer", "The shard answered something else");
pub(super) const NOT_TRANSFERRED: ProblemKind = kind(409, "not-transferred", "The shard's leadership stays");
pub(super) const NOT_CHANGED: ProblemKind = kind(409, "not-changed", "The replicas stay as they are");
pub(super) const NOT_CHANGED_YET: ProblemKind = kind(503, "not-changed-yet", "The replicas have not changed yet");

// Operators.
pub(super) const UNKNOWN_OPERATOR: ProblemKind = kind(404, "unknown-operator", "There is no such operator");
pub(super) const OPERATOR_RUNNING: ProblemKind = kind(409, "operator-running", "The operator is still at work");
pub(super) const NOT_CANCELLABLE: ProblemKind = kind(409, "not-cancellable", "The operator can no longer be cancelled");
pub(super) const NOT_CANCELLED: ProblemKind = kind(409, "not-cancellable", "The operator cannot be cancelled");
const OTHER_STEP: ProblemKind = kind(409, "other-step", "The operator is at another step");
pub(super) const NOT_FENCED: ProblemKind = kind(409, "not-fenced", "The range cannot be taken back");
const NOTHING_LEFT: ProblemKind = kind(409, "nothing-left", "Nothing of it is possible any more");
const LIMIT_REACHED: ProblemKind = kind(409, "limit-reached", "A limit is reached");
const RESTORING: ProblemKind = kind(503, "restoring", "The state was restored and is not whole yet");
pub(super) const NO_COPY: ProblemKind = kind(409, "no-copy", "The operator leaves no copy");
pub(super) const NOT_PURGED: ProblemKind = kind(409, "not-purged", "The copy stays");
pub(super) const NOT_PURGED_YET: ProblemKind = kind(503, "not-purged-yet", "The copy is still being deleted");

// The coordination store.
const EMPTY_KEY: ProblemKind = kind(400, "bad-key", "The key is empty");
const KEY_TOO_LONG: ProblemKind = kind(414, "key-too-long", "The key is too long");
const VALUE_TOO_LARGE: ProblemKind = kind(413, "value-too-large", "The value is too large");
const REVISION_MISMATCH: ProblemKind = kind(412, "revision-mismatch", "The key is not as expected");
const UNKNOWN_KEY: ProblemKind = kind(404, "unknown-key", "There is no such key");
const KV_FULL: ProblemKind = kind(507, "kv-full", "The store is full");
const ID_REUSED: ProblemKind = kind(422, "idempotency-key-reused", "The idempotency key belongs to another request");
const TOO_MANY_IDS: ProblemKind = kind(429, "too-many-idempotency-keys", "Too many idempotency keys are remembered");
pub(super) const TOO_MANY_WRITES: ProblemKind = kind(429, "too-many-writes", "Too many writes are under way");
pub(super) const COMPACTED: ProblemKind = kind(410, "compacted", "These changes are no longer remembered");

impl ProblemKind {
    /// A problem of this kind. `detail` says what happened this time.
    pub(crate) fn because(self, detail: impl Into<String>) -> ApiProblem {
        ApiProblem { status: self.status, code: self.code, title: self.title, detail: detail.into() }
    }
}

/// A problem, the answer to a request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiProblem {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// The title, the same for every occurrence.
    pub title: &'static str,
    /// What happened this time.
    pub detail: String,
}

impl ApiProblem {
    /// 400: the key cannot be a key of the table.
    pub fn bad_key(detail: impl Into<String>) -> ApiProblem {
        BAD_KEY.because(detail)
    }

    /// 400: the request is malformed.
    pub fn bad_request(detail: impl Into<String>) -> ApiProblem {
        BAD_REQUEST.because(detail)
    }

    /// 404: no such path.
    pub fn unknown_path(path: &str) -> ApiProblem {
        UNKNOWN_PATH.because(format!("nothing is at {path}"))
    }

    /// 404: no such table.
    pub fn unknown_table(name: &str) -> ApiProblem {
        UNKNOWN_TABLE.because(format!("there is no table {name:?}"))
    }

    /// 503: no leader is known; to be tried again.
    pub fn no_leader() -> ApiProblem {
        NO_LEADER.because("an election is under way; try again in a second")
    }

    /// Whether the problem is that no leader is known.
    pub(super) fn is_no_leader(&self) -> bool {
        self.code == NO_LEADER.code
    }

    /// Whether a follower that answers this may not know yet what the leader knows.
    pub(super) fn may_be_newer_at_leader(&self) -> bool {
        [UNKNOWN_OPERATOR.code, UNKNOWN_TABLE.code].contains(&self.code)
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
        let mut response = Response::new(to_json(&problem).into());
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, 429 | 503) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Refusal> for ApiProblem {
    fn from(refusal: Refusal) -> ApiProblem {
        let kind = match &refusal {
            Refusal::UnknownTable(_) => UNKNOWN_TABLE,
            Refusal::UnknownRange(_) => UNKNOWN_RANGE,
            Refusal::UnknownShard(_) => UNKNOWN_SHARD,
            Refusal::UnknownOperator(_) => UNKNOWN_OPERATOR,
            Refusal::TableExists(_) => TABLE_EXISTS,
            Refusal::InvalidTable(_) => BAD_TABLE,
            Refusal::RangeBusy { .. } => RANGE_BUSY,
            Refusal::WrongEpoch { .. } => RANGE_CHANGED,
            Refusal::BadSplit(_) => BAD_SPLIT,
            Refusal::Lost(_) => SHARD_LOST,
            Refusal::NotFenced { .. } => NOT_FENCED,
            Refusal::SameShard { .. } => SAME_SHARD,
            Refusal::Draining(_) => SHARD_DRAINING,
            Refusal::NotDraining(_) => SHARD_NOT_DRAINING,
            Refusal::LastShard(_) => LAST_SHARD,
            Refusal::NotEmpty(_) => SHARD_NOT_EMPTY,
            Refusal::NotNeighbours(..) => NOT_NEIGHBOURS,
            Refusal::NotCancellable { .. } | Refusal::AlreadyOver { .. } => NOT_CANCELLABLE,
            Refusal::OtherStep { .. } => OTHER_STEP,
            Refusal::TooMany(_) => LIMIT_REACHED,
            Refusal::NothingLeft(_) => NOTHING_LEFT,
            Refusal::BadRoutes(_) => BAD_ROUTES,
            Refusal::Restoring => RESTORING,
            Refusal::SchemaBusy(_) => SCHEMA_BUSY,
            Refusal::SchemaVersion { .. } => SCHEMA_VERSION,
            Refusal::UnknownRelation(_) => UNKNOWN_RELATION,
            Refusal::NotAtHome { .. } => NOT_AT_HOME,
            Refusal::Pinned(_) => PINNED,
            Refusal::HasPinned { .. } => SHARD_HAS_PINNED,
            Refusal::Kv(refusal) => coordination_kind(refusal),
        };
        kind.because(refusal.to_string())
    }
}

/// The kind of problem for a rejection by the coordination store.
fn coordination_kind(refusal: &coordination::RequestRefusal) -> ProblemKind {
    match refusal {
        coordination::RequestRefusal::KeyLength(0) => EMPTY_KEY,
        coordination::RequestRefusal::KeyLength(_) => KEY_TOO_LONG,
        coordination::RequestRefusal::ValueTooLarge(_) => VALUE_TOO_LARGE,
        coordination::RequestRefusal::BadText(_) => BAD_REQUEST,
        coordination::RequestRefusal::Mismatch(_) => REVISION_MISMATCH,
        coordination::RequestRefusal::Absent => UNKNOWN_KEY,
        coordination::RequestRefusal::Full(_) => KV_FULL,
        coordination::RequestRefusal::IdReused => ID_REUSED,
        coordination::RequestRefusal::TooManyIds => TOO_MANY_IDS,
    }
}

impl From<coordination::RequestRefusal> for ApiProblem {
    fn from(refusal: coordination::RequestRefusal) -> ApiProblem {
        Refusal::Kv(refusal).into()
    }
}

impl From<ProposeFailure> for ApiProblem {
    fn from(failure: ProposeFailure) -> ApiProblem {
        match failure {
            ProposeFailure::Refused(refusal) => refusal.into(),
            ProposeFailure::NotLeader => ApiProblem::no_leader(),
            ProposeFailure::Overloaded => OVERLOADED.because("too many proposals are waiting; try again in a second"),
            ProposeFailure::Unknown => {
                OUTCOME_UNKNOWN.because("leadership changed meanwhile: look whether it happened before you try again")
            }
        }
    }
}
