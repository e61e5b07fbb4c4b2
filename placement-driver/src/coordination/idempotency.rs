//! The idempotency keys of recent effective requests, with their results, so that a repeated
//! request is answered instead of applied again.
//!
//! Only effective requests are remembered. A rejected request changed nothing, and its repetition
//! is a new attempt.

use super::limits::{MAX_IDS, REMEMBER_MS};
use super::refusal::RequestRefusal;
use super::request::{Expect, Request, WriteAction, Written};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SeenRequest {
    fingerprint: u64,
    written: Written,
    at_ms: u64,
}

/// The idempotency keys of recent effective requests, in the order of their arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentRequests {
    seen: BTreeMap<Arc<str>, SeenRequest>,
    order: VecDeque<Arc<str>>,
    /// The latest time seen, in milliseconds.
    now_ms: u64,
}

impl RecentRequests {
    /// Forgets the keys that are older than [`REMEMBER_MS`] at `at_ms`.
    pub(super) fn forget(&mut self, at_ms: u64) {
        self.now_ms = self.now_ms.max(at_ms);
        while let Some(oldest) = self.order.front() {
            if self.seen.get(oldest).is_some_and(|seen| seen.at_ms + REMEMBER_MS > self.now_ms) {
                break;
            }
            if let Some(id) = self.order.pop_front() {
                self.seen.remove(&id);
            }
        }
    }

    /// The result of the request with this idempotency key, if it was effective.
    ///
    /// # Errors
    /// [`RequestRefusal::IdReused`] if another request has used the key.
    pub(super) fn find(&self, id: &str, fingerprint: u64) -> Result<Option<Written>, RequestRefusal> {
        match self.seen.get(id) {
            Some(seen) if seen.fingerprint == fingerprint => Ok(Some(seen.written)),
            Some(_) => Err(RequestRefusal::IdReused),
            None => Ok(None),
        }
    }

    /// Whether no further key can be remembered.
    pub(super) fn is_full(&self) -> bool {
        self.order.len() >= MAX_IDS
    }

    /// Remembers an effective request.
    pub(super) fn remember(&mut self, id: String, fingerprint: u64, written: Written, at_ms: u64) {
        let id: Arc<str> = id.into();
        self.order.push_back(id.clone());
        // The later of the two times, so that keys are forgotten in the order of their arrival.
        let at_ms = self.now_ms.max(at_ms);
        self.seen.insert(id, SeenRequest { fingerprint, written, at_ms });
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.order.clear();
    }
}

/// A hash that tells apart two requests with the same idempotency key: FNV-1a over the parts of the
/// request. It detects mistakes, not malice.
pub(super) fn fingerprint(request: &Request) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        // The length comes first, so that adjacent parts cannot be confused.
        for byte in (bytes.len() as u64).to_be_bytes().iter().chain(bytes) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    add(request.key.as_bytes());
    match request.expect {
        Expect::Anything => add(b"anything"),
        Expect::Absent => add(b"absent"),
        Expect::Present => add(b"present"),
        Expect::Revision(revision) => add(&revision.to_be_bytes()),
    }
    match &request.action {
        WriteAction::Put { value, content_type } => {
            add(value);
            add(content_type.as_bytes());
        }
        WriteAction::Delete => add(b"delete"),
    }
    hash
}
