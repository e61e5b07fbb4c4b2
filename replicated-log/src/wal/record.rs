//! The format of the durable log: one record per turn of the event loop.
//!
//! ```text
//! record = mark u32 | body length u32 | crc32 u32 | body          (little endian)
//! body = flags u8 | meta length u16 | meta (postcard) | first position u64 | fence there | item
//! count u32 | items fence = term u64 | ended u8
//! ```
//!
//! A record holds everything that a turn changed, so a turn is atomic on disk. Every record carries
//! the whole [`Meta`], which is small: any segment alone tells the positions of the log, and old
//! segments can be deleted.
//!
//! Segments are recycled, so old records lie behind the last new one. The mark and the checksum
//! depend on the segment and the log ([`Seal`]): a record of another segment is never accepted.

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::ids::Term;
use crate::item::{Fence, Item};

use super::meta::Meta;

/// The log was replaced as a whole (a state transfer) before this record's items.
pub(crate) const FLAG_RESET: u8 = 1;

/// Not a record but a [`Footer`].
pub(crate) const FLAG_FOOTER: u8 = 0x80;

/// With this record the replica has begun the configuration that its meta names.
pub(crate) const FLAG_CONFIGURATION: u8 = 2;

/// Mark, length and checksum.
pub(crate) const HEADER_BYTES: usize = 12;

/// The segment and the log to which records belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) store_id: u64,
    pub(crate) segment: u64,
}

impl Seal {
    /// The first bytes of each record of the segment. It is not secret; it finds records among
    /// remains without a checksum at every byte.
    pub(crate) fn mark(&self) -> u32 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        (self.segment.wrapping_add(1).wrapping_mul(MIX) >> 32) as u32
    }

    /// The checksum covers the disk's identity and the segment's number. Records with equal bodies
    /// in segments with different numbers never have the same checksum: a checksum of 32 bits
    /// detects every difference that fits into 32 bits.
    pub(crate) fn checksum(&self, body: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.store_id.to_le_bytes());
        crc.update(&self.segment.to_le_bytes());
        crc.update(body);
        crc.finalize()
    }

    fn fill_in(&self, record: &mut [u8]) {
        let crc = self.checksum(&record[HEADER_BYTES..]);
        let body_bytes = (record.len() - HEADER_BYTES) as u32;
        record[..4].copy_from_slice(&self.mark().to_le_bytes());
        record[4..8].copy_from_slice(&body_bytes.to_le_bytes());
        record[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// The body of a complete record of this segment.
    fn open(&self, mut record: Bytes) -> Result<Bytes, NotARecord> {
        if announced_bytes(*self, &record) != Some(record.len()) {
            return Err(NotARecord::Torn);
        }
        record.advance(8);
        let crc = record.get_u32_le();
        if self.checksum(&record) != crc {
            return Err(NotARecord::Torn);
        }
        Ok(record)
    }
}

/// First position, fence and item count.
const PLACE_BYTES: usize = 8 + 9 + 4;

/// The largest body that a length field may announce.
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
    /// The checksum matches and the contents are malformed: another program wrote it.
    Malformed,
    /// The end of a sealed segment.
    Footer,
}

/// The header of a segment, written together with its first record.
///
/// ```text
/// mark u32 | crc32 u32 | segment u64 | log's mark u64 | end of the segment before u64 | bytes of
/// its footer u64
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) seal: Seal,
    /// The end of the previous segment's records, where its footer begins.
    pub(crate) before_end: u64,
    /// Size of that footer; 0 if there is none.
    pub(crate) before_footer_bytes: u64,
}

pub(crate) const SEGMENT_HEADER_BYTES: usize = 40;

impl SegmentHeader {
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let mut body = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        body.put_u64_le(self.seal.segment);
        body.put_u64_le(self.seal.store_id);
        body.put_u64_le(self.before_end);
        body.put_u64_le(self.before_footer_bytes);
        out[..4].copy_from_slice(&(!self.seal.mark()).to_le_bytes());
        out[4..8].copy_from_slice(&self.seal.checksum(&body).to_le_bytes());
        out[8..].copy_from_slice(&body);
    }

    /// The header of `segment`, if that has been begun.
    pub(crate) fn decode(segment: u64, mut bytes: Bytes) -> Option<SegmentHeader> {
        let mark = bytes.try_get_u32_le().ok()?;
        let crc = bytes.try_get_u32_le().ok()?;
        let body = bytes.clone();
        let found = bytes.try_get_u64_le().ok()?;
        let seal = Seal { store_id: bytes.try_get_u64_le().ok()?, segment: found };
        let before_end = bytes.try_get_u64_le().ok()?;
        let before_footer_bytes = bytes.try_get_u64_le().ok()?;
        let sound = found == segment && mark == !seal.mark() && crc == seal.checksum(&body);
        sound.then_some(SegmentHeader { seal, before_end, before_footer_bytes })
    }
}

/// The contents of a record without its items, as far as a replay needs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) record_bytes: u64,
    pub(crate) flags: u8,
    /// Its first position and the term fence there; `None` if it continues the previous record.
    pub(crate) place: Option<(u64, Fence)>,
    pub(crate) count: u64,
    /// The changes of the term fence among its items.
    pub(crate) fences: Vec<(u64, Fence)>,
    /// `None` if only the log's end depends on it.
    pub(crate) meta: Option<Meta>,
}

impl Record {
    /// Its summary.
    pub(crate) fn summary(self, record_bytes: u64) -> Summary {
        let fences = fence_changes(self.first, self.first_fence, self.items.iter());
        Summary {
            record_bytes,
            flags: self.flags,
            place: Some((self.first, self.first_fence)),
            count: self.items.len() as u64,
            fences,
            meta: Some(self.meta),
        }
    }
}

/// The changes of the term fence by items from `first` on; `fence` is in force before them.
pub(crate) fn fence_changes<'a>(
    first: u64,
    mut fence: Fence,
    items: impl Iterator<Item = &'a Item>,
) -> Vec<(u64, Fence)> {
    let mut changes = Vec::new();
    for (at, item) in (first + 1..).zip(items) {
        let after = fence.after(item);
        if after != fence {
            changes.push((at, after));
            fence = after;
        }
    }
    changes
}

/// The footer of a sealed segment: summaries of its records, so that a replay need not read them.
/// It is not synced when it is written; if it is missing, the records are replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Footer {
    pub(crate) records: Vec<Summary>,
}

impl Footer {
    pub(crate) fn encode(&self, seal: Seal) -> Result<Vec<u8>, postcard::Error> {
        let mut out = vec![0; HEADER_BYTES];
        out.put_u8(FLAG_FOOTER);
        out = postcard::to_extend(self, out)?;
        seal.fill_in(&mut out);
        Ok(out)
    }

    pub(crate) fn decode(seal: Seal, footer: Bytes) -> Option<Footer> {
        let mut body = seal.open(footer).ok()?;
        (body.get_u8() == FLAG_FOOTER).then(|| postcard::from_bytes(&body).ok()).flatten()
    }
}

/// Appends a record to `out`. [`finish`] binds it to a segment.
pub(crate) fn encode<'a>(
    out: &mut Vec<u8>,
    flags: u8,
    meta: &Meta,
    (first, first_fence): (u64, Fence),
    items: impl ExactSizeIterator<Item = &'a Item>,
) -> Result<(), postcard::Error> {
    out.put_bytes(0, HEADER_BYTES);
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
    Ok(())
}

/// Binds a record that [`encode`] has written to the segment that `seal` names.
pub(crate) fn finish(record: &mut [u8], seal: Seal) {
    seal.fill_in(record);
}

/// The length of the complete record that `header` announces, if it can belong to the segment.
pub(crate) fn announced_bytes(seal: Seal, header: &[u8]) -> Option<usize> {
    let mark = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    let body = u32::from_le_bytes(header.get(4..8)?.try_into().ok()?) as usize;
    (mark == seal.mark() && (1..=MAX_BODY_BYTES).contains(&body)).then_some(body + HEADER_BYTES)
}

/// Checks and decodes one complete record; the items share its memory.
pub(crate) fn decode(seal: Seal, record: Bytes) -> Result<Record, NotARecord> {
    let mut record = seal.open(record)?;
    let flags = record.get_u8();
    if flags == FLAG_FOOTER {
        return Err(NotARecord::Footer);
    }
    if record.len() < 2 {
        return Err(NotARecord::Malformed);
    }
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

    const SEAL: Seal = Seal { store_id: 7, segment: 3 };

    fn record(seal: Seal) -> Vec<u8> {
        let items =
            [const { Item { kind: crate::item::Kind::Data, term: Term(9), payload: Bytes::from_static(b"row") } }; 3];
        let mut out = Vec::new();
        encode(&mut out, 0, &Meta::default(), (7, Fence::default()), items.iter()).unwrap();
        finish(&mut out, seal);
        out
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let out = record(SEAL);
        let decoded = decode(SEAL, Bytes::from(out.clone())).unwrap();
        assert_eq!((decoded.first, decoded.items.len()), (7, 3));
        for cut in 0..out.len() {
            let torn = decode(SEAL, Bytes::copy_from_slice(&out[..cut]));
            assert!(matches!(torn, Err(NotARecord::Torn)), "cut at {cut}");
        }
        for byte in 0..out.len() {
            let mut bad = out.clone();
            bad[byte] ^= 1;
            assert!(decode(SEAL, Bytes::from(bad)).is_err(), "bit flipped in byte {byte}");
        }
    }

    // Even with a matching mark the checksum refuses it.
    #[test]
    fn a_record_of_another_segment_or_log_is_not_one_of_this() {
        for segment in (0..200).filter(|segment| *segment != SEAL.segment) {
            for seal in [Seal { segment, ..SEAL }, Seal { store_id: segment << 20, ..SEAL }] {
                let mut old = record(seal);
                assert!(decode(SEAL, Bytes::from(old.clone())).is_err() || seal == SEAL);
                old[..4].copy_from_slice(&SEAL.mark().to_le_bytes());
                assert!(matches!(decode(SEAL, Bytes::from(old)), Err(NotARecord::Torn)), "{seal:?}");
            }
        }
    }

    proptest::proptest! {
        // A damaged disk is refused, it does not panic.
        #[test]
        fn no_bytes_can_break_the_decoder(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..400)) {
            let mut record = vec![0; HEADER_BYTES];
            record.extend(body);
            finish(&mut record, SEAL);
            decode(SEAL, Bytes::from(record.clone())).ok();
            record[HEADER_BYTES] = FLAG_FOOTER;
            finish(&mut record, SEAL);
            let _ = Footer::decode(SEAL, Bytes::from(record));
        }
    }
}
