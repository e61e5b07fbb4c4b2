//! The operator controller against scripted shards: its requests, its conclusions, and what a
//! successor does.
#![allow(clippy::unwrap_used)]

use super::controller::MAX_PAUSE_MS;
use super::testing::{owned_report, report};
use super::*;
use crate::balancer::testing::{key, must, state_with_table};
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::state::{Action, Command, Effect, PlacementState, Proposal, Refusal, Status, Step, Transition, apply};
use evenkeel_protocol::report::{MoveProgress, OperatorPhase, OperatorReport, ShardReport};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, KeyInterval, OperatorId, RangeId, ShardId, TableId};

/// The state, a leadership, and its clock.
struct World {
    state: PlacementState,
    load: LoadModel,
    controller: OperatorController,
    now_ms: u64,
    sequence: u64,
}

impl World {
    fn new() -> World {
        let mut world = World {
            state: state_with_table(3),
            load: LoadModel::default(),
            controller: OperatorController::default(),
            now_ms: 1000,
            sequence: 0,
        };
        world.update();
        world
    }

    fn update(&mut self) {
        self.load.update(&self.state, &BalancerConfig::default(), self.now_ms);
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
        assert!(self.load.observe(report, &self.state, &BalancerConfig::default(), self.now_ms).taken);
        self.update();
    }

    fn phase(&mut self, shard: u32, operator: OperatorId, phase: OperatorPhase) {
        self.observe(report(shard, 0, vec![OperatorReport { operator, range: RangeId(1), phase, progress: None }]));
    }

    /// Lets time pass, applies the proposals, and returns the requests.
    fn turn(&mut self) -> Vec<(CallName, ControlRequest)> {
        self.now_ms += 10;
        let mut calls = Vec::new();
        for _ in 0..4 {
            for todo in self.controller.next(&self.state, &self.load, self.now_ms) {
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
        self.controller.answered(name, Ok(reply), &self.state, self.now_ms);
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

#[test]
fn a_move_takes_its_steps_and_publishes_at_the_adoption() {
    let mut world = World::new();
    let operator = copying(&mut world);
    assert!(world.turn().is_empty(), "the destination drives; nothing is asked meanwhile");
    world.phase(1, operator, OperatorPhase::Fenced);
    assert!(world.turn().is_empty());
    assert_eq!(world.status(operator).0, Step::Switch);
    world.phase(2, operator, adopted());
    assert_eq!(world.expect(1, ControlReply::Done), ControlRequest::Purge { operator });
    let range = &world.state.ranges[&RangeId(1)];
    assert_eq!(range.route.shard, ShardId(2));
    assert_eq!(range.operator, None, "A8: the remaining steps concern the source's copy, not the range");
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
    world.controller.answered(name, Err("lost".into()), &world.state, world.now_ms);
    assert_eq!(world.controller.trouble(operator), Some("lost"));
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
    world.turn();
    assert_eq!(world.state.ranges[&RangeId(1)].route.shard, ShardId(2));
}

/// R24: the destination repeatedly stores other rows than the source sends. This is found before
/// the fence: the range stays where it is, and the alarm is raised.
#[test]
fn copies_that_differ_raise_the_alarm_and_the_range_stays() {
    let mut world = World::new();
    let operator = copying(&mut world);
    world.phase(1, operator, OperatorPhase::Open);
    let progress = MoveProgress { differs: Some("replica 2 has stored 3 rows".into()), ..MoveProgress::default() };
    let phase = OperatorPhase::Copying { attempt: 4, rows: 5, bytes: 50 };
    let told = OperatorReport { operator, range: RangeId(1), phase, progress: Some(progress) };
    world.observe(report(2, 0, vec![told]));
    assert!(matches!(world.expect(1, ControlReply::Done), ControlRequest::MoveCancel { .. }));
    assert_eq!(world.expect(2, ControlReply::Done), ControlRequest::IngestCancel { operator });
    world.turn();
    assert_eq!(world.status(operator), (Step::End, Status::Differs));
    assert!(world.state.operators[&operator].detail.as_ref().unwrap().contains("replica 2"));
    assert_eq!(world.state.ranges[&RangeId(1)].route.shard, ShardId(1));
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
                world.controller = OperatorController::default();
                world.load = LoadModel::default();
            }
            world.phase(1, operator, source.clone());
            if let Some(phase) = &destination {
                world.phase(2, operator, OperatorPhase::clone(phase));
            }
            for (name, request) in world.turn() {
                let reply = match request {
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
                world.controller = OperatorController::default();
            }
            if world.status(operator).1 == Status::Done {
                break;
            }
        }
        assert_eq!(world.status(operator), (Step::End, Status::Done), "handed over at turn {handover_at}");
    }
}

/// Leftovers of an ended operator are deleted: here a move whose opening was overtaken
/// by its cancellation.
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

/// Invariant 6: later routes in the shards' logs win, once they are complete.
#[test]
fn later_routes_in_reports_are_taken_in_when_they_leave_no_gap() {
    let mut world = World::new();
    let split = world.begin(Action::Split { range: RangeId(1), epoch: None, at: vec![key(5)] });
    world.expect(1, refused("lost-race"));
    world.turn();
    assert_eq!(world.status(split).1, Status::Failed);
    let (left, right) = (KeyInterval::new(evenkeel_protocol::Key::MIN, Some(key(5))), KeyInterval::new(key(5), None));
    world.observe(owned_report(1, 0, RangeId(1), 2, left));
    assert_eq!(take_in(&world.state, &world.load, world.now_ms), None, "only half is known");
    world.observe(owned_report(2, 0, RangeId(2), 3, right));
    let command = take_in(&world.state, &world.load, world.now_ms).unwrap();
    must(&mut world.state, 5, command);
    assert_eq!(world.state.ranges[&RangeId(2)].route.shard, ShardId(2));
    world.update();
    assert_eq!(take_in(&world.state, &world.load, world.now_ms), None);
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

/// Its addresses are mistyped, for example: it never reports, and it owns nothing.
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
    // A state that was restored from a backup does not prove that the shard owns nothing (R30).
    for (from, transition) in [(Step::Cancel, Transition::CancelledAtSource), (Step::Discard, Transition::Discarded)] {
        must(&mut world.state, 1, Command::Advance { operator, from, transition });
    }
    must(&mut world.state, 1, Command::BeginIncarnation(2));
    world.turn();
    assert!(world.state.shards.contains_key(&ShardId(2)));
}

/// A creation that was given up while its shard was silent, and that had come about: the name would
/// stay taken there.
#[test]
fn a_table_whose_creation_was_given_up_is_dropped_where_it_came_about() {
    let mut world = World::new();
    let schema = crate::balancer::testing::schema("u");
    let create = Command::CreateTable { schema: schema.clone(), shard: Some(ShardId(3)), if_not_exists: false };
    let Effect::Begun(operators) = must(&mut world.state, 1, create.clone()) else { panic!() };
    assert_eq!(world.turn().len(), 1);
    must(&mut world.state, 1, Command::Cancel(operators[0]));
    world.turn();
    // It can be made elsewhere at once.
    let elsewhere = Command::CreateTable { schema: schema.clone(), shard: Some(ShardId(2)), if_not_exists: false };
    must(&mut world.state, 1, elsewhere);
    assert!(matches!(world.expect(2, ControlReply::Done), ControlRequest::CreateTable { .. }));
    world.turn();
    // The shard turns up.
    let made = evenkeel_protocol::TableSchema { id: TableId(2), ..schema };
    world.observe(ShardReport { tables: Some(vec![made]), ..report(3, 0, vec![]) });
    assert_eq!(take_in(&world.state, &world.load, world.now_ms), None, "nobody wants it");
    assert_eq!(world.expect(3, ControlReply::Done), ControlRequest::DropTable { table: TableId(2) });
    assert!(world.turn().is_empty(), "not again at once");
    assert_eq!(missing(&world.state, &world.load), Vec::<String>::new());
    world.observe(ShardReport { tables: Some(vec![]), ..report(3, 0, vec![]) });
    world.now_ms += 10_000;
    assert!(world.turn().is_empty());
}

fn seen(operator: OperatorId, phase: OperatorPhase, progress: Option<MoveProgress>) -> OperatorReport {
    OperatorReport { operator, range: RangeId(1), phase, progress }
}

fn copied(attempts: u64, bytes: u64) -> MoveProgress {
    MoveProgress { attempts, bytes, cursor: Some(key(bytes as i64)), ..MoveProgress::default() }
}

/// Both shards report every second for `seconds`; the destination reports the progress that `far`
/// returns.
fn speak(world: &mut World, operator: OperatorId, seconds: u64, far: impl Fn(u64) -> MoveProgress) -> Option<u64> {
    for second in 0..seconds {
        world.now_ms += 1000;
        let source = report(1, 0, vec![seen(operator, OperatorPhase::Open, None)]);
        world.observe(ShardReport { applied: 100 * second, ..source });
        let phase = OperatorPhase::Copying { attempt: 1, rows: 0, bytes: 0 };
        world.observe(report(2, 0, vec![seen(operator, phase, Some(far(second)))]));
        if !world.turn().is_empty() {
            return Some(second);
        }
    }
    None
}

fn why(world: &World, operator: OperatorId) -> &str {
    world.state.operators[&operator].detail.as_deref().unwrap_or_default()
}

/// A move must not hold its range and its slots until an administrator notices.
#[test]
fn a_move_to_a_shard_that_falls_silent_is_given_up_and_its_range_is_free() {
    let mut world = World::new();
    let operator = copying(&mut world);
    assert_eq!(speak(&mut world, operator, 3, |second| copied(1, second)), None);
    for _ in 0..4 {
        world.now_ms += 1000;
        world.phase(1, operator, OperatorPhase::Open);
        assert!(world.turn().is_empty(), "a change of leaders takes no longer");
    }
    world.now_ms += 1000;
    world.phase(1, operator, OperatorPhase::Open);
    assert!(matches!(world.expect(1, ControlReply::Done), ControlRequest::MoveCancel { .. }), "its log decides (R20)");
    assert!(why(&world, operator).starts_with("shard-silent: shard 2"), "{}", why(&world, operator));
    world.turn();
    let range = &world.state.ranges[&RangeId(1)];
    assert_eq!((range.operator, range.failures.times), (None, 1), "whoever is silent still has to delete what came in");
    assert_eq!(world.status(operator), (Step::Discard, Status::Cancelling));
}

#[test]
fn a_move_from_a_shard_that_falls_silent_is_given_up() {
    let mut world = World::new();
    let operator = a_move(&mut world);
    for _ in 0..6 {
        world.now_ms += 1000;
        world.phase(2, operator, OperatorPhase::Discarding);
        world.turn();
    }
    assert_eq!(world.status(operator), (Step::Cancel, Status::Cancelling));
    assert!(why(&world, operator).starts_with("shard-silent: shard 1"), "{}", why(&world, operator));
}

#[test]
fn a_move_of_which_nothing_changes_is_given_up_and_a_slow_one_is_not() {
    let mut world = World::new();
    let operator = copying(&mut world);
    assert_eq!(speak(&mut world, operator, 100, |second| copied(1, 10 * (second / 25))), None, "slow is not stuck");
    // The source's log grows, and the destination follows it at the same distance.
    let follows = |second: u64| MoveProgress { position: (100 * second).saturating_sub(500), ..copied(1, 40) };
    let given_up = speak(&mut world, operator, 60, follows);
    assert!(given_up.is_some_and(|second| (29..=37).contains(&second)), "{given_up:?}");
    assert!(why(&world, operator).starts_with("no-progress: "), "{}", why(&world, operator));
}

/// Changes arrive for ever and the source does not fence: for example, a statement that never ends
/// uses the range.
#[test]
fn a_move_that_is_never_fenced_is_given_up() {
    let mut world = World::new();
    let operator = copying(&mut world);
    let busy = |second| MoveProgress { cursor: None, trouble: Some("busy".into()), ..copied(1, 1000 * second) };
    let given_up = speak(&mut world, operator, 400, busy);
    assert!(given_up.is_some_and(|second| (290..=301).contains(&second)), "{given_up:?}");
    let why = why(&world, operator);
    assert!(why.starts_with("never-fenced: ") && why.ends_with("; busy"), "{why}");
}

#[test]
fn a_move_that_begins_again_and_again_is_given_up() {
    let mut world = World::new();
    let operator = copying(&mut world);
    let given_up = speak(&mut world, operator, 60, |second| copied(second + 1, 1000 * second));
    assert_eq!(given_up, Some(move_range::MAX_ATTEMPTS));
    assert!(why(&world, operator).starts_with("too-many-attempts: "), "{}", why(&world, operator));
}

/// R20: after the fence the move only goes forward, whichever shard is silent.
#[test]
fn a_move_is_not_given_up_after_its_fence() {
    let mut world = World::new();
    let operator = copying(&mut world);
    world.phase(1, operator, OperatorPhase::Fenced);
    for _ in 0..100 {
        world.now_ms += 1000;
        assert!(world.turn().is_empty());
    }
    assert_eq!(world.status(operator), (Step::Switch, Status::Running));
}

/// R23: the destination is gone with its disks; the source has every row and may not serve them.
#[test]
fn what_a_lost_destination_has_not_adopted_is_taken_back() {
    let mut world = World::new();
    let operator = copying(&mut world);
    world.phase(1, operator, OperatorPhase::Fenced);
    world.turn();
    assert_eq!(world.status(operator), (Step::Switch, Status::Running));
    must(&mut world.state, 1, Command::TakeBack(operator));
    assert_eq!(world.expect(1, ControlReply::Done), ControlRequest::TakeBack { operator });
    world.observe(owned_report(1, 0, RangeId(1), 3, KeyInterval::ALL));
    world.turn();
    assert_eq!(world.status(operator), (Step::End, Status::Failed));
    let route = &world.state.ranges[&RangeId(1)].route;
    assert_eq!((route.shard, route.epoch), (ShardId(1), Epoch(3)));
    // It comes back all the same, and says that it has adopted the range.
    let told = report(2, 900, vec![seen(operator, adopted(), None)]);
    let observed = world.load.observe(told, &world.state, &BalancerConfig::default(), world.now_ms);
    assert!(!observed.taken && observed.fault.is_some_and(|fault| fault.what == "lost"));
    let proposal = |command| Proposal { at_ms: 1, since_ms: 0, nonce: 0, command };
    let back = Command::Begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) });
    assert_eq!(apply(&mut world.state, proposal(back)), Err(Refusal::Lost(ShardId(2))));
    let again = Command::AddShard(crate::balancer::testing::shard(2));
    assert_eq!(apply(&mut world.state, proposal(again)), Err(Refusal::Lost(ShardId(2))));
}

#[test]
fn what_was_adopted_is_not_taken_back() {
    let mut world = World::new();
    let operator = copying(&mut world);
    let take_back = Proposal { at_ms: 1, since_ms: 0, nonce: 0, command: Command::TakeBack(OperatorId(1)) };
    assert!(matches!(apply(&mut world.state, take_back), Err(Refusal::NotFenced { .. })), "a table was created");
    world.phase(1, operator, OperatorPhase::Fenced);
    world.turn();
    must(&mut world.state, 1, Command::TakeBack(operator));
    world.expect(1, refused("not-fenced"));
    world.turn();
    assert_eq!(world.status(operator), (Step::Switch, Status::Running));
    assert!(why(&world, operator).contains("because"));
}

/// What the state refuses is refused again: it must not fill the log.
#[test]
fn a_transition_that_is_refused_is_proposed_more_and_more_rarely() {
    let mut world = World::new();
    let operator = copying(&mut world);
    world.phase(2, operator, adopted());
    let mut proposed = 0;
    for _ in 0..120 {
        world.now_ms += 1000;
        let todo = world.controller.next(&world.state, &world.load, world.now_ms);
        proposed += todo.iter().filter(|todo| matches!(todo, Todo::Propose(Command::Advance { .. }))).count();
    }
    assert!((5..=9).contains(&proposed), "{proposed} in two minutes");
}
