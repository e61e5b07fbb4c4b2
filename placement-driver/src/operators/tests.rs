//! The driver against a scripted world: what it asks, what it concludes, and what a successor does.
#![allow(clippy::unwrap_used)]

use super::testing::{owned_report, report};
use super::*;
use crate::balancer::testing::{key, must, state_with_table};
use crate::config::BalancerConfig;
use crate::state::{Action, Effect, Status};
use evenkeel_protocol::report::{OperatorPhase, OperatorReport, ShardReport};
use evenkeel_protocol::{Epoch, KeyInterval, RangeId};

/// The state, a reign, and its clock.
struct World {
    state: State,
    picture: Picture,
    driver: Driver,
    now_ms: u64,
    sequence: u64,
}

impl World {
    fn new() -> World {
        let mut world = World {
            state: state_with_table(3),
            picture: Picture::default(),
            driver: Driver::default(),
            now_ms: 1000,
            sequence: 0,
        };
        world.update();
        world
    }

    fn update(&mut self) {
        self.picture.update(&self.state, &BalancerConfig::default(), self.now_ms);
    }

    fn begin(&mut self, action: Action) -> OperatorId {
        match must(&mut self.state, self.now_ms, Command::Begin(action)) {
            Effect::Begun(operators) => operators[0],
            other => panic!("{other:?}"),
        }
    }

    fn observe(&mut self, mut report: ShardReport) {
        self.sequence += 1;
        report.sequence = self.sequence;
        assert!(self.picture.observe(report, &BalancerConfig::default(), self.now_ms));
        self.update();
    }

    fn phase(&mut self, shard: u32, operator: OperatorId, phase: OperatorPhase) {
        self.observe(report(shard, 0, vec![OperatorReport { operator, range: RangeId(1), phase }]));
    }

    /// Lets time pass, applies what is proposed, and gives what is asked.
    fn turn(&mut self) -> Vec<(CallName, ControlRequest)> {
        self.now_ms += 10;
        let mut calls = Vec::new();
        for _ in 0..4 {
            for todo in self.driver.next(&self.state, &self.picture, self.now_ms) {
                match todo {
                    Todo::Call { name, request } => calls.push((name, request)),
                    Todo::Propose(command) => drop(must(&mut self.state, self.now_ms, command)),
                }
            }
            self.update();
        }
        calls
    }

    fn answer(&mut self, name: CallName, reply: ControlReply) {
        self.driver.answered(name, Ok(reply), &self.state, self.now_ms);
    }

    /// One call is expected; it is answered.
    fn expect(&mut self, shard: u32, reply: ControlReply) -> ControlRequest {
        let mut calls = self.turn();
        assert_eq!(calls.len(), 1, "{calls:?}");
        let (name, request) = calls.remove(0);
        assert_eq!(name.shard, ShardId(shard));
        self.answer(name, reply);
        request
    }

    fn status(&self, operator: OperatorId) -> (Step, Status) {
        let operator = &self.state.operators[&operator];
        (operator.step, operator.status)
    }
}

fn refused(code: &str) -> ControlReply {
    ControlReply::Refused { code: code.into(), reason: "because".into() }
}

fn adopted() -> OperatorPhase {
    OperatorPhase::Adopted { epoch: Epoch(2), pause_us: 4000, rows: 5, bytes: 50 }
}

fn sum(sum: u64) -> ControlReply {
    ControlReply::Checksum(RangeChecksum { rows: 5, sum })
}

fn a_move(world: &mut World) -> OperatorId {
    world.begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) })
}

/// Opens a move and lets the destination take it in.
fn copying(world: &mut World) -> OperatorId {
    let operator = a_move(world);
    assert!(matches!(world.expect(1, ControlReply::Done), ControlRequest::MoveOpen { .. }));
    let request = world.expect(2, ControlReply::Done);
    assert!(matches!(request, ControlRequest::IngestOpen { epoch: Epoch(1), .. }));
    operator
}

fn verify(world: &mut World, source: ControlReply, destination: ControlReply) {
    let calls = world.turn();
    assert_eq!(calls.len(), 2);
    for (name, request) in calls {
        assert!(matches!(request, ControlRequest::MoveChecksum { .. }));
        let reply = if name.shard == ShardId(1) { source.clone() } else { destination.clone() };
        world.answer(name, reply);
    }
}

#[test]
fn a_move_takes_its_steps_and_publishes_at_the_adoption() {
    let mut world = World::new();
    let operator = copying(&mut world);
    assert!(world.turn().is_empty(), "the destination drives; nothing is asked meanwhile");
    world.phase(1, operator, OperatorPhase::Fenced);
    assert!(world.turn().is_empty());
    assert_eq!(world.status(operator).0, Step::Switch);
    world.phase(2, operator, adopted());
    verify(&mut world, sum(9), sum(9));
    assert_eq!(world.state.ranges[&RangeId(1)].route.shard, ShardId(2));
    assert_eq!(world.expect(1, ControlReply::Done), ControlRequest::Purge { operator });
    assert_eq!(world.expect(2, ControlReply::Done), ControlRequest::MoveForget { operator });
    world.turn();
    assert_eq!(world.status(operator), (Step::End, Status::Done));
    assert_eq!(world.state.operators[&operator].pause_us, Some(4000));
}

#[test]
fn a_split_is_asked_of_the_owner_until_it_answers() {
    let mut world = World::new();
    let operator = world.begin(Action::Split { range: RangeId(1), epoch: None, at: vec![key(5)] });
    let (name, _) = world.turn().remove(0);
    assert!(world.turn().is_empty(), "one request at a time");
    world.driver.answered(name, Err("lost".into()), &world.state, world.now_ms);
    assert_eq!(world.driver.trouble(operator), Some("lost"));
    assert!(world.turn().is_empty(), "not at once again");
    world.now_ms += MAX_PAUSE_MS;
    let request = world.expect(1, ControlReply::Done);
    assert!(matches!(request, ControlRequest::Split { epoch: Epoch(1), .. }));
    world.turn();
    assert_eq!(world.state.ranges.len(), 2);
}

/// R20: reported as cancelled only after the source's entry.
#[test]
fn a_cancellation_is_the_sources_to_grant() {
    let mut world = World::new();
    let operator = copying(&mut world);
    must(&mut world.state, 1, Command::Cancel(operator));
    assert!(matches!(world.turn()[..], [(_, ControlRequest::MoveCancel { .. })]));
    assert_eq!(world.status(operator).1, Status::Cancelling);
    let name = CallName { operator, step: Step::Cancel, shard: ShardId(1) };
    world.answer(name, ControlReply::Done);
    assert_eq!(world.expect(2, ControlReply::Done), ControlRequest::IngestCancel { operator });
    world.turn();
    assert_eq!(world.status(operator), (Step::End, Status::Cancelled));
}

/// R20: the fence came first.
#[test]
fn a_cancellation_after_the_fence_goes_forward() {
    let mut world = World::new();
    let operator = copying(&mut world);
    must(&mut world.state, 1, Command::Cancel(operator));
    world.expect(1, refused("already-fenced"));
    world.turn();
    assert_eq!(world.status(operator), (Step::Switch, Status::Running));
    world.phase(2, operator, adopted());
    verify(&mut world, sum(1), sum(1));
    world.turn();
    assert_eq!(world.state.ranges[&RangeId(1)].route.shard, ShardId(2));
}

/// R24: the copies differ. The range has moved, the source keeps its copy: nothing is purged.
#[test]
fn copies_that_differ_raise_the_alarm_and_nothing_is_purged() {
    let mut world = World::new();
    let operator = copying(&mut world);
    world.phase(2, operator, adopted());
    verify(&mut world, sum(1), sum(2));
    assert!(world.turn().is_empty());
    assert_eq!(world.status(operator), (Step::End, Status::Differs));
    assert!(world.state.operators[&operator].detail.as_ref().unwrap().contains("keeps its copy"));
    assert_eq!(world.state.ranges[&RangeId(1)].route.shard, ShardId(2));
}

/// R23: declined after the fence; the source takes the range back at a higher epoch.
#[test]
fn a_declined_move_ends_when_the_source_has_the_range_back() {
    let mut world = World::new();
    let operator = copying(&mut world);
    world.phase(1, operator, OperatorPhase::Fenced);
    world.turn();
    world.phase(2, operator, OperatorPhase::Discarding);
    assert!(world.turn().is_empty());
    assert_eq!(world.status(operator), (Step::Restore, Status::Running));
    world.observe(owned_report(1, 0, RangeId(1), 3, KeyInterval::ALL));
    world.turn();
    assert_eq!(world.status(operator), (Step::End, Status::Failed));
    assert_eq!(world.state.ranges[&RangeId(1)].route.epoch, Epoch(3));
}

#[test]
fn a_destination_that_refuses_makes_the_move_fail_without_trace() {
    let mut world = World::new();
    let operator = a_move(&mut world);
    world.expect(1, ControlReply::Done);
    world.expect(2, refused("purge-unfinished"));
    world.expect(1, ControlReply::Done);
    world.expect(2, refused("no-such-operator"));
    world.turn();
    assert_eq!(world.status(operator), (Step::End, Status::Failed));
    assert_eq!(world.state.ranges[&RangeId(1)].operator, None);
}

/// A placement driver that takes over at any step goes on by asking the same again.
#[test]
fn a_successor_resumes_at_every_step() {
    for handover_at in 0..12 {
        let mut world = World::new();
        let operator = a_move(&mut world);
        let mut source = OperatorPhase::Open;
        let mut destination = None;
        for turn in 0..40 {
            if turn == handover_at {
                // All that is not in the log is lost, with the answers under way.
                world.driver = Driver::default();
                world.picture = Picture::default();
            }
            world.phase(1, operator, source.clone());
            if let Some(phase) = &destination {
                world.phase(2, operator, OperatorPhase::clone(phase));
            }
            for (name, request) in world.turn() {
                let reply = match request {
                    ControlRequest::MoveChecksum { .. } => sum(3),
                    ControlRequest::IngestOpen { .. } => {
                        source = OperatorPhase::HandedOver;
                        destination = Some(adopted());
                        ControlReply::Done
                    }
                    _ => ControlReply::Done,
                };
                if turn != handover_at {
                    world.answer(name, reply);
                }
            }
            if turn == handover_at {
                world.driver = Driver::default();
            }
            if world.status(operator).1 == Status::Done {
                break;
            }
        }
        assert_eq!(world.status(operator), (Step::End, Status::Done), "handed over at turn {handover_at}");
    }
}

/// What an operator that is over left behind is swept up: here a move whose opening was overtaken by its cancellation.
#[test]
fn leftovers_of_ended_operators_are_swept_up() {
    let mut world = World::new();
    let operator = a_move(&mut world);
    must(&mut world.state, 1, Command::Cancel(operator));
    world.expect(1, refused("no-such-operator"));
    world.expect(2, refused("no-such-operator"));
    world.turn();
    assert_eq!(world.status(operator).1, Status::Cancelled);
    world.phase(1, operator, OperatorPhase::Open);
    let request = world.expect(1, ControlReply::Done);
    assert!(matches!(request, ControlRequest::MoveCancel { .. }));
    world.phase(1, operator, OperatorPhase::Open);
    assert!(world.turn().is_empty(), "not again at once");
    world.phase(2, OperatorId(999), OperatorPhase::Finished);
    assert!(world.turn().is_empty(), "what was never begun here is somebody else's");
}

/// Invariant 6: what the shards' logs say is later wins, once it is whole.
#[test]
fn later_routes_in_reports_are_taken_in_when_they_leave_no_gap() {
    let mut world = World::new();
    let split = world.begin(Action::Split { range: RangeId(1), epoch: None, at: vec![key(5)] });
    world.expect(1, refused("lost-race"));
    world.turn();
    assert_eq!(world.status(split).1, Status::Failed);
    let (left, right) = (KeyInterval::new(evenkeel_protocol::Key::MIN, Some(key(5))), KeyInterval::new(key(5), None));
    world.observe(owned_report(1, 0, RangeId(1), 2, left));
    assert_eq!(take_routes(&world.state, &world.picture), None, "only half is known");
    world.observe(owned_report(2, 0, RangeId(2), 3, right));
    let command = take_routes(&world.state, &world.picture).unwrap();
    must(&mut world.state, 5, command);
    assert_eq!(world.state.ranges[&RangeId(2)].route.shard, ShardId(2));
    world.update();
    assert_eq!(take_routes(&world.state, &world.picture), None);
}

#[test]
fn a_drained_shard_is_removed_when_its_own_report_says_it_is_empty() {
    let mut world = World::new();
    must(&mut world.state, 1, Command::DrainShard(ShardId(3)));
    assert!(world.turn().is_empty());
    assert!(world.state.shards.contains_key(&ShardId(3)), "it has not said so yet");
    world.observe(report(3, 0, vec![]));
    world.turn();
    assert!(!world.state.shards.contains_key(&ShardId(3)));
}

/// Its addresses are mistyped, say: nobody will ever hear of it, and nothing is there.
#[test]
fn a_drained_shard_that_never_spoke_is_removed_if_it_owns_nothing() {
    let mut world = World::new();
    let operator = world.begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) });
    for shard in [2, 3] {
        must(&mut world.state, 1, Command::DrainShard(ShardId(shard)));
    }
    world.turn();
    assert_eq!(world.state.shards.len(), 3, "one that is there has the time to speak");
    world.now_ms += 20_000;
    world.turn();
    assert!(!world.state.shards.contains_key(&ShardId(3)));
    assert!(world.state.shards.contains_key(&ShardId(2)), "an operator works with it");
    // Restored from a backup, the state does not know what it owns (R30).
    must(&mut world.state, 1, Command::Advance { operator, from: Step::Open, transition: refusal() });
    must(&mut world.state, 1, Command::BeginIncarnation(2));
    world.turn();
    assert!(world.state.shards.contains_key(&ShardId(2)));
}

fn refusal() -> Transition {
    Transition::Refused { reason: "no".into() }
}
