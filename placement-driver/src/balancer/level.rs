//! How even the load is, counting every range where it will be, and whether enough is known to judge.

use super::picture::{Picture, Source};
use crate::config::BalancerConfig;
use crate::state::{State, Step, Work};
use evenkeel_protocol::{RangeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Seconds over which a rate is in effect averaged: the source's two and the picture's own.
const AVERAGED_S: f64 = 4.0;

/// How even the load is. Loads are statements per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Each active, speaking shard's load, with moves under way counted at their destination.
    pub loads: BTreeMap<ShardId, f64>,
    /// The load of all shards, draining ones included.
    pub total: f64,
    /// The load each active shard should carry.
    pub mean: f64,
    /// The busiest shard's load over the mean; 1 without load.
    pub imbalance: f64,
    /// The least imbalance possible: `max(1, N·p)`, p = the hottest key's share.
    pub floor: f64,
    /// The ratio of imbalance to floor above which the balancer acts; noise raises it.
    pub act_above: f64,
    /// The ratio it then plans to reach; noise raises it.
    pub goal: f64,
}

impl Default for Level {
    fn default() -> Self {
        Level { loads: BTreeMap::new(), total: 0.0, mean: 0.0, imbalance: 1.0, floor: 1.0, act_above: 1.0, goal: 1.0 }
    }
}

impl Level {
    /// Imbalance over its floor; 1 is perfect.
    pub fn ratio(&self) -> f64 {
        self.imbalance / self.floor
    }

    /// The ratio at which nothing new is begun even while the balancer acts: halfway to where it would begin to act. Measurements
    /// are no better than that, and a split and a move cost something too.
    pub fn close_enough(&self) -> f64 {
        1.0 + (self.act_above - 1.0) / 2.0
    }

    /// The load above which a shard has too much, once the balancer acts.
    pub fn ceiling(&self) -> f64 {
        self.goal * self.floor * self.mean
    }

    /// The same level with other loads.
    pub fn with_loads(&self, loads: BTreeMap<ShardId, f64>) -> Level {
        let busiest = loads.values().copied().fold(0.0, f64::max);
        let imbalance = if self.mean > 0.0 { busiest / self.mean } else { 1.0 };
        Level { loads, imbalance, ..self.clone() }
    }
}

/// Where each range will be once what is under way is done. A move counts at its destination, or its load would be assigned twice; but before its
/// fence only while that shard speaks: until then the range is served where it was, and it stays there if the move is given up.
pub fn destination(state: &State, speaks: impl Fn(&ShardId) -> bool, id: RangeId) -> Option<ShardId> {
    let range = state.ranges.get(&id)?;
    let moving = range.operator.and_then(|operator| state.operators.get(&operator));
    match moving.map(|operator| (&operator.work, operator.step)) {
        Some((Work::Move { to, .. }, Step::Switch)) => Some(*to),
        Some((Work::Move { to, .. }, Step::Open | Step::Copy)) if speaks(to) => Some(*to),
        _ => Some(range.route.shard),
    }
}

/// Measures the level.
pub fn measure(state: &State, picture: &Picture, config: &BalancerConfig, now_ms: u64) -> Level {
    let speaking = |id: &ShardId| picture.shards.get(id).is_some_and(|s| s.last_ms + config.silent_after_ms >= now_ms);
    let mut loads: BTreeMap<ShardId, f64> =
        state.shards.iter().filter(|(id, shard)| !shard.draining && speaking(id)).map(|(id, _)| (*id, 0.0)).collect();
    let (mut total, mut hottest) = (0.0, 0.0f64);
    for (id, view) in &picture.ranges {
        let rate = picture.rate(*id);
        let Some(shard) = destination(state, speaking, *id) else { continue };
        // A silent shard's load is as unknown as it is out of reach: the others are judged among themselves.
        let counted = match loads.get_mut(&shard) {
            Some(load) => {
                *load += rate;
                true
            }
            None => state.shards.get(&shard).is_some_and(|s| s.draining),
        };
        if counted {
            total += rate;
            hottest = hottest.max(rate * view.profile.hottest_share());
        }
    }
    let shards = loads.len().max(1) as f64;
    let mean = total / shards;
    let floor = if total > 0.0 { (shards * hottest / total).max(1.0) } else { 1.0 };
    // Counts are noisy by their square root: what lies within three deviations is not worth acting on.
    let deviation = 1.0 / (mean * AVERAGED_S).max(1.0).sqrt();
    let level = Level {
        loads: BTreeMap::new(),
        total,
        mean,
        imbalance: 1.0,
        floor,
        act_above: config.act_above.max(1.0 + 3.0 * deviation),
        goal: config.goal.max(1.0 + deviation),
    };
    level.with_loads(loads)
}

/// Why nothing can be judged yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// There are fewer than two shards to balance between.
    TooFewShards,
    /// R29: this shard has not reported for a full window in this leadership.
    NotReported(ShardId),
    /// This shard has a new leader, or was silent, less than a window ago.
    Unsteady(ShardId),
    /// R29: this range's load is not known for a full window.
    Unmeasured(RangeId),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReady::TooFewShards => write!(f, "there are fewer than two active shards that report"),
            NotReady::NotReported(shard) => {
                write!(f, "shard {shard} has not reported for a full window since this placement driver leads")
            }
            NotReady::Unsteady(shard) => write!(f, "shard {shard} has a new leader or was silent until just now"),
            NotReady::Unmeasured(range) => {
                write!(f, "the load of range {range} has not been measured for a full window")
            }
        }
    }
}

/// R29: every shard that was there when this leadership began, also one that has fallen silent since, must have spoken for a window.
///
/// One that was added since and never spoke is merely silent. So is one that owns nothing and that nothing is going to: no load of it
/// can be missing, and it may not be there at all.
pub fn not_reported(state: &State, picture: &Picture, config: &BalancerConfig, now_ms: u64) -> Option<NotReady> {
    let mut loaded: BTreeSet<ShardId> = state.ranges.values().map(|range| range.route.shard).collect();
    loaded.extend(state.running().filter_map(|operator| match operator.work {
        Work::Move { to, .. } => Some(to),
        _ => None,
    }));
    let founder = |id: &ShardId| picture.founders.as_ref().is_none_or(|founders| founders.contains(id));
    let missing = |id: &&ShardId| match picture.shards.get(*id) {
        None => loaded.contains(*id),
        Some(shard) => {
            let speaking = shard.last_ms + config.silent_after_ms >= now_ms;
            (loaded.contains(*id) || speaking) && shard.first_ms + config.window_ms > shard.last_ms
        }
    };
    let there = state.shards.iter().filter(|(id, shard)| founder(id) && !shard.lost).map(|(id, _)| id);
    there.into_iter().find(missing).map(|id| NotReady::NotReported(*id))
}

/// Whether enough is known to judge the level (R29).
pub fn not_ready(state: &State, picture: &Picture, config: &BalancerConfig, now_ms: u64) -> Option<NotReady> {
    if let Some(reason) = not_reported(state, picture, config, now_ms) {
        return Some(reason);
    }
    for (id, shard) in &picture.shards {
        let owns = state.ranges.values().any(|range| range.route.shard == *id);
        let speaking = shard.last_ms + config.silent_after_ms >= now_ms;
        if owns && speaking && shard.steady_since_ms + config.window_ms > now_ms {
            return Some(NotReady::Unsteady(*id));
        }
    }
    let active = state.shards.values().filter(|shard| !shard.draining).count();
    if active < 2 || picture.level.loads.len() < 2 {
        return Some(NotReady::TooFewShards);
    }
    let unknown = |(_, view): &(&RangeId, &super::picture::RangeView)| {
        view.source == Source::Unknown && picture.level.loads.contains_key(&view.shard)
    };
    picture.ranges.iter().find(unknown).map(|(id, _)| NotReady::Unmeasured(*id))
}
