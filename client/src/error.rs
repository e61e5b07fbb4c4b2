//! The errors of statements, distinguished by what must happen next.
//!
//! Every error carries a SQLSTATE, so that a PostgreSQL driver can process it. Only
//! [`ClientError::OutcomeUnknown`] leaves open whether the statement took effect (invariant 7).

use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;

/// Why a statement or transaction has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The statement failed and would fail again: report it to the user.
    #[error("{0}")]
    Sql(SqlError),
    /// Nothing happened, and the transaction has ended: run it again from its beginning (SQLSTATE
    /// class 40; 58K02 if it has to be planned again first).
    #[error("{0}")]
    Rerun(SqlError),
    /// Nothing happened, and the cluster could not be reached in time: try again later (08006,
    /// 57P03, 53300).
    #[error("{0}")]
    Unavailable(SqlError),
    /// The statement may have taken effect, and the outcome could not be found out in time (08007):
    /// read the rows before doing it again.
    #[error("{0}")]
    OutcomeUnknown(SqlError),
    /// An earlier write of the session, acknowledged at a durability below `disk`, was lost and has
    /// not happened (58K01): do it again if it still matters. The statement that reports the loss
    /// was not executed.
    #[error("{0}")]
    WriteLost(SqlError),
    /// The client's settings cannot be used; one line with the setting, its value and the accepted
    /// values.
    #[error("{0}")]
    Config(String),
}

impl ClientError {
    /// The error for a shard's answer that is an error, by its class.
    pub(crate) fn answered(error: SqlError) -> ClientError {
        match error.code.as_ref() {
            code if code.starts_with("40") => ClientError::Rerun(error),
            codes::SCHEMA_CHANGED => ClientError::Rerun(error),
            codes::OUTCOME_UNKNOWN => ClientError::OutcomeUnknown(error),
            codes::TOO_MANY | codes::CANNOT_CONNECT_NOW => ClientError::Unavailable(error),
            _ => ClientError::Sql(error),
        }
    }

    /// 40001: the transaction has ended without effect.
    pub(crate) fn rerun(message: impl Into<String>) -> ClientError {
        let error = SqlError::new(codes::SERIALIZATION_FAILURE, message);
        ClientError::Rerun(error.hint("Nothing of the transaction has taken effect. Run it again from its beginning."))
    }

    /// The SQLSTATE, five characters.
    pub fn code(&self) -> &str {
        self.sql().map_or("F0000", |error| &error.code)
    }

    /// The error as PostgreSQL reports errors; `None` for a wrong setting.
    pub fn sql(&self) -> Option<&SqlError> {
        match self {
            ClientError::Sql(e)
            | ClientError::Rerun(e)
            | ClientError::Unavailable(e)
            | ClientError::OutcomeUnknown(e)
            | ClientError::WriteLost(e) => Some(e),
            ClientError::Config(_) => None,
        }
    }

    /// Whether a repetition is safe, because nothing has happened, and may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ClientError::Rerun(_) | ClientError::Unavailable(_))
    }
}

impl From<SqlError> for ClientError {
    fn from(error: SqlError) -> ClientError {
        ClientError::answered(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_40_is_to_be_run_again_and_the_rest_is_the_users() {
        assert!(ClientError::answered(SqlError::new("40P01", "deadlock")).is_retryable());
        assert!(ClientError::answered(SqlError::new("53300", "full")).is_retryable());
        assert!(!ClientError::answered(SqlError::new("23505", "duplicate")).is_retryable());
        let unknown = ClientError::answered(SqlError::new("08007", "too old"));
        assert!(matches!(unknown, ClientError::OutcomeUnknown(_)) && !unknown.is_retryable());
        assert_eq!(ClientError::rerun("gone").code(), "40001");
        assert_eq!(ClientError::Config("x".into()).code(), "F0000");
    }
}
