//! Reading items, from memory or from their records.
//!
//! The event loop does not read records for subscribers: it says where they are, with all that is needed to judge the items
//! ([`ReadPlan`]), and the subscriber reads them on another thread. What a plan names does not change meanwhile: decided items stay
//! where they are, and a segment is not used again while somebody reads it.

use std::sync::Arc;

use bytes::Bytes;
use evenkeel_host::SegmentReader;

use crate::item::{Fence, Item};
use crate::types::{Entry, LogIndex};

use super::record::{self, Seal};
use super::{Chunk, Disk, Wal, WalError, failed};

impl<D: Disk> Wal<D> {
    /// The items `from..to`, at least one and about `max_bytes` of them; empty only if `from >= to`.
    ///
    /// # Errors
    /// [`WalError::Trimmed`] below the compaction point (log rule 13); a read error or damage is fatal.
    pub(crate) fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Item>, WalError> {
        if from < self.meta.compacted {
            let compacted = self.meta.compacted;
            return Err(WalError::Trimmed { from, compacted });
        }
        let to = to.min(self.meta.end);
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut at = from;
        let mut take = |item: &Item| {
            bytes += item.encoded_bytes();
            let fits = bytes <= max_bytes || items.is_empty();
            if fits {
                items.push(item.clone());
            }
            fits
        };
        while at < to.min(self.recent_first) {
            let chunk = self.chunk_with(at)?;
            let record = self.read_chunk(&chunk)?;
            let end = (chunk.first + chunk.count).min(to);
            for item in &record[(at - chunk.first) as usize..(end - chunk.first) as usize] {
                if !take(item) {
                    return Ok(items);
                }
                at += 1;
            }
        }
        while at < to {
            if !take(&self.recent[(at - self.recent_first) as usize]) {
                break;
            }
            at += 1;
        }
        Ok(items)
    }

    /// The items `from..decided` that are in memory, as far back as they reach, with the position of the first.
    pub(crate) fn recent_decided(&self, from: u64) -> (u64, impl Iterator<Item = &Item>) {
        let end = self.meta.decided.min(self.meta.end).max(self.recent_first);
        let first = from.clamp(self.recent_first, end);
        let range = (first - self.recent_first) as usize..(end - self.recent_first) as usize;
        (first, self.recent.range(range))
    }

    fn chunk_with(&self, position: u64) -> Result<Chunk, WalError> {
        let behind = self.chunks.partition_point(|c| c.first <= position);
        behind
            .checked_sub(1)
            .map(|i| self.chunks[i])
            .filter(|c| position < c.first + c.count)
            .ok_or_else(|| WalError::Damaged(format!("no record holds item {position}")))
    }

    fn read_chunk(&self, chunk: &Chunk) -> Result<Vec<Item>, WalError> {
        let bytes = self.disk.read(chunk.segment, chunk.offset, chunk.record_bytes).map_err(failed("read"))?;
        let seal = Seal { store_id: self.meta.store_id, segment: chunk.segment };
        decode_chunk(seal, chunk, bytes).ok_or_else(|| damaged(chunk))
    }
}

/// Where decided items lie that are not in memory.
#[derive(Debug)]
pub(crate) struct ReadPlan {
    store_id: u64,
    /// In order, without gaps.
    chunks: Vec<(Chunk, Arc<dyn SegmentReader>)>,
    from: u64,
    to: u64,
    /// The term fence at `from`, and its changes up to `to`.
    fence: Fence,
    fences: Vec<(u64, Fence)>,
}

impl<D: Disk> Wal<D> {
    /// How to read the items `from..to`, or the first of them that take about `max_bytes`; `None` if the first is in memory, or
    /// nobody but the event loop can read this disk.
    ///
    /// # Errors
    /// As [`Wal::read`].
    pub(crate) fn plan(&self, from: u64, to: u64, max_bytes: usize) -> Result<Option<ReadPlan>, WalError> {
        let compacted = self.meta.compacted;
        if from < compacted {
            return Err(WalError::Trimmed { from, compacted });
        }
        let to = to.min(self.meta.end);
        if from >= to || from >= self.recent_first {
            return Ok(None);
        }
        let first = self.chunk_with(from)?;
        let begin = self.chunks.partition_point(|chunk| chunk.first < first.first);
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        let mut end = from;
        for chunk in self.chunks.range(begin..).take_while(|chunk| chunk.first < to) {
            if bytes >= max_bytes && !chunks.is_empty() {
                break;
            }
            let Some(reader) = self.disk.reader(chunk.segment) else { return Ok(None) };
            bytes += chunk.record_bytes;
            end = (chunk.first + chunk.count).min(to);
            chunks.push((*chunk, reader));
        }
        let later = self.fences.partition_point(|(at, _)| *at <= from);
        let fences = self.fences.range(later..).take_while(|(at, _)| *at < end).copied().collect();
        let store_id = self.meta.store_id;
        Ok(Some(ReadPlan { store_id, chunks, from, to: end, fence: self.fence_at(from), fences }))
    }
}

impl ReadPlan {
    /// Reads the entries, judged (invariant 1). Blocks.
    ///
    /// # Errors
    /// A read error or damage is fatal.
    pub(crate) fn read(&self) -> Result<Vec<Entry>, WalError> {
        let mut entries = Vec::with_capacity((self.to - self.from) as usize);
        let (mut fence, mut fences) = (self.fence, self.fences.iter().peekable());
        for (chunk, reader) in &self.chunks {
            let bytes = reader.read(chunk.offset, chunk.record_bytes).map_err(failed("read"))?;
            let seal = Seal { store_id: self.store_id, segment: chunk.segment };
            let items = decode_chunk(seal, chunk, bytes).ok_or_else(|| damaged(chunk))?;
            let wanted = (chunk.first..self.to).zip(&items).skip_while(|(at, _)| *at < self.from);
            for (at, item) in wanted {
                while let Some((_, changed)) = fences.next_if(|(from, _)| *from <= at) {
                    fence = *changed;
                }
                entries.push(item.deliver(LogIndex(at + 1), fence));
            }
        }
        Ok(entries)
    }
}

fn damaged(chunk: &Chunk) -> WalError {
    WalError::Damaged(format!("segment {}, offset {}", chunk.segment, chunk.offset))
}

/// The items of a chunk; `None` if they are not there.
fn decode_chunk(seal: Seal, chunk: &Chunk, mut bytes: Bytes) -> Option<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    while !bytes.is_empty() {
        let record_bytes = record::announced_bytes(seal, &bytes).filter(|announced| *announced <= bytes.len())?;
        let record = record::decode(seal, bytes.split_to(record_bytes)).ok()?;
        // A later record may have replaced the end of an earlier one.
        items.truncate(record.first.checked_sub(chunk.first)? as usize);
        if items.is_empty() {
            items = record.items;
        } else {
            items.extend(record.items);
        }
    }
    let whole = items.len() as u64 >= chunk.count;
    items.truncate(chunk.count as usize);
    whole.then_some(items)
}
