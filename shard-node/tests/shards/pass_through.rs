//! Statements in users' own texts: what comes back, and what the replicas hold afterwards.

use super::harness::{Shard, id};
use super::schema::{change, delta};
use super::start_logging;
use bytes::Bytes;
use evenkeel_protocol::pass_through::*;
use evenkeel_protocol::shard::*;
use evenkeel_protocol::*;
use evenkeel_rpc::Connection;

/// A transaction in users' own texts, on one connection to a leader.
struct Session<'a> {
    connection: &'a Connection<ShardRequest, ShardReply>,
    number: u64,
    begin: Option<PassThroughBegin>,
    /// The tables that each statement may write to.
    tables: Vec<TableId>,
}

/// What came back of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    messages: Bytes,
    parameters: Vec<u32>,
    end: PassThroughEnd,
}

impl Answer {
    /// The messages, each with its tag.
    fn messages(&self) -> Vec<(char, Bytes)> {
        let (mut found, mut rest) = (Vec::new(), self.messages.clone());
        while !rest.is_empty() {
            let length = 1 + u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            let message = rest.split_to(length);
            found.push((char::from(message[0]), message.slice(5..)));
        }
        found
    }

    /// The rows' values as texts, those of a row separated by `|`.
    fn rows(&self) -> Vec<String> {
        let rows = self.messages().into_iter().filter(|(tag, _)| *tag == 'D');
        let text = |body: Bytes| {
            let values = evenkeel_postgres_session::row::text_row(&body).unwrap();
            values.into_iter().map(|value| value.unwrap_or("NULL".into())).collect::<Vec<_>>().join("|")
        };
        rows.map(|(_, body)| text(body)).collect()
    }

    fn tag(&self) -> &str {
        match &self.end {
            PassThroughEnd::Complete(tag) => tag,
            other => panic!("{other:?}"),
        }
    }
}

impl<'a> Session<'a> {
    fn new(connection: &'a Connection<ShardRequest, ShardReply>, number: u64, tables: &[u32]) -> Session<'a> {
        let tables = tables.iter().copied().map(TableId).collect();
        Session { connection, number, begin: Some(PassThroughBegin::default()), tables }
    }

    /// The same, planned with the schema of [`Shard::create_relations`].
    fn planned(connection: &'a Connection<ShardRequest, ShardReply>, number: u64, tables: &[u32]) -> Session<'a> {
        let begin = Some(PassThroughBegin { schema_version: 1, ..PassThroughBegin::default() });
        Session { begin, ..Session::new(connection, number, tables) }
    }

    async fn step(&mut self, step: PassThroughStep) -> Result<Answer, Failure> {
        let used = |table: &TableId| TableUse { table: *table, keys: vec![KeyInterval::ALL], writes: true };
        let tables = self.tables.iter().map(used).collect();
        let request = PassThroughRequest { transaction: self.number, begin: self.begin.take(), tables, step };
        let mut stream = self.connection.stream(&ShardRequest::PassThrough(Box::new(request))).await.unwrap();
        let (mut messages, mut parameters) = (Vec::new(), Vec::new());
        loop {
            match stream.next().await {
                Some(ShardReply::PassThrough(PassThroughItem::Messages(more))) => messages.extend_from_slice(&more),
                Some(ShardReply::PassThrough(PassThroughItem::Parameters(types))) => parameters = types,
                Some(ShardReply::PassThrough(PassThroughItem::End(end))) => {
                    return Ok(Answer { messages: messages.into(), parameters, end });
                }
                Some(ShardReply::Failed(failure)) => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn execute(&mut self, statement: PassThroughStatement) -> Result<Answer, Failure> {
        self.step(PassThroughStep::Execute(statement)).await
    }

    async fn sql(&mut self, sql: &str) -> Result<Answer, Failure> {
        self.execute(text(sql)).await
    }

    async fn rows(&mut self, sql: &str) -> Vec<String> {
        self.sql(sql).await.unwrap().rows()
    }

    async fn commit(&mut self) -> Result<(), Failure> {
        self.commit_as(id()).await
    }

    async fn commit_as(&mut self, id: TxnId) -> Result<(), Failure> {
        let request = ShardRequest::Commit {
            transaction: self.number,
            id,
            key: None,
            durability: Durability::Disk,
            participants: Vec::new(),
        };
        match self.connection.call(&request).await.unwrap() {
            ShardReply::Done => Ok(()),
            ShardReply::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    async fn roll_back(&mut self) {
        let request = ShardRequest::Rollback { transaction: self.number };
        assert!(matches!(self.connection.call(&request).await.unwrap(), ShardReply::Done));
    }
}

fn text(sql: &str) -> PassThroughStatement {
    PassThroughStatement { sql: sql.into(), ..PassThroughStatement::default() }
}

fn error_of<T: std::fmt::Debug>(result: Result<T, Failure>) -> SqlError {
    match result {
        Err(Failure::Sql(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn code_of<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    error_of(result).code.into_owned()
}

const ITEMS: &str = "CREATE TABLE items (id bigint PRIMARY KEY, n integer NOT NULL, t text)";
const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY, item bigint NOT NULL, t text)";

/// DDL that the definition check of CREATE TABLE does not allow, on all replicas.
async fn ddl(shard: &Shard, sql: &str) {
    for replica in 1..=3 {
        shard.behind_the_back(replica, sql).await;
    }
}

async fn shard_with_items() -> Shard {
    let shard = Shard::start(1, 3).await;
    shard.create_table(ITEMS, 1, 1).await;
    shard.create_table(NOTES, 2, 2).await;
    shard
}

#[tokio::test(flavor = "multi_thread")]
async fn any_statement_is_executed_and_replicated() {
    start_logging();
    let shard = shard_with_items().await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::new(&connection, 1, &[1, 2]);
    let inserted = session.sql("INSERT INTO items SELECT n, n * 10, 'x' || n FROM generate_series(1, 1200) n").await;
    assert_eq!(inserted.unwrap().tag(), "INSERT 0 1200");
    session.sql("INSERT INTO notes VALUES (1, 1, 'one'), (2, 2, 'two'), (3, 2, NULL)").await.unwrap();
    let joined = "SELECT i.id, i.n, n.t FROM items i JOIN notes n ON n.item = i.id ORDER BY n.id";
    assert_eq!(session.rows(joined).await, ["1|10|one", "2|20|two", "2|20|NULL"]);
    // A CTE that writes to both.
    let both = "WITH gone AS (DELETE FROM notes WHERE item = 2 RETURNING id)
        UPDATE items SET n = n + 1 FROM gone WHERE items.id = gone.id RETURNING items.id, items.n";
    assert_eq!(session.rows(both).await, ["2|21", "3|31"]);
    // Keys change, and a row comes back under a key that another has left.
    session.sql("UPDATE items SET id = id + 5000 WHERE id <= 2").await.unwrap();
    session.sql("INSERT INTO items VALUES (1, -1, NULL), (9001, 0, NULL)").await.unwrap();
    session.sql("DELETE FROM items WHERE id = 9001").await.unwrap();
    session.commit().await.unwrap();
    let mut reader = Session::new(&connection, 2, &[]);
    let rows = reader.rows("SELECT id, n, t FROM items WHERE id < 3 OR id > 2000 ORDER BY id").await;
    assert_eq!(rows, ["1|-1|NULL", "5001|10|x1", "5002|21|x2"]);
    assert_eq!(reader.rows("SELECT id FROM notes").await, ["1"]);
    reader.commit().await.unwrap();
    // What the analysed way sees, and all replicas.
    assert_eq!(shard.sql("SELECT n FROM items WHERE id = 5002", &[]).await.unwrap().rows.int(0, 0), Some(21));
    let sums = shard.checked_sums().await;
    assert_eq!(sums.iter().map(|(_, sum)| sum.rows).collect::<Vec<_>>(), [1201, 1]);
    shard.stop().await;
}

/// R7: what functions and triggers do is captured: a row that an inner statement changes after the
/// outer one did, what a block undoes, cascades, deferred triggers.
#[tokio::test(flavor = "multi_thread")]
async fn changes_by_functions_triggers_and_cascades_are_captured() {
    start_logging();
    let shard = shard_with_items().await;
    ddl(
        &shard,
        "ALTER TABLE notes ADD CONSTRAINT of_item FOREIGN KEY (item) REFERENCES items
            ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE;
        CREATE FUNCTION touch(which bigint) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN
            UPDATE items SET n = 10 * which, t = 'inner' WHERE id = 1;
            RETURN 5;
        END $$;
        CREATE FUNCTION undone() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
            BEGIN
                UPDATE items SET n = -1;
                INSERT INTO items VALUES (777, 0, 'undone');
                RAISE 'no';
            EXCEPTION WHEN OTHERS THEN
                RETURN SQLERRM;
            END;
        END $$;
        CREATE FUNCTION log_items() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO notes SELECT coalesce(max(id), 0) + 1, NEW.id, 'by trigger' FROM notes;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER later AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.id > 1000) EXECUTE FUNCTION log_items();",
    )
    .await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::new(&connection, 1, &[1, 2]);
    session.sql("INSERT INTO items VALUES (1, 0, 'a'), (2, 0, 'b'), (3, 0, 'c')").await.unwrap();
    session.sql("INSERT INTO notes VALUES (1, 3, 'three'), (2, 2, 'two')").await.unwrap();
    session.commit().await.unwrap();

    let mut session = Session::new(&connection, 2, &[1, 2]);
    session.sql("UPDATE items SET n = touch(id) WHERE id > 1").await.unwrap();
    assert_eq!(session.rows("SELECT undone()").await, ["no"]);
    session.sql("DELETE FROM items WHERE id = 3").await.unwrap();
    session.sql("UPDATE items SET id = 22 WHERE id = 2").await.unwrap();
    // Its trigger runs at COMMIT.
    session.sql("INSERT INTO items VALUES (1001, 1, 'deferred')").await.unwrap();
    session.commit().await.unwrap();

    let mut reader = Session::new(&connection, 3, &[]);
    assert_eq!(reader.rows("SELECT * FROM items ORDER BY id").await, ["1|30|inner", "22|5|b", "1001|1|deferred"]);
    assert_eq!(reader.rows("SELECT * FROM notes ORDER BY id").await, ["2|22|two", "3|1001|by trigger"]);
    reader.commit().await.unwrap();

    // Constraints that are checked at COMMIT fail before anything is proposed (invariant 5).
    let mut session = Session::new(&connection, 4, &[1, 2]);
    session.sql("SET CONSTRAINTS ALL DEFERRED").await.unwrap();
    session.sql("INSERT INTO notes VALUES (9, 999, NULL)").await.unwrap();
    let refused = error_of(session.commit().await);
    assert_eq!((refused.code.as_ref(), refused.fields.unwrap().constraint.as_deref()), ("23503", Some("of_item")));
    let sums = shard.checked_sums().await;
    assert_eq!(sums.iter().map(|(_, sum)| sum.rows).collect::<Vec<_>>(), [3, 2]);
    shard.stop().await;
}

/// What comes back is what PostgreSQL sends: formats, tags, notices, errors with all their fields.
#[tokio::test(flavor = "multi_thread")]
async fn answers_come_as_postgres_sends_them() {
    start_logging();
    let shard = shard_with_items().await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::new(&connection, 1, &[1]);
    session.sql("INSERT INTO items VALUES (1, 5, 'a'), (2, 6, NULL)").await.unwrap();
    // Parameters in both formats, columns in both.
    let both = PassThroughStatement {
        parameter_types: vec![20, 0],
        parameter_formats: vec![1, 0],
        parameters: vec![Some(Bytes::copy_from_slice(&1i64.to_be_bytes())), Some(Bytes::from_static(b"6"))],
        result_formats: vec![0, 1, 0],
        describe: true,
        ..text("SELECT id, n, t FROM items WHERE id = $1 OR n = $2 ORDER BY id")
    };
    let answer = session.execute(both.clone()).await.unwrap();
    let messages = answer.messages();
    assert_eq!(messages.iter().map(|(tag, _)| *tag).collect::<String>(), "TDD");
    assert!(messages[0].1.starts_with(b"\0\x03id\0"), "{messages:?}");
    assert_eq!(&messages[1].1[..], b"\0\x03\0\0\0\x011\0\0\0\x04\0\0\0\x05\0\0\0\x01a");
    assert_eq!(&messages[2].1[..], b"\0\x03\0\0\0\x012\0\0\0\x04\0\0\0\x06\xff\xff\xff\xff");
    assert_eq!(answer.tag(), "SELECT 2");
    // Executed again from what was prepared.
    assert_eq!(session.execute(both).await.unwrap(), answer);
    let describe = |sql: &str| PassThroughStep::Describe { sql: sql.into(), parameter_types: Vec::new() };
    let described = session.step(describe("UPDATE items SET t = $2 WHERE id = $1 RETURNING n")).await.unwrap();
    assert_eq!((described.parameters.as_slice(), described.end.clone()), (&[20, 25][..], PassThroughEnd::Done));
    assert!(described.messages()[0].0 == 'T' && described.messages()[0].1.starts_with(b"\0\x01n\0"));
    let described = session.step(describe("DELETE FROM items")).await.unwrap();
    assert_eq!(described.messages()[0].0, 'n');
    let noticed = session.sql("DO $$ BEGIN RAISE NOTICE 'hello' USING DETAIL = 'world'; END $$").await.unwrap();
    assert_eq!(noticed.messages()[0].0, 'N');
    assert!(String::from_utf8_lossy(&noticed.messages()[0].1).contains("hello\0Dworld\0"));
    assert_eq!(session.sql("").await.unwrap().end, PassThroughEnd::Empty);
    let tags = ["UPDATE items SET n = 0 WHERE id = 77", "SELECT 1 WHERE false", "SAVEPOINT a"];
    for (sql, tag) in tags.into_iter().zip(["UPDATE 0", "SELECT 0", "SAVEPOINT"]) {
        assert_eq!(session.sql(sql).await.unwrap().tag(), tag);
    }

    let error = error_of(session.sql("INSERT INTO items VALUES (1, 5, 'again')").await);
    let fields = error.fields.unwrap();
    assert_eq!((error.code.as_ref(), error.detail.as_deref()), ("23505", Some("Key (id)=(1) already exists.")));
    assert_eq!((fields.constraint.as_deref(), fields.table.as_deref()), (Some("items_pkey"), Some("items")));
    assert_eq!(fields.severity, "ERROR");
    // PostgreSQL's transaction has failed, and goes on from the savepoint.
    assert_eq!(code_of(session.sql("SELECT 1").await), "25P02");
    assert_eq!(session.sql("ROLLBACK TO a").await.unwrap().tag(), "ROLLBACK");
    let error = error_of(session.sql("SELECT nothing FROM items").await);
    assert_eq!((error.code.as_ref(), error.fields.unwrap().position), ("42703", Some(8)));
    session.sql("ROLLBACK TO a").await.unwrap();
    for sql in ["COMMIT", "/* x */ rollback", "SELECT 1; SELECT 2", "PREPARE x AS SELECT 1"] {
        let code = code_of(session.sql(sql).await);
        assert!(["0A000", "42601"].contains(&code.as_str()), "{sql}: {code}");
        if code == "42601" {
            session.sql("ROLLBACK TO a").await.unwrap();
        }
    }
    session.commit().await.unwrap();
    assert_eq!(shard.checked_sums().await[0].1.rows, 2);
    shard.stop().await;
}

/// Settings belong to the transaction, portals give rows piece by piece, savepoints are followed.
#[tokio::test(flavor = "multi_thread")]
async fn settings_portals_and_savepoints() {
    start_logging();
    let shard = shard_with_items().await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::new(&connection, 1, &[1]);
    let settings = [("TimeZone", "Asia/Tokyo"), ("search_path", "pg_catalog, public"), ("my.own", "it's")];
    let settings = settings.map(|(name, value)| (name.to_string(), value.to_string()));
    session.begin = Some(PassThroughBegin { settings: settings.to_vec().into(), ..PassThroughBegin::default() });
    let show = "SELECT current_setting('timezone'), current_setting('search_path'), current_setting('my.own', true)";
    assert_eq!(session.rows(show).await, ["Asia/Tokyo|pg_catalog, public|it's"]);
    let time = "SELECT extract(epoch FROM '1970-01-01 09:00'::timestamptz)::integer";
    assert_eq!(session.rows(time).await, ["0"]);
    session.sql("SET statement_timeout = '77s'").await.unwrap();
    session.sql("INSERT INTO items SELECT n, 0, repeat('x', 100) FROM generate_series(1, 5000) n").await.unwrap();
    session.sql("SAVEPOINT a").await.unwrap();
    session.sql("DELETE FROM items WHERE id > 100").await.unwrap();
    session.sql("SAVEPOINT b").await.unwrap();
    session.sql("UPDATE items SET n = 1").await.unwrap();
    session.sql("ROLLBACK TO a").await.unwrap();
    session.sql("UPDATE items SET n = 2 WHERE id = 4000").await.unwrap();
    let mut portal = PassThroughStatement { max_rows: 2000, portal: 7, ..text("SELECT * FROM items ORDER BY id") };
    let first = session.execute(portal.clone()).await.unwrap();
    assert_eq!((first.rows().len(), &first.end), (2000, &PassThroughEnd::Suspended));
    portal = PassThroughStatement { max_rows: 1, portal: 8, ..text("SELECT 1 UNION ALL SELECT 2") };
    assert_eq!(session.execute(portal).await.unwrap().end, PassThroughEnd::Suspended);
    let rest = session.step(PassThroughStep::Fetch { portal: 7, max_rows: 0 }).await.unwrap();
    assert_eq!((rest.rows().len(), rest.tag()), (3000, "SELECT 3000"));
    let closed = session.step(PassThroughStep::ClosePortal { portal: 8 }).await.unwrap();
    assert_eq!(closed.end, PassThroughEnd::Done);
    assert_eq!(code_of(session.step(PassThroughStep::Fetch { portal: 7, max_rows: 1 }).await), "34000");
    session.commit().await.unwrap();

    // The next user of the session has the same statement, and other settings.
    let mut next = Session::new(&connection, 2, &[1]);
    assert_eq!(next.rows(time).await, ["32400"]);
    // PostgreSQL leaves an empty value of a setting that nobody has defined.
    assert_eq!(next.rows(show).await, ["UTC|public|"]);
    let limits = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')";
    assert_eq!(next.rows(limits).await, ["30s|2s"]);
    assert_eq!(next.rows("SELECT count(*), sum(n) FROM items").await, ["5000|2"]);
    next.roll_back().await;

    // A lock that this node does not wait for any longer is contention; the user's own limit is
    // not.
    let mut holder = Session::new(&connection, 3, &[1]);
    holder.sql("UPDATE items SET n = 3 WHERE id = 1").await.unwrap();
    let mut waiter = Session::new(&connection, 4, &[1]);
    assert_eq!(code_of(waiter.sql("UPDATE items SET n = 4 WHERE id = 1").await), "40001");
    waiter.roll_back().await;
    let mut waiter = Session::new(&connection, 5, &[1]);
    waiter.sql("SET LOCAL lock_timeout = '50ms'").await.unwrap();
    assert_eq!(code_of(waiter.sql("UPDATE items SET n = 4 WHERE id = 1").await), "55P03");
    waiter.roll_back().await;
    // A cancelled statement fails alone.
    let mut waiter = Session::new(&connection, 6, &[1]);
    waiter.sql("SAVEPOINT a").await.unwrap();
    let cancel = async {
        evenkeel_host::sleep(std::time::Duration::from_millis(300)).await;
        let request =
            PassThroughRequest { transaction: 6, begin: None, tables: Vec::new(), step: PassThroughStep::Cancel };
        let mut stream = connection.stream(&ShardRequest::PassThrough(Box::new(request))).await.unwrap();
        assert!(matches!(
            stream.next().await,
            Some(ShardReply::PassThrough(PassThroughItem::End(PassThroughEnd::Done)))
        ));
    };
    let (cancelled, ()) = tokio::join!(waiter.sql("SELECT pg_sleep(60)"), cancel);
    assert_eq!(code_of(cancelled), "57014");
    waiter.sql("ROLLBACK TO a").await.unwrap();
    waiter.sql("UPDATE items SET n = 5 WHERE id = 2").await.unwrap();
    waiter.commit().await.unwrap();
    holder.roll_back().await;
    assert_eq!(shard.sql("SELECT n FROM items WHERE id = 2", &[]).await.unwrap().rows.int(0, 0), Some(5));
    assert_eq!(shard.checked_sums().await[0].1.rows, 5000);
    shard.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_copied_in_and_out_and_tables_truncated() {
    start_logging();
    let shard = shard_with_items().await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::new(&connection, 1, &[1, 2]);
    session.sql("INSERT INTO items VALUES (1, 1, 'old')").await.unwrap();
    session.commit().await.unwrap();
    let mut session = Session::new(&connection, 2, &[1, 2]);
    session.sql("SAVEPOINT a").await.unwrap();
    assert_eq!(session.sql("TRUNCATE items, notes").await.unwrap().tag(), "TRUNCATE TABLE");
    let copy = |data: &str| PassThroughStatement {
        copy_data: Some(Bytes::copy_from_slice(data.as_bytes())),
        ..text("COPY items FROM STDIN")
    };
    for from in [0, 10_000] {
        let data: String = (from..from + 10_000).map(|n| format!("{n}\t{n}\t\\N\n")).collect();
        assert_eq!(session.execute(copy(&data)).await.unwrap().tag(), "COPY 10000");
    }
    session.commit().await.unwrap();

    let mut session = Session::new(&connection, 3, &[1, 2]);
    let out = session.sql("COPY (SELECT * FROM items ORDER BY id) TO STDOUT").await.unwrap();
    assert_eq!(out.tag(), "COPY 20000");
    let messages = out.messages();
    assert_eq!((messages.len(), messages[0].0, &messages[20_000].1[..]), (20_001, 'H', &b"19999\t19999\t\\N\n"[..]));
    let out =
        session.sql("COPY (SELECT * FROM items WHERE id < 2 ORDER BY id) TO STDOUT (FORMAT binary)").await.unwrap();
    let binary: Vec<u8> = out.messages().into_iter().filter(|(tag, _)| *tag == 'd').flat_map(|(_, b)| b).collect();
    assert!(binary.starts_with(b"PGCOPY\n\xff\r\n\0"));
    session.sql("DELETE FROM items WHERE id < 2").await.unwrap();
    let back = PassThroughStatement { copy_data: Some(binary.into()), ..text("COPY items FROM STDIN (FORMAT binary)") };
    assert_eq!(session.execute(back).await.unwrap().tag(), "COPY 2");
    // An error says where it is; data that do not come are an error, too.
    session.sql("SAVEPOINT a").await.unwrap();
    let error = error_of(session.execute(copy("30000\tx\t\\N\n")).await);
    assert_eq!(
        (error.code.as_ref(), error.fields.unwrap().context.as_deref()),
        ("22P02", Some("COPY items, line 1, column n: \"x\""))
    );
    session.sql("ROLLBACK TO a").await.unwrap();
    assert_eq!(code_of(session.sql("COPY items FROM STDIN").await), "57014");
    session.sql("ROLLBACK TO a").await.unwrap();
    // A truncation that is undone is none.
    session.sql("TRUNCATE items").await.unwrap();
    session.sql("ROLLBACK TO a").await.unwrap();
    session.sql("UPDATE items SET n = -1 WHERE id = 19999").await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(shard.checked_sums().await[0].1.rows, 20_000);
    assert_eq!(shard.sql("SELECT n FROM items WHERE id = 19999", &[]).await.unwrap().rows.int(0, 0), Some(-1));
    shard.stop().await;
}

/// A table that CREATE TABLE's definition check does not allow.
fn relation(id: u32, name: &str, columns: &[(&str, &str, u32)], key: &[usize], sql: &str) -> TableSchema {
    let column = |(name, type_name, type_oid): &(&str, &str, u32)| schema::ColumnSchema {
        name: name.to_string(),
        type_name: type_name.to_string(),
        type_oid: *type_oid,
    };
    TableSchema {
        id: TableId(id),
        name: name.into(),
        columns: columns.iter().map(column).collect(),
        key: key.to_vec(),
        create_sql: sql.into(),
        pinned: true,
        pass_through_only: true,
        ..TableSchema::default()
    }
}

impl Shard {
    /// Makes relations by a schema change.
    async fn create_relations(&self, sql: &str, relations: &[TableSchema]) {
        change(self, delta(1, sql, relations.to_vec(), &[])).await;
    }

    /// The rows of a transaction's statements. It is run again while a replica that starts moves
    /// the leadership: without effect until it is committed.
    async fn planned_rows(&self, number: u64, tables: &[u32], statements: &[&str]) -> Vec<String> {
        loop {
            let connection = self.connect_to_leader().await;
            let mut session = Session::planned(&connection, number, tables);
            let run = async {
                let mut rows = Vec::new();
                for sql in statements {
                    rows.extend(session.sql(sql).await?.rows());
                }
                session.commit().await.map(|()| rows)
            };
            match run.await {
                Ok(rows) => return rows,
                Err(Failure::NotLeader { .. }) => {}
                Err(Failure::Sql(error)) if error.code == "40001" => {}
                Err(other) => panic!("{statements:?}: {other:?}"),
            }
        }
    }

    /// The rows of a query, on each replica's PostgreSQL once it has caught up.
    async fn everywhere(&self, sql: &str) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for replica in 1..=3 {
            self.behind_the_back(replica, "SELECT").await;
            let rows = self.postgres(replica).await.simple_query(sql).await.unwrap();
            let row = |message: &tokio_postgres::SimpleQueryMessage| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    let values = (0..row.len()).map(|n| row.get(n).unwrap_or("NULL").to_string());
                    Some(values.collect::<Vec<_>>().join("|"))
                }
                _ => None,
            };
            found.push(rows.iter().filter_map(row).collect());
        }
        found
    }
}

/// R18: rows without a key, of which several may be equal, are the same on all replicas, one by
/// one.
#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_are_replicated() {
    start_logging();
    let mut shard = Shard::start(1, 3).await;
    let log = relation(1, "log", &[("n", "integer", 23), ("j", "json", 114), ("x", "double precision", 701)], &[], "");
    shard.create_relations("CREATE TABLE log (n integer, j json, x double precision)", &[log]).await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::planned(&connection, 1, &[1]);
    let many = "INSERT INTO log SELECT n % 3, '{\"a\": 1}', 0.1 FROM generate_series(1, 300) n";
    session.sql(many).await.unwrap();
    session.sql("INSERT INTO log VALUES (7, NULL, NULL), (7, NULL, NULL), (7, NULL, '-0')").await.unwrap();
    session.commit().await.unwrap();
    let mut session = Session::planned(&connection, 2, &[1]);
    // One of two equal rows.
    session.sql("DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log WHERE n = 7)").await.unwrap();
    session.sql("SAVEPOINT a").await.unwrap();
    session.sql("DELETE FROM log").await.unwrap();
    session.sql("ROLLBACK TO SAVEPOINT a").await.unwrap();
    assert_eq!(session.sql("UPDATE log SET n = n + 1 WHERE n IN (0, 1)").await.unwrap().tag(), "UPDATE 200");
    session.sql("INSERT INTO log VALUES (100, '[]', 1e300)").await.unwrap();
    session.commit().await.unwrap();
    let counts = "SELECT n, j::text, x::text, count(*) FROM log GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
    let expected = ["1|{\"a\": 1}|0.1|100", "2|{\"a\": 1}|0.1|200", "7|NULL|-0|1", "7|NULL|NULL|1", "100|[]|1e+300|1"];
    for rows in shard.everywhere(counts).await {
        assert_eq!(rows, expected);
    }
    // A function's changes of such a table may be undone unseen.
    let mut session = Session::planned(&connection, 3, &[1]);
    let refused = session.sql("DO $$ BEGIN INSERT INTO log VALUES (1, NULL, NULL); END $$").await;
    assert_eq!(code_of(refused), "0A000");
    assert_eq!(code_of(session.commit().await), "40001");
    let mut session = Session::planned(&connection, 4, &[1]);
    session.sql("INSERT INTO log VALUES (200, NULL, NULL)").await.unwrap();
    session.sql("TRUNCATE log").await.unwrap();
    session.sql("INSERT INTO log SELECT 5, NULL, NULL FROM generate_series(1, 50)").await.unwrap();
    session.sql("DELETE FROM log WHERE ctid IN (SELECT ctid FROM log LIMIT 20)").await.unwrap();
    session.commit().await.unwrap();
    for rows in shard.everywhere(counts).await {
        assert_eq!(rows, ["5|NULL|NULL|30"]);
    }
    assert_eq!(shard.checked_sums().await[0].1.rows, 30);

    // A replica that has lost everything gets each row once, while more are written.
    let leader = shard.leader().await;
    let wiped = (1..=3).find(|replica| *replica != leader).unwrap();
    shard.stop_replica(wiped).await;
    shard.wipe_replica(wiped);
    for number in 10..60 {
        if number == 20 {
            shard.start_replica(wiped);
        }
        shard.planned_rows(number, &[1], &["INSERT INTO log VALUES (6, NULL, NULL)"]).await;
    }
    for rows in shard.everywhere(counts).await {
        assert_eq!(rows, ["5|NULL|NULL|30", "6|NULL|NULL|50"]);
    }
    shard.stop().await;
}

/// Keys of types whose order is not known, values of users' types, values that PostgreSQL makes.
#[tokio::test(flavor = "multi_thread")]
async fn any_type_and_sequences_are_replicated() {
    start_logging();
    let mut shard = Shard::start(1, 3).await;
    let odd = [("k", "numeric", 1700), ("m", "public.mood", 0), ("v", "text", 25)];
    let kept = [("id", "bigint", 20), ("at", "date", 1082), ("n", "integer", 23)];
    let sequence = |id, name| TableSchema { kind: schema::RelationKind::Sequence, ..relation(id, name, &[], &[], "") };
    let relations = [
        relation(1, "odd", &odd, &[1, 0], ""),
        TableSchema { sequences: vec![TableId(3), TableId(4)], ..relation(2, "kept", &kept, &[1], "") },
        sequence(3, "kept_id_seq"),
        sequence(4, "kept_n_seq"),
        sequence(5, "alone"),
    ];
    let sql = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s');
        CREATE TABLE odd (k numeric, m mood, v text, PRIMARY KEY (m, k));
        CREATE TABLE kept (id bigint GENERATED ALWAYS AS IDENTITY, at date PRIMARY KEY, n serial);
        CREATE SEQUENCE alone INCREMENT -2";
    shard.create_relations(sql, &relations).await;
    let connection = shard.connect_to_leader().await;
    let mut session = Session::planned(&connection, 1, &[1, 2, 3, 4, 5]);
    session.sql("INSERT INTO odd VALUES (1.0, 'ok', 'a'), (2, 'it''s', 'b'), (-1e20, 'sad', NULL)").await.unwrap();
    session.sql("INSERT INTO kept (at) SELECT date '2020-01-01' + n FROM generate_series(1, 5) n").await.unwrap();
    assert_eq!(session.rows("SELECT nextval('alone'), nextval('alone')").await, ["-1|-3"]);
    session.commit().await.unwrap();
    let mut session = Session::planned(&connection, 2, &[1, 2]);
    // The same key, written differently; and one that becomes another's.
    session.sql("UPDATE odd SET k = 1.00, v = 'changed' WHERE m = 'ok'").await.unwrap();
    session.sql("UPDATE odd SET m = 'ok' WHERE m = 'it''s'").await.unwrap();
    session.sql("DELETE FROM odd WHERE m = 'sad'").await.unwrap();
    session.sql("UPDATE kept SET n = n * 10 WHERE id > 3").await.unwrap();
    session.sql("DELETE FROM kept WHERE at = '2020-01-02'").await.unwrap();
    session.commit().await.unwrap();
    for rows in shard.everywhere("SELECT k, m, v FROM odd ORDER BY m, k").await {
        assert_eq!(rows, ["1.00|ok|changed", "2|ok|b"]);
    }
    for rows in shard.everywhere("SELECT id, at, n FROM kept ORDER BY id").await {
        assert_eq!(rows, ["2|2020-01-03|2", "3|2020-01-04|3", "4|2020-01-05|40", "5|2020-01-06|50"]);
    }
    let states = "SELECT last_value, is_called FROM kept_id_seq UNION ALL SELECT last_value, is_called FROM kept_n_seq
        UNION ALL SELECT last_value, is_called FROM alone";
    for rows in shard.everywhere(states).await {
        assert_eq!(rows, ["5|t", "5|t", "-3|t"]);
    }
    // Back, because it was set.
    let mut session = Session::planned(&connection, 3, &[3, 5]);
    let set = PassThroughStatement { sets_sequences: true, ..text("SELECT setval('kept_id_seq', 2, false)") };
    session.execute(set).await.unwrap();
    session.commit().await.unwrap();
    let mut session = Session::planned(&connection, 4, &[5]);
    assert_eq!(session.rows("SELECT nextval('alone')").await, ["-5"]);
    session.commit().await.unwrap();
    for rows in shard.everywhere(states).await {
        assert_eq!(rows, ["2|f", "5|t", "-5|t"]);
    }
    shard.checked_sums().await;

    let leader = shard.leader().await;
    let wiped = (1..=3).find(|replica| *replica != leader).unwrap();
    ddl(&shard, "ALTER SYSTEM SET log_statement TO none").await;
    shard.stop_replica(wiped).await;
    drop(connection);
    // The next leader goes on where the last one was.
    shard.stop_replica(leader).await;
    shard.start_replica(wiped);
    let insert = "INSERT INTO kept (at) VALUES ('2021-01-01') RETURNING id, n";
    assert_eq!(shard.planned_rows(1, &[2, 5], &[insert, "SELECT nextval('alone')"]).await, ["2|6", "-7"]);
    shard.start_replica(leader);
    for rows in shard.everywhere(states).await {
        assert_eq!(rows, ["2|t", "6|t", "-7|t"]);
    }
    shard.checked_sums().await;
    shard.stop().await;
}

/// R7: what was not declared is not committed; R14 and R3: a COMMIT has one outcome.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_end_as_they_must() {
    start_logging();
    let shard = shard_with_items().await;
    let connection = shard.connect_to_leader().await;
    for (declared, sql) in
        [(vec![1], "INSERT INTO notes VALUES (1, 1, NULL)"), (vec![], "INSERT INTO items VALUES (1, 1, 'x')")]
    {
        let mut session = Session::new(&connection, 1, &declared);
        session.sql(sql).await.unwrap();
        assert_eq!(code_of(session.commit().await), "0A000", "{sql}");
    }
    // Nothing is executed where a key is not owned.
    let mut session = Session::new(&connection, 2, &[1, 99]);
    assert!(matches!(session.sql("INSERT INTO items VALUES (2, 2, 'x')").await, Err(Failure::Moved { .. })));
    // It can begin again under the same number.
    let mut session = Session::new(&connection, 2, &[1]);
    session.sql("INSERT INTO items VALUES (3, 3, 'x')").await.unwrap();
    let commit = id();
    session.commit_as(commit).await.unwrap();
    session.commit_as(commit).await.unwrap();
    let mut session = Session::new(&connection, 3, &[1]);
    session.sql("UPDATE items SET n = 4 WHERE id = 3").await.unwrap();
    session.roll_back().await;
    assert_eq!(code_of(session.commit().await), "40001");
    // A client that has gone leaves no lock behind.
    let other = shard.connect_to_leader().await;
    let mut session = Session::new(&other, 1, &[1]);
    session.sql("UPDATE items SET n = 5 WHERE id = 3").await.unwrap();
    let request = PassThroughRequest {
        transaction: 1,
        begin: None,
        tables: Vec::new(),
        step: PassThroughStep::Execute(text("SELECT pg_sleep(60)")),
    };
    drop(other.stream(&ShardRequest::PassThrough(Box::new(request))).await.unwrap());
    drop(other);
    let mut session = Session::new(&connection, 4, &[1]);
    let mut tries = 0;
    while let Err(failure) = session.sql("UPDATE items SET n = 6 WHERE id = 3").await {
        assert_eq!(code_of::<()>(Err(failure)), "40001");
        session.roll_back().await;
        tries += 1;
        assert!(tries < 5, "the row stays locked");
        session = Session::new(&connection, 4 + tries, &[1]);
    }
    session.commit().await.unwrap();

    // A failover in the middle.
    let mut session = Session::new(&connection, 50, &[1]);
    session.sql("UPDATE items SET n = 7 WHERE id = 3").await.unwrap();
    let old = shard.leader().await;
    let begun = evenkeel_host::now();
    while shard.leader().await == old {
        shard.control(ControlRequest::TransferLeadership { to: Some(old % 3 + 1) }).await;
        assert!(evenkeel_host::elapsed(begun) < std::time::Duration::from_secs(60));
        evenkeel_host::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(code_of(session.commit().await), "40001");
    assert_eq!(shard.sql("SELECT n FROM items WHERE id = 3", &[]).await.unwrap().rows.int(0, 0), Some(6));
    shard.checked_sums().await;
    shard.stop().await;
}
