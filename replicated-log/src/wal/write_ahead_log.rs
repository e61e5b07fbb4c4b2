//! The durable log: an append-only sequence of items on a [`Disk`].
//!
//! Changes take effect in memory at once and become durable together with [`Wal::sync`]. A crash
//! before the sync undoes the whole turn, never a part of it. The newest items stay in memory,
//! bounded by bytes; older ones are read from their records.

use omnipaxos::ballot_leader_election::Ballot;

use crate::item::{Fence, Item};
use crate::membership::Membership;

use super::error::{WalError, failed};
use super::index::{Chunk, Segment, WalIndex};
use super::meta::{Identity, Meta};
use super::read_plan::{ReadPlan, decode_chunk};
use super::recent::RecentItems;
use super::record::{self, Footer, SEGMENT_HEADER_BYTES, Seal, SegmentHeader, Summary};
use super::recovery::Recovery;
use super::synced::Synced;
use evenkeel_host::Disk;

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalLimits {
    /// The size of a segment, unless the disk states another one ([`Disk::room`]).
    pub(crate) segment_bytes: u64,
    pub(crate) recent_bytes: usize,
    /// About the size of a synchronisation that begins below the trim point, in bytes of records.
    pub(crate) sync_bytes: u64,
}

/// Bytes written to disk since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Payloads of items.
    pub(crate) payload_bytes: u64,
    /// Records, headers and footers.
    pub(crate) disk_bytes: u64,
}

/// Changes since the last sync.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    /// Items from here on are not on disk yet.
    items_from: Option<u64>,
    /// Meta has changed in a way that must be durable before messages are sent.
    meta: bool,
    /// The log was replaced as a whole.
    reset: bool,
    /// Another configuration has begun.
    configuration: bool,
    /// The promise has changed.
    promise: bool,
}

/// A durable log on the disk `D`. See the module's page.
#[derive(Debug)]
pub(crate) struct Wal<D> {
    disk: D,
    limits: WalLimits,
    pub(super) index: WalIndex,
    pub(super) recent: RecentItems,
    dirty: Dirty,
    /// Reused by every sync: space for a segment's header, and a record.
    buffer: Vec<u8>,
    written: Written,
    /// Allows the library to read from below the trim point while `core::paxos` is going to put a
    /// marker in place of the missing items (see `storage`).
    pub(crate) patching: bool,
    /// Allows the library to "summarise" items that compaction drops without reading them (see
    /// `storage`).
    pub(crate) compacting: bool,
}

impl<D: Disk> Wal<D> {
    /// Opens the log on `disk`, or creates an empty one for `identity` in the configuration
    /// `founding`. `fresh_store_id` (random) becomes the identity of a new log's disk.
    ///
    /// # Errors
    /// [`WalError`]; nothing has been changed then.
    pub(crate) fn open(
        mut disk: D,
        identity: Identity,
        founding: Membership,
        fresh_store_id: u64,
        limits: WalLimits,
    ) -> Result<Wal<D>, WalError> {
        let meta = Meta { identity, membership: founding, store_id: fresh_store_id, ..Meta::default() };
        let index = Recovery::new(&mut disk, WalIndex::new(meta, limits.segment_bytes)).run()?;
        if index.meta.identity != identity {
            let found = index.meta.identity;
            return Err(WalError::WrongOwner(format!("it is that of replica {} of group {}", found.me, found.group)));
        }
        let mut wal = Wal {
            disk,
            limits,
            recent: RecentItems::none_at(index.meta.end),
            index,
            dirty: Dirty::default(),
            buffer: Vec::new(),
            written: Written::default(),
            patching: false,
            compacting: false,
        };
        // A new log's identity must be durable before any peer receives it.
        if wal.index.segments.is_empty() {
            wal.dirty.meta = true;
            let _proof = wal.sync()?;
        }
        if let Some(last) = wal.index.segments.back() {
            let next = last.number + 1;
            wal.disk.expect(next);
        }
        Ok(wal)
    }

    /// The identity of this disk.
    pub(crate) fn store_id(&self) -> u64 {
        self.index.meta.store_id
    }

    pub(crate) fn end(&self) -> u64 {
        self.index.meta.end
    }

    /// The round in which the log's end was accepted.
    pub(crate) fn accepted_round(&self) -> Option<Ballot> {
        self.index.meta.accepted_round
    }

    pub(crate) fn decided(&self) -> u64 {
        self.index.meta.decided
    }

    pub(crate) fn compacted(&self) -> u64 {
        self.index.meta.compacted
    }

    pub(crate) fn needs_state(&self) -> Option<u64> {
        self.index.meta.needs_state
    }

    pub(crate) fn promise(&self) -> Option<Ballot> {
        self.index.meta.promise
    }

    /// See [`WalLimits::sync_bytes`].
    pub(super) fn sync_bytes(&self) -> u64 {
        self.limits.sync_bytes
    }

    /// Size of all segments, in bytes.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.index.log_bytes()
    }

    /// The fence in force for the item at `position`.
    pub(crate) fn fence_at(&self, position: u64) -> Fence {
        self.index.fence_at(position)
    }

    /// See [`WalIndex::compaction_point`].
    pub(crate) fn compaction_point(&self, retained_bytes: u64) -> u64 {
        self.index.compaction_point(retained_bytes)
    }

    /// See [`WalIndex::bytes_between`].
    pub(crate) fn bytes_between(&self, from: u64, to: u64) -> u64 {
        self.index.bytes_between(from, to)
    }

    /// See [`WalIndex::bytes_before`].
    pub(crate) fn bytes_before(&self, to: u64) -> u64 {
        self.index.bytes_before(to)
    }

    /// See [`Meta::peer_store`].
    pub(crate) fn peer_store(&self, peer: u64) -> Option<u64> {
        self.index.meta.peer_store(peer)
    }

    /// The disks of members that this configuration does not name, as far as they are known.
    pub(crate) fn learned_stores(&self) -> Vec<(u64, u64)> {
        self.index.meta.peer_stores.iter().map(|(peer, store)| (*peer, *store)).collect()
    }

    /// The disk that `peer` must have in this configuration: the one that the barrier named, or in
    /// the founding configuration the first one seen. `found` is recorded if none was known.
    pub(crate) fn peer_store_or_insert(&mut self, peer: u64, found: u64) -> u64 {
        if let Some(known) = self.index.meta.peer_store(peer) {
            return known;
        }
        self.index.meta.peer_stores.insert(peer, found);
        self.dirty.meta = true;
        found
    }

    /// See [`Meta::report_peer_store`].
    pub(crate) fn report_peer_store(&mut self, peer: u64, reported: u64) -> bool {
        let news = self.index.meta.report_peer_store(peer, reported);
        self.dirty.meta |= news;
        news
    }

    /// Records that the application's state has been replaced by a recent enough one.
    pub(crate) fn state_installed(&mut self) {
        self.index.meta.needs_state = None;
        self.dirty.meta = true;
    }

    pub(crate) fn set_promise(&mut self, promise: Ballot) {
        if self.index.meta.promise != Some(promise) {
            self.index.meta.promise = Some(promise);
            self.dirty.meta = true;
            self.dirty.promise = true;
        }
    }

    pub(crate) fn set_accepted_round(&mut self, round: Ballot) {
        if self.index.meta.accepted_round != Some(round) {
            self.index.meta.accepted_round = Some(round);
            self.dirty.meta = true;
        }
    }

    /// Not a reason to sync: a decided position that a crash forgets is learned again (log rule 1).
    pub(crate) fn set_decided(&mut self, decided: u64) {
        self.index.meta.decided = decided;
    }

    /// Replaces the items from `from` on with `items`.
    pub(crate) fn replace_suffix(&mut self, from: u64, items: Vec<Item>) {
        debug_assert!(from >= self.index.meta.compacted && from <= self.index.meta.end, "no holes");
        self.cut(from);
        self.append(items);
    }

    pub(crate) fn append(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        self.dirty.items_from.get_or_insert(self.index.meta.end);
        let mut fence = self.fence_at(self.index.meta.end);
        for item in items {
            let after = fence.after(&item);
            self.index.meta.end += 1;
            if after != fence {
                self.index.fences.push_back((self.index.meta.end, after));
                fence = after;
            }
            self.recent.push(item);
        }
    }

    /// Takes in decided items from `first` on that did not come through OmniPaxos (`core::catch_up`
    /// says why this is safe). Accepted items that agree with them stay, with the items behind them
    /// (unless `keep` is false, for a test). The log is cut at the first item that differs. Returns
    /// whether more is decided than before: not if all of them were known, nor if there is a gap.
    ///
    /// # Errors
    /// A failing or damaged disk: fatal.
    pub(crate) fn learn(&mut self, first: u64, mut items: Vec<Item>, keep: bool) -> Result<bool, WalError> {
        let decided = self.decided();
        let Some(known) = decided.checked_sub(first).filter(|known| *known < items.len() as u64) else {
            return Ok(false);
        };
        items.drain(..known as usize);
        let learned = decided + items.len() as u64;
        let accepted = self.read(decided, learned, usize::MAX)?;
        let agreed = accepted.iter().zip(&items).take_while(|(accepted, item)| accepted == item).count();
        if agreed < items.len() {
            self.replace_suffix(decided + agreed as u64, items.split_off(agreed));
        } else if !keep {
            self.cut(learned);
        }
        self.set_decided(learned);
        Ok(true)
    }

    /// Drops the items from `from` on.
    fn cut(&mut self, from: u64) {
        if from >= self.index.meta.end {
            return;
        }
        self.recent.cut(from);
        // `Meta::end` alone carries a cut without new items.
        self.dirty.meta = true;
        self.dirty.items_from = self.dirty.items_from.map(|dirty| dirty.min(from));
        self.index.cut(from);
    }

    /// Drops the items before `to`, which are decided and durably applied by the
    /// application (log rule 10).
    pub(crate) fn compact(&mut self, to: u64) {
        debug_assert!(to <= self.index.meta.decided && to <= self.index.meta.end);
        self.index.meta.fence = self.fence_at(to);
        self.index.meta.compacted = to;
        self.index.forget_before(to);
        // Items not durable yet stay: the record to come is made from them.
        let undurable = self.dirty.items_from.unwrap_or(u64::MAX);
        self.recent.forget_before(to.min(undurable));
        self.dirty.meta = true;
    }

    /// Replaces the whole log by a trimmed one that begins at `at`, where `fence` is in force. This
    /// is the receiving end of a state transfer (log rule 10).
    pub(crate) fn reset(&mut self, at: u64, fence: Fence) {
        self.recent = RecentItems::none_at(at);
        self.index.restart_at(at, fence);
        self.index.meta.needs_state = Some(at);
        self.dirty = Dirty { items_from: None, meta: true, reset: true, ..self.dirty };
    }

    /// The current configuration.
    pub(crate) fn membership(&self) -> &Membership {
        &self.index.meta.membership
    }

    /// The number of items up to and including the barrier that ends the configuration, decided or
    /// not.
    pub(crate) fn barrier(&self) -> Option<u64> {
        match self.index.fences.back() {
            Some((at, fence)) => fence.ended.then_some(*at),
            None => self.index.meta.fence.ended.then_some(self.index.meta.compacted),
        }
    }

    /// Begins the configuration `next` with one record, hence atomically (log rule 10). The promise
    /// and the accepted round of the previous configuration are dropped, with the items behind its
    /// barrier. Everything up to the barrier is decided: either the items are here, or the
    /// application has a state at or after the barrier (`transferred`) and the log begins there.
    pub(crate) fn begin_configuration(&mut self, next: Membership, transferred: bool) {
        let at = next.began.0;
        let fence = Fence { term: next.term, ended: false };
        if transferred {
            self.reset(at, fence);
            self.index.meta.needs_state = None;
        } else {
            debug_assert!(at <= self.index.meta.end, "a configuration ends inside of its log");
            self.cut(at);
            self.index.open_fence(at, fence);
        }
        self.index.meta.membership = next;
        self.index.meta.peer_stores.clear();
        self.index.meta.promise = None;
        self.index.meta.accepted_round = None;
        self.index.meta.decided = at;
        self.dirty.promise = true;
        self.dirty.meta = true;
        self.dirty.configuration = true;
    }

    /// All items before this position are durable or gone; `u64::MAX` directly after a sync.
    pub(crate) fn durable_end(&self) -> u64 {
        match self.dirty {
            Dirty { reset: true, .. } | Dirty { configuration: true, .. } => 0,
            Dirty { items_from, .. } => items_from.unwrap_or(u64::MAX),
        }
    }

    /// Whether the promise in memory is durable.
    pub(crate) fn promise_is_durable(&self) -> bool {
        !self.dirty.promise
    }

    /// Whether [`Wal::sync`] has to write: more than the decided position has changed (log rule 1).
    pub(crate) fn needs_sync(&self) -> bool {
        self.dirty.meta || self.dirty.items_from.is_some()
    }

    /// Makes every change so far durable with one write and one sync.
    ///
    /// # Errors
    /// Any error is fatal: the process must stop, since the durable state is unknown (log rule 13).
    pub(crate) fn sync(&mut self) -> Result<Synced, WalError> {
        if !self.needs_sync() {
            return Ok(Synced::new(false));
        }
        self.write()?;
        self.dirty = Dirty::default();
        self.recent.evict(self.limits.recent_bytes);
        self.drop_segments()?;
        Ok(Synced::new(true))
    }

    /// As [`Wal::sync`], and the decided position too; for an orderly end.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub(crate) fn sync_all(&mut self) -> Result<(), WalError> {
        self.dirty.meta = true;
        self.sync().map(drop)
    }

    fn write(&mut self) -> Result<(), WalError> {
        let first = self.dirty.items_from.unwrap_or(self.index.meta.end);
        let end = self.index.meta.end;
        debug_assert!(first >= self.recent.first(), "undurable items stay in memory");
        let mut flags = if self.dirty.reset { record::FLAG_RESET } else { 0 };
        if self.dirty.configuration {
            flags |= record::FLAG_CONFIGURATION;
        }
        let fence = self.fence_at(first);
        self.buffer.clear();
        self.buffer.resize(SEGMENT_HEADER_BYTES, 0);
        record::encode(&mut self.buffer, flags, &self.index.meta, (first, fence), self.recent.range(first, end))
            .map_err(|e| WalError::Damaged(format!("a record cannot be encoded: {e}")))?;
        let record_bytes = self.buffer.len() - SEGMENT_HEADER_BYTES;

        let (segment, offset, begins) = self.place_for(record_bytes as u64)?;
        let seal = Seal { store_id: self.index.meta.store_id, segment };
        record::finish(&mut self.buffer[SEGMENT_HEADER_BYTES..], seal);
        // A new segment's header goes with its first record.
        let (at, unwritten) = if begins { (0, 0) } else { (offset, SEGMENT_HEADER_BYTES) };
        self.disk.write(segment, at, &self.buffer[unwritten..]).map_err(failed("write"))?;
        self.disk.sync(segment).map_err(failed("sync"))?;
        self.written.disk_bytes += (self.buffer.len() - unwritten) as u64;
        self.written.payload_bytes += self.recent.range(first, end).map(|item| item.payload.len() as u64).sum::<u64>();
        if let Some(last) = self.index.segments.back_mut() {
            last.bytes = offset + record_bytes as u64;
        }
        let fences = record::fence_changes(first, fence, self.recent.range(first, end));
        let count = self.index.meta.end - first;
        let meta = (flags != 0).then(|| self.index.meta.clone());
        let record =
            Summary { record_bytes: record_bytes as u64, flags, place: Some((first, fence)), count, fences, meta };
        self.index.summarise(record);
        self.index.add(Chunk { first, count, segment, offset, record_bytes });
        const KEPT_BUFFER_BYTES: usize = 4 << 20;
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// The segment and offset of the next record, and whether the segment is new: the last segment,
    /// or a new one if that is full.
    fn place_for(&mut self, record_bytes: u64) -> Result<(u64, u64, bool), WalError> {
        let Some(last) = self.index.segments.back().copied() else {
            return self.begin_segment(1, 0, 0);
        };
        let room = self.disk.room(last.number).unwrap_or(self.limits.segment_bytes);
        if last.bytes + record_bytes <= room {
            return Ok((last.number, last.bytes, false));
        }
        let seal = Seal { store_id: self.index.meta.store_id, segment: last.number };
        let footer = Footer { records: std::mem::take(&mut self.index.summaries) };
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
        let seal = Seal { store_id: self.index.meta.store_id, segment: number };
        let header = SegmentHeader { seal, before_end, before_footer_bytes };
        header.encode(&mut self.buffer[..SEGMENT_HEADER_BYTES]);
        let bytes = SEGMENT_HEADER_BYTES as u64;
        self.index.segments.push_back(Segment { number, bytes });
        Ok((number, bytes, true))
    }

    /// Bytes written since the log was opened.
    pub(crate) fn written(&self) -> Written {
        self.written
    }

    /// Removes segments without a retained item. The record of the compaction is durable at this
    /// point, and in the last segment.
    fn drop_segments(&mut self) -> Result<(), WalError> {
        let needed = match (self.index.chunks.front(), self.index.segments.back()) {
            (Some(chunk), _) => chunk.segment,
            (None, Some(last)) => last.number,
            (None, None) => return Ok(()),
        };
        while let Some(oldest) = self.index.segments.front()
            && oldest.number < needed
        {
            self.disk.remove(oldest.number).map_err(failed("delete a segment"))?;
            self.index.segments.pop_front();
        }
        Ok(())
    }

    /// The items `from..to`, at least one and about `max_bytes` of them; empty only if `from >=
    /// to`.
    ///
    /// # Errors
    /// [`WalError::Trimmed`] below the compaction point (log rule 13); a read error or damage is
    /// fatal.
    pub(crate) fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Item>, WalError> {
        if from < self.index.meta.compacted {
            let compacted = self.index.meta.compacted;
            return Err(WalError::Trimmed { from, compacted });
        }
        let to = to.min(self.index.meta.end);
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
        while at < to.min(self.recent.first()) {
            let chunk = self.index.chunk_with(at)?;
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
            if !take(self.recent.at(at)) {
                break;
            }
            at += 1;
        }
        Ok(items)
    }

    /// The items `from..decided` that are in memory, with the position of the first.
    pub(crate) fn recent_decided(&self, from: u64) -> (u64, impl Iterator<Item = &Item>) {
        let end = self.index.meta.decided.min(self.index.meta.end).max(self.recent.first());
        let first = from.clamp(self.recent.first(), end);
        (first, self.recent.range(first, end))
    }

    fn read_chunk(&self, chunk: &Chunk) -> Result<Vec<Item>, WalError> {
        let bytes = self.disk.read(chunk.segment, chunk.offset, chunk.record_bytes).map_err(failed("read"))?;
        let seal = Seal { store_id: self.index.meta.store_id, segment: chunk.segment };
        decode_chunk(seal, chunk, bytes)
    }

    /// A plan to read the items `from..to`, or the first of them that take about `max_bytes`.
    /// `None` if the first item is in memory, or only the event loop can read this disk.
    ///
    /// # Errors
    /// As [`Wal::read`].
    pub(crate) fn plan(&self, from: u64, to: u64, max_bytes: usize) -> Result<Option<ReadPlan>, WalError> {
        let compacted = self.index.meta.compacted;
        if from < compacted {
            return Err(WalError::Trimmed { from, compacted });
        }
        let to = to.min(self.index.meta.end);
        if from >= to || from >= self.recent.first() {
            return Ok(None);
        }
        let first = self.index.chunk_with(from)?;
        let begin = self.index.chunks.partition_point(|chunk| chunk.first < first.first);
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        let mut end = from;
        for chunk in self.index.chunks.range(begin..).take_while(|chunk| chunk.first < to) {
            if bytes >= max_bytes && !chunks.is_empty() {
                break;
            }
            let Some(reader) = self.disk.reader(chunk.segment) else { return Ok(None) };
            bytes += chunk.record_bytes;
            end = (chunk.first + chunk.count).min(to);
            chunks.push((*chunk, reader));
        }
        let later = self.index.fences.partition_point(|(at, _)| *at <= from);
        let fences = self.index.fences.range(later..).take_while(|(at, _)| *at < end).copied().collect();
        let store_id = self.index.meta.store_id;
        Ok(Some(ReadPlan { store_id, chunks, from, to: end, fence: self.fence_at(from), fences }))
    }
}
