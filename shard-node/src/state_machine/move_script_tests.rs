//! Runs the scenarios in `testscripts/moves/`, which document the protocol of a move: two state
//! machines side by side.
//!
//! A scenario is a list of commands and comments (`#`). Each command applies an entry at the source
//! or at the destination. The lines after it that begin with `=>` are its result: the verdict with
//! the entry's position in that shard's log, then the state of both shards in two columns, if it
//! changed. `UPDATE_GOLDEN=1` writes the actual results into the files.
//!
//! | command | entry |
//! |---|---|
//! | `source open`, `cancel`, `fence`, `handed-over`, `take-back` | `MoveOpen`, `MoveCancel`, `Fence`, `HandedOver`, `TakeBack` |
//! | `source purge`, `source purge-last` | `Purge` of all keys; the last one |
//! | `destination ingest`, `cancel`, `decline`, `forget` | `IngestOpen`, `IngestCancel`, `Decline`, `Forget` |
//! | `destination attempt A AT` | `IngestAttempt` number A; the copy starts at the source's position AT |
//! | `destination chunk A KEYS FROM AT` | `IngestChunk`: the keys `..5`, `5..`, `..`; it continues FROM and is as of AT |
//! | `destination changes A FROM TO KEY...` | `IngestTail`: changes of these keys |
//! | `destination adopt A FENCE` | `Adopt` after the source's fence at position FENCE |
//! | `destination discard`, `discard-last` | `Discard` of all keys; the last one |
//! | `SIDE write KEY` | changes of a statement, judged by the ownership fence |
//! | `SIDE restart` | the state is stored and read again |
//! | `destination asked` | what the destination answers to the source: whether the range was adopted (R23) |
//!
//! Operator 7 moves range 1 of epoch 1. `operator N` before a command gives it another number.
#![allow(clippy::unwrap_used)]

use super::test_support::{key, keys, schema, shard};
use super::*;
use crate::log_entry::image::Image;
use crate::log_entry::{Answered, Change, Changes, Control, TailEntry};
use bytes::Bytes;
use evenkeel_protocol::rows::RowBatch;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Epoch, Key, KeyInterval, KeyValue, OperatorId, RangeId, TableId};
use std::path::PathBuf;

const COLUMN: usize = 44;

fn shown_key(key: &Key) -> String {
    match schema().codec().decode(key).as_deref() {
        Ok([KeyValue::Int(n)]) => n.to_string(),
        _ => String::new(),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

fn changes(written: &[&str]) -> Changes {
    let change =
        |n: &&str| Change { table: TableId(1), key: key(n.parse().unwrap()), image: Image::Whole(Bytes::new()) };
    Changes { stamp_ms: 1, answered: Vec::<Answered>::new(), changes: written.iter().map(change).collect() }
}

/// One shard of a move.
#[derive(Clone, Default)]
struct Side {
    state: ShardState,
    position: u64,
}

impl Side {
    fn apply(&mut self, control: &Control) -> String {
        self.position += 1;
        match self.state.control(self.position, control) {
            Ok(_) => format!("{} effective", self.position),
            Err(refusal) => format!("{} rejected: {}", self.position, refusal.code),
        }
    }

    fn write(&mut self, written: &str) -> String {
        self.position += 1;
        match self.state.judge(&changes(&[written])) {
            Ok(()) => format!("{} write effective", self.position),
            Err(refusal) => format!("{} write rejected: {}", self.position, refusal.code),
        }
    }

    /// Its state, in a line.
    fn shown(&self) -> String {
        let mut parts: Vec<String> =
            self.state.owned().map(|range| format!("owns range {} epoch {}", range.id, range.epoch)).collect();
        parts.extend(self.state.moves_out().map(|m| {
            let phase = match m.phase {
                OutPhase::Open => "open".into(),
                OutPhase::Fenced { position, .. } => format!("fenced at {position}"),
                OutPhase::HandedOver => "handed over".into(),
                OutPhase::Purging => "purging".into(),
            };
            format!("operator {} {phase}", m.operator)
        }));
        parts.extend(self.state.moves_in().map(|m| {
            let phase = match m.phase {
                InPhase::Copying if m.attempt == 0 => "waiting for a copy".into(),
                InPhase::Copying if m.is_copied() => format!("copied, as of {}", m.reached()),
                InPhase::Copying => {
                    let cursor = m.progress().cursor.as_ref().map(shown_key).unwrap_or_default();
                    format!("copying {}: below {cursor:?} as of {}", m.attempt, m.reached())
                }
                InPhase::Adopted => "adopted".into(),
                InPhase::Discarding => "discarding".into(),
            };
            format!("operator {} {phase}", m.operator)
        }));
        if parts.is_empty() { "-".into() } else { parts.join(", ") }
    }
}

/// Source and destination.
#[derive(Clone)]
struct Pair {
    source: Side,
    destination: Side,
}

impl Pair {
    fn new() -> Pair {
        let mut pair = Pair { source: Side::default(), destination: Side::default() };
        pair.source.apply(&Control::CreateTable { schema: schema(), range: RangeId(1) });
        pair
    }

    fn shown(&self) -> String {
        format!("{:COLUMN$}| {}", self.source.shown(), self.destination.shown()).trim_end().to_string()
    }

    /// Whether at most one shard owns the range.
    fn has_one_owner(&self) -> bool {
        ![&self.source, &self.destination].iter().all(|side| side.state.owner(TableId(1), &key(5)).is_some())
    }

    fn run(&mut self, command: &str) -> String {
        let mut words: Vec<&str> = command.split_whitespace().collect();
        let mut operator = OperatorId(7);
        if words[0] == "operator" {
            operator = OperatorId(number(words[1]));
            words.drain(..2);
        }
        let at_source = words[0] == "source";
        let verdict = self.run_at(at_source, operator, &words[1..]);
        match at_source {
            true => format!("{verdict:COLUMN$}|"),
            false => format!("{:COLUMN$}| {verdict}", ""),
        }
    }

    fn run_at(&mut self, at_source: bool, operator: OperatorId, words: &[&str]) -> String {
        let side = if at_source { &mut self.source } else { &mut self.destination };
        let (range, epoch, all) = (RangeId(1), Epoch(1), KeyInterval::ALL);
        let control = match (at_source, words) {
            (_, ["write", written]) => return side.write(written),
            (_, ["restart"]) => {
                let stored = postcard::to_stdvec(&side.state).unwrap();
                let read: ShardState = postcard::from_bytes(&stored).unwrap();
                assert_eq!(read, side.state, "nothing is lost");
                side.state = read;
                return "restarted".into();
            }
            (false, ["asked"]) => {
                return match side.state.resolved(operator) {
                    Some(true) => "answers: adopted".into(),
                    Some(false) => "answers: not adopted, and never will be".into(),
                    None => "answers: not known yet".into(),
                };
            }
            (true, ["open"]) => Control::MoveOpen { operator, range, epoch, to: shard(2) },
            (true, ["cancel"]) => Control::MoveCancel { operator },
            (true, ["fence"]) => Control::Fence { operator, held_since_us: 0 },
            (true, ["handed-over"]) => Control::HandedOver { operator },
            (true, ["take-back"]) => Control::TakeBack { operator },
            (true, ["purge"]) => Control::Purge { operator, interval: all, last: false },
            (true, ["purge-last"]) => Control::Purge { operator, interval: all, last: true },
            (false, ["ingest"]) => {
                Control::IngestOpen { operator, schema: schema(), range, interval: all, epoch, from: shard(1) }
            }
            (false, ["cancel"]) => Control::IngestCancel { operator },
            (false, ["decline"]) => Control::Decline { operator },
            (false, ["forget"]) => Control::Forget { operator },
            (false, ["discard"]) => Control::Discard { operator, interval: all, last: false },
            (false, ["discard-last"]) => Control::Discard { operator, interval: all, last: true },
            (false, ["attempt", attempt, at]) => {
                Control::IngestAttempt { operator, attempt: number(attempt), position: number(at) }
            }
            (false, ["chunk", attempt, interval, from, at]) => Control::IngestChunk {
                operator,
                attempt: number(attempt),
                interval: keys(interval),
                from: number(from),
                position: number(at),
                rows: RowBatch { width: 1, count: 0, data: Bytes::new() },
                checksum: RangeChecksum { rows: 0, sum: 0 },
            },
            (false, ["changes", attempt, from, to, written @ ..]) => Control::IngestTail {
                operator,
                attempt: number(attempt),
                from: number(from),
                to: number(to),
                stamp_ms: 1,
                entries: vec![TailEntry { position: number(to), changes: changes(written) }.encode()],
            },
            (false, ["adopt", attempt, fence]) => Control::Adopt {
                operator,
                attempt: number(attempt),
                fence: number(fence),
                epoch: epoch.next(),
                held_since_us: 0,
            },
            other => panic!("no command: {other:?}"),
        };
        side.apply(&control)
    }
}

fn is_command(line: &str) -> bool {
    !(line.is_empty() || line.starts_with('#') || line.starts_with("=> "))
}

/// The script with its actual results. The command at index `lost` is judged, and its effect is
/// lost.
fn run(script: &str, lost: Option<usize>) -> String {
    let (mut pair, mut out, mut commands, mut before) = (Pair::new(), String::new(), 0, String::new());
    for line in script.lines().filter(|line| !line.starts_with("=> ")) {
        out += line;
        out += "\n";
        if !is_command(line) {
            continue;
        }
        let kept = pair.clone();
        out += &format!("=> {}\n", pair.run(line));
        if lost == Some(commands) {
            let positions = (pair.source.position, pair.destination.position);
            pair = kept;
            (pair.source.position, pair.destination.position) = positions;
        }
        assert!(lost.is_some() || pair.has_one_owner(), "both shards own the range after {line:?}");
        let shown = pair.shown();
        if shown != before {
            out += &format!("=> {shown}\n");
            before = shown;
        }
        commands += 1;
    }
    out
}

fn scripts() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(file!()).parent().unwrap().join("testscripts/moves");
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect()
}

#[test]
fn move_scripts() {
    let mut different = Vec::new();
    for (file, script) in scripts() {
        let actual = run(&script, None);
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

/// Each script can fail: its results are different if the effect of any effective entry is lost.
#[test]
fn move_scripts_notice_every_lost_entry() {
    for (file, script) in scripts() {
        let golden = run(&script, None);
        let lines: Vec<&str> = golden.lines().filter(|line| is_command(line) || line.starts_with("=> ")).collect();
        let commands = (0..lines.len()).filter(|n| is_command(lines[*n]));
        for (n, at) in commands.enumerate() {
            let (command, verdict) = (lines[at], lines[at + 1]);
            // These change no state. A piece that is not the last is deleted in PostgreSQL only.
            let changes_nothing = ["write", "asked", "restart", "destination discard"];
            let unchanged = changes_nothing.iter().any(|word| command.ends_with(word) || command.contains(" write "));
            if !unchanged && !verdict.contains("rejected") {
                assert_ne!(run(&script, Some(n)), golden, "{}: losing {command:?} changes nothing", file.display());
            }
        }
    }
}
