//! Opening a durable log: replay it, leave out a torn last record, refuse everything else that is wrong.
//!
//! Of a sealed segment only the footer is read, of the last one every record. A segment that does not begin with a header of its
//! own has not been begun: it was prepared, or its first record is torn, or it was removed and the crash brought its name back.

use std::collections::VecDeque;

use crate::item::Fence;
use crate::membership::Membership;

use super::record::{
    self, FLAG_EPOCH, FLAG_RESET, Footer, HEADER_BYTES, Identity, Meta, NotARecord, Record, SEGMENT_HEADER_BYTES, Seal,
    SegmentHeader, Summary,
};
use super::{Chunk, Dirty, Disk, Segment, Wal, WalError, WalLimits, Written, failed};

impl<D: Disk> Wal<D> {
    /// Opens the log on `disk`, or makes an empty one for `identity` in `founding`'s epoch. `fresh_store_id` (random) becomes
    /// the mark of a new log.
    ///
    /// # Errors
    /// [`WalError`]; nothing has been changed then.
    pub(crate) fn open(
        disk: D,
        identity: Identity,
        founding: Membership,
        fresh_store_id: u64,
        limits: WalLimits,
    ) -> Result<Wal<D>, WalError> {
        let mut wal = Wal {
            disk,
            limits,
            meta: Meta { identity, membership: founding, store_id: fresh_store_id, ..Meta::default() },
            recent: VecDeque::new(),
            recent_first: 0,
            recent_size_bytes: 0,
            chunks: VecDeque::new(),
            segments: VecDeque::new(),
            fences: VecDeque::new(),
            dirty: Dirty::default(),
            buffer: Vec::new(),
            summaries: Vec::new(),
            summarised_end: 0,
            stated_compacted: 0,
            written: Written::default(),
            patching: false,
            compacting: false,
        };
        wal.replay()?;
        if wal.meta.identity != identity {
            let found = wal.meta.identity;
            return Err(WalError::WrongOwner(format!("it is that of replica {} of group {}", found.me, found.group)));
        }
        wal.recent_first = wal.meta.end;
        // A new log's identity must be durable before anybody hears of it.
        if wal.segments.is_empty() {
            wal.dirty.meta = true;
            wal.sync()?;
        }
        if let Some(last) = wal.segments.back() {
            let next = last.number + 1;
            wal.disk.expect(next);
        }
        Ok(wal)
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
            self.summaries.clear();
            self.segments.push_back(Segment { number: header.seal.segment, bytes: SEGMENT_HEADER_BYTES as u64 });
            match begun.get(i + 1) {
                Some(next) => self.replay_sealed(header.seal, next, i + 2 == begun.len())?,
                None => self.replay_last(header.seal)?,
            }
        }
        if let [only] = &begun[..]
            && self.segments.back().is_some_and(|segment| segment.bytes == SEGMENT_HEADER_BYTES as u64)
        {
            // The very first record is torn: nobody has heard of this log.
            tracing::info!(segment = only.seal.segment, "a log whose first record is torn starts over");
            self.segments.clear();
            return Ok(());
        }
        // A process that crashed may have left what was written and not synced. From now on it counts as durable.
        if let Some(last) = self.segments.back() {
            self.disk.sync(last.number).map_err(failed("sync"))?;
        }
        // Since a segment that is gone may have been the first one, the log begins where the first record found does, until one
        // says where it begins.
        if self.stated_compacted < self.meta.compacted {
            return Err(WalError::Damaged(format!(
                "the log begins at {}, the oldest item found is {}",
                self.stated_compacted, self.meta.compacted
            )));
        }
        self.remove_strays(&numbers)
    }

    /// What lies in the folder and is no part of the log, but for the segment that was prepared to be the next.
    fn remove_strays(&mut self, numbers: &[u64]) -> Result<(), WalError> {
        let (Some(first), Some(last)) = (self.segments.front(), self.segments.back()) else { return Ok(()) };
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

    /// No segment has a header: a log whose first record is torn, if that. Never one that had more than one record.
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
            // A log that has just been made has one segment, and the next one may be prepared.
            if *segment > 2 || records > 1 {
                return Err(WalError::Damaged(format!("segment {segment} has no header")));
            }
        }
        Ok(())
    }

    /// A segment that another one follows. The last of them is the one that is gone on from if nothing of the last segment is sound,
    /// so its last record must be known whole.
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
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes = next.before_end;
        }
        Ok(())
    }

    /// The footer of the segment before `next`, if it is there and fits.
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

    /// The last segment: every record, up to the first that is not sound.
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
                    self.summarise(Summary { meta: kept, ..summary.clone() });
                    self.apply(summary, seal.segment, offset)?;
                    offset += record_bytes;
                    if let Some(s) = self.segments.back_mut() {
                        s.bytes = offset;
                    }
                }
                // It was sealed, and the next was not begun. Or what is left was never written: the remains of an older segment.
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

    /// How long the record at `offset` says it is, if it looks like one and fits.
    fn announced_at(&self, seal: Seal, offset: u64, len: u64) -> Result<Option<usize>, WalError> {
        if len < offset || len - offset < HEADER_BYTES as u64 {
            return Ok(None);
        }
        let header = self.disk.read(seal.segment, offset, HEADER_BYTES).map_err(failed("read"))?;
        Ok(record::announced_bytes(seal, &header).filter(|bytes| *bytes as u64 <= len - offset))
    }

    /// Whether a sound record of this segment stands anywhere behind `offset`, where there is none. Only one record is ever written
    /// without being synced, so then it is damage, not a torn write.
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

    /// Takes in one record, in the order in which [`Wal::sync`] wrote them.
    ///
    /// The oldest record found need not be the log's first: segments before it were deleted because a later
    /// record compacts their items away. Until that record comes, `meta.compacted` stands at the oldest item found.
    fn apply(&mut self, record: Summary, segment: u64, offset: u64) -> Result<(), WalError> {
        let damaged = |what: String| Err(WalError::Damaged(format!("{what} (segment {segment}, offset {offset})")));
        let (first, first_fence) = match record.place {
            Some(place) => place,
            None => (self.meta.end, self.fence_at(self.meta.end)),
        };
        if record.meta.as_ref().is_some_and(|meta| meta.end != first + record.count) {
            return damaged(format!("the log ends behind {first} + {} and yet it does not", record.count));
        }
        let oldest = self.segments.len() == 1 && offset == SEGMENT_HEADER_BYTES as u64;
        if oldest || record.flags & FLAG_RESET != 0 || first < self.meta.compacted {
            self.chunks.clear();
            self.fences.clear();
            self.meta.compacted = first;
            self.meta.fence = first_fence;
            self.meta.end = first;
        }
        if first > self.meta.end {
            return damaged(format!("items {} to {first} are missing", self.meta.end));
        }
        self.cut_replayed(first);
        let entered = record.flags & FLAG_EPOCH != 0;
        let epoch = record.meta.as_ref().map(|meta| &meta.membership).filter(|_| entered);
        let opened = epoch.map(|epoch| (epoch.began.0, Fence { term: epoch.term, ended: false }));
        if let Some((began, fence)) = opened.filter(|(began, _)| first == *began) {
            self.open_fence(began, fence);
        }
        // Replicas that fold to different fences would judge differently.
        if self.fence_at(first) != first_fence {
            return damaged(format!("the term fence at {first} differs"));
        }
        self.meta.end += record.count;
        self.fences.extend(record.fences);
        let record_bytes = record.record_bytes as usize;
        self.index(Chunk { first, count: record.count, segment, offset, record_bytes });
        if let Some((began, fence)) = opened.filter(|(began, _)| first < *began) {
            self.open_fence(began, fence);
        }
        let Some(mut meta) = record.meta else { return Ok(()) };
        self.stated_compacted = meta.compacted;
        if meta.compacted < self.meta.compacted {
            meta.compacted = self.meta.compacted;
            meta.fence = self.meta.fence;
        } else if self.fence_at(meta.compacted) != meta.fence {
            return damaged(format!("the term fence at {} differs", meta.compacted));
        }
        self.meta = meta;
        self.forget_before(self.meta.compacted);
        Ok(())
    }

    fn cut_replayed(&mut self, from: u64) {
        while self.fences.back().is_some_and(|(at, _)| *at > from) {
            self.fences.pop_back();
        }
        self.cut_chunks(from);
        self.meta.end = self.meta.end.min(from);
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

/// Where `mark` occurs in `piece`. Most of a segment that was never used before is zeros.
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
