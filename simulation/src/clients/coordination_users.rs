//! Users of the coordination store: they put, delete, compare and set, read at both levels, list,
//! and watch.
//!
//! Users call the functions that REST calls ([`coordination`]), since HTTP does not go through the
//! simulated network. The way there and back takes time all the same, and an answer may be lost on
//! it. A request with an id is then repeated under this id; without an id its outcome is unknown.

use super::users::Users;
use crate::checkers::coordination_store::has_told_all;
use crate::history::coordination::{End, KeysFound, Read, Watch, Write};
use crate::process::{self, below, once_in};
use crate::registry::Registry;
use bytes::Bytes;
use evenkeel_placement_driver::coordination::service::{
    self as coordination, Consistency, Listing, WatchEvent, Watcher, WriteFailure,
};
use evenkeel_placement_driver::coordination::{Expect, Request, RequestRefusal, StoredValue, WriteAction};
use evenkeel_placement_driver::replica::{ProposeFailure, ReplicaHandles};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The keys.
pub const KEYS: [&str; 5] = ["a", "b/1", "b/2", "b/3", "c"];
/// Prefixes, to list and to watch.
pub const PREFIXES: [&str; 2] = ["", "b/"];
/// Between two operations of a user, in milliseconds, at most.
const THINK_MS: u64 = 150;
/// How long the way to a placement driver takes, and the way back, in milliseconds, at most.
const WAY_MS: u64 = 8;
/// One answer in this many is lost.
const LOST_IN: u64 = 15;
/// How long an answer is waited for, in milliseconds.
const ANSWER_MS: u64 = 900;
/// After this a user gives up, in milliseconds.
const GIVE_UP_MS: u64 = 4_000;
/// How long a watcher listens to one placement driver, in milliseconds, at most.
const LISTEN_MS: u64 = 1_500;
/// Entries of a page at most.
const PAGE: usize = 2;

/// Some placement driver.
fn any(registry: &Registry) -> Option<Arc<ReplicaHandles>> {
    let registry = registry.read();
    registry.values().nth(below(registry.len() as u64) as usize).cloned()
}

async fn pause(most_ms: u64) {
    evenkeel_host::sleep(Duration::from_millis(below(most_ms))).await;
}

/// A user's work under faults, and afterwards one write of each key.
pub(super) async fn run(users: Users, number: u64) {
    let mut user = User { users: users.clone(), number, count: 0, seen: 0, known: BTreeMap::new() };
    while users.history.borrow().healed_ms.is_none() {
        user.operate().await;
        pause(THINK_MS).await;
    }
    for key in KEYS {
        while !user.put(key, Expect::Anything, true).await {
            users.history.borrow_mut().waiting_for = format!("(the key {key} takes no write)");
        }
    }
}

struct User {
    users: Users,
    number: u64,
    count: u64,
    /// The latest revision seen.
    seen: u64,
    /// By key, which revision was last seen to have written it.
    known: BTreeMap<&'static str, u64>,
}

impl User {
    async fn operate(&mut self) {
        let key = KEYS[below(KEYS.len() as u64) as usize];
        let with_id = !once_in(3);
        let known = self.known.get(key).copied().unwrap_or(0);
        match below(20) {
            0..=3 => _ = self.put(key, Expect::Anything, with_id).await,
            4..=5 => _ = self.put(key, Expect::Absent, with_id).await,
            6..=8 => _ = self.put(key, Expect::Revision(known), with_id).await,
            9 => _ = self.write(key, Expect::Anything, None, with_id).await,
            10 => _ = self.write(key, Expect::Revision(known), None, with_id).await,
            11..=13 => self.get(key, Consistency::Linearizable).await,
            14..=16 => self.get(key, Consistency::Sequential { min_revision: self.seen }).await,
            17 => self.get(key, Consistency::Sequential { min_revision: 0 }).await,
            _ => self.list(PREFIXES[below(2) as usize]).await,
        }
    }

    async fn put(&mut self, key: &'static str, expect: Expect, with_id: bool) -> bool {
        let value = format!("{}-{}", self.number, self.count);
        self.write(key, expect, Some(value), with_id).await
    }

    /// Writes, and records the outcome; `true` if it took effect.
    async fn write(&mut self, key: &'static str, expect: Expect, value: Option<String>, with_id: bool) -> bool {
        self.count += 1;
        let action = match &value {
            Some(value) => {
                WriteAction::Put { value: Bytes::copy_from_slice(value.as_bytes()), content_type: "text/plain".into() }
            }
            None => WriteAction::Delete,
        };
        let id = with_id.then(|| format!("{}-{}", self.number, self.count));
        let request = Request { key: key.into(), expect, action, id };
        let sent_ms = process::now_ms();
        let Some(end) = self.end_of(request).await else { return false };
        match end {
            End::Done(written) => {
                self.seen = self.seen.max(written.revision);
                self.known.insert(key, written.revision);
            }
            End::Refused(found) => _ = found.map(|found| self.known.insert(key, found)),
            End::Unknown => {}
        }
        let answered_ms = process::now_ms();
        let mut history = self.users.history.borrow_mut();
        history.coordination.writes.push(Write { key, expect, value, sent_ms, answered_ms, end });
        history.count(match end {
            End::Done(_) => "keys written",
            End::Refused(_) => "keys not as expected",
            End::Unknown => "keys perhaps written",
        });
        matches!(end, End::Done(_))
    }

    /// The outcome of a request, repeated under its id if it has one; `None` if it certainly did
    /// not reach the log.
    async fn end_of(&self, request: Request) -> Option<End> {
        let deadline_ms = process::now_ms() + GIVE_UP_MS;
        let mut perhaps = false;
        while process::now_ms() < deadline_ms && !(perhaps && request.id.is_none()) {
            pause(WAY_MS).await;
            let registry = &self.users.registry;
            let Some(shared) = any(registry) else { continue };
            let leader = shared.leader().and_then(|leader| registry.read().get(&leader).cloned());
            let shared = leader.unwrap_or(shared);
            pause(WAY_MS).await;
            if !registry.runs(&shared) {
                continue;
            }
            let asked = coordination::write(&shared, request.clone());
            let answer = evenkeel_host::timeout(Duration::from_millis(ANSWER_MS), asked).await;
            pause(WAY_MS).await;
            if once_in(LOST_IN) || !registry.runs(&shared) {
                perhaps = true;
                continue;
            }
            match answer {
                Ok(Ok(written)) => return Some(End::Done(written)),
                Ok(Err(WriteFailure::Refused(RequestRefusal::Mismatch(found)))) => return Some(End::Refused(found)),
                Ok(Err(WriteFailure::Refused(RequestRefusal::Absent))) => return Some(End::Refused(None)),
                Err(_) | Ok(Err(WriteFailure::Proposal(ProposeFailure::Unknown))) => perhaps = true,
                Ok(Err(
                    WriteFailure::NeedsLeader
                    | WriteFailure::TooMany
                    | WriteFailure::Proposal(ProposeFailure::NotLeader | ProposeFailure::Overloaded),
                )) => pause(20).await,
                Ok(Err(failure)) => {
                    let sentence = format!("the coordination store answered {request:?} by: {failure}");
                    self.users.history.borrow_mut().wrong(sentence);
                    return Some(End::Unknown);
                }
            }
        }
        perhaps.then_some(End::Unknown)
    }

    /// The replica for a read: the known leader, or any replica.
    async fn driver(&self, consistency: Consistency) -> Option<Arc<ReplicaHandles>> {
        let registry = &self.users.registry;
        let shared = any(registry)?;
        let leader = match consistency {
            Consistency::Linearizable => shared.leader().and_then(|leader| registry.read().get(&leader).cloned()),
            Consistency::Sequential { .. } => None,
        };
        let shared = leader.unwrap_or(shared);
        pause(WAY_MS).await;
        registry.runs(&shared).then_some(shared)
    }

    async fn get(&mut self, key: &'static str, consistency: Consistency) {
        let sent_ms = process::now_ms();
        let Some(shared) = self.driver(consistency).await else { return };
        let asked = coordination::get(&shared, key, consistency);
        let answer = evenkeel_host::timeout(Duration::from_millis(ANSWER_MS), asked).await;
        let Ok(Ok((entry, revision))) = answer else { return };
        let written = entry.as_ref().map(|entry| (entry.modified, value(entry)));
        written.iter().for_each(|(modified, _)| _ = self.known.insert(key, *modified));
        let found = written.into_iter().map(|written| (key.to_string(), written)).collect();
        let (prefix, upto) = (key.to_string(), Some(key.to_string()));
        self.saw(&shared, Read { prefix, after: None, upto, revision, found, ..read(consistency, sent_ms) });
    }

    async fn list(&mut self, prefix: &str) {
        let consistency = match once_in(2) {
            true => Consistency::Linearizable,
            false => Consistency::Sequential { min_revision: self.seen },
        };
        let mut after = None;
        loop {
            let sent_ms = process::now_ms();
            let Some(shared) = self.driver(consistency).await else { return };
            let listing = Listing { prefix: prefix.into(), after: after.clone(), limit: PAGE, values: true };
            let asked = coordination::list(&shared, &listing, consistency);
            let Ok(Ok(page)) = evenkeel_host::timeout(Duration::from_millis(ANSWER_MS), asked).await else { return };
            let text =
                |entry: &evenkeel_protocol::coordination::KvEntryBody| entry.value.text.clone().unwrap_or_default();
            let found = page.entries.iter().map(|e| (e.key.clone(), (e.modified, text(e)))).collect();
            let (revision, next) = (page.revision, page.next);
            let prefix = prefix.to_string();
            let read = Read { prefix, after, upto: next.clone(), revision, found, ..read(consistency, sent_ms) };
            self.saw(&shared, read);
            if next.is_none() {
                return;
            }
            after = next;
        }
    }

    fn saw(&mut self, shared: &Arc<ReplicaHandles>, read: Read) {
        self.seen = self.seen.max(read.revision);
        let mut history = self.users.history.borrow_mut();
        let process = history.coordination.process(shared);
        history.count("looks at keys");
        history.coordination.reads.push(Read { process, answered_ms: process::now_ms(), ..read });
    }
}

fn read(consistency: Consistency, sent_ms: u64) -> Read {
    let least = match consistency {
        Consistency::Linearizable => None,
        Consistency::Sequential { min_revision } => Some(min_revision),
    };
    let (prefix, found) = (String::new(), KeysFound::new());
    Read { prefix, after: None, upto: None, least, process: 0, sent_ms, answered_ms: 0, revision: 0, found }
}

fn value(entry: &StoredValue) -> String {
    String::from_utf8_lossy(&entry.value).into_owned()
}

/// Watches a prefix from the beginning to the end, going from one placement driver to another.
pub(super) async fn watch(users: Users, prefix: &'static str) {
    let number = {
        let mut history = users.history.borrow_mut();
        history.coordination.watches.push(Watch { prefix: prefix.into(), ..Watch::default() });
        history.coordination.watches.len() - 1
    };
    while !users.history.borrow().stop {
        pause(WAY_MS).await;
        let Some(shared) = any(&users.registry) else { continue };
        let since = users.history.borrow().coordination.watches[number].seen;
        match Watcher::open(shared.clone(), prefix.into(), Some(since)) {
            Ok(watcher) => listen(&users, number, &shared, watcher).await,
            // The users here do not write enough for a compaction.
            Err(compacted) => users.history.borrow_mut().wrong(format!("a watch from {since}: {compacted}")),
        }
    }
}

/// Whether all watches have reported every change.
pub(super) fn watched_all(users: &Users) -> bool {
    let registry = users.registry.read();
    let Some(shared) = registry.values().max_by_key(|shared| shared.applied().index) else { return false };
    let applied = shared.applied();
    users.history.borrow().coordination.watches.iter().all(|watch| has_told_all(watch, &applied.state.kv))
}

async fn listen(users: &Users, number: usize, shared: &Arc<ReplicaHandles>, mut watcher: Watcher) {
    let until_ms = process::now_ms() + below(LISTEN_MS);
    while process::now_ms() < until_ms && users.registry.runs(shared) {
        let Ok(told) = evenkeel_host::timeout(Duration::from_millis(1 + LISTEN_MS / 4), watcher.next()).await else {
            continue;
        };
        let mut all = users.history.borrow_mut();
        let watch = &mut all.coordination.watches[number];
        match told {
            Some(WatchEvent::Change(event)) => {
                watch.seen = event.revision;
                let value = event.entry.as_ref().map(|entry| value(entry));
                watch.changes.push((event.revision, event.key.to_string(), value));
            }
            Some(WatchEvent::Progress(revision)) => watch.seen = revision,
            Some(WatchEvent::Begin(_)) => {}
            Some(WatchEvent::Compacted(oldest)) => {
                all.wrong(format!("a watch ended because of a compaction up to {oldest}"))
            }
            None => return,
        }
    }
}
