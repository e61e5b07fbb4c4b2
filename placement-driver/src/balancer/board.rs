//! The board on which a round is played: loads as they will be, what can be moved, who has a slot free.

use super::level::Level;
use super::picture::Picture;
use super::{Plan, Reason, Rejection, Subject};
use crate::config::BalancerConfig;
use crate::state::{Action, NewDecision, Range, State, Status, Work};
use evenkeel_protocol::{RangeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// One round.
pub(super) struct Board<'a> {
    pub state: &'a State,
    pub picture: &'a Picture,
    pub config: &'a BalancerConfig,
    pub now_ms: u64,
    /// The level with what this round has planned so far.
    pub level: Level,
    /// Ranges this round has planned something for.
    pub taken: BTreeSet<RangeId>,
    pub decisions: Vec<NewDecision>,
    pub rejections: Vec<Rejection>,
    pub exhausted: bool,
    moves: BTreeMap<ShardId, (usize, usize)>,
    moves_total: usize,
    /// Ranges on which an operator failed or was cancelled lately, and when.
    failed_ms: BTreeMap<RangeId, u64>,
}

impl<'a> Board<'a> {
    pub fn new(state: &'a State, picture: &'a Picture, config: &'a BalancerConfig, now_ms: u64) -> Board<'a> {
        let mut board = Board {
            state,
            picture,
            config,
            now_ms,
            level: picture.level.clone(),
            taken: BTreeSet::new(),
            decisions: Vec::new(),
            rejections: Vec::new(),
            exhausted: false,
            moves: BTreeMap::new(),
            moves_total: 0,
            failed_ms: BTreeMap::new(),
        };
        for operator in state.operators.values() {
            let in_vain = matches!(operator.status, Status::Failed | Status::Cancelled | Status::Differs);
            let ended_ms = operator.ended_ms.filter(|ended| in_vain && ended + config.cooldown_ms > now_ms);
            board.failed_ms.extend(
                ended_ms.into_iter().flat_map(|at| operator.work.ranges().into_iter().map(move |range| (range, at))),
            );
        }
        for operator in state.running().filter(|operator| operator.step.before_adoption()) {
            if let Work::Move { from, to, .. } = operator.work {
                board.count_move(from, to);
            }
        }
        board
    }

    fn count_move(&mut self, from: ShardId, to: ShardId) {
        self.moves.entry(from).or_default().0 += 1;
        self.moves.entry(to).or_default().1 += 1;
        self.moves_total += 1;
    }

    /// Whether one more move may leave `shard` now.
    pub fn may_send(&self, shard: ShardId) -> bool {
        let (out, _) = self.moves.get(&shard).copied().unwrap_or_default();
        out < self.config.moves_per_shard && self.moves_total < self.config.moves_total
    }

    /// Whether one more move may come to `shard` now.
    pub fn may_receive(&self, shard: ShardId) -> bool {
        let (_, incoming) = self.moves.get(&shard).copied().unwrap_or_default();
        incoming < self.config.moves_per_shard && self.moves_total < self.config.moves_total
    }

    /// Moves under way at `shard`, both ways.
    pub fn moves_at(&self, shard: ShardId) -> usize {
        let (out, incoming) = self.moves.get(&shard).copied().unwrap_or_default();
        out + incoming
    }

    /// R29: a silent shard is neither source nor target.
    pub fn speaks(&self, shard: ShardId) -> bool {
        let view = self.picture.shards.get(&shard);
        view.is_some_and(|view| view.last_ms + self.config.silent_after_ms >= self.now_ms)
    }

    /// The ranges on `shard` that nothing works on, and nothing failed on lately, in order of their ids.
    pub fn free_ranges(&self, shard: ShardId) -> Vec<&'a Range> {
        let free = |range: &&Range| {
            let id = range.route.range;
            range.route.shard == shard
                && range.operator.is_none()
                && !self.taken.contains(&id)
                && !self.failed_ms.contains_key(&id)
        };
        self.state.ranges.values().filter(free).collect()
    }

    /// Says of the ranges on `shard` that are not free why they are not.
    pub fn reject_unfree(&mut self, shard: ShardId) {
        for range in self.state.ranges.values().filter(|range| range.route.shard == shard) {
            let failed_ms = self.failed_ms.get(&range.route.range).copied();
            match (range.operator, failed_ms) {
                (Some(operator), _) => self.reject_range(range, Reason::Busy(operator)),
                (None, Some(at)) => {
                    self.reject_range(range, Reason::FailedLately { ago_ms: self.now_ms.saturating_sub(at) });
                }
                (None, None) => {}
            }
        }
    }

    /// How much longer a range may not go back to `shard`, in milliseconds.
    pub fn cooling_ms(&self, range: &Range, shard: ShardId) -> Option<u64> {
        let until = range.left_at_ms(shard)? + self.config.cooldown_ms;
        until.checked_sub(self.now_ms).filter(|ms| *ms > 0)
    }

    /// Whether a range's load is known well enough to move it by.
    pub fn known(&self, range: &Range) -> bool {
        let view = self.picture.ranges.get(&range.route.range);
        view.is_some_and(|view| !view.is_about_to_be_measured())
    }

    /// Plans a move and counts its load at its destination from here on.
    pub fn take_move(&mut self, range: &Range, to: ShardId) -> Action {
        let (id, from) = (range.route.range, range.route.shard);
        self.taken.insert(id);
        self.count_move(from, to);
        let rate = self.picture.rate(id);
        let mut loads = std::mem::take(&mut self.level.loads);
        if let Some(load) = loads.get_mut(&from) {
            *load -= rate;
        }
        if let Some(load) = loads.get_mut(&to) {
            *load += rate;
        }
        self.level = self.level.with_loads(loads);
        Action::Move { range: id, epoch: Some(range.route.epoch), to }
    }

    /// Whether more may be done once something under way has ended, or has been measured, or a little time has passed.
    pub fn waits_for_time(&self) -> bool {
        let waits = |reason: &Reason| matches!(reason, Reason::TooNew | Reason::CutLately { .. });
        let under_way = self.state.running().next().is_some() || self.picture.expects();
        under_way || !self.decisions.is_empty() || self.rejections.iter().any(|rejection| waits(&rejection.reason))
    }

    pub fn reject_range(&mut self, range: &Range, reason: Reason) {
        let subject = Subject::Range(range.route.range, range.route.shard);
        self.rejections.push(Rejection { subject, load: self.picture.rate(range.route.range), reason });
    }

    pub fn reject_shard(&mut self, shard: ShardId, reason: Reason) {
        let load = self.level.loads.get(&shard).copied().unwrap_or(0.0);
        self.rejections.push(Rejection { subject: Subject::Shard(shard), load, reason });
    }

    pub fn decide(&mut self, decision: Option<NewDecision>) {
        self.decisions.extend(decision);
    }

    /// Nothing is done with the load as it is, for one reason.
    pub fn refuse_all(mut self, reason: Reason) -> Plan {
        self.rejections.push(Rejection { subject: Subject::All, load: self.level.total, reason });
        self.into_plan()
    }

    /// Nothing needs balancing: says so for each shard.
    pub fn refuse_shards(&mut self) {
        let (ratio, act_above) = (self.level.ratio(), self.level.act_above);
        let since = self.picture.uneven_since_ms;
        let reason = match since {
            Some(since) => Reason::NotYet { ratio, for_ms: self.now_ms.saturating_sub(since) },
            None => Reason::Level { ratio, act_above },
        };
        for shard in self.state.shards.keys() {
            self.reject_shard(*shard, if self.speaks(*shard) { reason } else { Reason::Silent });
        }
    }

    pub fn into_plan(self) -> Plan {
        Plan { decisions: self.decisions, rejections: self.rejections, exhausted: self.exhausted }
    }
}
