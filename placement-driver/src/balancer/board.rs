//! The board on which a round is played: loads as they will be, what can be moved, who has a slot free.

use super::level::Level;
use super::picture::Picture;
use super::{Plan, Reason, Rejection, Subject};
use crate::config::BalancerConfig;
use crate::state::{Action, NewDecision, Range, State, Work};
use evenkeel_protocol::{RangeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Moves in one direction at one shard.
#[derive(Debug, Clone, Copy, Default)]
struct Moves {
    count: usize,
    /// Bytes that they have left to copy, as far as is known.
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
    moves: BTreeMap<ShardId, MovesAt>,
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
        };
        for operator in state.running().filter(|operator| operator.step.copies()) {
            if let Work::Move { range, from, to, .. } = operator.work {
                let here = picture.moves.get(&operator.id).map_or(0, |seen| seen.progress.bytes);
                board.count_move(from, to, board.bytes(range).saturating_sub(here));
            }
        }
        board
    }

    fn count_move(&mut self, from: ShardId, to: ShardId, bytes: u64) {
        self.moves.entry(from).or_default().out.add(bytes);
        self.moves.entry(to).or_default().incoming.add(bytes);
    }

    /// Bytes of a range's rows, as far as they are known.
    pub fn bytes(&self, range: RangeId) -> u64 {
        self.picture.ranges.get(&range).map_or(0, |view| view.bytes)
    }

    /// Whether one more move may leave `shard` now.
    pub fn may_send(&self, shard: ShardId) -> bool {
        self.has_room(shard, self.moves_of(shard).out)
    }

    /// Whether one more move may come to `shard` now. What a clock that is off does to writes is not to be spread.
    pub fn may_receive(&self, shard: ShardId) -> bool {
        !self.picture.clock_is_off(shard) && self.has_room(shard, self.moves_of(shard).incoming)
    }

    /// A few moves may always be under way; more of them as long as what they have left is moved in a moment.
    fn has_room(&self, shard: ShardId, moves: Moves) -> bool {
        let bandwidth = self.picture.bandwidth.get(&shard).copied().unwrap_or(self.config.move_bytes_per_s as f64);
        let left_ms = moves.bytes as f64 * 1000.0 / bandwidth.max(1.0);
        moves.count < self.config.moves_per_shard
            || (moves.count < self.config.max_moves_per_shard && left_ms < self.config.move_backlog_ms as f64)
    }

    fn moves_of(&self, shard: ShardId) -> MovesAt {
        self.moves.get(&shard).copied().unwrap_or_default()
    }

    /// Moves under way at `shard`, both ways.
    pub fn moves_at(&self, shard: ShardId) -> usize {
        let moves = self.moves_of(shard);
        moves.out.count + moves.incoming.count
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
                && self.failed_for_ms(range).is_none()
        };
        self.state.ranges.values().filter(free).collect()
    }

    /// Says of the ranges on `shard` that are not free why they are not.
    pub fn reject_unfree(&mut self, shard: ShardId) {
        for range in self.state.ranges.values().filter(|range| range.route.shard == shard) {
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

    /// How much longer a range is left alone because operators on it failed, in milliseconds.
    fn failed_for_ms(&self, range: &Range) -> Option<u64> {
        let until_ms = range.failures.until_ms(self.config.cooldown_ms)?;
        until_ms.checked_sub(self.now_ms).filter(|ms| *ms > 0)
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
        self.count_move(from, to, self.bytes(id));
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

    /// Says of which shards reports were wrong just now.
    pub fn reject_faults(&mut self) {
        let latest = |at_ms: u64| at_ms + self.config.silent_after_ms >= self.now_ms;
        let faults = self.picture.faults.iter().filter(|(_, seen)| latest(seen.at_ms));
        let faults: Vec<_> = faults.map(|(shard, seen)| (*shard, seen.fault.what, seen.fault.refused)).collect();
        for (shard, what, refused) in faults {
            self.reject_shard(shard, Reason::WrongReport { what, refused });
        }
    }

    /// Says which shards nothing is moved to because of their clocks.
    pub fn reject_clocks(&mut self) {
        for (shard, off_ms) in self.picture.clocks_off() {
            self.reject_shard(shard, Reason::ClockOff { off_ms });
        }
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
