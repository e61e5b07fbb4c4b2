//! The coordination store: a small key-value space for the applications beside the SQL store, replicated with the placement
//! driver's state.
//!
//! It is pure: [`Store::apply`] is a deterministic function of the store, a [`Request`] and the time of its proposal, so that
//! every replica holds the same entries, revisions and history. It promises:
//! - each change that takes effect has a **revision** of its own, one above the last; nothing else moves it, except a restoration
//!   from a backup, which jumps far ahead so that no revision means two things (R30);
//! - a refused request leaves everything as it was, revision included;
//! - everything is bounded, by the named limits below; together they keep the placement driver's state within one RPC frame;
//! - a request that carries an id takes effect once within [`REMEMBER_MS`], however often it is sent.
//!
//! | module | what it holds |
//! |---|---|
//! | [`history`] | the latest changes, for those who watch |
//! | [`recent`] | the ids of requests that took effect, for those who repeat them |

pub mod history;
pub mod recent;
#[cfg(test)]
mod tests;

pub use history::{Compacted, Event, History};
pub use recent::{MAX_IDS, REMEMBER_MS, Recent};

use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::coordination::{KvEntryBody, KvValue, MAX_CONTENT_TYPE_BYTES, MAX_ID_BYTES, MAX_KEY_BYTES};
pub use evenkeel_protocol::coordination::{MAX_KEYS, MAX_STORE_BYTES, MAX_VALUE_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// What an entry costs beyond its key, value and content type, in bytes.
pub const ENTRY_OVERHEAD_BYTES: u64 = 64;
/// How far revisions jump for each incarnation that a restored state is ahead of its backup: more changes than any backup misses.
const REVISIONS_PER_INCARNATION: u64 = 1_000_000_000;

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// Its media type, as it was given.
    pub content_type: Arc<str>,
    /// The revision that created the key.
    pub created: u64,
    /// The revision that wrote this value.
    pub modified: u64,
    /// How often the key has been written since it was created, from 1.
    pub version: u64,
}

impl Entry {
    /// The form in which REST lists it; without the value if that is not asked for.
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
}

/// What must be true of the key for a request to take effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Nothing.
    Anything,
    /// It does not exist.
    Absent,
    /// It exists.
    Present,
    /// It exists and was last written by this revision.
    Revision(u64),
}

/// What a request does to its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Gives it a value.
    Put {
        /// The value, at most [`MAX_VALUE_BYTES`].
        value: Bytes,
        /// Its media type.
        content_type: String,
    },
    /// Removes it.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The key.
    pub key: String,
    /// On which condition.
    pub expect: Expect,
    /// What to do.
    pub action: Action,
    /// Given by the sender so that a repetition is recognised.
    pub id: Option<String>,
}

/// What a request that took effect did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The revision it made.
    pub revision: u64,
    /// Whether the key did not exist before.
    pub created: bool,
}

/// Why a request took no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is none.
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, this one has {0}")]
    KeyLength(usize),
    /// The value is too large.
    #[error("a value has at most {MAX_VALUE_BYTES} bytes, this one has {0}")]
    ValueTooLarge(usize),
    /// The content type, or the request's id, is too long or not printable ASCII.
    #[error("{0}")]
    BadText(String),
    /// What was expected of the key is not so.
    #[error("{}", mismatch(.0))]
    Mismatch(
        /// The revision that last wrote the key; `None` if it does not exist.
        Option<u64>,
    ),
    /// The key to delete does not exist.
    #[error("the key does not exist")]
    Absent,
    /// The store would become too large.
    #[error("{0}")]
    Full(String),
    /// The id came before, with another request.
    #[error("this idempotency key came before with another request")]
    IdReused,
    /// Retry later: too many ids have to be remembered.
    #[error("{MAX_IDS} idempotency keys have to be remembered already; each is for {} s", REMEMBER_MS / 1000)]
    TooManyIds,
}

fn mismatch(found: &Option<u64>) -> String {
    match found {
        Some(revision) => format!("the key was last written by revision {revision}"),
        None => "the key does not exist".to_string(),
    }
}

/// The store. Cloning it is cheap for its size: keys and values are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    revision: u64,
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    bytes: u64,
    history: History,
    recent: Recent,
}

impl Store {
    /// The revision of the last change; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the entries cost, each with its [`ENTRY_OVERHEAD_BYTES`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The latest changes.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What a key holds.
    pub fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    /// The keys that begin with `prefix` and come after `after`, in bytewise order.
    pub fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Entry>)> + 'a {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.entries.range::<str, _>((from, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Applies a request at `at_ms`, by the time of the state machine ([`Proposal::since_ms`](crate::state::Proposal::since_ms)).
    ///
    /// # Errors
    /// [`Refusal`]; the store is then as it was.
    pub fn apply(&mut self, request: Request, at_ms: u64) -> Result<Written, Refusal> {
        check(&request)?;
        self.recent.forget(at_ms);
        let fingerprint = request.id.as_ref().map(|_| recent::fingerprint(&request));
        if let (Some(id), Some(fingerprint)) = (&request.id, fingerprint) {
            if let Some(written) = self.recent.find(id, fingerprint)?.filter(|_| !deliberate(Bug::KvForgetsIds)) {
                return Ok(written);
            }
            if self.recent.is_full() {
                return Err(Refusal::TooManyIds);
            }
        }
        self.expected(&request)?;
        let found = self.entries.get(request.key.as_str()).cloned();
        let written = match request.action {
            Action::Put { value, content_type } => self.put(&request.key, value, &content_type, found.as_deref())?,
            Action::Delete => self.delete(&request.key)?,
        };
        if let (Some(id), Some(fingerprint)) = (request.id, fingerprint) {
            self.recent.remember(id, fingerprint, written, at_ms);
        }
        Ok(written)
    }

    /// Whether the key is as the request expects it now.
    ///
    /// # Errors
    /// [`Refusal::Mismatch`].
    pub fn expected(&self, request: &Request) -> Result<(), Refusal> {
        let modified = self.entries.get(request.key.as_str()).map(|entry| entry.modified);
        let holds = match request.expect {
            Expect::Anything => true,
            Expect::Absent => modified.is_none(),
            Expect::Present => modified.is_some(),
            Expect::Revision(revision) => modified == Some(revision),
        };
        if holds { Ok(()) } else { Err(Refusal::Mismatch(modified)) }
    }

    fn put(&mut self, key: &str, value: Bytes, content_type: &str, old: Option<&Entry>) -> Result<Written, Refusal> {
        if old.is_none() && self.entries.len() >= MAX_KEYS {
            return Err(Refusal::Full(format!("there are {MAX_KEYS} keys already")));
        }
        let freed = old.map_or(0, |old| cost(key, old));
        let revision = self.revision + 1;
        let entry = Arc::new(Entry {
            value,
            content_type: content_type.into(),
            created: old.map_or(revision, |old| old.created),
            modified: revision,
            version: old.map_or(0, |old| old.version) + 1,
        });
        let bytes = self.bytes - freed + cost(key, &entry);
        // What makes the store smaller is possible even when it is full.
        if bytes > MAX_STORE_BYTES && bytes > self.bytes {
            return Err(Refusal::Full(format!("the store would have {bytes} bytes, at most {MAX_STORE_BYTES} fit")));
        }
        let key: Arc<str> = key.into();
        self.revision = revision;
        self.bytes = bytes;
        self.entries.insert(key.clone(), entry.clone());
        self.history.push(Event { revision, key, entry: Some(entry) });
        Ok(Written { revision, created: old.is_none() })
    }

    fn delete(&mut self, key: &str) -> Result<Written, Refusal> {
        let (key, old) = self.entries.remove_entry(key).ok_or(Refusal::Absent)?;
        self.bytes -= cost(&key, &old);
        self.revision += 1;
        self.history.push(Event { revision: self.revision, key, entry: None });
        Ok(Written { revision: self.revision, created: false })
    }

    /// The state comes from a backup, `steps` incarnations ago (R30): changes after the backup are lost, and their revisions must never
    /// be given out again, nor a watcher believe that it has seen what comes now.
    pub fn begin_incarnation(&mut self, steps: u64) {
        self.revision = self.revision.saturating_add(steps.saturating_mul(REVISIONS_PER_INCARNATION));
        self.history.clear(self.revision);
        self.recent.clear();
    }
}

fn cost(key: &str, entry: &Entry) -> u64 {
    (key.len() + entry.value.len() + entry.content_type.len()) as u64 + ENTRY_OVERHEAD_BYTES
}

/// Checks what does not depend on the store.
///
/// # Errors
/// [`Refusal::KeyLength`], [`Refusal::ValueTooLarge`] or [`Refusal::BadText`].
pub fn check(request: &Request) -> Result<(), Refusal> {
    check_key(&request.key)?;
    if let Action::Put { value, content_type } = &request.action {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Refusal::ValueTooLarge(value.len()));
        }
        check_text("content type", content_type, MAX_CONTENT_TYPE_BYTES)?;
    }
    request.id.as_ref().map_or(Ok(()), |id| check_text("idempotency key", id, MAX_ID_BYTES))
}

/// Checks a key.
///
/// # Errors
/// [`Refusal::KeyLength`].
pub fn check_key(key: &str) -> Result<(), Refusal> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) { Ok(()) } else { Err(Refusal::KeyLength(key.len())) }
}

fn check_text(what: &str, text: &str, most: usize) -> Result<(), Refusal> {
    // Both travel in HTTP headers, where nothing else is safe.
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if (1..=most).contains(&text.len()) && printable {
        return Ok(());
    }
    Err(Refusal::BadText(format!("a {what} has 1 to {most} printable ASCII characters")))
}
