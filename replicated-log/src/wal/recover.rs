//! Opening a durable log: replay every record, cut off a torn last one, refuse everything else that is wrong.

use std::collections::VecDeque;

use crate::item::{Fence, Item};
use crate::membership::Membership;

use super::record::{self, FLAG_EPOCH, FLAG_RESET, HEADER_BYTES, Identity, Meta, NotARecord, Record};
use super::{Chunk, Dirty, Disk, Segment, Wal, WalError, WalLimits, failed};

impl<D: Disk> Wal<D> {
    /// Opens the log on `disk`, or makes an empty one for `identity` in `founding`'s epoch. `fresh_store_id` (random) becomes
    /// the mark of a new log.
    ///
    /// # Errors
    /// [`WalError`]; nothing has been changed then, apart from a torn tail that may have been cut off.
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
        if wal.segments.iter().all(|s| s.bytes == 0) {
            wal.dirty.meta = true;
            wal.sync()?;
        }
        Ok(wal)
    }

    fn replay(&mut self) -> Result<(), WalError> {
        let numbers = self.disk.segments().map_err(failed("list its segments"))?;
        let mut stated_compacted = 0;
        for (i, number) in numbers.iter().enumerate() {
            self.segments.push_back(Segment { number: *number, bytes: 0 });
            self.replay_segment(*number, i + 1 == numbers.len(), &mut stated_compacted)?;
        }
        if stated_compacted < self.meta.compacted {
            return Err(WalError::Damaged(format!(
                "the log begins at {stated_compacted}, the oldest item found is {}",
                self.meta.compacted
            )));
        }
        Ok(())
    }

    fn replay_segment(&mut self, segment: u64, last: bool, stated_compacted: &mut u64) -> Result<(), WalError> {
        let len = self.disk.len(segment).map_err(failed("measure"))?;
        let mut offset = 0;
        while offset < len {
            let (record_bytes, decoded) = self.record_at(segment, offset, len)?;
            match decoded {
                Ok(record) => {
                    let chunk =
                        Chunk { first: record.first, count: record.items.len() as u64, segment, offset, record_bytes };
                    *stated_compacted = record.meta.compacted;
                    self.apply(record, chunk)?;
                    offset += record_bytes as u64;
                    if let Some(s) = self.segments.back_mut() {
                        s.bytes = offset;
                    }
                }
                // What is left was never written: the end of this segment.
                Err(NotARecord::Torn) if self.only_zeros(segment, offset, len)? => return Ok(()),
                Err(NotARecord::Torn) if last && !self.record_follows(segment, offset, len)? => {
                    // All of it, or its remains could one day stand behind a new record and be taken for one.
                    tracing::info!(segment, offset, "cutting off a torn last record");
                    return self.disk.clear_from(segment, offset).map_err(failed("cut off a torn record"));
                }
                Err(_) => {
                    return Err(WalError::Damaged(format!("segment {segment}, offset {offset}")));
                }
            }
        }
        Ok(())
    }

    fn record_at(&self, segment: u64, offset: u64, len: u64) -> Result<(usize, Result<Record, NotARecord>), WalError> {
        let torn = Ok((0, Err(NotARecord::Torn)));
        if len - offset < HEADER_BYTES as u64 {
            return torn;
        }
        let header = self.disk.read(segment, offset, HEADER_BYTES).map_err(failed("read"))?;
        match record::announced_bytes(&header) {
            Some(bytes) if bytes as u64 <= len - offset => {
                let whole = self.disk.read(segment, offset, bytes).map_err(failed("read"))?;
                Ok((bytes, record::decode(whole)))
            }
            _ => torn,
        }
    }

    fn only_zeros(&self, segment: u64, mut offset: u64, len: u64) -> Result<bool, WalError> {
        const STEP_BYTES: u64 = 1 << 20;
        while offset < len {
            let step = (len - offset).min(STEP_BYTES);
            let some = self.disk.read(segment, offset, step as usize).map_err(failed("read"))?;
            if some.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += step;
        }
        Ok(true)
    }

    /// Whether a sound record stands behind the unsound one at `offset`. Only one record is ever written without
    /// being synced, so then it is damage, not a torn write.
    fn record_follows(&self, segment: u64, offset: u64, len: u64) -> Result<bool, WalError> {
        if len - offset < HEADER_BYTES as u64 {
            return Ok(false);
        }
        let header = self.disk.read(segment, offset, HEADER_BYTES).map_err(failed("read"))?;
        match record::announced_bytes(&header) {
            Some(bytes) if offset + (bytes as u64) < len => {
                let (_, next) = self.record_at(segment, offset + bytes as u64, len)?;
                Ok(next.is_ok())
            }
            _ => Ok(false),
        }
    }

    /// Takes in one record, in the order in which [`Wal::sync`] wrote them.
    ///
    /// The oldest record found need not be the log's first: segments before it were deleted because a later
    /// record compacts their items away. Until that record comes, `meta.compacted` stands at the oldest item found.
    fn apply(&mut self, record: Record, chunk: Chunk) -> Result<(), WalError> {
        let damaged = |what: String| {
            let (segment, offset) = (chunk.segment, chunk.offset);
            Err(WalError::Damaged(format!("{what} (segment {segment}, offset {offset})")))
        };
        let mut meta = record.meta;
        if meta.end != record.first + chunk.count {
            return damaged(format!("the log ends at {} and yet it does not", meta.end));
        }
        let oldest = self.segments.len() == 1 && chunk.offset == 0;
        if oldest || record.flags & FLAG_RESET != 0 || record.first < self.meta.compacted {
            self.chunks.clear();
            self.fences.clear();
            self.meta.compacted = record.first;
            self.meta.fence = record.first_fence;
            self.meta.end = record.first;
        }
        if record.first > self.meta.end {
            let (end, first) = (self.meta.end, record.first);
            return damaged(format!("items {end} to {first} are missing"));
        }
        self.cut_replayed(record.first);
        let entered = record.flags & FLAG_EPOCH != 0;
        let (began, term) = (meta.membership.began.0, meta.membership.term);
        if entered && record.first == began {
            self.open_fence(began, Fence { term, ended: false });
        }
        // Replicas that fold to different fences would judge differently.
        if self.fence_at(record.first) != record.first_fence {
            return damaged(format!("the term fence at {} differs", record.first));
        }
        if chunk.count > 0 {
            self.append_replayed(&record.items);
            self.chunks.push_back(chunk);
        }
        if entered && record.first < began {
            self.open_fence(began, Fence { term, ended: false });
        }
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

    fn append_replayed(&mut self, items: &[Item]) {
        let mut fence = self.fence_at(self.meta.end);
        for item in items {
            self.meta.end += 1;
            let after = fence.after(item);
            if after != fence {
                self.fences.push_back((self.meta.end, after));
                fence = after;
            }
        }
    }

    fn cut_replayed(&mut self, from: u64) {
        while self.fences.back().is_some_and(|(at, _)| *at > from) {
            self.fences.pop_back();
        }
        self.cut_chunks(from);
        self.meta.end = self.meta.end.min(from);
    }
}
