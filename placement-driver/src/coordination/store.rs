//! The state machine of the coordination store.

use super::entry::StoredValue;
use super::history::{Event, History};
use super::idempotency::{RecentRequests, fingerprint};
use super::limits::{MAX_KEYS, MAX_STORE_BYTES, REVISIONS_PER_INCARNATION};
use super::refusal::RequestRefusal;
use super::request::{Expect, Request, WriteAction, Written, check};
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The store. A clone is cheap for its size: it shares keys and values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinationStore {
    revision: u64,
    entries: BTreeMap<Arc<str>, Arc<StoredValue>>,
    bytes: u64,
    history: History,
    recent: RecentRequests,
}

impl CoordinationStore {
    /// The revision of the last change; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the store has no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The size of all entries, each with its
    /// [`ENTRY_OVERHEAD_BYTES`](super::limits::ENTRY_OVERHEAD_BYTES).
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The latest changes.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<StoredValue>> {
        self.entries.get(key)
    }

    /// The keys that begin with `prefix` and follow `after`, in bytewise order.
    pub fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<StoredValue>)> + 'a {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.entries.range::<str, _>((from, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Applies a request at `at_ms`, in milliseconds of the state machine's time
    /// (`Proposal::since_ms`).
    ///
    /// # Errors
    /// [`RequestRefusal`]; the store is then unchanged.
    pub fn apply(&mut self, request: Request, at_ms: u64) -> Result<Written, RequestRefusal> {
        check(&request)?;
        self.recent.forget(at_ms);
        let print = request.id.as_ref().map(|_| fingerprint(&request));
        if let (Some(id), Some(print)) = (&request.id, print) {
            if let Some(written) = self.recent.find(id, print)?.filter(|_| !deliberate(Bug::KvForgetsIds)) {
                return Ok(written);
            }
            if self.recent.is_full() {
                return Err(RequestRefusal::TooManyIds);
            }
        }
        self.expected(&request)?;
        let found = self.entries.get(request.key.as_str()).cloned();
        let written = match request.action {
            WriteAction::Put { value, content_type } => {
                self.put(&request.key, value, &content_type, found.as_deref())?
            }
            WriteAction::Delete => self.delete(&request.key)?,
        };
        if let (Some(id), Some(print)) = (request.id, print) {
            self.recent.remember(id, print, written, at_ms);
        }
        Ok(written)
    }

    /// Checks the request's condition against the present entry of its key.
    ///
    /// # Errors
    /// [`RequestRefusal::Mismatch`].
    pub fn expected(&self, request: &Request) -> Result<(), RequestRefusal> {
        let modified = self.entries.get(request.key.as_str()).map(|entry| entry.modified);
        let holds = match request.expect {
            Expect::Anything => true,
            Expect::Absent => modified.is_none(),
            Expect::Present => modified.is_some(),
            Expect::Revision(revision) => modified == Some(revision),
        };
        if holds { Ok(()) } else { Err(RequestRefusal::Mismatch(modified)) }
    }

    fn put(
        &mut self,
        key: &str,
        value: Bytes,
        content_type: &str,
        old: Option<&StoredValue>,
    ) -> Result<Written, RequestRefusal> {
        if old.is_none() && self.entries.len() >= MAX_KEYS {
            return Err(RequestRefusal::Full(format!("there are {MAX_KEYS} keys already")));
        }
        let freed = old.map_or(0, |old| old.cost(key));
        let revision = self.revision + 1;
        let entry = Arc::new(StoredValue {
            value,
            content_type: content_type.into(),
            created: old.map_or(revision, |old| old.created),
            modified: revision,
            version: old.map_or(0, |old| old.version) + 1,
        });
        let bytes = self.bytes - freed + entry.cost(key);
        // A change that makes the store smaller is possible even when it is full.
        if bytes > MAX_STORE_BYTES && bytes > self.bytes {
            return Err(RequestRefusal::Full(format!(
                "the store would have {bytes} bytes, at most {MAX_STORE_BYTES} fit"
            )));
        }
        let key: Arc<str> = key.into();
        self.revision = revision;
        self.bytes = bytes;
        self.entries.insert(key.clone(), entry.clone());
        self.history.push(Event { revision, key, entry: Some(entry) });
        Ok(Written { revision, created: old.is_none() })
    }

    fn delete(&mut self, key: &str) -> Result<Written, RequestRefusal> {
        let (key, old) = self.entries.remove_entry(key).ok_or(RequestRefusal::Absent)?;
        self.bytes -= old.cost(&key);
        self.revision += 1;
        self.history.push(Event { revision: self.revision, key, entry: None });
        Ok(Written { revision: self.revision, created: false })
    }

    /// Begins the incarnation of a state that comes from a backup, `steps` incarnations ago (R30).
    /// Changes after the backup are lost. Their revisions must not be used again, and watchers must
    /// not skip changes that come now.
    pub fn begin_incarnation(&mut self, steps: u64) {
        self.revision = self.revision.saturating_add(steps.saturating_mul(REVISIONS_PER_INCARNATION));
        self.history.clear(self.revision);
        self.recent.clear();
    }
}
