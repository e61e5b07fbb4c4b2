//! Items, the stored and transmitted form of log entries, and the term fence that judges them.
//!
//! An item is one kind byte, the term in which it was proposed and the application's bytes.
//! [`Fence`] holds the leadership in force and whether the configuration has ended. The verdict on
//! an item depends only on the log before it, so every replica reaches the same verdict (invariant
//! 1). The fence at the compaction point is stored and travels with state transfers; the verdicts
//! are therefore the same after a restart. [`Trimmed`] is the marker for a compacted part of a log.

use bytes::{Buf, BufMut, Bytes};
use omnipaxos::storage::{Entry as PaxosEntry, Snapshot};
use serde::{Deserialize, Serialize};

use crate::entry::{Body, Entry};
use crate::ids::{LogIndex, Term};

/// The kind of an item; the value is its byte on disk and on the wire.
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

/// Size of an encoded item without its payload: length, kind and term.
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

    /// The item as subscribers receive it.
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
    /// Whether an effective `ConfigChange` came before: all later items are rejected (log rule 10).
    pub(crate) ended: bool,
}

impl Fence {
    /// Whether `item`, directly behind this fence, is effective.
    pub(crate) fn admits(&self, item: &Item) -> bool {
        !self.ended
            && match item.kind {
                // Terms only grow; a LeaderStart with a term that is not higher is rejected.
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

/// Marker for the trimmed part of a log (log rule 10). OmniPaxos calls it a snapshot; it holds no
/// state, only the fence at the end of the trimmed part.
///
/// `transferred` is `None` in markers that the library makes for local compaction (the durable log
/// knows the fence there), and `Some` in markers that this crate puts into synchronisation
/// messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trimmed {
    pub(crate) transferred: Option<Fence>,
}

impl Snapshot<Item> for Trimmed {
    fn create(_entries: &[Item]) -> Self {
        Trimmed::default()
    }

    fn merge(&mut self, _delta: Self) {}

    // log rule 10: the library's own snapshot path would send Delta snapshots, which are broken.
    // Always false; `core::paxos` puts a Complete marker into the messages that need one.
    fn use_snapshots() -> bool {
        false
    }
}

impl PaxosEntry for Item {
    type Snapshot = Trimmed;
}

// The library's message types require these; items travel beside the messages (see `wire`), never
// through serde.
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

    // Invariant 1: only items of the leadership in force are effective, whatever a deposed leader
    // appended.
    #[test]
    fn the_fence_admits_only_the_leadership_in_force() {
        let old = Term::first_of(3, 1);
        let new = Term::first_of(4, 2);
        let fence = Fence::default();
        assert!(!fence.admits(&data(old)), "every item before a leadership is rejected");
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

    // Log rule 10: items after a membership change are rejected.
    #[test]
    fn items_behind_an_effective_config_change_are_rejected() {
        let term = Term::first_of(1, 3);
        let change = Item { kind: Kind::ConfigChange, ..data(term) };
        let rejected = Fence::default().after(&change);
        assert!(!rejected.ended, "a rejected change ends nothing");
        let fence = Fence::default().after(&Item::leader_start(term)).after(&change);
        assert!(fence.ended);
        assert!(!fence.admits(&data(term)));
        assert!(!fence.admits(&Item::leader_start(Term::first_of(2, 3))));
    }
}
