//! Runs the scenarios in `testscripts/`, which double as documentation: after each statement stands
//! what it became.
//!
//! A scenario is a list of blocks separated by empty lines. A block is one statement (it may span
//! lines), then `with …` lines, each a set of parameters in JSON, then what came out, in lines that
//! begin with `=>`. `UPDATE_GOLDEN=1` writes what comes out into the files. Lines that begin with
//! `#` are comments.

#![allow(clippy::unwrap_used)]
use super::*;
use evenkeel_protocol::error::SqlError;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::key::Key;
use evenkeel_protocol::schema::TableSchema;
use evenkeel_protocol::value::{Value, key_to_json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

fn value_from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap()), Value::Int),
        serde_json::Value::String(s) => Value::Text(s.clone()),
        other => panic!("no parameter: {other}"),
    }
}

fn show_error(error: &SqlError) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" [{hint}]")).unwrap_or_default();
    format!("error {}: {}{hint}", error.code, error.message)
}

fn show_key(schema: &TableSchema, key: &Key) -> String {
    if *key == Key::MIN {
        return "-∞".into();
    }
    let values = key_to_json(&schema.codec(), key).expect("ends of intervals are whole keys");
    format!("({})", values.iter().map(|v| v.to_string()).collect::<Vec<_>>().join(", "))
}

fn show_touches(schema: Option<&TableSchema>, touches: &Touches) -> String {
    let interval = |schema, interval: &KeyInterval| {
        let end = interval.end.as_ref().map_or("+∞".into(), |end| show_key(schema, end));
        format!("[{}, {end})", show_key(schema, &interval.start))
    };
    match (touches, schema) {
        (Touches::Nothing, _) => "nothing".into(),
        (Touches::Keys(keys), Some(schema)) => {
            format!("keys {}", keys.iter().map(|key| show_key(schema, key)).collect::<Vec<_>>().join(" "))
        }
        (Touches::Intervals(list), _) if *list == [KeyInterval::ALL] => "all keys".into(),
        (Touches::Intervals(list), Some(schema)) => {
            format!("intervals {}", list.iter().map(|i| interval(schema, i)).collect::<Vec<_>>().join(" "))
        }
        (touches, None) => panic!("{touches:?} without a table"),
    }
}

/// What comes out of one statement, line by line.
fn outcome(tables: &mut BTreeMap<String, TableSchema>, statement: &str, parameters: &[Vec<Value>]) -> String {
    let mut out = String::new();
    let parsed = match parse(statement) {
        Err(error) => return show_error(&error) + "\n",
        Ok(Command::Begin(options)) => return format!("begin {options:?}\n"),
        Ok(Command::Commit) => return "commit\n".into(),
        Ok(Command::Rollback) => return "rollback\n".into(),
        Ok(Command::Setting(command)) => return format!("{command:?}\n"),
        Ok(Command::CreateTable { mut schema, if_not_exists }) => {
            writeln!(out, "create {}{}", schema.create_sql, if if_not_exists { " (if not exists)" } else { "" })
                .unwrap();
            let key: Vec<_> = schema.key_columns().map(|column| column.name.as_str()).collect();
            writeln!(out, "key ({})", key.join(", ")).unwrap();
            // The placement driver reads the definition again before shards run it: it must find
            // the same table.
            let again = parse(&schema.create_sql);
            assert!(matches!(&again, Ok(Command::CreateTable { schema: same, .. }) if *same == schema), "{again:?}");
            schema.id = evenkeel_protocol::ids::TableId(tables.len() as u32 + 1);
            tables.insert(schema.name.clone(), schema);
            return out;
        }
        Ok(Command::Statement(parsed)) => parsed,
    };
    let schema = parsed.table_name().and_then(|name| tables.get(name));
    let plan = match parsed.bind(schema) {
        Err(error) => return show_error(&error) + "\n",
        Ok(plan) => plan,
    };
    assert_eq!(plan.table(), schema.map(|schema| schema.id));
    writeln!(out, "sql {}", plan.sql()).unwrap();
    if plan.kind() == PlanKind::Select {
        let locks = if plan.locks() { ", locks" } else { "" };
        let backwards = if plan.descending() { ", from the last range to the first" } else { "" };
        writeln!(out, "scan {:?}{backwards}{locks}", plan.scan()).unwrap();
    } else {
        writeln!(out, "returns {} column(s), then {:?} ({:?})", plan.returned(), plan.capture(), plan.effect())
            .unwrap();
    }
    let none = vec![Vec::new()];
    for params in if parameters.is_empty() && plan.parameters() == 0 { &none } else { parameters } {
        match plan.touches(params) {
            Ok(touches) => writeln!(out, "touches {}", show_touches(schema, &touches)).unwrap(),
            Err(error) => writeln!(out, "touches {}", show_error(&error)).unwrap(),
        }
        match plan.row_limit(params) {
            Ok(None) => {}
            Ok(Some(rows)) => writeln!(out, "limit {rows}").unwrap(),
            Err(error) => writeln!(out, "limit {}", show_error(&error)).unwrap(),
        }
    }
    if matches!(plan.scan(), Scan::RangeByRange { .. }) {
        writeln!(out, "clipped {}", plan.clipped_sql(true, true, true)).unwrap();
        writeln!(out, "in pieces {}", plan.piece_sql(true, true, true, true)).unwrap();
    }
    out
}

/// The script with what comes out today.
fn run(script: &str) -> String {
    let mut tables = BTreeMap::new();
    let mut result = Vec::new();
    for block in script.trim_end().split("\n\n") {
        let (mut statement, mut parameters, mut kept) = (String::new(), Vec::new(), String::new());
        for line in block.lines().filter(|line| !line.starts_with("=> ")) {
            kept += line;
            kept += "\n";
            if let Some(json) = line.strip_prefix("with ") {
                let values: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
                parameters.push(values.iter().map(value_from_json).collect());
            } else if !line.starts_with('#') {
                statement += line;
                statement += "\n";
            }
        }
        if !statement.is_empty() {
            for line in outcome(&mut tables, &statement, &parameters).lines() {
                kept += "=> ";
                kept += line;
                kept += "\n";
            }
        }
        result.push(kept);
    }
    result.join("\n")
}

#[test]
fn statements_become_what_the_scenarios_say() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/testscripts");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the scenarios are missing from {}", folder.display());
    let mut differences = String::new();
    for file in files {
        let before = std::fs::read_to_string(&file).unwrap();
        let now = run(&before);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &now).unwrap();
            continue;
        }
        let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), now.lines().collect());
        if old != new {
            // Scenarios are short: the first line that differs, with its surroundings, is diff
            // enough.
            let at = old.iter().zip(&new).position(|(a, b)| a != b).unwrap_or(old.len().min(new.len()));
            let around = |lines: &[&str], sign: char| {
                let lines = lines.iter().skip(at.saturating_sub(4)).take(9);
                lines.fold(String::new(), |text, line| text + &format!("{sign} {line}\n"))
            };
            write!(differences, "{}:{}\n{}{}", file.display(), at + 1, around(&old, '-'), around(&new, '+')).unwrap();
        }
    }
    assert!(differences.is_empty(), "scenarios differ (UPDATE_GOLDEN=1 accepts):\n{differences}");
}
