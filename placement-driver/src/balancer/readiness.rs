//! Readiness: whether the load model knows enough to plan on it (R29).

use super::imbalance::Imbalance;
use crate::config::BalancerConfig;
use crate::load::{LoadModel, RangeView, Source};
use crate::state::{PlacementState, Work};
use evenkeel_protocol::{RangeId, ShardId};
use std::collections::BTreeSet;
use std::fmt;

/// Why the load cannot be judged yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// There are fewer than two shards to balance between.
    TooFewShards,
    /// R29: this shard has not reported for a full window in this leadership.
    NotReported(ShardId),
    /// This shard has changed its leader, or was silent, less than a window ago.
    Unsteady(ShardId),
    /// R29: this range's load has not been measured for a full window.
    Unmeasured(RangeId),
}

impl NotReady {
    /// A stable code for programs. The page of `rejection` lists all codes.
    pub fn code(self) -> &'static str {
        match self {
            NotReady::TooFewShards => "too-few-shards",
            NotReady::NotReported(_) => "not-reported",
            NotReady::Unsteady(_) => "unsteady",
            NotReady::Unmeasured(_) => "unmeasured",
        }
    }
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

/// R29: the first shard that has not reported for a full window, of those that existed when this
/// leadership began. Shards that have fallen silent since count as well.
///
/// A shard that was added later and has never reported is merely silent. So is a shard that owns
/// nothing and that is no destination: it carries no load, and it may not exist.
pub fn not_reported(
    state: &PlacementState,
    load: &LoadModel,
    config: &BalancerConfig,
    now_ms: u64,
) -> Option<NotReady> {
    let mut loaded: BTreeSet<ShardId> = state.ranges.values().map(|range| range.route.shard).collect();
    loaded.extend(state.running().filter_map(|operator| match operator.work {
        Work::Move { to, .. } => Some(to),
        _ => None,
    }));
    let founder = |id: &ShardId| load.founders.as_ref().is_none_or(|founders| founders.contains(id));
    let missing = |id: &&ShardId| match load.shards.get(*id) {
        None => loaded.contains(*id),
        Some(shard) => {
            let reports = load.reports(**id, config, now_ms);
            (loaded.contains(*id) || reports) && shard.first_ms + config.window_ms > shard.last_ms
        }
    };
    let there = state.shards.iter().filter(|(id, shard)| founder(id) && !shard.lost).map(|(id, _)| id);
    there.into_iter().find(missing).map(|id| NotReady::NotReported(*id))
}

/// Why the imbalance cannot be judged yet (R29). `None` if it can.
pub fn not_ready(
    state: &PlacementState,
    load: &LoadModel,
    imbalance: &Imbalance,
    config: &BalancerConfig,
    now_ms: u64,
) -> Option<NotReady> {
    if let Some(reason) = not_reported(state, load, config, now_ms) {
        return Some(reason);
    }
    for (id, shard) in &load.shards {
        let owns = state.ranges.values().any(|range| range.route.shard == *id);
        if owns && load.reports(*id, config, now_ms) && shard.steady_since_ms + config.window_ms > now_ms {
            return Some(NotReady::Unsteady(*id));
        }
    }
    let active = state.shards.values().filter(|shard| !shard.draining).count();
    if active < 2 || imbalance.loads.len() < 2 {
        return Some(NotReady::TooFewShards);
    }
    let unknown = |(_, view): &(&RangeId, &RangeView)| {
        view.source == Source::Unknown && imbalance.loads.contains_key(&view.shard)
    };
    load.ranges.iter().find(unknown).map(|(id, _)| NotReady::Unmeasured(*id))
}
