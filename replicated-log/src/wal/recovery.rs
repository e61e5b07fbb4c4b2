//! Opening a durable log: replay the records, drop a torn last record, refuse every other damage.
//!
//! Of a sealed segment only the footer is read, of the last segment every record. A segment without
//! a header of its own has not been begun: it was prepared, or its first record is torn, or it was
//! removed and a crash brought its name back.

use std::collections::VecDeque;

use evenkeel_host::Disk;

use crate::item::Fence;

use super::error::{WalError, failed};
use super::index::{Chunk, Segment, WalIndex};
use super::record::{
    self, FLAG_CONFIGURATION, FLAG_RESET, Footer, HEADER_BYTES, NotARecord, Record, SEGMENT_HEADER_BYTES, Seal,
    SegmentHeader, Summary,
};

/// The replay of a log on `disk` into an index.
pub(super) struct Recovery<'a, D> {
    disk: &'a mut D,
    index: WalIndex,
    /// The start of the log according to the last record replayed.
    stated_compacted: u64,
}

impl<D: Disk> Recovery<'_, D> {
    /// A recovery into `index`, which is that of a new log.
    pub(super) fn new(disk: &mut D, index: WalIndex) -> Recovery<'_, D> {
        Recovery { disk, index, stated_compacted: 0 }
    }

    /// The index of the log on disk, or that of a new log if there is none.
    ///
    /// # Errors
    /// [`WalError`]: the disk fails or is damaged.
    pub(super) fn run(mut self) -> Result<WalIndex, WalError> {
        self.replay()?;
        Ok(self.index)
    }

    fn replay(&mut self) -> Result<(), WalError> {
        let numbers = self.disk.segments().map_err(failed("list its segments"))?;
        let headers = numbers.iter().map(|number| self.header_of(*number)).collect::<Result<Vec<_>, _>>()?;
        let Some(last) = headers.iter().rposition(Option::is_some) else {
            return self.refuse_beheaded(&numbers);
        };
        let begun: Vec<SegmentHeader> = contiguous_end(&headers[..=last]);
        let store_id = begun.last().map_or(0, |header| header.seal.store_id);
        if begun.iter().any(|header| header.seal.store_id != store_id) {
            return Err(WalError::Damaged("segments of different logs".to_owned()));
        }
        if let Some(next) = numbers.get(last + 1).copied()
            && self.record_follows(Seal { store_id, segment: next }, SEGMENT_HEADER_BYTES as u64)?
        {
            return Err(WalError::Damaged(format!("segment {next} has no header")));
        }
        for (i, header) in begun.iter().enumerate() {
            self.index.summaries.clear();
            self.index.segments.push_back(Segment { number: header.seal.segment, bytes: SEGMENT_HEADER_BYTES as u64 });
            match begun.get(i + 1) {
                Some(next) => self.replay_sealed(header.seal, next, i + 2 == begun.len())?,
                None => self.replay_last(header.seal)?,
            }
        }
        if let [only] = &begun[..]
            && self.index.segments.back().is_some_and(|segment| segment.bytes == SEGMENT_HEADER_BYTES as u64)
        {
            // The very first record is torn: no peer knows this log.
            tracing::info!(segment = only.seal.segment, "a log whose first record is torn starts over");
            self.index.segments.clear();
            return Ok(());
        }
        // A crashed process may have left records that were written and not synced. They become
        // durable here.
        if let Some(last) = self.index.segments.back() {
            self.disk.sync(last.number).map_err(failed("sync"))?;
        }
        // The first segments may have been removed. The log begins at the first record found, until
        // a later record states its start.
        if self.stated_compacted < self.index.meta.compacted {
            return Err(WalError::Damaged(format!(
                "the log begins at {}, the oldest item found is {}",
                self.stated_compacted, self.index.meta.compacted
            )));
        }
        self.remove_strays(&numbers)
    }

    /// Removes segments that are not part of the log, except the one prepared to be the next.
    fn remove_strays(&mut self, numbers: &[u64]) -> Result<(), WalError> {
        let (Some(first), Some(last)) = (self.index.segments.front(), self.index.segments.back()) else {
            return Ok(());
        };
        let kept = first.number..=last.number + 1;
        for stray in numbers.iter().filter(|number| !kept.contains(number)) {
            tracing::info!(segment = stray, "a segment that is no longer part of the log");
            self.disk.remove(*stray).map_err(failed("delete a segment"))?;
        }
        Ok(())
    }

    fn header_of(&self, segment: u64) -> Result<Option<SegmentHeader>, WalError> {
        let len = self.disk.len(segment).map_err(failed("measure"))?;
        if len < SEGMENT_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let bytes = self.disk.read(segment, 0, SEGMENT_HEADER_BYTES).map_err(failed("read"))?;
        Ok(SegmentHeader::decode(segment, bytes))
    }

    /// Accepts a folder without segment headers only if it is that of a log whose first record is
    /// torn.
    fn refuse_beheaded(&self, numbers: &[u64]) -> Result<(), WalError> {
        for segment in numbers {
            let seal = Seal { store_id: 0, segment: *segment };
            let len = self.disk.len(*segment).map_err(failed("measure"))?;
            let mut offset = SEGMENT_HEADER_BYTES as u64;
            let mut records = 0;
            while let Some(bytes) = self.announced_at(seal, offset, len)? {
                offset += bytes as u64;
                records += 1;
            }
            // A new log has one segment, and the next one may be prepared.
            if *segment > 2 || records > 1 {
                return Err(WalError::Damaged(format!("segment {segment} has no header")));
            }
        }
        Ok(())
    }

    /// Replays a segment that has a successor. If no record of the last segment is sound, the log
    /// continues from the segment before it; that one's last record must therefore be read.
    fn replay_sealed(&mut self, seal: Seal, next: &SegmentHeader, before_last: bool) -> Result<(), WalError> {
        match self.footer_of(seal, next)? {
            Some(footer) => {
                let mut offset = SEGMENT_HEADER_BYTES as u64;
                let count = footer.records.len();
                for (i, mut summary) in footer.records.into_iter().enumerate() {
                    let record_bytes = summary.record_bytes;
                    if before_last && i + 1 == count {
                        summary.meta = Some(self.sound_record_at(seal, offset, next.before_end)?.1.meta);
                    }
                    self.apply(summary, seal.segment, offset)?;
                    offset += record_bytes;
                }
            }
            None => {
                let mut offset = SEGMENT_HEADER_BYTES as u64;
                while offset < next.before_end {
                    let (record_bytes, record) = self.sound_record_at(seal, offset, next.before_end)?;
                    self.apply(record.summary(record_bytes), seal.segment, offset)?;
                    offset += record_bytes;
                }
            }
        }
        if let Some(segment) = self.index.segments.back_mut() {
            segment.bytes = next.before_end;
        }
        Ok(())
    }

    /// The footer of the segment before `next`, if it exists and matches.
    fn footer_of(&self, seal: Seal, next: &SegmentHeader) -> Result<Option<Footer>, WalError> {
        let len = self.disk.len(seal.segment).map_err(failed("measure"))?;
        let (at, bytes) = (next.before_end, next.before_footer_bytes);
        if next.seal.segment != seal.segment + 1 || at.checked_add(bytes).is_none_or(|end| end > len) {
            return Ok(None);
        }
        let read = self.disk.read(seal.segment, at, bytes as usize).map_err(failed("read"))?;
        let footer = Footer::decode(seal, read);
        let records_bytes = |footer: &Footer| footer.records.iter().map(|r| r.record_bytes).sum::<u64>();
        Ok(footer.filter(|footer| SEGMENT_HEADER_BYTES as u64 + records_bytes(footer) == at))
    }

    /// Replays the last segment: every record, up to the first that is not sound.
    fn replay_last(&mut self, seal: Seal) -> Result<(), WalError> {
        let len = self.disk.len(seal.segment).map_err(failed("measure"))?;
        let mut offset = SEGMENT_HEADER_BYTES as u64;
        loop {
            let decoded = match self.announced_at(seal, offset, len)? {
                Some(bytes) => {
                    let whole = self.disk.read(seal.segment, offset, bytes).map_err(failed("read"))?;
                    record::decode(seal, whole).map(|record| (bytes as u64, record))
                }
                None => Err(NotARecord::Torn),
            };
            match decoded {
                Ok((record_bytes, record)) => {
                    let summary = record.summary(record_bytes);
                    let kept = summary.meta.clone().filter(|_| summary.flags != 0);
                    self.index.summarise(Summary { meta: kept, ..summary.clone() });
                    self.apply(summary, seal.segment, offset)?;
                    offset += record_bytes;
                    if let Some(s) = self.index.segments.back_mut() {
                        s.bytes = offset;
                    }
                }
                // The segment was sealed and the next one not begun. Or the rest was never written:
                // the remains of an older segment.
                Err(NotARecord::Footer) => return Ok(()),
                Err(NotARecord::Torn) if !self.record_follows(seal, offset)? => return Ok(()),
                Err(_) => return Err(WalError::Damaged(format!("segment {}, offset {offset}", seal.segment))),
            }
        }
    }

    fn sound_record_at(&self, seal: Seal, offset: u64, end: u64) -> Result<(u64, Record), WalError> {
        let damaged = || WalError::Damaged(format!("segment {}, offset {offset}", seal.segment));
        let len = self.disk.len(seal.segment).map_err(failed("measure"))?.min(end);
        let bytes = self.announced_at(seal, offset, len)?.ok_or_else(damaged)?;
        let whole = self.disk.read(seal.segment, offset, bytes).map_err(failed("read"))?;
        record::decode(seal, whole).map(|record| (bytes as u64, record)).map_err(|_| damaged())
    }

    /// The announced length of the record at `offset`, if it looks like a record and fits.
    fn announced_at(&self, seal: Seal, offset: u64, len: u64) -> Result<Option<usize>, WalError> {
        if len < offset || len - offset < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let header = self.disk.read(seal.segment, offset, HEADER_BYTES).map_err(failed("read"))?;
        Ok(record::announced_bytes(seal, &header).filter(|bytes| *bytes as u64 <= len - offset))
    }

    /// Whether a sound record of this segment lies anywhere behind `offset`, where there is none.
    /// At most one record is written and not synced, so a later one proves damage, not a torn
    /// write.
    fn record_follows(&self, seal: Seal, offset: u64) -> Result<bool, WalError> {
        const STEP_BYTES: u64 = 1 << 20;
        const MARK_BYTES: u64 = 4;
        let mark = seal.mark().to_le_bytes();
        let len = self.disk.len(seal.segment).map_err(failed("measure"))?;
        let mut at = offset + 1;
        while at + MARK_BYTES <= len {
            // Pieces overlap, so that no mark is cut in two.
            let piece_bytes = (len - at).min(STEP_BYTES + MARK_BYTES - 1);
            let piece = self.disk.read(seal.segment, at, piece_bytes as usize).map_err(failed("read"))?;
            for found in marks(&piece, mark) {
                let place = at + found as u64;
                if let Some(bytes) = self.announced_at(seal, place, len)? {
                    let whole = self.disk.read(seal.segment, place, bytes).map_err(failed("read"))?;
                    if !matches!(record::decode(seal, whole), Err(NotARecord::Torn)) {
                        return Ok(true);
                    }
                }
            }
            at += STEP_BYTES;
        }
        Ok(false)
    }

    /// Applies one record, in the order of writing.
    ///
    /// The oldest record found need not be the log's first: earlier segments were deleted because a
    /// later record compacts their items away. Until that record, `meta.compacted` is the oldest
    /// item found.
    fn apply(&mut self, record: Summary, segment: u64, offset: u64) -> Result<(), WalError> {
        let damaged = |what: String| Err(WalError::Damaged(format!("{what} (segment {segment}, offset {offset})")));
        let (first, first_fence) = match record.place {
            Some(place) => place,
            None => (self.index.meta.end, self.index.fence_at(self.index.meta.end)),
        };
        if record.meta.as_ref().is_some_and(|meta| meta.end != first + record.count) {
            return damaged(format!("the log ends behind {first} + {} and yet it does not", record.count));
        }
        let oldest = self.index.segments.len() == 1 && offset == SEGMENT_HEADER_BYTES as u64;
        if oldest || record.flags & FLAG_RESET != 0 || first < self.index.meta.compacted {
            self.index.restart_at(first, first_fence);
        }
        if first > self.index.meta.end {
            return damaged(format!("items {} to {first} are missing", self.index.meta.end));
        }
        self.index.cut(first);
        let begins = record.flags & FLAG_CONFIGURATION != 0;
        let membership = record.meta.as_ref().map(|meta| &meta.membership).filter(|_| begins);
        let opened = membership.map(|next| (next.began.0, Fence { term: next.term, ended: false }));
        if let Some((began, fence)) = opened.filter(|(began, _)| first == *began) {
            self.index.open_fence(began, fence);
        }
        // Replicas with different fences would reach different verdicts.
        if self.index.fence_at(first) != first_fence {
            return damaged(format!("the term fence at {first} differs"));
        }
        self.index.meta.end += record.count;
        self.index.fences.extend(record.fences);
        let record_bytes = record.record_bytes as usize;
        self.index.add(Chunk { first, count: record.count, segment, offset, record_bytes });
        if let Some((began, fence)) = opened.filter(|(began, _)| first < *began) {
            self.index.open_fence(began, fence);
        }
        let Some(mut meta) = record.meta else { return Ok(()) };
        self.stated_compacted = meta.compacted;
        if meta.compacted < self.index.meta.compacted {
            meta.compacted = self.index.meta.compacted;
            meta.fence = self.index.meta.fence;
        } else if self.index.fence_at(meta.compacted) != meta.fence {
            return damaged(format!("the term fence at {} differs", meta.compacted));
        }
        self.index.meta = meta;
        self.index.forget_before(self.index.meta.compacted);
        Ok(())
    }
}

/// The headers at the end of the list whose segments follow each other without a gap.
fn contiguous_end(headers: &[Option<SegmentHeader>]) -> Vec<SegmentHeader> {
    let mut run: VecDeque<SegmentHeader> = VecDeque::new();
    for header in headers.iter().rev() {
        match (header, run.front()) {
            (Some(header), None) => run.push_front(*header),
            (Some(header), Some(next)) if header.seal.segment + 1 == next.seal.segment => run.push_front(*header),
            _ => break,
        }
    }
    run.into()
}

/// The offsets of `mark` in `piece`. Most of a segment that was never used before is zeros.
fn marks(piece: &[u8], mark: [u8; 4]) -> impl Iterator<Item = usize> {
    const BLOCK_BYTES: usize = 4 << 10;
    static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let blocks = piece.chunks(BLOCK_BYTES).enumerate().filter(|(_, block)| **block != ZEROS[..block.len()]);
    blocks.flat_map(move |(i, block)| {
        let begin = i * BLOCK_BYTES;
        let end = (begin + block.len() + mark.len() - 1).min(piece.len());
        // A mark may begin with a block's last zeros.
        let begin = begin.saturating_sub(mark.len() - 1);
        let windows = piece[begin..end].windows(mark.len()).enumerate();
        windows.filter(move |(_, window)| *window == mark).map(move |(at, _)| begin + at)
    })
}
