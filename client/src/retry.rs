//! What to do after an attempt that brought no answer: a pure function of what happened, of the time and of a random number,
//! both passed in.
//!
//! It owns the rules of retrying and keeps them per statement in an [`Attempts`]. It promises:
//!
//! - a write whose outcome is unknown is only ever sent again under the same id (R14, invariant 7), and ends in 08007 if its
//!   outcome stays unknown, never in an error that says that nothing happened;
//! - reads are sent again whatever happened;
//! - nobody waits past the deadline, and no loop of redirects or refusals spins without waiting.

use crate::error::ClientError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Epoch, RangeId, ShardId};
use evenkeel_protocol::{Failure, SqlError};

/// The first wait, in milliseconds; it doubles up to [`MOST_WAIT_MS`]. A failover takes up to a second, and who asks often
/// learns of its end early.
const FIRST_WAIT_MS: u64 = 5;
/// The longest wait between two attempts, in milliseconds.
const MOST_WAIT_MS: u64 = 50;
/// The longest that a busy shard is given before it is asked again, in milliseconds.
const MOST_BUSY_MS: u64 = 1_000;
/// With less time than this left nothing is sent any more, in milliseconds: it would only make the outcome unknown.
const LEAST_ATTEMPT_MS: u64 = 5;
/// How long a shard may take to say that a lock was not to be had, in milliseconds: it waits for two seconds.
const LOCK_ANSWER_MS: u64 = 2_250;
/// What follows from not knowing. A shard refuses ids of more than 20 s and gives a statement 30 s, so that after this time a read is certain.
pub(crate) const STILL_POSSIBLE: &str = "It may still take effect within the next 40 seconds: what you read before then does not show it \
     for certain. Read the rows after that, before you do it again under a new id.";
/// Failures in a row that are followed by another attempt at once: enough to ask each of three replicas.
const EAGER_FAILURES: u32 = 2;
/// Redirects that are followed at once; a client that was away may be many moves behind.
const EAGER_REDIRECTS: u32 = 16;

/// Why a statement may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing that lasts: a read, or the beginning of a transaction that was never committed.
    Free,
    /// It carries an id that the shard knows again (R14).
    SameId,
    /// It is a commit sent again: it carries the transaction's id, and executes nothing by itself.
    Commit,
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer that is an error.
    Sql(SqlError),
    /// Nothing happened; the replica does not lead. It may know who does.
    NotLeader(Option<u64>),
    /// Nothing happened; the range is elsewhere.
    Moved(Learning),
    /// Nothing happened; the replica asks for patience.
    Busy { reason: String, retry_after_ms: u64 },
    /// Nothing happened; more is asked of the shard than it can do.
    Overloaded { retry_after_ms: u64 },
    /// Nothing happened; a `local` read asks for a fresher state than this replica can prove to have.
    TooStale(Failure),
    /// Nothing happened; no connection could be made.
    NeverSent(String),
    /// Nothing happened; it is too large to be sent.
    Unsendable(String),
    /// Nothing happened; the routing table has no route or no address for it.
    NoRoute,
    /// It may have happened; the connection or the answer was lost.
    Lost(String),
    /// It may have happened; the replica says so, or has been silent while another took the lead.
    Deposed { reason: String, leader: Option<u64> },
    /// It may have happened; no answer came before the deadline.
    Expired,
}

impl Outcome {
    /// Whether it may have happened.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Outcome::Lost(_) | Outcome::Deposed { .. } | Outcome::Expired)
    }
}

/// What a redirect has taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learning {
    /// The routing table now says where the range is.
    Routed,
    /// The range has changed in a way that the table cannot tell without its bounds; but this key is there.
    Hint(Hint),
    /// Only the placement driver can tell.
    Nothing,
}

/// Where a shard says that a range went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint {
    /// To this shard.
    pub shard: ShardId,
    /// As this range.
    pub range: RangeId,
    /// With this epoch.
    pub epoch: Epoch,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask the same replica again, after this many milliseconds.
    Same { wait_ms: u64 },
    /// Ask that replica (or, if none is named, another one), after this many milliseconds.
    Replica { leader: Option<u64>, wait_ms: u64 },
    /// Look in the routing table again (or follow the hint), after this many milliseconds.
    Reroute { hint: Option<Hint>, wait_ms: u64 },
    /// Fetch the routing table, then look again, after this many milliseconds.
    Refresh { wait_ms: u64 },
    /// There is nothing more to try.
    GiveUp(ClientError),
}

/// The attempts of one statement so far.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    repeat: Repeat,
    deadline_ms: u64,
    timeout_ms: u64,
    /// Until when refusals for overload are worth another attempt.
    patient_until_ms: u64,
    retries: u32,
    refusals: u32,
    redirects: u32,
    failures: u32,
    /// Whether an attempt may have been executed.
    unknown: bool,
    /// Whether a connection was lost before.
    lost: bool,
}

impl Attempts {
    /// None so far, for a statement that may take `timeout_ms` from `now_ms` on.
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

    /// The same, with less patience with a shard that is overloaded: for so long after `now_ms`.
    pub(crate) fn patient_for(mut self, now_ms: u64, patience_ms: u64) -> Attempts {
        self.patient_until_ms = now_ms.saturating_add(patience_ms).min(self.deadline_ms);
        self
    }

    /// The same for a statement that an attempt made elsewhere may have executed.
    pub(crate) fn after_unknown(mut self) -> Attempts {
        self.unknown = true;
        self.retries += 1;
        self
    }

    /// Attempts after the first.
    pub(crate) fn retries(&self) -> u32 {
        self.retries
    }

    /// Whether an attempt may have been executed.
    pub(crate) fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// When it ends, in milliseconds of the caller's clock.
    pub(crate) fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// What to do after `outcome`. `jitter` is a random number from 0 to 1.
    pub(crate) fn next(&mut self, outcome: Outcome, now_ms: u64, jitter: f64) -> Step {
        if outcome.is_unknown() {
            self.unknown |= self.repeat != Repeat::Free;
        }
        let why = reason(&outcome);
        let step = match outcome {
            // Nothing happened, and who comes again may be luckier. A commit is not: its transaction is gone.
            Outcome::Sql(error) if error.code.starts_with("40") && self.repeat != Repeat::Commit => {
                // A write that would only be given up while it waits for the same lock again, at the shard, could still take effect
                // after its user was told that nobody knows. Now it is certain that it did not.
                let free = self.unknown || self.repeat == Repeat::Free;
                let answer_ms = if free { 0 } else { LOCK_ANSWER_MS.min(self.timeout_ms / 4) };
                if now_ms.saturating_add(MOST_WAIT_MS + answer_ms) >= self.deadline_ms {
                    let give_up = if self.unknown { self.expired(&why) } else { ClientError::Rerun(error) };
                    return Step::GiveUp(give_up);
                }
                Step::Same { wait_ms: self.wait(jitter, 0) }
            }
            Outcome::Sql(error) => return Step::GiveUp(ClientError::answered(error)),
            Outcome::Unsendable(reason) => return Step::GiveUp(ClientError::Sql(too_large(reason))),
            Outcome::NotLeader(leader) => Step::Replica { leader, wait_ms: self.wait(jitter, EAGER_FAILURES) },
            Outcome::TooStale(_) | Outcome::NeverSent(_) => {
                Step::Replica { leader: None, wait_ms: self.wait(jitter, EAGER_FAILURES) }
            }
            Outcome::Deposed { leader, .. } => Step::Replica { leader, wait_ms: self.wait(jitter, EAGER_FAILURES) },
            // The connection may have been all that was lost; but if it happens again, the replica may be gone behind
            // something that still accepts connections, and another may lead by now.
            Outcome::Lost(_) if !self.lost => {
                self.lost = true;
                Step::Same { wait_ms: self.wait(jitter, EAGER_FAILURES) }
            }
            Outcome::Lost(_) => Step::Replica { leader: None, wait_ms: self.wait(jitter, EAGER_FAILURES) },
            Outcome::Busy { retry_after_ms, .. } => {
                // All who were turned away must not come back at the same moment.
                let asked = retry_after_ms.min(MOST_BUSY_MS) as f64 * (1.0 + jitter / 4.0);
                Step::Same { wait_ms: self.wait(jitter, 0).max(asked as u64) }
            }
            Outcome::Overloaded { retry_after_ms } => {
                // Each attempt waits longer than the one before: who is refused must not become the load.
                let doublings = self.refusals.min(5);
                self.refusals += 1;
                let asked = retry_after_ms.clamp(FIRST_WAIT_MS, MOST_BUSY_MS) << doublings;
                let wait_ms = ((asked as f64 * (0.5 + jitter)) as u64).min(MOST_BUSY_MS);
                // An earlier attempt may have been executed: then only its answer says what to tell the user.
                if !self.unknown && now_ms.saturating_add(wait_ms) >= self.patient_until_ms {
                    return Step::GiveUp(overloaded(wait_ms));
                }
                Step::Same { wait_ms }
            }
            Outcome::Moved(learning) => self.follow(learning, jitter),
            Outcome::NoRoute => Step::Refresh { wait_ms: self.wait(jitter, 0) },
            Outcome::Expired => return Step::GiveUp(self.expired(&why)),
        };
        let wait_ms = match step {
            Step::Same { wait_ms }
            | Step::Replica { wait_ms, .. }
            | Step::Reroute { wait_ms, .. }
            | Step::Refresh { wait_ms } => wait_ms,
            Step::GiveUp(_) => 0,
        };
        if now_ms.saturating_add(wait_ms + LEAST_ATTEMPT_MS) >= self.deadline_ms {
            return Step::GiveUp(self.expired(&why));
        }
        self.retries += 1;
        step
    }

    fn follow(&mut self, learning: Learning, jitter: f64) -> Step {
        self.redirects += 1;
        let wait_ms = if self.redirects <= EAGER_REDIRECTS { 0 } else { self.wait(jitter, 0) };
        match learning {
            Learning::Routed => Step::Reroute { hint: None, wait_ms },
            Learning::Hint(hint) => Step::Reroute { hint: Some(hint), wait_ms },
            // The new owner may not have adopted the range yet: fetching the table again and again would not help it.
            Learning::Nothing => Step::Refresh { wait_ms: self.wait(jitter, 1) },
        }
    }

    /// The next wait, after `eager` failures without one: twice the one before, less up to a half.
    fn wait(&mut self, jitter: f64, eager: u32) -> u64 {
        self.failures += 1;
        let Some(doublings) = self.failures.checked_sub(eager + 1) else { return 0 };
        let most = (FIRST_WAIT_MS << doublings.min(10)).min(MOST_WAIT_MS);
        (most as f64 * (0.5 + jitter.clamp(0.0, 1.0) / 2.0)).round() as u64
    }

    /// The error of a statement whose time is up. Says that nothing happened only if that is certain.
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
pub(crate) fn reason(outcome: &Outcome) -> Why {
    let (code, text) = match outcome {
        Outcome::Sql(error) => (codes::CANNOT_CONNECT_NOW, error.message.clone()),
        Outcome::TooStale(failure) => (codes::TOO_STALE, failure.to_string()),
        Outcome::NotLeader(_) => (codes::CANNOT_CONNECT_NOW, "the shard has no leader".to_string()),
        Outcome::Moved(_) => (codes::CANNOT_CONNECT_NOW, "the range is moving".to_string()),
        Outcome::Busy { reason, .. } => (codes::CANNOT_CONNECT_NOW, format!("the shard is busy, {reason}")),
        Outcome::Overloaded { .. } => (codes::TOO_MANY, "more is asked of the shard than it can do".to_string()),
        Outcome::NoRoute => (codes::CANNOT_CONNECT_NOW, "no shard is known to own the key".to_string()),
        Outcome::NeverSent(reason) | Outcome::Lost(reason) | Outcome::Unsendable(reason) => {
            (codes::CONNECTION_FAILURE, reason.clone())
        }
        Outcome::Deposed { reason, .. } => (codes::CONNECTION_FAILURE, reason.clone()),
        Outcome::Expired => (codes::CONNECTION_FAILURE, "the shard has not answered".to_string()),
    };
    Why { code, text }
}

/// 53300: refused early, so that those who are let in are answered soon.
fn overloaded(retry_after_ms: u64) -> ClientError {
    ClientError::Unavailable(SqlError::new(codes::TOO_MANY, "more is asked of the shard than it can do").hint(format!(
        "Nothing has taken effect; it is safe to try again, in {retry_after_ms} ms or more, with fewer statements at once."
    )))
}

/// No replica of a shard could prove that its state is as fresh as a `local` read asks for; why the last could not.
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

/// What an attempt inside a transaction that has begun means. Only a shard's request for patience keeps the transaction alive:
/// its locks and snapshot live on one connection to one leader, and are gone with either.
pub(crate) fn in_transaction(outcome: &Outcome, now_ms: u64, deadline_ms: u64, jitter: f64) -> Step {
    match outcome {
        Outcome::Sql(error) => Step::GiveUp(ClientError::answered(error.clone())),
        Outcome::Unsendable(reason) => Step::GiveUp(ClientError::Sql(too_large(reason.clone()))),
        // Its locks are worth more than the patience that others are spared.
        Outcome::Busy { retry_after_ms, .. } | Outcome::Overloaded { retry_after_ms } => {
            let asked = (*retry_after_ms).clamp(FIRST_WAIT_MS, MOST_BUSY_MS) as f64;
            let wait_ms = (asked * (1.0 + jitter / 4.0)) as u64;
            if now_ms.saturating_add(wait_ms) >= deadline_ms {
                return Step::GiveUp(ClientError::rerun("the shard was too busy to go on with the transaction"));
            }
            Step::Same { wait_ms }
        }
        other => Step::GiveUp(ClientError::rerun(format!("the transaction was rolled back: {}", reason(other).text))),
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
