//! Who may touch which keys, right now, on this leader (R9).
//!
//! Every statement declares the keys it touches and gets a [`Permit`] before its snapshot is taken; the permit is held until
//! its outcome is final. A fence holds new statements on its range, waits for the permits that are out, and only then is logged:
//! so no statement runs on a range that has been given away, and none is failed for it.
//!
//! Autocommit reads are not waited for, so that a long one does not keep its range here. One that was admitted before the hold began before
//! any write that the destination acknowledges (it acknowledges none before the fence, and the hold stands until the fence is folded or void), so
//! it may be answered from before it. It is answered only if its range had not left when it had ended, by the folded state
//! ([`Permit::is_current`]): what was left behind is deleted later than that (R24), so the read has seen all of it.
//!
//! What is admitted follows the state machine as far as PostgreSQL has followed it: a range that was adopted is admitted only
//! once all of its rows are in.

use crate::load::RangeMeter;
use crate::log_entry::Change;
use crate::state_machine::{InPhase, OwnedRange, RangeSize, ShardState};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{Epoch, Failure, Key, KeyInterval, RangeId, ShardId, TableId};
use evenkeel_sql::Touches;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a statement waits for a range that is held or about to be adopted, in milliseconds.
const WAIT_MS: u64 = 1_000;

/// A range that statements may be admitted to.
#[derive(Debug)]
pub struct Slot {
    /// The range.
    pub range: OwnedRange,
    /// The generation of [`Admission`] in which it was adopted; 0 if it has been here since before this leadership (R25).
    pub adopted_in: u64,
    /// Statements that a fence waits for.
    in_flight: AtomicUsize,
    /// Reads, for which it does not wait.
    reading: AtomicUsize,
    held: AtomicBool,
    /// It, or a part of it, is no longer owned. For ever: a range that comes back is another slot.
    left: AtomicBool,
    /// What it was split from or merged of, as long as statements admitted there are under way.
    before: Vec<Arc<Slot>>,
    /// Its load.
    pub meter: Mutex<RangeMeter>,
    size: Mutex<RangeSize>,
}

impl Slot {
    fn is_drained(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && self.before.iter().all(|slot| slot.is_drained())
    }

    /// Whether nobody has leave to touch it any more.
    fn is_unused(&self) -> bool {
        let unused = |n: &AtomicUsize| n.load(Ordering::Acquire) == 0;
        unused(&self.in_flight) && unused(&self.reading) && self.before.iter().all(|slot| slot.is_unused())
    }

    /// It, and so a part of whatever it came from, is no longer owned.
    fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.before.iter().for_each(|slot| slot.leave());
    }

    /// Whether it is `other`, or was split from it, or merged of it.
    pub fn is_or_comes_from(&self, other: &Arc<Slot>) -> bool {
        std::ptr::eq(self, &**other) || self.before.iter().any(|slot| slot.is_or_comes_from(other))
    }

    /// Its size.
    pub fn size(&self) -> RangeSize {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes its size.
    pub fn resize<T>(&self, change: impl FnOnce(&mut RangeSize) -> T) -> T {
        change(&mut self.size.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The meter.
    pub fn meter(&self) -> MutexGuard<'_, RangeMeter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to touch keys. Dropped when the outcome of the statement or transaction is final.
#[derive(Debug)]
pub struct Permit {
    slots: Vec<Arc<Slot>>,
    /// A fence does not wait for it.
    reads: bool,
    changed: watch::Sender<u64>,
}

impl Permit {
    /// The ranges it is for.
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// Whether none of them, nor a part of one, has left this shard since.
    pub fn is_current(&self) -> bool {
        !self.slots.iter().any(|slot| slot.left.load(Ordering::Acquire))
    }

    /// Takes another one's leave over: a transaction has one for each of its ranges, however many its statements are.
    pub fn join(&mut self, mut other: Permit) {
        debug_assert_eq!(self.reads, other.reads, "one of a kind");
        for slot in std::mem::take(&mut other.slots) {
            if self.slots.iter().any(|own| Arc::ptr_eq(own, &slot)) {
                // Not the last one: this permit has it, too.
                slot.in_use(self.reads).fetch_sub(1, Ordering::AcqRel);
            } else {
                self.slots.push(slot);
            }
        }
    }
}

impl Slot {
    fn in_use(&self, reads: bool) -> &AtomicUsize {
        if reads { &self.reading } else { &self.in_flight }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut wake = false;
        for slot in &self.slots {
            wake |= slot.in_use(self.reads).fetch_sub(1, Ordering::AcqRel) == 1 && !self.reads;
        }
        // Only a fence waits for this, and there is rarely one.
        if wake && self.changed.receiver_count() > 0 {
            self.changed.send_modify(|n| *n += 1);
        }
    }
}

/// A range that has gone from here, for redirects.
#[derive(Debug, Clone)]
struct Gone {
    table: TableId,
    interval: KeyInterval,
    to: ShardId,
    range: RangeId,
    epoch: Epoch,
}

#[derive(Debug, Default)]
struct Inner {
    generation: u64,
    ranges: HashMap<TableId, BTreeMap<Key, Arc<Slot>>>,
    by_id: HashMap<RangeId, Arc<Slot>>,
    /// Of ranges that have no slot and may get one.
    sizes: HashMap<RangeId, RangeSize>,
    gone: Vec<Gone>,
    incoming: Vec<(TableId, KeyInterval)>,
}

/// Which keys may belong to other ranges than before.
#[derive(Debug, Clone, Copy)]
pub enum Changed<'a> {
    /// Any.
    All,
    /// At most these: of each range that is new, and of each that is no more.
    Keys(&'a [(TableId, KeyInterval)]),
}

/// See the module.
#[derive(Debug)]
pub struct Admission {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission { inner: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

enum Decision {
    Granted(Vec<Arc<Slot>>),
    Wait,
    Refused(Failure),
}

impl Admission {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the state machine, of which these `keys` have changed hands since the last time; or all may have. Ranges in `not_yet`
    /// are owned in the log, but PostgreSQL is not there yet. What is not affected is not looked at.
    pub fn follow(&self, state: &ShardState, not_yet: &HashSet<RangeId>, keys: Changed<'_>) {
        let mut inner = self.inner();
        inner.generation += 1;
        for (table, interval) in inner.regions(state, keys) {
            inner.follow_region(state, not_yet, table, &interval);
        }
        inner.gone = state
            .moves_out()
            .filter(|m| m.phase != crate::state_machine::OutPhase::Open)
            .map(|m| Gone {
                table: m.table,
                interval: m.interval.clone(),
                to: m.to.id,
                range: m.range,
                epoch: m.epoch.next(),
            })
            .collect();
        let coming = |m: &&crate::state_machine::MoveIn| m.phase == InPhase::Copying || not_yet.contains(&m.range);
        inner.incoming = state.moves_in().filter(coming).map(|m| (m.table, m.interval.clone())).collect();
        inner.sizes.retain(|range, _| state.moves_out().any(|m| m.range == *range));
        drop(inner);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Begins to follow a state machine that was stored, with the sizes of its ranges.
    pub fn restore(&self, state: &ShardState, sizes: Vec<(RangeId, RangeSize)>) {
        self.inner().sizes = sizes.into_iter().collect();
        self.follow(state, &HashSet::new(), Changed::All);
    }

    /// The sizes of all ranges, to be stored.
    pub fn sizes(&self) -> Vec<(RangeId, RangeSize)> {
        let inner = self.inner();
        let gone = inner.sizes.iter().map(|(range, size)| (*range, *size));
        inner.by_id.iter().map(|(range, slot)| (*range, slot.size())).chain(gone).collect()
    }

    /// Rows have changed, on this replica as on all. Gives how many bytes the changes are.
    pub fn count(&self, changes: &[Change]) -> u64 {
        let inner = self.inner();
        let mut bytes = 0;
        for change in changes {
            bytes += change.image.size_bytes() as u64;
            if let Some(slot) = inner.slot(change.table, &change.key) {
                slot.resize(|size| size.change(&change.image));
            }
        }
        bytes
    }

    /// A leadership begins: what was measured before is no load of this leader's.
    pub fn measure_afresh(&self) {
        let now_ms = super::now_ms();
        self.slots().iter().for_each(|slot| *slot.meter() = RangeMeter::new(now_ms));
    }

    /// Counts how often [`Admission::follow`] has changed what is admitted.
    pub fn generation(&self) -> u64 {
        self.inner().generation
    }

    /// The slots, for reports.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        self.inner().ranges.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Leave to touch these keys of `table`, once they are owned and not held. `holding` are what the caller has leave for already: a
    /// transaction passes a hold on a range that it is in already, because the hold waits for it.
    pub async fn admit(&self, table: TableId, touches: &Touches, holding: &[Arc<Slot>]) -> Result<Permit, Failure> {
        self.admit_as(false, table, touches, holding).await
    }

    /// The same for a read in a transaction of its own, which locks nothing. A fence does not wait for it: it may be answered only if its
    /// permit is still current when it has ended.
    pub async fn admit_read(&self, table: TableId, touches: &Touches) -> Result<Permit, Failure> {
        self.admit_as(true, table, touches, &[]).await
    }

    async fn admit_as(
        &self,
        reads: bool,
        table: TableId,
        touches: &Touches,
        holding: &[Arc<Slot>],
    ) -> Result<Permit, Failure> {
        let mut changes: Option<watch::Receiver<u64>> = None;
        let deadline = Instant::now() + Duration::from_millis(WAIT_MS);
        loop {
            // Subscribed before deciding, so that no change between the two is missed.
            let waiting = changes.is_some();
            match self.decide(reads, table, touches, holding) {
                Decision::Granted(slots) => return Ok(Permit { slots, reads, changed: self.changed.clone() }),
                Decision::Refused(failure) => return Err(failure),
                Decision::Wait if !waiting => changes = Some(self.changed.subscribe()),
                Decision::Wait => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if waiting && let Some(changes) = &mut changes {
                match tokio::time::timeout(left, changes.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => {
                        let reason = "a move of the range is at its switch".to_string();
                        return Err(Failure::Busy { reason, retry_after_ms: 20 });
                    }
                }
            }
        }
    }

    fn decide(&self, reads: bool, table: TableId, touches: &Touches, holding: &[Arc<Slot>]) -> Decision {
        let inner = self.inner();
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        match touches {
            Touches::Nothing => {}
            Touches::Keys(keys) => {
                for key in keys {
                    if slots.last().is_some_and(|slot| slot.range.interval.contains(key)) {
                        continue;
                    }
                    match inner.slot(table, key) {
                        Some(slot) => slots.push(slot.clone()),
                        None if deliberate(Bug::NoOwnershipFence) => {}
                        None => return inner.elsewhere(table, key),
                    }
                }
            }
            Touches::Intervals(intervals) => {
                for interval in intervals {
                    let mut at = interval.start.clone();
                    // Walks the ranges that cover the interval; a gap is a key that is not here.
                    loop {
                        let Some(slot) = inner.slot(table, &at) else { return inner.elsewhere(table, &at) };
                        slots.push(slot.clone());
                        match &slot.range.interval.end {
                            Some(end) if interval.end.as_ref().is_none_or(|until| end < until) => at = end.clone(),
                            _ => break,
                        }
                    }
                }
            }
        }
        let inside = |slot: &Arc<Slot>| holding.iter().any(|held| slot.is_or_comes_from(held));
        if slots.iter().any(|slot| slot.held.load(Ordering::Acquire) && !inside(slot)) {
            return Decision::Wait;
        }
        for slot in &slots {
            slot.in_use(reads).fetch_add(1, Ordering::AcqRel);
        }
        Decision::Granted(slots)
    }

    /// Holds new statements on a range. `None` if it is not admitted here. Dropping the hold lets them go on.
    pub fn hold(self: &Arc<Self>, range: RangeId) -> Option<Hold> {
        let inner = self.inner();
        let slot = inner.by_id.get(&range)?.clone();
        if slot.held.swap(true, Ordering::AcqRel) {
            return None;
        }
        drop(inner);
        Some(Hold { admission: self.clone(), slot })
    }
}

impl Inner {
    /// The keys to be looked at again, as intervals that have no keys in common: no range, before or after, lies in two of them.
    fn regions(&self, state: &ShardState, keys: Changed<'_>) -> Vec<(TableId, KeyInterval)> {
        match keys {
            Changed::Keys(keys) => disjoint(keys.to_vec()),
            Changed::All => {
                let tables: BTreeSet<TableId> =
                    state.tables().map(|table| table.id).chain(self.ranges.keys().copied()).collect();
                tables.into_iter().map(|table| (table, KeyInterval::ALL)).collect()
            }
        }
    }

    fn follow_region(&mut self, state: &ShardState, not_yet: &HashSet<RangeId>, table: TableId, region: &KeyInterval) {
        let generation = self.generation;
        let old = self.take(table, region);
        for range in state.overlapping(table, region).filter(|range| !not_yet.contains(&range.id)) {
            let before = overlapping(&old, &range.interval);
            let slot = match before.iter().find(|slot| slot.range == *range) {
                Some(same) => same.clone(),
                None => {
                    let known = if before.is_empty() { self.known_size(state, range.id) } else { None };
                    Arc::new(succeed(range, known, before, state, generation))
                }
            };
            self.by_id.insert(range.id, slot.clone());
            self.ranges.entry(table).or_default().insert(range.interval.start.clone(), slot);
        }
        for slot in old {
            if !self.owns(&slot) {
                slot.leave();
                if state.range(slot.range.id).is_none() {
                    self.sizes.insert(slot.range.id, slot.size());
                }
            }
        }
    }

    /// The size of a range that has been created, has come in or come back, or was here when the replica was stopped.
    fn known_size(&mut self, state: &ShardState, range: RangeId) -> Option<RangeSize> {
        let came = || state.moves_in().find(|m| m.range == range && m.phase == InPhase::Adopted).map(|m| m.size);
        let created = || state.last_operator(range).is_none().then(RangeSize::default);
        self.sizes.remove(&range).or_else(came).or_else(created)
    }

    /// Takes the slots out that share keys with `region`; gives them by key.
    fn take(&mut self, table: TableId, region: &KeyInterval) -> Vec<Arc<Slot>> {
        let Some(ranges) = self.ranges.get_mut(&table) else { return Vec::new() };
        // The first one may begin before the region does.
        let first = ranges.range::<Key, _>(..=&region.start).next_back().map(|(start, _)| start.clone());
        let first = first.unwrap_or_else(|| region.start.clone());
        let before_end = |start: &Key| region.end.as_ref().is_none_or(|end| start < end);
        let old: Vec<Arc<Slot>> = ranges
            .range::<Key, _>(&first..)
            .take_while(|(start, _)| before_end(start))
            .filter(|(_, slot)| slot.range.interval.overlaps(region))
            .map(|(_, slot)| slot.clone())
            .collect();
        for slot in &old {
            ranges.remove(&slot.range.interval.start);
            self.by_id.remove(&slot.range.id);
        }
        old
    }

    /// Whether all of a slot's keys are still in some slot.
    fn owns(&self, slot: &Slot) -> bool {
        let interval = &slot.range.interval;
        let mut at = interval.start.clone();
        while let Some(here) = self.slot(slot.range.table, &at) {
            match &here.range.interval.end {
                Some(end) if interval.end.as_ref().is_none_or(|until| end < until) => at = end.clone(),
                _ => return true,
            }
        }
        false
    }

    fn slot(&self, table: TableId, key: &Key) -> Option<&Arc<Slot>> {
        let (_, slot) = self.ranges.get(&table)?.range::<Key, _>(..=key).next_back()?;
        slot.range.interval.contains(key).then_some(slot)
    }

    fn elsewhere(&self, table: TableId, key: &Key) -> Decision {
        if self.incoming.iter().any(|(t, interval)| *t == table && interval.contains(key)) {
            return Decision::Wait;
        }
        // Of several moves the one with the highest epoch is the last.
        let gone = self.gone.iter().filter(|g| g.table == table && g.interval.contains(key)).max_by_key(|g| g.epoch);
        Decision::Refused(Failure::Moved { to: gone.map(|g| g.to), range: gone.map(|g| (g.range, g.epoch)) })
    }
}

/// Intervals of tables, joined where they have keys in common.
fn disjoint(mut keys: Vec<(TableId, KeyInterval)>) -> Vec<(TableId, KeyInterval)> {
    keys.sort_by(|(a, left), (b, right)| (a, &left.start).cmp(&(b, &right.start)));
    let mut joined: Vec<(TableId, KeyInterval)> = Vec::with_capacity(keys.len());
    for (table, interval) in keys {
        match joined.last_mut() {
            Some((last, before)) if *last == table && before.overlaps(&interval) => {
                before.end = match (before.end.take(), interval.end) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    _ => None,
                };
            }
            _ => joined.push((table, interval)),
        }
    }
    joined
}

/// Those of some slots, which come by key and have no keys in common, that share keys with `interval`.
fn overlapping<'a>(slots: &'a [Arc<Slot>], interval: &KeyInterval) -> &'a [Arc<Slot>] {
    let ends_before = |slot: &Arc<Slot>| slot.range.interval.end.as_ref().is_some_and(|end| *end <= interval.start);
    let begins_before = |slot: &Arc<Slot>| interval.end.as_ref().is_none_or(|end| slot.range.interval.start < *end);
    let rest = &slots[slots.partition_point(ends_before)..];
    &rest[..rest.partition_point(begins_before)]
}

/// A new slot for `range`, with the load, the size and the unfinished statements of what it came from. If it came from nothing that was
/// here its size may be `known`.
fn succeed(
    range: &OwnedRange,
    known: Option<RangeSize>,
    before: &[Arc<Slot>],
    state: &ShardState,
    generation: u64,
) -> Slot {
    let now_ms = super::now_ms();
    let meter = before
        .iter()
        .map(|slot| part(slot, &range.interval, now_ms))
        .reduce(|left, right| left.merge(right, now_ms))
        .unwrap_or_else(|| RangeMeter::new(now_ms));
    let adopted_in =
        if before.is_empty() { generation } else { before.iter().map(|s| s.adopted_in).max().unwrap_or(0) };
    let of = |slot: &Arc<Slot>| {
        let covered = range.interval.covers(&slot.range.interval);
        slot.size().part(if covered { 1 } else { pieces_of(slot, state) })
    };
    let size = known.or_else(|| before.iter().map(of).reduce(RangeSize::join)).unwrap_or(RangeSize::UNKNOWN);
    let before = before.iter().filter(|slot| !slot.is_unused()).cloned().collect();
    Slot {
        range: range.clone(),
        adopted_in,
        in_flight: AtomicUsize::new(0),
        reading: AtomicUsize::new(0),
        held: AtomicBool::new(false),
        left: AtomicBool::new(false),
        before,
        meter: Mutex::new(meter),
        size: Mutex::new(size),
    }
}

/// Into how many ranges a slot's has been cut.
fn pieces_of(slot: &Slot, state: &ShardState) -> u64 {
    state.overlapping(slot.range.table, &slot.range.interval).count().max(1) as u64
}

/// What a slot has measured inside of `interval`.
fn part(slot: &Slot, interval: &KeyInterval, now_ms: u64) -> RangeMeter {
    let bounds: Vec<Key> = [Some(&interval.start), interval.end.as_ref()]
        .into_iter()
        .flatten()
        .filter(|key| slot.range.interval.splits_at(key))
        .cloned()
        .collect();
    let wanted = usize::from(bounds.first() == Some(&interval.start));
    let mut pieces = slot.meter().clone().split(&bounds, now_ms);
    if wanted < pieces.len() { pieces.swap_remove(wanted) } else { RangeMeter::new(now_ms) }
}

/// New statements on a range wait as long as this lives.
#[derive(Debug)]
pub struct Hold {
    admission: Arc<Admission>,
    slot: Arc<Slot>,
}

impl Hold {
    /// Waits until every statement admitted before the hold has ended, but for reads; `false` if that takes longer than `bound`.
    pub async fn drained(&self, bound: Duration) -> bool {
        if deliberate(Bug::NoDrain) {
            return true;
        }
        let mut changes = self.admission.changed.subscribe();
        let wait = async {
            while !self.slot.is_drained() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(bound, wait).await.is_ok()
    }

    /// The slot that is held.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.slot.held.store(false, Ordering::Release);
        self.admission.changed.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "admission_cost_tests.rs"]
mod cost_tests;
