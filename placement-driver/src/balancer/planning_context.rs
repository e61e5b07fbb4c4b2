//! Planning context of one round: projected load per shard, free ranges, free move slots, and the
//! decisions and rejections so far.

use super::imbalance::Imbalance;
use super::plan::RoundPlan;
use super::rejection::{Reason, Rejection, Subject};
use super::score::{SourceScore, TotalLoad};
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::operators::move_range::slots_of;
use crate::state::{Action, NewDecision, PlacementState, Range};
use evenkeel_protocol::{RangeId, ShardId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Moves in one direction at one shard.
#[derive(Debug, Clone, Copy, Default)]
struct Moves {
    count: usize,
    /// Bytes that they still have to copy, as far as known.
    bytes: u64,
}

impl Moves {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// Moves at one shard.
#[derive(Debug, Clone, Copy, Default)]
struct MovesAt {
    out: Moves,
    incoming: Moves,
}

/// The planning context of one round.
pub(super) struct PlanningContext<'a> {
    pub state: &'a PlacementState,
    pub load: &'a LoadModel,
    pub config: &'a BalancerConfig,
    pub now_ms: u64,
    /// The imbalance, with the moves that this round has planned so far.
    pub imbalance: Imbalance,
    /// Ranges that this round has planned an action for.
    pub taken: BTreeSet<RangeId>,
    pub decisions: Vec<NewDecision>,
    pub rejections: Vec<Rejection>,
    pub exhausted: bool,
    moves: BTreeMap<ShardId, MovesAt>,
}

impl<'a> PlanningContext<'a> {
    pub fn new(
        state: &'a PlacementState,
        load: &'a LoadModel,
        imbalance: &Imbalance,
        config: &'a BalancerConfig,
        now_ms: u64,
    ) -> PlanningContext<'a> {
        let mut context = PlanningContext {
            state,
            load,
            config,
            now_ms,
            imbalance: imbalance.clone(),
            taken: BTreeSet::new(),
            decisions: Vec::new(),
            rejections: Vec::new(),
            exhausted: false,
            moves: BTreeMap::new(),
        };
        for operator in state.running() {
            if let Some((range, from, to)) = slots_of(operator) {
                let copied = load.moves.get(&operator.id).map_or(0, |seen| seen.progress.bytes);
                context.count_move(from, to, load.bytes(range).saturating_sub(copied));
            }
        }
        context
    }

    fn count_move(&mut self, from: ShardId, to: ShardId, bytes: u64) {
        self.moves.entry(from).or_default().out.add(bytes);
        self.moves.entry(to).or_default().incoming.add(bytes);
    }

    /// Whether one more move may leave `shard` now.
    pub fn may_send(&self, shard: ShardId) -> bool {
        self.has_room(shard, self.moves_of(shard).out)
    }

    /// Whether one more move may come to `shard` now. No range moves to a shard whose clock is off,
    /// or that lacks a version of the schema.
    pub fn may_receive(&self, shard: ShardId) -> bool {
        !self.load.clock_is_off(shard)
            && self.load.has_schema(shard, self.state.schema.version)
            && self.has_room(shard, self.moves_of(shard).incoming)
    }

    /// `moves_per_shard` moves may always be under way, and more as long as their remaining bytes
    /// are copied soon.
    fn has_room(&self, shard: ShardId, moves: Moves) -> bool {
        let bandwidth = self.load.bandwidth.get(&shard).copied().unwrap_or(self.config.move_bytes_per_s as f64);
        let left_ms = moves.bytes as f64 * 1000.0 / bandwidth.max(1.0);
        moves.count < self.config.moves_per_shard
            || (moves.count < self.config.max_moves_per_shard && left_ms < self.config.move_backlog_ms as f64)
    }

    fn moves_of(&self, shard: ShardId) -> MovesAt {
        self.moves.get(&shard).copied().unwrap_or_default()
    }

    /// Moves under way at `shard`, in both directions.
    pub fn moves_at(&self, shard: ShardId) -> usize {
        let moves = self.moves_of(shard);
        moves.out.count + moves.incoming.count
    }

    /// Whether a shard reports. R29: a silent shard is neither source nor target.
    pub fn reports(&self, shard: ShardId) -> bool {
        self.load.reports(shard, self.config, self.now_ms)
    }

    /// Shards above the ceiling, busiest first.
    pub fn overloaded(&self) -> Vec<ShardId> {
        let ceiling = self.imbalance.ceiling();
        let above = self.imbalance.loads.iter().filter(|(_, load)| **load > ceiling);
        let mut shards: Vec<SourceScore> =
            above.map(|(shard, load)| SourceScore { load: Reverse(TotalLoad(*load)), shard: *shard }).collect();
        shards.sort();
        shards.into_iter().map(|source| source.shard).collect()
    }

    /// The ranges on `shard` that no operator works on, and none has failed on lately, in order of
    /// their numbers.
    pub fn free_ranges(&self, shard: ShardId) -> Vec<&'a Range> {
        let free = |range: &&Range| {
            let id = range.route.range;
            range.route.shard == shard
                && range.operator.is_none()
                && self.may_change(range)
                && !self.taken.contains(&id)
                && self.failed_for_ms(range).is_none()
        };
        self.state.ranges.values().filter(free).collect()
    }

    /// Whether the range's table splits and moves, and no schema change is about to change it.
    pub fn may_change(&self, range: &Range) -> bool {
        let table = range.route.table;
        let plan = self.state.schema_operator().and_then(|operator| operator.work.schema_plan());
        !self.state.is_pinned(table) && plan.is_none_or(|plan| !plan.touched().contains(&table))
    }

    /// Rejects the ranges on `shard` that are not free.
    pub fn reject_unfree(&mut self, shard: ShardId) {
        for range in self.state.ranges.values().filter(|range| range.route.shard == shard) {
            if self.state.is_pinned(range.route.table) {
                self.reject_range(range, Reason::Pinned);
                continue;
            }
            match (range.operator, self.failed_for_ms(range)) {
                (Some(operator), _) => self.reject_range(range, Reason::Busy(operator)),
                (None, Some(for_ms)) => {
                    let ago_ms = self.now_ms.saturating_sub(range.failures.last_ms);
                    self.reject_range(range, Reason::FailedLately { times: range.failures.times, ago_ms, for_ms });
                }
                (None, None) => {}
            }
        }
    }

    /// How much longer a range rests because operators on it failed, in milliseconds.
    fn failed_for_ms(&self, range: &Range) -> Option<u64> {
        let until_ms = range.failures.until_ms(self.config.cooldown_ms)?;
        until_ms.checked_sub(self.now_ms).filter(|ms| *ms > 0)
    }

    /// How much longer a range may not go back to `shard`, in milliseconds.
    pub fn cooling_ms(&self, range: &Range, shard: ShardId) -> Option<u64> {
        let until = range.left_at_ms(shard)? + self.config.cooldown_ms;
        until.checked_sub(self.now_ms).filter(|ms| *ms > 0)
    }

    /// Whether a range's load is known well enough to plan a move.
    pub fn known(&self, range: &Range) -> bool {
        let view = self.load.ranges.get(&range.route.range);
        view.is_some_and(|view| !view.is_about_to_be_measured())
    }

    /// Plans a move, and counts the load at its destination from now on.
    pub fn take_move(&mut self, range: &Range, to: ShardId) -> Action {
        let (id, from) = (range.route.range, range.route.shard);
        self.taken.insert(id);
        self.count_move(from, to, self.load.bytes(id));
        let rate = self.load.rate(id);
        let mut loads = std::mem::take(&mut self.imbalance.loads);
        if let Some(load) = loads.get_mut(&from) {
            *load -= rate;
        }
        if let Some(load) = loads.get_mut(&to) {
            *load += rate;
        }
        self.imbalance = self.imbalance.with_loads(loads);
        Action::Move { range: id, epoch: Some(range.route.epoch), to }
    }

    /// Whether another action may be possible once an operator has ended, a load is measured, or a
    /// short time has passed.
    pub fn waits_for_time(&self) -> bool {
        let waits = |reason: &Reason| matches!(reason, Reason::TooNew | Reason::CutLately { .. });
        let under_way = self.state.running().next().is_some() || self.load.expects();
        under_way || !self.decisions.is_empty() || self.rejections.iter().any(|rejection| waits(&rejection.reason))
    }

    /// Records why a range is left alone.
    pub fn reject_range(&mut self, range: &Range, reason: Reason) {
        let subject = Subject::Range(range.route.range, range.route.shard);
        self.rejections.push(Rejection { subject, load: self.load.rate(range.route.range), reason });
    }

    /// Records why a shard is left alone.
    pub fn reject_shard(&mut self, shard: ShardId, reason: Reason) {
        let load = self.imbalance.loads.get(&shard).copied().unwrap_or(0.0);
        self.rejections.push(Rejection { subject: Subject::Shard(shard), load, reason });
    }

    /// Rejects shards whose latest reports had faults.
    pub fn reject_faults(&mut self) {
        let latest = |at_ms: u64| at_ms + self.config.silent_after_ms >= self.now_ms;
        let faults = self.load.faults.iter().filter(|(_, seen)| latest(seen.at_ms));
        let faults: Vec<_> = faults.map(|(shard, seen)| (*shard, seen.fault.what, seen.fault.refused)).collect();
        for (shard, what, refused) in faults {
            self.reject_shard(shard, Reason::FaultyReport { what, refused });
        }
    }

    /// Rejects shards as destinations because of their clocks.
    pub fn reject_clocks(&mut self) {
        for (shard, off_ms) in self.load.clocks_off() {
            self.reject_shard(shard, Reason::ClockOff { off_ms });
        }
    }

    /// Records a decision.
    pub fn decide(&mut self, decision: Option<NewDecision>) {
        self.decisions.extend(decision);
    }

    /// The decision to carry out `actions`, if there are any.
    pub fn decision(
        &self,
        why: String,
        imbalance_before: f64,
        alternatives: Vec<String>,
        actions: Vec<Action>,
    ) -> Option<NewDecision> {
        (!actions.is_empty()).then(|| NewDecision {
            why,
            imbalance_before,
            imbalance_expected: self.imbalance.ratio_to_mean,
            alternatives,
            actions,
        })
    }

    /// Ends the round for one reason that concerns the whole cluster.
    pub fn reject_all(mut self, reason: Reason) -> RoundPlan {
        self.rejections.push(Rejection { subject: Subject::All, load: self.imbalance.total, reason });
        self.into_plan()
    }

    /// Rejects every shard because the load is balanced, or has not been imbalanced for long
    /// enough.
    pub fn reject_shards(&mut self, uneven_since_ms: Option<u64>) {
        let (ratio, act_above) = (self.imbalance.ratio(), self.imbalance.act_above);
        let reason = match uneven_since_ms {
            Some(since) => Reason::NotYet { ratio, for_ms: self.now_ms.saturating_sub(since) },
            None => Reason::Balanced { ratio, act_above },
        };
        for shard in self.state.shards.keys() {
            self.reject_shard(*shard, if self.reports(*shard) { reason } else { Reason::Silent });
        }
    }

    /// The result of the round.
    pub fn into_plan(self) -> RoundPlan {
        RoundPlan { decisions: self.decisions, rejections: self.rejections, exhausted: self.exhausted }
    }
}
