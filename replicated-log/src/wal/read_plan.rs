//! Reading decided items away from the event loop.
//!
//! The event loop does not read records for subscribers. It makes a [`ReadPlan`]: where the records
//! are, and the term fences that judge the items. The subscriber reads them on another thread. The
//! plan stays valid meanwhile: decided items do not move, and a segment with a reader is not
//! recycled.

use std::sync::Arc;

use bytes::Bytes;
use evenkeel_host::SegmentReader;

use crate::entry::Entry;
use crate::ids::LogIndex;
use crate::item::{Fence, Item};

use super::error::{WalError, failed};
use super::index::Chunk;
use super::record::{self, Seal};

/// The place of decided items that are not in memory.
#[derive(Debug)]
pub(crate) struct ReadPlan {
    pub(super) store_id: u64,
    /// In order, without gaps.
    pub(super) chunks: Vec<(Chunk, Arc<dyn SegmentReader>)>,
    pub(super) from: u64,
    pub(super) to: u64,
    /// The term fence at `from`, and its changes up to `to`.
    pub(super) fence: Fence,
    pub(super) fences: Vec<(u64, Fence)>,
}

impl ReadPlan {
    /// Reads the entries with their verdicts (invariant 1). Blocks.
    ///
    /// # Errors
    /// A read error or damage is fatal.
    pub(crate) fn read(&self) -> Result<Vec<Entry>, WalError> {
        let mut entries = Vec::with_capacity((self.to - self.from) as usize);
        let (mut fence, mut fences) = (self.fence, self.fences.iter().peekable());
        for (chunk, reader) in &self.chunks {
            let bytes = reader.read(chunk.offset, chunk.record_bytes).map_err(failed("read"))?;
            let seal = Seal { store_id: self.store_id, segment: chunk.segment };
            let items = decode_chunk(seal, chunk, bytes)?;
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

/// The items of a chunk.
///
/// # Errors
/// [`WalError::Damaged`] if `bytes` does not hold all of them.
pub(super) fn decode_chunk(seal: Seal, chunk: &Chunk, bytes: Bytes) -> Result<Vec<Item>, WalError> {
    let damaged = || WalError::Damaged(format!("segment {}, offset {}", chunk.segment, chunk.offset));
    items_of(seal, chunk, bytes).ok_or_else(damaged)
}

fn items_of(seal: Seal, chunk: &Chunk, mut bytes: Bytes) -> Option<Vec<Item>> {
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
    let complete = items.len() as u64 >= chunk.count;
    items.truncate(chunk.count as usize);
    complete.then_some(items)
}
