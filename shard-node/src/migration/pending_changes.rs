//! Changes of a moving range that have not been sent to the destination yet. Pure.
//!
//! Of a key that changed several times, the images that later ones supersede are dropped. The size
//! of the pending changes is therefore bounded by the number of changing keys, not by the number of
//! changes, and a copy converges however slow its destination is. Answers for the retry window are
//! never dropped (R14).
//!
//! A destination that has reached a position may lack an image that is older than it. It has a
//! later image of the row by the fence, and nobody reads the rows before that.

use crate::log_entry::{Change, Changes, TailEntry};
use bytes::Bytes;
use evenkeel_protocol::Key;
use std::collections::{BTreeMap, HashMap};

/// The approximate bytes of an entry in addition to its changes.
const ENTRY_BYTES: usize = 64;

/// Changes by their positions.
#[derive(Debug, Default)]
pub struct PendingChanges {
    entries: BTreeMap<u64, Changes>,
    /// The positions of the changes of each key, oldest first.
    places: HashMap<Key, Vec<u64>>,
    bytes: usize,
}

/// A piece of the changes that is sent at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPiece {
    /// Encoded [`TailEntry`]s.
    pub entries: Vec<Bytes>,
    /// The position that the destination reaches with it.
    pub to: u64,
    /// Its bytes.
    pub bytes: usize,
}

impl PendingChanges {
    /// The approximate bytes of the pending changes.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// The last pending position.
    pub fn last(&self) -> Option<u64> {
        self.entries.last_key_value().map(|(position, _)| *position)
    }

    /// Adds the changes of an entry, which is later than all before.
    pub fn absorb(&mut self, position: u64, changes: Changes) {
        for change in &changes.changes {
            let mut places = self.places.remove(&change.key).unwrap_or_default();
            // Within an entry a key changes once, or in order. Its own changes do not supersede
            // each other.
            places.retain(|before| *before == position || !self.superseded(*before, change));
            if places.last() != Some(&position) {
                places.push(position);
            }
            self.places.insert(change.key.clone(), places);
        }
        self.bytes += ENTRY_BYTES + changes.size_bytes();
        self.entries.insert(position, changes);
    }

    /// Drops the changes that the entry at `position` made to the row of `later`, as far as `later`
    /// supersedes them. `true` if no change of the row is left there.
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

    /// Takes the first pending entries up to position `to`: at least one, if there is one, and
    /// about `max_bytes`. Changes of keys that are not copied yet are dropped: the chunk of such a
    /// key is read later and contains them. `None` if nothing is pending up to `to`.
    pub fn take(&mut self, to: u64, is_copied: impl Fn(&Key) -> bool, max_bytes: usize) -> Option<StreamPiece> {
        let mut piece = StreamPiece { entries: Vec::new(), to, bytes: 0 };
        while let Some(first) = self.entries.first_entry().filter(|first| *first.key() <= to) {
            if piece.bytes >= max_bytes {
                return Some(piece);
            }
            let (position, mut changes) = first.remove_entry();
            self.bytes -= ENTRY_BYTES + changes.size_bytes();
            // A transaction may be larger than a piece (R12). The rest of it follows, at the same
            // position.
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

/// Splits off the changes after the first `max_bytes`. The change that crosses the limit stays.
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
    use crate::log_entry::image::{Columns, Image, PartialRow};
    use crate::log_entry::{Answered, KeptReply};
    use evenkeel_protocol::{TableId, TxnId};

    fn key(n: u8) -> Key {
        Key(vec![n].into())
    }

    /// The changes of one statement to these keys: rows of `size` bytes, all of value `size`.
    fn changes(keys: &[u8], size: usize) -> Changes {
        let change =
            |n: &u8| Change { table: TableId(1), key: key(*n), image: Image::Whole(vec![size as u8; size].into()) };
        Changes { stamp_ms: 1, answered: vec![], changes: keys.iter().map(change).collect() }
    }

    fn answer(n: u8) -> Answered {
        let id = TxnId { client: 1, sequence: n.into(), first_sent_ms: 0 };
        Answered { id, table: TableId(1), key: key(n), affected: 1, reply: KeptReply::Nothing }
    }

    /// The position and the keys of each entry of a piece.
    fn brought(piece: &StreamPiece) -> Vec<(u64, Vec<u8>)> {
        let decoded = piece.entries.iter().map(|entry| TailEntry::decode(entry.clone()).unwrap());
        decoded.map(|e| (e.position, e.changes.changes.iter().map(|c| c.key.0[0]).collect())).collect()
    }

    // R12: a transaction larger than a piece is sent in several pieces. Its position is reached
    // with the last.
    #[test]
    fn a_large_transaction_is_sent_in_pieces() {
        let mut pending = PendingChanges::default();
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
    fn changes_of_keys_that_are_not_copied_are_left_to_their_chunk() {
        let mut pending = PendingChanges::default();
        pending.absorb(5, changes(&[1, 9], 10));
        pending.absorb(6, changes(&[8], 10));
        pending.absorb(9, changes(&[8], 10));
        let piece = pending.take(7, |key| *key < self::key(5), 1 << 20).unwrap();
        assert_eq!((brought(&piece), piece.to), (vec![(5, vec![1])], 7));
        assert_eq!(pending.last(), Some(9), "a change after the next chunk's position stays pending");
        assert_eq!(pending.take(8, |_| true, 1 << 20), None);
        // Meanwhile the chunk with keys 5 to 9 has been sent, as of position 7.
        let piece = pending.take(20, |_| true, 1 << 20).unwrap();
        assert_eq!((brought(&piece), piece.to), (vec![(9, vec![8])], 20));
        assert_eq!((pending.size_bytes(), pending.places.len()), (0, 0));
    }

    /// R14: an answer is sent even if the change of its row is not.
    #[test]
    fn answers_are_always_sent() {
        let mut pending = PendingChanges::default();
        for position in 1..=3 {
            pending.absorb(position, Changes { answered: vec![answer(position as u8)], ..changes(&[7], 10) });
        }
        let piece = pending.take(3, |_| false, 1 << 20).unwrap();
        assert_eq!(brought(&piece), [(1, vec![]), (2, vec![]), (3, vec![])]);
    }

    /// F1: a large row that is updated all the time is pending once.
    #[test]
    fn only_the_last_image_of_a_key_is_pending() {
        let mut pending = PendingChanges::default();
        for position in 1..=100 {
            pending.absorb(position, changes(&[7, position as u8], if position == 100 { 5 } else { 100_000 }));
        }
        assert!(pending.size_bytes() < 100 * 101_000, "{}", pending.size_bytes());
        let piece = pending.take(200, |key| *key == self::key(7), 1 << 20).unwrap();
        assert_eq!(brought(&piece), [(100, vec![7])]);
        assert_eq!(pending.size_bytes(), 0);
    }

    /// E13: a partial image is superseded only by a later image that sets the same columns.
    #[test]
    fn partial_images_are_pending_until_their_columns_are_set_again() {
        let part = |columns: &[usize], value: u8| {
            let mut values = bytes::BytesMut::new();
            columns.iter().for_each(|_| evenkeel_protocol::rows::put_value(&mut values, Some(&[value])));
            Image::Part(PartialRow::new(Columns::new(columns.iter().copied()), values.freeze()).unwrap())
        };
        let mut pending = PendingChanges::default();
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
    fn pieces_are_cut_by_bytes_and_continue_where_the_previous_one_ended() {
        let mut pending = PendingChanges::default();
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
