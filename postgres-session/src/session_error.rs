//! Why a session did not do what it was asked for.

use evenkeel_protocol::SqlError;

/// Why a session did not do what it was asked for. After all but [`SessionError::Refused`] it
/// cannot be used any more, and whether a COMMIT under way took place is unknown.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection failed.
    #[error("the connection with PostgreSQL failed: {0}")]
    Io(#[from] std::io::Error),
    /// The server has closed the connection.
    #[error("PostgreSQL has closed the session")]
    Closed,
    /// The server refused. If it is fatal ([`SessionError::is_fatal`]), the session has ended.
    #[error(transparent)]
    Refused(#[from] SqlError),
    /// What came is no message of PostgreSQL's protocol, or not one that can come here.
    #[error("PostgreSQL sent something that is not understood: {0}")]
    Malformed(&'static str),
    /// The server sent a message that is too long to be taken.
    #[error("PostgreSQL sent a message of {bytes} bytes; at most {limit} are possible")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The longest possible, in bytes.
        limit: usize,
    },
}

impl SessionError {
    /// Whether the session has ended with it.
    pub fn is_fatal(&self) -> bool {
        match self {
            SessionError::Refused(error) => {
                error.fields.as_ref().is_some_and(|fields| ["FATAL", "PANIC"].contains(&fields.severity.as_str()))
            }
            _ => true,
        }
    }
}
