//! Requests to the coordination store: one change of one key, perhaps on a condition.

use super::limits::{MAX_CONTENT_TYPE_BYTES, MAX_ID_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
use super::refusal::RequestRefusal;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The condition on the key under which a request is effective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// No condition.
    Anything,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The key exists and was last written by this revision.
    Revision(u64),
}

/// The change of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAction {
    /// Sets the value.
    Put {
        /// The value, at most [`MAX_VALUE_BYTES`].
        value: Bytes,
        /// Its media type.
        content_type: String,
    },
    /// Removes the key.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The key.
    pub key: String,
    /// The condition.
    pub expect: Expect,
    /// The change.
    pub action: WriteAction,
    /// The idempotency key. A repeated request has the same, and is effective once.
    pub id: Option<String>,
}

/// The result of an effective request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The revision that the request made.
    pub revision: u64,
    /// Whether the key did not exist before.
    pub created: bool,
}

/// Checks everything that does not depend on the store.
///
/// # Errors
/// [`RequestRefusal::KeyLength`], [`RequestRefusal::ValueTooLarge`] or [`RequestRefusal::BadText`].
pub fn check(request: &Request) -> Result<(), RequestRefusal> {
    check_key(&request.key)?;
    if let WriteAction::Put { value, content_type } = &request.action {
        if value.len() > MAX_VALUE_BYTES {
            return Err(RequestRefusal::ValueTooLarge(value.len()));
        }
        check_text("content type", content_type, MAX_CONTENT_TYPE_BYTES)?;
    }
    request.id.as_ref().map_or(Ok(()), |id| check_text("idempotency key", id, MAX_ID_BYTES))
}

/// Checks the length of a key.
///
/// # Errors
/// [`RequestRefusal::KeyLength`].
pub fn check_key(key: &str) -> Result<(), RequestRefusal> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) { Ok(()) } else { Err(RequestRefusal::KeyLength(key.len())) }
}

fn check_text(what: &str, text: &str, most: usize) -> Result<(), RequestRefusal> {
    // Both texts travel in HTTP headers, where only printable ASCII is safe.
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if (1..=most).contains(&text.len()) && printable {
        return Ok(());
    }
    Err(RequestRefusal::BadText(format!("a {what} has 1 to {most} printable ASCII characters")))
}
