//! The latest changes of the coordination store, for watchers that were away for a while.
//!
//! The history is part of the replicated state, so that a watcher may continue at any replica and
//! after any restart. It promises each change once and in order, or an error ([`Compacted`]) if a
//! change that the watcher has not seen is no longer remembered. It never answers in part.

use super::entry::StoredValue;
use super::limits::{ENTRY_OVERHEAD_BYTES, MAX_EVENTS, MAX_HISTORY_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its revision.
    pub revision: u64,
    /// The key.
    pub key: Arc<str>,
    /// The entry after the change; `None` if the key was deleted.
    pub entry: Option<Arc<StoredValue>>,
}

impl Event {
    fn cost(&self) -> u64 {
        let entry = self.entry.as_ref().map_or(0, |entry| entry.value.len() + entry.content_type.len());
        (self.key.len() + entry) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Some changes after the requested revision are no longer remembered. The watcher must read the
/// keys again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes are remembered after revision {oldest} only")]
pub struct Compacted {
    /// All changes after this revision are remembered.
    pub oldest: u64,
}

/// The changes that a watcher receives at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The changes of keys with the watcher's prefix, in order.
    pub events: Vec<Event>,
    /// The watcher has now seen all changes up to this revision.
    pub seen: u64,
}

/// The latest changes, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    events: VecDeque<Event>,
    bytes: u64,
    oldest: u64,
}

impl History {
    /// Adds the next change, and drops old changes until the limits hold.
    pub(super) fn push(&mut self, event: Event) {
        debug_assert!(self.events.back().is_none_or(|last| last.revision < event.revision));
        self.bytes += event.cost();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_HISTORY_BYTES {
            let Some(gone) = self.events.pop_front() else { break };
            self.bytes -= gone.cost();
            self.oldest = gone.revision;
        }
    }

    /// Drops all changes up to `revision`, the store's present revision.
    pub(super) fn clear(&mut self, revision: u64) {
        *self = History { oldest: revision, ..History::default() };
    }

    /// All changes after this revision are remembered.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Up to `most` changes of keys that begin with `prefix`, after the revision `since`. `present`
    /// is the store's revision.
    ///
    /// # Errors
    /// [`Compacted`] if some of them are no longer remembered.
    pub fn since(&self, since: u64, prefix: &str, most: usize, present: u64) -> Result<Batch, Compacted> {
        if since < self.oldest {
            return Err(Compacted { oldest: self.oldest });
        }
        let first = self.events.partition_point(|event| event.revision <= since);
        let mut events = Vec::new();
        for event in self.events.iter().skip(first) {
            if event.key.starts_with(prefix) {
                events.push(event.clone());
                if events.len() >= most {
                    return Ok(Batch { events, seen: event.revision });
                }
            }
        }
        // A revision above the present one comes from a replica that was ahead. This replica
        // will reach it.
        Ok(Batch { events, seen: since.max(present) })
    }
}
