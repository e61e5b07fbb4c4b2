//! The latest changes of the coordination store, so that a watcher that was away for a while misses none and gets none twice.
//!
//! It is part of the replicated state: a watcher may go on at any replica, after any restart. It never answers in part: who is too
//! far behind is told so.

use super::{ENTRY_OVERHEAD_BYTES, Entry};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// The most changes remembered.
pub const MAX_EVENTS: usize = 4096;
/// The most bytes of keys and values remembered.
pub const MAX_HISTORY_BYTES: u64 = 2 << 20;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its revision.
    pub revision: u64,
    /// The key.
    pub key: Arc<str>,
    /// What it holds since; `None` if it was deleted.
    pub entry: Option<Arc<Entry>>,
}

impl Event {
    fn cost(&self) -> u64 {
        let entry = self.entry.as_ref().map_or(0, |entry| entry.value.len() + entry.content_type.len());
        (self.key.len() + entry) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// The changes after the revision asked for are no longer all there. Whoever watches has to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes are remembered after revision {oldest} only")]
pub struct Compacted {
    /// Changes after this revision are remembered.
    pub oldest: u64,
}

/// What a watcher gets at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The changes of keys with its prefix, in order.
    pub events: Vec<Event>,
    /// It has now seen everything up to here.
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
    /// Adds the next change, and forgets as many old ones as the limits want.
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

    /// Forgets everything up to `revision`, the present one.
    pub(super) fn clear(&mut self, revision: u64) {
        *self = History { oldest: revision, ..History::default() };
    }

    /// Changes after this revision are remembered.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// At most `most` changes of keys that begin with `prefix`, after the revision `since`; `present` is the store's revision.
    ///
    /// # Errors
    /// [`Compacted`] if not all of them are remembered.
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
        // A revision from the future is another replica's, which was ahead: it will be reached.
        Ok(Batch { events, seen: since.max(present) })
    }
}
