//! Who may touch which keys, right now, on this leader (R9).
//!
//! Every statement declares the keys it touches and gets a [`Permit`] before its snapshot is taken; the permit is held until
//! its outcome is final. A fence holds new statements on its range, waits for the permits that are out, and only then is logged:
//! so no statement runs on a range that has been given away, and none is failed for it.
//!
//! What is admitted follows the state machine as far as PostgreSQL has followed it: a range that was adopted is admitted only
//! once all of its rows are in.

use crate::fold::{InPhase, OwnedRange, ShardState};
use crate::load::RangeMeter;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::sql::Touches;
use evenkeel_protocol::{Epoch, Failure, Key, KeyInterval, RangeId, ShardId, TableId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
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
    /// The generation of [`Admission`] in which it was adopted; 0 if it has been here since before this reign (R25).
    pub adopted_in: u64,
    in_flight: AtomicUsize,
    held: AtomicBool,
    /// What it was split from or merged of, as long as statements admitted there are under way.
    before: Vec<Arc<Slot>>,
    /// Its load.
    pub meter: Mutex<RangeMeter>,
    /// Its size.
    pub size: SizeEstimate,
}

/// A range's rows and bytes: counted now and then, and kept up by what statements insert and delete in between.
#[derive(Debug, Default)]
pub struct SizeEstimate {
    rows: AtomicI64,
    bytes: AtomicI64,
    counted: AtomicBool,
}

impl SizeEstimate {
    /// Rows and bytes.
    pub fn get(&self) -> (u64, u64) {
        let read = |n: &AtomicI64| n.load(Ordering::Relaxed).max(0) as u64;
        (read(&self.rows), read(&self.bytes))
    }

    /// More or fewer.
    pub fn add(&self, rows: i64, bytes: i64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What a row takes, in bytes.
    pub fn bytes_per_row(&self) -> i64 {
        let (rows, bytes) = self.get();
        bytes.checked_div(rows).unwrap_or(0) as i64
    }

    /// Whether it was ever counted, rather than estimated from the range that it came from.
    pub fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Relaxed)
    }

    /// Counted, just now.
    pub fn set(&self, rows: u64, bytes: u64) {
        self.rows.store(rows as i64, Ordering::Relaxed);
        self.bytes.store(bytes as i64, Ordering::Relaxed);
        self.counted.store(true, Ordering::Relaxed);
    }
}

impl Slot {
    fn is_drained(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0 && self.before.iter().all(|slot| slot.is_drained())
    }

    fn is_or_comes_from(&self, other: &Arc<Slot>) -> bool {
        std::ptr::eq(self, &**other) || self.before.iter().any(|slot| slot.is_or_comes_from(other))
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
    changed: watch::Sender<u64>,
}

impl Permit {
    /// The ranges it is for.
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut wake = false;
        for slot in &self.slots {
            wake |= slot.in_flight.fetch_sub(1, Ordering::AcqRel) == 1;
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
    gone: Vec<Gone>,
    incoming: Vec<(TableId, KeyInterval)>,
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

    /// Follows the state machine. Ranges in `not_yet` are owned in the log, but PostgreSQL is not there yet.
    pub fn follow(&self, state: &ShardState, not_yet: &HashSet<RangeId>) {
        let mut inner = self.inner();
        inner.generation += 1;
        let generation = inner.generation;
        let old: Vec<Arc<Slot>> = inner.ranges.values().flat_map(BTreeMap::values).cloned().collect();
        let mut ranges: HashMap<TableId, BTreeMap<Key, Arc<Slot>>> = HashMap::new();
        for range in state.owned().filter(|range| !not_yet.contains(&range.id)) {
            let same = old.iter().find(|slot| slot.range == *range).cloned();
            let slot = same.unwrap_or_else(|| Arc::new(succeed(range, &old, generation)));
            ranges.entry(range.table).or_default().insert(range.interval.start.clone(), slot);
        }
        inner.ranges = ranges;
        inner.gone = state
            .moves_out()
            .filter(|m| m.phase != crate::fold::OutPhase::Open)
            .map(|m| Gone {
                table: m.table,
                interval: m.interval.clone(),
                to: m.to.id,
                range: m.range,
                epoch: m.epoch.next(),
            })
            .collect();
        let coming = |m: &&crate::fold::MoveIn| m.phase == InPhase::Copying || not_yet.contains(&m.range);
        inner.incoming = state.moves_in().filter(coming).map(|m| (m.table, m.interval.clone())).collect();
        drop(inner);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Counts how often [`Admission::follow`] has changed what is admitted.
    pub fn generation(&self) -> u64 {
        self.inner().generation
    }

    /// The slots, for reports.
    pub fn slots(&self) -> Vec<Arc<Slot>> {
        self.inner().ranges.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Leave to touch these keys of `table`, once they are owned and not held. `holding` are the caller's other permits: a
    /// transaction passes a hold on a range that it is in already, because the hold waits for it.
    pub async fn admit(&self, table: TableId, touches: &Touches, holding: &[Permit]) -> Result<Permit, Failure> {
        let mut changes: Option<watch::Receiver<u64>> = None;
        let deadline = Instant::now() + Duration::from_millis(WAIT_MS);
        loop {
            // Subscribed before deciding, so that no change between the two is missed.
            let waiting = changes.is_some();
            match self.decide(table, touches, holding) {
                Decision::Granted(slots) => return Ok(Permit { slots, changed: self.changed.clone() }),
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

    fn decide(&self, table: TableId, touches: &Touches, holding: &[Permit]) -> Decision {
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
        let inside =
            |slot: &Arc<Slot>| holding.iter().flat_map(|permit| &permit.slots).any(|held| slot.is_or_comes_from(held));
        if slots.iter().any(|slot| slot.held.load(Ordering::Acquire) && !inside(slot)) {
            return Decision::Wait;
        }
        for slot in &slots {
            slot.in_flight.fetch_add(1, Ordering::AcqRel);
        }
        Decision::Granted(slots)
    }

    /// Holds new statements on a range. `None` if it is not admitted here. Dropping the hold lets them go on.
    pub fn hold(&self, range: RangeId) -> Option<Hold<'_>> {
        let inner = self.inner();
        let slot = inner.ranges.values().flat_map(BTreeMap::values).find(|slot| slot.range.id == range)?.clone();
        if slot.held.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Hold { admission: self, slot })
    }
}

impl Inner {
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

/// A new slot for `range`, with the load and the unfinished statements of what it came from.
fn succeed(range: &OwnedRange, old: &[Arc<Slot>], generation: u64) -> Slot {
    let before: Vec<Arc<Slot>> = old
        .iter()
        .filter(|slot| slot.range.table == range.table && slot.range.interval.overlaps(&range.interval))
        .cloned()
        .collect();
    let now_ms = super::now_ms();
    let meter = before
        .iter()
        .map(|slot| part(slot, &range.interval, now_ms))
        .reduce(|left, right| left.merge(right, now_ms))
        .unwrap_or_else(|| RangeMeter::new(now_ms));
    let adopted_in =
        if before.is_empty() { generation } else { before.iter().map(|s| s.adopted_in).max().unwrap_or(0) };
    // Until it is counted: an even part of what it came from.
    let size = SizeEstimate::default();
    for slot in &before {
        let covered = range.interval.covers(&slot.range.interval);
        let parts = if covered { 1 } else { 2 };
        let (rows, bytes) = slot.size.get();
        size.add(rows as i64 / parts, bytes as i64 / parts);
    }
    let before = before.into_iter().filter(|slot| !slot.is_drained()).collect();
    Slot {
        range: range.clone(),
        adopted_in,
        in_flight: AtomicUsize::new(0),
        held: AtomicBool::new(false),
        before,
        meter: Mutex::new(meter),
        size,
    }
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
pub struct Hold<'a> {
    admission: &'a Admission,
    slot: Arc<Slot>,
}

impl Hold<'_> {
    /// Waits until every statement admitted before the hold has ended; `false` if that takes longer than `bound`.
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

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.slot.held.store(false, Ordering::Release);
        self.admission.changed.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
