//! The format of the durable log: one record per turn of the event loop.
//!
//! ```text
//! record = body length u32 | crc32 of body u32 | body          (little endian)
//! body   = flags u8 | meta length u16 | meta (postcard) | first position u64 | fence there | item count u32 | items
//! fence  = term u64 | ended u8
//! ```
//!
//! A record is all that a turn changed, so a turn is atomic on disk. Every record carries the whole [`Meta`],
//! which is small: any segment alone says where the log stands, and old segments can simply be deleted.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use omnipaxos::ballot_leader_election::Ballot;
use serde::{Deserialize, Serialize};

use crate::item::{Fence, Item};
use crate::membership::Membership;
use crate::types::Term;

/// Whose log this is. Refusing a wrong one is part of log rule 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) group: u64,
    pub(crate) me: u64,
}

/// Everything durable that is not an item. Positions count items from the start of the log: `decided == 5` says
/// that items 0 to 4, which the owner knows as `LogIndex` 1 to 5, are decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) identity: Identity,
    /// The epoch that this replica takes part in. Everything below but the items and what says where they lie is of this epoch.
    pub(crate) membership: Membership,
    /// Drawn when the log was made. Peers remember it, and so notice a replica that lost its disk (log rule 10).
    pub(crate) store_id: u64,
    pub(crate) peer_stores: BTreeMap<u64, u64>,
    pub(crate) promise: Option<Ballot>,
    pub(crate) accepted_round: Option<Ballot>,
    pub(crate) decided: u64,
    /// Items before this are gone.
    pub(crate) compacted: u64,
    /// The term fence at `compacted`.
    pub(crate) fence: Fence,
    /// The end of the log; kept here because an emptied suffix leaves no item that would show it.
    pub(crate) end: u64,
    /// The application's state must be replaced by one at or after this position (log rule 10).
    pub(crate) needs_state: Option<u64>,
}

/// The log was replaced as a whole (a state transfer) before this record's items.
pub(crate) const FLAG_RESET: u8 = 1;

/// With this record the replica has gone over to the epoch that its meta names.
pub(crate) const FLAG_EPOCH: u8 = 2;

pub(crate) const HEADER_BYTES: usize = 8;

/// First position, fence and item count.
const PLACE_BYTES: usize = 8 + 9 + 4;

/// The largest body: what a length field may claim. Far above what the log's cap lets a synchronisation be.
const MAX_BODY_BYTES: usize = 2 << 30;

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) flags: u8,
    pub(crate) meta: Meta,
    /// The items replace everything from here on; `first + items.len() == meta.end`.
    pub(crate) first: u64,
    /// The term fence at `first`: what a replay that begins with this record starts from.
    pub(crate) first_fence: Fence,
    pub(crate) items: Vec<Item>,
}

/// Why bytes are not a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotARecord {
    /// Cut short, or the checksum does not match: a torn write, if it is the last one.
    Torn,
    /// The checksum matches and the contents make no sense: written by something else.
    Malformed,
}

/// Appends a record to `out`.
pub(crate) fn encode<'a>(
    out: &mut Vec<u8>,
    flags: u8,
    meta: &Meta,
    (first, first_fence): (u64, Fence),
    items: impl ExactSizeIterator<Item = &'a Item>,
) -> Result<(), postcard::Error> {
    let start = out.len();
    out.put_u64_le(0); // length and checksum, filled in below
    out.put_u8(flags);
    let meta = postcard::to_stdvec(meta)?;
    out.put_u16_le(meta.len() as u16);
    out.put_slice(&meta);
    out.put_u64_le(first);
    out.put_u64_le(first_fence.term.0);
    out.put_u8(u8::from(first_fence.ended));
    out.put_u32_le(items.len() as u32);
    for item in items {
        item.encode(out);
    }
    let body_bytes = (out.len() - start - HEADER_BYTES) as u32;
    let crc = crc32fast::hash(&out[start + HEADER_BYTES..]);
    out[start..start + 4].copy_from_slice(&body_bytes.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// The length of the whole record that `header` announces, if it can be one.
pub(crate) fn announced_bytes(header: &[u8]) -> Option<usize> {
    let length = header.get(..4)?;
    let body = u32::from_le_bytes(length.try_into().ok()?) as usize;
    // A body has at least a flag, the meta's length, and the place and number of its items.
    (3 + PLACE_BYTES..=MAX_BODY_BYTES).contains(&body).then_some(body + HEADER_BYTES)
}

/// Checks and decodes one whole record; the items share its memory.
pub(crate) fn decode(mut record: Bytes) -> Result<Record, NotARecord> {
    if announced_bytes(&record) != Some(record.len()) {
        return Err(NotARecord::Torn);
    }
    record.advance(4);
    let crc = record.get_u32_le();
    if crc32fast::hash(&record) != crc {
        return Err(NotARecord::Torn);
    }
    let flags = record.get_u8();
    let meta_bytes = record.get_u16_le() as usize;
    if record.len() < meta_bytes + PLACE_BYTES {
        return Err(NotARecord::Malformed);
    }
    let meta = postcard::from_bytes(&record.split_to(meta_bytes)).map_err(|_| NotARecord::Malformed)?;
    let first = record.get_u64_le();
    let first_fence = Fence { term: Term(record.get_u64_le()), ended: record.get_u8() != 0 };
    let count = record.get_u32_le();
    let mut items = Vec::with_capacity((count as usize).min(record.len()));
    for _ in 0..count {
        items.push(Item::decode(&mut record).map_err(|_| NotARecord::Malformed)?);
    }
    if !record.is_empty() {
        return Err(NotARecord::Malformed);
    }
    Ok(Record { flags, meta, first, first_fence, items })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let items = vec![Item::leader_start(Term::first_of(1, 1)); 3];
        let mut out = Vec::new();
        encode(&mut out, 0, &Meta::default(), (7, Fence::default()), items.iter()).unwrap();
        let record = decode(Bytes::from(out.clone())).unwrap();
        assert_eq!((record.first, record.items), (7, items));
        for cut in 0..out.len() {
            let torn = decode(Bytes::copy_from_slice(&out[..cut]));
            assert!(matches!(torn, Err(NotARecord::Torn)), "cut at {cut}");
        }
        for byte in 0..out.len() {
            let mut bad = out.clone();
            bad[byte] ^= 1;
            assert!(decode(Bytes::from(bad)).is_err(), "bit flipped in byte {byte}");
        }
    }

    proptest::proptest! {
        // A damaged disk is refused, it does not panic.
        #[test]
        fn no_bytes_can_break_the_decoder(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let mut record = (body.len() as u32).to_le_bytes().to_vec();
            record.extend(crc32fast::hash(&body).to_le_bytes());
            record.extend(body);
            decode(Bytes::from(record)).ok();
        }
    }
}
