//! The promises of the placement state, whatever is proposed.
#![allow(clippy::unwrap_used)]

use super::limits::{MAX_DECISIONS, MAX_ENDED, MAX_LEFT};
use super::*;
use crate::balancer::testing::{key, must, schema, shard, state_with_table};
use crate::coordination;
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::routing::{Route, ShardInfo};
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, RangeId, ShardId, TableId, TableSchema};
use proptest::prelude::*;

fn try_apply(state: &mut PlacementState, at_ms: u64, command: Command) -> Result<Effect, Refusal> {
    apply(state, Proposal { at_ms, since_ms: 0, nonce: 0, command })
}

fn begin(state: &mut PlacementState, action: Action) -> OperatorId {
    match must(state, 5, Command::Begin(action)) {
        Effect::Begun(operators) => operators[0],
        other => panic!("{other:?}"),
    }
}

fn advance(state: &mut PlacementState, operator: OperatorId, from: Step, transition: Transition) -> Effect {
    must(state, 6, Command::Advance { operator, from, transition })
}

fn split(state: &mut PlacementState, range: u64, at: &[i64]) -> OperatorId {
    let at = at.iter().map(|n| key(*n)).collect();
    let operator = begin(state, Action::Split { range: RangeId(range), epoch: None, at });
    advance(state, operator, Step::Apply, Transition::Applied);
    operator
}

fn move_to(state: &mut PlacementState, range: u64, to: u32) -> OperatorId {
    begin(state, Action::Move { range: RangeId(range), epoch: None, to: ShardId(to) })
}

fn adopted(epoch: u64) -> Transition {
    Transition::Adopted { epoch: Epoch(epoch), pause_us: 7000, rows: 10, bytes: 1000 }
}

fn finish_move(state: &mut PlacementState, operator: OperatorId, epoch: u64) {
    for (from, transition) in [
        (Step::Open, Transition::Opened),
        (Step::Copy, adopted(epoch)),
        (Step::Purge, Transition::Purged),
        (Step::Forget, Transition::Forgotten),
    ] {
        advance(state, operator, from, transition);
    }
}

fn create_at(state: &mut PlacementState, shard: u32) -> OperatorId {
    let shard = Some(ShardId(shard));
    match must(state, 2, Command::CreateTable { schema: schema("a"), shard, if_not_exists: false }) {
        Effect::Begun(operators) => operators[0],
        other => panic!("{other:?}"),
    }
}

fn partitioned(state: &PlacementState) -> bool {
    state.tables.values().filter(|table| table.creating.is_none()).all(|table| {
        let parts: Vec<_> = state.ranges_of(table.schema.id).into_iter().map(|r| &r.route.interval).collect();
        KeyInterval::ALL.is_partitioned_by(parts)
    })
}

#[test]
fn a_table_appears_when_its_shard_has_answered_and_goes_if_it_refused() {
    let mut state = PlacementState::default();
    must(&mut state, 1, Command::AddShard(shard(1)));
    let create = |state: &mut PlacementState, if_not_exists| {
        try_apply(state, 2, Command::CreateTable { schema: schema("a"), shard: None, if_not_exists })
    };
    let Ok(Effect::Begun(first)) = create(&mut state, false) else { panic!("not begun") };
    assert!(state.ranges.is_empty(), "published only when the shard has it");
    assert_eq!(create(&mut state, true), Ok(Effect::Begun(first.clone())), "the same operator is waited for");
    assert_eq!(create(&mut state, false), Err(Refusal::TableExists("a".into())));
    advance(&mut state, first[0], Step::Apply, Transition::Refused { reason: "no".into() });
    assert!(state.tables.is_empty());
    let Ok(Effect::Begun(second)) = create(&mut state, false) else { panic!("not begun") };
    let before = state.version.number;
    advance(&mut state, second[0], Step::Apply, Transition::Applied);
    assert_eq!(create(&mut state, true), Ok(Effect::TableReady(TableId(2))), "ids are never reused");
    assert_eq!(state.version.number, before + 1);
    assert!(partitioned(&state));
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let mut state = state_with_table(1);
    let mut refused = |change: fn(&mut TableSchema)| {
        let mut schema = schema("x");
        change(&mut schema);
        try_apply(&mut state, 1, Command::CreateTable { schema, shard: None, if_not_exists: false }).unwrap_err()
    };
    for change in [
        (|s| s.name.clear()) as fn(&mut TableSchema),
        |s| s.columns.clear(),
        |s| s.key.clear(),
        |s| s.key = vec![3],
        |s| s.key = vec![0, 0],
        |s| s.columns[0].type_oid = 1700,
        |s| s.columns.push(s.columns[0].clone()),
    ] {
        assert!(matches!(refused(change), Refusal::InvalidTable(_)));
    }
}

#[test]
fn a_split_publishes_its_pieces_at_once_and_a_merge_joins_them() {
    let mut state = state_with_table(2);
    split(&mut state, 1, &[10, 20]);
    let epochs: Vec<_> = state.ranges.values().map(|r| (r.route.range.0, r.route.epoch.0)).collect();
    assert_eq!(epochs, [(1, 2), (2, 2), (3, 2)]);
    let operator = begin(&mut state, Action::Merge { left: (RangeId(2), Epoch(2)), right: (RangeId(3), Epoch(2)) });
    advance(&mut state, operator, Step::Apply, Transition::Applied);
    assert_eq!(state.ranges.len(), 2);
    assert_eq!(state.ranges[&RangeId(2)].route.interval, KeyInterval::new(key(10), None));
    assert_eq!(state.ranges[&RangeId(2)].route.epoch, Epoch(3));
    assert!(partitioned(&state));
    let apart = Action::Merge { left: (RangeId(2), Epoch(3)), right: (RangeId(1), Epoch(2)) };
    assert!(matches!(try_apply(&mut state, 1, Command::Begin(apart)), Err(Refusal::NotNeighbours(..))));
}

#[test]
fn bad_splits_are_refused() {
    let mut state = state_with_table(1);
    split(&mut state, 1, &[10, 20]);
    let mut refused = |at: Vec<Key>| {
        let action = Action::Split { range: RangeId(2), epoch: None, at };
        try_apply(&mut state, 1, Command::Begin(action)).unwrap_err()
    };
    for at in [vec![], vec![key(10)], vec![key(20)], vec![key(5)], vec![key(15), key(15)], vec![key(16), key(15)]] {
        assert!(matches!(refused(at), Refusal::BadSplit(_)));
    }
}

#[test]
fn one_operator_at_a_time_works_on_a_range() {
    let mut state = state_with_table(2);
    let operator = move_to(&mut state, 1, 2);
    for action in [
        Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) },
        Action::Split { range: RangeId(1), epoch: None, at: vec![key(1)] },
    ] {
        let refusal = try_apply(&mut state, 1, Command::Begin(action)).unwrap_err();
        assert_eq!(refusal, Refusal::RangeBusy { range: RangeId(1), operator });
    }
    finish_move(&mut state, operator, 2);
    assert_eq!(state.operators[&operator].status, Status::Done);
    assert_eq!(state.ranges[&RangeId(1)].route.shard, ShardId(2));
    assert_eq!(state.ranges[&RangeId(1)].left_at_ms(ShardId(1)), Some(6));
    let same = Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) };
    assert!(matches!(try_apply(&mut state, 1, Command::Begin(same)), Err(Refusal::SameShard { .. })));
    assert_eq!(move_to(&mut state, 1, 1).0, operator.0 + 1, "numbers only grow (R20)");
}

#[test]
fn the_route_is_published_with_the_adoption() {
    let mut state = state_with_table(2);
    let operator = move_to(&mut state, 1, 2);
    advance(&mut state, operator, Step::Open, Transition::Opened);
    advance(&mut state, operator, Step::Copy, Transition::Fenced);
    assert_eq!(state.ranges[&RangeId(1)].route.shard, ShardId(1), "the fence is no adoption");
    advance(&mut state, operator, Step::Switch, adopted(2));
    assert_eq!(state.ranges[&RangeId(1)].route.shard, ShardId(2));
    let again = Command::Advance { operator, from: Step::Switch, transition: adopted(2) };
    assert!(matches!(try_apply(&mut state, 1, again), Err(Refusal::OtherStep { .. })), "each transition once");
}

#[test]
fn a_cancelled_move_leaves_everything_as_it_was() {
    let mut state = state_with_table(2);
    let before = state.ranges[&RangeId(1)].clone();
    let operator = move_to(&mut state, 1, 2);
    advance(&mut state, operator, Step::Open, Transition::Opened);
    assert_eq!(must(&mut state, 7, Command::Cancel(operator)), Effect::Applied);
    assert_eq!(must(&mut state, 7, Command::Cancel(operator)), Effect::Unchanged);
    assert_eq!(state.operators[&operator].status, Status::Cancelling, "R20: the source's log has not said so yet");
    advance(&mut state, operator, Step::Cancel, Transition::CancelledAtSource);
    advance(&mut state, operator, Step::Discard, Transition::Discarded);
    assert_eq!(state.operators[&operator].status, Status::Cancelled);
    assert_eq!(Range { failures: before.failures, ..state.ranges[&RangeId(1)].clone() }, before);
}

/// R20: the fence came first; the move goes forward and cannot be cancelled any more.
#[test]
fn a_cancellation_that_comes_too_late_goes_forward() {
    let mut state = state_with_table(2);
    let operator = move_to(&mut state, 1, 2);
    advance(&mut state, operator, Step::Open, Transition::Opened);
    must(&mut state, 7, Command::Cancel(operator));
    advance(&mut state, operator, Step::Cancel, Transition::TooLateToCancel);
    assert_eq!(state.operators[&operator].status, Status::Running);
    assert!(matches!(try_apply(&mut state, 1, Command::Cancel(operator)), Err(Refusal::NotCancellable { .. })));
    advance(&mut state, operator, Step::Switch, adopted(2));
    assert_eq!(state.ranges[&RangeId(1)].route.shard, ShardId(2));
}

#[test]
fn a_declined_move_fails_and_the_source_keeps_the_range_at_a_higher_epoch() {
    let mut state = state_with_table(2);
    let operator = move_to(&mut state, 1, 2);
    advance(&mut state, operator, Step::Open, Transition::Opened);
    advance(&mut state, operator, Step::Copy, Transition::Declined);
    advance(&mut state, operator, Step::Restore, Transition::TakenBack { epoch: Epoch(3) });
    let range = &state.ranges[&RangeId(1)];
    assert_eq!((range.route.shard, range.route.epoch, range.operator), (ShardId(1), Epoch(3), None));
    assert_eq!(state.operators[&operator].status, Status::Failed);
}

#[test]
fn a_shard_is_removed_only_when_empty_and_never_the_last() {
    let mut state = state_with_table(2);
    assert_eq!(try_apply(&mut state, 1, Command::RemoveShard(ShardId(1))), Err(Refusal::NotEmpty(ShardId(1))));
    must(&mut state, 1, Command::DrainShard(ShardId(1)));
    assert_eq!(try_apply(&mut state, 1, Command::DrainShard(ShardId(2))), Err(Refusal::LastShard(ShardId(2))));
    assert_eq!(try_apply(&mut state, 1, Command::RemoveShard(ShardId(1))), Err(Refusal::NotEmpty(ShardId(1))));
    let operator = move_to(&mut state, 1, 2);
    finish_move(&mut state, operator, 2);
    let back = Action::Move { range: RangeId(1), epoch: None, to: ShardId(1) };
    assert_eq!(try_apply(&mut state, 1, Command::Begin(back)), Err(Refusal::Draining(ShardId(1))));
    must(&mut state, 1, Command::RemoveShard(ShardId(1)));
    assert_eq!(state.changes.since(state.version.number - 1, state.version.number).unwrap().removed_shards.len(), 1);
    assert_eq!(must(&mut state, 1, Command::AddShard(shard(2))), Effect::Unchanged);
}

#[test]
fn adding_a_shard_again_does_not_end_its_drain() {
    let mut state = state_with_table(2);
    must(&mut state, 1, Command::DrainShard(ShardId(2)));
    assert_eq!(must(&mut state, 1, Command::AddShard(shard(2))), Effect::Unchanged);
    let elsewhere = ShardInfo { replicas: shard(3).replicas, ..shard(2) };
    assert_eq!(must(&mut state, 1, Command::AddShard(elsewhere.clone())), Effect::Applied);
    assert_eq!(state.shards[&ShardId(2)], Shard { info: elsewhere, epoch: 0, draining: true, lost: false });
    assert_eq!(must(&mut state, 1, Command::UndrainShard(ShardId(2))), Effect::Applied);
    assert_eq!(try_apply(&mut state, 1, Command::UndrainShard(ShardId(2))), Err(Refusal::NotDraining(ShardId(2))));
    assert!(!state.shards[&ShardId(2)].draining);
    let unknown = try_apply(&mut state, 1, Command::UndrainShard(ShardId(9)));
    assert_eq!(unknown, Err(Refusal::UnknownShard(ShardId(9))));
}

#[test]
fn what_a_drain_was_moving_away_stays_when_the_shard_is_taken_back() {
    let mut state = state_with_table(2);
    split(&mut state, 1, &[10]);
    must(&mut state, 1, Command::DrainShard(ShardId(1)));
    let asked = move_to(&mut state, 1, 2);
    let action = Action::Move { range: RangeId(2), epoch: None, to: ShardId(2) };
    let decided = NewDecision {
        why: "drain".into(),
        imbalance_before: 1.0,
        imbalance_expected: 1.0,
        alternatives: Vec::new(),
        actions: vec![action],
    };
    let Effect::Begun(drained) = must(&mut state, 1, Command::Decide(Box::new(decided))) else { panic!("not begun") };
    must(&mut state, 1, Command::UndrainShard(ShardId(1)));
    assert_eq!(state.operators[&asked].status, Status::Running, "a person has asked for it");
    let cancelled = &state.operators[&drained[0]];
    assert_eq!((cancelled.step, cancelled.status), (Step::Cancel, Status::Cancelling));
    assert!(cancelled.detail.as_ref().unwrap().contains("no longer being drained"));
}

/// The copy that a cancelled move leaves at its destination serves nobody: the range is free once
/// the source has cancelled (R20).
#[test]
fn a_range_is_free_once_its_source_has_cancelled() {
    let mut state = state_with_table(3);
    let operator = move_to(&mut state, 1, 2);
    advance(&mut state, operator, Step::Open, Transition::GiveUp { reason: "silent".into() });
    assert_eq!(state.ranges[&RangeId(1)].operator, Some(operator), "the source's log decides");
    advance(&mut state, operator, Step::Cancel, Transition::CancelledAtSource);
    assert_eq!(state.ranges[&RangeId(1)].operator, None);
    let next = move_to(&mut state, 1, 3);
    advance(&mut state, operator, Step::Discard, Transition::Discarded);
    assert_eq!(state.operators[&operator].status, Status::Failed);
    assert_eq!(state.ranges[&RangeId(1)].operator, Some(next), "the other operator has nothing to unlock any more");
}

#[test]
fn a_range_is_left_alone_for_longer_after_each_failure() {
    let mut state = state_with_table(2);
    let fail = |state: &mut PlacementState, transition| {
        let operator = move_to(state, 1, 2);
        advance(state, operator, Step::Open, transition);
        state.ranges[&RangeId(1)].failures
    };
    let refused = || Transition::Refused { reason: "no".into() };
    let waits: Vec<u64> = (0..9)
        .map(|_| {
            let failures = fail(&mut state, refused());
            failures.until_ms(10_000).unwrap() - failures.last_ms
        })
        .collect();
    assert_eq!(waits, [10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 600_000, 600_000, 600_000]);
    let operator = move_to(&mut state, 1, 2);
    finish_move(&mut state, operator, 2);
    assert_eq!(state.ranges[&RangeId(1)].failures, Failures::default(), "what worked is forgiven");
    assert_eq!(Failures::default().until_ms(10_000), None);
}

/// Wall clocks can be set wrong: decisions depend on the time for which leaders have led, which
/// cannot be set.
#[test]
fn a_leader_whose_clock_is_an_hour_off_changes_no_times_that_decide() {
    let mut state = state_with_table(2);
    let at = |state: &mut PlacementState, at_ms, since_ms, command| {
        assert!(apply(state, Proposal { at_ms, since_ms, nonce: 0, command }).is_ok());
    };
    let began = state.time_ms();
    let action = Action::Split { range: RangeId(1), epoch: None, at: vec![key(10)] };
    at(&mut state, 7_200_000, 500, Command::Begin(action));
    let operator = state.running().next().unwrap().id;
    let applied = Command::Advance { operator, from: Step::Apply, transition: Transition::Applied };
    at(&mut state, 7_200_100, 100, applied);
    let action = Action::Move { range: RangeId(2), epoch: None, to: ShardId(2) };
    at(&mut state, 3_600_000, 50, Command::Begin(action));
    let operator = state.running().next().unwrap().id;
    let adopted = Command::Advance { operator, from: Step::Open, transition: adopted(3) };
    at(&mut state, 3_600_100, 100, adopted);
    let moved = &state.ranges[&RangeId(2)];
    assert_eq!(moved.bounds_since_ms, began + 600);
    assert_eq!(moved.left_at_ms(ShardId(1)), Some(began + 750));
    assert_eq!(state.operators[&operator].began_ms, began + 650);
    assert_eq!(state.operators[&operator].created_ms, 3_600_000, "people are shown the clock");
}

#[test]
fn refusals_name_keys_and_steps_as_people_know_them() {
    let mut state = state_with_table(2);
    let operator = split(&mut state, 1, &[10]);
    let refusal = |state: &mut PlacementState, command| try_apply(state, 1, command).unwrap_err().to_string();
    let outside = Command::Begin(Action::Split { range: RangeId(1), epoch: None, at: vec![key(100)] });
    assert_eq!(refusal(&mut state, outside), "100 is not strictly inside [-∞, 10)");
    assert_eq!(refusal(&mut state, Command::Cancel(operator)), "operator 2 is over already: done");
    let late = Command::Advance { operator, from: Step::Apply, transition: Transition::Applied };
    assert_eq!(refusal(&mut state, late), "operator 2 is at step done");
}

/// R20, for a table: nothing is known of it before its shard has answered. A shard that owns
/// nothing may not even be there.
#[test]
fn the_creation_of_a_table_can_be_cancelled_where_nothing_is() {
    let mut state = state_with_table(2);
    let operator = create_at(&mut state, 2);
    assert_eq!(must(&mut state, 3, Command::Cancel(operator)), Effect::Applied);
    assert_eq!(state.operators[&operator].status, Status::Cancelled);
    assert!(state.table_named("a").is_none(), "the name is free");
    let late = Command::Advance { operator, from: Step::Apply, transition: Transition::Applied };
    assert!(
        matches!(try_apply(&mut state, 4, late), Err(Refusal::OtherStep { .. })),
        "an answer that comes late is rejected"
    );
    assert!(matches!(try_apply(&mut state, 4, Command::Cancel(operator)), Err(Refusal::AlreadyOver { .. })));
    let operator = create_at(&mut state, 1);
    let refused = try_apply(&mut state, 5, Command::Cancel(operator));
    assert!(matches!(refused, Err(Refusal::NotCancellable { .. })), "a shard that owns something will answer");
}

/// Invariant 6: the shards' logs are the authority. Only later routes count, and never with a gap.
#[test]
fn later_routes_are_taken_in_and_nothing_else() {
    let mut state = state_with_table(2);
    split(&mut state, 1, &[10]);
    let route = |range: u64, epoch: u64, start: Option<i64>, end: Option<i64>, shard: u32| Route {
        range: RangeId(range),
        epoch: Epoch(epoch),
        table: TableId(1),
        interval: KeyInterval::new(start.map_or(Key::MIN, key), end.map(key)),
        shard: ShardId(shard),
    };
    let mut take = |routes: Vec<Route>| try_apply(&mut state, 9, Command::TakeRoutes(routes));
    assert!(matches!(take(vec![route(1, 1, None, Some(10), 2)]), Err(Refusal::BadRoutes(_))), "earlier");
    assert!(matches!(take(vec![route(1, 3, None, Some(5), 2)]), Err(Refusal::BadRoutes(_))), "a gap");
    assert!(matches!(take(vec![route(9, 3, None, Some(10), 2)]), Err(Refusal::UnknownRange(_))), "an id not given out");
    assert_eq!(take(vec![route(1, 3, None, Some(10), 2)]), Ok(Effect::Applied));
    assert_eq!(take(vec![route(1, 4, None, None, 2)]), Ok(Effect::Applied), "a merge elsewhere");
    assert_eq!(state.ranges.len(), 1);
    assert!(partitioned(&state));
}

/// R30: a state restored from a backup gives no numbers until the shards have reported, and then
/// none that they have seen.
#[test]
fn a_restored_state_allocates_nothing_before_it_is_reconciled() {
    let mut state = state_with_table(2);
    must(&mut state, 1, Command::BeginIncarnation(7));
    assert_eq!(state.version.generation(), 7);
    let action = Action::Split { range: RangeId(1), epoch: None, at: vec![key(1)] };
    assert_eq!(try_apply(&mut state, 1, Command::Begin(action.clone())), Err(Refusal::Restoring));
    assert!(
        state.changes.since(state.version.number - 1, state.version.number).is_none(),
        "versions of two incarnations cannot be compared"
    );
    let highest = HighestNumbers { range: RangeId(40), operator: OperatorId(70), table: TableId(3) };
    must(&mut state, 1, Command::Reconciled(Box::new(Found { highest, ..Found::default() })));
    let operator = begin(&mut state, action);
    assert_eq!(operator, OperatorId(71));
    advance(&mut state, operator, Step::Apply, Transition::Applied);
    assert!(state.ranges.contains_key(&RangeId(41)));
}

/// A cluster that was founded again begins to count again: its versions must not look like those of
/// before.
#[test]
fn versions_of_clusters_that_were_founded_apart_are_never_alike() {
    let founded = |cluster| {
        let mut state = state_with_table(2);
        must(&mut state, 1, Command::NameCluster(cluster));
        state
    };
    let (mut before, again) = (founded(7), founded(8));
    assert_eq!(before.version.number, again.version.number);
    assert_ne!(before.version.incarnation, again.version.incarnation);
    assert!(
        before.changes.since(0, before.version.number).is_none(),
        "a table served without the number is sent whole"
    );
    assert_eq!(must(&mut before, 1, Command::NameCluster(9)), Effect::Unchanged, "for life");
    must(&mut before, 1, Command::BeginIncarnation(2));
    assert_eq!((before.version.cluster(), before.version.generation()), (7, 2));
    assert_eq!(must(&mut before, 1, Command::BeginIncarnation(2)), Effect::Unchanged);
}

#[test]
fn a_decision_notes_what_came_of_it() {
    let mut state = state_with_table(2);
    split(&mut state, 1, &[10]);
    let action = |range: u64| Action::Move { range: RangeId(range), epoch: None, to: ShardId(2) };
    let decision = NewDecision {
        why: "w".into(),
        imbalance_before: 2.0,
        imbalance_expected: 1.0,
        alternatives: vec![],
        actions: vec![action(1), action(77)],
    };
    let Effect::Begun(operators) = must(&mut state, 5, Command::Decide(Box::new(decision))) else { panic!() };
    assert_eq!(operators.len(), 1, "impossible actions are left out");
    finish_move(&mut state, operators[0], 3);
    let outcome = state.decisions[0].outcome.clone().unwrap();
    assert!(outcome.starts_with("1 of 1 done after") && outcome.contains("1000 bytes"), "{outcome}");
}

#[test]
fn histories_are_bounded() {
    let mut state = state_with_table(2);
    for round in 0..(MAX_ENDED as u64 + 50) {
        let to = if round % 2 == 0 { 2 } else { 1 };
        let decision = NewDecision {
            why: String::new(),
            imbalance_before: 1.0,
            imbalance_expected: 1.0,
            alternatives: vec![],
            actions: vec![Action::Move { range: RangeId(1), epoch: None, to: ShardId(to) }],
        };
        let Effect::Begun(operators) = must(&mut state, round, Command::Decide(Box::new(decision))) else { panic!() };
        finish_move(&mut state, operators[0], round + 2);
    }
    assert_eq!(state.operators.len(), MAX_ENDED);
    assert_eq!(state.decisions.len(), MAX_DECISIONS);
    assert!(state.ranges[&RangeId(1)].left.len() <= MAX_LEFT);
}

#[derive(Debug, Clone)]
enum Wild {
    Split(u64, Vec<i64>),
    Move(u64, u32),
    Merge(u64, u64),
    Advance(u64, usize),
    Cancel(u64),
    Drain(u32),
    Routes(Vec<(u64, u64, i64, i64, u32)>),
}

fn wild() -> impl Strategy<Value = Wild> {
    let range = 1u64..8;
    prop_oneof![
        (range.clone(), proptest::collection::vec(0i64..40, 1..4)).prop_map(|(r, at)| Wild::Split(r, at)),
        (range.clone(), 1u32..4).prop_map(|(r, to)| Wild::Move(r, to)),
        (range.clone(), range.clone()).prop_map(|(a, b)| Wild::Merge(a, b)),
        (1u64..20, 0usize..14).prop_map(|(o, t)| Wild::Advance(o, t)),
        (1u64..20, 0usize..14).prop_map(|(o, t)| Wild::Advance(o, t)),
        (1u64..20).prop_map(Wild::Cancel),
        (1u32..4).prop_map(Wild::Drain),
        proptest::collection::vec((range, 1u64..6, 0i64..40, 0i64..40, 1u32..4), 1..3).prop_map(Wild::Routes),
    ]
}

fn command(state: &PlacementState, wild: Wild) -> Option<Command> {
    let epoch = |range: u64| state.ranges.get(&RangeId(range)).map(|r| r.route.epoch);
    Some(match wild {
        Wild::Split(range, at) => {
            let at = at.into_iter().map(key).collect();
            Command::Begin(Action::Split { range: RangeId(range), epoch: None, at })
        }
        Wild::Move(range, to) => Command::Begin(Action::Move { range: RangeId(range), epoch: None, to: ShardId(to) }),
        Wild::Merge(a, b) => {
            Command::Begin(Action::Merge { left: (RangeId(a), epoch(a)?), right: (RangeId(b), epoch(b)?) })
        }
        Wild::Advance(operator, which) => {
            let operator = state.operators.get(&OperatorId(operator))?;
            let next = match operator.work {
                Work::Move { epoch, .. } => epoch.0 + 1,
                _ => 0,
            };
            let transitions = [
                Transition::Applied,
                Transition::Refused { reason: String::new() },
                Transition::Opened,
                Transition::Fenced,
                adopted(next),
                Transition::Declined,
                Transition::TakenBack { epoch: Epoch(next + 1) },
                Transition::GiveUp { reason: String::new() },
                Transition::TooLateToCancel,
                Transition::CancelledAtSource,
                Transition::Discarded,
                Transition::Differs { detail: String::new() },
                Transition::Purged,
                Transition::Forgotten,
            ];
            Command::Advance { operator: operator.id, from: operator.step, transition: transitions[which].clone() }
        }
        Wild::Cancel(operator) => Command::Cancel(OperatorId(operator)),
        Wild::Drain(id) => Command::DrainShard(ShardId(id)),
        Wild::Routes(routes) => Command::TakeRoutes(
            routes
                .into_iter()
                .map(|(range, epoch, start, end, shard)| Route {
                    range: RangeId(range),
                    epoch: Epoch(epoch),
                    table: TableId(1),
                    interval: KeyInterval::new(
                        if start == 0 { Key::MIN } else { key(start) },
                        (end != 0).then(|| key(end)),
                    ),
                    shard: ShardId(shard),
                })
                .collect(),
        ),
    })
}

/// The coordination store recognises repetitions for a time that has passed, not by a leader's wall
/// clock.
#[test]
fn a_clock_that_is_set_wrong_forgets_nothing() {
    let mut state = state_with_table(1);
    let put = || {
        let action = coordination::WriteAction::Put { value: "1".into(), content_type: "text/plain".into() };
        let request = coordination::Request {
            key: "k".into(),
            expect: coordination::Expect::Absent,
            action,
            id: Some("a".into()),
        };
        Command::Kv(Box::new(request))
    };
    let apply = |state: &mut PlacementState, at_ms, since_ms| {
        super::apply(state, Proposal { at_ms, since_ms, nonce: 0, command: put() })
    };
    let written = apply(&mut state, 1, 0).unwrap();
    assert_eq!(
        apply(&mut state, 100 * coordination::REMEMBER_MS, 0),
        Ok(written.clone()),
        "the next leader's clock is ahead"
    );
    assert_eq!(apply(&mut state, 2, coordination::REMEMBER_MS - 1), Ok(written));
    assert!(apply(&mut state, 3, 1).is_err(), "the time is over, and the key is there");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Whatever is proposed: no gap, no overlap, epochs only grow per key, a refusal changes
    /// nothing, the state survives its encoding.
    #[test]
    fn nothing_proposed_breaks_the_table(wilds in proptest::collection::vec(wild(), 1..60)) {
        let mut state = state_with_table(3);
        for (at, wild) in wilds.into_iter().enumerate() {
            let Some(command) = command(&state, wild) else { continue };
            let before = state.clone();
            let result = try_apply(&mut state, at as u64, command);
            if result.is_err() {
                prop_assert_eq!(&state, &before);
            }
            prop_assert!(partitioned(&state));
            for n in (0..40).map(key).chain([Key::MIN]) {
                let epoch = |state: &PlacementState| {
                    state.ranges.values().find(|r| r.route.interval.contains(&n)).map(|r| r.route.epoch)
                };
                prop_assert!(epoch(&before) <= epoch(&state));
            }
            for range in state.ranges.values() {
                let holder = range.operator.map(|id| &state.operators[&id]);
                prop_assert!(holder.is_none_or(|o| !o.status.is_over() && o.work.ranges().contains(&range.route.range)));
            }
        }
        let encoded = postcard::to_stdvec(&state).unwrap();
        prop_assert_eq!(postcard::from_bytes::<PlacementState>(&encoded).unwrap(), state);
    }
}
