//! REST types and limits of the coordination store (`/v1/kv`), shared by the server and the command
//! line.
//!
//! Over `GET` and `PUT /v1/kv/{key}` a value travels as it is. In lists and events it is in JSON:
//! as text if it is UTF-8, otherwise in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// The longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 512;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// The longest content type, in bytes.
pub const MAX_CONTENT_TYPE_BYTES: usize = 128;
/// The longest idempotency key, in bytes.
pub const MAX_ID_BYTES: usize = 64;
/// The most keys.
pub const MAX_KEYS: usize = 16_384;
/// The most bytes of keys, values and content types, each entry with a small overhead.
pub const MAX_STORE_BYTES: u64 = 8 << 20;
/// The most entries in one answer to a listing.
pub const MAX_LIST: usize = 1000;

/// The header that carries the revision of the store as an answer saw it.
pub const REVISION_HEADER: &str = "evenkeel-revision";
/// The header by which a repeated request is recognised.
pub const ID_HEADER: &str = "idempotency-key";

/// A value in JSON: one of the two fields, or none if values were not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvValue {
    /// The value, if it is UTF-8.
    #[serde(rename = "value", default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The value in base64, if it is not UTF-8.
    #[serde(rename = "value_base64", default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

impl KvValue {
    /// The form of these bytes.
    pub fn new(bytes: &[u8]) -> KvValue {
        match std::str::from_utf8(bytes) {
            Ok(text) => KvValue { text: Some(text.to_string()), base64: None },
            Err(_) => KvValue { text: None, base64: Some(BASE64.encode(bytes)) },
        }
    }

    /// The bytes; `None` if there are none, or they are not base64.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match (&self.text, &self.base64) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(base64)) => BASE64.decode(base64).ok(),
            (None, None) => None,
        }
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEntryBody {
    /// The key.
    pub key: String,
    /// Its value.
    #[serde(flatten)]
    pub value: KvValue,
    /// The value's media type.
    pub content_type: String,
    /// The value's length in bytes.
    pub bytes: usize,
    /// The revision that created the key.
    pub created: u64,
    /// The revision that wrote this value: its `ETag`.
    pub modified: u64,
    /// How often the key has been written since it was created, from 1.
    pub version: u64,
}

/// `GET /v1/kv?prefix=`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvListBody {
    /// The store's revision that this page shows. Pages of one listing may show different ones.
    pub revision: u64,
    /// The entries, in bytewise order of their keys.
    pub entries: Vec<KvEntryBody>,
    /// Give this as `after` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The answer to a `PUT` or `DELETE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvWrittenBody {
    /// The revision it made.
    pub revision: u64,
    /// Whether the key did not exist before.
    pub created: bool,
}

/// The data of a `put` or `delete` event of `GET /v1/watch/kv`; the event's id is the revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEventBody {
    /// The change's revision.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// The new entry; absent if the key was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<KvEntryBody>,
}

/// The data of the events of `GET /v1/watch/kv` that are no changes: `begin`, `progress` and
/// `compacted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvMarkBody {
    /// The revision up to which the watcher has seen everything; for `compacted` the oldest
    /// revision that a watch can start from.
    pub revision: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_come_back_whether_or_not_they_are_text() {
        for bytes in [&b""[..], b"text \xE2\x82\xAC", &[0xFF, 0x00, 0x80]] {
            let value = KvValue::new(bytes);
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<KvValue>(&json).unwrap().bytes().unwrap(), bytes, "{json}");
        }
        assert_eq!(KvValue::default().bytes(), None);
    }
}
