//! Rounds of the balancer: the order of its parts, and its memory from round to round.

use super::imbalance::{Imbalance, measure};
use super::plan::RoundPlan;
use super::planning_context::PlanningContext;
use super::readiness::{not_ready, not_reported};
use super::rebalancing::Rebalancing;
use super::rejection::Reason;
use super::score::NewRangeScore;
use super::size_survey::{SizeQuestion, SizeSurvey};
use super::{drain, merge, rebalance, size_split};
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::state::PlacementState;
use evenkeel_protocol::ShardId;

/// The balancer of one leadership, with the load model that it plans on. It begins empty.
#[derive(Debug, Clone, Default)]
pub struct Balancer {
    /// The load model.
    pub load: LoadModel,
    /// The imbalance, as of the last update.
    pub imbalance: Imbalance,
    /// Whether it rebalances.
    pub rebalancing: Rebalancing,
    /// Where ranges that are too large can be split, as their shards have answered.
    pub sizes: SizeSurvey,
}

impl Balancer {
    /// Brings load model and imbalance up to date with the state and the reports.
    pub fn update(&mut self, state: &PlacementState, config: &BalancerConfig, now_ms: u64) {
        self.load.update(state, config, now_ms);
        self.imbalance = measure(state, &self.load, config, now_ms);
        self.load.note_cold(config.cold_share * self.imbalance.mean, now_ms);
        self.rebalancing.note(state, &self.load, &self.imbalance, config, now_ms);
    }

    /// Plans one round. The balancer must be up to date with `state` ([`Balancer::update`]).
    /// `now_ms` is in milliseconds of the state machine's time.
    pub fn plan(&self, state: &PlacementState, config: &BalancerConfig, now_ms: u64) -> RoundPlan {
        let mut context = PlanningContext::new(state, &self.load, &self.imbalance, config, now_ms);
        context.reject_faults();
        context.reject_clocks();
        if state.restoring {
            return context.reject_all(Reason::Restoring);
        }
        if let Some(reason) = not_reported(state, &self.load, config, now_ms) {
            return context.reject_all(Reason::NotReady(reason));
        }
        let drained = drain::drain(&mut context);
        context.decide(drained);
        if !state.balancer_enabled.unwrap_or(config.enabled) {
            return context.reject_all(Reason::SwitchedOff);
        }
        let cut = size_split::split(&mut context, &self.sizes);
        context.decide(cut);
        if let Some(reason) = not_ready(state, &self.load, &self.imbalance, config, now_ms) {
            return context.reject_all(Reason::NotReady(reason));
        }
        if self.imbalance.total < config.min_load_per_s {
            return context.reject_all(Reason::LittleLoad { total: self.imbalance.total });
        }
        let uneven_since_ms = self.rebalancing.uneven_since_ms;
        if self.rebalancing.active {
            let rebalanced = rebalance::rebalance(&mut context, uneven_since_ms);
            context.exhausted = rebalanced.is_none() && !context.waits_for_time();
            context.decide(rebalanced);
        } else {
            context.reject_shards(uneven_since_ms);
            let merged = merge::merge(&mut context);
            context.decide(merged);
        }
        context.into_plan()
    }

    /// The questions to shards where to split ranges that are too large. Their answers go to
    /// [`SizeSurvey::answered`].
    pub fn size_questions(
        &mut self,
        state: &PlacementState,
        config: &BalancerConfig,
        now_ms: u64,
    ) -> Vec<SizeQuestion> {
        self.sizes.next(state, &self.load, config, now_ms)
    }

    /// The shard for the range of a new table, among those that report and whose clocks are right:
    /// see [`NewRangeScore`]. If no clock is right, any that reports. `None` if none reports.
    pub fn shard_for_new_range(&self, state: &PlacementState) -> Option<ShardId> {
        let counts = state.range_counts();
        let active = |id: &ShardId| state.shards.get(id).is_some_and(|shard| !shard.draining);
        let reporting: Vec<_> = self.imbalance.loads.iter().filter(|(id, _)| active(id)).collect();
        let right: Vec<_> = reporting.iter().copied().filter(|(id, _)| !self.load.clock_is_off(**id)).collect();
        let score = |(id, load): &(&ShardId, &f64)| NewRangeScore {
            load_tens: (**load / 10.0) as u64,
            ranges: counts.get(id).copied().unwrap_or(0),
            shard: **id,
        };
        let candidates = if right.is_empty() { reporting } else { right };
        candidates.into_iter().min_by_key(score).map(|(id, _)| *id)
    }
}
