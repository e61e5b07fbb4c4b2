//! Reads of several shards through a gateway. They mean what they mean on one PostgreSQL: each
//! statement is compared with the same one on tables that lie on one shard, whose PostgreSQL
//! executes it. Rows are read once while ranges move, and a transaction sees its own writes.

use evenkeel_local_cluster::ClusterOptions;
use evenkeel_tests::placing::{cut, place};
use evenkeel_tests::postgres_client::{connect, done, failed, has, refused, rows};
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_postgres::Client;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            reads_of_several_shards_mean_what_they_mean_on_one,
            a_transaction_sees_its_own_writes,
            cursors_portals_and_copies_read_several_shards,
            rows_are_read_once_while_ranges_move,
            a_repeatable_read_does_not_change_when_a_range_moves,
        ],
    )
}

/// The balancer is off, so that ranges stay on the shards that the scenarios choose.
fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.shards = 3;
    options.gateway = true;
    options.balancer.insert("enabled".into(), false.into());
    options
}

/// Tables of all types that a key can have, with values that are null.
const TABLES: &str = "
CREATE TABLE items (id bigint PRIMARY KEY, name text, price numeric(10, 2), made timestamptz, note text, tags text[]);
CREATE TABLE words (word text PRIMARY KEY, item bigint, n integer, j jsonb);
CREATE TABLE events (at timestamptz, who uuid, kind smallint, f double precision, PRIMARY KEY (at, who));
CREATE TABLE blobs (b bytea PRIMARY KEY, iv interval, d date);
CREATE TABLE small (id integer PRIMARY KEY, label text);
INSERT INTO items SELECT n, 'name ' || n % 7, n * 1.25, '2024-01-01'::timestamptz + n * interval '1 hour',
  CASE WHEN n % 5 = 0 THEN NULL ELSE 'note ' || n END, ARRAY['a' || n % 3, NULL] FROM generate_series(-50, 250) n;
INSERT INTO words SELECT chr(97 + n % 26) || n, n % 300 - 40, NULLIF(n % 7, 3), jsonb_build_object('k', n % 4)
  FROM generate_series(1, 260) n;
INSERT INTO events SELECT '2023-12-31 22:00+00'::timestamptz + n * interval '10 minutes', md5((n % 9)::text)::uuid,
  n % 5, CASE WHEN n % 11 = 0 THEN 'NaN' ELSE n / 7.0 END FROM generate_series(1, 200) n;
INSERT INTO blobs SELECT decode(md5(n::text), 'hex'), n * interval '-7 minutes', '2000-02-28'::date + n
  FROM generate_series(1, 120) n;
INSERT INTO small SELECT n, 'label ' || n FROM generate_series(0, 6) n;
CREATE VIEW dear AS SELECT id, name, price FROM items WHERE price > 100";

/// Makes the tables twice: in the schema `apart` over three shards, in `whole` on one.
async fn make(world: &World, client: &Client) -> ScenarioResult {
    for schema in ["apart", "whole"] {
        done(client, &format!("CREATE SCHEMA {schema}")).await?;
        for statement in TABLES.split(';') {
            done(client, &format!("SET search_path = {schema}; {statement}")).await?;
        }
    }
    for table in ["items", "words", "events", "blobs", "small"] {
        place(world, &world.only_range(&format!("whole.{table}")).await?, 1).await?;
    }
    cut(world, "apart.items", &[json!(0), json!(100), json!(200)]).await?;
    cut(world, "apart.words", &[json!("f"), json!("p1"), json!("t")]).await?;
    let noon = |uuid: &str| json!(["2024-01-01T12:00:00Z", uuid]);
    let least = noon("00000000-0000-0000-0000-000000000000");
    cut(world, "apart.events", &[least, noon("c81e728d-9d4c-2f63-6f06-7f89cc14862c")]).await?;
    cut(world, "apart.blobs", &[json!("\\x50"), json!("\\xa0ff")]).await
}

/// Statements that give the same rows in the same order whatever executes them.
const SHAPES: &[&str] = &[
    "SELECT count(*), count(note), sum(price), min(made), max(note), avg(price) FROM items",
    "SELECT * FROM items ORDER BY id",
    "SELECT id, note FROM items ORDER BY note NULLS FIRST, id DESC LIMIT 20 OFFSET 5",
    "SELECT DISTINCT name FROM items ORDER BY 1",
    "SELECT name, count(*) FILTER (WHERE id % 2 = 0), array_agg(id ORDER BY id) FROM items GROUP BY name ORDER BY 1",
    "SELECT id, name, sum(price) FROM items GROUP BY id ORDER BY id LIMIT 9",
    "SELECT name, kind, count(*) FROM items, events GROUP BY ROLLUP (name, kind) ORDER BY 1, 2, 3",
    "SELECT i.name, w.n, count(*) FROM items i JOIN words w ON w.item = i.id GROUP BY 1, 2 ORDER BY 1, 2",
    "SELECT i.id, w.word FROM items i LEFT JOIN words w ON w.item = i.id AND w.n > 4 ORDER BY 1, 2 LIMIT 50",
    "SELECT i.id, w.word FROM items i FULL JOIN words w ON w.item = i.id + 200 ORDER BY 1, 2",
    "SELECT s.label, (SELECT count(*) FROM items i WHERE i.id % 7 = s.id) FROM small s ORDER BY 1",
    "SELECT s.id, x.id FROM small s, LATERAL (SELECT id FROM items WHERE id > s.id * 40 ORDER BY id LIMIT 2) x ORDER BY 1, 2",
    "SELECT id FROM items WHERE EXISTS (SELECT FROM words w WHERE w.item = items.id AND w.word > 'm') ORDER BY 1",
    "SELECT id FROM items WHERE id NOT IN (SELECT item FROM words WHERE item IS NOT NULL) ORDER BY 1",
    "SELECT id, rank() OVER (PARTITION BY name ORDER BY price DESC), lag(note) OVER (ORDER BY id) FROM items ORDER BY id",
    "SELECT item FROM words UNION SELECT id FROM items ORDER BY 1",
    "SELECT item FROM words INTERSECT ALL SELECT id FROM items ORDER BY 1",
    "SELECT id FROM items EXCEPT SELECT item FROM words ORDER BY 1",
    "WITH RECURSIVE r AS (SELECT min(id) AS id FROM items UNION ALL SELECT id + 90 FROM r WHERE id < 200)
     SELECT r.id, i.name FROM r LEFT JOIN items i USING (id) ORDER BY 1",
    "WITH a AS MATERIALIZED (SELECT * FROM items WHERE price > 10), b AS (SELECT max(price) AS most FROM a)
     SELECT id FROM a, b WHERE price > most - 5 ORDER BY 1",
    "SELECT word, n, j->>'k' FROM words WHERE word >= 'e' AND word < 'q' ORDER BY word",
    "SELECT word FROM words WHERE word BETWEEN 'p1' AND 'p2' OR word IN ('a26', 'z25') ORDER BY word DESC",
    "SELECT word FROM words WHERE j @> '{\"k\": 2}' AND word LIKE '%2%' ORDER BY word",
    "SELECT at, who, f FROM events ORDER BY at, who",
    "SELECT at AT TIME ZONE 'Asia/Tokyo', kind FROM events WHERE at >= '2024-01-01 11:50+00' ORDER BY at, who LIMIT 9",
    "SELECT who, count(*), sum(f), max(at) FROM events GROUP BY who ORDER BY who",
    "SELECT f, count(*) FROM events GROUP BY f ORDER BY f DESC LIMIT 7",
    "SELECT date_trunc('hour', at) AS hour, count(*) FROM events GROUP BY 1 ORDER BY 1",
    "SELECT encode(b, 'hex'), iv, d FROM blobs ORDER BY b",
    "SELECT b, iv FROM blobs WHERE b > '\\x4fff' AND b <= '\\xa100' ORDER BY b",
    "SELECT sum(iv), min(d), max(d) FROM blobs",
    "SELECT * FROM dear ORDER BY id DESC LIMIT 4",
    "SELECT count(*) FROM dear JOIN words ON item = id",
    "SELECT tags, count(*) FROM items GROUP BY tags ORDER BY tags",
    "SELECT count(*) FROM ONLY items",
    "SELECT string_agg(name, ',' ORDER BY id) FROM items WHERE id IN (-50, 99, 100, 199, 250)",
    "SELECT coalesce(note, name) AS x, id FROM items WHERE note IS NULL ORDER BY id",
    "SELECT id FROM items WHERE price = ANY (ARRAY[1.25, 125, 250]) ORDER BY id",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY price), mode() WITHIN GROUP (ORDER BY name) FROM items",
    "VALUES ((SELECT count(*) FROM items), (SELECT count(*) FROM words))",
    "SELECT a.id FROM items a JOIN items b ON b.id = a.id + 100 WHERE b.note IS NULL ORDER BY 1",
    "SELECT count(*) FROM items WHERE made < '2024-01-05' AND made > timestamptz '2024-01-01 00:00+00'",
    "SELECT id, CASE WHEN id < 0 THEN 'below' WHEN note IS NULL THEN 'null' END FROM items ORDER BY id LIMIT 70",
    "SELECT FROM items WHERE id > 247",
    "TABLE small ORDER BY id",
];

async fn reads_of_several_shards_mean_what_they_mean_on_one(world: &World) -> ScenarioResult {
    let (apart, whole) = (connect(world).await?, connect(world).await?);
    make(world, &apart).await?;
    for settings in
        ["", "; SET timezone = 'America/St_Johns'; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'"]
    {
        done(&apart, &format!("SET search_path = apart{settings}")).await?;
        done(&whole, &format!("SET search_path = whole{settings}")).await?;
        for sql in SHAPES {
            let (found, expected) = (rows(&apart, sql).await?, rows(&whole, sql).await?);
            ensure!(found == expected, "{sql}: {found:?} instead of {expected:?}");
        }
    }
    // The extended protocol, with parameters and binary results.
    let sql = "SELECT i.id, i.price, w.word FROM items i JOIN words w ON w.item = i.id WHERE i.id > $1 AND w.word < $2 ORDER BY 1, 3";
    for (least, before) in [(-60_i64, "z"), (90, "q"), (1_000, "z")] {
        let mut answers = Vec::new();
        for client in [&apart, &whole] {
            let found = client.query(sql, &[&least, &before]).await.map_err(|error| failed(&error))?;
            let ids = found.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, String>(2)));
            answers.push(ids.collect::<Vec<_>>());
        }
        ensure!(answers[0] == answers[1], "{sql} with {least}, {before}: {answers:?}");
    }
    for (sql, code) in [
        ("SELECT 1 / (id - 100) FROM items", "22012"),
        ("SELECT id FROM items WHERE 1 / (id - 100) > 2", "22012"),
        ("SELECT name::integer FROM items", "22P02"),
        ("SELECT ctid FROM items", "0A000"),
        ("SELECT id FROM items FOR UPDATE", "0A000"),
        ("DELETE FROM words w USING items i WHERE w.item = i.id", "0A000"),
    ] {
        refused(&apart, sql, code).await?;
    }
    let plan = rows(&apart, "EXPLAIN SELECT id FROM items ORDER BY id LIMIT 3").await?;
    ensure!(plan.iter().filter(|line| line.contains("Foreign Scan")).count() == 3, "{plan:?}");
    let plan = rows(&apart, "EXPLAIN SELECT note FROM items WHERE id = 120").await?;
    ensure!(!plan.iter().any(|line| line.contains("Foreign Scan")), "{plan:?}");
    // A change of the schema reaches the tables below, and a dropped table takes them along.
    done(&apart, "ALTER TABLE items ADD COLUMN more text DEFAULT 'more'").await?;
    has(&apart, "SELECT count(more), min(more) FROM items", &["301|more"]).await?;
    done(&apart, "ALTER TABLE items RENAME COLUMN more TO other; ALTER TABLE items DROP COLUMN note").await?;
    has(&apart, "SELECT count(other), max(id) FROM items", &["301|250"]).await?;
    done(&apart, "DROP TABLE blobs").await?;
    refused(&apart, "SELECT count(*) FROM blobs", "42P01").await?;
    world.nothing_is_wrong().await
}

/// A table of 300 rows over three shards.
async fn numbers(world: &World, client: &Client, name: &str) -> ScenarioResult {
    done(client, &format!("CREATE TABLE {name} (id bigint PRIMARY KEY, v bigint NOT NULL)")).await?;
    done(client, &format!("INSERT INTO {name} SELECT n, n FROM generate_series(1, 300) n")).await?;
    cut(world, name, &[json!(100), json!(200)]).await
}

async fn a_transaction_sees_its_own_writes(world: &World) -> ScenarioResult {
    let (client, other) = (connect(world).await?, connect(world).await?);
    numbers(world, &client, "own").await?;
    let look = "SELECT count(*), sum(v), min(id) FROM own";
    for isolation in ["READ COMMITTED", "REPEATABLE READ"] {
        done(&client, &format!("BEGIN ISOLATION LEVEL {isolation}")).await?;
        has(&client, look, &["300|45150|1"]).await?;
        done(&client, "SAVEPOINT a; UPDATE own SET v = v + 1000 WHERE id = 7").await?;
        has(&client, look, &["300|46150|1"]).await?;
        done(&client, "SAVEPOINT b; INSERT INTO own VALUES (-1, 0)").await?;
        has(&client, look, &["301|46150|-1"]).await?;
        has(&other, look, &["300|45150|1"]).await?;
        done(&client, "ROLLBACK TO b").await?;
        has(&client, look, &["300|46150|1"]).await?;
        refused(&client, "SELECT 1 / (v - 150) FROM own", "22012").await?;
        refused(&client, look, "25P02").await?;
        done(&client, "ROLLBACK TO a").await?;
        has(&client, look, &["300|45150|1"]).await?;
        done(&client, "DELETE FROM own WHERE id = 5; COMMIT").await?;
        has(&other, look, &["299|45145|1"]).await?;
        done(&client, "INSERT INTO own VALUES (5, 5)").await?;
    }
    // What it writes to several shards is seen, too, and nothing of it lasts.
    done(&client, "BEGIN; UPDATE own SET v = 0 WHERE id = 1; UPDATE own SET v = v + 1 WHERE id = 250").await?;
    has(&client, look, &["300|45150|1"]).await?;
    done(&client, "ROLLBACK").await?;
    has(&client, look, &["300|45150|1"]).await?;
    // It can be read, before and after.
    done(&client, "BEGIN; SELECT v FROM own WHERE id = 250; UPDATE own SET v = 0 WHERE id = 1; SELECT v FROM own WHERE id = 150; COMMIT")
        .await?;
    has(&client, look, &["300|45149|1"]).await?;
    // At REPEATABLE READ, what others commit later is not seen.
    done(&client, "BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    has(&client, look, &["300|45149|1"]).await?;
    done(&other, "UPDATE own SET v = 1 WHERE id = 1").await?;
    has(&client, look, &["300|45149|1"]).await?;
    done(&client, "COMMIT").await?;
    has(&client, look, &["300|45150|1"]).await?;
    world.nothing_is_wrong().await
}

async fn cursors_portals_and_copies_read_several_shards(world: &World) -> ScenarioResult {
    let mut client = connect(world).await?;
    numbers(world, &client, "walked").await?;
    done(&client, "BEGIN; DECLARE c SCROLL CURSOR FOR SELECT id FROM walked ORDER BY id; DECLARE d CURSOR FOR SELECT v FROM walked WHERE v = 250")
        .await?;
    has(&client, "FETCH 2 FROM c", &["1", "2"]).await?;
    done(&client, "UPDATE walked SET v = 0 WHERE id = 3; DELETE FROM walked WHERE id = 4").await?;
    has(&client, "FETCH 2 FROM c", &["3", "4"]).await?;
    has(&client, "FETCH BACKWARD 1 FROM c", &["3"]).await?;
    has(&client, "FETCH ALL FROM d", &["250"]).await?;
    done(&client, "MOVE ABSOLUTE 299 IN c").await?;
    has(&client, "FETCH 5 FROM c", &["300"]).await?;
    done(&client, "CLOSE c").await?;
    refused(&client, "FETCH 1 FROM c", "34000").await?;
    done(&client, "ROLLBACK").await?;
    refused(&client, "BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT id FROM walked", "0A000").await?;
    done(&client, "ROLLBACK").await?;
    // A portal that is read in steps, while another statement is executed between two of them.
    let transaction = client.transaction().await.map_err(|error| failed(&error))?;
    let portal = transaction.bind("SELECT id FROM walked ORDER BY id", &[]).await.map_err(|error| failed(&error))?;
    let mut ids = Vec::new();
    loop {
        let part = transaction.query_portal(&portal, 70).await.map_err(|error| failed(&error))?;
        ids.extend(part.iter().map(|row| row.get::<_, i64>(0)));
        if part.len() < 70 {
            break;
        }
        let count = transaction.query_one("SELECT count(*) FROM walked", &[]).await.map_err(|error| failed(&error))?;
        ensure!(count.get::<_, i64>(0) == 300, "{count:?}");
    }
    ensure!(ids == (1..=300).collect::<Vec<i64>>(), "a portal in steps gave {ids:?}");
    transaction.commit().await.map_err(|error| failed(&error))?;
    for (sql, lines) in [
        ("COPY walked TO STDOUT", 300),
        ("COPY walked (v) TO STDOUT (FORMAT csv, HEADER)", 301),
        ("COPY (SELECT id FROM walked WHERE id > 90) TO STDOUT", 210),
    ] {
        let copied = client.copy_out(sql).await.map_err(|error| failed(&error))?;
        let pieces: Vec<_> = futures::StreamExt::collect(copied).await;
        let mut found = 0;
        for piece in pieces {
            found += piece.map_err(|error| failed(&error))?.iter().filter(|byte| **byte == b'\n').count();
        }
        ensure!(found == lines, "{sql} gave {found} lines instead of {lines}");
    }
    world.nothing_is_wrong().await
}

async fn rows_are_read_once_while_ranges_move(world: &World) -> ScenarioResult {
    let client = connect(world).await?;
    numbers(world, &client, "moving").await?;
    let reader = connect(world).await?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let reading = tokio::spawn(async move {
        let (mut read, mut again) = (0, 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let sql = "SELECT count(*), sum(a.id), count(b.id) FROM moving a JOIN moving b ON b.id = a.id";
            match rows(&reader, sql).await {
                Ok(found) if found == ["300|45150|300"] => read += 1,
                Ok(found) => return Err(ScenarioFailure::new(format!("read {found:?} after {read} reads"))),
                Err(failure) if failure.to_string().contains("40001") => again += 1,
                Err(failure) => return Err(failure),
            }
        }
        Ok((read, again))
    });
    for round in 0..4 {
        for (at, piece) in world.ranges("moving").await?.iter().enumerate() {
            let to = (at as u32 + round) % 3 + 1;
            place(world, piece, to).await?;
            // Writes go on, too.
            done(&client, &format!("UPDATE moving SET v = v + 1 WHERE id = {}", at * 100 + 5)).await?;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (read, again) = reading.await.map_err(|error| ScenarioFailure::new(error.to_string()))??;
    ensure!(read > 10 && again * 10 <= read, "{read} reads, and {again} that were to be repeated");
    world.nothing_is_wrong().await
}

async fn a_repeatable_read_does_not_change_when_a_range_moves(world: &World) -> ScenarioResult {
    let (client, other) = (connect(world).await?, connect(world).await?);
    numbers(world, &client, "kept").await?;
    for look in ["SELECT count(*) FROM kept", "SELECT count(*) FROM kept WHERE id < 90"] {
        done(&client, "BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        let before = rows(&client, look).await?;
        let ranges = world.ranges("kept").await?;
        let Some(first) = ranges.first() else { return Err(ScenarioFailure::new("there are no ranges")) };
        place(world, first, first.route.shard.0 % 3 + 1).await?;
        done(&other, &format!("INSERT INTO kept VALUES ({}, 0)", -(before.len() as i64) - look.len() as i64)).await?;
        match rows(&client, look).await {
            Ok(found) => ensure!(found == before, "{look}: {found:?} after {before:?}"),
            Err(failure) if failure.to_string().contains("40001") => {}
            Err(failure) => return Err(failure),
        }
        done(&client, "ROLLBACK").await?;
    }
    world.nothing_is_wrong().await
}
