//! Statements in users' own texts: what comes back, and what the replicas hold afterwards.

use super::harness::{Shard, id};
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
        let request = ShardRequest::Commit { transaction: self.number, id, key: None, durability: Durability::Disk };
        match self.connection.call(&request).await.unwrap() {
            ShardReply::Done => Ok(()),
            ShardReply::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
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
