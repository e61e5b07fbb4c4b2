//! Imbalance: the highest load of a shard divided by the mean, with every range counted where it
//! will be.

use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::operators::destination;
use crate::state::PlacementState;
use evenkeel_protocol::ShardId;
use std::collections::BTreeMap;

/// Time over which a rate is effectively averaged, in seconds: by the shard's meter and by the load
/// model.
const AVERAGED_S: f64 = 4.0;

/// The imbalance and its thresholds. Loads are in statements per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Imbalance {
    /// The load of each active shard that reports, with moves under way counted at their
    /// destination.
    pub loads: BTreeMap<ShardId, f64>,
    /// The load of all shards, draining ones included.
    pub total: f64,
    /// The mean load of the active shards that report.
    pub mean: f64,
    /// The imbalance: the busiest shard's load divided by the mean. 1 without load.
    pub ratio_to_mean: f64,
    /// The lowest possible imbalance: `max(1, N·p)`, where p is the share of the hottest key.
    pub floor: f64,
    /// The ratio of imbalance to floor above which rebalancing begins. Noise raises it.
    pub act_above: f64,
    /// The ratio that rebalancing plans to reach. Noise raises it.
    pub goal: f64,
}

impl Default for Imbalance {
    fn default() -> Self {
        Imbalance {
            loads: BTreeMap::new(),
            total: 0.0,
            mean: 0.0,
            ratio_to_mean: 1.0,
            floor: 1.0,
            act_above: 1.0,
            goal: 1.0,
        }
    }
}

impl Imbalance {
    /// The imbalance divided by its floor; 1 is perfect.
    pub fn ratio(&self) -> f64 {
        self.ratio_to_mean / self.floor
    }

    /// The ratio below which rebalancing begins nothing new: halfway between perfect and the
    /// threshold. Measurements are not more precise, and splits and moves have a cost.
    pub fn close_enough(&self) -> f64 {
        1.0 + (self.act_above - 1.0) / 2.0
    }

    /// The load above which a shard is relieved while rebalancing.
    pub fn ceiling(&self) -> f64 {
        self.goal * self.floor * self.mean
    }

    /// The same thresholds with other loads.
    pub fn with_loads(&self, loads: BTreeMap<ShardId, f64>) -> Imbalance {
        let busiest = loads.values().copied().fold(0.0, f64::max);
        let ratio_to_mean = if self.mean > 0.0 { busiest / self.mean } else { 1.0 };
        Imbalance { loads, ratio_to_mean, ..self.clone() }
    }
}

/// Measures the imbalance.
pub fn measure(state: &PlacementState, load: &LoadModel, config: &BalancerConfig, now_ms: u64) -> Imbalance {
    let reporting = |id: &ShardId| load.reports(*id, config, now_ms);
    let mut loads: BTreeMap<ShardId, f64> =
        state.shards.iter().filter(|(id, shard)| !shard.draining && reporting(id)).map(|(id, _)| (*id, 0.0)).collect();
    let (mut total, mut hottest) = (0.0, 0.0f64);
    for (id, view) in &load.ranges {
        let rate = load.rate(*id);
        let Some(shard) = destination(state, reporting, *id) else { continue };
        // The load of a silent shard is unknown and cannot be moved: the others are compared among
        // themselves.
        let counted = match loads.get_mut(&shard) {
            Some(of_shard) => {
                *of_shard += rate;
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
    // The deviation of a count is its square root. Differences within three deviations are ignored.
    let deviation = 1.0 / (mean * AVERAGED_S).max(1.0).sqrt();
    let imbalance = Imbalance {
        loads: BTreeMap::new(),
        total,
        mean,
        ratio_to_mean: 1.0,
        floor,
        act_above: config.act_above.max(1.0 + 3.0 * deviation),
        goal: config.goal.max(1.0 + deviation),
    };
    imbalance.with_loads(loads)
}
