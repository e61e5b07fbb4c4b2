//! Runs the scenarios in `testscripts/`: commands, answers and reports go in; requests, transitions
//! and the state come out.
//!
//! | command | meaning |
//! |---|---|
//! | `move 1 to 2`, `split 1 at 50`, `merge 1 2`, `cancel 2`, `drain 2` | an administrator asks for it |
//! | `change schema 0: SQL`, `change schema 0 making a pinned b: SQL`, `change schema 1 dropping a: SQL` | a gateway asks for it |
//! | `shard 1 reports schema 2`, `shard 1 reports schema 2 preparing 5` | a report of its version, and of the operator whose change it has prepared |
//! | `shard 1 answers done` | the answer to the oldest request to that shard |
//! | `shard 1 answers refused CODE`, `… pending`, `… nothing` | a refusal; a request for patience; no answer |
//! | `shard 2 reports PHASE` | a report with the phase of the latest operator: `open`, `fenced`, `handed-over`, `copying 5`, `adopted at 2`, `discarding`, `differs`, `finished` |
//! | `shard 1 reports owning 1 at 3`, `shard 1 reports nothing` | a report of a range with all keys, or an empty one |
//! | `for 6000 ms shard 1 reports PHASE` | the same report every 250 ms |
//! | `wait 2000 ms` | time passes |
//! | `new leader` | the controller and the load model begin again |
#![allow(clippy::unwrap_used)]

use super::testing::{owned_report, report};
use super::{CallName, OperatorController, Todo};
use crate::balancer::testing::{golden_scripts, key, number, schema, state_with_table};
use crate::config::BalancerConfig;
use crate::load::LoadModel;
use crate::state::{Action, Command, PlacementState, Proposal, apply};
use evenkeel_protocol::api::SchemaChangeBody;
use evenkeel_protocol::report::{MoveProgress, OperatorPhase, OperatorReport, ShardReport};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::schema_change::{ChangedRelation, SchemaReport};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Epoch, KeyInterval, OperatorId, RangeId, ShardId, TableSchema};
use std::collections::BTreeMap;

/// The state, one leadership, and its clock. The table `t` has range 1 on shard 1; shards 2 and 3
/// are empty.
struct World {
    state: PlacementState,
    load: LoadModel,
    controller: OperatorController,
    /// Requests without an answer, oldest first.
    calls: Vec<CallName>,
    now_ms: u64,
    sequence: u64,
    shown: BTreeMap<String, String>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            state: state_with_table(3),
            load: LoadModel::default(),
            controller: OperatorController::default(),
            calls: Vec::new(),
            now_ms: 1000,
            sequence: 0,
            shown: BTreeMap::new(),
        };
        world.changes();
        world
    }

    fn run(&mut self, line: &str) -> Vec<String> {
        self.now_ms += 10;
        let mut out = Vec::new();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["move", range, "to", to] => {
                let action = Action::Move { range: RangeId(id(range)), epoch: None, to: shard(to) };
                self.apply(Command::Begin(action), &mut out);
            }
            ["split", range, "at", at] => {
                let at = vec![key(at.parse().unwrap())];
                self.apply(Command::Begin(Action::Split { range: RangeId(id(range)), epoch: None, at }), &mut out);
            }
            ["merge", left, right] => {
                let with_epoch = |range: &str| {
                    let range = RangeId(id(range));
                    (range, self.state.ranges[&range].route.epoch)
                };
                let action = Action::Merge { left: with_epoch(left), right: with_epoch(right) };
                self.apply(Command::Begin(action), &mut out);
            }
            ["cancel", operator] => self.apply(Command::Cancel(OperatorId(id(operator))), &mut out),
            ["change", "schema", ref rest @ ..] => {
                let body = Box::new(schema_change(&rest.join(" ")));
                self.apply(Command::ChangeSchema { body, home: Some(ShardId(1)) }, &mut out);
            }
            ["drain", of] => self.apply(Command::DrainShard(shard(of)), &mut out),
            ["shard", of, "answers", ref answer @ ..] => self.answer(shard(of), answer),
            ["shard", of, "reports", ref what @ ..] => self.report(shard(of), what),
            ["for", ms, "ms", "shard", of, "reports", ref what @ ..] => {
                for passed_ms in (250..=id(ms)).step_by(250) {
                    self.now_ms += 250;
                    self.report(shard(of), what);
                    out.extend(self.turn().into_iter().map(|line| format!("after {passed_ms} ms: {line}")));
                }
            }
            ["wait", ms, "ms"] => self.now_ms += id(ms),
            ["new", "leader"] => {
                self.controller = OperatorController::default();
                self.load = LoadModel::default();
                self.calls.clear();
            }
            _ => panic!("no command: {line}"),
        }
        out.extend(self.turn());
        out
    }

    fn apply(&mut self, command: Command, out: &mut Vec<String>) {
        let since_ms = self.now_ms.saturating_sub(self.state.time_ms());
        if let Err(refusal) = apply(&mut self.state, Proposal { at_ms: self.now_ms, since_ms, nonce: 0, command }) {
            out.push(format!("rejected: {refusal}"));
        }
    }

    fn answer(&mut self, of: ShardId, answer: &[&str]) {
        let at = self.calls.iter().position(|name| name.shard == of).expect("a request without an answer");
        let name = self.calls.remove(at);
        let answer = match answer {
            ["done"] => Ok(ControlReply::Done),
            ["refused", code] => Ok(ControlReply::Refused { code: (*code).into(), reason: format!("{code}, it says") }),
            ["pending"] => Ok(ControlReply::Pending { waiting_for: "rows".into() }),
            ["nothing"] => Err("no answer".into()),
            other => panic!("no answer: {other:?}"),
        };
        self.controller.answered(name, answer, &self.state, self.now_ms);
    }

    fn report(&mut self, of: ShardId, what: &[&str]) {
        self.sequence += 1;
        let mut progress = None;
        let phase = match what {
            ["owning", range, "at", epoch] => {
                let report = owned_report(of.0, self.sequence, RangeId(id(range)), id(epoch), KeyInterval::ALL);
                return self.observe(report);
            }
            ["nothing"] => return self.observe(report(of.0, self.sequence, Vec::new())),
            ["schema", version, preparing @ ..] => {
                let prepared = preparing.last().map(|operator| OperatorId(id(operator)));
                let schema = SchemaReport { version: id(version), prepared };
                return self.observe(ShardReport { schema, ..report(of.0, self.sequence, Vec::new()) });
            }
            ["open"] => OperatorPhase::Open,
            ["fenced"] => OperatorPhase::Fenced,
            ["handed-over"] => OperatorPhase::HandedOver,
            ["copying", rows] => {
                let (rows, bytes) = (id(rows), 10 * id(rows));
                progress = Some(MoveProgress { attempts: 1, rows, bytes, ..MoveProgress::default() });
                OperatorPhase::Copying { attempt: 1, rows, bytes }
            }
            ["differs"] => {
                let differs = Some("replica 2 has stored 3 rows of 5".into());
                progress = Some(MoveProgress { differs, ..MoveProgress::default() });
                OperatorPhase::Copying { attempt: 4, rows: 5, bytes: 50 }
            }
            ["adopted", "at", epoch] => {
                OperatorPhase::Adopted { epoch: Epoch(id(epoch)), pause_us: 4000, rows: 5, bytes: 50 }
            }
            ["discarding"] => OperatorPhase::Discarding,
            ["finished"] => OperatorPhase::Finished,
            other => panic!("no phase: {other:?}"),
        };
        let operator = *self.state.operators.keys().next_back().unwrap();
        let operators = vec![OperatorReport { operator, range: RangeId(1), phase, progress }];
        self.observe(report(of.0, self.sequence, operators));
    }

    fn observe(&mut self, report: ShardReport) {
        let observed = self.load.observe(report, &self.state, &BalancerConfig::default(), self.now_ms);
        assert!(observed.taken, "{observed:?}");
    }

    /// Rounds of the leader until nothing is proposed.
    fn turn(&mut self) -> Vec<String> {
        let mut out = self.changes();
        loop {
            self.load.update(&self.state, &BalancerConfig::default(), self.now_ms);
            let mut proposed = false;
            for todo in self.controller.next(&self.state, &self.load, self.now_ms) {
                match todo {
                    Todo::Call { name, request } => {
                        out.push(format!("ask shard {}: {}", name.shard, show_request(&request)));
                        self.calls.push(name);
                    }
                    Todo::Propose(command) => {
                        proposed = true;
                        out.push(format!("propose {}", show_command(&command)));
                        self.apply(command, &mut out);
                    }
                }
            }
            out.extend(self.changes());
            if !proposed {
                return out;
            }
        }
    }

    /// What has changed in the state since the last call, one line each.
    fn changes(&mut self) -> Vec<String> {
        let mut now = BTreeMap::new();
        for operator in self.state.operators.values() {
            let detail = operator.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
            let text = format!("{}, {}{detail}", operator.step.name(), operator.status.name());
            now.insert(format!("operator {}", operator.id), text);
        }
        for range in self.state.ranges.values() {
            let route = &range.route;
            let lock = range.operator.map_or("free".into(), |operator| format!("locked by operator {operator}"));
            let keys = show_keys(&route.interval);
            now.insert(
                format!("range {}", route.range),
                format!("{keys} on shard {}, epoch {}, {lock}", route.shard, route.epoch),
            );
        }
        now.insert("schema".into(), format!("version {}", self.state.schema.version));
        for table in self.state.tables.values().filter(|table| table.schema.create_sql.is_empty()) {
            let pinned = if table.schema.pinned { ", pinned" } else { "" };
            let text = format!("{:?} of {} columns{pinned}", table.schema.name, table.schema.columns.len());
            now.insert(format!("table {}", table.schema.id), text);
        }
        for shard in self.state.shards.values() {
            let text = if shard.draining { "draining" } else { "active" };
            now.insert(format!("shard {}", shard.info.id), text.into());
        }
        let changed = now.iter().filter(|(name, text)| self.shown.get(*name) != Some(text));
        let mut out: Vec<String> = changed.map(|(name, text)| format!("{name}: {text}")).collect();
        let gone = self.shown.keys().filter(|name| !now.contains_key(*name));
        out.extend(gone.map(|name| format!("{name}: removed")));
        self.shown = now;
        out
    }
}

/// `VERSION [making NAME… [pinned NAME]] [altering NAME as NAME] [dropping NAME…]: SQL`. Every
/// table has a key of one column; an altered one gets another column.
fn schema_change(text: &str) -> SchemaChangeBody {
    let (head, sql) = text.split_once(": ").unwrap();
    let mut words = head.split(' ');
    let version = id(words.next().unwrap());
    let mut body = SchemaChangeBody { version, sql: sql.into(), settings: vec![], relations: vec![], dropped: vec![] };
    let (mut verb, mut was) = ("", None);
    for word in words {
        match (verb, word) {
            (_, "making" | "pinned" | "altering" | "as" | "dropping") => verb = word,
            ("dropping", name) => body.dropped.push(name.into()),
            ("altering", name) => was = Some(name.to_string()),
            (_, name) => {
                let mut schema = TableSchema { create_sql: String::new(), pinned: verb == "pinned", ..schema(name) };
                if was.is_some() {
                    schema.columns.push(ColumnSchema { name: "more".into(), ..schema.columns[0].clone() });
                }
                body.relations.push(ChangedRelation { was: was.take(), schema, sequences: vec![] });
            }
        }
    }
    body
}

fn id(text: &str) -> u64 {
    text.parse().unwrap()
}

fn shard(text: &str) -> ShardId {
    ShardId(text.parse().unwrap())
}

fn show_keys(interval: &KeyInterval) -> String {
    let start = number(&interval.start).map_or("-∞".into(), |n| n.to_string());
    let end = interval.end.as_ref().and_then(number).map_or("∞".into(), |n| n.to_string());
    format!("[{start}, {end})")
}

fn show_request(request: &ControlRequest) -> String {
    match request {
        ControlRequest::Split { range, epoch, at, .. } => {
            let at: Vec<String> =
                at.iter().map(|(key, id)| format!("{} (range {id})", number(key).unwrap_or_default())).collect();
            format!("Split range {range} of epoch {epoch} at {}", at.join(", "))
        }
        ControlRequest::Merge { left, right, .. } => {
            format!("Merge ranges {} of epoch {} and {} of epoch {}", left.0, left.1, right.0, right.1)
        }
        ControlRequest::MoveOpen { range, epoch, to, .. } => {
            format!("MoveOpen range {range} of epoch {epoch} to shard {}", to.id)
        }
        ControlRequest::IngestOpen { range, interval, epoch, from, .. } => {
            format!("IngestOpen range {range} {} of epoch {epoch} from shard {}", show_keys(interval), from.id)
        }
        ControlRequest::MoveCancel { .. } => "MoveCancel".into(),
        ControlRequest::IngestCancel { .. } => "IngestCancel".into(),
        ControlRequest::Purge { .. } => "Purge".into(),
        ControlRequest::MoveForget { .. } => "MoveForget".into(),
        ControlRequest::PrepareSchema { operator, delta } => {
            format!("PrepareSchema of operator {operator}: version {}, {}", delta.change.version, delta.change.sql)
        }
        ControlRequest::AbortSchema { operator } => format!("AbortSchema of operator {operator}"),
        ControlRequest::ApplySchema { delta, ranges } => {
            let tables: Vec<String> =
                delta.relations.iter().map(|table| format!("table {} {:?}", table.id, table.name)).collect();
            let ranges: Vec<String> = ranges.iter().map(|(table, range)| format!("range {range} of {table}")).collect();
            let dropped: Vec<String> = delta.dropped.iter().map(|table| format!("drop {table}")).collect();
            let parts = [tables, dropped, ranges].concat().join(", ");
            format!("ApplySchema {}: {parts}", delta.change.version)
        }
        other => format!("{other:?}"),
    }
}

fn show_command(command: &Command) -> String {
    match command {
        Command::Advance { operator, from, transition } => {
            format!("for operator {operator} at {}: {transition:?}", from.name())
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn operators_take_the_steps_that_the_scenarios_say() {
    golden_scripts("src/operators/testscripts", World::new, World::run);
}
