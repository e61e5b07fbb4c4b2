//! The coordination store as one replica serves it, whatever protocol it is asked by: REST, or a simulation's clients.
//!
//! [`crate::kv`] holds the store and judges; here is what it takes to answer for it. A linearizable read passes the log's read barrier at
//! the leader (log rule 9). A sequential one is answered from what this replica has applied; a smallest revision makes it wait until that
//! is at least what the client has seen, so that nobody goes back in time by changing replicas. A write is one entry, and conditions are
//! judged when it comes out of the log, on every replica alike.
//!
//! A watcher has no queue: it remembers the revision it has seen, and takes the next changes from the store's history when it is
//! ready for them. One that is too slow for the history is told so and ended.

use crate::kv::{Compacted, Entry, Event, Refusal as KvRefusal, Request, Store, Written};
use crate::server::{ProposeFailure, Shared};
use crate::state::{Command, Effect, Refusal};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::coordination::KvListBody;
use evenkeel_replicated_log::BarrierError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// The most writes under way at once: they must leave the log room for what keeps the store level.
pub const MAX_WRITES: usize = 256;
/// How long a write waits for its outcome, in milliseconds.
const OUTCOME_MS: u64 = 10_000;
/// How long a read waits for this replica to have applied what it must show, in milliseconds.
const APPLIED_MS: u64 = 5_000;
/// A page ends once its values have this many bytes.
pub const PAGE_BYTES: usize = 1 << 20;
/// Changes that a watcher takes at once.
const WATCH_BATCH: usize = 64;
/// A watcher of a quiet prefix is told this often how far the store has got, in milliseconds.
const PROGRESS_MS: u64 = 5_000;

/// How a read wants to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// With everything acknowledged before it was asked.
    Linearizable,
    /// With what this replica has applied.
    Sequential {
        /// At least this revision.
        min_revision: u64,
    },
}

/// Why a read was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// Redirect: only the leader answers it.
    #[error("this replica does not lead")]
    NeedsLeader,
    /// Retry.
    #[error("no majority confirmed in time that this replica leads; try again")]
    NoQuorum,
    /// Retry, or ask elsewhere.
    #[error("this replica has not got there yet; try again, or ask another")]
    Behind,
}

/// Why a write brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// Redirect: only the leader takes it. Nothing was done.
    #[error("this replica does not lead")]
    NeedsLeader,
    /// Retry: nothing was done.
    #[error("{MAX_WRITES} writes are under way; nothing was done, try again")]
    TooMany,
    /// Answer: it was judged and refused.
    #[error(transparent)]
    Refused(#[from] KvRefusal),
    /// As it says.
    #[error(transparent)]
    Proposal(ProposeFailure),
    /// Something that cannot be.
    #[error("the command had the effect {0:?}")]
    Internal(Effect),
}

/// Waits until this replica's state is what the read must show at least.
async fn current(shared: &Shared, consistency: Consistency) -> Result<(), ReadFailure> {
    let reached: Box<dyn Fn() -> bool + Send + Sync> = match consistency {
        Consistency::Linearizable if deliberate(Bug::KvNoBarrier) => Box::new(|| true),
        Consistency::Linearizable => {
            let index = shared.log.read_barrier().await.map_err(|error| match error {
                BarrierError::NotLeader { .. } | BarrierError::Stopped => ReadFailure::NeedsLeader,
                BarrierError::TimedOut => ReadFailure::NoQuorum,
            })?;
            Box::new(move || shared.applied().index >= index)
        }
        Consistency::Sequential { .. } if deliberate(Bug::KvGoesBack) => Box::new(|| true),
        Consistency::Sequential { min_revision } => {
            Box::new(move || shared.applied().state.kv.revision() >= min_revision)
        }
    };
    let mut changes = shared.changes();
    let waiting = async {
        // The replica ends when there are no more changes; the answer then is that it has not got there.
        while !reached() && changes.changed().await.is_ok() {}
        reached()
    };
    match tokio::time::timeout(Duration::from_millis(APPLIED_MS), waiting).await {
        Ok(true) => Ok(()),
        _ => Err(ReadFailure::Behind),
    }
}

/// What a key holds, and the store's revision at which it does.
///
/// # Errors
/// [`ReadFailure`].
pub async fn get(
    shared: &Shared,
    key: &str,
    consistency: Consistency,
) -> Result<(Option<Arc<Entry>>, u64), ReadFailure> {
    current(shared, consistency).await?;
    let applied = shared.applied();
    Ok((applied.state.kv.get(key).cloned(), applied.state.kv.revision()))
}

/// Which keys are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Those that begin so,
    pub prefix: String,
    /// and come after this one,
    pub after: Option<String>,
    /// at most so many;
    pub limit: usize,
    /// with their values.
    pub values: bool,
}

/// One page: up to `limit` entries, fewer if they are large.
///
/// # Errors
/// [`ReadFailure`].
pub async fn list(shared: &Shared, listing: &Listing, consistency: Consistency) -> Result<KvListBody, ReadFailure> {
    current(shared, consistency).await?;
    Ok(page(&shared.applied().state.kv, listing))
}

fn page(store: &Store, listing: &Listing) -> KvListBody {
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
/// [`WriteFailure`]; only [`ProposeFailure::Unknown`] leaves open whether it has happened.
pub async fn write(shared: &Shared, mut request: Request) -> Result<Written, WriteFailure> {
    if shared.leading().is_none() {
        return Err(WriteFailure::NeedsLeader);
    }
    let Ok(_turn) = shared.kv_writes.try_acquire() else { return Err(WriteFailure::TooMany) };
    if deliberate(Bug::KvJudgedBeforeTheLog) {
        shared.applied().state.kv.expected(&request)?;
        request.expect = crate::kv::Expect::Anything;
    }
    let proposed = shared.propose(Command::Kv(Box::new(request)));
    let outcome = tokio::time::timeout(Duration::from_millis(OUTCOME_MS), proposed).await;
    match outcome.unwrap_or(Err(ProposeFailure::Unknown)) {
        Ok(Effect::Kv(written)) => Ok(written),
        Ok(other) => Err(WriteFailure::Internal(other)),
        Err(ProposeFailure::Refused(Refusal::Kv(refusal))) => Err(WriteFailure::Refused(refusal)),
        Err(failure) => Err(WriteFailure::Proposal(failure)),
    }
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// First: the watch begins after this revision.
    Begin(u64),
    /// A change.
    Change(Event),
    /// Everything up to this revision has been told.
    Progress(u64),
    /// Last: changes are remembered after this revision only, and some are missing.
    Compacted(u64),
}

/// Watches the keys with a prefix.
pub struct Watcher {
    shared: Arc<Shared>,
    changes: Receiver<u64>,
    stopped: Receiver<bool>,
    prefix: String,
    seen: u64,
    /// What was taken from the history and not told yet, at most [`WATCH_BATCH`].
    waiting: VecDeque<Event>,
    /// The last revision that was told.
    told: Option<u64>,
    ended: bool,
}

impl Watcher {
    /// Watches from after the revision `since`, or from now on.
    ///
    /// # Errors
    /// [`Compacted`] if not all changes since then are remembered.
    pub fn open(shared: Arc<Shared>, prefix: String, since: Option<u64>) -> Result<Watcher, Compacted> {
        let changes = shared.kv_changes();
        let since = since.filter(|_| !deliberate(Bug::KvWatchGap));
        let seen = {
            let applied = shared.applied();
            let seen = since.unwrap_or_else(|| applied.state.kv.revision());
            let oldest = applied.state.kv.history().oldest();
            if seen < oldest {
                return Err(Compacted { oldest });
            }
            seen
        };
        let stopped = shared.stopped();
        Ok(Watcher { shared, changes, stopped, prefix, seen, waiting: VecDeque::new(), told: None, ended: false })
    }

    /// What there is to tell now.
    fn ready(&mut self) -> Option<Told> {
        if self.told.is_none() {
            self.told = Some(self.seen);
            return Some(Told::Begin(self.seen));
        }
        if self.waiting.is_empty() {
            let batch = {
                let applied = self.shared.applied();
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
                    return Some(Told::Compacted(compacted.oldest));
                }
            }
        }
        let event = self.waiting.pop_front()?;
        self.told = Some(event.revision);
        Some(Told::Change(event))
    }

    /// The next word, once there is one; `None` when the watch is over. Who stops waiting for it misses nothing.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            if self.ended || *self.stopped.borrow() {
                return None;
            }
            self.changes.borrow_and_update();
            if let Some(told) = self.ready() {
                return Some(told);
            }
            let behind = self.told != Some(self.seen);
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                // An error means that the replica is gone.
                stopped = self.stopped.changed() => stopped.ok()?,
                // Whoever watches a quiet prefix must not fall out of the history because other keys change.
                () = tokio::time::sleep(Duration::from_millis(PROGRESS_MS)), if behind => {
                    self.told = Some(self.seen);
                    return Some(Told::Progress(self.seen));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kv::{Action, Expect, MAX_VALUE_BYTES};
    use bytes::Bytes;

    #[test]
    fn a_page_ends_at_its_limit_or_when_it_is_large() {
        let mut store = Store::default();
        for n in 0..40 {
            let value = Bytes::from(vec![7; if n < 20 { 10 } else { MAX_VALUE_BYTES }]);
            let action = Action::Put { value, content_type: "x/y".into() };
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
