//! Entries larger than the log accepts at once (R12): cut into parts by the proposer, joined before
//! they are applied.
//!
//! No other module knows of parts. An entry takes effect as a whole, at the position of its last
//! part and by the state there; earlier parts have no effect. If a leadership ends before the last
//! part is decided, the next leadership's beginning drops the parts: none of the missing ones comes
//! any more.
//!
//! Parts are kept in memory only, but for those that a replica has taken with another one's state:
//! they are recorded with it. A replica must therefore not record, and the log must not
//! compact, a position between the first part of an entry and its last
//! ([`Unfinished::recordable`]): after a restart the log delivers the parts again. This holds for a
//! complete entry too, until PostgreSQL holds it, because the entry lies at the position of its
//! last part and everything before that position may be applied earlier. Entries that were applied
//! after the recorded position are applied again in the log's order, with the same result.

use super::decode::Malformed;
use super::entry::{MAX_ENTRY_BYTES, ShardEntry};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_protocol::value::MAX_VALUE_BYTES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most that the changes of one transaction, or one piece of a move, may take as they are
/// logged, in bytes.
pub const MAX_TRANSACTION_BYTES: usize = 256 << 20;
/// The most that the unfinished entries of a replica take, in bytes. A leader sends one at a time.
pub const MAX_UNFINISHED_BYTES: usize = MAX_TRANSACTION_BYTES + MAX_ENTRY_BYTES;
/// Parts of an entry that are in the log's way at once: more wait for those to be decided.
pub const PARTS_UNDER_WAY: usize = 8;
/// A simulated entry's part, in bytes, at least: so that there are entries of several parts among
/// small ones.
const SIMULATED_PART_BYTES: usize = 512;
/// Parts of a simulated entry, about, at most: as many as the largest value has outside a
/// simulation. A limited number is under way at a time, and the next entry of several parts waits
/// for all of them. So their number times the log's delay is what all such entries take one after
/// the other, and must not grow beyond what it can be in a cluster.
const SIMULATED_PARTS: usize = MAX_VALUE_BYTES / MAX_ENTRY_BYTES;

/// Not a kind of entry (see `entry`).
const KIND_PART: u8 = 3;
/// Kind, serial, number, count and the whole entry's size.
const HEADER_BYTES: usize = 1 + 8 + 4 + 4 + 4;

/// The payload at one position of the log.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// An entry.
    Whole(ShardEntry),
    /// A part of one.
    Part(Part),
}

/// A part of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The entry's serial.
    pub serial: u64,
    /// Which part, from 0.
    number: u32,
    /// Of how many.
    count: u32,
    /// The whole entry's size, in bytes.
    total_bytes: u32,
    /// The bytes.
    bytes: Bytes,
}

/// The payloads to propose for an entry, in order: the entry, or its parts.
pub fn cut(serial: u64, encoded: Bytes) -> impl ExactSizeIterator<Item = Bytes> {
    let limit = match evenkeel_host::simulation() {
        Some(_) => simulated_limit(encoded.len()),
        None => MAX_ENTRY_BYTES,
    };
    cut_at(limit, serial, encoded)
}

/// The most bytes of a simulated entry of this size that one payload carries.
fn simulated_limit(bytes: usize) -> usize {
    SIMULATED_PART_BYTES.max(bytes.div_ceil(SIMULATED_PARTS) + HEADER_BYTES)
}

fn cut_at(limit: usize, serial: u64, encoded: Bytes) -> impl ExactSizeIterator<Item = Bytes> {
    let whole = encoded.len() <= limit;
    let piece = limit - HEADER_BYTES;
    let count = if whole { 1 } else { encoded.len().div_ceil(piece) as u32 };
    (0..count).map(move |number| {
        if whole {
            return encoded.clone();
        }
        let from = number as usize * piece;
        let bytes = &encoded[from..encoded.len().min(from + piece)];
        let mut out = BytesMut::with_capacity(HEADER_BYTES + bytes.len());
        out.put_u8(KIND_PART);
        out.put_u64(serial);
        out.put_u32(number);
        out.put_u32(count);
        out.put_u32(encoded.len() as u32);
        out.put_slice(bytes);
        out.freeze()
    })
}

impl Payload {
    /// Decodes a payload.
    ///
    /// # Errors
    /// They are neither an entry nor a part of one.
    pub fn decode(mut bytes: Bytes) -> Result<Payload, Malformed> {
        if bytes.first() != Some(&KIND_PART) {
            return ShardEntry::decode(bytes).map(Payload::Whole);
        }
        if bytes.len() < HEADER_BYTES {
            return Err(Malformed("a part ends early".into()));
        }
        bytes.advance(1);
        let (serial, number, count) = (bytes.get_u64(), bytes.get_u32(), bytes.get_u32());
        let total_bytes = bytes.get_u32();
        if number >= count {
            return Err(Malformed(format!("part {number} of {count}")));
        }
        Ok(Payload::Part(Part { serial, number, count, total_bytes, bytes }))
    }

    /// The entry's serial.
    pub fn serial(&self) -> u64 {
        match self {
            Payload::Whole(entry) => entry.serial,
            Payload::Part(part) => part.serial,
        }
    }
}

impl Part {
    fn is_last(&self) -> bool {
        self.number + 1 == self.count
    }
}

/// The effect of a part on its entry.
#[derive(Debug, PartialEq)]
pub enum Added {
    /// There are more to come.
    Waits,
    /// It was the last.
    Complete(Box<ShardEntry>),
    /// It was the last part of an entry whose other parts are not all here: the entry is rejected,
    /// on every replica alike.
    Rejected,
}

/// The entries of the present term whose last part has not come, and the positions of complete
/// entries.
#[derive(Debug, Default)]
pub struct Unfinished {
    entries: BTreeMap<u64, Collected>,
    /// First and last positions of entries that are whole, as long as no position behind them is
    /// recorded.
    whole: Vec<(u64, u64)>,
}

/// The first parts of an unfinished entry, as they go to another replica with the state of a
/// position between two parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstParts {
    serial: u64,
    next: u32,
    total_bytes: usize,
    bytes: Bytes,
}

#[derive(Debug)]
struct Collected {
    first: u64,
    next: u32,
    total_bytes: usize,
    bytes: BytesMut,
}

impl Unfinished {
    /// Takes in a part that the log has at `position`.
    ///
    /// # Errors
    /// The parts do not make an entry.
    pub fn add(&mut self, position: u64, part: &Part) -> Result<Added, Malformed> {
        if part.number == 0 {
            let taken: usize = self.entries.values().map(|collected| collected.total_bytes).sum();
            let total_bytes = part.total_bytes as usize;
            if taken + total_bytes <= MAX_UNFINISHED_BYTES {
                let bytes = BytesMut::with_capacity(total_bytes);
                self.entries.insert(part.serial, Collected { first: position, next: 0, total_bytes, bytes });
            }
        }
        let Some(collected) = self.entries.get_mut(&part.serial) else {
            return Ok(if part.is_last() { Added::Rejected } else { Added::Waits });
        };
        if collected.next != part.number || collected.bytes.len() + part.bytes.len() > collected.total_bytes {
            self.entries.remove(&part.serial);
            return Ok(if part.is_last() { Added::Rejected } else { Added::Waits });
        }
        collected.next += 1;
        collected.bytes.extend_from_slice(&part.bytes);
        if !part.is_last() {
            return Ok(Added::Waits);
        }
        match self.entries.remove(&part.serial) {
            Some(whole) => {
                self.whole.push((whole.first, position));
                Ok(Added::Complete(Box::new(ShardEntry::decode(whole.bytes.freeze())?)))
            }
            None => Ok(Added::Rejected),
        }
    }

    /// The first parts of all that is unfinished.
    pub fn first_parts(&self) -> Vec<FirstParts> {
        let parts = |(serial, collected): (&u64, &Collected)| FirstParts {
            serial: *serial,
            next: collected.next,
            total_bytes: collected.total_bytes,
            bytes: Bytes::copy_from_slice(&collected.bytes),
        };
        self.entries.iter().map(parts).collect()
    }

    /// Continues with first parts that belong to the state at `position`. They lie before it, in a
    /// log that this replica does not have: no later position may be recorded before their entries
    /// are whole.
    pub fn continued(parts: &[FirstParts], position: u64) -> Unfinished {
        let collected = |parts: &FirstParts| {
            let (next, total_bytes) = (parts.next, parts.total_bytes);
            let bytes = BytesMut::from(&parts.bytes[..]);
            (parts.serial, Collected { first: position + 1, next, total_bytes, bytes })
        };
        Unfinished { entries: parts.iter().map(collected).collect(), whole: Vec::new() }
    }

    /// A new term has begun: unfinished entries get no further parts.
    pub fn forget(&mut self) {
        self.entries.clear();
    }

    /// The position of the first part of all that is unfinished.
    pub fn first(&self) -> Option<u64> {
        self.entries.values().map(|collected| collected.first).min()
    }

    /// The last position up to `position` that may be recorded: a replica that starts behind it
    /// finds each entry whole, or not at all.
    pub fn recordable(&self, position: u64) -> u64 {
        let mut recordable = self.first().map_or(position, |first| position.min(first - 1));
        // The parts of one may lie among those of another: a position before the one may lie within
        // the other.
        while let Some((first, _)) = self.whole.iter().find(|(first, last)| (*first..*last).contains(&recordable)) {
            recordable = first - 1;
        }
        recordable
    }

    /// This position is recorded: nothing before it is needed.
    pub fn recorded(&mut self, position: u64) {
        self.whole.retain(|(_, last)| *last > position);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::image::Image;
    use crate::log_entry::{Change, Changes, EntryBody};
    use evenkeel_protocol::{Key, TableId};

    fn entry(serial: u64, bytes: usize) -> ShardEntry {
        let row = Image::Whole(Bytes::from(vec![serial as u8; bytes]));
        let changes = vec![Change { table: TableId(1), key: Key(Bytes::from_static(b"k")), image: row }];
        ShardEntry { serial, body: EntryBody::Changes(Changes { changes, ..Changes::default() }) }
    }

    fn parts(entry: &ShardEntry, limit: usize) -> Vec<Part> {
        let payloads: Vec<Bytes> = cut_at(limit, entry.serial, entry.encode()).collect();
        assert!(payloads.iter().all(|payload| payload.len() <= limit));
        let part = |payload| match Payload::decode(payload).unwrap() {
            Payload::Part(part) => part,
            other => panic!("{other:?}"),
        };
        payloads.into_iter().map(part).collect()
    }

    // R12: a replica that takes another one's state between two parts goes on with the first ones,
    // and with them again if it starts again before the entry is whole.
    #[test]
    fn first_parts_go_with_a_state() {
        let large = entry(7, 1000);
        let all = parts(&large, 200);
        let mut sender = Unfinished::default();
        for (position, part) in (10..).zip(&all[..3]) {
            assert_eq!(sender.add(position, part).unwrap(), Added::Waits);
        }
        let sent = postcard::to_stdvec(&sender.first_parts()).unwrap();
        let sent: Vec<FirstParts> = postcard::from_bytes(&sent).unwrap();
        let mut taken = Unfinished::continued(&sent, 12);
        assert_eq!(taken.recordable(40), 12, "no position behind the state's");
        let mut added = Added::Waits;
        for (position, part) in (13..).zip(&all[3..]) {
            added = taken.add(position, part).unwrap();
        }
        assert_eq!(added, Added::Complete(Box::new(large)));
        assert_eq!(taken.recordable(40), 40);
        assert!(Unfinished::continued(&[], 12).first().is_none());
    }

    // R12: an entry takes effect with its last part, whatever lies between them.
    #[test]
    fn entries_are_put_together_with_others_between() {
        let (large, other) = (entry(7, 1000), entry(8, 300));
        assert_eq!(cut_at(2000, 7, large.encode()).collect::<Vec<_>>(), [large.encode()], "whole if it fits");
        let (mut unfinished, mut position) = (Unfinished::default(), 10);
        let (large_parts, other_parts) = (parts(&large, 200), parts(&other, 200));
        let mut complete = Vec::new();
        let longest = large_parts.len();
        for n in 0..longest {
            for part in [large_parts.get(n), other_parts.get(n)].into_iter().flatten() {
                match unfinished.add(position, part).unwrap() {
                    Added::Complete(entry) => complete.push(*entry),
                    added => assert_eq!(added, Added::Waits),
                }
                position += 1;
            }
            if n + 1 < longest {
                assert_eq!(unfinished.first(), Some(10), "the log is needed from there on");
            }
        }
        assert_eq!(complete, [other, large]);
        assert_eq!(unfinished.first(), None);
    }

    /// Breaks if a position between an entry's parts is recorded because the entry is complete,
    /// though PostgreSQL does not hold it: a replica that starts there finds the last part alone,
    /// the entry is rejected, and what it changed and answered is lost (found by the
    /// simulation, seed 174: a statement was executed twice).
    #[test]
    fn no_position_within_an_entry_is_recorded() {
        let (large_parts, other_parts) = (parts(&entry(7, 1000), 200), parts(&entry(8, 300), 200));
        let mut unfinished = Unfinished::default();
        let add = |unfinished: &mut Unfinished, position, part| unfinished.add(position, part).unwrap();
        // The other's parts lie at 9 and 11; the large one's from 10 on, but for 11.
        add(&mut unfinished, 9, &other_parts[0]);
        add(&mut unfinished, 10, &large_parts[0]);
        assert_eq!(unfinished.recordable(10), 8);
        assert_eq!(other_parts.len(), 2);
        assert!(matches!(add(&mut unfinished, 11, &other_parts[1]), Added::Complete(_)));
        assert_eq!(
            (unfinished.recordable(8), unfinished.recordable(11)),
            (8, 8),
            "before the large one is within the other"
        );
        for (n, part) in large_parts.iter().enumerate().skip(1) {
            add(&mut unfinished, 11 + n as u64, part);
        }
        let last = 10 + large_parts.len() as u64;
        let at = [9, 10, 11, last - 1, last, last + 5].map(|position| unfinished.recordable(position));
        assert_eq!(at, [8, 8, 8, 8, last, last + 5], "complete, and perhaps not in PostgreSQL");
        // A new term does not undo complete entries.
        unfinished.forget();
        assert_eq!(unfinished.recordable(last - 1), 8);
        unfinished.recorded(last);
        assert_eq!((unfinished.recordable(last - 1), unfinished.whole.len()), (last - 1, 0));
    }

    #[test]
    fn an_incomplete_entry_is_rejected_at_its_last_part() {
        let parts = parts(&entry(7, 1000), 200);
        let last = parts.len() - 1;
        let mut unfinished = Unfinished::default();
        assert_eq!(unfinished.add(1, &parts[0]).unwrap(), Added::Waits);
        unfinished.forget();
        assert_eq!(unfinished.first(), None);
        for part in &parts[1..last] {
            assert_eq!(unfinished.add(2, part).unwrap(), Added::Waits);
        }
        assert_eq!(unfinished.add(3, &parts[last]).unwrap(), Added::Rejected, "its beginning was of an earlier term");
        for gap in 1..last {
            for (n, part) in parts.iter().enumerate().filter(|(n, _)| *n != gap) {
                let added = unfinished.add(4, part).unwrap();
                assert_eq!(added, if n == last { Added::Rejected } else { Added::Waits });
            }
        }
        assert_eq!(unfinished.first(), None);
    }

    #[test]
    fn what_unfinished_entries_take_is_bounded() {
        let huge = Part {
            serial: 1,
            number: 0,
            count: 2,
            total_bytes: MAX_UNFINISHED_BYTES as u32,
            bytes: Bytes::from_static(b"x"),
        };
        let mut unfinished = Unfinished::default();
        assert_eq!(unfinished.add(1, &huge).unwrap(), Added::Waits);
        let second = Part { serial: 2, total_bytes: 2, ..huge.clone() };
        assert_eq!(unfinished.add(2, &second).unwrap(), Added::Waits);
        let end = Part { serial: 2, number: 1, total_bytes: 2, ..huge };
        assert_eq!(unfinished.add(3, &end).unwrap(), Added::Rejected, "there was no room for its beginning");
    }

    // Breaks if large entries of a simulation become more parts than the log can carry beside other
    // work, so that it does nothing else for seconds, at any delay of its own: then clients'
    // attempts outlast the clients' patience, and moves get no turn.
    #[test]
    fn a_simulated_entry_is_of_some_parts_and_never_of_very_many() {
        let count = |bytes| cut_at(simulated_limit(bytes), 1, Bytes::from(vec![0; bytes])).len();
        assert_eq!([count(100), count(512), count(513)], [1, 1, 2]);
        for bytes in [10_000, 30_000, 300_000, 950_000, 5_000_000] {
            assert!((PARTS_UNDER_WAY..=SIMULATED_PARTS).contains(&count(bytes)), "{bytes}: {}", count(bytes));
        }
    }

    #[test]
    fn a_part_cut_short_is_malformed() {
        let payload = cut_at(200, 7, entry(7, 1000).encode()).next().unwrap();
        for length in 0..HEADER_BYTES {
            assert!(Payload::decode(payload.slice(..length)).is_err());
        }
    }
}
