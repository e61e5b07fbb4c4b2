//! The entry of a key in the coordination store.

use super::limits::ENTRY_OVERHEAD_BYTES;
use bytes::Bytes;
use evenkeel_protocol::coordination::{KvEntryBody, KvValue};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The value of a key, with its revisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredValue {
    /// The value.
    pub value: Bytes,
    /// The media type, as the writer stated it.
    pub content_type: Arc<str>,
    /// The revision that created the key.
    pub created: u64,
    /// The revision that wrote this value.
    pub modified: u64,
    /// The number of writes of the key since its creation, from 1.
    pub version: u64,
}

impl StoredValue {
    /// The entry as REST lists it, with or without its value.
    pub fn body(&self, key: &str, with_value: bool) -> KvEntryBody {
        KvEntryBody {
            key: key.to_string(),
            content_type: self.content_type.to_string(),
            created: self.created,
            modified: self.modified,
            version: self.version,
            bytes: self.value.len(),
            value: if with_value { KvValue::new(&self.value) } else { KvValue::default() },
        }
    }

    /// The size of the entry under `key`, with its overhead, in bytes.
    pub(super) fn cost(&self, key: &str) -> u64 {
        (key.len() + self.value.len() + self.content_type.len()) as u64 + ENTRY_OVERHEAD_BYTES
    }
}
