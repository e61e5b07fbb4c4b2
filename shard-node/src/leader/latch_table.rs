//! The latches of all ranges that statements may use, and how they follow the state machine.
//!
//! Pure, without waiting: [`super::latches`] puts a lock and notifications around it.

use super::range_latch::{HandleKind, RangeLatch};
use crate::load::RangeStatistics;
use crate::load::range_statistics::Predecessor;
use crate::load::size::RememberedSizes;
use crate::state_machine::{InPhase, MoveIn, OutPhase, OwnedRange, RangeSize, ShardState};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::{Epoch, Failure, Key, KeyInterval, RangeId, ShardId, TableId};
use evenkeel_sql::Touches;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// A range that has left this shard, for redirects.
#[derive(Debug, Clone)]
struct DepartedRange {
    table: TableId,
    interval: KeyInterval,
    to: ShardId,
    range: RangeId,
    epoch: Epoch,
}

/// Which keys may belong to other ranges than before.
#[derive(Debug, Clone, Copy)]
pub enum ChangedKeys<'a> {
    /// Any keys.
    All,
    /// At most these: the keys of each range that is new, and of each that no longer exists.
    Only(&'a [(TableId, KeyInterval)]),
}

/// What the table says to a request for a handle.
pub(super) enum LatchDecision {
    /// The latches of the ranges, each entered once.
    Granted(Vec<Arc<RangeLatch>>),
    /// The ranges are blocked, or about to be adopted.
    Wait,
    /// The keys are not here.
    Rejected(Failure),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct LatchTable {
    generation: u64,
    ranges: HashMap<TableId, BTreeMap<Key, Arc<RangeLatch>>>,
    by_id: HashMap<RangeId, Arc<RangeLatch>>,
    sizes: RememberedSizes,
    departed: Vec<DepartedRange>,
    incoming: Vec<(TableId, KeyInterval)>,
    /// Tables that a prepared schema change holds.
    held: BTreeSet<TableId>,
    /// Tables of a schema change that is made and not stored yet.
    changing: BTreeSet<TableId>,
    /// Keys of transactions that an earlier leadership has prepared (R26); [`Key::MIN`] for a whole
    /// table.
    prepared: BTreeSet<(TableId, Key)>,
}

impl LatchTable {
    /// The number of calls of [`LatchTable::follow`].
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// All latches.
    pub(super) fn latches(&self) -> impl Iterator<Item = &Arc<RangeLatch>> {
        self.ranges.values().flat_map(BTreeMap::values)
    }

    /// The latch of a range.
    pub(super) fn by_id(&self, range: RangeId) -> Option<&Arc<RangeLatch>> {
        self.by_id.get(&range)
    }

    /// The latch of the range that holds `key`.
    pub(super) fn at(&self, table: TableId, key: &Key) -> Option<&Arc<RangeLatch>> {
        let (_, latch) = self.ranges.get(&table)?.range::<Key, _>(..=key).next_back()?;
        latch.range.interval.contains(key).then_some(latch)
    }

    /// Replaces the sizes of ranges without a latch by those that were stored.
    pub(super) fn restore_sizes(&mut self, sizes: Vec<(RangeId, RangeSize)>) {
        self.sizes.restore(sizes);
    }

    /// The sizes of all ranges, to be stored.
    pub(super) fn sizes(&self) -> Vec<(RangeId, RangeSize)> {
        self.by_id.iter().map(|(range, latch)| (*range, latch.statistics.size())).chain(self.sizes.iter()).collect()
    }

    /// Follows the state machine, of which at most `keys` have changed hands since the last call.
    /// Only these keys are looked at. The log says that the ranges in `not_stored` are owned, but
    /// their rows are not in PostgreSQL yet.
    pub(super) fn follow(&mut self, state: &ShardState, not_stored: &HashSet<RangeId>, keys: ChangedKeys<'_>) {
        self.generation += 1;
        for (table, interval) in self.regions(state, keys) {
            self.follow_region(state, not_stored, table, &interval);
        }
        self.departed = state
            .moves_out()
            .filter(|m| m.phase != OutPhase::Open)
            .map(|m| DepartedRange {
                table: m.table,
                interval: m.interval.clone(),
                to: m.to.id,
                range: m.range,
                epoch: m.epoch.next(),
            })
            .collect();
        let incoming = |m: &&MoveIn| m.phase == InPhase::Copying || not_stored.contains(&m.range);
        self.incoming = state.moves_in().filter(incoming).map(|m| (m.table, m.interval.clone())).collect();
        self.held = state.prepared_schema().map(|prepared| prepared.tables.clone()).unwrap_or_default();
        self.sizes.retain_moving(state);
    }

    /// Sets the tables of schema changes that are made and not stored yet.
    pub(super) fn set_changing(&mut self, tables: BTreeSet<TableId>) {
        self.changing = tables;
    }

    /// Sets the keys of transactions that an earlier leadership has prepared.
    pub(super) fn set_prepared(&mut self, keys: BTreeSet<(TableId, Key)>) {
        self.prepared = keys;
    }

    /// R26: the rows of such a transaction are not in PostgreSQL, and nobody holds their locks.
    fn meets_prepared(&self, table: TableId, touches: &Touches) -> bool {
        if self.prepared.is_empty() || *touches == Touches::Nothing {
            return false;
        }
        let within = |interval: &KeyInterval| {
            let next = self.prepared.range((table, interval.start.clone())..).next();
            next.is_some_and(|(of, key)| *of == table && interval.contains(key))
        };
        self.prepared.contains(&(table, Key::MIN))
            || match touches {
                Touches::Nothing => false,
                Touches::Keys(keys) => keys.iter().any(|key| self.prepared.contains(&(table, key.clone()))),
                Touches::Intervals(intervals) => intervals.iter().any(within),
            }
    }

    /// Decides on a request for a handle, and enters the latches if it is granted. `holding` are
    /// the latches that the caller has handles on: a write block waits for those, so it must not
    /// stop the caller.
    pub(super) fn decide(
        &self,
        kind: HandleKind,
        table: TableId,
        touches: &Touches,
        holding: &[Arc<RangeLatch>],
    ) -> LatchDecision {
        // R34: a schema change waits for those that hold a handle already.
        let held = self.held.contains(&table) || self.changing.contains(&table);
        if held && !holding.iter().any(|latch| latch.range.table == table) && *touches != Touches::Nothing {
            return LatchDecision::Wait;
        }
        if self.meets_prepared(table, touches) {
            return LatchDecision::Wait;
        }
        let latches = match self.covering(table, touches) {
            Ok(latches) => latches,
            Err(elsewhere) => return elsewhere,
        };
        let holds = |latch: &Arc<RangeLatch>| holding.iter().any(|held| latch.is_or_comes_from(held));
        if latches.iter().any(|latch| latch.is_blocked() && !holds(latch)) {
            return LatchDecision::Wait;
        }
        latches.iter().for_each(|latch| latch.enter(kind));
        LatchDecision::Granted(latches)
    }

    /// The latches of all ranges that the keys lie in, or the decision if one of the keys is not
    /// here.
    fn covering(&self, table: TableId, touches: &Touches) -> Result<Vec<Arc<RangeLatch>>, LatchDecision> {
        let mut latches: Vec<Arc<RangeLatch>> = Vec::new();
        match touches {
            Touches::Nothing => {}
            Touches::Keys(keys) => {
                for key in keys {
                    if latches.last().is_some_and(|latch| latch.range.interval.contains(key)) {
                        continue;
                    }
                    match self.at(table, key) {
                        Some(latch) => latches.push(latch.clone()),
                        None if deliberate(Bug::NoOwnershipFence) => {}
                        None => return Err(self.elsewhere(table, key)),
                    }
                }
            }
            Touches::Intervals(intervals) => {
                for interval in intervals {
                    let mut at = interval.start.clone();
                    // Walks the ranges that cover the interval. A gap is a key that is not here.
                    loop {
                        let Some(latch) = self.at(table, &at) else { return Err(self.elsewhere(table, &at)) };
                        latches.push(latch.clone());
                        match &latch.range.interval.end {
                            Some(end) if interval.end.as_ref().is_none_or(|until| end < until) => at = end.clone(),
                            _ => break,
                        }
                    }
                }
            }
        }
        Ok(latches)
    }

    fn elsewhere(&self, table: TableId, key: &Key) -> LatchDecision {
        if self.incoming.iter().any(|(t, interval)| *t == table && interval.contains(key)) {
            return LatchDecision::Wait;
        }
        let contains = |range: &&DepartedRange| range.table == table && range.interval.contains(key);
        // Of several moves the one with the highest epoch is the last.
        let last = self.departed.iter().filter(contains).max_by_key(|range| range.epoch);
        LatchDecision::Rejected(Failure::Moved {
            to: last.map(|range| range.to),
            range: last.map(|range| (range.range, range.epoch)),
        })
    }

    /// The keys to look at, as disjoint intervals: no range, before or after, lies in two of them.
    fn regions(&self, state: &ShardState, keys: ChangedKeys<'_>) -> Vec<(TableId, KeyInterval)> {
        match keys {
            ChangedKeys::Only(keys) => disjoint(keys.to_vec()),
            ChangedKeys::All => {
                let tables: BTreeSet<TableId> =
                    state.tables().map(|table| table.id).chain(self.ranges.keys().copied()).collect();
                tables.into_iter().map(|table| (table, KeyInterval::ALL)).collect()
            }
        }
    }

    fn follow_region(
        &mut self,
        state: &ShardState,
        not_stored: &HashSet<RangeId>,
        table: TableId,
        region: &KeyInterval,
    ) {
        let generation = self.generation;
        let old = self.remove_overlapping(table, region);
        for range in state.overlapping(table, region).filter(|range| !not_stored.contains(&range.id)) {
            let before = overlapping(&old, &range.interval);
            let latch = match before.iter().find(|latch| latch.range == *range) {
                Some(same) => same.clone(),
                None => {
                    let known = if before.is_empty() { self.sizes.take(state, range.id) } else { None };
                    Arc::new(succeed(range, known, before, state, generation))
                }
            };
            self.by_id.insert(range.id, latch.clone());
            self.ranges.entry(table).or_default().insert(range.interval.start.clone(), latch);
        }
        for latch in old {
            if !self.covers(&latch) {
                latch.depart();
                if state.range(latch.range.id).is_none() {
                    self.sizes.insert(latch.range.id, latch.statistics.size());
                }
            }
        }
    }

    /// Removes the latches that share keys with `region`, and returns them by key.
    fn remove_overlapping(&mut self, table: TableId, region: &KeyInterval) -> Vec<Arc<RangeLatch>> {
        let Some(ranges) = self.ranges.get_mut(&table) else { return Vec::new() };
        // The first range may begin before the region does.
        let first = ranges.range::<Key, _>(..=&region.start).next_back().map(|(start, _)| start.clone());
        let first = first.unwrap_or_else(|| region.start.clone());
        let before_end = |start: &Key| region.end.as_ref().is_none_or(|end| start < end);
        let old: Vec<Arc<RangeLatch>> = ranges
            .range::<Key, _>(&first..)
            .take_while(|(start, _)| before_end(start))
            .filter(|(_, latch)| latch.range.interval.overlaps(region))
            .map(|(_, latch)| latch.clone())
            .collect();
        for latch in &old {
            ranges.remove(&latch.range.interval.start);
            self.by_id.remove(&latch.range.id);
        }
        old
    }

    /// Whether all keys of a latch's range still have a latch.
    fn covers(&self, latch: &RangeLatch) -> bool {
        let interval = &latch.range.interval;
        let mut at = interval.start.clone();
        while let Some(here) = self.at(latch.range.table, &at) {
            match &here.range.interval.end {
                Some(end) if interval.end.as_ref().is_none_or(|until| end < until) => at = end.clone(),
                _ => return true,
            }
        }
        false
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

/// The latches that share keys with `interval`, of latches that are sorted by key and disjoint.
fn overlapping<'a>(latches: &'a [Arc<RangeLatch>], interval: &KeyInterval) -> &'a [Arc<RangeLatch>] {
    let ends_before =
        |latch: &Arc<RangeLatch>| latch.range.interval.end.as_ref().is_some_and(|end| *end <= interval.start);
    let begins_before =
        |latch: &Arc<RangeLatch>| interval.end.as_ref().is_none_or(|end| latch.range.interval.start < *end);
    let rest = &latches[latches.partition_point(ends_before)..];
    &rest[..rest.partition_point(begins_before)]
}

/// A new latch for `range`, with the load, the size and the unfinished statements of its
/// predecessors. A range without predecessors may have a `known` size.
fn succeed(
    range: &OwnedRange,
    known: Option<RangeSize>,
    before: &[Arc<RangeLatch>],
    state: &ShardState,
    generation: u64,
) -> RangeLatch {
    let predecessors: Vec<Predecessor<'_>> = before
        .iter()
        .map(|latch| Predecessor {
            interval: &latch.range.interval,
            statistics: &latch.statistics,
            pieces: pieces_of(latch, state),
        })
        .collect();
    let statistics = RangeStatistics::succeed(&range.interval, known, &predecessors);
    let adopted_in = before.iter().map(|latch| latch.adopted_in).max().unwrap_or(generation);
    RangeLatch::new(range.clone(), adopted_in, statistics, before)
}

/// The number of ranges that a latch's range has become.
fn pieces_of(latch: &RangeLatch, state: &ShardState) -> u64 {
    state.overlapping(latch.range.table, &latch.range.interval).count().max(1) as u64
}
