//! The durable log: an append-only file per segment, one record and one `fdatasync` per turn of the event loop.
//!
//! Changes are made in memory at once and become durable together with [`Wal::sync`]; a crash before it takes the
//! whole turn back, never a part of it. A torn last record is cut off when the log is opened; damage anywhere
//! else is an error, because a lost durable tail would be disk loss (log rule 13).
//!
//! The newest items stay in memory, bounded by bytes; older ones are read from their record. The index of what is
//! where has one element per [`MERGED_BYTES`] or record, not per item. Compaction forgets items and gives back the segments
//! that hold nothing else; they are used again, so that each byte is written once and no turn waits for a new file. A segment
//! that is full ends with a footer, which says what a replay of it comes to: opening a log reads footers and the records of the
//! last segment, whatever its size. With the items the log keeps the term fence at every place, so that it can say which items are
//! effective without reading any (invariant 1).

mod disk;
mod learning;
mod reading;
mod record;
mod recover;
mod storage;

use std::collections::VecDeque;
use std::io;

use omnipaxos::ballot_leader_election::Ballot;

use crate::item::{Fence, Item};
use crate::membership::Membership;
use crate::types::ReplicaId;
pub(crate) use disk::FsDisk;
pub(crate) use evenkeel_host::Disk;
pub(crate) use reading::ReadPlan;
pub(crate) use record::Identity;
use record::{Footer, Meta, SEGMENT_HEADER_BYTES, Seal, SegmentHeader, Summary};
pub(crate) use storage::{SharedWal, WalStorage};

/// Why the durable log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Stop: the disk refused.
    #[error("the durable log cannot {what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Stop: synced data is damaged. Never repaired silently, since a lost durable tail is disk loss.
    #[error("the durable log is damaged: {0}")]
    Damaged(String),
    /// Stop: the log belongs to another group or replica, or another process uses it.
    #[error("the durable log belongs to somebody else: {0}")]
    WrongOwner(String),
    /// A read below the compaction point (log rule 13). A bug if it is ever seen.
    #[error("items from {from} on were asked for, the log begins at {compacted}")]
    Trimmed {
        /// The first item asked for.
        from: u64,
        /// Where the log begins.
        compacted: u64,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> WalError {
    move |source| WalError::Io { what, source }
}

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalLimits {
    /// The size of a segment, unless the disk knows better ([`Disk::room`]).
    pub(crate) segment_bytes: u64,
    pub(crate) recent_bytes: usize,
    /// About what a synchronisation may hold that begins below the trim point, in bytes of records.
    pub(crate) sync_bytes: u64,
}

/// Records that follow each other share one element of the index up to this many bytes.
const MERGED_BYTES: usize = 64 << 10;
/// In the place of a disk: the member has had two in one epoch. No disk has this mark.
pub(crate) const DISPUTED: u64 = 0;

/// Items that one record, or several that follow each other, hold on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    first: u64,
    count: u64,
    segment: u64,
    offset: u64,
    /// Of the whole records, headers included.
    record_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    number: u64,
    /// Header and records.
    bytes: u64,
}

/// What has been written to disk since the log was opened, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Payloads of items.
    pub(crate) payload_bytes: u64,
    /// All that was written for them, and for the rest.
    pub(crate) disk_bytes: u64,
}

/// What has changed since the last sync.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    /// Items from here on are not on disk yet.
    items_from: Option<u64>,
    /// Meta has changed in a way that must be durable before messages go out.
    meta: bool,
    /// The log was replaced as a whole.
    reset: bool,
    /// Another epoch has begun.
    epoch: bool,
    /// The promise has changed.
    promise: bool,
}

/// A durable log on the disk `D`.
#[derive(Debug)]
pub(crate) struct Wal<D> {
    disk: D,
    limits: WalLimits,
    meta: Meta,
    /// Items `recent_first..meta.end`; all items that are not durable yet are among them.
    recent: VecDeque<Item>,
    recent_first: u64,
    recent_size_bytes: usize,
    chunks: VecDeque<Chunk>,
    segments: VecDeque<Segment>,
    /// `(position, fence)`: the fence in force from that position on, ascending; before the first one
    /// `meta.fence` holds.
    fences: VecDeque<(u64, Fence)>,
    dirty: Dirty,
    /// Reused by every sync: room for a segment's header, and a record.
    buffer: Vec<u8>,
    /// The last segment's records, for its footer.
    summaries: Vec<Summary>,
    /// Where the last of them ends.
    summarised_end: u64,
    /// What the last record replayed said of where the log begins.
    stated_compacted: u64,
    written: Written,
    /// See [`storage`]: lets the library read "from below the trim point" while `core` is going to put a marker
    /// in place of what is missing.
    pub(crate) patching: bool,
    /// See [`storage`]: lets the library "summarise" items that compaction drops without reading them.
    pub(crate) compacting: bool,
}

impl<D: Disk> Wal<D> {
    pub(crate) fn store_id(&self) -> u64 {
        self.meta.store_id
    }

    pub(crate) fn end(&self) -> u64 {
        self.meta.end
    }

    /// The round in which the log's end was accepted.
    pub(crate) fn accepted_round(&self) -> Option<Ballot> {
        self.meta.accepted_round
    }

    pub(crate) fn decided(&self) -> u64 {
        self.meta.decided
    }

    pub(crate) fn compacted(&self) -> u64 {
        self.meta.compacted
    }

    pub(crate) fn needs_state(&self) -> Option<u64> {
        self.meta.needs_state
    }

    /// The application's state has been replaced by one that is new enough.
    pub(crate) fn state_installed(&mut self) {
        self.meta.needs_state = None;
        self.dirty.meta = true;
    }

    /// The disk that `peer` must have in this epoch: the one that the barrier named, or in the founding epoch the one that it was first
    /// seen with; `found` is remembered if there was none.
    pub(crate) fn peer_store(&mut self, peer: u64, found: u64) -> u64 {
        if let Some(known) = self.known_peer_store(peer) {
            return known;
        }
        let dirty = &mut self.dirty;
        *self.meta.peer_stores.entry(peer).or_insert_with(|| {
            dirty.meta = true;
            found
        })
    }

    /// Somebody else has learned that `peer` has this disk. Whether that says anything new: of two that differ neither counts.
    pub(crate) fn peer_store_told(&mut self, peer: u64, told: u64) -> bool {
        let named = self.meta.membership.members.get(&ReplicaId(peer)).is_none_or(|member| member.disk != 0);
        let known = self.meta.peer_stores.get(&peer).copied();
        if named || known == Some(told) || known == Some(DISPUTED) {
            return false;
        }
        self.meta.peer_stores.insert(peer, if known.is_some() { DISPUTED } else { told });
        self.dirty.meta = true;
        true
    }

    /// The disks of members that this epoch does not name, as far as they have been heard of.
    pub(crate) fn learned_stores(&self) -> Vec<(u64, u64)> {
        self.meta.peer_stores.iter().map(|(peer, store)| (*peer, *store)).collect()
    }

    /// The disk that `peer` must have in this epoch, as far as that is known; [`DISPUTED`] if it may have none.
    pub(crate) fn known_peer_store(&self, peer: u64) -> Option<u64> {
        let named = self.meta.membership.members.get(&ReplicaId(peer)).map(|member| member.disk);
        named.filter(|disk| *disk != 0).or(self.meta.peer_stores.get(&peer).copied())
    }

    /// Bytes of all segments.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// The fence in force for the item at `position`.
    pub(crate) fn fence_at(&self, position: u64) -> Fence {
        let behind = self.fences.partition_point(|(at, _)| *at <= position);
        match behind.checked_sub(1) {
            Some(i) => self.fences[i].1,
            None => self.meta.fence,
        }
    }

    /// The position up to which compaction may go so that about `retained_bytes` of records stay, and no more: one record may be as large
    /// as a whole log was (a synchronisation is one), and a log that kept it for being the last would stay at its cap for good.
    pub(crate) fn compaction_point(&self, retained_bytes: u64) -> u64 {
        let mut kept = 0;
        for chunk in self.chunks.iter().rev() {
            kept += chunk.record_bytes as u64;
            if kept > retained_bytes {
                return chunk.first + chunk.count;
            }
        }
        self.meta.compacted
    }

    /// About how many bytes the records of the items `from..to` take.
    pub(crate) fn bytes_between(&self, from: u64, to: u64) -> u64 {
        let later = self.chunks.iter().rev().skip_while(|c| c.first >= to);
        later.take_while(|c| c.first + c.count > from).map(|c| c.record_bytes as u64).sum()
    }

    /// Bytes of records that hold only items before `to`.
    pub(crate) fn bytes_before(&self, to: u64) -> u64 {
        let gone = self.chunks.iter().take_while(|c| c.first + c.count <= to);
        gone.map(|c| c.record_bytes as u64).sum()
    }

    pub(crate) fn set_promise(&mut self, promise: Ballot) {
        if self.meta.promise != Some(promise) {
            self.meta.promise = Some(promise);
            self.dirty.meta = true;
            self.dirty.promise = true;
        }
    }

    pub(crate) fn set_accepted_round(&mut self, round: Ballot) {
        if self.meta.accepted_round != Some(round) {
            self.meta.accepted_round = Some(round);
            self.dirty.meta = true;
        }
    }

    /// Not a reason to sync: a decided position that a crash forgets is learned again (log rule 1).
    pub(crate) fn set_decided(&mut self, decided: u64) {
        self.meta.decided = decided;
    }

    /// Replaces the items from `from` on by `items`.
    pub(crate) fn replace_suffix(&mut self, from: u64, items: Vec<Item>) {
        debug_assert!(from >= self.meta.compacted && from <= self.meta.end, "no holes");
        self.cut(from);
        self.append(items);
    }

    pub(crate) fn append(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        self.dirty.items_from.get_or_insert(self.meta.end);
        let mut fence = self.fence_at(self.meta.end);
        for item in items {
            let after = fence.after(&item);
            self.meta.end += 1;
            if after != fence {
                self.fences.push_back((self.meta.end, after));
                fence = after;
            }
            self.recent_size_bytes += item.encoded_bytes();
            self.recent.push_back(item);
        }
    }

    /// Forgets the items from `from` on.
    fn cut(&mut self, from: u64) {
        if from >= self.meta.end {
            return;
        }
        while self.fences.back().is_some_and(|(at, _)| *at > from) {
            self.fences.pop_back();
        }
        let keep = from.saturating_sub(self.recent_first) as usize;
        for item in self.recent.drain(keep..) {
            self.recent_size_bytes -= item.encoded_bytes();
        }
        self.recent_first = self.recent_first.min(from);
        self.meta.end = from;
        // `Meta::end` alone carries a cut without new items. Chunks are trimmed when the record is written.
        self.dirty.meta = true;
        self.dirty.items_from = self.dirty.items_from.map(|dirty| dirty.min(from));
        self.cut_chunks(from);
    }

    fn cut_chunks(&mut self, from: u64) {
        while let Some(last) = self.chunks.back_mut() {
            if last.first >= from {
                self.chunks.pop_back();
            } else {
                last.count = last.count.min(from - last.first);
                break;
            }
        }
    }

    /// Forgets the items before `to`, which are decided and durably applied by the application (log rule 10).
    pub(crate) fn compact(&mut self, to: u64) {
        debug_assert!(to <= self.meta.decided && to <= self.meta.end);
        self.meta.fence = self.fence_at(to);
        self.meta.compacted = to;
        self.forget_before(to);
        self.dirty.meta = true;
    }

    fn forget_before(&mut self, to: u64) {
        while self.fences.front().is_some_and(|(at, _)| *at <= to) {
            self.fences.pop_front();
        }
        // Items not durable yet stay: the record to come is made from them.
        let undurable = self.dirty.items_from.unwrap_or(u64::MAX);
        while self.recent_first < to.min(undurable)
            && let Some(item) = self.recent.pop_front()
        {
            self.recent_size_bytes -= item.encoded_bytes();
            self.recent_first += 1;
        }
        while let Some(front) = self.chunks.front()
            && front.first + front.count <= to
        {
            self.chunks.pop_front();
        }
    }

    /// Replaces the whole log by a trimmed one that begins at `at`, where `fence` is in force (log rule 10: the
    /// receiving end of a state transfer).
    pub(crate) fn reset(&mut self, at: u64, fence: Fence) {
        self.recent.clear();
        self.recent_size_bytes = 0;
        self.recent_first = at;
        self.chunks.clear();
        self.fences.clear();
        self.meta.compacted = at;
        self.meta.fence = fence;
        self.meta.end = at;
        self.meta.needs_state = Some(at);
        self.dirty = Dirty { items_from: None, meta: true, reset: true, ..self.dirty };
    }

    /// The epoch that this replica takes part in.
    pub(crate) fn membership(&self) -> &Membership {
        &self.meta.membership
    }

    /// The number of items up to and including the barrier that ends the epoch, decided or not.
    pub(crate) fn barrier(&self) -> Option<u64> {
        match self.fences.back() {
            Some((at, fence)) => fence.ended.then_some(*at),
            None => self.meta.fence.ended.then_some(self.meta.compacted),
        }
    }

    /// Goes over to the epoch `next`, with one record and so as a whole or not at all (log rule 10): what was promised and
    /// accepted in the epoch before means nothing any more, what lies behind its barrier is gone. Everything up to
    /// the barrier is decided. Either it is here, or the application has a state at or after it (`transferred`) and the log
    /// begins there.
    pub(crate) fn begin_epoch(&mut self, next: Membership, transferred: bool) {
        let at = next.began.0;
        let fence = Fence { term: next.term, ended: false };
        if transferred {
            self.reset(at, fence);
            self.meta.needs_state = None;
        } else {
            debug_assert!(at <= self.meta.end, "an epoch ends inside of its log");
            self.cut(at);
            self.open_fence(at, fence);
        }
        self.meta.membership = next;
        self.meta.peer_stores.clear();
        self.meta.promise = None;
        self.meta.accepted_round = None;
        self.meta.decided = at;
        self.dirty.promise = true;
        self.dirty.meta = true;
        self.dirty.epoch = true;
    }

    /// From `at` on items count again: there the next epoch begins.
    fn open_fence(&mut self, at: u64, fence: Fence) {
        if at == self.meta.compacted {
            self.meta.fence = fence;
        }
        self.fences.push_back((at, fence));
    }

    /// Items before this are on disk as they are in memory, or gone; all of them once the turn is synced.
    pub(crate) fn durable_end(&self) -> u64 {
        match self.dirty {
            Dirty { reset: true, .. } | Dirty { epoch: true, .. } => 0,
            Dirty { items_from, .. } => items_from.unwrap_or(u64::MAX),
        }
    }

    /// Whether the promise on disk is the one in memory.
    pub(crate) fn promise_is_durable(&self) -> bool {
        !self.dirty.promise
    }

    /// Whether [`Wal::sync`] would have to write: more than the decided position has changed (log rule 1).
    pub(crate) fn needs_sync(&self) -> bool {
        self.dirty.meta || self.dirty.items_from.is_some()
    }

    /// Makes every change so far durable with one write and one sync, and tidies up behind. Says whether there
    /// was anything to do.
    ///
    /// # Errors
    /// Any error is fatal: the process must stop, since what is durable is no longer known (log rule 13).
    pub(crate) fn sync(&mut self) -> Result<bool, WalError> {
        if !self.needs_sync() {
            return Ok(false);
        }
        self.write()?;
        self.dirty = Dirty::default();
        self.evict();
        self.drop_segments()?;
        Ok(true)
    }

    /// As [`Wal::sync`], and the decided position too; for an orderly end.
    pub(crate) fn sync_all(&mut self) -> Result<(), WalError> {
        self.dirty.meta = true;
        self.sync().map(drop)
    }

    fn write(&mut self) -> Result<(), WalError> {
        let first = self.dirty.items_from.unwrap_or(self.meta.end);
        let skip = first.saturating_sub(self.recent_first) as usize;
        debug_assert!(first >= self.recent_first, "undurable items stay in memory");
        let mut flags = if self.dirty.reset { record::FLAG_RESET } else { 0 };
        if self.dirty.epoch {
            flags |= record::FLAG_EPOCH;
        }
        let fence = self.fence_at(first);
        self.buffer.clear();
        self.buffer.resize(SEGMENT_HEADER_BYTES, 0);
        record::encode(&mut self.buffer, flags, &self.meta, (first, fence), self.recent.range(skip..))
            .map_err(|e| WalError::Damaged(format!("a record cannot be encoded: {e}")))?;
        let record_bytes = self.buffer.len() - SEGMENT_HEADER_BYTES;

        let (segment, offset, begins) = self.place_for(record_bytes as u64)?;
        let seal = Seal { store_id: self.meta.store_id, segment };
        record::finish(&mut self.buffer[SEGMENT_HEADER_BYTES..], seal);
        // A new segment's header goes with its first record.
        let (at, unwritten) = if begins { (0, 0) } else { (offset, SEGMENT_HEADER_BYTES) };
        self.disk.write(segment, at, &self.buffer[unwritten..]).map_err(failed("write"))?;
        self.disk.sync(segment).map_err(failed("sync"))?;
        self.written.disk_bytes += (self.buffer.len() - unwritten) as u64;
        self.written.payload_bytes += self.recent.range(skip..).map(|item| item.payload.len() as u64).sum::<u64>();
        if let Some(last) = self.segments.back_mut() {
            last.bytes = offset + record_bytes as u64;
        }
        let fences = record::fence_changes(first, fence, self.recent.range(skip..));
        let count = self.meta.end - first;
        let meta = (flags != 0).then(|| self.meta.clone());
        let record =
            Summary { record_bytes: record_bytes as u64, flags, place: Some((first, fence)), count, fences, meta };
        self.summarise(record);
        self.index(Chunk { first, count, segment, offset, record_bytes });
        const KEPT_BUFFER_BYTES: usize = 4 << 20;
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// A record has been added to the last segment.
    fn summarise(&mut self, mut record: Summary) {
        if let Some((first, _)) = record.place {
            // What a replay can tell by itself need not be said.
            if record.flags == 0 && !self.summaries.is_empty() && first == self.summarised_end {
                record.place = None;
            }
            self.summarised_end = first + record.count;
        }
        self.summaries.push(record);
    }

    /// Remembers where items lie, if there are any.
    fn index(&mut self, chunk: Chunk) {
        if chunk.count == 0 {
            return;
        }
        let most = (self.limits.segment_bytes as usize / 8).min(MERGED_BYTES);
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

    /// Where the next record goes, segment and offset: into the last one, or a new one if that is full, and whether it is new.
    fn place_for(&mut self, record_bytes: u64) -> Result<(u64, u64, bool), WalError> {
        let Some(last) = self.segments.back().copied() else {
            return self.begin_segment(1, 0, 0);
        };
        let room = self.disk.room(last.number).unwrap_or(self.limits.segment_bytes);
        if last.bytes + record_bytes <= room {
            return Ok((last.number, last.bytes, false));
        }
        let seal = Seal { store_id: self.meta.store_id, segment: last.number };
        let footer = Footer { records: std::mem::take(&mut self.summaries) };
        let footer = footer.encode(seal).map_err(|e| WalError::Damaged(format!("a footer cannot be encoded: {e}")))?;
        self.disk.write(last.number, last.bytes, &footer).map_err(failed("write a footer"))?;
        self.disk.seal(last.number);
        self.written.disk_bytes += footer.len() as u64;
        self.begin_segment(last.number + 1, last.bytes, footer.len() as u64)
    }

    fn begin_segment(
        &mut self,
        number: u64,
        before_end: u64,
        before_footer_bytes: u64,
    ) -> Result<(u64, u64, bool), WalError> {
        self.disk.create(number).map_err(failed("create a segment"))?;
        let seal = Seal { store_id: self.meta.store_id, segment: number };
        let header = SegmentHeader { seal, before_end, before_footer_bytes };
        header.encode(&mut self.buffer[..SEGMENT_HEADER_BYTES]);
        let bytes = SEGMENT_HEADER_BYTES as u64;
        self.segments.push_back(Segment { number, bytes });
        Ok((number, bytes, true))
    }

    /// What has been written since the log was opened.
    pub(crate) fn written(&self) -> Written {
        self.written
    }

    /// Bounds the items in memory; only durable ones may go.
    fn evict(&mut self) {
        while self.recent_size_bytes > self.limits.recent_bytes
            && let Some(item) = self.recent.pop_front()
        {
            self.recent_size_bytes -= item.encoded_bytes();
            self.recent_first += 1;
        }
    }

    /// Gives back segments without a retained item. The record that says so is durable by now, and in the last one.
    fn drop_segments(&mut self) -> Result<(), WalError> {
        let needed = match (self.chunks.front(), self.segments.back()) {
            (Some(chunk), _) => chunk.segment,
            (None, Some(last)) => last.number,
            (None, None) => return Ok(()),
        };
        while let Some(oldest) = self.segments.front()
            && oldest.number < needed
        {
            self.disk.remove(oldest.number).map_err(failed("delete a segment"))?;
            self.segments.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
