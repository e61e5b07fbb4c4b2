//! The choice of processes that `--chaos` kills. Pure.
//!
//! A plan kills a shard's leader, a shard's follower, the placement driver's leader and a
//! PostgreSQL server, each while a range moves. It takes victims from the shards of a running move,
//! and only from groups whose replicas are all connected: killing two replicas of three is a
//! different experiment.
//!
//! If nothing moves while faults are left, the plan asks for a move of a range with little load,
//! and for another one if that move ended before it was observed. A run with fewer than four kills
//! has not shown what it should: that is a finding.

use crate::process_id::ProcessId;
use crate::run::observation::Observation;
use crate::wait;
use evenkeel_protocol::api::{OperatorBody, OperatorKind, RangeBody};
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// How long a killed process stays down, in milliseconds. The others must work without it for a
/// while.
pub const AWAY_MS: u64 = 1_500;
/// The age up to which a report proves that all replicas of a group are connected.
const RECENT: Duration = Duration::from_millis(AWAY_MS / 2);
/// The share of the run after which the plan asks for moves if there are none.
const ASK_FROM: f64 = 0.4;
/// A requested move that does not show in this number of observations was too short to be observed.
const UNSEEN_OBSERVATIONS: u64 = 10;
/// The share of the run after which nothing is killed: a killed process must be seen to run again.
const KILL_UNTIL: f64 = 0.85;

/// The process to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultTarget {
    /// The leader of a move's source.
    ShardLeader,
    /// A follower of a move's destination.
    ShardFollower,
    /// The placement driver's leader.
    PlacementDriverLeader,
    /// The PostgreSQL server of the leader of a move's destination.
    Postgres,
}

impl FaultTarget {
    /// The process in words.
    pub fn name(self) -> &'static str {
        match self {
            FaultTarget::ShardLeader => "the source's leader",
            FaultTarget::ShardFollower => "a follower of the destination",
            FaultTarget::PlacementDriverLeader => "the placement driver's leader",
            FaultTarget::Postgres => "the PostgreSQL server of the destination's leader",
        }
    }
}

/// The next action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChaosAction {
    /// Kill this process, or its PostgreSQL server, while this move runs.
    Kill(FaultTarget, ProcessId, OperatorId),
    /// Ask for a move of this range to this shard.
    AskForMove(RangeId, ShardId),
}

/// The faults that are left, and the moves asked for.
#[derive(Debug)]
pub struct FaultPlan {
    left: VecDeque<FaultTarget>,
    /// The number of the observation at which the last move was asked for.
    asked: Option<u64>,
    /// Moves asked for. Each one is of another range, which may have more rows and take longer.
    moves: usize,
}

impl FaultPlan {
    /// All four faults, in an order that `seed` chooses.
    pub fn new(seed: u64) -> FaultPlan {
        let mut left = VecDeque::from([
            FaultTarget::ShardLeader,
            FaultTarget::ShardFollower,
            FaultTarget::PlacementDriverLeader,
            FaultTarget::Postgres,
        ]);
        left.rotate_left((seed % 4) as usize);
        FaultPlan { left, asked: None, moves: 0 }
    }

    /// The next action, given an observation, the placement driver's leader, the processes that are
    /// down, and the share of the run that is over (0 to 1).
    pub fn next(
        &mut self,
        seen: &Observation,
        placement_driver_leader: Option<u64>,
        down: &BTreeSet<ProcessId>,
        elapsed: f64,
    ) -> Option<ChaosAction> {
        if elapsed > KILL_UNTIL {
            return None;
        }
        let target = *self.left.front()?;
        let moves = seen.running.iter().filter(|o| matches!(o.kind, OperatorKind::Move { .. }));
        let mut any = false;
        for running in moves {
            any = true;
            if let Some(victim) = victim(target, running, seen, placement_driver_leader, down) {
                self.left.pop_front();
                self.asked = None;
                return Some(ChaosAction::Kill(target, victim, running.id));
            }
        }
        let waiting = self.asked.is_some_and(|asked| seen.number < asked + UNSEEN_OBSERVATIONS);
        if any || waiting || elapsed < ASK_FROM {
            return None;
        }
        let act = quiet_move(seen, self.moves)?;
        self.asked = Some(seen.number);
        self.moves += 1;
        Some(act)
    }

    /// Records that the requested move was refused. Another may be asked for.
    pub fn refused(&mut self) {
        self.asked = None;
    }

    /// Whether no fault is left.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// The faults that were not injected, as a finding.
    pub fn findings(&self) -> Vec<String> {
        let left: Vec<&str> = self.left.iter().map(|target| target.name()).collect();
        if left.is_empty() {
            return Vec::new();
        }
        vec![format!("chaos found no moving range to interrupt by the death of {}", left.join(", of "))]
    }
}

fn victim(
    target: FaultTarget,
    running: &OperatorBody,
    seen: &Observation,
    placement_driver_leader: Option<u64>,
    down: &BTreeSet<ProcessId>,
) -> Option<ProcessId> {
    let OperatorKind::Move { from, to, .. } = running.kind else {
        return None;
    };
    let shard = |id: ShardId| {
        let shard = seen.shards.iter().find(|s| s.info.id == id)?;
        let whole = wait::is_whole(shard, shard.info.replicas.len(), RECENT).is_ok();
        let none_down = !down.iter().any(|p| matches!(p, ProcessId::ShardNode(s, _) if *s == id.0));
        (whole && none_down).then_some(shard)
    };
    match target {
        FaultTarget::ShardLeader => Some(ProcessId::ShardNode(from.0, shard(from)?.leader?)),
        FaultTarget::Postgres => Some(ProcessId::ShardNode(to.0, shard(to)?.leader?)),
        FaultTarget::ShardFollower => {
            let shard = shard(to)?;
            let follower = shard.info.replicas.keys().find(|r| Some(**r) != shard.leader)?;
            Some(ProcessId::ShardNode(to.0, *follower))
        }
        FaultTarget::PlacementDriverLeader => {
            let whole = !down.iter().any(|p| matches!(p, ProcessId::PlacementDriver(_)));
            placement_driver_leader.filter(|_| whole).map(ProcessId::PlacementDriver)
        }
    }
}

/// A move that changes the balance little: the range with the least load, or at later tries another
/// one of the cooler half, to the next shard.
fn quiet_move(seen: &Observation, tries: usize) -> Option<ChaosAction> {
    let load = |r: &RangeBody| r.load.map_or(0.0, |l| l.reads_per_s + l.writes_per_s);
    let mut free: Vec<_> = seen.ranges.iter().filter(|r| r.operator.is_none()).collect();
    free.sort_by(|a, b| load(a).total_cmp(&load(b)).then(a.route.range.cmp(&b.route.range)));
    let cool = free.len().div_ceil(2).max(1);
    let range = free.get(tries % cool)?;
    let shards: Vec<ShardId> = seen.shards.iter().map(|s| s.info.id).collect();
    let here = shards.iter().position(|s| *s == range.route.shard)?;
    let to = *shards.get((here + 1) % shards.len())?;
    (to != range.route.shard).then_some(ChaosAction::AskForMove(range.route.range, to))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registration::shard_body;
    use evenkeel_protocol::api::ShardBody;
    use evenkeel_protocol::report::ReplicaReport;
    use evenkeel_protocol::routing::ShardInfo;

    fn shard(id: u32, connected: bool) -> ShardBody {
        let address = |n: u64| (n, crate::address::loopback(n as u16));
        let seen = |id| ReplicaReport { id, connected, decided: 0 };
        ShardBody {
            leader: Some(2),
            report_age_ms: Some(10),
            clock_off_ms: None,
            replicas_seen: (1..=3).map(seen).collect(),
            scrub: None,
            ..shard_body(ShardInfo { id: ShardId(id), replicas: (1..=3).map(address).collect() })
        }
    }

    fn moving(id: u64, from: u32, to: u32) -> OperatorBody {
        let kind = serde_json::json!({
            "id": id, "kind": "move", "range": 7, "from": from, "to": to,
            "step": "copy", "status": "running", "created_ms": 0,
        });
        serde_json::from_value(kind).unwrap()
    }

    fn seen(running: Vec<OperatorBody>) -> Observation {
        Observation { number: 1, shards: vec![shard(1, true), shard(2, true), shard(3, true)], ranges: vec![], running }
    }

    #[test]
    fn all_four_are_killed_each_while_a_range_moves() {
        let mut plan = FaultPlan::new(0);
        let none = BTreeSet::new();
        assert_eq!(plan.next(&seen(vec![]), Some(1), &none, 0.1), None);
        let busy = seen(vec![moving(5, 1, 3)]);
        let kinds: Vec<ChaosAction> = (0..4).map(|_| plan.next(&busy, Some(1), &none, 0.1).unwrap()).collect();
        assert_eq!(
            kinds,
            [
                ChaosAction::Kill(FaultTarget::ShardLeader, ProcessId::ShardNode(1, 2), OperatorId(5)),
                ChaosAction::Kill(FaultTarget::ShardFollower, ProcessId::ShardNode(3, 1), OperatorId(5)),
                ChaosAction::Kill(FaultTarget::PlacementDriverLeader, ProcessId::PlacementDriver(1), OperatorId(5)),
                ChaosAction::Kill(FaultTarget::Postgres, ProcessId::ShardNode(3, 2), OperatorId(5)),
            ]
        );
        assert_eq!(plan.next(&busy, Some(1), &none, 0.1), None);
        assert!(plan.is_done() && plan.findings().is_empty());
    }

    #[test]
    fn a_group_with_a_missing_replica_is_left_alone() {
        let mut plan = FaultPlan::new(0);
        let busy = seen(vec![moving(5, 1, 3)]);
        let down = BTreeSet::from([ProcessId::ShardNode(1, 3)]);
        assert_eq!(plan.next(&busy, Some(1), &down, 0.1), None);
        let mut silent = busy.clone();
        silent.shards[0] = shard(1, false);
        assert_eq!(plan.next(&silent, Some(1), &BTreeSet::new(), 0.1), None);
        assert_eq!(plan.next(&busy, Some(1), &BTreeSet::new(), 0.99), None);
        let named = "the source's leader, of a follower of the destination, of the placement driver's leader, of the PostgreSQL server";
        assert!(plan.findings()[0].contains(named), "{:?}", plan.findings());
    }

    #[test]
    fn when_nothing_moves_any_more_a_quiet_range_is_moved() {
        let range = |id: u64, shard: u32, reads: f64| {
            serde_json::from_value(serde_json::json!({
                "range": id, "epoch": 1, "table": 1, "table_name": "t", "start_hex": "", "shard": shard, "operator": null,
                "load": {"reads_per_s": reads, "writes_per_s": 0.0, "rows": 1, "bytes": 1, "postgres_us_per_s": 0.0, "hottest_share": 0.0},
            }))
            .unwrap()
        };
        let mut plan = FaultPlan::new(0);
        let quiet = Observation { ranges: vec![range(1, 1, 50.0), range(2, 3, 5.0)], ..seen(vec![]) };
        let none = BTreeSet::new();
        assert_eq!(plan.next(&quiet, Some(1), &none, 0.3), None);
        assert_eq!(plan.next(&quiet, Some(1), &none, 0.5), Some(ChaosAction::AskForMove(RangeId(2), ShardId(1))));
        assert_eq!(plan.next(&quiet, Some(1), &none, 0.5), None);
        plan.refused();
        assert!(plan.next(&quiet, Some(1), &none, 0.5).is_some());
        // The move began and ended between two observations: the plan asks again.
        let later = Observation { number: quiet.number + UNSEEN_OBSERVATIONS, ..quiet.clone() };
        assert_eq!(plan.next(&later, Some(1), &none, 0.5), Some(ChaosAction::AskForMove(RangeId(2), ShardId(1))));
        assert_eq!(plan.next(&later, Some(1), &none, 0.5), None);
    }
}
