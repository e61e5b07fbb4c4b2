//! The coordination store as one replica serves it, whatever protocol a request comes by: REST, or
//! the clients of a simulation.
//!
//! - A linearizable read passes the log's read barrier at the leader (log rule 9).
//! - A sequential read is answered from the state that this replica has applied. It may state a
//!   minimum revision, and then waits until the store has reached it. A client that states the last
//!   revision it has seen does not go back in time when it changes replicas.
//! - A write is one log entry. Every replica judges its condition when it applies the entry.
//! - A watcher has no queue. It remembers the revision that it has seen, and takes the next changes
//!   from the store's history when its client is ready. A watcher that is too slow for the history
//!   is notified and ends.

use super::entry::StoredValue;
use super::history::{Compacted, Event};
use super::limits::MAX_WRITES;
use super::refusal::RequestRefusal;
use super::request::{Expect, Request, Written};
use super::store::CoordinationStore;
use crate::replica::{ProposeFailure, ReplicaHandles};
use crate::state::{self, Command, Effect};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::coordination::KvListBody;
use evenkeel_replicated_log::BarrierError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// How long a write waits for its result, in milliseconds.
const OUTCOME_MS: u64 = 10_000;
/// How long a read waits until this replica has applied the entries that it must reflect, in
/// milliseconds.
const APPLIED_MS: u64 = 5_000;
/// A page ends once its values have this many bytes.
pub const PAGE_BYTES: usize = 1 << 20;
/// The maximum number of changes that a watcher takes at once.
const WATCH_BATCH: usize = 64;
/// The interval at which a watcher without changes learns the store's revision, in milliseconds.
const PROGRESS_MS: u64 = 5_000;

/// The consistency of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The read reflects every write that was acknowledged before it began.
    Linearizable,
    /// The read reflects the state that this replica has applied.
    Sequential {
        /// The minimum revision.
        min_revision: u64,
    },
}

/// The reason for which a read was not answered, by the caller's next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// Redirect: only the leader answers.
    #[error("this replica does not lead")]
    NeedsLeader,
    /// Retry.
    #[error("no majority confirmed in time that this replica leads; try again")]
    NoQuorum,
    /// Retry, or ask elsewhere.
    #[error("this replica has not reached that revision yet; try again, or ask another")]
    Behind,
}

/// The reason for which a write had no effect, by the caller's next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// Redirect: only the leader accepts writes. Nothing was done.
    #[error("this replica does not lead")]
    NeedsLeader,
    /// Retry: nothing was done.
    #[error("{MAX_WRITES} writes are under way; nothing was done, try again")]
    TooMany,
    /// Answer: the store rejected it.
    #[error(transparent)]
    Refused(#[from] RequestRefusal),
    /// See [`ProposeFailure`].
    #[error(transparent)]
    Proposal(ProposeFailure),
    /// The command had an effect of another kind.
    #[error("the command had the effect {0:?}")]
    Internal(Effect),
}

/// Waits until this replica has applied the entries that the read must reflect.
async fn catch_up(handles: &ReplicaHandles, consistency: Consistency) -> Result<(), ReadFailure> {
    let reached: Box<dyn Fn() -> bool + Send + Sync> = match consistency {
        Consistency::Linearizable if deliberate(Bug::KvNoBarrier) => Box::new(|| true),
        Consistency::Linearizable => {
            let index = handles.log.read_barrier().await.map_err(|error| match error {
                BarrierError::NotLeader { .. } | BarrierError::Stopped => ReadFailure::NeedsLeader,
                BarrierError::TimedOut => ReadFailure::NoQuorum,
            })?;
            Box::new(move || handles.applied().index >= index)
        }
        Consistency::Sequential { .. } if deliberate(Bug::KvGoesBack) => Box::new(|| true),
        Consistency::Sequential { min_revision } => {
            Box::new(move || handles.applied().state.kv.revision() >= min_revision)
        }
    };
    let mut changes = handles.changes();
    let waiting = async {
        // The sender is gone when the replica ends. The read has then not caught up.
        while !reached() && changes.changed().await.is_ok() {}
        reached()
    };
    match evenkeel_host::timeout(Duration::from_millis(APPLIED_MS), waiting).await {
        Ok(true) => Ok(()),
        _ => Err(ReadFailure::Behind),
    }
}

/// The entry of a key, and the store's revision.
///
/// # Errors
/// [`ReadFailure`].
pub async fn get(
    handles: &ReplicaHandles,
    key: &str,
    consistency: Consistency,
) -> Result<(Option<Arc<StoredValue>>, u64), ReadFailure> {
    catch_up(handles, consistency).await?;
    let applied = handles.applied();
    Ok((applied.state.kv.get(key).cloned(), applied.state.kv.revision()))
}

/// The keys that a list has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<String>,
    /// The maximum number of keys.
    pub limit: usize,
    /// Whether the list has their values.
    pub values: bool,
}

/// One page of a list: up to `limit` entries, fewer if they are large.
///
/// # Errors
/// [`ReadFailure`].
pub async fn list(
    handles: &ReplicaHandles,
    listing: &Listing,
    consistency: Consistency,
) -> Result<KvListBody, ReadFailure> {
    catch_up(handles, consistency).await?;
    Ok(page(&handles.applied().state.kv, listing))
}

fn page(store: &CoordinationStore, listing: &Listing) -> KvListBody {
    let mut found = store.list(&listing.prefix, listing.after.as_deref()).peekable();
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while entries.len() < listing.limit && bytes < PAGE_BYTES {
        let Some((key, entry)) = found.next() else { break };
        bytes += if listing.values { entry.value.len() } else { 0 };
        entries.push(entry.body(key, listing.values));
    }
    let more = found.peek().is_some();
    let next = entries.last().filter(|_| more).map(|last| last.key.clone());
    KvListBody { revision: store.revision(), entries, next }
}

/// Changes a key.
///
/// # Errors
/// [`WriteFailure`]. Only after [`ProposeFailure::Unknown`] the write may be effective.
pub async fn write(handles: &ReplicaHandles, mut request: Request) -> Result<Written, WriteFailure> {
    if handles.leading().is_none() {
        return Err(WriteFailure::NeedsLeader);
    }
    let Ok(_under_way) = handles.coordination_writes.try_acquire() else { return Err(WriteFailure::TooMany) };
    if deliberate(Bug::KvJudgedBeforeTheLog) {
        handles.applied().state.kv.expected(&request)?;
        request.expect = Expect::Anything;
    }
    let proposed = handles.propose(Command::Kv(Box::new(request)));
    let outcome = evenkeel_host::timeout(Duration::from_millis(OUTCOME_MS), proposed).await;
    match outcome.unwrap_or(Err(ProposeFailure::Unknown)) {
        Ok(Effect::Kv(written)) => Ok(written),
        Ok(other) => Err(WriteFailure::Internal(other)),
        Err(ProposeFailure::Refused(state::Refusal::Kv(refusal))) => Err(WriteFailure::Refused(refusal)),
        Err(failure) => Err(WriteFailure::Proposal(failure)),
    }
}

/// An event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The first event: the watch begins after this revision.
    Begin(u64),
    /// A change.
    Change(Event),
    /// All changes up to this revision were delivered.
    Progress(u64),
    /// The last event: some changes are no longer remembered; those after this revision are.
    Compacted(u64),
}

/// Watches the keys with a prefix.
pub struct Watcher {
    handles: Arc<ReplicaHandles>,
    changes: Receiver<u64>,
    stopped: Receiver<bool>,
    prefix: String,
    seen: u64,
    /// Changes from the history that are not delivered yet, up to [`WATCH_BATCH`].
    waiting: VecDeque<Event>,
    /// The last revision that was delivered.
    delivered: Option<u64>,
    ended: bool,
}

impl Watcher {
    /// Watches the changes after the revision `since`, or from now on.
    ///
    /// # Errors
    /// [`Compacted`] if some changes since then are no longer remembered.
    pub fn open(handles: Arc<ReplicaHandles>, prefix: String, since: Option<u64>) -> Result<Watcher, Compacted> {
        let changes = handles.coordination_changes();
        let since = since.filter(|_| !deliberate(Bug::KvWatchGap));
        let seen = {
            let applied = handles.applied();
            let seen = since.unwrap_or_else(|| applied.state.kv.revision());
            let oldest = applied.state.kv.history().oldest();
            if seen < oldest {
                return Err(Compacted { oldest });
            }
            seen
        };
        let stopped = handles.stopped();
        Ok(Watcher { handles, changes, stopped, prefix, seen, waiting: VecDeque::new(), delivered: None, ended: false })
    }

    /// The event that is ready now.
    fn ready(&mut self) -> Option<WatchEvent> {
        if self.delivered.is_none() {
            self.delivered = Some(self.seen);
            return Some(WatchEvent::Begin(self.seen));
        }
        if self.waiting.is_empty() {
            let batch = {
                let applied = self.handles.applied();
                let store = &applied.state.kv;
                store.history().since(self.seen, &self.prefix, WATCH_BATCH, store.revision())
            };
            match batch {
                Ok(batch) => {
                    self.waiting = batch.events.into();
                    self.seen = batch.seen;
                }
                Err(compacted) => {
                    self.ended = true;
                    return Some(WatchEvent::Compacted(compacted.oldest));
                }
            }
        }
        let event = self.waiting.pop_front()?;
        self.delivered = Some(event.revision);
        Some(WatchEvent::Change(event))
    }

    /// Waits for the next event; `None` when the watch is over. A caller that stops waiting misses
    /// no event.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if self.ended || *self.stopped.borrow() {
                return None;
            }
            self.changes.borrow_and_update();
            if let Some(event) = self.ready() {
                return Some(event);
            }
            let behind = self.delivered != Some(self.seen);
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                // An error means that the replica is gone.
                stopped = self.stopped.changed() => stopped.ok()?,
                // A watcher of a prefix without changes must not fall behind the history because
                // other keys change.
                () = evenkeel_host::sleep(Duration::from_millis(PROGRESS_MS)), if behind => {
                    self.delivered = Some(self.seen);
                    return Some(WatchEvent::Progress(self.seen));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::coordination::{MAX_VALUE_BYTES, WriteAction};
    use bytes::Bytes;

    #[test]
    fn a_page_ends_at_its_limit_or_when_it_is_large() {
        let mut store = CoordinationStore::default();
        for n in 0..40 {
            let value = Bytes::from(vec![7; if n < 20 { 10 } else { MAX_VALUE_BYTES }]);
            let action = WriteAction::Put { value, content_type: "x/y".into() };
            let request = Request { key: format!("k{n:02}"), expect: Expect::Anything, action, id: None };
            store.apply(request, 1).unwrap();
        }
        let page = |after: Option<&str>, limit, values| {
            page(&store, &Listing { prefix: "k".into(), after: after.map(String::from), limit, values })
        };
        let first = page(None, 20, true);
        assert_eq!((first.entries.len(), first.next.as_deref(), first.revision), (20, Some("k19"), 40));
        let second = page(Some("k19"), 1000, true);
        assert_eq!((second.entries.len(), second.next.as_deref()), (PAGE_BYTES / MAX_VALUE_BYTES, Some("k35")));
        let third = page(Some("k35"), 1000, true);
        assert_eq!((third.entries.len(), third.next), (4, None));
        let keys = page(None, 1000, false);
        assert!(keys.entries.len() == 40 && keys.next.is_none() && keys.entries[0].value.bytes().is_none());
    }
}
