//! The in-memory index of the durable log: where items lie on disk, and the term fence at each
//! position.
//!
//! [`WalIndex`] is the part of the log that recovery rebuilds and that appends extend. The index
//! has one element per [`MERGED_BYTES`] or record, not per item. It does no I/O.

use std::collections::VecDeque;

use crate::item::Fence;

use super::error::WalError;
use super::meta::Meta;
use super::record::Summary;

/// Consecutive records share one element of the index up to this many bytes.
const MERGED_BYTES: usize = 64 << 10;

/// The items of one record, or of several consecutive ones, on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// Size of the whole records, headers included.
    pub(super) record_bytes: usize,
}

/// A segment that holds records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Size of header and records.
    pub(super) bytes: u64,
}

/// What a log knows about its items without reading them.
#[derive(Debug)]
pub(super) struct WalIndex {
    pub(super) meta: Meta,
    pub(super) chunks: VecDeque<Chunk>,
    pub(super) segments: VecDeque<Segment>,
    /// `(position, fence)`: the fence in force from that position on, ascending; before the first
    /// one `meta.fence` holds.
    pub(super) fences: VecDeque<(u64, Fence)>,
    /// Summaries of the last segment's records, for its footer.
    pub(super) summaries: Vec<Summary>,
    /// The end of the last of them.
    summarised_end: u64,
    segment_bytes: u64,
}

impl WalIndex {
    pub(super) fn new(meta: Meta, segment_bytes: u64) -> WalIndex {
        WalIndex {
            meta,
            chunks: VecDeque::new(),
            segments: VecDeque::new(),
            fences: VecDeque::new(),
            summaries: Vec::new(),
            summarised_end: 0,
            segment_bytes,
        }
    }

    /// Size of all segments, in bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// The fence in force for the item at `position`.
    pub(super) fn fence_at(&self, position: u64) -> Fence {
        let behind = self.fences.partition_point(|(at, _)| *at <= position);
        match behind.checked_sub(1) {
            Some(i) => self.fences[i].1,
            None => self.meta.fence,
        }
    }

    /// Sets the fence at `at`, where the next configuration begins.
    pub(super) fn open_fence(&mut self, at: u64, fence: Fence) {
        if at == self.meta.compacted {
            self.meta.fence = fence;
        }
        self.fences.push_back((at, fence));
    }

    /// The chunk that holds the item at `position`.
    ///
    /// # Errors
    /// [`WalError::Damaged`] if there is none.
    pub(super) fn chunk_with(&self, position: u64) -> Result<Chunk, WalError> {
        let behind = self.chunks.partition_point(|c| c.first <= position);
        behind
            .checked_sub(1)
            .map(|i| self.chunks[i])
            .filter(|c| position < c.first + c.count)
            .ok_or_else(|| WalError::Damaged(format!("no record holds item {position}")))
    }

    /// The position up to which compaction may go so that about `retained_bytes` of records stay,
    /// and no more. One record may be as large as the whole log (a synchronisation is one record).
    /// A log that kept such a record because it is the last one would stay at its cap.
    pub(super) fn compaction_point(&self, retained_bytes: u64) -> u64 {
        let mut kept = 0;
        for chunk in self.chunks.iter().rev() {
            kept += chunk.record_bytes as u64;
            if kept > retained_bytes {
                return chunk.first + chunk.count;
            }
        }
        self.meta.compacted
    }

    /// Approximate size of the records of the items `from..to`, in bytes.
    pub(super) fn bytes_between(&self, from: u64, to: u64) -> u64 {
        let later = self.chunks.iter().rev().skip_while(|c| c.first >= to);
        later.take_while(|c| c.first + c.count > from).map(|c| c.record_bytes as u64).sum()
    }

    /// Size of the records that hold only items before `to`, in bytes.
    pub(super) fn bytes_before(&self, to: u64) -> u64 {
        let gone = self.chunks.iter().take_while(|c| c.first + c.count <= to);
        gone.map(|c| c.record_bytes as u64).sum()
    }

    /// Records where items lie, if there are any.
    pub(super) fn add(&mut self, chunk: Chunk) {
        if chunk.count == 0 {
            return;
        }
        let most = (self.segment_bytes as usize / 8).min(MERGED_BYTES);
        if let Some(last) = self.chunks.back_mut()
            && last.segment == chunk.segment
            && last.offset + last.record_bytes as u64 == chunk.offset
            && last.first + last.count == chunk.first
            && last.record_bytes + chunk.record_bytes <= most
        {
            last.count += chunk.count;
            last.record_bytes += chunk.record_bytes;
        } else {
            self.chunks.push_back(chunk);
        }
    }

    /// Adds the summary of a record at the end of the last segment.
    pub(super) fn summarise(&mut self, mut record: Summary) {
        if let Some((first, _)) = record.place {
            // A replay derives the place by itself.
            if record.flags == 0 && !self.summaries.is_empty() && first == self.summarised_end {
                record.place = None;
            }
            self.summarised_end = first + record.count;
        }
        self.summaries.push(record);
    }

    /// Drops everything known about the items from `from` on, and moves the end of the log there.
    pub(super) fn cut(&mut self, from: u64) {
        while self.fences.back().is_some_and(|(at, _)| *at > from) {
            self.fences.pop_back();
        }
        while let Some(last) = self.chunks.back_mut() {
            if last.first >= from {
                self.chunks.pop_back();
            } else {
                last.count = last.count.min(from - last.first);
                break;
            }
        }
        self.meta.end = self.meta.end.min(from);
    }

    /// Drops what only items before `to` need.
    pub(super) fn forget_before(&mut self, to: u64) {
        while self.fences.front().is_some_and(|(at, _)| *at <= to) {
            self.fences.pop_front();
        }
        while let Some(front) = self.chunks.front()
            && front.first + front.count <= to
        {
            self.chunks.pop_front();
        }
    }

    /// Makes the log an empty one that begins at `at`, where `fence` is in force.
    pub(super) fn restart_at(&mut self, at: u64, fence: Fence) {
        self.chunks.clear();
        self.fences.clear();
        self.meta.compacted = at;
        self.meta.fence = fence;
        self.meta.end = at;
    }
}
