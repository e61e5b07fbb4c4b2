//! Runs the scenarios in `testscripts/latches/`, which document the latch protocol: after each
//! command stands its result.
//!
//! A scenario is a list of commands and comments (`#`). The lines after a command that begin with
//! `=>` are its result, and that of statements which stop waiting because of it. `UPDATE_GOLDEN=1`
//! writes the actual results into the files.
//!
//! | command | meaning |
//! |---|---|
//! | `acquire NAME KEYS` | a write asks for a handle on the ranges of the keys `5`, `5..15` or `all` |
//! | `acquire NAME KEYS holding OTHER` | the same for a transaction that holds the handle `OTHER` |
//! | `read NAME KEYS` | an autocommit read asks for a handle |
//! | `release NAME` | the statement ends |
//! | `current NAME` | whether a read may be answered |
//! | `block RANGE`, `unblock RANGE` | a write block begins, ends |
//! | `drain RANGE` | whether all statements from before the block have ended |
//! | `split RANGE KEY NEW`, `merge LEFT RIGHT` | the log splits a range, merges two |
//! | `open RANGE SHARD`, `fence RANGE`, `take-back RANGE` | the log moves a range out |
//! | `purge RANGE` | the destination has adopted the range, and its copy here is deleted |
//! | `ingest RANGE KEYS`, `adopt RANGE`, `stored RANGE` | the log moves a range in; its rows are stored |
//! | `timeout` | more than the longest wait passes |
#![allow(clippy::unwrap_used)]

use super::*;
use crate::log_entry::Control;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, KeyValue, OperatorId, RowBatch, ShardId, TableSchema};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::PathBuf;

const TABLE: TableId = TableId(1);

fn schema() -> TableSchema {
    TableSchema {
        id: TABLE,
        name: "t".into(),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: "CREATE TABLE t (id bigint PRIMARY KEY)".into(),
        ..TableSchema::default()
    }
}

fn key(n: &str) -> Key {
    schema().codec().encode(&[KeyValue::Int(n.parse().unwrap())]).unwrap()
}

fn touches(keys: &str) -> Touches {
    match keys.split_once("..") {
        None if keys == "all" => Touches::Intervals(vec![KeyInterval::ALL]),
        None => Touches::Keys(vec![key(keys)]),
        Some(_) => Touches::Intervals(vec![interval(keys)]),
    }
}

fn interval(keys: &str) -> KeyInterval {
    let (start, end) = keys.split_once("..").unwrap();
    KeyInterval::new(key(start), (!end.is_empty()).then(|| key(end)))
}

fn range(id: &str) -> RangeId {
    RangeId(id.parse().unwrap())
}

type Acquisition = BoxFuture<'static, Result<RangeHandle, Failure>>;

/// A leader's latches, the state machine that they follow, and the statements that use them.
struct World {
    state: ShardState,
    latches: Arc<LatchManager>,
    position: u64,
    operators: u64,
    not_stored: HashSet<RangeId>,
    handles: BTreeMap<String, RangeHandle>,
    waiting: BTreeMap<String, Acquisition>,
    blocks: BTreeMap<RangeId, WriteBlock>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            state: ShardState::default(),
            latches: Arc::default(),
            position: 0,
            operators: 0,
            not_stored: HashSet::new(),
            handles: BTreeMap::new(),
            waiting: BTreeMap::new(),
            blocks: BTreeMap::new(),
        };
        world.apply(Control::CreateTable { schema: schema(), range: RangeId(1) });
        world
    }

    fn apply(&mut self, control: Control) -> String {
        self.position += 1;
        match self.state.control(self.position, &control) {
            Err(refusal) => format!("rejected: {}", refusal.code),
            Ok(_) => {
                self.latches.follow(&self.state, &self.not_stored, ChangedKeys::Only(self.state.changed_hands()));
                let mut ranges: Vec<_> = self.state.owned().map(|r| format!("{}@{}", r.id, r.epoch)).collect();
                ranges.extend(ranges.is_empty().then(|| "nothing".into()));
                format!("owned: {}", ranges.join(" "))
            }
        }
    }

    fn operator(&mut self) -> OperatorId {
        self.operators += 1;
        OperatorId(self.operators)
    }

    fn epoch(&self, id: RangeId) -> Epoch {
        self.state.range(id).map_or(Epoch(0), |range| range.epoch)
    }

    fn move_out(&self, id: RangeId) -> OperatorId {
        self.state.moves_out().find(|m| m.range == id).map_or(OperatorId(0), |m| m.operator)
    }

    fn acquire(&mut self, name: &str, acquisition: Acquisition) -> Vec<String> {
        self.waiting.insert(name.into(), acquisition);
        let results = self.poll();
        if self.waiting.contains_key(name) { vec![format!("{name} waits")] } else { results }
    }

    /// Polls the waiting statements, and reports those that stop waiting.
    fn poll(&mut self) -> Vec<String> {
        let mut results = Vec::new();
        for (name, mut acquisition) in std::mem::take(&mut self.waiting) {
            match acquisition.as_mut().now_or_never() {
                None => {
                    self.waiting.insert(name, acquisition);
                }
                Some(Ok(handle)) => {
                    let ranges: Vec<_> =
                        handle.latches().iter().map(|l| format!("{}@{}", l.range.id, l.range.epoch)).collect();
                    results.push(format!("{name} granted: {}", ranges.join(" ")));
                    self.handles.insert(name, handle);
                }
                Some(Err(Failure::Moved { to, range })) => {
                    let to = to.map_or("elsewhere".into(), |to| format!("to shard {to}"));
                    let range = range.map_or(String::new(), |(id, epoch)| format!(" as {id}@{epoch}"));
                    results.push(format!("{name} rejected: moved {to}{range}"));
                }
                Some(Err(failure)) => results.push(format!("{name} rejected: {failure}")),
            }
        }
        results
    }

    async fn run(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let mut results = match words.as_slice() {
            ["acquire", name, keys, rest @ ..] => {
                let holding = match rest {
                    ["holding", other] => self.handles[*other].latches().to_vec(),
                    _ => Vec::new(),
                };
                let (latches, touches) = (self.latches.clone(), touches(keys));
                self.acquire(name, Box::pin(async move { latches.acquire(TABLE, &touches, &holding).await }))
            }
            ["read", name, keys] => {
                let (latches, touches) = (self.latches.clone(), touches(keys));
                self.acquire(name, Box::pin(async move { latches.acquire_read(TABLE, &touches).await }))
            }
            ["release", name] => {
                drop(self.handles.remove(*name));
                vec![]
            }
            ["current", name] => {
                let current = self.handles[*name].is_current();
                vec![if current { "may be answered".into() } else { "must not be answered".into() }]
            }
            ["block", id] => match self.latches.block(range(id)) {
                Some(block) => {
                    self.blocks.insert(range(id), block);
                    vec!["blocked".into()]
                }
                None => vec!["not possible".into()],
            },
            ["unblock", id] => {
                drop(self.blocks.remove(&range(id)));
                vec![]
            }
            ["drain", id] => match self.blocks.get(&range(id)) {
                Some(block) if block.drained(Duration::ZERO).await => vec!["drained".into()],
                Some(_) => vec!["statements are in flight".into()],
                None => vec!["not blocked".into()],
            },
            ["timeout"] => {
                evenkeel_host::sleep(Duration::from_millis(WAIT_MS + 100)).await;
                vec![]
            }
            log => vec![self.log(log)],
        };
        results.extend(self.poll());
        results
    }

    fn log(&mut self, words: &[&str]) -> String {
        let other = |id: &str| ShardInfo { id: ShardId(id.parse().unwrap()), replicas: Default::default() };
        match words {
            ["split", id, at, new] => {
                let (operator, epoch) = (self.operator(), self.epoch(range(id)));
                let at = vec![(key(at), range(new))];
                self.apply(Control::Split { operator, range: range(id), epoch, at })
            }
            ["merge", left, right] => {
                let operator = self.operator();
                let [left, right] = [left, right].map(|id| (range(id), self.epoch(range(id))));
                self.apply(Control::Merge { operator, left, right })
            }
            ["open", id, to] => {
                let (operator, epoch) = (self.operator(), self.epoch(range(id)));
                self.apply(Control::MoveOpen { operator, range: range(id), epoch, to: other(to) })
            }
            ["fence", id] => {
                let operator = self.move_out(range(id));
                self.apply(Control::Fence { operator, held_since_us: 0 })
            }
            ["take-back", id] => {
                let operator = self.move_out(range(id));
                self.apply(Control::TakeBack { operator })
            }
            ["purge", id] => {
                let (operator, interval) = (self.move_out(range(id)), KeyInterval::ALL);
                self.apply(Control::HandedOver { operator });
                self.apply(Control::Purge { operator, interval, last: true })
            }
            ["ingest", id, keys] => {
                let (operator, interval) = (self.operator(), interval(keys));
                let (range, from) = (range(id), other("9"));
                let epoch = Epoch(5);
                self.apply(Control::IngestOpen { operator, schema: schema(), range, interval, epoch, from });
                self.apply(Control::IngestAttempt { operator, attempt: 1, position: 0 })
            }
            ["adopt", id] => {
                let m = self.state.moves_in().find(|m| m.range == range(id)).unwrap();
                let (operator, interval, epoch) = (m.operator, m.interval.clone(), m.epoch.next());
                let rows = RowBatch { width: 1, count: 0, data: Default::default() };
                let checksum = RangeChecksum { rows: 0, sum: 0 };
                let (attempt, from, position) = (1, 0, 0);
                self.apply(Control::IngestChunk { operator, attempt, interval, from, position, rows, checksum });
                self.not_stored.insert(range(id));
                self.apply(Control::Adopt { operator, attempt, fence: 0, epoch, held_since_us: 0 })
            }
            ["stored", id] => {
                self.not_stored.remove(&range(id));
                self.latches.follow(&self.state, &self.not_stored, ChangedKeys::All);
                "rows stored".into()
            }
            other => panic!("no command: {other:?}"),
        }
    }
}

/// The script with its actual results. The command at index `lost` is not executed.
async fn run(script: &str, lost: Option<usize>) -> String {
    let (mut world, mut out, mut commands) = (World::new(), String::new(), 0);
    for line in script.lines().filter(|line| !line.starts_with("=> ")) {
        out += line;
        out += "\n";
        if !is_command(line) {
            continue;
        }
        commands += 1;
        if lost == Some(commands) {
            continue;
        }
        for result in world.run(line).await {
            out += &format!("=> {result}\n");
        }
    }
    out
}

fn scripts() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/leader/testscripts/latches");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect()
}

#[tokio::test]
async fn latch_scripts() {
    let mut different = Vec::new();
    for (file, script) in scripts() {
        let actual = run(&script, None).await;
        if actual == script {
            continue;
        }
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(file, actual).unwrap();
        } else {
            different.push(format!("{}\n--- expected\n{script}\n--- actual\n{actual}", file.display()));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
}

/// Whether a line of a script is a command.
fn is_command(line: &str) -> bool {
    !(line.is_empty() || line.starts_with('#') || line.starts_with("=> "))
}

/// The results of the commands after the first `skipped`.
fn later_results(out: &str, skipped: usize) -> Vec<String> {
    let mut seen = 0;
    let later = |line: &&str| {
        seen += usize::from(is_command(line));
        seen > skipped
    };
    out.lines().filter(later).map(String::from).collect()
}

/// Each script can fail: if a block, a release or an entry of the log is lost, the results of later
/// commands are different.
#[tokio::test]
async fn latch_scripts_notice_every_lost_change() {
    for (file, script) in scripts() {
        let lines: Vec<&str> = script.lines().filter(|line| is_command(line) || line.starts_with("=> ")).collect();
        let commands: Vec<usize> = (0..lines.len()).filter(|n| is_command(lines[*n])).collect();
        let mut silent = Vec::new();
        // Nothing comes after the last command.
        for (n, at) in commands.iter().enumerate().take(commands.len() - 1) {
            let word = lines[*at].split(' ').next().unwrap_or_default();
            let changes = ["block", "release", "fence", "take-back", "adopt", "stored", "split"].contains(&word);
            if !changes || lines.get(at + 1) == Some(&"=> not possible") {
                continue;
            }
            let lost = std::panic::AssertUnwindSafe(run(&script, Some(n + 1))).catch_unwind().await;
            if lost.is_ok_and(|lost| later_results(&lost, n + 1) == later_results(&script, n + 1)) {
                silent.push(format!("{:?} (command {})", lines[*at], n + 1));
            }
        }
        assert!(silent.is_empty(), "{}: nothing changes without {}", file.display(), silent.join(", "));
    }
}
