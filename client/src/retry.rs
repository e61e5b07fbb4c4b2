//! The rules of retrying: what follows a failed attempt. Pure: the failure, the time and a random
//! number are passed in.
//!
//! It owns the rules, and the history of one statement in an [`Attempts`]. It promises:
//!
//! - A write whose outcome is unknown is sent again only under the same id (R14, invariant 7). If
//!   its outcome stays unknown it ends in 08007, never in an error that says that nothing happened.
//! - Reads are sent again after every failure.
//! - No statement waits past its deadline, and no loop of redirects or refusals spins without
//!   waiting.

use crate::error::ClientError;
use crate::routing::{Learning, RedirectHint};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Failure, SqlError};

/// The first wait, in milliseconds; it doubles up to [`MAX_WAIT_MS`]. A failover takes up to a
/// second; a client that asks often learns of its end early.
const FIRST_WAIT_MS: u64 = 5;
/// The longest wait between two attempts, in milliseconds.
const MAX_WAIT_MS: u64 = 50;
/// The longest wait before a busy shard is asked again, in milliseconds.
const MAX_BUSY_MS: u64 = 1_000;
/// With less time than this left nothing is sent, in milliseconds: it would only make the outcome
/// unknown.
const MIN_ATTEMPT_MS: u64 = 5;
/// How long a shard may take to report a lock timeout, in milliseconds: it waits for the lock for 2
/// s.
const LOCK_ANSWER_MS: u64 = 2_250;
/// The hint of an unknown outcome. A shard refuses ids older than 20 s and gives a statement 30 s:
/// a read after this time is certain.
pub(crate) const STILL_POSSIBLE: &str = "It may still take effect within the next 40 seconds: what you read before then does not show it \
     for certain. Read the rows after that, before you do it again under a new id.";
/// Failures that are followed by another attempt at once: enough to ask each of three replicas.
const EAGER_FAILURES: u32 = 2;
/// Redirects that are followed at once: a client that was suspended may be many moves behind.
const EAGER_REDIRECTS: u32 = 16;

/// Why a statement may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing that lasts: a read, or the first statement of a transaction that was
    /// never committed.
    Free,
    /// It carries an id that the shard recognises (R14).
    SameId,
    /// It is a repeated commit: it carries the transaction's id and executes nothing itself.
    Commit,
}

/// Why one attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttemptFailure {
    /// The answer is an error.
    Sql(SqlError),
    /// Nothing happened; the replica does not lead. It may know the leader.
    NotLeader(Option<u64>),
    /// Nothing happened; the range is elsewhere.
    Moved(Learning),
    /// Nothing happened; the replica is busy and asks for a pause.
    Busy { reason: String, retry_after_ms: u64 },
    /// Nothing happened; the shard is overloaded.
    Overloaded { retry_after_ms: u64 },
    /// Nothing happened; the replica cannot prove the staleness bound of a `local` read.
    TooStale(Failure),
    /// Nothing happened; no connection could be made.
    NeverSent(String),
    /// Nothing happened; the request is too large to be sent.
    Unsendable(String),
    /// Nothing happened; the routing table has no route or no address for the statement.
    NoRoute,
    /// The statement may have been executed; the connection or the answer was lost.
    Lost(String),
    /// The statement may have been executed: the replica says so, or was silent while another
    /// became leader.
    Deposed { reason: String, leader: Option<u64> },
    /// The statement may have been executed; no answer arrived before the deadline.
    Expired,
}

impl AttemptFailure {
    /// Whether the statement may have been executed.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, AttemptFailure::Lost(_) | AttemptFailure::Deposed { .. } | AttemptFailure::Expired)
    }

    /// Whether the replica could not be reached, or did not answer.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, AttemptFailure::Lost(_) | AttemptFailure::NeverSent(_))
    }
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RetryStep {
    /// Ask the same replica again, after this many milliseconds.
    Same { wait_ms: u64 },
    /// Ask the named replica, or another one if none is named, after this many milliseconds.
    Replica { leader: Option<u64>, wait_ms: u64 },
    /// Look up the route again, or follow the hint, after this many milliseconds.
    Reroute { hint: Option<RedirectHint>, wait_ms: u64 },
    /// Fetch the routing table after this many milliseconds, then look up the route again.
    Refresh { wait_ms: u64 },
    /// Nothing is left to try.
    GiveUp(ClientError),
}

/// The attempts of one statement so far.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    repeat: Repeat,
    deadline_ms: u64,
    timeout_ms: u64,
    /// Until this time refusals for overload are followed by another attempt.
    patient_until_ms: u64,
    retries: u32,
    refusals: u32,
    redirects: u32,
    failures: u32,
    /// Whether an attempt may have been executed.
    unknown: bool,
    /// Whether a connection has been lost.
    lost: bool,
}

impl Attempts {
    /// No attempts, of a statement that may take `timeout_ms` from `now_ms` on.
    pub(crate) fn new(repeat: Repeat, now_ms: u64, timeout_ms: u64) -> Attempts {
        let deadline_ms = now_ms.saturating_add(timeout_ms);
        Attempts {
            repeat,
            deadline_ms,
            timeout_ms,
            patient_until_ms: deadline_ms,
            retries: 0,
            refusals: 0,
            redirects: 0,
            failures: 0,
            unknown: false,
            lost: false,
        }
    }

    /// Limits the time for retries at an overloaded shard to `patience_ms` after `now_ms`.
    pub(crate) fn patient_for(mut self, now_ms: u64, patience_ms: u64) -> Attempts {
        self.patient_until_ms = now_ms.saturating_add(patience_ms).min(self.deadline_ms);
        self
    }

    /// Records that an earlier attempt may have executed the statement.
    pub(crate) fn after_unknown(mut self) -> Attempts {
        self.unknown = true;
        self.retries += 1;
        self
    }

    /// The number of attempts after the first.
    pub(crate) fn retries(&self) -> u32 {
        self.retries
    }

    /// Whether an attempt may have been executed.
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// The deadline, in milliseconds on the caller's clock.
    pub(crate) fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// The next step after `failure`. `jitter` is a random number from 0 to 1.
    pub(crate) fn next(&mut self, failure: AttemptFailure, now_ms: u64, jitter: f64) -> RetryStep {
        if failure.is_unknown() && !deliberate(Bug::UnknownReportedAsRefused) {
            self.unknown |= self.repeat != Repeat::Free;
        }
        let why = reason(&failure);
        let step = match failure {
            // Nothing happened, and another attempt may succeed. Not that of a commit: its
            // transaction is gone.
            AttemptFailure::Sql(error) if error.code.starts_with("40") && self.repeat != Repeat::Commit => {
                // If the write waited for the same lock again, the client would give up first, and
                // the write could take effect after its outcome was reported as unknown. At this
                // point it is certain that it did not.
                let free = self.unknown || self.repeat == Repeat::Free;
                let answer_ms = if free { 0 } else { LOCK_ANSWER_MS.min(self.timeout_ms / 4) };
                if now_ms.saturating_add(MAX_WAIT_MS + answer_ms) >= self.deadline_ms {
                    let give_up = if self.unknown { self.expired(&why) } else { ClientError::Rerun(error) };
                    return RetryStep::GiveUp(give_up);
                }
                RetryStep::Same { wait_ms: self.wait(jitter, 0) }
            }
            AttemptFailure::Sql(error) => return RetryStep::GiveUp(ClientError::answered(error)),
            AttemptFailure::Unsendable(reason) => return RetryStep::GiveUp(ClientError::Sql(too_large(reason))),
            AttemptFailure::NotLeader(leader) => {
                RetryStep::Replica { leader, wait_ms: self.wait(jitter, EAGER_FAILURES) }
            }
            AttemptFailure::TooStale(_) | AttemptFailure::NeverSent(_) => {
                RetryStep::Replica { leader: None, wait_ms: self.wait(jitter, EAGER_FAILURES) }
            }
            AttemptFailure::Deposed { leader, .. } => {
                RetryStep::Replica { leader, wait_ms: self.wait(jitter, EAGER_FAILURES) }
            }
            // Perhaps only the connection was lost. If it happens again, the replica may be gone
            // behind a proxy that still accepts connections, and another replica may lead.
            AttemptFailure::Lost(_) if !self.lost => {
                self.lost = true;
                RetryStep::Same { wait_ms: self.wait(jitter, EAGER_FAILURES) }
            }
            AttemptFailure::Lost(_) => RetryStep::Replica { leader: None, wait_ms: self.wait(jitter, EAGER_FAILURES) },
            AttemptFailure::Busy { retry_after_ms, .. } => {
                // Clients that were refused together must not return at the same moment.
                let asked = retry_after_ms.min(MAX_BUSY_MS) as f64 * (1.0 + jitter / 4.0);
                RetryStep::Same { wait_ms: self.wait(jitter, 0).max(asked as u64) }
            }
            AttemptFailure::Overloaded { retry_after_ms } => {
                // Each wait is longer than the one before: retries must not become the load.
                let doublings = self.refusals.min(5);
                self.refusals += 1;
                let asked = retry_after_ms.clamp(FIRST_WAIT_MS, MAX_BUSY_MS) << doublings;
                let wait_ms = ((asked as f64 * (0.5 + jitter)) as u64).min(MAX_BUSY_MS);
                // If an earlier attempt may have been executed, only its answer decides what to
                // report.
                if !self.unknown && now_ms.saturating_add(wait_ms) >= self.patient_until_ms {
                    return RetryStep::GiveUp(overloaded(wait_ms));
                }
                RetryStep::Same { wait_ms }
            }
            AttemptFailure::Moved(learning) => self.follow(learning, jitter),
            AttemptFailure::NoRoute => RetryStep::Refresh { wait_ms: self.wait(jitter, 0) },
            AttemptFailure::Expired => return RetryStep::GiveUp(self.expired(&why)),
        };
        let wait_ms = match step {
            RetryStep::Same { wait_ms }
            | RetryStep::Replica { wait_ms, .. }
            | RetryStep::Reroute { wait_ms, .. }
            | RetryStep::Refresh { wait_ms } => wait_ms,
            RetryStep::GiveUp(_) => 0,
        };
        if now_ms.saturating_add(wait_ms + MIN_ATTEMPT_MS) >= self.deadline_ms {
            return RetryStep::GiveUp(self.expired(&why));
        }
        self.retries += 1;
        step
    }

    fn follow(&mut self, learning: Learning, jitter: f64) -> RetryStep {
        self.redirects += 1;
        let wait_ms = if self.redirects <= EAGER_REDIRECTS { 0 } else { self.wait(jitter, 0) };
        match learning {
            Learning::Routed => RetryStep::Reroute { hint: None, wait_ms },
            Learning::Hint(hint) => RetryStep::Reroute { hint: Some(hint), wait_ms },
            // The new owner may not have adopted the range yet; fetching the table more often does
            // not help.
            Learning::Nothing => RetryStep::Refresh { wait_ms: self.wait(jitter, 1) },
        }
    }

    /// The next wait: none for the first `eager` failures, then twice the previous wait, less up to
    /// a half.
    fn wait(&mut self, jitter: f64, eager: u32) -> u64 {
        self.failures += 1;
        let Some(doublings) = self.failures.checked_sub(eager + 1) else { return 0 };
        let most = (FIRST_WAIT_MS << doublings.min(10)).min(MAX_WAIT_MS);
        (most as f64 * (0.5 + jitter.clamp(0.0, 1.0) / 2.0)).round() as u64
    }

    /// The error of a statement whose time is up. It says that nothing happened only if that is
    /// certain.
    pub(crate) fn expired(&self, why: &Why) -> ClientError {
        let waited = self.timeout_ms;
        if self.unknown {
            let message = format!("no answer within {waited} ms ({}); it may have taken effect", why.text);
            return ClientError::OutcomeUnknown(SqlError::new(codes::OUTCOME_UNKNOWN, message).hint(STILL_POSSIBLE));
        }
        let message = format!("no answer within {waited} ms: {}", why.text);
        ClientError::Unavailable(
            SqlError::new(why.code, message).hint("Nothing has taken effect; it is safe to try again."),
        )
    }
}

/// Why the last attempt failed, for the error that says that time is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Why {
    code: &'static str,
    text: String,
}

/// Why an attempt failed.
pub(crate) fn reason(failure: &AttemptFailure) -> Why {
    let (code, text) = match failure {
        AttemptFailure::Sql(error) => (codes::CANNOT_CONNECT_NOW, error.message.clone()),
        AttemptFailure::TooStale(failure) => (codes::TOO_STALE, failure.to_string()),
        AttemptFailure::NotLeader(_) => (codes::CANNOT_CONNECT_NOW, "the shard has no leader".to_string()),
        AttemptFailure::Moved(_) => (codes::CANNOT_CONNECT_NOW, "the range is moving".to_string()),
        AttemptFailure::Busy { reason, .. } => (codes::CANNOT_CONNECT_NOW, format!("the shard is busy, {reason}")),
        AttemptFailure::Overloaded { .. } => (codes::TOO_MANY, "more is asked of the shard than it can do".to_string()),
        AttemptFailure::NoRoute => (codes::CANNOT_CONNECT_NOW, "no shard is known to own the key".to_string()),
        AttemptFailure::NeverSent(reason) | AttemptFailure::Lost(reason) | AttemptFailure::Unsendable(reason) => {
            (codes::CONNECTION_FAILURE, reason.clone())
        }
        AttemptFailure::Deposed { reason, .. } => (codes::CONNECTION_FAILURE, reason.clone()),
        AttemptFailure::Expired => (codes::CONNECTION_FAILURE, "the shard has not answered".to_string()),
    };
    Why { code, text }
}

/// 53300: the shard's admission control has refused the statement.
fn overloaded(retry_after_ms: u64) -> ClientError {
    ClientError::Unavailable(SqlError::new(codes::TOO_MANY, "more is asked of the shard than it can do").hint(format!(
        "Nothing has taken effect; it is safe to try again, in {retry_after_ms} ms or more, with fewer statements at once."
    )))
}

/// The error of a `local` read whose staleness bound no replica could prove; with the reason of the
/// last replica.
pub(crate) fn too_stale(failure: &Failure) -> ClientError {
    let message = format!("no replica can answer: {failure}");
    ClientError::Unavailable(SqlError::new(codes::TOO_STALE, message).hint(
        "Allow an older state (evenkeel.max_staleness), choose read level leader or linearizable, or try again later.",
    ))
}

fn too_large(reason: String) -> SqlError {
    SqlError::new(codes::PROGRAM_LIMIT, format!("the statement is too large: {reason}"))
        .hint("Send its rows in several statements.")
}

/// The next step after a failed attempt in an open transaction. Only a busy shard keeps the
/// transaction alive: its locks and snapshot belong to one connection to one leader, and are gone
/// with either.
pub(crate) fn in_transaction(failure: &AttemptFailure, now_ms: u64, deadline_ms: u64, jitter: f64) -> RetryStep {
    match failure {
        AttemptFailure::Sql(error) => RetryStep::GiveUp(ClientError::answered(error.clone())),
        AttemptFailure::Unsendable(reason) => RetryStep::GiveUp(ClientError::Sql(too_large(reason.clone()))),
        // The locks that it holds are worth more than the limit on retries at an overloaded shard.
        AttemptFailure::Busy { retry_after_ms, .. } | AttemptFailure::Overloaded { retry_after_ms } => {
            let asked = (*retry_after_ms).clamp(FIRST_WAIT_MS, MAX_BUSY_MS) as f64;
            let wait_ms = (asked * (1.0 + jitter / 4.0)) as u64;
            if now_ms.saturating_add(wait_ms) >= deadline_ms {
                return RetryStep::GiveUp(ClientError::rerun("the shard was too busy to go on with the transaction"));
            }
            RetryStep::Same { wait_ms }
        }
        other => {
            RetryStep::GiveUp(ClientError::rerun(format!("the transaction was rolled back: {}", reason(other).text)))
        }
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
