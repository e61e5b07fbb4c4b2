//! PostgreSQL's clients through a gateway: a driver, and pgbench. Statements mean what they mean in
//! PostgreSQL, tables that split are reached by their keys, and a change of the schema through one
//! connection is seen by the others.

use evenkeel_local_cluster::ClusterOptions;
use evenkeel_tests::postgres_client::{connect, done, failed, has, port, refused, rows};
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            statements_mean_what_they_mean_in_postgresql,
            a_table_on_two_shards_is_reached_by_its_keys,
            a_change_of_the_schema_reaches_other_connections,
            the_catalog_shows_users_tables,
            a_session_leaves_nothing_to_others,
            pgbench_runs_in_every_mode,
        ],
    )
}

/// The balancer is off, so that ranges stay on the shards that the scenarios choose.
fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions::new(executable);
    options.shards = 2;
    options.gateway = true;
    options.balancer.insert("enabled".into(), false.into());
    options
}

async fn statements_mean_what_they_mean_in_postgresql(world: &World) -> ScenarioResult {
    let client = connect(world).await?;
    done(
        &client,
        "CREATE TABLE authors (id serial PRIMARY KEY, name text UNIQUE NOT NULL);
         CREATE TABLE books (id bigint PRIMARY KEY, author integer REFERENCES authors ON DELETE CASCADE, price numeric);
         CREATE TABLE visits (at timestamptz DEFAULT now(), page text)",
    )
    .await?;
    has(&client, "INSERT INTO authors (name) VALUES ('Ada'), ('Ben') RETURNING id", &["1", "2"]).await?;
    done(&client, "INSERT INTO books SELECT n, 1 + n % 2, n * 1.5 FROM generate_series(1, 10) n").await?;
    has(
        &client,
        "SELECT a.name, count(*), sum(b.price) FROM authors a JOIN books b ON b.author = a.id GROUP BY 1 ORDER BY 1",
        &["Ada|5|45.0", "Ben|5|37.5"],
    )
    .await?;
    refused(&client, "INSERT INTO authors (name) VALUES ('Ada')", "23505").await?;
    refused(&client, "INSERT INTO books VALUES (11, 77, 1)", "23503").await?;
    done(&client, "BEGIN; SAVEPOINT a; DELETE FROM authors; ROLLBACK TO a; DELETE FROM authors WHERE id = 2; COMMIT")
        .await?;
    has(&client, "SELECT count(*) FROM books", &["5"]).await?;
    done(&client, "BEGIN; INSERT INTO visits (page) VALUES ('x'); ROLLBACK").await?;
    done(&client, "INSERT INTO visits (page) VALUES ('a'), ('a'), ('b')").await?;
    has(&client, "SELECT page, count(*) FROM visits GROUP BY page ORDER BY page", &["a|2", "b|1"]).await?;
    let one = client.query_one("SELECT price FROM books WHERE id = $1", &[&4_i64]).await;
    ensure!(
        one.is_ok(),
        "with a parameter: {}",
        one.map_or_else(|error| failed(&error).to_string(), |_| String::new())
    );
    world.nothing_is_wrong().await
}

async fn a_table_on_two_shards_is_reached_by_its_keys(world: &World) -> ScenarioResult {
    let client = connect(world).await?;
    // In a schema of its own, reached by the search path.
    done(&client, "CREATE SCHEMA shop; CREATE TABLE shop.t (id bigint PRIMARY KEY, v text)").await?;
    done(&client, "SET search_path = shop; INSERT INTO t SELECT n, 'v' || n FROM generate_series(1, 100) n").await?;
    let range = world.only_range("shop.t").await?.route;
    world.done(world.split(range.range, &[50]).await?.id).await?;
    let halves = world.ranges("shop.t").await?;
    let upper = halves.iter().find(|half| half.route.range != range.range || halves.len() == 1);
    let Some(upper) = upper else { return Err(ScenarioFailure::new("there is no second range")) };
    let to = if upper.route.shard.0 == 1 { 2 } else { 1 };
    world.done(world.move_range(upper.route.range, to).await?.id).await?;
    has(&client, "SELECT v FROM t WHERE id = 7", &["v7"]).await?;
    has(&client, "SELECT v FROM t WHERE id = 77", &["v77"]).await?;
    has(&client, "SELECT count(*) FROM t WHERE id BETWEEN 60 AND 70", &["11"]).await?;
    for sql in [
        "INSERT INTO t VALUES (101, 'new')",
        "INSERT INTO t (v, id) VALUES ('new', -1)",
        "UPDATE t SET v = 'changed' WHERE id IN (1, 2)",
        "DELETE FROM t WHERE id = 77",
    ] {
        done(&client, sql).await?;
    }
    has(&client, "SELECT v FROM t WHERE id = 2", &["changed"]).await?;
    let statement = client.prepare("SELECT v FROM t WHERE id = $1").await.map_err(|error| failed(&error))?;
    for id in [-1_i64, 1, 49, 50, 101] {
        let found = client.query(&statement, &[&id]).await.map_err(|error| failed(&error))?;
        ensure!(found.len() == 1, "{} rows have the key {id}", found.len());
    }
    // No name of a view is taken for that of its table.
    done(&client, "CREATE VIEW doubled AS SELECT id * 2 AS id, v FROM t").await?;
    has(&client, "SELECT v FROM doubled WHERE id = 14", &["v7"]).await?;
    has(&client, "SELECT count(*) FROM t", &["101"]).await?;
    done(&client, "UPDATE t SET v = 'all'").await?;
    has(&client, "SELECT count(*) FROM t WHERE v = 'all'", &["101"]).await?;
    world.nothing_is_wrong().await
}

async fn a_change_of_the_schema_reaches_other_connections(world: &World) -> ScenarioResult {
    let (one, other) = (connect(world).await?, connect(world).await?);
    done(&one, "CREATE TABLE changing (id bigint PRIMARY KEY); INSERT INTO changing VALUES (1)").await?;
    let sql = "SELECT * FROM changing WHERE id = $1";
    let statement = other.prepare(sql).await.map_err(|error| failed(&error))?;
    other.query(&statement, &[&1_i64]).await.map_err(|error| failed(&error))?;
    for column in ["a", "b", "c"] {
        done(&one, &format!("ALTER TABLE changing ADD COLUMN {column} text DEFAULT '{column}'")).await?;
        has(&one, &format!("SELECT {column} FROM changing"), &[column]).await?;
        has(&other, &format!("SELECT {column} FROM changing"), &[column]).await?;
    }
    let stale = other.query(&statement, &[&1_i64]).await;
    let code = stale.as_ref().err().and_then(|error| error.code()).map_or("", |code| code.code()).to_string();
    ensure!(code == "0A000", "a statement whose rows have changed was answered with {code:?}");
    done(&one, "CREATE VIEW seen AS SELECT id FROM changing").await?;
    has(&other, "SELECT id FROM seen", &["1"]).await?;
    done(&one, "DROP VIEW seen").await?;
    refused(&one, "SELECT id FROM seen", "42P01").await?;
    world
        .until("the other connection to miss the view", PATIENCE, async || {
            refused(&other, "SELECT id FROM seen", "42P01").await.map_err(|failure| failure.to_string())
        })
        .await?;
    world.nothing_is_wrong().await
}

async fn the_catalog_shows_users_tables(world: &World) -> ScenarioResult {
    let client = connect(world).await?;
    done(&client, "CREATE SCHEMA shown; CREATE TABLE shown.t (id bigint PRIMARY KEY, n integer)").await?;
    done(&client, "CREATE VIEW shown.v AS SELECT id FROM shown.t").await?;
    has(
        &client,
        "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = 'shown' ORDER BY 1",
        &["t|BASE TABLE", "v|VIEW"],
    )
    .await?;
    has(
        &client,
        "SELECT column_name, data_type FROM information_schema.columns
         WHERE table_schema = 'shown' AND table_name = 't' ORDER BY ordinal_position",
        &["id|bigint", "n|integer"],
    )
    .await?;
    // The catalog's server has no rows, and no statement may take it for the shards.
    refused(&client, "DO $$ BEGIN EXECUTE 'SELECT count(*) FROM nowhere'; END $$", "42P01").await
}

async fn a_session_leaves_nothing_to_others(world: &World) -> ScenarioResult {
    let (one, other) = (connect(world).await?, connect(world).await?);
    done(&one, "CREATE SCHEMA apart; CREATE TABLE apart.t (id bigint PRIMARY KEY)").await?;
    let before = rows(&other, "SHOW search_path").await?;
    has(&one, "SELECT set_config('search_path', 'apart', false)", &["apart"]).await?;
    has(&one, "SELECT count(*) FROM t", &["0"]).await?;
    done(&one, "BEGIN; SELECT set_config('search_path', 'nowhere', true), pg_advisory_xact_lock(1); COMMIT").await?;
    has(&one, "SHOW search_path", &["apart"]).await?;
    // The gateway's own sessions serve both.
    for _ in 0..4 {
        ensure!(rows(&other, "SHOW search_path").await? == before, "a setting has reached another session");
        has(&other, "SELECT pg_try_advisory_xact_lock(1)", &["t"]).await?;
    }
    refused(&one, "SELECT pg_advisory_lock(1)", "0A000").await?;
    refused(&one, "SELECT set_config('role', 'evenkeel', false)", "42501").await
}

async fn pgbench_runs_in_every_mode(world: &World) -> ScenarioResult {
    let port = port(world)?.to_string();
    let pgbench = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("pgbench");
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "app"]).args(arguments).arg("postgres");
        let output = command.kill_on_drop(true).output().await.map_err(|error| format!("pgbench: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench {arguments:?}: {said}");
        Ok(said)
    };
    pgbench(&["-i", "-q"]).await?;
    for mode in ["simple", "extended", "prepared"] {
        let said = pgbench(&["-n", "-M", mode, "-c", "4", "-t", "25"]).await?;
        ensure!(said.contains("actually processed: 100/100"), "pgbench in mode {mode}: {said}");
    }
    let client = connect(world).await?;
    has(
        &client,
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history),
            (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches),
            (SELECT count(*) FROM pgbench_history)",
        &["t|t|300"],
    )
    .await?;
    world.nothing_is_wrong().await
}
