//! Schema changes (R34): what a shard makes of them on all replicas, and what it refuses.

use super::harness::{Shard, statement};
use super::start_logging;
use evenkeel_protocol::schema::{ColumnSchema, RelationKind};
use evenkeel_protocol::schema_change::{SchemaChange, SchemaDelta};
use evenkeel_protocol::shard::{ControlReply, ControlRequest, ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, OperatorId, RangeId, SqlError, TableId, TableSchema, Value};
use std::time::Duration;

/// Columns by name, type and object id; the first is the key.
fn table(id: u32, name: &str, columns: &[(&str, &str, u32)], pinned: bool) -> TableSchema {
    let column = |(name, type_name, type_oid): &(&str, &str, u32)| ColumnSchema {
        name: (*name).into(),
        type_name: (*type_name).into(),
        type_oid: *type_oid,
    };
    TableSchema {
        id: TableId(id),
        name: name.into(),
        columns: columns.iter().map(column).collect(),
        key: vec![0],
        pinned,
        ..TableSchema::default()
    }
}

fn sequence(id: u32, name: &str) -> TableSchema {
    let kind = RelationKind::Sequence;
    TableSchema { id: TableId(id), name: name.into(), kind, pinned: true, ..TableSchema::default() }
}

const ID: (&str, &str, u32) = ("id", "bigint", 20);
const N: (&str, &str, u32) = ("n", "bigint", 20);
const NOTE: (&str, &str, u32) = ("note", "text", 25);

pub(super) fn delta(version: u64, sql: &str, relations: Vec<TableSchema>, dropped: &[u32]) -> SchemaDelta {
    let change = SchemaChange { version, sql: sql.into(), settings: vec![("search_path".into(), "public".into())] };
    SchemaDelta { change, relations, dropped: dropped.iter().map(|id| TableId(*id)).collect() }
}

/// Asks until the answer is not "pending".
async fn answered(shard: &Shard, request: ControlRequest) -> ControlReply {
    let begun = evenkeel_host::now();
    loop {
        match shard.control(request.clone()).await {
            ControlReply::Pending { waiting_for } => {
                assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "{waiting_for}: {request:?}");
                evenkeel_host::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

/// Prepares and makes a change, as the placement driver does. New relations get the range of their
/// own number.
pub(super) async fn change(shard: &Shard, delta: SchemaDelta) {
    let operator = OperatorId(delta.change.version);
    let prepare = ControlRequest::PrepareSchema { operator, delta: delta.clone() };
    assert_eq!(answered(shard, prepare).await, ControlReply::Done, "{delta:?}");
    make(shard, delta).await;
}

/// Makes a decided change.
async fn make(shard: &Shard, delta: SchemaDelta) {
    let ControlReply::Report(report) = shard.control(ControlRequest::Report).await else { panic!("no report") };
    let owned = |id: TableId| report.ranges.iter().any(|range| range.table == id);
    let new = delta.relations.iter().map(|table| table.id).filter(|id| !owned(*id));
    let ranges = new.map(|id| (id, RangeId(id.0.into()))).collect();
    assert_eq!(answered(shard, ControlRequest::ApplySchema { delta, ranges }).await, ControlReply::Done);
}

async fn refused(shard: &Shard, delta: SchemaDelta) -> SqlError {
    let operator = OperatorId(100 + delta.change.version);
    let reply = answered(shard, ControlRequest::PrepareSchema { operator, delta: delta.clone() }).await;
    let ControlReply::Refused { code, reason } = reply else { panic!("{delta:?}: {reply:?}") };
    assert_eq!(code, "sql-refused", "{reason}");
    SqlError::from_sentence(&reason).unwrap_or_else(|| panic!("{reason}"))
}

/// What a replica's PostgreSQL knows of users' objects, as text.
async fn catalog(shard: &Shard, replica: u64) -> Option<Vec<String>> {
    let sql = "SELECT c.relkind::text || ' ' || c.oid::regclass::text || ' ' || coalesce(
            (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
             FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '')
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'evenkeel')
        UNION ALL SELECT 'constraint ' || conname FROM pg_constraint WHERE connamespace <> 'evenkeel'::regnamespace
            AND connamespace <> 'pg_catalog'::regnamespace AND connamespace <> 'information_schema'::regnamespace
        UNION ALL SELECT 'function ' || p.oid::regprocedure::text FROM pg_proc AS p JOIN pg_namespace AS n
            ON n.oid = p.pronamespace WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'evenkeel')
        ORDER BY 1";
    let rows = shard.postgres_if_there(replica).await?.query(sql, &[]).await.ok()?;
    Some(rows.iter().map(|row| row.get(0)).collect())
}

/// All replicas know the same objects.
async fn same_catalog(shard: &Shard) -> Vec<String> {
    let leader = shard.leader().await;
    let known = catalog(shard, leader).await.unwrap_or_default();
    let begun = evenkeel_host::now();
    for replica in shard.info.replicas.keys() {
        loop {
            let here = catalog(shard, *replica).await;
            if here.as_ref() == Some(&known) {
                break;
            }
            assert!(
                evenkeel_host::elapsed(begun) < Duration::from_secs(60),
                "replica {replica}: {here:#?}, leader: {known:#?}"
            );
            evenkeel_host::sleep(Duration::from_millis(50)).await;
        }
    }
    known
}

async fn rows(shard: &Shard, sql: &str) -> u64 {
    shard.sql(sql, &[]).await.unwrap_or_else(|failure| panic!("{sql}: {failure}")).affected
}

/// The changes of the next test, in order: a schema, tables with a foreign key, a view and a
/// function, an index, and alterations of a table that has rows.
fn story() -> Vec<SchemaDelta> {
    let parents = || table(1, "parents", &[ID, NOTE], true);
    let children = |columns: &[(&str, &str, u32)]| table(2, "children", columns, true);
    vec![
        delta(
            1,
            "CREATE TABLE parents (id bigint PRIMARY KEY, note text); CREATE TABLE children (id bigint PRIMARY KEY, \
             n bigint REFERENCES parents)",
            vec![parents(), children(&[ID, N])],
            &[],
        ),
        delta(
            2,
            "CREATE SCHEMA app; CREATE TABLE app.items (id bigint PRIMARY KEY, n bigint)",
            vec![table(3, "app.items", &[ID, N], false)],
            &[],
        ),
        delta(
            3,
            "CREATE VIEW app.notes AS SELECT id, note FROM parents; CREATE FUNCTION twice(bigint) RETURNS bigint \
             LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1'; CREATE INDEX items_n ON app.items (twice(n))",
            vec![],
            &[],
        ),
        delta(
            4,
            "ALTER TABLE app.items ADD COLUMN note text NOT NULL DEFAULT 'x'",
            vec![table(3, "app.items", &[ID, N, NOTE], false)],
            &[],
        ),
        delta(
            5,
            "ALTER TABLE app.items RENAME COLUMN n TO amount; ALTER TABLE app.items RENAME TO things",
            vec![table(3, "app.things", &[ID, ("amount", "bigint", 20), NOTE], false)],
            &[],
        ),
        delta(6, "CREATE SEQUENCE app.numbers", vec![sequence(4, "app.numbers")], &[]),
        delta(
            7,
            "DROP TABLE children; DROP VIEW app.notes; ALTER TABLE parents DROP COLUMN note",
            vec![table(1, "parents", &[ID], true)],
            &[2],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_makes_the_same_changes_in_the_same_order() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    for delta in story() {
        let version = delta.change.version;
        change(&shard, delta.clone()).await;
        // A repeated request finds it done.
        make(&shard, delta.clone()).await;
        if version == 1 {
            assert_eq!(rows(&shard, "INSERT INTO parents VALUES (1, 'one')").await, 1);
            assert_eq!(rows(&shard, "INSERT INTO children VALUES (7, 1)").await, 1);
            assert_eq!(rows(&shard, "SELECT note FROM parents WHERE id = 1").await, 1);
        }
    }
    assert_eq!(rows(&shard, "SELECT id FROM parents WHERE id = 1").await, 1);
    let gone = shard.sql("SELECT note FROM parents WHERE id = 1", &[]).await;
    assert!(matches!(&gone, Err(Failure::Sql(error)) if error.code == "42703"), "{gone:?}");
    let known = same_catalog(&shard).await;
    for object in ["r parents id bigint", "r app.things id bigint, amount bigint, note text", "function twice(bigint)"]
    {
        assert!(known.iter().any(|line| line == object), "{object}: {known:#?}");
    }
    assert!(!known.iter().any(|line| line.contains("children") || line.contains("app.notes")), "{known:#?}");
    let ControlReply::Report(report) = shard.control(ControlRequest::Report).await else { panic!("no report") };
    assert_eq!((report.schema.version, report.schema.prepared), (7, None));
    assert_eq!(report.ranges.iter().map(|range| range.table.0).collect::<Vec<_>>(), [1, 3, 4]);
    let ControlReply::Schema(deltas) = shard.control(ControlRequest::SchemaAfter { version: 2 }).await else {
        panic!()
    };
    assert_eq!(deltas, story()[2..]);
    shard.stop().await;
}

/// A refused change leaves nothing behind, and the next change is possible at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_alike_on_every_replica_is_refused() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    let t = |columns: &[(&str, &str, u32)]| table(1, "t", columns, false);
    change(&shard, delta(1, "CREATE TABLE t (id bigint PRIMARY KEY, n bigint)", vec![t(&[ID, N])], &[])).await;
    rows(&shard, "INSERT INTO t VALUES (1, 5), (2, 5)").await;
    let known = same_catalog(&shard).await;
    let time = ("at", "timestamptz", 1184);
    for (sql, relations, code) in [
        ("CREATE TABLE u (id bigint PRIMARY KEY); SELECT 1/0", vec![table(2, "u", &[ID], false)], "22012"),
        ("ALTER TABLE t ADD CHECK (n > 5)", vec![t(&[ID, N])], "23514"),
        ("CREATE UNIQUE INDEX ON t (n)", vec![t(&[ID, N])], "23505"),
        ("ALTER TABLE t ADD COLUMN at timestamptz DEFAULT now()", vec![t(&[ID, N, time])], "0A000"),
        ("ALTER TABLE t ADD COLUMN m double precision DEFAULT random()", vec![t(&[ID, N, ("m", "", 701)])], "0A000"),
        ("UPDATE t SET n = 6", vec![], "0A000"),
        ("CREATE TABLE u AS SELECT 1::bigint AS id", vec![table(2, "u", &[ID], false)], "0A000"),
        // Undeclared, or other than declared.
        ("CREATE TABLE u (id bigint PRIMARY KEY)", vec![], "42P16"),
        ("DROP TABLE t", vec![], "42P16"),
        ("ALTER TABLE t ADD COLUMN note text", vec![t(&[ID, NOTE, N])], "42P16"),
        // R6.
        ("COMMIT", vec![], "0A000"),
        ("RESET ROLE", vec![], "0A000"),
        ("CREATE TABLE evenkeel.x (id bigint PRIMARY KEY)", vec![], "42501"),
        ("COPY t TO '/tmp/x'", vec![], "42501"),
        ("CREATE FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'", vec![], "0A000"),
        ("CREATE TABLE public.u (id bigint PRIMARY KEY", vec![], "42601"),
    ] {
        let error = refused(&shard, delta(2, sql, relations, &[])).await;
        assert_eq!(error.code, code, "{sql}: {error}");
        assert_eq!(same_catalog(&shard).await, known, "{sql}");
    }
    let mut odd = delta(2, "SELECT 1", vec![], &[]);
    odd.change.settings = vec![("session_replication_role".into(), "replica".into())];
    assert_eq!(refused(&shard, odd).await.code, "0A000");
    change(&shard, delta(2, "ALTER TABLE t ADD COLUMN note text", vec![t(&[ID, N, NOTE])], &[])).await;
    assert_eq!(rows(&shard, "UPDATE t SET note = 'y' WHERE id = 2").await, 1);
    shard.checked_sums().await;
    shard.stop().await;
}

/// From the trial to the change its tables are held; others are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_change_holds_its_tables_until_it_is_made_or_given_up() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    let two = "CREATE TABLE t (id bigint PRIMARY KEY, n bigint); CREATE TABLE u (id bigint PRIMARY KEY, n bigint)";
    let (t, u) = (|| table(1, "t", &[ID, N], false), table(2, "u", &[ID, N], false));
    change(&shard, delta(1, two, vec![t(), u], &[])).await;
    rows(&shard, "INSERT INTO t VALUES (1, 1)").await;
    // An index is no other table: PostgreSQL's locks say what it concerns.
    let index = delta(2, "CREATE INDEX ON t (n)", vec![], &[]);
    for (operator, given_up) in [(2, true), (3, false)] {
        let operator = OperatorId(operator);
        let prepare = ControlRequest::PrepareSchema { operator, delta: index.clone() };
        assert_eq!(answered(&shard, prepare.clone()).await, ControlReply::Done);
        // Neither a repeated request nor another leader changes that.
        assert_eq!(answered(&shard, prepare).await, ControlReply::Done);
        shard.control(ControlRequest::TransferLeadership { to: None }).await;
        let held = loop {
            let write = ShardRequest::Statement(statement("UPDATE t SET n = n + 1 WHERE id = 1", &[]));
            let connection = shard.connect_to_leader().await;
            let reply = connection.call_within(&write, Duration::from_secs(5)).await;
            if !matches!(reply, Ok(ShardReply::Failed(Failure::NotLeader { .. })) | Err(_)) {
                break reply;
            }
        };
        assert!(matches!(held, Ok(ShardReply::Failed(Failure::Busy { .. }))), "{held:?}");
        rows(&shard, &format!("INSERT INTO u VALUES ({}, 1)", operator.0)).await;
        if given_up {
            for _ in 0..2 {
                assert_eq!(answered(&shard, ControlRequest::AbortSchema { operator }).await, ControlReply::Done);
            }
        } else {
            make(&shard, index.clone()).await;
        }
        assert_eq!(rows(&shard, "UPDATE t SET n = n + 1 WHERE id = 1").await, 1);
    }
    assert!(same_catalog(&shard).await.iter().any(|line| line.contains("t_n_idx")));
    shard.checked_sums().await;
    shard.stop().await;
}

/// A replica that was down, and one that lost its disk, have the same schema and rows in the end.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_were_away_make_the_changes_that_they_missed() {
    start_logging();
    let mut shard = Shard::start(1, 3).await;
    let changes = story();
    change(&shard, changes[0].clone()).await;
    for n in 0..50 {
        rows(&shard, &format!("INSERT INTO parents VALUES ({n}, 'note {n}')")).await;
    }
    let leader = shard.leader().await;
    let away = (1..=3).find(|replica| *replica != leader).unwrap();
    shard.stop_replica(away).await;
    for delta in &changes[1..5] {
        change(&shard, delta.clone()).await;
    }
    for n in 0..50 {
        let text: Value = format!("note {n}").as_str().into();
        shard.sql("INSERT INTO children VALUES ($1, $1)", &[i64::from(n).into()]).await.unwrap();
        shard.sql("UPDATE parents SET note = $2 WHERE id = $1", &[i64::from(n).into(), text]).await.unwrap();
    }
    shard.start_replica(away);
    same_catalog(&shard).await;
    // Without its disk it takes a peer's state: the changes are made on an empty database.
    shard.stop_replica(away).await;
    shard.wipe_replica(away);
    shard.start_replica(away);
    change(&shard, changes[5].clone()).await;
    // As if values had been taken from it: its state comes with a state transfer.
    for replica in 1..=3 {
        if replica != away {
            shard.behind_the_back(replica, "SELECT setval('app.numbers', 41)").await;
        }
    }
    shard.stop_replica(away).await;
    shard.wipe_replica(away);
    shard.start_replica(away);
    let begun = evenkeel_host::now();
    while shard.inspect(away).await.is_none_or(|i| i.seeding || i.applied == 0) {
        assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(90), "{:?}", shard.inspect(away).await);
        evenkeel_host::sleep(Duration::from_millis(50)).await;
    }
    let next = shard.postgres(away).await.query_one("SELECT nextval('app.numbers')", &[]).await.unwrap();
    assert_eq!(next.get::<_, i64>(0), 42);
    change(&shard, changes[6].clone()).await;
    same_catalog(&shard).await;
    let sums = shard.checked_sums().await;
    assert_eq!(sums.iter().find(|(range, _)| *range == RangeId(1)).map(|(_, sum)| sum.rows), Some(50));
    shard.stop().await;
}

/// Leaders come and go while the schema changes and rows are written.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_end_in_the_middle_leave_no_replica_behind() {
    start_logging();
    let mut shard = Shard::start(1, 3).await;
    let columns = |version: u64| {
        let mut columns = vec![ID, N];
        columns.extend((2..=version).map(|_| NOTE));
        let mut schema = table(1, "t", &columns, false);
        (2..=version).for_each(|n| schema.columns[n as usize].name = format!("c{n}"));
        schema
    };
    change(&shard, delta(1, "CREATE TABLE t (id bigint PRIMARY KEY, n bigint)", vec![columns(1)], &[])).await;
    for version in 2..=5u64 {
        for n in 0..20 {
            shard.sql("INSERT INTO t (id, n) VALUES ($1, 1)", &[(version as i64 * 100 + n).into()]).await.unwrap();
        }
        let sql = format!("ALTER TABLE t ADD COLUMN c{version} text DEFAULT 'of {version}'");
        let next = delta(version, &sql, vec![columns(version)], &[]);
        let operator = OperatorId(version);
        let prepare = ControlRequest::PrepareSchema { operator, delta: next.clone() };
        assert_eq!(answered(&shard, prepare).await, ControlReply::Done);
        let leader = shard.leader().await;
        // The request may or may not arrive before the leader is gone.
        let apply = ShardRequest::Control(ControlRequest::ApplySchema { delta: next.clone(), ranges: vec![] });
        let connection = shard.connect_to_leader().await;
        let asked = tokio::spawn(async move { connection.call_within(&apply, Duration::from_secs(10)).await.ok() });
        evenkeel_host::sleep(Duration::from_millis(7 * version)).await;
        shard.stop_replica(leader).await;
        _ = asked.await;
        make(&shard, next).await;
        shard.start_replica(leader);
    }
    same_catalog(&shard).await;
    let sums = shard.checked_sums().await;
    assert_eq!(sums[0].1.rows, 80);
    shard.stop().await;
}
