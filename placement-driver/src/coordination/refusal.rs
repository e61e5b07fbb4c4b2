//! The reasons for which the coordination store rejects a request.

use super::limits::{MAX_IDS, MAX_KEY_BYTES, MAX_VALUE_BYTES, REMEMBER_MS};

/// The reason for which a request is rejected. The store is then unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefusal {
    /// The key is empty or too long.
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, this one has {0}")]
    KeyLength(usize),
    /// The value is too large.
    #[error("a value has at most {MAX_VALUE_BYTES} bytes, this one has {0}")]
    ValueTooLarge(usize),
    /// The content type, or the request's id, is too long or not printable ASCII.
    #[error("{0}")]
    BadText(String),
    /// The key does not meet the request's condition.
    #[error("{}", mismatch(.0))]
    Mismatch(
        /// The revision that last wrote the key; `None` if it does not exist.
        Option<u64>,
    ),
    /// The key to delete does not exist.
    #[error("the key does not exist")]
    Absent,
    /// The store would exceed a limit.
    #[error("{0}")]
    Full(String),
    /// Another request has used this idempotency key.
    #[error("this idempotency key came before with another request")]
    IdReused,
    /// Retry later: too many idempotency keys are remembered.
    #[error("{MAX_IDS} idempotency keys have to be remembered already; each is for {} s", REMEMBER_MS / 1000)]
    TooManyIds,
}

fn mismatch(found: &Option<u64>) -> String {
    match found {
        Some(revision) => format!("the key was last written by revision {revision}"),
        None => "the key does not exist".to_string(),
    }
}
