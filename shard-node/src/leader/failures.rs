//! Answers to statements that were not executed, or whose outcome is unknown.

use crate::storage::StoreError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Failure, SqlError};

/// PostgreSQL's code for a lock that it did not get in time.
pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// PostgreSQL's code for a deadlock.
pub(super) const DEADLOCK: &str = "40P01";
/// PostgreSQL's code for a cancelled statement.
pub(super) const QUERY_CANCELED: &str = "57014";
/// The end of PostgreSQL's message if somebody asked for the cancellation. A time limit gives
/// another message.
const BY_REQUEST: &str = "due to user request";

/// The statement was not executed and can be sent again.
pub(crate) fn busy(reason: &str) -> Failure {
    Failure::Busy { reason: reason.to_string(), retry_after_ms: 50 }
}

/// PostgreSQL rejected the statement. If somebody who is neither its client nor this node cancelled
/// it, the error says nothing about the statement, which had no effect (R6): the client sends it
/// again.
pub(super) fn rejected_by_postgres(error: &SqlError) -> Failure {
    if error.code == QUERY_CANCELED && error.message.ends_with(BY_REQUEST) {
        return busy("the statement was cancelled in the leader's PostgreSQL");
    }
    error.clone().into()
}

/// The session failed before anything was proposed, so nothing happened.
pub(crate) fn not_executed(error: &StoreError) -> Failure {
    match error {
        StoreError::Refused(error) => rejected_by_postgres(error),
        other => busy(&other.to_string()),
    }
}

/// The statement may or may not have taken effect.
pub(super) fn unknown(reason: &str) -> Failure {
    Failure::OutcomeUnknown { reason: reason.to_string() }
}

/// Another transaction holds a lock: the statement can be tried again.
pub(super) fn contention(error: &SqlError) -> Failure {
    SqlError::new("40001", format!("another transaction holds a row this needs ({})", error.message))
        .hint("Retry the transaction.")
        .into()
}

/// The transaction has to be run again.
pub(super) fn serialization(message: &str) -> Failure {
    SqlError::new(codes::SERIALIZATION_FAILURE, message).hint("Retry the transaction.").into()
}

/// A transaction's changes are more than `limit` bytes (R12).
pub(super) fn too_large(bytes: usize, limit: usize) -> Failure {
    let message = format!("the transaction's changes are {bytes} bytes; at most {limit} are possible");
    SqlError::new(codes::PROGRAM_LIMIT, message).hint("Write fewer rows per transaction.").into()
}

/// The leader has ended the transaction.
pub(super) fn ended_by_leader() -> Failure {
    serialization("the transaction was ended because a range it uses is moving, or because it was idle for too long")
}

/// A failure of a statement inside a transaction. The transaction cannot continue on another
/// replica or shard, so its client has to run it again.
pub(super) fn moved_away(failure: Failure) -> Failure {
    match failure {
        Failure::Moved { .. } => serialization("a range that the transaction uses has moved"),
        Failure::NotLeader { .. } => serialization("the shard's leader has changed"),
        Failure::Busy { reason, .. } => serialization(&reason),
        // Admission control rejects only work that has not begun.
        Failure::Overloaded { .. } => serialization("the shard is overloaded"),
        // Only a `local` read can be too stale, and a transaction contains none.
        Failure::TooStale { .. } => serialization(&failure.to_string()),
        // The client plans again, and the transaction with it.
        Failure::SchemaChanged { .. } => failure,
        other @ (Failure::Sql(_) | Failure::OutcomeUnknown { .. }) => other,
    }
}

/// A failure of PostgreSQL inside a transaction.
pub(super) fn lost_in_transaction(error: &StoreError) -> Failure {
    match error {
        StoreError::Refused(error) if [LOCK_NOT_AVAILABLE, DEADLOCK].contains(&error.code.as_ref()) => {
            contention(error)
        }
        other => moved_away(not_executed(other)),
    }
}

/// 25P02: nothing is executed in a transaction that has failed.
pub(super) fn in_failed_transaction() -> Failure {
    let message = "the transaction has failed; nothing is executed until it is rolled back";
    SqlError::new(codes::IN_FAILED_TRANSACTION, message).into()
}
