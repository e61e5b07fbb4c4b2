//! The load of one range: measured by its shard, or expected from the ranges that had its keys
//! before.
//!
//! A range that was just split, merged or moved has no measurements of its own. Its load is
//! *expected* from its parents'. The range keeps its *proportion* to the others, not its rate:
//! while load ramps up, or a relieved shard serves more, all rates change, and expected rates
//! follow the measured ones. An expectation ends when the shard has measured that range at that
//! epoch for a full window (R29).

use super::load_profile::{LoadProfile, shift};
use crate::config::BalancerConfig;
use evenkeel_protocol::report::RangeReport;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{Epoch, KeyCodec, KeyInterval, RangeId, ShardId, TableId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Time constant with which measured rates are smoothed, in milliseconds.
const SMOOTHING_MS: f64 = 1000.0;
/// Distance between the profiles that are compared to see whether the load shifts, in milliseconds.
const SHIFT_LAG_MS: u64 = 1500;
/// The shortest time between two remembered profiles, in milliseconds.
const PAST_EVERY_MS: u64 = 200;
/// Profiles remembered per range.
const MAX_PAST: usize = 12;

/// Rates of other ranges at the time of an expectation.
pub(super) type Baseline = Arc<Vec<((RangeId, Epoch), f64)>>;

/// Where a range's rate comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Measured for a full window.
    Measured,
    /// Derived from its parents, and scaled by the change of the rates in `baseline` since then.
    Expected {
        /// When it was derived, in milliseconds of the state machine's time.
        since_ms: u64,
        /// Rates of other ranges at that time.
        baseline: Arc<Vec<((RangeId, Epoch), f64)>>,
    },
    /// The shard's own estimate, not yet measured for a full window. Nothing is planned on it
    /// (R29).
    Unknown,
}

/// The load of one range.
#[derive(Debug, Clone)]
pub struct RangeView {
    /// The epoch for which it is known.
    pub epoch: Epoch,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
    /// Its owner.
    pub shard: ShardId,
    /// Statements per second, as measured or derived. [`LoadModel::rate`](super::LoadModel::rate)
    /// scales it.
    pub(super) rate: f64,
    /// Estimated bytes of its rows.
    pub bytes: u64,
    /// Where within the range the load falls.
    pub profile: LoadProfile,
    /// Where the rate comes from.
    pub source: Source,
    /// Since when it has been cold, in milliseconds of the state machine's time.
    pub cold_since_ms: Option<u64>,
    /// Whether its shard's meter continues those of its parents, so that the first report is
    /// already good.
    same_meter: bool,
    absorbed_ms: u64,
    past: VecDeque<(u64, LoadProfile)>,
}

impl RangeView {
    /// Derives the load of a new route from the ranges that had its keys `before`.
    pub(super) fn derived(
        route: &Route,
        before: &BTreeMap<RangeId, RangeView>,
        rates: &BTreeMap<RangeId, f64>,
        codec: &KeyCodec,
        baseline: &Baseline,
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
            let (share, profile, part_bytes) = parent.part(&route.interval, codec);
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
        let profile = LoadProfile::join(parts.iter().map(|(load, profile)| (*load, profile)));
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

    /// The share of its load that falls into `interval`, the profile there, and the estimated
    /// bytes.
    fn part(&self, interval: &KeyInterval, codec: &KeyCodec) -> (f64, LoadProfile, u64) {
        if interval.covers(&self.interval) {
            return (1.0, self.profile.clone(), self.bytes);
        }
        let (share, profile) = self.profile.cut(&self.interval, interval, codec);
        // Where the rows are is not known; the share of the load stands for the share of the bytes.
        (share, profile, (self.bytes as f64 * share) as u64)
    }

    /// Whether its shard knows the load better than the model, and sends it with the next report.
    pub fn is_about_to_be_measured(&self) -> bool {
        self.same_meter && matches!(self.source, Source::Expected { .. })
    }

    /// How far the load has shifted within the range in the last one to two seconds (0 to 1).
    /// `None` if the range has not been known for that long.
    pub(super) fn shift(&self) -> Option<f64> {
        let (latest_ms, _) = self.past.back()?;
        let (_, before) = self.past.iter().rev().find(|(at, _)| at + SHIFT_LAG_MS <= *latest_ms)?;
        Some(shift(before, &self.profile))
    }

    /// Takes in a report of the owner about this epoch, unless it was taken in before.
    pub(super) fn absorb(&mut self, report: &RangeReport, config: &BalancerConfig, came_ms: u64) {
        if self.absorbed_ms >= came_ms {
            return;
        }
        let rate = report.load.statements_per_s().max(0.0);
        let full_window = report.load.observed_ms >= config.window_ms;
        // The meter of a split piece was cut from its parent's, which knows more than the parent's
        // profile. A rate far from the expected one has another origin: for example a new leader
        // that has only begun to measure.
        let alike = rate < 2.0 * self.rate + 5.0 && self.rate < 2.0 * rate + 5.0;
        let known = full_window || (self.is_about_to_be_measured() && alike);
        match (&self.source, known) {
            (Source::Measured, true) => {
                let passed_ms = came_ms.saturating_sub(self.absorbed_ms) as f64;
                self.rate += (rate - self.rate) * (1.0 - (-passed_ms / SMOOTHING_MS).exp());
            }
            (_, true) => {
                self.rate = rate;
                self.source = Source::Measured;
            }
            (Source::Unknown, false) => self.rate = rate,
            // A new leader begins to measure again; the known rate is better.
            (Source::Measured | Source::Expected { .. }, false) => return,
        }
        self.absorbed_ms = came_ms;
        self.bytes = report.load.bytes;
        self.absorb_profile(report, came_ms);
    }

    fn absorb_profile(&mut self, report: &RangeReport, came_ms: u64) {
        let total: f64 = report.load.sketch.iter().map(|(_, share)| share).sum();
        if total <= 0.0 {
            self.past.clear();
            return;
        }
        self.profile = LoadProfile { points: report.load.sketch.clone(), hot: report.load.hot.clone() };
        // Reports come more often while operators progress; profiles are compared over more than a
        // second.
        if self.past.back().is_none_or(|(at, _)| at + PAST_EVERY_MS <= came_ms) {
            if self.past.len() >= MAX_PAST {
                self.past.pop_front();
            }
            self.past.push_back((came_ms, self.profile.clone()));
        }
    }
}
