//! What each kind of statement is classified as, shown by example.

#![allow(clippy::unwrap_used)]
use super::statements;
use crate::grammar::statement::{CopyKind, Kind, Rows, SettingChange, Statement, TransactionCommand};

fn one(text: &str) -> Statement {
    let mut all = statements(text).unwrap();
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn rows(text: &str) -> Rows {
    match one(text).kind {
        Kind::Rows(rows) => rows,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_text_is_cut_into_statements_with_their_places() {
    let all = statements("SELECT 'ä;';\n  -- a remark\n SELECT 2 ; ; COMMIT").unwrap();
    let texts: Vec<&str> = all.iter().map(|statement| &*statement.text).collect();
    assert_eq!(texts, ["SELECT 'ä;'", "SELECT 2", "COMMIT"]);
    // In characters, as PostgreSQL counts positions.
    assert_eq!(all[1].characters_before, 28);
    assert!(statements("").unwrap().is_empty() && statements(" ; ").unwrap().is_empty());
    assert_eq!(statements("SELEC 1").unwrap_err().code, "42601");
}

#[test]
fn functions_and_sequences_are_found() {
    let statement = one("SELECT now(), app.total(1), nextval('a.s'::regclass), setval('t', 5)");
    assert_eq!(statement.functions, ["nextval", "now", "setval", "total"]);
    assert_eq!(statement.sequences, ["a.s", "t"]);
    assert!(rows("SELECT setval('t', 5)").sets_sequences && !rows("SELECT nextval('t')").sets_sequences);
}

#[test]
fn statements_with_a_statement_inside_say_which_part_counts() {
    assert_eq!(rows("EXPLAIN (ANALYZE) SELECT a FROM t").inner.as_deref(), Some("SELECT a FROM t"));
    let cursor = rows("DECLARE c CURSOR FOR SELECT a FROM t");
    assert!(cursor.needs_block && cursor.inner.is_some());
    assert!(rows("FETCH 5 FROM c").follows && rows("CLOSE c").follows);
    assert_eq!(rows("TRUNCATE a.t, u RESTART IDENTITY").named, [("\"a\".\"t\"".into(), true), ("\"u\"".into(), true)]);
    assert_eq!(rows("COPY t TO STDOUT").named, [("\"t\"".into(), false)]);
    assert!(rows("DO $$ BEGIN END $$").runs_code);
}

#[test]
fn transactions_and_settings_are_commands() {
    let begin = one("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").kind;
    let Kind::Transaction(TransactionCommand::Begin("BEGIN", modes)) = begin else { panic!() };
    assert_eq!((modes.isolation.as_deref(), modes.read_only), (Some("repeatable read"), Some(true)));
    assert_eq!(one("ROLLBACK TO s").kind, Kind::Transaction(TransactionCommand::RollbackTo("s".into())));
    assert_eq!(one("END AND CHAIN").kind, Kind::Transaction(TransactionCommand::Commit { chain: true }));
    let set = |text: &str| match one(text).kind {
        Kind::Setting(SettingChange::Set { local, name, value }) => (local, name, value),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(set("SET search_path TO a, \"B c\""), (false, "search_path".into(), Some("\"a\", \"B c\"".into())));
    assert_eq!(set("SET LOCAL work_mem = '4MB'"), (true, "work_mem".into(), Some("4MB".into())));
    assert_eq!(set("SET TIME ZONE 'Asia/Tokyo'"), (false, "timezone".into(), Some("Asia/Tokyo".into())));
    assert_eq!(set("RESET work_mem"), (false, "work_mem".into(), None));
    assert_eq!(one("RESET ALL").kind, Kind::Setting(SettingChange::ResetAll));
    assert!(matches!(one("PREPARE TRANSACTION 'x'").kind, Kind::Refused { .. }));
}

#[test]
fn copies_say_how_their_rows_are_written() {
    let Kind::CopyIn(copy) = one("COPY t (a, b) FROM STDIN WITH (FORMAT csv, HEADER, QUOTE '''')").kind else {
        panic!()
    };
    assert_eq!((copy.columns, copy.format, copy.quote, copy.header), (Some(2), CopyKind::Csv, b'\'', true));
    let Kind::CopyIn(copy) = one("copy t from stdin with (freeze on)").kind else { panic!() };
    assert_eq!((copy.columns, copy.format, copy.header), (None, CopyKind::Text, false));
    assert!(matches!(one("COPY t FROM '/etc/passwd'").kind, Kind::Refused { .. }));
}

#[test]
fn changes_of_the_schema_are_rewritten_only_where_they_must_be() {
    let schema = |text: &str| match one(text).kind {
        Kind::Schema(change) => change,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(schema("CREATE TABLE t (id serial PRIMARY KEY)").rewritten, None);
    let index = schema("CREATE INDEX CONCURRENTLY i ON t (a)");
    assert_eq!(index.rewritten.as_deref(), Some("CREATE INDEX i ON t USING btree (a)"));
    let filled = schema("CREATE TABLE n AS SELECT a FROM t");
    assert!(filled.rewritten.unwrap().ends_with("WITH NO DATA"));
    assert_eq!(filled.then.as_deref(), Some("INSERT INTO \"n\" SELECT a FROM t"));
    assert_eq!(schema("ALTER TABLE t RENAME COLUMN a TO b").tag, "ALTER TABLE");
    assert_eq!(schema("DROP VIEW v").tag, "DROP VIEW");
    for refused in
        ["CREATE TEMP TABLE t (a int)", "CREATE TABLE p (a int) PARTITION BY RANGE (a)", "LISTEN x", "CREATE ROLE r"]
    {
        assert!(matches!(one(refused).kind, Kind::Refused { .. }), "{refused}");
    }
}

#[test]
fn prepared_statements_keep_their_parts_as_text() {
    let prepare = one("PREPARE p (int, text) AS SELECT $1 + 1, $2").kind;
    let Kind::Prepare { name, types, statement } = prepare else { panic!() };
    assert_eq!((name.as_str(), types.len(), statement.as_str()), ("p", 2, "SELECT $1 + 1, $2"));
    let execute = one("EXECUTE p (1 + 1, 'x')").kind;
    assert_eq!(execute, Kind::Execute { name: "p".into(), parameters: vec!["1 + 1".into(), "'x'".into()] });
}

#[test]
fn what_would_stay_in_a_shared_session_is_kept_here_or_refused() {
    for text in ["SELECT pg_advisory_lock(1)", "SELECT pg_catalog.pg_try_advisory_lock_shared(1, 2)"] {
        assert!(matches!(one(text).kind, Kind::Refused { .. }), "{text}");
    }
    assert!(matches!(one("SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock(2)").kind, Kind::Rows(_)));
    let set = one("SELECT pg_catalog.set_config('Search_Path', '', false), set_config('work_mem', '1MB', true)");
    let expected = [("search_path", "", false), ("work_mem", "1MB", true)];
    assert_eq!(set.configured, expected.map(|(name, value, local)| (name.to_string(), value.to_string(), local)));
    assert!(matches!(one("SELECT set_config(n, v, false) FROM t").kind, Kind::Refused { .. }));
}

#[test]
fn calls_are_seen_wherever_they_stand() {
    let call = "set_config('search_path', 'a', false)";
    let mut missed = Vec::new();
    for text in [
        format!("EXPLAIN ANALYZE SELECT {call}"),
        format!("COPY (SELECT {call}) TO STDOUT"),
        format!("DECLARE c CURSOR FOR SELECT {call}"),
        format!("WITH a AS (SELECT {call}) SELECT * FROM a"),
        format!("SELECT 1 FROM t ORDER BY (SELECT {call}) LIMIT length({call})"),
        format!("INSERT INTO t SELECT {call} ON CONFLICT DO UPDATE SET a = {call} RETURNING {call}"),
        format!("UPDATE t SET a = {call} FROM u WHERE {call} IS NOT NULL"),
        format!("SELECT * FROM {call} a JOIN t ON a = {call}, LATERAL (VALUES ({call})) v"),
        format!("MERGE INTO t USING u ON t.a = {call} WHEN MATCHED THEN UPDATE SET a = {call}"),
        format!("SELECT count(*) FILTER (WHERE {call} = '') OVER (PARTITION BY {call}) FROM t"),
    ] {
        let statement = one(&text);
        let found = (statement.configured.len(), statement.functions.iter().any(|name| name == "set_config"));
        if found != (text.matches("set_config").count(), true) {
            missed.push((text, found));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
