//! Why a statement ended without a result.

use evenkeel_client::ClientError;
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;

/// See the module.
#[derive(Debug)]
pub enum Trouble {
    /// The statement failed. The transaction has failed, and goes on at a savepoint.
    Sql(SqlError),
    /// The transaction has ended at its shard, and with it the savepoints.
    Ended(SqlError),
    /// The client is gone: nobody waits for an answer.
    Gone,
}

impl Trouble {
    /// The same with another SQLSTATE, if it has this one.
    pub fn instead_of(self, code: &str, other: &'static str) -> Trouble {
        match self {
            Trouble::Ended(error) if error.code == code => Trouble::Ended(SqlError { code: other.into(), ..error }),
            trouble => trouble,
        }
    }
}

impl From<SqlError> for Trouble {
    fn from(error: SqlError) -> Trouble {
        Trouble::Sql(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(_: std::io::Error) -> Trouble {
        Trouble::Gone
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        match error {
            ClientError::Sql(error) => Trouble::Sql(error),
            ClientError::Rerun(error)
            | ClientError::Unavailable(error)
            | ClientError::OutcomeUnknown(error)
            | ClientError::WriteLost(error) => Trouble::Ended(error),
            ClientError::Config(message) => Trouble::Ended(SqlError::new(codes::INTERNAL, message)),
        }
    }
}
