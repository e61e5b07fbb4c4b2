//! The load model: the latest reports of all shards, and the load of every range.

use super::clocks;
use super::move_view::{self, MoveView};
use super::range_view::{Baseline, RangeView, Source};
use super::report_fault::{FaultView, Observed};
use super::report_validation::{ReportFault, validate};
use super::shard_view::ShardView;
use crate::config::BalancerConfig;
use crate::state::{MAX_SHARDS, PlacementState};
use evenkeel_protocol::report::{RangeReport, RangeState, ShardReport};
use evenkeel_protocol::{KeyCodec, OperatorId, RangeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An expectation that no measurement has ended by then is dropped, in milliseconds.
const EXPECTATION_MS: u64 = 15_000;
/// Ranges in the baseline of an expectation, at most.
const MAX_BASELINE: usize = 128;

/// The load model of one leadership.
#[derive(Debug, Clone, Default)]
pub struct LoadModel {
    /// Registered shards that have reported in this leadership.
    pub shards: BTreeMap<ShardId, ShardView>,
    /// Shards that have reported in this leadership and are not registered, at most [`MAX_SHARDS`].
    pub strangers: BTreeMap<ShardId, ShardView>,
    /// When this leadership began, in milliseconds of the state machine's time.
    pub since_ms: Option<u64>,
    /// The latest fault in the reports of each shard that has sent any in this leadership.
    pub faults: BTreeMap<ShardId, FaultView>,
    /// The ranges, as of the last update.
    pub ranges: BTreeMap<RangeId, RangeView>,
    /// The moves under way, as their destinations report them.
    pub moves: BTreeMap<OperatorId, MoveView>,
    /// Bytes per second that each shard has moved lately, in and out, in all of its moves together.
    /// Absent if never measured.
    pub bandwidth: BTreeMap<ShardId, f64>,
    /// The shards that existed when this leadership began: R29 waits for each of them.
    pub founders: Option<BTreeSet<ShardId>>,
    /// How far shards' clocks are from the median, in milliseconds, as of the last update. Empty if
    /// there are too few.
    clocks: BTreeMap<ShardId, i64>,
    /// How far this placement driver's own clock is ahead of the state machine's time, in
    /// milliseconds.
    own_ahead_ms: Option<i64>,
}

impl LoadModel {
    /// Takes in a report, without its invalid parts, unless a later one of that shard is known.
    pub fn observe(
        &mut self,
        mut report: ShardReport,
        state: &PlacementState,
        config: &BalancerConfig,
        now_ms: u64,
    ) -> Observed {
        let verdict = validate(&mut report, state);
        let sound = verdict.is_ok();
        let fault = verdict.unwrap_or_else(Some);
        let log = fault.as_ref().is_some_and(|fault| self.note_fault(report.shard, fault, now_ms));
        let taken = sound && self.take(report, state, config, now_ms);
        Observed { taken, fault, log }
    }

    /// Remembers a fault in a shard's report. Returns whether it is to be logged.
    fn note_fault(&mut self, shard: ShardId, fault: &ReportFault, now_ms: u64) -> bool {
        let (view, log) = FaultView::after(self.faults.get(&shard), fault, now_ms);
        self.faults.insert(shard, view);
        log
    }

    fn take(&mut self, report: ShardReport, state: &PlacementState, config: &BalancerConfig, now_ms: u64) -> bool {
        let shard = report.shard;
        let registered = state.shards.contains_key(&shard);
        let views = if registered { &self.shards } else { &self.strangers };
        if !registered && views.len() >= MAX_SHARDS && !views.contains_key(&shard) {
            return false;
        }
        let Some(view) = ShardView::after(views.get(&shard), report, state, config, now_ms) else { return false };
        if registered {
            move_view::observe(&mut self.moves, &self.shards, &view.report, now_ms);
            self.shards.insert(shard, view);
        } else {
            self.strangers.insert(shard, view);
        }
        registered
    }

    /// Brings the model up to date with the state and the reports since the last update.
    pub fn update(&mut self, state: &PlacementState, config: &BalancerConfig, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
        self.shards.retain(|id, _| state.shards.contains_key(id));
        self.strangers.retain(|id, _| !state.shards.contains_key(id));
        self.faults.retain(|id, _| state.shards.contains_key(id));
        self.founders.get_or_insert_with(|| state.shards.keys().copied().collect());
        self.follow_routes(state, now_ms);
        move_view::follow(&mut self.moves, &mut self.bandwidth, state);
        let reports: Vec<Arc<ShardReport>> = self.shards.values().map(|view| view.report.clone()).collect();
        for report in reports {
            let came_ms = self.shards.get(&report.shard).map_or(now_ms, |view| view.last_ms);
            for range in &report.ranges {
                self.absorb(report.shard, range, config, came_ms);
            }
        }
        self.expire(now_ms);
        let reporting = self.shards.iter().filter(|(_, view)| view.last_ms + config.silent_after_ms >= now_ms);
        let ahead = reporting.map(|(shard, view)| (*shard, view.clock_ahead_ms)).collect();
        self.clocks = clocks::judge(ahead, self.own_ahead_ms);
    }

    /// Whether a shard has reported lately.
    pub fn reports(&self, shard: ShardId, config: &BalancerConfig, now_ms: u64) -> bool {
        self.shards.get(&shard).is_some_and(|view| view.last_ms + config.silent_after_ms >= now_ms)
    }

    /// Whether a shard reports at least this version of the schema. Version 0 asks for nothing.
    pub fn has_schema(&self, shard: ShardId, version: u64) -> bool {
        version == 0 || self.shards.get(&shard).is_some_and(|view| view.report.schema.version >= version)
    }

    /// Sets this placement driver's own clock, in milliseconds since the Unix epoch. It is compared
    /// with the shards'.
    pub fn set_clock(&mut self, clock_ms: Option<u64>, now_ms: u64) {
        self.own_ahead_ms = clock_ms.map(|clock_ms| clocks::ahead_ms(clock_ms, now_ms));
    }

    /// How far a shard's clock is from the median, in milliseconds. `None` if there are too few
    /// clocks to judge.
    pub fn clock_off_ms(&self, shard: ShardId) -> Option<i64> {
        self.clocks.get(&shard).copied()
    }

    /// Whether a shard's clock is too far from the median for ranges to move there.
    pub fn clock_is_off(&self, shard: ShardId) -> bool {
        self.clock_off_ms(shard).is_some_and(|off_ms| off_ms.unsigned_abs() > clocks::OFF_MS)
    }

    /// The shards whose clocks are too far from the median, in order, with the difference in
    /// milliseconds.
    pub fn clocks_off(&self) -> impl Iterator<Item = (ShardId, i64)> + '_ {
        self.clocks.iter().map(|(shard, off_ms)| (*shard, *off_ms)).filter(|(shard, _)| self.clock_is_off(*shard))
    }

    /// The range's load in statements per second: measured, or expected from the measured load of
    /// the others.
    pub fn rate(&self, id: RangeId) -> f64 {
        let Some(view) = self.ranges.get(&id) else { return 0.0 };
        let Source::Expected { baseline, .. } = &view.source else { return view.rate };
        let (mut then, mut now) = (0.0, 0.0);
        for ((other, epoch), rate) in baseline.iter() {
            let Some(other) = self.ranges.get(other) else { continue };
            if other.epoch == *epoch && other.source == Source::Measured {
                then += rate;
                now += other.rate;
            }
        }
        // Below a few statements per second the ratio is noise.
        if then < 5.0 { view.rate } else { view.rate * (now / then).clamp(0.1, 10.0) }
    }

    /// The estimated bytes of a range's rows; 0 if unknown.
    pub fn bytes(&self, id: RangeId) -> u64 {
        self.ranges.get(&id).map_or(0, |view| view.bytes)
    }

    /// How far the range's load has shifted within it in the last one to two seconds (0 to 1).
    /// `None` if it has not been known for that long.
    pub fn shift(&self, id: RangeId) -> Option<f64> {
        self.ranges.get(&id)?.shift()
    }

    /// Whether the load of some range is expected and not yet measured.
    pub fn expects(&self) -> bool {
        self.ranges.values().any(|view| matches!(view.source, Source::Expected { .. }))
    }

    /// Records since when each range has carried at most `below` statements per second.
    pub fn note_cold(&mut self, below: f64, now_ms: u64) {
        let rates: Vec<(RangeId, f64)> = self.ranges.keys().map(|id| (*id, self.rate(*id))).collect();
        for (id, rate) in rates {
            if let Some(view) = self.ranges.get_mut(&id) {
                view.cold_since_ms = (rate <= below).then(|| view.cold_since_ms.unwrap_or(now_ms));
            }
        }
    }

    /// Gives every range of the state that is new or changed an expectation from the previous load
    /// of its keys.
    fn follow_routes(&mut self, state: &PlacementState, now_ms: u64) {
        let same = |id: &RangeId, view: &RangeView| {
            state.ranges.get(id).is_some_and(|r| r.route.epoch == view.epoch && r.route.shard == view.shard)
        };
        let changed = state.ranges.iter().any(|(id, r)| self.ranges.get(id).is_none_or(|v| v.epoch != r.route.epoch));
        if !changed && self.ranges.iter().all(|(id, view)| same(id, view)) {
            return;
        }
        let baseline = self.baseline();
        let rates: BTreeMap<RangeId, f64> = self.ranges.keys().map(|id| (*id, self.rate(*id))).collect();
        let before = std::mem::take(&mut self.ranges);
        for (id, range) in &state.ranges {
            let route = &range.route;
            let view = match before.get(id) {
                Some(view) if view.epoch == route.epoch && view.shard == route.shard => view.clone(),
                _ => {
                    let codec = state.tables.get(&route.table).map(|table| table.schema.codec());
                    let codec = codec.unwrap_or(KeyCodec { types: Vec::new() });
                    RangeView::derived(route, &before, &rates, &codec, &baseline, now_ms)
                }
            };
            self.ranges.insert(*id, view);
        }
    }

    /// The present rates of the busiest ranges.
    fn baseline(&self) -> Baseline {
        let mut rates: Vec<_> = self.ranges.iter().map(|(id, view)| ((*id, view.epoch), self.rate(*id))).collect();
        rates.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        rates.truncate(MAX_BASELINE);
        Arc::new(rates)
    }

    fn absorb(&mut self, shard: ShardId, report: &RangeReport, config: &BalancerConfig, came_ms: u64) {
        let owned = matches!(report.state, RangeState::Owned | RangeState::MovingOut { .. });
        let Some(view) = self.ranges.get_mut(&report.id) else { return };
        if owned && view.shard == shard && view.epoch == report.epoch {
            view.absorb(report, config, came_ms);
        }
    }

    /// Drops expectations that no measurement has confirmed. Only the shard's own estimate is left
    /// then.
    fn expire(&mut self, now_ms: u64) {
        for view in self.ranges.values_mut() {
            if let Source::Expected { since_ms, .. } = view.source
                && since_ms + EXPECTATION_MS < now_ms
            {
                view.source = Source::Unknown;
            }
        }
    }
}
