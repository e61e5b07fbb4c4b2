//! The balancer's picture of the load: what shards have reported, and what is expected of ranges that have not been measured yet.
//!
//! A range that was just split, merged or moved has no measurements of its own for a while. Its load is then *expected* from its
//! parents', so that load already assigned counts where it goes and stale reports cannot make the balancer thrash. What carries over is the
//! range's *proportion* to the others, not its rate: while load ramps up, or a relieved shard serves more, all rates change, and the
//! expected ones follow the measured ones. An expectation ends when the shard has measured that (range, epoch) for a full window (R29).
//!
//! The picture belongs to one leadership of the placement driver's leader and begins empty. It is deterministic: time comes in with every call.

use super::clocks;
use super::heard::{FaultView, Observed, ShardView};
use super::level::{self, Level};
use super::moves::{self, MoveView};
use super::sizes::{SizeQuestion, Sizes};
use super::sketch::{Profile, shift};
use super::validation::{Fault, validate};
use crate::config::BalancerConfig;
use crate::state::{MAX_SHARDS, State};
use evenkeel_protocol::report::{RangeReport, RangeState, ShardReport};
use evenkeel_protocol::{Epoch, KeyCodec, KeyInterval, OperatorId, RangeId, ShardId, TableId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How quickly measured rates are followed, in milliseconds.
const SMOOTHING_MS: f64 = 1000.0;
/// How far back profiles are compared to see whether the load stays where it is, in milliseconds.
const SHIFT_LAG_MS: u64 = 1500;
/// An expectation that no measurement has ended by then is dropped, in milliseconds.
const EXPECTATION_MS: u64 = 15_000;
/// The most other ranges an expectation is held against.
const MAX_BASELINE: usize = 128;
/// The shortest time between two remembered profiles, in milliseconds.
const PAST_EVERY_MS: u64 = 200;
/// How far back the total is compared to see whether it is steady, in milliseconds.
const STEADY_LAG_MS: u64 = 2000;
/// The most by which a steady total changes in that time, as a factor.
const STEADY_FACTOR: f64 = 1.3;
/// Totals remembered.
const MAX_TOTALS: usize = 32;
/// Profiles remembered per range.
const MAX_PAST: usize = 12;

/// Where a range's rate comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Measured for a full window.
    Measured,
    /// Derived from its parents since this time; scaled by what became of the rates in `baseline`.
    Expected {
        /// Since when, in milliseconds of the state machine's time.
        since_ms: u64,
        /// Rates of other ranges at that time.
        baseline: Arc<Vec<((RangeId, Epoch), f64)>>,
    },
    /// The shard's own estimate, not yet measured for a full window: nothing is planned on it (R29).
    Unknown,
}

/// What is known of a range's load.
#[derive(Debug, Clone)]
pub struct RangeView {
    /// The epoch it is known for.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
    /// Its owner.
    pub shard: ShardId,
    /// Statements per second, as measured or derived.
    rate: f64,
    /// Bytes of rows, estimated.
    pub bytes: u64,
    /// Where the load falls.
    pub profile: Profile,
    /// Where the rate comes from.
    pub source: Source,
    /// Since when it has been cold, in milliseconds of the state machine's time.
    pub cold_since_ms: Option<u64>,
    /// Whether its shard's own meter goes on from its parents': what it says is then good from its first report on.
    same_meter: bool,
    absorbed_ms: u64,
    past: VecDeque<(u64, Profile)>,
}

impl RangeView {
    /// Whether its shard knows its load better than is known here, and will tell with its next report.
    pub fn is_about_to_be_measured(&self) -> bool {
        self.same_meter && matches!(self.source, Source::Expected { .. })
    }
}

/// The picture.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Shards that have reported in this leadership.
    pub shards: BTreeMap<ShardId, ShardView>,
    /// Shards that have reported in this leadership and are not registered, at most [`MAX_SHARDS`].
    pub strangers: BTreeMap<ShardId, ShardView>,
    /// When this leadership began, in milliseconds of the state machine's time.
    pub since_ms: Option<u64>,
    /// The latest faults in reports, of shards of which there was any in this leadership.
    pub faults: BTreeMap<ShardId, FaultView>,
    /// Ranges, as of the last update.
    pub ranges: BTreeMap<RangeId, RangeView>,
    /// The moves under way, as their destinations see them.
    pub moves: BTreeMap<OperatorId, MoveView>,
    /// Where ranges that are too large can be split, as far as their shards have said.
    pub sizes: Sizes,
    /// Bytes per second that each shard has moved lately, in or out, in all its moves together. Absent if it was never measured.
    pub bandwidth: BTreeMap<ShardId, f64>,
    /// How far shards' clocks are from the median, in milliseconds, as of the last update; empty if that cannot be judged.
    clocks: BTreeMap<ShardId, i64>,
    /// How far this placement driver's own clock is ahead of the state machine's time, in milliseconds.
    own_ahead_ms: Option<i64>,
    /// The level, as of the last update.
    pub level: Level,
    /// Since when the imbalance has been above the threshold, in milliseconds of the state machine's time.
    pub uneven_since_ms: Option<u64>,
    /// Whether the balancer is bringing the load to its goal. Begins when the imbalance has persisted, ends when the goal is reached
    /// or nothing more can be done.
    pub acting: bool,
    /// Whether the load has been level in this leadership. From then on the balancer is slower to act: a stall and the burst after it look like
    /// imbalance for a few seconds.
    pub been_level: bool,
    totals: VecDeque<(u64, f64)>,
    /// The shards that existed when this leadership began: R29 waits for each of them.
    pub founders: Option<BTreeSet<ShardId>>,
}

impl Picture {
    /// Takes a report in, unless a later one of that shard is known, without what in it cannot be.
    pub fn observe(
        &mut self,
        mut report: ShardReport,
        state: &State,
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

    /// Remembers a fault in a shard's report; says whether it is to be logged.
    fn note_fault(&mut self, shard: ShardId, fault: &Fault, now_ms: u64) -> bool {
        let (view, log) = FaultView::after(self.faults.get(&shard), fault, now_ms);
        self.faults.insert(shard, view);
        log
    }

    fn take(&mut self, report: ShardReport, state: &State, config: &BalancerConfig, now_ms: u64) -> bool {
        let shard = report.shard;
        let registered = state.shards.contains_key(&shard);
        let views = if registered { &self.shards } else { &self.strangers };
        if !registered && views.len() >= MAX_SHARDS && !views.contains_key(&shard) {
            return false;
        }
        let Some(view) = ShardView::after(views.get(&shard), report, state, config, now_ms) else { return false };
        if registered {
            moves::observe(&mut self.moves, &self.shards, &view.report, now_ms);
            self.shards.insert(shard, view);
        } else {
            self.strangers.insert(shard, view);
        }
        registered
    }

    /// Brings the picture up to date with the state and the reports taken in since the last time.
    pub fn update(&mut self, state: &State, config: &BalancerConfig, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
        self.shards.retain(|id, _| state.shards.contains_key(id));
        self.strangers.retain(|id, _| !state.shards.contains_key(id));
        self.faults.retain(|id, _| state.shards.contains_key(id));
        self.founders.get_or_insert_with(|| state.shards.keys().copied().collect());
        self.follow_routes(state, now_ms);
        moves::follow(&mut self.moves, &mut self.bandwidth, state);
        let reports: Vec<Arc<ShardReport>> = self.shards.values().map(|view| view.report.clone()).collect();
        for report in reports {
            let came_ms = self.shards.get(&report.shard).map_or(now_ms, |view| view.last_ms);
            for range in &report.ranges {
                self.absorb(report.shard, range, config, came_ms);
            }
        }
        self.expire(now_ms);
        let speaks = |view: &ShardView| view.last_ms + config.silent_after_ms >= now_ms;
        self.clocks = clocks::judge(self.shards.iter().filter(|(_, view)| speaks(view)), self.own_ahead_ms);
        self.level = level::measure(state, self, config, now_ms);
        self.note_cold(config, now_ms);
        self.note_total(now_ms);
        self.note_level(state, config, now_ms);
    }

    /// What this placement driver's own clock shows, in milliseconds since the Unix epoch: one of those compared.
    pub fn set_clock(&mut self, clock_ms: Option<u64>, now_ms: u64) {
        self.own_ahead_ms = clock_ms.map(|clock_ms| clocks::ahead_ms(clock_ms, now_ms));
    }

    /// How far a shard's clock is from the median of all, in milliseconds; `None` if that cannot be judged.
    pub fn clock_off_ms(&self, shard: ShardId) -> Option<i64> {
        self.clocks.get(&shard).copied()
    }

    /// Whether a shard's clock is off: then nothing is to move there.
    pub fn clock_is_off(&self, shard: ShardId) -> bool {
        self.clock_off_ms(shard).is_some_and(|off_ms| off_ms.unsigned_abs() > clocks::OFF_MS)
    }

    /// The shards whose clocks are off, in order.
    pub fn clocks_off(&self) -> impl Iterator<Item = (ShardId, i64)> + '_ {
        self.clocks.iter().map(|(shard, off_ms)| (*shard, *off_ms)).filter(|(shard, _)| self.clock_is_off(*shard))
    }

    /// The range's load in statements per second: measured, or expected from what is measured of the others.
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
        // Below a few statements a second the ratio is noise.
        if then < 5.0 { view.rate } else { view.rate * (now / then).clamp(0.1, 10.0) }
    }

    /// Whether every owned range's load is known, measured or expected.
    pub fn unknown_range(&self) -> Option<RangeId> {
        self.ranges.iter().find(|(_, view)| view.source == Source::Unknown).map(|(id, _)| *id)
    }

    /// How far the range's load has shifted within it in the last one to two seconds (0 to 1); `None` if it is not known for
    /// that long.
    pub fn shift(&self, id: RangeId) -> Option<f64> {
        let view = self.ranges.get(&id)?;
        let (latest_ms, _) = view.past.back()?;
        let (_, before) = view.past.iter().rev().find(|(at, _)| at + SHIFT_LAG_MS <= *latest_ms)?;
        Some(shift(before, &view.profile))
    }

    /// Whether the load of some range is expected and not measured yet.
    pub fn expects(&self) -> bool {
        self.ranges.values().any(|view| matches!(view.source, Source::Expected { .. }))
    }

    /// Which shards to ask where to split a range that is too large; bring the answers to [`Sizes::answered`].
    pub fn size_questions(&mut self, state: &State, config: &BalancerConfig, now_ms: u64) -> Vec<SizeQuestion> {
        let mut sizes = std::mem::take(&mut self.sizes);
        let questions = sizes.next(state, self, config, now_ms);
        self.sizes = sizes;
        questions
    }

    /// Nothing more can be done: rest until the imbalance is above the threshold for long enough again.
    pub fn rest(&mut self) {
        self.acting = false;
        self.uneven_since_ms = None;
    }

    /// Gives every range of the state that is new or changed an expectation from what its keys carried before.
    fn follow_routes(&mut self, state: &State, now_ms: u64) {
        let same = |id: &RangeId, view: &RangeView| {
            state.ranges.get(id).is_some_and(|r| r.route.epoch == view.epoch && r.route.shard == view.shard)
        };
        let changed = state.ranges.iter().any(|(id, r)| self.ranges.get(id).is_none_or(|v| v.epoch != r.route.epoch));
        if !changed && self.ranges.iter().all(|(id, view)| same(id, view)) {
            return;
        }
        let baseline = Arc::new(self.baseline());
        let rates: BTreeMap<RangeId, f64> = self.ranges.keys().map(|id| (*id, self.rate(*id))).collect();
        let before = std::mem::take(&mut self.ranges);
        for (id, range) in &state.ranges {
            let route = &range.route;
            let view = match before.get(id) {
                Some(view) if view.epoch == route.epoch && view.shard == route.shard => view.clone(),
                _ => {
                    let codec = state.tables.get(&route.table).map(|table| table.schema.codec());
                    let codec = codec.unwrap_or(KeyCodec { types: Vec::new() });
                    derive(route, &before, &rates, &codec, &baseline, now_ms)
                }
            };
            self.ranges.insert(*id, view);
        }
    }

    /// The rates of the busiest ranges now.
    fn baseline(&self) -> Vec<((RangeId, Epoch), f64)> {
        let mut rates: Vec<_> = self.ranges.iter().map(|(id, view)| ((*id, view.epoch), self.rate(*id))).collect();
        rates.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        rates.truncate(MAX_BASELINE);
        rates
    }

    fn absorb(&mut self, shard: ShardId, report: &RangeReport, config: &BalancerConfig, came_ms: u64) {
        let owned = matches!(report.state, RangeState::Owned | RangeState::MovingOut { .. });
        let Some(view) = self.ranges.get_mut(&report.id) else { return };
        if !owned || view.shard != shard || view.epoch != report.epoch || view.absorbed_ms >= came_ms {
            return;
        }
        let rate = report.load.statements_per_s().max(0.0);
        let full_window = report.load.observed_ms >= config.window_ms;
        // A split piece's meter was cut from its parent's, which knows more than the parent's sketch did. A rate far from what was expected
        // comes from elsewhere: a new leader, say, that has only begun to measure.
        let alike = rate < 2.0 * view.rate + 5.0 && view.rate < 2.0 * rate + 5.0;
        let known = full_window || (view.is_about_to_be_measured() && alike);
        match (&view.source, known) {
            (Source::Measured, true) => {
                let passed_ms = came_ms.saturating_sub(view.absorbed_ms) as f64;
                view.rate += (rate - view.rate) * (1.0 - (-passed_ms / SMOOTHING_MS).exp());
            }
            (_, true) => {
                view.rate = rate;
                view.source = Source::Measured;
            }
            (Source::Unknown, false) => view.rate = rate,
            // A new leader starts measuring afresh: what is known is better.
            (Source::Measured | Source::Expected { .. }, false) => return,
        }
        view.absorbed_ms = came_ms;
        view.bytes = report.load.bytes;
        let total: f64 = report.load.sketch.iter().map(|(_, share)| share).sum();
        if total > 0.0 {
            view.profile = Profile { points: report.load.sketch.clone(), hot: report.load.hot.clone() };
            // Reports come more often while operators get further; what is compared is a second old.
            if view.past.back().is_none_or(|(at, _)| at + PAST_EVERY_MS <= came_ms) {
                if view.past.len() >= MAX_PAST {
                    view.past.pop_front();
                }
                view.past.push_back((came_ms, view.profile.clone()));
            }
        } else {
            view.past.clear();
        }
    }

    /// Expectations that were never met are dropped: the shard's own estimate is then all there is.
    fn expire(&mut self, now_ms: u64) {
        for view in self.ranges.values_mut() {
            if let Source::Expected { since_ms, .. } = view.source
                && since_ms + EXPECTATION_MS < now_ms
            {
                view.source = Source::Unknown;
            }
        }
    }

    fn note_cold(&mut self, config: &BalancerConfig, now_ms: u64) {
        let below = config.cold_share * self.level.mean;
        let rates: Vec<(RangeId, f64)> = self.ranges.keys().map(|id| (*id, self.rate(*id))).collect();
        for (id, rate) in rates {
            if let Some(view) = self.ranges.get_mut(&id) {
                view.cold_since_ms = (rate <= below).then(|| view.cold_since_ms.unwrap_or(now_ms));
            }
        }
    }

    fn note_total(&mut self, now_ms: u64) {
        if self.totals.back().is_some_and(|(at, _)| at + PAST_EVERY_MS > now_ms) {
            return;
        }
        if self.totals.len() >= MAX_TOTALS {
            self.totals.pop_front();
        }
        self.totals.push_back((now_ms, self.level.total));
    }

    /// Whether the total has been about the same lately.
    fn is_steady(&self, now_ms: u64) -> bool {
        let lately = self.totals.iter().filter(|(at, _)| at + STEADY_LAG_MS >= now_ms).map(|(_, total)| *total);
        let (least, most) = lately.fold((f64::INFINITY, 0.0f64), |(least, most), t| (least.min(t), most.max(t)));
        most <= least * STEADY_FACTOR
    }

    /// Hysteresis: acts once the imbalance has persisted, and then until the goal is reached.
    fn note_level(&mut self, state: &State, config: &BalancerConfig, now_ms: u64) {
        let level = &self.level;
        if level::not_ready(state, self, config, now_ms).is_some() || level.total < config.min_load_per_s {
            self.uneven_since_ms = None;
            self.acting &= level.total >= config.min_load_per_s;
            return;
        }
        let (ratio, act_above, enough) = (level.ratio(), level.act_above, level.close_enough());
        if ratio > act_above {
            let since = *self.uneven_since_ms.get_or_insert(now_ms);
            let lasts = if self.been_level {
                since + config.persist_level_ms <= now_ms && self.is_steady(now_ms)
            } else {
                since + config.persist_ms <= now_ms
            };
            self.acting |= lasts;
        } else {
            self.uneven_since_ms = None;
            // What is expected has to be confirmed: correcting it now is better than beginning again later.
            let confirmed = !self.expects();
            self.been_level |= confirmed;
            self.acting &= ratio > enough || !confirmed || state.running().next().is_some();
        }
    }
}

/// What is expected of a range, from what its keys carried before.
fn derive(
    route: &evenkeel_protocol::routing::Route,
    before: &BTreeMap<RangeId, RangeView>,
    rates: &BTreeMap<RangeId, f64>,
    codec: &KeyCodec,
    baseline: &Arc<Vec<((RangeId, Epoch), f64)>>,
    now_ms: u64,
) -> RangeView {
    let mut rate = 0.0;
    let mut bytes = 0;
    let mut known = true;
    let mut same_meter = true;
    let mut cold_since_ms = Some(0);
    let mut parts = Vec::new();
    for (id, parent) in before {
        if parent.table != route.table || !parent.interval.overlaps(&route.interval) {
            continue;
        }
        let (share, profile, part_bytes) = if route.interval.covers(&parent.interval) {
            (1.0, parent.profile.clone(), parent.bytes)
        } else {
            let (share, profile) = parent.profile.cut(&parent.interval, &route.interval, codec);
            // Rows are not where the load is; without better knowledge each piece is taken for the load's share of them.
            (share, profile, (parent.bytes as f64 * share) as u64)
        };
        let part = share * rates.get(id).copied().unwrap_or(0.0);
        rate += part;
        bytes += part_bytes;
        known &= parent.source != Source::Unknown;
        same_meter &= parent.shard == route.shard && parent.source == Source::Measured;
        cold_since_ms = cold_since_ms.zip(parent.cold_since_ms).map(|(a, b)| a.max(b));
        parts.push((part, profile));
    }
    let source = if known && !parts.is_empty() {
        Source::Expected { since_ms: now_ms, baseline: baseline.clone() }
    } else {
        Source::Unknown
    };
    let profile = Profile::join(parts.iter().map(|(load, profile)| (*load, profile)));
    RangeView {
        epoch: route.epoch,
        table: route.table,
        interval: route.interval.clone(),
        shard: route.shard,
        rate,
        bytes,
        past: VecDeque::from([(now_ms, profile.clone())]),
        profile,
        source,
        cold_since_ms: cold_since_ms.filter(|_| !parts.is_empty()),
        same_meter,
        absorbed_ms: 0,
    }
}
