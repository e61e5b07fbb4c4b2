//! Shared by tests: keys of a table with one `bigint` key column, a state with such a table, and
//! the runner of golden scripts.
#![allow(clippy::unwrap_used)]

use crate::state::{Command, PlacementState, Proposal, Step, Transition, apply};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{Key, KeyCodec, KeyType, KeyValue, OperatorId, ShardId, TableId, TableSchema};
use std::collections::BTreeMap;

pub fn codec() -> KeyCodec {
    KeyCodec::new(vec![KeyType::BigInt])
}

pub fn key(n: i64) -> Key {
    codec().encode(&[KeyValue::Int(n)]).unwrap_or_default()
}

pub fn schema(name: &str) -> TableSchema {
    let column = ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 };
    let create_sql = format!("CREATE TABLE {name} (id bigint PRIMARY KEY)");
    TableSchema {
        id: TableId(0),
        name: name.into(),
        columns: vec![column],
        key: vec![0],
        create_sql,
        ..TableSchema::default()
    }
}

/// A shard with three replicas.
pub fn shard(id: u32) -> ShardInfo {
    let address = |n: u64| (n, ([127, 0, 0, 1], 1000 + 10 * id as u16 + n as u16).into());
    ShardInfo { id: ShardId(id), replicas: (1..=3).map(address).collect::<BTreeMap<_, _>>() }
}

/// Applies a command that must take effect.
pub fn must(state: &mut PlacementState, at_ms: u64, command: Command) -> crate::state::Effect {
    let text = format!("{command:?}");
    let since_ms = at_ms.saturating_sub(state.time_ms());
    let result = apply(state, Proposal { at_ms, since_ms, nonce: 0, command });
    assert!(result.is_ok(), "{text}: {result:?}");
    result.unwrap()
}

/// Shards 1 to `shards` and the table `t`, whose one range is on shard 1.
pub fn state_with_table(shards: u32) -> PlacementState {
    let mut state = PlacementState::default();
    for id in 1..=shards {
        must(&mut state, 1, Command::AddShard(shard(id)));
    }
    must(&mut state, 1, Command::CreateTable { schema: schema("t"), shard: Some(ShardId(1)), if_not_exists: false });
    let operator = OperatorId(1);
    must(&mut state, 1, Command::Advance { operator, from: Step::Apply, transition: Transition::Applied });
    state
}

/// The number that a key encodes; `None` for the start of the table.
pub fn number(key: &Key) -> Option<i64> {
    match codec().decode(key).as_deref() {
        Ok([KeyValue::Int(n)]) => Some(*n),
        _ => None,
    }
}

/// Runs the golden scripts in `folder` (relative to the crate) and compares their output.
///
/// A script is a list of commands, one a line. The lines that begin with `=> ` are the output of
/// the command before them. Lines that begin with `#` are comments. `UPDATE_GOLDEN=1` writes the
/// present output into the files. Each script begins with a new `S`; `run` carries out one command
/// and returns its output.
pub fn golden_scripts<S>(folder: &str, new: impl Fn() -> S, run: impl Fn(&mut S, &str) -> Vec<String>) {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 6, "scripts are missing from {}", folder.display());
    let mut differences = String::new();
    for file in files {
        let before = std::fs::read_to_string(&file).unwrap();
        let now = golden_output(&before, &mut new(), &run);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &now).unwrap();
        } else if let Some(at) = first_difference(&before, &now) {
            let line = |text: &str| text.lines().nth(at).unwrap_or("(nothing)").to_string();
            differences += &format!("{}:{}\n- {}\n+ {}\n", file.display(), at + 1, line(&before), line(&now));
        }
    }
    assert!(differences.is_empty(), "scripts differ (UPDATE_GOLDEN=1 accepts):\n{differences}");
}

/// The script with the present output of its commands.
fn golden_output<S>(script: &str, world: &mut S, run: &impl Fn(&mut S, &str) -> Vec<String>) -> String {
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with("=> ")) {
        out += &format!("{line}\n");
        if !line.is_empty() && !line.starts_with('#') {
            run(world, line).iter().for_each(|result| out += &format!("=> {result}\n"));
        }
    }
    out
}

/// The first line in which two texts differ, counting from 0.
fn first_difference(before: &str, now: &str) -> Option<usize> {
    let (before, now): (Vec<_>, Vec<_>) = (before.lines().collect(), now.lines().collect());
    (0..before.len().max(now.len())).find(|at| before.get(*at) != now.get(*at))
}

#[test]
fn a_script_whose_output_has_changed_is_noticed() {
    let run = |count: &mut u32, line: &str| {
        *count += 1;
        vec![format!("{line} is command {count}")]
    };
    let script = "# a comment\n\nfirst\n=> first is command 1\nsecond\n=> second is command 1\n";
    let now = golden_output(script, &mut 0, &run);
    assert_eq!(now, "# a comment\n\nfirst\n=> first is command 1\nsecond\n=> second is command 2\n");
    assert_eq!(first_difference(script, &now), Some(5));
    assert_eq!(first_difference(&now, &golden_output(&now, &mut 0, &run)), None);
    assert_eq!(first_difference("a\n", "a\nb\n"), Some(1), "a line that is missing counts");
}
