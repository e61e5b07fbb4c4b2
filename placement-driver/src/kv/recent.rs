//! The ids of requests that took effect lately, and what they did, so that a repetition is answered instead of applied again.
//!
//! Only requests that took effect are remembered: one that was refused changed nothing, and repeating it is a new attempt.

use super::{Action, Expect, Refusal, Request, Written};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How long an id is remembered at least, in milliseconds. Between two leaderships the state machine's time stands still.
pub const REMEMBER_MS: u64 = 60_000;
/// The most ids remembered. Above it requests with an id are refused, since forgetting one early could apply it twice.
pub const MAX_IDS: usize = 16_384;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    fingerprint: u64,
    written: Written,
    at_ms: u64,
}

/// The ids, and in which order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    seen: BTreeMap<Arc<str>, Seen>,
    order: VecDeque<Arc<str>>,
    /// The latest time seen.
    now_ms: u64,
}

impl Recent {
    /// Forgets what is too old at `at_ms`.
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

    /// What the request with this id did, if it took effect.
    ///
    /// # Errors
    /// [`Refusal::IdReused`] if it was another request.
    pub(super) fn find(&self, id: &str, fingerprint: u64) -> Result<Option<Written>, Refusal> {
        match self.seen.get(id) {
            Some(seen) if seen.fingerprint == fingerprint => Ok(Some(seen.written)),
            Some(_) => Err(Refusal::IdReused),
            None => Ok(None),
        }
    }

    /// Whether no further id can be remembered.
    pub(super) fn is_full(&self) -> bool {
        self.order.len() >= MAX_IDS
    }

    /// Remembers a request that took effect.
    pub(super) fn remember(&mut self, id: String, fingerprint: u64, written: Written, at_ms: u64) {
        let id: Arc<str> = id.into();
        self.order.push_back(id.clone());
        // The later of the two clocks, so that ids leave in the order in which they came.
        let at_ms = self.now_ms.max(at_ms);
        self.seen.insert(id, Seen { fingerprint, written, at_ms });
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.order.clear();
    }
}

/// What tells one request from another under the same id: FNV-1a over its parts. Against mistakes, not against malice.
pub(super) fn fingerprint(request: &Request) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        // The length first, so that parts cannot run into one another.
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
        Action::Put { value, content_type } => {
            add(value);
            add(content_type.as_bytes());
        }
        Action::Delete => add(b"delete"),
    }
    hash
}
