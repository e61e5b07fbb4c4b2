//! What `--chaos` kills, and when: a shard's leader, a shard's follower, the placement driver's leader and a PostgreSQL
//! server, each with SIGKILL, each while a range is moving.
//!
//! The planner is pure: from what is seen it says what to kill next. It takes victims from the very shards that a running move
//! involves, and only from groups that are whole, since two dead replicas of three are a different experiment. If the load is
//! level and nothing moves any more while faults are left, it asks for a move of a range with little load, so that there is
//! something to interrupt; and for another if that one was over before it was seen. A run in which fewer than four were killed
//! has not shown what it was asked to show, which is a finding.

use super::screen::Screen;
use super::watch::{Seen, Watch};
use crate::cli::CommandError;
use crate::cluster::{Cluster, ProcessId, wait};
use evenkeel_protocol::api::{MoveBody, OperatorBody, OperatorKind};
use evenkeel_protocol::{OperatorId, RangeId, ShardId};
use evenkeel_workloads::report::FaultRecord;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a killed process stays away, in milliseconds: long enough that the others have to do without it.
const AWAY_MS: u64 = 1_500;
/// The oldest report by which a group is taken for whole: made while nobody of it had been away for longer.
const FRESH: Duration = Duration::from_millis(AWAY_MS / 2);
/// From this part of the run on, moves are asked for if there are none.
const ASK_FROM: f64 = 0.4;
/// A move that was asked for and is not seen after so many looks at the cluster was too short to be seen.
const UNSEEN_LOOKS: u64 = 10;
/// Nothing is killed in the last part of the run: what is killed has to be seen to come back.
const KILL_UNTIL: f64 = 0.85;

/// What is to be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The leader of a move's source.
    ShardLeader,
    /// A follower of a move's destination.
    ShardFollower,
    /// The placement driver's leader.
    DriverLeader,
    /// The PostgreSQL server of the leader of a move's destination.
    Postgres,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Target::ShardLeader => "the source's leader",
            Target::ShardFollower => "a follower of the destination",
            Target::DriverLeader => "the placement driver's leader",
            Target::Postgres => "the PostgreSQL server of the destination's leader",
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Kill this process, or its PostgreSQL server; such a move is running.
    Kill(Target, ProcessId, OperatorId),
    /// Ask for a move of this range to that shard.
    AskForMove(RangeId, ShardId),
}

/// Decides what to kill next.
#[derive(Debug)]
pub struct Planner {
    left: VecDeque<Target>,
    /// The look at which a move was asked for that is to be interrupted.
    asked: Option<u64>,
    /// Moves that were asked for: each next one is of another range, which may have more rows and so take longer.
    moves: usize,
}

/// What was done, and what was not.
#[derive(Debug, Default)]
pub struct Done {
    /// What was killed.
    pub faults: Vec<FaultRecord>,
    /// In words, that not everything was.
    pub findings: Vec<String>,
}

impl Planner {
    /// All four faults, in an order that `seed` chooses.
    pub fn new(seed: u64) -> Planner {
        let mut left =
            VecDeque::from([Target::ShardLeader, Target::ShardFollower, Target::DriverLeader, Target::Postgres]);
        left.rotate_left((seed % 4) as usize);
        Planner { left, asked: None, moves: 0 }
    }

    /// What to do, from what is seen, the placement driver's leader, the processes that are down, and how much of the run is
    /// over (0 to 1).
    pub fn next(
        &mut self,
        seen: &Seen,
        driver_leader: Option<u64>,
        down: &BTreeSet<ProcessId>,
        elapsed: f64,
    ) -> Option<Act> {
        if elapsed > KILL_UNTIL {
            return None;
        }
        let target = *self.left.front()?;
        let moves = seen.running.iter().filter(|o| matches!(o.kind, OperatorKind::Move { .. }));
        let mut any = false;
        for running in moves {
            any = true;
            if let Some(victim) = victim(target, running, seen, driver_leader, down) {
                self.left.pop_front();
                self.asked = None;
                return Some(Act::Kill(target, victim, running.id));
            }
        }
        let waiting = self.asked.is_some_and(|look| seen.look < look + UNSEEN_LOOKS);
        if any || waiting || elapsed < ASK_FROM {
            return None;
        }
        let act = quiet_move(seen, self.moves)?;
        self.asked = Some(seen.look);
        self.moves += 1;
        Some(act)
    }

    /// The move that was asked for was refused; another may be asked for.
    pub fn refused(&mut self) {
        self.asked = None;
    }

    /// Whether no fault is left.
    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// What was not killed, as a finding.
    pub fn findings(&self) -> Vec<String> {
        let left: Vec<&str> = self.left.iter().map(|target| target.name()).collect();
        if left.is_empty() {
            return Vec::new();
        }
        vec![format!("chaos found no moving range to interrupt by the death of {}", left.join(", of "))]
    }
}

fn victim(
    target: Target,
    running: &OperatorBody,
    seen: &Seen,
    driver_leader: Option<u64>,
    down: &BTreeSet<ProcessId>,
) -> Option<ProcessId> {
    let OperatorKind::Move { from, to, .. } = running.kind else {
        return None;
    };
    let shard = |id: ShardId| {
        let shard = seen.shards.iter().find(|s| s.info.id == id)?;
        let whole = wait::is_whole(shard, shard.info.replicas.len(), FRESH).is_ok();
        let none_down = !down.iter().any(|p| matches!(p, ProcessId::ShardNode(s, _) if *s == id.0));
        (whole && none_down).then_some(shard)
    };
    match target {
        Target::ShardLeader => Some(ProcessId::ShardNode(from.0, shard(from)?.leader?)),
        Target::Postgres => Some(ProcessId::ShardNode(to.0, shard(to)?.leader?)),
        Target::ShardFollower => {
            let shard = shard(to)?;
            let follower = shard.info.replicas.keys().find(|r| Some(**r) != shard.leader)?;
            Some(ProcessId::ShardNode(to.0, *follower))
        }
        Target::DriverLeader => {
            let whole = !down.iter().any(|p| matches!(p, ProcessId::PlacementDriver(_)));
            driver_leader.filter(|_| whole).map(ProcessId::PlacementDriver)
        }
    }
}

/// A move that changes the balance little: the range with the least load, or after so many tries another of the cooler half, to
/// the next shard.
fn quiet_move(seen: &Seen, tries: usize) -> Option<Act> {
    let load = |r: &evenkeel_protocol::api::RangeBody| r.load.map_or(0.0, |l| l.reads_per_s + l.writes_per_s);
    let mut free: Vec<_> = seen.ranges.iter().filter(|r| r.operator.is_none()).collect();
    free.sort_by(|a, b| load(a).total_cmp(&load(b)).then(a.route.range.cmp(&b.route.range)));
    let cool = free.len().div_ceil(2).max(1);
    let range = free.get(tries % cool)?;
    let shards: Vec<ShardId> = seen.shards.iter().map(|s| s.info.id).collect();
    let here = shards.iter().position(|s| *s == range.route.shard)?;
    let to = *shards.get((here + 1) % shards.len())?;
    (to != range.route.shard).then_some(Act::AskForMove(range.route.range, to))
}

/// Kills until all four faults have been made or the run nears its end; returns once everything runs again.
pub async fn run(
    cluster: &Cluster,
    watch: &Watch,
    screen: &Screen,
    started: Instant,
    duration_s: f64,
    seed: u64,
) -> Result<Done, CommandError> {
    let mut planner = Planner::new(seed);
    let mut faults: Vec<FaultRecord> = Vec::new();
    let mut away: Vec<(Instant, ProcessId)> = Vec::new();
    while (!planner.is_done() || !away.is_empty()) && started.elapsed().as_secs_f64() < duration_s {
        for (_, id) in away.extract_if(.., |(since, _)| since.elapsed() >= Duration::from_millis(AWAY_MS)) {
            cluster.restart(id).map_err(CommandError::failed)?;
            screen.line(&format!("{:>6.1} s  chaos: {id} is started again", started.elapsed().as_secs_f64()));
        }
        let down = away.iter().map(|(_, id)| *id).collect();
        let elapsed = started.elapsed().as_secs_f64() / duration_s;
        match planner.next(&watch.last(), driver_leader(cluster).await, &down, elapsed) {
            Some(Act::Kill(target, id, operator)) => {
                let at_s = started.elapsed().as_secs_f64();
                let what = kill(cluster, target, id)?;
                if target != Target::Postgres {
                    away.push((Instant::now(), id));
                }
                let what = format!("{what} while operator {operator} was moving a range");
                screen.line(&format!("{at_s:>6.1} s  chaos: {what}"));
                faults.push(FaultRecord { at_s, what });
                // What was seen before the kill says nothing about after it.
                watch.fresh().await;
            }
            Some(Act::AskForMove(range, to)) => {
                let path = format!("/v1/ranges/{range}/move");
                if let Err(error) = cluster.rest().post::<_, OperatorBody>(&path, &MoveBody { to }).await {
                    tracing::debug!(%error, "asking for a move");
                    planner.refused();
                }
            }
            None => {}
        }
        wait::pause().await;
    }
    for (_, id) in away {
        cluster.restart(id).map_err(CommandError::failed)?;
    }
    Ok(Done { faults, findings: planner.findings() })
}

fn kill(cluster: &Cluster, target: Target, id: ProcessId) -> Result<String, CommandError> {
    Ok(match target {
        Target::Postgres => {
            let pid = cluster.kill_postgres(id).map_err(CommandError::failed)?;
            format!("kill -9 of {id}'s PostgreSQL (pid {pid}, of the destination's leader)")
        }
        _ => {
            cluster.kill(id).map_err(CommandError::failed)?;
            format!("kill -9 of {id}, {},", target.name())
        }
    })
}

/// Who leads the placement driver, as far as any of its replicas says.
async fn driver_leader(cluster: &Cluster) -> Option<u64> {
    let status: serde_json::Value = cluster.rest().get("/v1/status").await.ok()?;
    status["leader"].as_u64()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::shard_body;
    use evenkeel_protocol::api::ShardBody;
    use evenkeel_protocol::report::ReplicaReport;
    use evenkeel_protocol::routing::ShardInfo;

    fn shard(id: u32, connected: bool) -> ShardBody {
        let address = |n: u64| (n, crate::cluster::loopback(n as u16));
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

    fn seen(running: Vec<OperatorBody>) -> Seen {
        Seen { look: 1, shards: vec![shard(1, true), shard(2, true), shard(3, true)], ranges: vec![], running }
    }

    #[test]
    fn all_four_are_killed_each_while_a_range_moves() {
        let mut planner = Planner::new(0);
        let none = BTreeSet::new();
        assert_eq!(planner.next(&seen(vec![]), Some(1), &none, 0.1), None);
        let busy = seen(vec![moving(5, 1, 3)]);
        let kinds: Vec<Act> = (0..4).map(|_| planner.next(&busy, Some(1), &none, 0.1).unwrap()).collect();
        assert_eq!(
            kinds,
            [
                Act::Kill(Target::ShardLeader, ProcessId::ShardNode(1, 2), OperatorId(5)),
                Act::Kill(Target::ShardFollower, ProcessId::ShardNode(3, 1), OperatorId(5)),
                Act::Kill(Target::DriverLeader, ProcessId::PlacementDriver(1), OperatorId(5)),
                Act::Kill(Target::Postgres, ProcessId::ShardNode(3, 2), OperatorId(5)),
            ]
        );
        assert_eq!(planner.next(&busy, Some(1), &none, 0.1), None);
        assert!(planner.is_done() && planner.findings().is_empty());
    }

    #[test]
    fn a_group_that_is_not_whole_is_spared() {
        let mut planner = Planner::new(0);
        let busy = seen(vec![moving(5, 1, 3)]);
        let down = BTreeSet::from([ProcessId::ShardNode(1, 3)]);
        assert_eq!(planner.next(&busy, Some(1), &down, 0.1), None);
        let mut silent = busy.clone();
        silent.shards[0] = shard(1, false);
        assert_eq!(planner.next(&silent, Some(1), &BTreeSet::new(), 0.1), None);
        assert_eq!(planner.next(&busy, Some(1), &BTreeSet::new(), 0.99), None);
        let named = "the source's leader, of a follower of the destination, of the placement driver's leader, of the PostgreSQL server";
        assert!(planner.findings()[0].contains(named), "{:?}", planner.findings());
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
        let mut planner = Planner::new(0);
        let quiet = Seen { ranges: vec![range(1, 1, 50.0), range(2, 3, 5.0)], ..seen(vec![]) };
        let none = BTreeSet::new();
        assert_eq!(planner.next(&quiet, Some(1), &none, 0.3), None);
        assert_eq!(planner.next(&quiet, Some(1), &none, 0.5), Some(Act::AskForMove(RangeId(2), ShardId(1))));
        assert_eq!(planner.next(&quiet, Some(1), &none, 0.5), None);
        planner.refused();
        assert!(planner.next(&quiet, Some(1), &none, 0.5).is_some());
        // It came and went between two looks: once more.
        let later = Seen { look: quiet.look + UNSEEN_LOOKS, ..quiet.clone() };
        assert_eq!(planner.next(&later, Some(1), &none, 0.5), Some(Act::AskForMove(RangeId(2), ShardId(1))));
        assert_eq!(planner.next(&later, Some(1), &none, 0.5), None);
    }
}
