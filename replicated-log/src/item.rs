//! What is stored and sent: the log's items, the marker that stands for trimmed ones, and the term fence.
//!
//! An item is one kind byte, the term it was proposed in and the application's bytes. [`Fence`] is the state that
//! judges items: which leadership is in force, and whether the epoch has ended. The judgement is a fold over the log
//! and nothing else, so every replica comes to the same one (invariant 1); the fence at the compaction point is
//! stored and travels with state transfers, so that it also comes to the same one after a restart.

use bytes::{Buf, BufMut, Bytes};
use omnipaxos::storage::{Entry as PaxosEntry, Snapshot};
use serde::{Deserialize, Serialize};

use crate::types::{Body, Entry, LogIndex, Term};

/// What kind of item this is; the value is its byte on disk and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Data = 0,
    LeaderStart = 1,
    ConfigChange = 2,
}

/// One item of the log. Cloning shares the payload (log rule 14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    pub(crate) term: Term,
    pub(crate) payload: Bytes,
}

/// Bytes that an encoded item takes beyond its payload: length, kind, term.
pub(crate) const ITEM_OVERHEAD_BYTES: usize = 4 + 1 + 8;

/// An encoded item was cut short or has an unknown kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed log item")]
pub(crate) struct BadItem;

impl Item {
    pub(crate) fn leader_start(term: Term) -> Item {
        Item { kind: Kind::LeaderStart, term, payload: Bytes::new() }
    }

    /// Its size on disk and on the wire.
    pub(crate) fn encoded_bytes(&self) -> usize {
        ITEM_OVERHEAD_BYTES + self.payload.len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.payload.len() as u32);
        out.put_u8(self.kind as u8);
        out.put_u64_le(self.term.0);
        out.put_slice(&self.payload);
    }

    /// Takes one item off the front of `input`; the payload shares `input`'s memory.
    pub(crate) fn decode(input: &mut Bytes) -> Result<Item, BadItem> {
        if input.len() < ITEM_OVERHEAD_BYTES {
            return Err(BadItem);
        }
        let payload_bytes = input.get_u32_le() as usize;
        let kind = match input.get_u8() {
            0 => Kind::Data,
            1 => Kind::LeaderStart,
            2 => Kind::ConfigChange,
            _ => return Err(BadItem),
        };
        let term = Term(input.get_u64_le());
        if input.len() < payload_bytes {
            return Err(BadItem);
        }
        Ok(Item { kind, term, payload: input.split_to(payload_bytes) })
    }

    /// The item as subscribers see it.
    pub(crate) fn deliver(&self, index: LogIndex, before: Fence) -> Entry {
        Entry {
            index,
            term: self.term,
            effective: before.admits(self),
            body: match self.kind {
                Kind::Data => Body::Data(self.payload.clone()),
                Kind::LeaderStart => Body::LeaderStart { leader: self.term.replica() },
                Kind::ConfigChange => Body::ConfigChange(self.payload.clone()),
            },
        }
    }
}

/// The term fence at one place of the log (invariant 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fence {
    /// The leadership in force.
    pub(crate) term: Term,
    /// Whether an effective `ConfigChange` came before: nothing counts any more (log rule 10).
    pub(crate) ended: bool,
}

impl Fence {
    /// Whether `item`, directly behind this fence, is effective.
    pub(crate) fn admits(&self, item: &Item) -> bool {
        !self.ended
            && match item.kind {
                // Leaderships only follow each other upwards; a LeaderStart that does not is void like any other.
                Kind::LeaderStart => item.term > self.term,
                Kind::Data | Kind::ConfigChange => item.term == self.term && item.term != Term::NONE,
            }
    }

    /// The fence behind `item`.
    pub(crate) fn after(self, item: &Item) -> Fence {
        match item.kind {
            _ if !self.admits(item) => self,
            Kind::Data => self,
            Kind::LeaderStart => Fence { term: item.term, ..self },
            Kind::ConfigChange => Fence { ended: true, ..self },
        }
    }
}

/// Stands for the trimmed part of a log (log rule 10). OmniPaxos calls it a snapshot; it holds no state, only the
/// fence in force where the trimmed part ends.
///
/// `transferred` is `None` in the markers that the library makes itself for local compaction (the durable log
/// knows the fence there), and `Some` in those that this crate puts into synchronisation messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trimmed {
    pub(crate) transferred: Option<Fence>,
}

impl Snapshot<Item> for Trimmed {
    fn create(_entries: &[Item]) -> Self {
        Trimmed::default()
    }

    fn merge(&mut self, _delta: Self) {}

    // log rule 10: the library's own snapshot path would send Delta snapshots, which are broken. Always false;
    // `core::sync` puts a Complete marker into the messages that need one.
    fn use_snapshots() -> bool {
        false
    }
}

impl PaxosEntry for Item {
    type Snapshot = Trimmed;
}

// The library's message types demand these; items travel beside the messages (see `wire`), never through serde.
impl Serialize for Item {
    fn serialize<S: serde::Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("items travel beside the message"))
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: serde::Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("items travel beside the message"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn data(term: Term) -> Item {
        Item { kind: Kind::Data, term, payload: Bytes::from_static(b"row") }
    }

    #[test]
    fn items_survive_encoding_and_cut_ones_are_refused() {
        let item = data(Term::first_of(7, 2));
        let mut out = Vec::new();
        item.encode(&mut out);
        assert_eq!(out.len(), item.encoded_bytes());
        let whole = Bytes::from(out);
        assert_eq!(Item::decode(&mut whole.clone()).unwrap(), item);
        for cut in 0..whole.len() {
            assert_eq!(Item::decode(&mut whole.slice(..cut)), Err(BadItem));
        }
    }

    // Invariant 1: only the leadership in force has effect, whatever a deposed leader got into the log.
    #[test]
    fn the_fence_admits_only_the_leadership_in_force() {
        let old = Term::first_of(3, 1);
        let new = Term::first_of(4, 2);
        let fence = Fence::default();
        assert!(!fence.admits(&data(old)), "nothing counts before a leadership");
        assert!(!fence.admits(&data(Term::NONE)));
        let fence = fence.after(&Item::leader_start(old));
        assert!(fence.admits(&data(old)));
        let fence = fence.after(&Item::leader_start(new));
        assert!(!fence.admits(&data(old)));
        assert!(fence.admits(&data(new)));
        assert_eq!(fence.after(&Item::leader_start(old)), fence);
        // R1: a further leadership under the same ballot ends the one before.
        let again = new.next_leadership().unwrap();
        let fence = fence.after(&Item::leader_start(again));
        assert!(!fence.admits(&data(new)));
        assert!(fence.admits(&data(again)));
    }

    // Log rule 10: what follows a membership change counts for nothing.
    #[test]
    fn nothing_counts_behind_an_effective_config_change() {
        let term = Term::first_of(1, 3);
        let change = Item { kind: Kind::ConfigChange, ..data(term) };
        let void = Fence::default().after(&change);
        assert!(!void.ended, "a void change ends nothing");
        let fence = Fence::default().after(&Item::leader_start(term)).after(&change);
        assert!(fence.ended);
        assert!(!fence.admits(&data(term)));
        assert!(!fence.admits(&Item::leader_start(Term::first_of(2, 3))));
    }
}
