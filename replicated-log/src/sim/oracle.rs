//! The checks of a run: computed from the entries that replicas deliver, independently of the core.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::entry::{Body, Entry};
use crate::ids::{LogIndex, Term};
use crate::membership::Members;

/// A promise that was broken.
#[derive(Debug)]
pub(super) struct Violation(pub(super) String);

pub(super) type Checked<T> = Result<T, Violation>;

pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Checked<()> {
    if holds { Ok(()) } else { Err(Violation(what())) }
}

/// The application's state: the result of applying the effective entries (invariant 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AppState {
    pub(super) applied: u64,
    pub(super) hash: u64,
    pub(super) term: Term,
}

impl AppState {
    pub(super) fn apply(&mut self, entry: &Entry) {
        self.applied = entry.index.0;
        if !entry.effective {
            return;
        }
        match &entry.body {
            Body::LeaderStart { .. } => self.term = entry.term,
            Body::Data(bytes) | Body::ConfigChange(bytes) => {
                let id = write_id(bytes);
                self.hash = (self.hash ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
            }
        }
    }
}

pub(super) fn write_id(payload: &Bytes) -> u64 {
    payload.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// The log of the group as far as it is known, and the knowledge of clients.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    chosen: Vec<Entry>,
    states: Vec<AppState>,
    /// The highest position that a client knows, by an acknowledged write or a completed read.
    pub(super) known: u64,
    pub(super) rejected_entries: u64,
    /// The beginnings of later configurations, and their members.
    pub(super) configurations: Vec<(u64, Members)>,
    /// Tracked writes that are not effective yet (R28), and the replicas that crashed since their
    /// proposal.
    tracked: BTreeMap<u64, BTreeSet<u64>>,
    /// Writes acknowledged in memory.
    acknowledged: BTreeSet<u64>,
}

impl Oracle {
    pub(super) fn len(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// A write is about to be proposed whose client wants a memory acknowledgement.
    pub(super) fn tracked(&mut self, write: u64) {
        self.tracked.insert(write, BTreeSet::new());
    }

    /// The client has received the memory acknowledgement.
    pub(super) fn acknowledged_in_memory(&mut self, write: u64) {
        self.acknowledged.insert(write);
    }

    pub(super) fn crashed(&mut self, id: u64) {
        self.tracked.values_mut().for_each(|crashed| {
            crashed.insert(id);
        });
    }

    /// At the end of a run: the number of writes acknowledged in memory that are not in the log.
    /// R28: since the proposal of each at least two replicas crashed.
    pub(super) fn lost_from_memory(&self) -> Checked<u64> {
        let lost: Vec<_> = self.tracked.iter().filter(|(write, _)| self.acknowledged.contains(write)).collect();
        let wrong = lost.iter().find(|(_, crashed)| crashed.len() < 2);
        ensure(wrong.is_none(), || format!("acknowledged in memory and lost: {wrong:?} (write, crashed since)"))?;
        Ok(lost.len() as u64)
    }

    /// The state that the log up to `applied` leads to.
    pub(super) fn state_at(&self, applied: u64) -> AppState {
        match applied.checked_sub(1) {
            Some(i) => self.states[i as usize],
            None => AppState::default(),
        }
    }

    /// A replica delivered an entry: it must be the one that all others deliver there, with the
    /// same verdict, and the verdict must be that of the term fence (invariant 1).
    pub(super) fn delivered(&mut self, by: u64, entry: &Entry) -> Checked<()> {
        let LogIndex(index) = entry.index;
        if let Some(first) = self.chosen.get(index as usize - 1) {
            return ensure(first == entry, || {
                format!("replica {by} delivers {entry:?}, an earlier delivery was {first:?}")
            });
        }
        ensure(index == self.len() + 1, || format!("replica {by} delivers {entry:?} before its predecessor"))?;
        let mut state = self.state_at(index - 1);
        let effective = match entry.body {
            Body::LeaderStart { .. } => entry.term > state.term,
            _ => entry.term == state.term && entry.term != Term::NONE,
        };
        ensure(entry.effective == effective, || format!("replica {by} misjudges {entry:?} in term {}", state.term))?;
        self.rejected_entries += u64::from(!effective);
        if let (Body::ConfigChange(barrier), true) = (&entry.body, effective) {
            let members = postcard::from_bytes(barrier).map_err(|e| Violation(format!("{entry:?}: {e}")))?;
            self.configurations.push((index, members));
        }
        if let (true, Body::Data(payload)) = (effective, &entry.body) {
            self.tracked.remove(&write_id(payload));
        }
        state.apply(entry);
        self.chosen.push(entry.clone());
        self.states.push(state);
        Ok(())
    }
}
