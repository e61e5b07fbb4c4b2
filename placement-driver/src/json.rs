//! JSON of this crate's own values.

use bytes::Bytes;

/// The JSON of a value. Types of this project always have one; any other value becomes `null`.
pub fn to_json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec()).into()
}
