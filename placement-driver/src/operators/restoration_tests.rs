//! A state from an old copy, and shards that are further (R30).
#![allow(clippy::unwrap_used)]

use super::testing::{owned_report, report};
use super::*;
use crate::balancer::testing::{key, must, schema, state_with_table};
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::state::{
    Action, Command, Effect, Found, PlacementState, Proposal, Refusal, SKIPPED_NUMBERS, Status, Step, Transition, apply,
};
use evenkeel_protocol::report::{HighestNumbers, OperatorPhase, OperatorReport, ShardReport};
use evenkeel_protocol::schema_change::{SchemaChange, SchemaDelta, SchemaReport};
use evenkeel_protocol::shard::ControlRequest;
use evenkeel_protocol::{Epoch, KeyInterval, OperatorId, RangeId, ShardId, TableId, TableSchema};

/// A state as a copy has it: three shards, one table, one operator so far. And a leadership that
/// has just begun on it.
struct Restored {
    state: PlacementState,
    load: LoadModel,
    now_ms: u64,
    sequence: u64,
}

impl Restored {
    fn new() -> Restored {
        let mut restored =
            Restored { state: state_with_table(3), load: LoadModel::default(), now_ms: 1000, sequence: 0 };
        restored.update();
        restored
    }

    fn update(&mut self) {
        self.load.update(&self.state, &BalancerConfig::default(), self.now_ms);
    }

    fn hear(&mut self, report: ShardReport) {
        self.sequence += 1;
        self.now_ms += 10;
        let report = ShardReport { sequence: self.sequence, ..report };
        self.load.observe(report, &self.state, &BalancerConfig::default(), self.now_ms);
        self.update();
    }

    fn next(&self) -> Option<Command> {
        take_in(&self.state, &self.load, self.now_ms)
    }

    /// Applies the command that takes in what the state lacks.
    fn take(&mut self) -> Command {
        let command = self.next().unwrap();
        must(&mut self.state, self.now_ms, command.clone());
        self.update();
        command
    }

    fn begin(&mut self, action: Action) -> Result<OperatorId, Refusal> {
        let command = Command::Begin(action);
        match apply(&mut self.state, Proposal { at_ms: self.now_ms, since_ms: 0, nonce: 0, command })? {
            Effect::Begun(operators) => Ok(operators[0]),
            other => panic!("{other:?}"),
        }
    }
}

fn table(id: u32, name: &str) -> TableSchema {
    TableSchema { id: TableId(id), ..schema(name) }
}

/// A shard that has seen these numbers and has these tables.
fn with(report: ShardReport, operator: u64, range: u64, tables: Vec<TableSchema>) -> ShardReport {
    let table = tables.iter().map(|table| table.id).max().unwrap_or_default();
    let highest = HighestNumbers { operator: OperatorId(operator), range: RangeId(range), table };
    ShardReport { highest, tables: Some(tables), ..report }
}

fn split(range: u64) -> Action {
    Action::Split { range: RangeId(range), epoch: None, at: vec![key(7)] }
}

/// The schedule of the finding: numbers were given after the copy was taken, and their operators
/// have ended.
#[test]
fn numbers_go_on_above_what_any_shard_has_seen() {
    let mut restored = Restored::new();
    restored.hear(with(owned_report(1, 0, RangeId(1), 9, KeyInterval::ALL), 150, 40, vec![table(1, "t")]));
    // The state was not declared an old copy: the report shows that it is.
    assert_eq!(restored.take(), Command::BeginIncarnation(2));
    assert_eq!(restored.begin(split(1)), Err(Refusal::Restoring));
    restored.hear(with(report(2, 0, vec![]), 160, 30, vec![table(1, "t")]));
    assert_eq!(restored.next(), None, "shard 3 may have seen more");
    restored.hear(report(3, 0, vec![]));
    assert_eq!(restored.next(), None, "it has not said which tables it has");
    restored.hear(with(report(3, 0, vec![]), 0, 0, vec![]));
    assert!(matches!(restored.take(), Command::Reconciled(_)));
    assert_eq!(restored.state.ranges[&RangeId(1)].route.epoch, Epoch(9));
    let operator = restored.begin(split(1)).unwrap();
    assert_eq!(operator, OperatorId(161));
    must(&mut restored.state, 1, Command::Advance { operator, from: Step::Apply, transition: Transition::Applied });
    assert_eq!(restored.state.ranges[&RangeId(41)].route.epoch, Epoch(10));
}

#[test]
fn tables_that_only_shards_know_are_taken_in() {
    let mut restored = Restored::new();
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    let whole = owned_report(1, 0, RangeId(1), 1, KeyInterval::ALL);
    restored.hear(with(whole, 9, 9, vec![table(1, "t")]));
    let mut of = owned_report(2, 0, RangeId(5), 3, KeyInterval::new(Default::default(), Some(key(5))));
    of.ranges[0].table = TableId(7);
    restored.hear(with(of.clone(), 9, 9, vec![table(7, "u"), table(8, "t")]));
    restored.hear(with(report(3, 0, vec![]), 9, 9, vec![]));
    assert_eq!(restored.next(), None, "the rest of table 7 is on its way between two shards");
    let missing = |restored: &Restored| missing(&restored.state, &restored.load).join("; ");
    assert!(missing(&restored).contains("not all keys of table 7"), "{}", missing(&restored));
    of.ranges.push({
        let mut right = of.ranges[0].clone();
        (right.id, right.interval) = (RangeId(6), KeyInterval::new(key(5), None));
        right
    });
    restored.hear(with(of, 9, 9, vec![table(7, "u"), table(8, "t")]));
    restored.take();
    let taken = restored.state.table_named("u").unwrap();
    assert_eq!((taken.schema.id, taken.creating), (TableId(7), None));
    assert_eq!(restored.state.ranges[&RangeId(6)].route.shard, ShardId(2));
    // Of two tables of one name one stays outside, and that is said.
    assert!(missing(&restored).contains("the name is taken by table 1"), "{}", missing(&restored));
    assert_eq!(restored.next(), None);
}

#[test]
fn a_silent_shard_is_waited_for_and_then_numbers_are_left_out() {
    let mut restored = Restored::new();
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    let whole = owned_report(1, 0, RangeId(1), 1, KeyInterval::ALL);
    restored.hear(with(whole, 9, 9, vec![table(1, "t")]));
    restored.hear(with(report(2, 0, vec![]), 9, 9, vec![]));
    restored.now_ms = 1000 + GRACE_MS - 1;
    assert_eq!(restored.next(), None);
    restored.now_ms += 1;
    restored.take();
    assert_eq!(restored.state.next_operator(), OperatorId(10 + SKIPPED_NUMBERS));
    // It comes after all, with numbers and a table of its own.
    let mut late = owned_report(3, 0, RangeId(50), 2, KeyInterval::ALL);
    late.ranges[0].table = TableId(4);
    restored.hear(with(late, 60, 50, vec![table(4, "late")]));
    assert!(matches!(restored.take(), Command::TakeTables { .. }));
    assert_eq!(restored.state.ranges[&RangeId(50)].route.shard, ShardId(3));
    assert_eq!(restored.next(), None);
}

#[test]
fn a_shard_that_is_not_registered_is_waited_for_if_it_owns_something() {
    let mut restored = Restored::new();
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    restored.hear(with(owned_report(1, 0, RangeId(1), 1, KeyInterval::ALL), 9, 9, vec![table(1, "t")]));
    for shard in [2, 3, 8] {
        restored.hear(with(report(shard, 0, vec![]), 9, 9, vec![]));
    }
    assert!(restored.next().is_some(), "shard 8 was removed, say: it has nothing");
    let mut left = owned_report(9, 0, RangeId(3), 2, KeyInterval::ALL);
    left.ranges[0].table = TableId(4);
    restored.hear(with(left, 300, 9, vec![table(4, "u")]));
    assert_eq!(restored.next(), None);
    assert!(missing(&restored.state, &restored.load)[0].contains("shard 9 owns ranges"));
    restored.now_ms = 1000 + GRACE_MS;
    restored.take();
    assert_eq!(restored.state.next_operator(), OperatorId(301 + SKIPPED_NUMBERS), "its numbers count");
}

/// A shard of another cluster is registered here by mistake.
#[test]
fn other_tables_of_the_same_number_are_left_out() {
    let mut restored = Restored::new();
    let foreign = owned_report(2, 0, RangeId(1), 3, KeyInterval::ALL);
    restored.hear(with(foreign, 900, 900, vec![table(1, "another")]));
    assert_eq!(restored.next(), None);
    assert_eq!(restored.state.ranges[&RangeId(1)].route.shard, ShardId(1));
    assert!(missing(&restored.state, &restored.load)[0].contains("another table 1"));
}

/// The report of shard 1 after range 1 was split there at epoch 5, later than the copy.
fn range_1_was_split() -> ShardReport {
    let mut report = owned_report(1, 0, RangeId(1), 5, KeyInterval::new(Default::default(), Some(key(5))));
    let mut right = report.ranges[0].clone();
    (right.id, right.interval) = (RangeId(2), KeyInterval::new(key(5), None));
    report.ranges.push(right);
    with(report, 150, 40, vec![table(1, "t")])
}

/// In the copy an operator was under way that has ended long ago; its range has gone on.
#[test]
fn an_operator_of_the_copy_changes_nothing_that_came_after_it() {
    let mut restored = Restored::new();
    let operator = restored.begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) }).unwrap();
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    restored.hear(range_1_was_split());
    // Destination of the same number, of another range; and of this one.
    let adopted = OperatorPhase::Adopted { epoch: Epoch(2), pause_us: 1, rows: 1, bytes: 1 };
    let told = |range| OperatorReport { operator, range: RangeId(range), phase: adopted.clone(), progress: None };
    restored.hear(with(report(3, 0, vec![]), 0, 0, vec![]));
    restored.hear(with(report(2, 0, vec![told(7)]), 150, 40, vec![table(1, "t")]));
    restored.take();
    let mut controller = OperatorController::default();
    let proposes = |todo: Vec<Todo>| todo.into_iter().find(|todo| matches!(todo, Todo::Propose(_)));
    assert_eq!(proposes(controller.next(&restored.state, &restored.load, restored.now_ms)), None);
    restored.hear(with(report(2, 0, vec![told(1)]), 150, 40, vec![table(1, "t")]));
    let Some(Todo::Propose(command)) = proposes(controller.next(&restored.state, &restored.load, restored.now_ms))
    else {
        panic!("nothing is proposed");
    };
    must(&mut restored.state, 1, command);
    assert_eq!(restored.state.operators[&operator].step, Step::Purge);
    assert_eq!(restored.state.ranges[&RangeId(1)].route.epoch, Epoch(5));
    assert_eq!(restored.state.ranges[&RangeId(1)].operator, None);
    assert_eq!(restored.state.operators[&operator].status, Status::Running);
}

/// A source that owns the range's number at a later epoch, but other keys, has not taken it back:
/// it was split behind the copy.
#[test]
fn a_range_that_was_split_since_was_not_taken_back() {
    let mut restored = Restored::new();
    let operator = restored.begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) }).unwrap();
    let opened = Command::Advance { operator, from: Step::Open, transition: Transition::Opened };
    must(&mut restored.state, 1, opened);
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    restored.hear(range_1_was_split());
    let mut controller = OperatorController::default();
    let proposed = controller.next(&restored.state, &restored.load, restored.now_ms);
    assert!(!proposed.iter().any(|todo| matches!(todo, Todo::Propose(_))), "{proposed:?}");
}

/// What a shard says of a move that no placement driver remembers.
fn told(operator: u64, phase: OperatorPhase) -> OperatorReport {
    OperatorReport { operator: OperatorId(operator), range: RangeId(1), phase, progress: None }
}

fn sweeps(restored: &Restored, controller: &mut OperatorController) -> Vec<(ShardId, ControlRequest)> {
    let todo = controller.next(&restored.state, &restored.load, restored.now_ms);
    todo.into_iter()
        .filter_map(|todo| if let Todo::Call { name, request } = todo { Some((name.shard, request)) } else { None })
        .collect()
}

/// S3: breaks if a destination is asked to discard a move that its source has fenced: nobody would
/// own the range. R20: the source's log decides.
#[test]
fn what_a_forgotten_move_brings_in_stays_until_its_source_has_cancelled_it() {
    let mut restored = Restored::new();
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    let incoming = || told(5, OperatorPhase::CatchingUp { attempt: 1, lag: 0, bytes: 0 });
    restored.hear(with(report(2, 0, vec![incoming()]), 9, 9, vec![table(1, "t")]));
    restored.hear(with(report(3, 0, vec![]), 9, 9, vec![]));
    let found = Found { highest: HighestNumbers { operator: OperatorId(9), ..Default::default() }, ..Found::default() };
    must(&mut restored.state, 2, Command::Reconciled(Box::new(found)));
    let mut controller = OperatorController::default();
    assert_eq!(sweeps(&restored, &mut controller), [], "its source has not been heard");
    for phase in [OperatorPhase::Fenced, OperatorPhase::HandedOver] {
        restored.hear(report(1, 0, vec![told(5, phase.clone())]));
        let asked = sweeps(&restored, &mut controller);
        assert!(!asked.iter().any(|(shard, _)| *shard == ShardId(2)), "{phase:?}: {asked:?}");
    }
    let mut controller = OperatorController::default();
    restored.hear(report(1, 0, vec![told(5, OperatorPhase::Open)]));
    let cancel = ControlRequest::MoveCancel { operator: OperatorId(5), range: RangeId(1) };
    assert_eq!(sweeps(&restored, &mut controller), [(ShardId(1), cancel)]);
    restored.hear(report(1, 0, vec![]));
    let discard = ControlRequest::IngestCancel { operator: OperatorId(5) };
    assert_eq!(sweeps(&restored, &mut controller), [(ShardId(2), discard)]);
}

/// A state that has a move at this step, with the shards that a copy has; and its number.
fn with_move_at(step: Step) -> (Restored, OperatorId) {
    let mut restored = Restored::new();
    let operator = restored.begin(Action::Move { range: RangeId(1), epoch: None, to: ShardId(2) }).unwrap();
    let steps =
        [(Step::Open, Transition::Opened), (Step::Copy, Transition::Fenced), (Step::Switch, Transition::Declined)];
    for (from, transition) in steps.into_iter().take_while(|(from, _)| *from != step) {
        must(&mut restored.state, 1, Command::Advance { operator, from, transition });
    }
    assert_eq!(restored.state.operators[&operator].step, step);
    must(&mut restored.state, 1, Command::BeginIncarnation(2));
    (restored, operator)
}

/// S3: a move that was past its fence in the copy, and has ended since, would wait for its shards
/// for ever.
#[test]
fn a_move_of_the_copy_that_nobody_knows_any_more_ends() {
    for step in [Step::Switch, Step::Restore] {
        let (mut restored, operator) = with_move_at(step);
        let mut controller = OperatorController::default();
        let proposed = |restored: &Restored, controller: &mut OperatorController| {
            let todo = controller.next(&restored.state, &restored.load, restored.now_ms);
            todo.into_iter().find_map(|todo| if let Todo::Propose(command) = todo { Some(command) } else { None })
        };
        restored.hear(range_1_was_split());
        assert_eq!(proposed(&restored, &mut controller), None, "{step:?}: its destination has not been heard");
        restored.hear(with(report(2, 0, vec![told(operator.0, OperatorPhase::Discarding)]), 0, 0, vec![]));
        assert_ne!(
            proposed(&restored, &mut controller),
            Some(overtaken(operator, step)),
            "{step:?}: it is known there"
        );
        let mut controller = OperatorController::default();
        restored.hear(with(report(2, 0, vec![]), 0, 0, vec![]));
        assert_eq!(proposed(&restored, &mut controller), Some(overtaken(operator, step)), "{step:?}");
        must(&mut restored.state, 2, overtaken(operator, step));
        assert_eq!(restored.state.operators[&operator].status, Status::Failed);
        assert_eq!(restored.state.ranges[&RangeId(1)].operator, None, "its range is free");
        assert_eq!(restored.state.ranges[&RangeId(1)].route.epoch, Epoch(1), "what was done since, only reports say");
    }
}

fn overtaken(operator: OperatorId, from: Step) -> Command {
    Command::Advance { operator, from, transition: Transition::Overtaken }
}

/// S3: a move that was under way in the copy and that its source has cancelled since keeps its
/// range for half a minute, unless it is noticed.
#[test]
fn a_move_that_its_source_does_not_know_is_given_up() {
    let (mut restored, operator) = with_move_at(Step::Copy);
    let mut controller = OperatorController::default();
    let given_up = |restored: &Restored, controller: &mut OperatorController| {
        let todo = controller.next(&restored.state, &restored.load, restored.now_ms);
        todo.iter()
            .any(|todo| matches!(todo, Todo::Propose(Command::Advance { transition: Transition::GiveUp { .. }, .. })))
    };
    let source = |operators| ShardReport { operators, ..owned_report(1, 0, RangeId(1), 1, KeyInterval::ALL) };
    for _ in 0..4 {
        restored.hear(source(vec![told(operator.0, OperatorPhase::Open)]));
        restored.hear(report(2, 0, vec![]));
        restored.now_ms += 1_000;
        assert!(!given_up(&restored, &mut controller));
    }
    restored.hear(source(vec![]));
    restored.hear(report(2, 0, vec![]));
    assert!(given_up(&restored, &mut controller), "it was opened long ago");
}

/// Breaks if a leadership numbers before it can know that its state is an old copy: two shards
/// would get a range of the same number.
#[test]
fn a_new_leadership_gives_no_numbers_before_the_shards_have_shown_what_they_have_seen() {
    let mut restored = Restored::new();
    let first = restored.state.shards.keys().copied().collect();
    let may = |restored: &Restored| may_number(&restored.state, &restored.load, &first, restored.now_ms);
    restored.hear(report(1, 0, vec![]));
    restored.hear(report(2, 0, vec![]));
    assert!(!may(&restored), "shard 3 has not been heard");
    restored.hear(with(report(3, 0, vec![]), 150, 40, vec![]));
    assert!(!may(&restored), "it has seen numbers that were never given");
    restored.take();
    assert!(may(&restored), "the state refuses by itself");
    assert_eq!(restored.begin(split(1)), Err(Refusal::Restoring));
    let mut quiet = Restored::new();
    quiet.now_ms += restoration::FIRST_REPORTS_MS;
    assert!(may(&quiet), "who is silent is not waited for any longer");
}

/// R34: tables of schema changes come with the changes, in their order, and never as tables of
/// their own: what a shard still has of an older version would come back.
#[test]
fn schema_changes_that_only_shards_know_are_taken_in_before_anything_else() {
    let made = |id: u32, name: &str| TableSchema { create_sql: String::new(), ..table(id, name) };
    let delta = |version, relations, dropped| {
        let change = SchemaChange { version, sql: format!("change {version}"), settings: vec![] };
        SchemaDelta { change, relations, dropped }
    };
    let deltas =
        vec![delta(1, vec![made(2, "a"), made(3, "b")], vec![]), delta(2, vec![made(2, "c")], vec![TableId(3)])];
    let mut restored = Restored::new();
    let at = |version, report| ShardReport { schema: SchemaReport { version, prepared: None }, ..report };
    let mut owner = owned_report(1, 0, RangeId(1), 1, KeyInterval::ALL);
    let mut second = owner.ranges[0].clone();
    (second.id, second.table) = (RangeId(2), TableId(2));
    owner.ranges.push(second);
    let owner = with(owner, 9, 9, vec![table(1, "t"), made(2, "c")]);
    restored.hear(at(2, owner.clone()));
    assert_eq!(restored.take(), Command::BeginIncarnation(2));
    // Shard 2 has not made the second change yet.
    restored.hear(at(1, with(report(2, 0, vec![]), 9, 9, vec![made(2, "a"), made(3, "b")])));
    restored.hear(at(0, with(report(3, 0, vec![]), 9, 9, vec![])));
    assert_eq!(restored.next(), None, "the changes come first");
    assert_eq!(schema_change::lacked(&restored.state, &restored.load), Some((ShardId(1), 0)));
    let missing = missing(&restored.state, &restored.load).join("; ");
    assert!(missing.contains("shard 1 has later versions of the schema"), "{missing}");
    must(&mut restored.state, restored.now_ms, Command::TakeSchema(deltas.clone()));
    must(&mut restored.state, restored.now_ms, Command::TakeSchema(deltas));
    restored.update();
    assert!(matches!(restored.take(), Command::Reconciled(_)));
    assert_eq!(restored.state.schema.version, 2);
    assert_eq!(restored.state.table_named("c").map(|table| table.schema.id), Some(TableId(2)));
    assert_eq!(restored.state.ranges[&RangeId(2)].route.shard, ShardId(1));
    assert!(!restored.state.tables.contains_key(&TableId(3)));
    // What shard 2 told before stays out; what it lacks it is given.
    assert_eq!(restored.next(), None);
    let mut controller = OperatorController::default();
    let given: Vec<(ShardId, u64)> = controller
        .next(&restored.state, &restored.load, restored.now_ms)
        .into_iter()
        .filter_map(|todo| match todo {
            Todo::Call { name, request: ControlRequest::ApplySchema { delta, .. } } => {
                Some((name.shard, delta.change.version))
            }
            _ => None,
        })
        .collect();
    assert_eq!(given, [(ShardId(2), 2), (ShardId(3), 1)]);
}
