//! Errors, by the client's next action.
//!
//! A [`SqlError`] is an answer and goes to the user as it is. A [`Failure`] says that a shard did
//! not answer: the client asks another shard or replica, waits and retries, or resolves the
//! outcome. The client turns failures into retries, and into a `SqlError` when it gives up.

use crate::ids::{Epoch, RangeId, ShardId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// An error as PostgreSQL reports errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct SqlError {
    /// The SQLSTATE, five characters.
    pub code: Cow<'static, str>,
    /// One sentence.
    pub message: String,
    /// Details.
    pub detail: Option<String>,
    /// A hint what the user can do.
    pub hint: Option<String>,
    /// Further fields of PostgreSQL's own error.
    pub fields: Option<Box<ErrorFields>>,
}

/// The further fields of an error by PostgreSQL, by their names in its protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFields {
    /// The severity (`ERROR`, `FATAL`).
    pub severity: String,
    /// The place in the statement's text, in characters from 1.
    pub position: Option<u32>,
    /// The place in `internal_query`, in characters from 1.
    pub internal_position: Option<u32>,
    /// The text of an internal statement that failed.
    pub internal_query: Option<String>,
    /// The context, such as a stack of calls.
    pub context: Option<String>,
    /// The schema of the object it is about.
    pub schema: Option<String>,
    /// The table it is about.
    pub table: Option<String>,
    /// The column it is about.
    pub column: Option<String>,
    /// The data type it is about.
    pub data_type: Option<String>,
    /// The constraint it is about.
    pub constraint: Option<String>,
}

impl SqlError {
    /// An error with `code` (five characters) and `message`.
    pub fn new(code: &'static str, message: impl Into<String>) -> SqlError {
        SqlError { code: Cow::Borrowed(code), message: message.into(), detail: None, hint: None, fields: None }
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> SqlError {
        self.hint = Some(hint.into());
        self
    }

    /// The message followed by the code, for places that carry errors as text.
    pub fn to_sentence(&self) -> String {
        format!("{} (SQLSTATE {})", self.message, self.code)
    }

    /// The error in a text made by [`SqlError::to_sentence`]; other text may precede it.
    pub fn from_sentence(text: &str) -> Option<SqlError> {
        let (message, code) = text.strip_suffix(')')?.rsplit_once(" (SQLSTATE ")?;
        let is_code = code.len() == 5 && code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
        let message = message.to_string();
        is_code.then(|| SqlError { code: code.to_string().into(), message, detail: None, hint: None, fields: None })
    }

    /// 0A000: an unsupported feature, and an alternative.
    pub fn unsupported(message: impl Into<String>, instead: impl Into<String>) -> SqlError {
        SqlError::new(codes::FEATURE_NOT_SUPPORTED, message).hint(instead)
    }
}

/// The SQLSTATEs that Evenkeel itself gives.
pub mod codes {
    /// Division by zero.
    pub const DIVISION_BY_ZERO: &str = "22012";
    /// Not supported here.
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// Retry the transaction.
    pub const SERIALIZATION_FAILURE: &str = "40001";
    /// The connection failed; the outcome of what was under way is unknown.
    pub const CONNECTION_FAILURE: &str = "08006";
    /// The outcome of a commit is unknown.
    pub const OUTCOME_UNKNOWN: &str = "08007";
    /// The server ends the session.
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// The server cannot take it now.
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// It was cancelled, or took longer than it may.
    pub const QUERY_CANCELED: &str = "57014";
    /// Too much is under way.
    pub const TOO_MANY: &str = "53300";
    /// A configured limit is reached.
    pub const LIMIT_EXCEEDED: &str = "53400";
    /// Too large or too complex.
    pub const PROGRAM_LIMIT: &str = "54000";
    /// A setting's value is not accepted.
    pub const INVALID_PARAMETER: &str = "22023";
    /// No such setting.
    pub const UNDEFINED_SETTING: &str = "42704";
    /// A write in a read-only transaction or at a read-only replica.
    pub const READ_ONLY: &str = "25006";
    /// No replica can prove that its state is as fresh as was asked for.
    pub const TOO_STALE: &str = "72000";
    /// A write answered at a durability below `disk` has been lost, and has not happened.
    pub const WRITE_LOST: &str = "58K01";
    /// The statement was planned with an older version of the schema: it has to be planned again.
    /// Gateways do that; no user sees it.
    pub const SCHEMA_CHANGED: &str = "58K02";
    /// The SQL does not parse.
    pub const SYNTAX_ERROR: &str = "42601";
    /// No such table.
    pub const UNDEFINED_TABLE: &str = "42P01";
    /// The table exists already.
    pub const DUPLICATE_TABLE: &str = "42P07";
    /// No such column.
    pub const UNDEFINED_COLUMN: &str = "42703";
    /// The table's definition is not possible.
    pub const INVALID_TABLE: &str = "42P16";
    /// A value of the wrong type.
    pub const DATATYPE_MISMATCH: &str = "42804";
    /// A value in the wrong form.
    pub const INVALID_TEXT: &str = "22P02";
    /// A number out of its type's range.
    pub const OUT_OF_RANGE: &str = "22003";
    /// A null where none may be.
    pub const NOT_NULL: &str = "23502";
    /// A parameter that the statement has and the client did not give.
    pub const UNDEFINED_PARAMETER: &str = "42P02";
    /// The transaction has failed; only ROLLBACK is possible.
    pub const IN_FAILED_TRANSACTION: &str = "25P02";
    /// No such transaction.
    pub const NO_TRANSACTION: &str = "25P01";
    /// An internal error.
    pub const INTERNAL: &str = "XX000";
}

/// Why a shard's replica did not answer, by the client's next action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The statement failed and would fail again; the error is the answer.
    #[error("{0}")]
    Sql(SqlError),
    /// Nothing happened: ask this shard's leader.
    #[error("not the leader of this shard (leader: {leader:?})")]
    NotLeader {
        /// The leader's replica number, if known.
        leader: Option<u64>,
    },
    /// Nothing happened: the keys are on another shard.
    #[error("the range is not here (now on shard {to:?})")]
    Moved {
        /// Where the range went, if this shard handed it over.
        to: Option<ShardId>,
        /// The range that went, and its epoch there.
        range: Option<(RangeId, Epoch)>,
    },
    /// Nothing happened: this replica cannot prove that its state is as fresh as a `local` read
    /// asks for; another one may.
    #[error("the replica's state may be {} old, at most {} is asked for", milliseconds(*staleness_ms), milliseconds(*bound_ms))]
    TooStale {
        /// How old it can be, in milliseconds; `None` if that cannot be said.
        staleness_ms: Option<u64>,
        /// How old it may be, in milliseconds; `None` if anything that can be said is accepted.
        bound_ms: Option<u64>,
    },
    /// Nothing happened: the replica cannot take it now; try again after about this long.
    #[error("cannot take it now: {reason}")]
    Busy {
        /// Why, for logs.
        reason: String,
        /// When to come back, in milliseconds.
        retry_after_ms: u32,
    },
    /// It may have happened: send it again with the same id.
    #[error("the outcome is unknown: {reason}")]
    OutcomeUnknown {
        /// Why, for logs.
        reason: String,
    },
    /// Nothing happened: the shard is overloaded; retry after about this long, or return 53300 to
    /// the user.
    #[error("the shard is overloaded")]
    Overloaded {
        /// When to come back, in milliseconds.
        retry_after_ms: u32,
    },
    /// Nothing happened: the statement was planned with an earlier version of the schema than the
    /// shard has. Plan it again (R34).
    #[error("the schema has version {version} by now")]
    SchemaChanged {
        /// The shard's version of the schema.
        version: u64,
    },
}

fn milliseconds(ms: Option<u64>) -> String {
    ms.map_or_else(|| "any time".to_string(), |ms| format!("{ms} ms"))
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Failure {
        Failure::Sql(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_again_in_a_sentence() {
        let error = SqlError::new(codes::INVALID_PARAMETER, "NUMERIC precision 2000 (too large)");
        let told = format!("shard 1: {}", error.to_sentence());
        let message = "shard 1: NUMERIC precision 2000 (too large)";
        assert_eq!(SqlError::from_sentence(&told), Some(SqlError::new(codes::INVALID_PARAMETER, message)));
        for other in
            ["", "no code", "(SQLSTATE 22023", "x (SQLSTATE 2202)", "x (SQLSTATE 2202é)", "x (SQLSTATE 22023) y"]
        {
            assert_eq!(SqlError::from_sentence(other), None, "{other}");
        }
    }
}
