//! What has happened in a moving range and is still to go over. Pure.
//!
//! Of a key that changed several times only what the later images leave of the earlier ones is kept: what waits is bounded by the keys
//! that change, not by how often they do, so that a copy converges however slow its destination is. Answers all stay (R14).
//! A destination whose copy stands at a position may so lack an image of before it; it has a later one by the fence, and nobody
//! reads before that.

use crate::log_entry::{Change, Changes, TailEntry};
use bytes::Bytes;
use evenkeel_protocol::Key;
use std::collections::{BTreeMap, HashMap};

/// What an entry takes beside its changes, in bytes, about.
const ENTRY_BYTES: usize = 64;

/// Changes by their positions.
#[derive(Debug, Default)]
pub struct Pending {
    entries: BTreeMap<u64, Changes>,
    /// Where the changes of each key are, oldest first.
    places: HashMap<Key, Vec<u64>>,
    bytes: usize,
}

/// What goes over at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Encoded [`TailEntry`]s.
    pub entries: Vec<Bytes>,
    /// The position that is reached with them.
    pub to: u64,
    /// Their bytes.
    pub bytes: usize,
}

impl Pending {
    /// Bytes that wait, about.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// The last position that waits.
    pub fn last(&self) -> Option<u64> {
        self.entries.last_key_value().map(|(position, _)| *position)
    }

    /// Takes in what an entry did, which is later than all before.
    pub fn absorb(&mut self, position: u64, changes: Changes) {
        for change in &changes.changes {
            let mut places = self.places.remove(&change.key).unwrap_or_default();
            // Within an entry a key changes once, or in order; what is in this one already is not looked at.
            places.retain(|before| *before == position || !self.superseded(*before, change));
            if places.last() != Some(&position) {
                places.push(position);
            }
            self.places.insert(change.key.clone(), places);
        }
        self.bytes += ENTRY_BYTES + changes.size_bytes();
        self.entries.insert(position, changes);
    }

    /// Drops what the entry at `position` did to the row that `later` changes, as far as nothing is left of it; `true` if that is all it did
    /// to the row.
    fn superseded(&mut self, position: u64, later: &Change) -> bool {
        let Some(entry) = self.entries.get_mut(&position) else { return true };
        let (mut bytes, mut left) = (0, 0);
        entry.changes.retain(|change| {
            let stays = change.key != later.key || !later.image.supersedes(&change.image);
            bytes += if stays { 0 } else { change.size_bytes() };
            left += usize::from(stays && change.key == later.key);
            stays
        });
        self.bytes -= bytes;
        if entry.changes.is_empty() && entry.answered.is_empty() {
            self.bytes -= ENTRY_BYTES + entry.size_bytes();
            self.entries.remove(&position);
        }
        left == 0
    }

    /// Takes out the first of what waits up to position `to`: at least one entry if there is one, and about `max_bytes`. Changes of keys that
    /// are not copied yet are dropped: the chunk that brings such a key is read later, and holds them. `None` if nothing is left up to `to`.
    pub fn take(&mut self, to: u64, is_copied: impl Fn(&Key) -> bool, max_bytes: usize) -> Option<Piece> {
        let mut piece = Piece { entries: Vec::new(), to, bytes: 0 };
        while let Some(first) = self.entries.first_entry().filter(|first| *first.key() <= to) {
            if piece.bytes >= max_bytes {
                return Some(piece);
            }
            let (position, mut changes) = first.remove_entry();
            self.bytes -= ENTRY_BYTES + changes.size_bytes();
            // A transaction may be more than goes over at once (R12): what is left of it follows, as of the same position.
            let rest = split_off(&mut changes, max_bytes);
            changes.changes.retain(|change| {
                if let Some(places) = self.places.get_mut(&change.key) {
                    places.retain(|place| *place != position);
                    if places.is_empty() {
                        self.places.remove(&change.key);
                    }
                }
                is_copied(&change.key)
            });
            piece.to = if rest.is_some() { position.saturating_sub(1) } else { position };
            if !changes.changes.is_empty() || !changes.answered.is_empty() {
                let entry = TailEntry { position, changes }.encode();
                piece.bytes += entry.len();
                piece.entries.push(entry);
            }
            if let Some(rest) = rest {
                self.bytes += ENTRY_BYTES + rest.size_bytes();
                self.entries.insert(position, rest);
                return Some(piece);
            }
        }
        piece.to = to;
        (!piece.entries.is_empty()).then_some(piece)
    }
}

/// Takes off what comes behind the first `max_bytes` of changes, but for the one that goes over it.
fn split_off(changes: &mut Changes, max_bytes: usize) -> Option<Changes> {
    let mut bytes = 0;
    let fit = changes.changes.iter().take_while(|change| {
        let fits = bytes < max_bytes;
        bytes += change.size_bytes();
        fits
    });
    let at = fit.count();
    (at < changes.changes.len()).then(|| {
        let rest = changes.changes.split_off(at);
        Changes { stamp_ms: changes.stamp_ms, answered: Vec::new(), changes: rest }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::image::{Columns, Image, Part};
    use crate::log_entry::{Answered, KeptReply};
    use evenkeel_protocol::{TableId, TxnId};

    fn key(n: u8) -> Key {
        Key(vec![n].into())
    }

    /// What one statement does to each of these keys: a row of `size` bytes, all of them `size`.
    fn changes(keys: &[u8], size: usize) -> Changes {
        let change =
            |n: &u8| Change { table: TableId(1), key: key(*n), image: Image::Whole(vec![size as u8; size].into()) };
        Changes { stamp_ms: 1, answered: vec![], changes: keys.iter().map(change).collect() }
    }

    fn answer(n: u8) -> Answered {
        let id = TxnId { client: 1, sequence: n.into(), first_sent_ms: 0 };
        Answered { id, table: TableId(1), key: key(n), affected: 1, reply: KeptReply::Nothing }
    }

    /// What a piece brings: position and keys of each entry.
    fn brought(piece: &Piece) -> Vec<(u64, Vec<u8>)> {
        let decoded = piece.entries.iter().map(|entry| TailEntry::decode(entry.clone()).unwrap());
        decoded.map(|e| (e.position, e.changes.changes.iter().map(|c| c.key.0[0]).collect())).collect()
    }

    // R12: a transaction larger than what goes over at once goes over in pieces; its position is reached with the last.
    #[test]
    fn a_large_transaction_goes_over_in_pieces() {
        let mut pending = Pending::default();
        pending.absorb(4, changes(&[1], 10));
        let mut large = changes(&[1, 2, 3, 4, 5], 100);
        large.answered = vec![answer(1)];
        pending.absorb(7, large);
        pending.absorb(9, changes(&[2], 10));
        let mut found = Vec::new();
        let mut reached = Vec::new();
        while let Some(piece) = pending.take(9, |_| true, 250) {
            found.extend(brought(&piece));
            reached.push(piece.to);
        }
        assert_eq!(found, [(7, vec![1, 3, 4]), (7, vec![5]), (9, vec![2])]);
        assert_eq!(reached, [6, 9]);
        assert_eq!((pending.size_bytes(), pending.last()), (0, None));
    }

    #[test]
    fn what_is_not_copied_yet_is_left_to_its_chunk() {
        let mut pending = Pending::default();
        pending.absorb(5, changes(&[1, 9], 10));
        pending.absorb(6, changes(&[8], 10));
        pending.absorb(9, changes(&[8], 10));
        let piece = pending.take(7, |key| *key < self::key(5), 1 << 20).unwrap();
        assert_eq!((brought(&piece), piece.to), (vec![(5, vec![1])], 7));
        assert_eq!(pending.last(), Some(9), "what is later than the next chunk's position waits");
        assert_eq!(pending.take(8, |_| true, 1 << 20), None);
        // Meanwhile the chunk with keys 5 to 9 has been sent, as of 7.
        let piece = pending.take(20, |_| true, 1 << 20).unwrap();
        assert_eq!((brought(&piece), piece.to), (vec![(9, vec![8])], 20));
        assert_eq!((pending.size_bytes(), pending.places.len()), (0, 0));
    }

    /// R14: an answer goes over even if its row's change does not.
    #[test]
    fn answers_always_travel() {
        let mut pending = Pending::default();
        for position in 1..=3 {
            pending.absorb(position, Changes { answered: vec![answer(position as u8)], ..changes(&[7], 10) });
        }
        let piece = pending.take(3, |_| false, 1 << 20).unwrap();
        assert_eq!(brought(&piece), [(1, vec![]), (2, vec![]), (3, vec![])]);
    }

    /// F1: a large row that is updated all the time waits once.
    #[test]
    fn only_the_last_image_of_a_key_waits() {
        let mut pending = Pending::default();
        for position in 1..=100 {
            pending.absorb(position, changes(&[7, position as u8], if position == 100 { 5 } else { 100_000 }));
        }
        assert!(pending.size_bytes() < 100 * 101_000, "{}", pending.size_bytes());
        let piece = pending.take(200, |key| *key == self::key(7), 1 << 20).unwrap();
        assert_eq!(brought(&piece), [(100, vec![7])]);
        assert_eq!(pending.size_bytes(), 0);
    }

    /// E13: of a part, only what a later image of the same row sets again is left out.
    #[test]
    fn parts_wait_until_they_are_set_again() {
        let part = |columns: &[usize], value: u8| {
            let mut values = bytes::BytesMut::new();
            columns.iter().for_each(|_| evenkeel_protocol::rows::put_value(&mut values, Some(&[value])));
            Image::Part(Part::new(Columns::new(columns.iter().copied()), values.freeze()).unwrap())
        };
        let mut pending = Pending::default();
        let mut absorb = |position, image| {
            let changes = vec![Change { table: TableId(1), key: key(7), image }];
            pending.absorb(position, Changes { changes, ..Changes::default() });
            pending.entries.keys().copied().collect::<Vec<_>>()
        };
        assert_eq!(absorb(1, Image::New(Bytes::from_static(b"x"))), [1]);
        assert_eq!(absorb(2, part(&[1], 1)), [1, 2]);
        assert_eq!(absorb(3, part(&[2], 1)), [1, 2, 3]);
        assert_eq!(absorb(4, part(&[1], 2)), [1, 3, 4]);
        assert_eq!(absorb(5, Image::Gone), [5]);
        assert_eq!(absorb(6, part(&[1], 3)), [5, 6]);
        assert_eq!(brought(&pending.take(9, |_| true, 1 << 20).unwrap()), [(5, vec![7]), (6, vec![7])]);
        assert_eq!((pending.size_bytes(), pending.places.len()), (0, 0));
    }

    #[test]
    fn pieces_are_cut_by_bytes_and_go_on_where_the_one_before_ended() {
        let mut pending = Pending::default();
        for position in 1..=10u8 {
            pending.absorb(position.into(), changes(&[position], 1000));
        }
        let mut ends = Vec::new();
        let mut all = Vec::new();
        while let Some(piece) = pending.take(12, |_| true, 2500) {
            assert!(piece.bytes < 4000, "{}", piece.bytes);
            all.extend(brought(&piece));
            ends.push(piece.to);
        }
        assert_eq!(ends, [3, 6, 9, 12]);
        assert_eq!(all.len(), 10);
    }
}
