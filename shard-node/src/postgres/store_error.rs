//! Failures of a session with PostgreSQL, by the reaction that they require.

use super::damage::is_damage;
use evenkeel_postgres_session::SessionError;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::{ErrorFields, codes};
use std::error::Error;
use tokio_postgres::error::{DbError, ErrorPosition, Severity};

/// A failure of a session with PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The session is gone, and with it what it had open; whether a COMMIT under way took place is
    /// unknown. R1: the leadership ends. Why is in the log.
    #[error("the session with PostgreSQL is lost")]
    SessionLost,
    /// PostgreSQL refused the statement, or a parameter does not fit. The session lives; its
    /// transaction, if it has one, has failed. For a user's statement this is the answer; an apply
    /// can be tried again.
    #[error(transparent)]
    Refused(SqlError),
    /// PostgreSQL finds its own data damaged: it has to be made again from a peer's.
    #[error("PostgreSQL's data is damaged: {0}")]
    Damaged(String),
    /// A decided entry cannot be applied, or PostgreSQL holds something that the replica did not
    /// write (invariants 3 and 5). Applying further entries would make the replica differ: it must
    /// stop.
    #[error("the replica would diverge: {0}")]
    Diverged(String),
}

impl StoreError {
    /// The same error, of a statement that applies a decided entry: if another attempt would fail
    /// too, the replica has diverged (invariant 5).
    pub(crate) fn while_applying(self) -> StoreError {
        match self {
            StoreError::Refused(error) if is_damage(&error.code) => StoreError::Damaged(error.to_string()),
            StoreError::Refused(error) if !passes(&error.code) => StoreError::Diverged(error.to_string()),
            other => other,
        }
    }

    /// Whether the same may go well another time.
    pub(crate) fn passes(&self) -> bool {
        match self {
            StoreError::Refused(error) => passes(&error.code),
            StoreError::SessionLost => true,
            StoreError::Damaged(_) | StoreError::Diverged(_) => false,
        }
    }
}

/// Whether an error comes from the moment and not from the data: the transaction was the victim of
/// another (class 40), resources were short (53), a lock was not to be had (55), somebody
/// intervened (57), the system failed (58).
fn passes(code: &str) -> bool {
    ["40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> StoreError {
        if let Some(db) = error.as_db_error() {
            // FATAL and PANIC end the session; the message says why.
            if matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
                && !before_session(db.code().code())
            {
                tracing::warn!(code = db.code().code(), message = db.message(), "PostgreSQL has ended a session");
                return StoreError::SessionLost;
            }
            let code = if is_denied_file(db) { IO_ERROR } else { db.code().code() };
            return StoreError::Refused(SqlError {
                code: code.to_string().into(),
                message: db.message().to_string(),
                detail: db.detail().map(str::to_string),
                hint: db.hint().map(str::to_string),
                fields: Some(Box::new(fields(db))),
            });
        }
        // A parameter that our own `ToSql` refused (see `bind`): nothing was sent.
        if let Some(ours) = error.source().and_then(|source| source.downcast_ref::<SqlError>()) {
            return StoreError::Refused(ours.clone());
        }
        // The driver's own refusals, of parameters and of columns, are mistakes in this program and
        // leave the session as it was. All else means that what comes from the server makes no
        // sense any more. (The driver tells them apart by their text only.)
        let text = error.to_string();
        if ["error serializing parameter", "error deserializing column", "expected "]
            .iter()
            .any(|t| text.starts_with(t))
        {
            return StoreError::Refused(SqlError::new(codes::INTERNAL, text));
        }
        tracing::warn!(%error, source = error.source().map(tracing::field::display), "a session with PostgreSQL is lost");
        StoreError::SessionLost
    }
}

impl From<SessionError> for StoreError {
    fn from(error: SessionError) -> StoreError {
        let fatal = error.is_fatal();
        match error {
            SessionError::Refused(error) if !fatal || before_session(&error.code) => refused(error),
            other => {
                tracing::warn!(error = %other, "a session with PostgreSQL is lost");
                StoreError::SessionLost
            }
        }
    }
}

/// What PostgreSQL says of a raw session's statement.
fn refused(error: SqlError) -> StoreError {
    match is_denied(&error.code, &error.message) {
        true => StoreError::Refused(SqlError { code: IO_ERROR.into(), ..error }),
        false => StoreError::Refused(error),
    }
}

/// The fields of an error that tell a client where it is and what it is about.
fn fields(db: &DbError) -> ErrorFields {
    let (mut position, mut internal_position, mut internal_query) = (None, None, None);
    match db.position() {
        Some(ErrorPosition::Original(place)) => position = Some(*place),
        Some(ErrorPosition::Internal { position, query }) => {
            (internal_position, internal_query) = (Some(*position), Some(query.clone()));
        }
        None => {}
    }
    ErrorFields {
        severity: db.severity().to_string(),
        position,
        internal_position,
        internal_query,
        context: db.where_().map(str::to_string),
        schema: db.schema().map(str::to_string),
        table: db.table().map(str::to_string),
        column: db.column().map(str::to_string),
        data_type: db.datatype().map(str::to_string),
        constraint: db.constraint().map(str::to_string),
    }
}

/// PostgreSQL's code for a file that it cannot work with.
const IO_ERROR: &str = "58030";

/// 42501 is said of privileges that a user lacks, and also of a file that the server itself may not
/// open: that is a failure of the system, and none of the statement.
fn is_denied_file(error: &DbError) -> bool {
    is_denied(error.code().code(), error.message())
}

fn is_denied(code: &str, message: &str) -> bool {
    code == "42501" && message.starts_with("could not ")
}

/// FATAL errors with which the server declines to open a session: it lives, it just takes no more.
fn before_session(code: &str) -> bool {
    code == codes::TOO_MANY
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Invariant 5: an error that the data causes stops the replica; one of the moment does not.
    #[test]
    fn only_errors_of_the_moment_may_be_tried_again() {
        let refused = |code| StoreError::Refused(SqlError::new(code, "x"));
        for code in ["23505", "42P01", "22003", "XX000"] {
            assert!(matches!(refused(code).while_applying(), StoreError::Diverged(_)), "{code}");
        }
        for code in ["40P01", "53100", "55P03", "57014"] {
            assert_eq!(refused(code).while_applying(), refused(code));
        }
        for code in ["XX001", "XX002", "58P01"] {
            assert!(matches!(refused(code).while_applying(), StoreError::Damaged(_)), "{code}");
        }
        assert_eq!(StoreError::SessionLost.while_applying(), StoreError::SessionLost);
    }
}
