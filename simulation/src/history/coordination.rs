//! Operations on the coordination store as their users saw them.

use evenkeel_placement_driver::coordination::{Expect, Written};
use evenkeel_placement_driver::replica::ReplicaHandles;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// The end of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It took effect.
    Done(Written),
    /// It did not: the key was last written by this revision, or not there.
    Refused(Option<u64>),
    /// The outcome is unknown.
    Unknown,
}

/// A write as its user saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: &'static str,
    /// On which condition.
    pub expect: Expect,
    /// The value, different for each write; `None` if it was deleted.
    pub value: Option<String>,
    /// When it was first sent, in milliseconds.
    pub sent_ms: u64,
    /// When its end was known.
    pub answered_ms: u64,
    /// Its end.
    pub end: End,
}

/// Keys with what they held: the revision that wrote it, and the value.
pub type KeysFound = BTreeMap<String, (u64, String)>;

/// A read as its user saw it: of the keys that begin with `prefix`, come after `after` and not
/// after `upto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// How they begin.
    pub prefix: String,
    /// The last one before.
    pub after: Option<String>,
    /// The last one.
    pub upto: Option<String>,
    /// The revision that the user had seen and asked for; `None` for a linearizable read.
    pub least: Option<u64>,
    /// Which process of a placement driver answered.
    pub process: usize,
    /// When it was sent, in milliseconds.
    pub sent_ms: u64,
    /// When it was answered.
    pub answered_ms: u64,
    /// The store's revision.
    pub revision: u64,
    /// What was there.
    pub found: KeysFound,
}

/// A watch as its user saw it, over as many placement drivers as it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// How the keys begin.
    pub prefix: String,
    /// It began after this revision.
    pub since: u64,
    /// All changes up to this revision have arrived.
    pub seen: u64,
    /// The changes that arrived: revision, key and value.
    pub changes: Vec<(u64, String, Option<String>)>,
}

/// Operations on the coordination store as their users saw them.
#[derive(Debug, Default)]
pub struct CoordinationHistory {
    /// Their writes.
    pub writes: Vec<Write>,
    /// Their reads.
    pub reads: Vec<Read>,
    /// Their watches.
    pub watches: Vec<Watch>,
    /// The processes that answered, by number. Kept by weak references, so that no two have the
    /// same address.
    processes: Vec<Weak<ReplicaHandles>>,
}

impl CoordinationHistory {
    /// The number of a process, the same for each call.
    pub fn process(&mut self, shared: &Arc<ReplicaHandles>) -> usize {
        let found = self.processes.iter().position(|known| known.as_ptr() == Arc::as_ptr(shared));
        found.unwrap_or_else(|| {
            self.processes.push(Arc::downgrade(shared));
            self.processes.len() - 1
        })
    }
}
