//! When rebalancing begins and ends: hysteresis over the imbalance.
//!
//! Rebalancing begins when the imbalance has been above one threshold for long enough, and ends
//! when it is below another, or when no action is left. Once the load has been balanced in a
//! leadership, it takes longer to begin: a stall and the burst after it look like imbalance for a
//! few seconds.

use super::imbalance::Imbalance;
use super::readiness::not_ready;
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::state::PlacementState;
use std::collections::VecDeque;

/// The shortest time between two remembered totals, in milliseconds.
const TOTAL_EVERY_MS: u64 = 200;
/// Time over which the total is compared to see whether it is steady, in milliseconds.
const STEADY_LAG_MS: u64 = 2000;
/// Factor by which a steady total changes in that time, at most.
const STEADY_FACTOR: f64 = 1.3;
/// Totals remembered.
const MAX_TOTALS: usize = 32;

/// Whether the balancer rebalances, and the history that this depends on.
#[derive(Debug, Clone, Default)]
pub struct Rebalancing {
    /// Whether it rebalances.
    pub active: bool,
    /// Since when the imbalance has been above the threshold, in milliseconds of the state
    /// machine's time.
    pub uneven_since_ms: Option<u64>,
    /// Whether the load has been balanced in this leadership.
    been_even: bool,
    totals: VecDeque<(u64, f64)>,
}

impl Rebalancing {
    /// Takes in the present imbalance.
    pub fn note(
        &mut self,
        state: &PlacementState,
        load: &LoadModel,
        imbalance: &Imbalance,
        config: &BalancerConfig,
        now_ms: u64,
    ) {
        self.note_total(imbalance.total, now_ms);
        let enough_load = imbalance.total >= config.min_load_per_s;
        if not_ready(state, load, imbalance, config, now_ms).is_some() || !enough_load {
            self.uneven_since_ms = None;
            self.active &= enough_load;
            return;
        }
        let ratio = imbalance.ratio();
        if ratio > imbalance.act_above {
            let since = *self.uneven_since_ms.get_or_insert(now_ms);
            let lasts = if self.been_even {
                since + config.persist_level_ms <= now_ms && self.is_steady(now_ms)
            } else {
                since + config.persist_ms <= now_ms
            };
            self.active |= lasts;
        } else {
            self.uneven_since_ms = None;
            // Expected loads have to be confirmed: correcting them now is better than beginning
            // again later.
            let confirmed = !load.expects();
            self.been_even |= confirmed;
            let enough = imbalance.close_enough();
            self.active &= ratio > enough || !confirmed || state.running().next().is_some();
        }
    }

    /// Ends rebalancing because no action is left. It begins again when the imbalance has lasted
    /// again.
    pub fn rest(&mut self) {
        self.active = false;
        self.uneven_since_ms = None;
    }

    fn note_total(&mut self, total: f64, now_ms: u64) {
        if self.totals.back().is_some_and(|(at, _)| at + TOTAL_EVERY_MS > now_ms) {
            return;
        }
        if self.totals.len() >= MAX_TOTALS {
            self.totals.pop_front();
        }
        self.totals.push_back((now_ms, total));
    }

    /// Whether the total load has been about the same lately.
    fn is_steady(&self, now_ms: u64) -> bool {
        let lately = self.totals.iter().filter(|(at, _)| at + STEADY_LAG_MS >= now_ms).map(|(_, total)| *total);
        let (least, most) = lately.fold((f64::INFINITY, 0.0f64), |(least, most), t| (least.min(t), most.max(t)));
        most <= least * STEADY_FACTOR
    }
}
