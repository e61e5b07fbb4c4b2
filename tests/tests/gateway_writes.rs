//! Statements that write to several shards through a gateway. They do what they do on one
//! PostgreSQL: each statement is compared with the same one on a table that lies on one shard,
//! whose PostgreSQL executes it. All shards keep what a statement did, or none.

use evenkeel_local_cluster::ClusterOptions;
use evenkeel_tests::placing::{cut, place};
use evenkeel_tests::postgres_client::{connect, done, failed, has, refused, rows};
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use futures::SinkExt;
use serde_json::json;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_postgres::{Client, SimpleQueryMessage};

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            writes_to_several_shards_do_what_they_do_on_one,
            errors_and_rollbacks_leave_nothing_behind,
            rows_are_copied_to_several_shards,
            writes_are_whole_while_ranges_move,
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

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, name text DEFAULT 'nobody', n integer NOT NULL DEFAULT 7 CHECK (n < 1000), \
    at timestamptz, price numeric(8, 2), tags text[])";

/// Makes the table twice: in the schema `apart_…` over three shards, in `whole_…` on one.
async fn make(world: &World, name: &str) -> Result<(Client, Client), ScenarioFailure> {
    let (apart, whole) = (connect(world).await?, connect(world).await?);
    for (schema, client) in
        [("apart", &apart), ("whole", &whole)].map(|(schema, client)| (format!("{schema}_{name}"), client))
    {
        done(client, &format!("CREATE SCHEMA {schema}")).await?;
        done(client, &format!("SET search_path = {schema}")).await?;
        done(client, TABLE).await?;
        done(client, "CREATE TABLE source (id bigint PRIMARY KEY, v text)").await?;
        done(client, "INSERT INTO source SELECT n, 'source ' || n FROM generate_series(1, 40) n").await?;
    }
    for table in ["t", "source"] {
        place(world, &world.only_range(&format!("whole_{name}.{table}")).await?, 1).await?;
    }
    cut(world, &format!("apart_{name}.t"), &[json!(100), json!(200)]).await?;
    cut(world, &format!("apart_{name}.source"), &[json!(10), json!(20)]).await?;
    Ok((apart, whole))
}

/// What a statement answers: its rows in order, and its tags.
async fn answer(client: &Client, sql: &str) -> Result<(Vec<String>, Vec<u64>), String> {
    let messages = client.simple_query(sql).await;
    let messages = messages.map_err(|error| {
        error
            .as_db_error()
            .map_or_else(|| error.to_string(), |error| format!("{}: {}", error.code().code(), error.message()))
    })?;
    let (mut rows, mut tags) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                let values = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_string());
                rows.push(values.collect::<Vec<_>>().join("|"));
            }
            SimpleQueryMessage::CommandComplete(count) => tags.push(count),
            _ => {}
        }
    }
    Ok((rows, tags))
}

/// Executes a statement on both tables, and expects the same of both.
async fn same(apart: &Client, whole: &Client, sql: &str) -> ScenarioResult {
    let (mut found, mut expected) = (answer(apart, sql).await, answer(whole, sql).await);
    // A change returns its rows in no particular order.
    for answer in [&mut found, &mut expected] {
        if let (Ok((rows, _)), false) = (answer, sql.starts_with("INSERT")) {
            rows.sort_unstable();
        }
    }
    ensure!(found == expected, "{sql}: {found:?} instead of {expected:?}");
    let look = "SELECT * FROM t ORDER BY id";
    let (found, expected) = (rows(apart, look).await?, rows(whole, look).await?);
    ensure!(found == expected, "after {sql}: {found:?} instead of {expected:?}");
    Ok(())
}

const STATEMENTS: &[&str] = &[
    "INSERT INTO t (id) VALUES (1), (101), (201)",
    "INSERT INTO t (id, name, n, at, price, tags) VALUES (202, 'x', 1, '2024-02-03 04:05+06', 1.234, '{a,NULL}'), (2, NULL, DEFAULT, NULL, -5, '{}') RETURNING id, name, n, price, tags",
    "INSERT INTO t (id, n) SELECT n * 10, n FROM generate_series(30, 3, -1) n RETURNING *",
    "INSERT INTO t (id, name) SELECT id * 7 + 1000, v FROM source WHERE id % 3 = 0",
    "INSERT INTO t (id, name) SELECT -id, name || '!' FROM t WHERE id < 150",
    "INSERT INTO t AS old (id, name) VALUES (101, 'again'), (3, 'new'), (203, 'new') ON CONFLICT (id) DO UPDATE SET name = old.name || excluded.name, n = old.n + 1 RETURNING id, name, n",
    "INSERT INTO t (id, name) VALUES (203, 'no'), (4, 'yes'), (104, 'yes'), (4, 'no') ON CONFLICT DO NOTHING",
    "INSERT INTO t (id) VALUES (300), (5), (300) ON CONFLICT (id) DO UPDATE SET n = 9",
    "INSERT INTO t (id) VALUES (6), (106), (206), (6)",
    "INSERT INTO t (id, n) VALUES (7, 1), (107, 1000)",
    "INSERT INTO t (id, n) VALUES (7, 1), (107, NULL)",
    "INSERT INTO t (id, price) VALUES (7, 1), (107, 1e9)",
    "INSERT INTO t (id, price) SELECT 400 + n, 1 / (n - 3) FROM generate_series(1, 5) n",
    "INSERT INTO t (id) SELECT 1 WHERE false",
    "WITH w AS (SELECT max(id) AS most FROM t) INSERT INTO t (id, name) SELECT most + n * 50, 'w' FROM w, generate_series(1, 3) n",
    "INSERT INTO t (id, name) SELECT 5000 + n * 13, repeat('long ', 200) FROM generate_series(-600, 600) n",
    "UPDATE t SET n = n + 1",
    "UPDATE t SET name = 'u' || id WHERE id IN (1, 101, 201)",
    "UPDATE t x SET price = x.price * 2, tags = tags || 'more' WHERE n > 5 AND (x.price > 1 OR tags IS NULL) RETURNING id, x.price",
    "UPDATE t SET (name, n) = ROW ('row', 3) WHERE id BETWEEN 90 AND 210",
    "UPDATE t SET n = 2000 WHERE id > 150",
    "UPDATE t SET n = 5 WHERE id < 100 OR id > 200",
    "UPDATE t SET n = 1 WHERE false",
    "DELETE FROM t WHERE id % 20 = 0 RETURNING id",
    "DELETE FROM t WHERE id >= 100 AND id < 5000",
    "TRUNCATE t",
    "INSERT INTO t (id, name) TABLE source",
    "DELETE FROM t",
];

async fn writes_to_several_shards_do_what_they_do_on_one(world: &World) -> ScenarioResult {
    let (apart, whole) = make(world, "done").await?;
    for sql in STATEMENTS {
        same(&apart, &whole, sql).await?;
    }
    // The extended protocol, with parameters and a portal in steps.
    for client in [&apart, &whole] {
        let sql = "INSERT INTO t (id, name, n) VALUES ($1, $2, $3), ($1 + 100, $2, $3), ($1 + 200, $2, 4) ON CONFLICT (id) DO UPDATE SET name = $4 RETURNING id, name";
        for name in ["first", "second"] {
            let found = client.query(sql, &[&50_i64, &"p", &3_i32, &name]).await.map_err(|error| failed(&error))?;
            let found: Vec<(i64, String)> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
            let name = if name == "first" { "p" } else { name };
            ensure!(found == [50, 150, 250].map(|id| (id, name.to_string())), "{found:?}");
        }
        let sql = "UPDATE t SET n = $2 WHERE id > $1 AND name <> $3";
        let count = client.execute(sql, &[&60_i64, &8_i32, &"x"]).await.map_err(|error| failed(&error))?;
        ensure!(count == 2, "{count} rows were changed");
    }
    let mut walking = connect(world).await?;
    done(&walking, "SET search_path = apart_done").await?;
    let transaction = walking.transaction().await.map_err(|error| failed(&error))?;
    let portal = transaction.bind("UPDATE t SET n = n RETURNING id", &[]).await.map_err(|error| failed(&error))?;
    let mut ids = Vec::new();
    loop {
        let step = transaction.query_portal(&portal, 2).await.map_err(|error| failed(&error))?;
        ids.extend(step.iter().map(|row| row.get::<_, i64>(0)));
        if step.len() < 2 {
            break;
        }
    }
    transaction.commit().await.map_err(|error| failed(&error))?;
    ids.sort_unstable();
    ensure!(ids == [50, 150, 250], "{ids:?}");
    for sql in [
        "UPDATE t SET id = id + 1",
        "UPDATE t SET n = s.id FROM source s WHERE s.id = t.id",
        "DELETE FROM t WHERE id IN (SELECT id FROM source)",
        "INSERT INTO t (id) VALUES (1), (101) RETURNING (SELECT count(*) FROM t)",
        "SELECT id FROM t FOR UPDATE",
    ] {
        refused(&apart, sql, "0A000").await?;
    }
    world.nothing_is_wrong().await
}

async fn errors_and_rollbacks_leave_nothing_behind(world: &World) -> ScenarioResult {
    let (apart, whole) = make(world, "undone").await?;
    done(&apart, "INSERT INTO t (id, n) SELECT n * 30, n FROM generate_series(1, 9) n").await?;
    let look = "SELECT count(*), sum(n) FROM t";
    // The last shard refuses what the first ones have done.
    refused(&apart, "INSERT INTO t (id) VALUES (1), (101), (270)", "23505").await?;
    refused(&apart, "UPDATE t SET n = 995 + n", "23514").await?;
    has(&apart, look, &["9|45"]).await?;
    done(
        &apart,
        "BEGIN; INSERT INTO t (id, n) VALUES (1, 1), (101, 1), (201, 1); SAVEPOINT s; UPDATE t SET n = n + 10",
    )
    .await?;
    has(&apart, look, &["12|168"]).await?;
    refused(&apart, "INSERT INTO t (id) VALUES (2), (102), (270)", "23505").await?;
    refused(&apart, look, "25P02").await?;
    done(&apart, "ROLLBACK TO s").await?;
    has(&apart, look, &["12|48"]).await?;
    done(&apart, "DELETE FROM t WHERE n = 1; COMMIT").await?;
    has(&apart, look, &["8|44"]).await?;
    done(&apart, "BEGIN; TRUNCATE t; INSERT INTO t (id) VALUES (1), (101); ROLLBACK").await?;
    has(&apart, look, &["8|44"]).await?;
    // Statements of one text are one transaction.
    refused(&apart, "UPDATE t SET n = 0; INSERT INTO t (id) VALUES (1), (101), (270)", "23505").await?;
    has(&apart, look, &["8|44"]).await?;
    done(&whole, "SET search_path = apart_undone; BEGIN READ ONLY").await?;
    refused(&whole, "UPDATE t SET n = 0", "25006").await?;
    done(&whole, "ROLLBACK").await?;
    // Into a table of one shard, from several.
    done(
        &apart,
        "CREATE TABLE sums (id serial PRIMARY KEY, total bigint); CREATE TABLE one (k text PRIMARY KEY, total bigint)",
    )
    .await?;
    done(&apart, "INSERT INTO one SELECT 'k', sum(n) FROM t").await?;
    has(&apart, "SELECT * FROM one", &["k|44"]).await?;
    refused(&apart, "INSERT INTO sums (total) SELECT n FROM t", "0A000").await?;
    world.nothing_is_wrong().await
}

/// Copies rows in pieces of this size.
async fn copy(client: &Client, sql: &str, data: &[u8], step: usize) -> Result<u64, String> {
    let text = |error: tokio_postgres::Error| {
        error.as_db_error().map_or_else(|| error.to_string(), |error| error.code().code().to_string())
    };
    let sink = client.copy_in::<_, Cursor<Vec<u8>>>(sql).await.map_err(text)?;
    let mut sink = std::pin::pin!(sink);
    for piece in data.chunks(step) {
        sink.send(Cursor::new(piece.to_vec())).await.map_err(text)?;
    }
    sink.finish().await.map_err(text)
}

async fn rows_are_copied_to_several_shards(world: &World) -> ScenarioResult {
    let (apart, whole) = make(world, "copied").await?;
    let text: String = (0..9_000).map(|n| format!("{}\tname\\t{n}\t\\N\n", (n * 37) % 9_000)).collect();
    let csv = "id;name\n-1;\"a\nb\"\n150;\n250;\"x;y\"\n";
    let mut binary = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for id in [-5_i64, -105, 20_000] {
        binary.extend([&2_i16.to_be_bytes()[..], &8_i32.to_be_bytes(), &id.to_be_bytes()].concat());
        binary.extend([&1_i32.to_be_bytes()[..], b"b"].concat());
    }
    binary.extend((-1_i16).to_be_bytes());
    for (sql, data, step, expected) in [
        ("COPY t (id, name, price) FROM STDIN", text.as_bytes(), 10_007, Ok(9_000)),
        ("COPY t (id, name) FROM STDIN (FORMAT csv, HEADER, DELIMITER ';')", csv.as_bytes(), 5, Err("23505")),
        ("COPY t (id, name) FROM STDIN (FORMAT binary)", &binary, 7, Ok(3)),
        ("COPY t (id, n) FROM STDIN", b"-20\t1\n30000\tx\n", 4, Err("22P02")),
        ("COPY t (id, n) FROM STDIN", b"-20\t1\n30000\t1000\n", 4, Err("23514")),
        ("COPY t (id, n) FROM STDIN", b"", 4, Ok(0)),
    ] {
        for client in [&apart, &whole] {
            let copied = copy(client, sql, data, step).await;
            ensure!(copied == expected.map_err(str::to_string), "{sql}: {copied:?} instead of {expected:?}");
        }
        let look = "SELECT count(*), sum(id), min(id), max(name), count(price) FROM t";
        let (found, expected) = (rows(&apart, look).await?, rows(&whole, look).await?);
        ensure!(found == expected, "after {sql}: {found:?} instead of {expected:?}");
    }
    for client in [&apart, &whole] {
        done(client, "TRUNCATE t").await?;
        let copied =
            copy(client, "COPY t (id, name) FROM STDIN (FORMAT csv, HEADER, DELIMITER ';')", csv.as_bytes(), 5).await;
        ensure!(copied == Ok(3), "{copied:?}");
    }
    let look = "SELECT * FROM t ORDER BY id";
    let (found, expected) = (rows(&apart, look).await?, rows(&whole, look).await?);
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    // In a transaction, with a savepoint.
    done(&apart, "BEGIN; SAVEPOINT s").await?;
    let copied = copy(&apart, "COPY t (id) FROM STDIN", b"1\n101\n-1\n", 3).await;
    ensure!(copied == Err("23505".into()), "{copied:?}");
    done(&apart, "ROLLBACK TO s").await?;
    let copied = copy(&apart, "COPY t (id) FROM STDIN", b"1\n101\n201\n", 3).await;
    ensure!(copied == Ok(3), "{copied:?}");
    done(&apart, "COMMIT").await?;
    has(&apart, "SELECT count(*) FROM t", &["6"]).await?;
    world.nothing_is_wrong().await
}

/// Whether all rows of an UPDATE, and both rows of each INSERT, are there.
const WHOLE: &str = "SELECT count(*) FILTER (WHERE id BETWEEN 1 AND 300),
    min(n) FILTER (WHERE id BETWEEN 1 AND 300) = max(n) FILTER (WHERE id BETWEEN 1 AND 300),
    sum(id) FILTER (WHERE abs(id) > 1000 OR id = 1) - 1 FROM t";

async fn writes_are_whole_while_ranges_move(world: &World) -> ScenarioResult {
    let (apart, _) = make(world, "moved").await?;
    done(&apart, "INSERT INTO t (id, n) SELECT n, 0 FROM generate_series(1, 300) n").await?;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let (mut written, mut again, mut at) = (0_i64, 0_i64, 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            at += 1;
            let insert = format!(
                "INSERT INTO t (id, n) VALUES ({0}, 0), (-{0}, 0), (150, 0) ON CONFLICT (id) DO UPDATE SET name = '{0}'",
                at + 1000
            );
            let delete = "DELETE FROM t WHERE abs(id) > 1000";
            for sql in ["UPDATE t SET n = (n + 1) % 900 WHERE id BETWEEN 1 AND 300", &insert, delete] {
                if sql == delete && at % 50 > 0 {
                    continue;
                }
                match apart.batch_execute(sql).await {
                    Ok(()) => written += 1,
                    Err(error) if error.code().is_some_and(|code| code.code() == "40001") => again += 1,
                    Err(error) => return Err(failed(&error)),
                }
                match rows(&apart, WHOLE).await {
                    Ok(found) => ensure!(found == ["300|t|0"], "{found:?} after {sql}"),
                    Err(failure) if failure.to_string().contains("40001") => again += 1,
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok((written, again))
    });
    for round in 0..3 {
        for (at, piece) in world.ranges("apart_moved.t").await?.iter().enumerate() {
            place(world, piece, (at as u32 + round) % 3 + 1).await?;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (written, again) = writing.await.map_err(|error| ScenarioFailure::new(error.to_string()))??;
    ensure!(written > 10 && again * 4 <= written, "{written} statements, and {again} that were to be repeated");
    world.nothing_is_wrong().await
}
