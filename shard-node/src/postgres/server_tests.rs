//! Against a real server: starting, dying, taking over.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::postgres::{Resources, StoreError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

fn config(dir: &TempDir) -> PostgresConfig {
    let resources = Resources { shared_buffers_mib: Some(16), ..Resources::default() };
    PostgresConfig { bin_dir: None, data_dir: dir.path().to_path_buf(), resources, max_connections: 20 }
}

async fn count(postgres: &Postgres, sql: &str) -> i64 {
    let client = postgres.connector().connect(SessionRole::Admin).await.unwrap();
    client.query_one(sql, &[]).await.unwrap().get(0)
}

fn signal(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

#[test]
fn readiness_is_read_from_the_servers_own_file() {
    let text = "17\n/data\n1700000000\n5432\n/socket\n\n  1 2\nready   \n";
    assert!(says_ready(text, 17));
    assert!(!says_ready(text, 18), "another server's");
    assert!(!says_ready(&text.replace("ready   ", "starting"), 17));
    assert!(!says_ready("17\n", 17));
}

#[tokio::test]
async fn what_was_committed_is_there_after_an_orderly_stop_and_nothing_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let begin = evenkeel_host::now();
    let postgres = Postgres::start(config(&dir)).await.unwrap();
    println!("first start, initdb included: {:?}", evenkeel_host::elapsed(begin));
    let pgdata = postgres.layout.pgdata.clone();
    let client = postgres.connector().connect(SessionRole::Admin).await.unwrap();
    client.batch_execute("CREATE TABLE t (k int); INSERT INTO t VALUES (1)").await.unwrap();
    drop(client);
    let down = postgres.down();
    assert!(!*down.borrow() && postgres.pid().is_some());
    postgres.stop().await.unwrap();
    assert!(*down.borrow());
    assert!(!pgdata.join("postmaster.pid").exists());

    let begin = evenkeel_host::now();
    let postgres = Postgres::start(config(&dir)).await.unwrap();
    println!("second start: {:?}", evenkeel_host::elapsed(begin));
    assert_eq!(count(&postgres, "SELECT count(*) FROM t").await, 1);
    postgres.stop().await.unwrap();
}

/// R2: the data directory belongs to one node at a time.
#[tokio::test]
async fn a_second_node_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start(config(&dir)).await.unwrap();
    let error = Postgres::start(config(&dir)).await.unwrap_err();
    assert!(matches!(error, PostgresError::InUse { .. }), "{error}");
    assert!(!error.is_transient());
    assert_eq!(count(&postgres, "SELECT 1::bigint").await, 1, "the first is unharmed");
    postgres.stop().await.unwrap();
}

/// R1: what belongs to one start of the server opens no session on the next.
#[tokio::test]
async fn a_way_that_has_ended_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start(config(&dir)).await.unwrap();
    let (ended, next) = (postgres.connector(), postgres.connector());
    let clone = ended.clone();
    ended.end();
    assert!(matches!(clone.connect(SessionRole::User).await, Err(StoreError::SessionLost)));
    assert!(next.connect(SessionRole::User).await.is_ok());
    postgres.stop().await.unwrap();
}

/// R1: the end of the server is reported, a backend's crash included, and it does not come back by
/// itself.
#[tokio::test]
async fn a_crash_of_one_backend_ends_the_server_and_it_can_be_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start(config(&dir)).await.unwrap();
    let connector = postgres.connector();
    let client = connector.connect(SessionRole::Admin).await.unwrap();
    client.batch_execute("CREATE TABLE t (k int); INSERT INTO t VALUES (1)").await.unwrap();
    client.batch_execute("CHECKPOINT").await.unwrap();
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut down = postgres.down();
    signal(backend as u32, Signal::KILL);
    evenkeel_host::timeout(Duration::from_secs(20), down.wait_for(|down| *down)).await.unwrap().unwrap();
    assert_eq!(postgres.pid(), None);
    assert!(connector.connect(SessionRole::Admin).await.is_err());

    postgres.restart().await.unwrap();
    assert!(postgres.pid().is_some() && !*postgres.down().borrow());
    let again = connector.connect(SessionRole::Admin).await.unwrap();
    assert_eq!(again.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 1);
    drop(again);
    postgres.stop().await.unwrap();
}

/// R2: a node that is killed leaves its server behind, with a transaction that is about to commit.
/// Whether the postmaster lives on or only a backend that does not notice, the next start must end
/// it first; without that the row would appear after the applied record was read.
#[tokio::test]
async fn leftovers_of_a_killed_node_are_gone_before_the_next_start() {
    for postmaster_lives in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        // A node of its own, whose tasks end with it: one of them watches over the server.
        let node = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let postgres = node.spawn(Postgres::start(config(&dir))).await.unwrap().unwrap();
        let connector = postgres.connector();
        let client = connector.connect(SessionRole::Admin).await.unwrap();
        client.batch_execute("CREATE TABLE t (k int)").await.unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();
        let late = connector.connect(SessionRole::Admin).await.unwrap();
        // A loop instead of a sleep, so that the backend is not woken by the postmaster's death.
        let busy = "DO $$ DECLARE until timestamptz := clock_timestamp() + interval '2s'; BEGIN
                        WHILE clock_timestamp() < until LOOP NULL; END LOOP; INSERT INTO t VALUES (1); END $$";
        let late = tokio::spawn(async move { late.batch_execute(busy).await });
        let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO $$%'";
        while client.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            evenkeel_host::sleep(Duration::from_millis(5)).await;
        }
        let pid = postgres.pid().unwrap();
        abandon(postgres);
        tokio::task::spawn_blocking(move || node.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
        if !postmaster_lives {
            signal(pid, Signal::KILL);
        }

        let postgres = Postgres::start(config(&dir)).await.unwrap();
        assert!(late.await.unwrap().is_err(), "the old backend was ended");
        assert_eq!(count(&postgres, "SELECT count(*) FROM t").await, 0);
        postgres.stop().await.unwrap();
    }
}

/// What `kill -9` of the node does to the lock, and does not do to the server.
fn abandon(postgres: Postgres) {
    // Closing the file is all that the system does for a killed process; `forget` keeps `drop` from
    // stopping the server.
    postgres._lock.unlock().unwrap();
    std::mem::forget(postgres);
}

#[tokio::test]
async fn an_interrupted_initdb_and_a_foreign_process_id_do_not_stop_a_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("postgres.new-1/base")).unwrap();
    let postgres = Postgres::start(config(&dir)).await.unwrap();
    assert!(!dir.path().join("postgres.new-1").exists());
    let (layout, pgdata) = (postgres.layout.clone(), postgres.layout.pgdata.clone());
    postgres.stop().await.unwrap();
    // The id in the file is now that of a process which is no server, but of the same account:
    // PostgreSQL itself would not dare to start.
    let mut other = layout.command(Path::new("/bin/sleep")).arg("600").spawn().unwrap();
    let stale = format!("{}\n{}\n1\n5432\n/x\n\n  1 2\nready\n", other.id(), pgdata.display());
    std::fs::write(pgdata.join("postmaster.pid"), stale).unwrap();
    let started = Postgres::start(config(&dir)).await;
    assert!(other.try_wait().unwrap().is_none(), "processes of no server are left alone");
    other.kill().unwrap();
    other.wait().unwrap();
    let postgres = started.unwrap();
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir);
    config.max_connections = 0;
    let error = Postgres::start(config).await.unwrap_err();
    assert!(error.is_transient());
    assert!(error.to_string().contains("max_connections"), "{error}");
}

/// R6: a user's session changes rows of public tables and nothing else.
#[tokio::test]
async fn users_can_change_rows_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = Postgres::start(config(&dir)).await.unwrap();
    let admin = postgres.connector().connect(SessionRole::Admin).await.unwrap();
    admin.batch_execute("CREATE TABLE t (k bigint PRIMARY KEY, v text)").await.unwrap();
    let user = postgres.connector().connect(SessionRole::User).await.unwrap();
    let allowed = "INSERT INTO t VALUES (1, 'a'); UPDATE t SET v = 'b'; SELECT * FROM t FOR UPDATE; DELETE FROM t";
    let error = user.batch_execute(allowed).await.unwrap_err();
    assert_eq!(error.code().map(|c| c.code()), Some("25006"), "invariant 3: {error:?}");
    user.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    user.batch_execute(allowed).await.unwrap();
    for refused in [
        "CREATE TABLE u (k int)",
        "CREATE TEMP TABLE u (k int)",
        "CREATE SCHEMA s",
        "DROP TABLE t",
        "TRUNCATE t",
        "ALTER TABLE t ADD w int",
        "SET session_replication_role = replica",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SELECT set_config('statement_timeout', '1', false)",
        "SELECT lo_create(0)",
        "COPY t TO PROGRAM 'cat'",
        "SELECT pg_read_file('postgresql.conf')",
        "ALTER SYSTEM SET fsync = off",
    ] {
        let error = user.batch_execute(refused).await.unwrap_err();
        assert_eq!(error.code().map(|c| c.code()), Some("42501"), "{refused}: {error:?}");
    }
    assert!(user.batch_execute("BEGIN; PREPARE TRANSACTION 'x'").await.is_err(), "R7");
    drop((admin, user));
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_folder_the_server_cannot_reach_is_named() {
    if !rustix::process::geteuid().is_root() {
        return; // Only a node started as root runs its server as somebody else.
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let inside: &Path = &dir.path().join("node");
    let config = PostgresConfig { data_dir: inside.to_path_buf(), ..config(&dir) };
    let error = Postgres::start(config).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{} cannot be used", dir.path().display())), "{error}");
}

/// A server whose data is removed under it goes on with the files that it has open. It must not:
/// what it confirms is not kept.
#[tokio::test]
async fn a_server_whose_data_is_gone_is_ended_and_makes_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start(config(&dir)).await.unwrap();
    let client = postgres.connector().connect(SessionRole::Admin).await.unwrap();
    client.batch_execute("CREATE TABLE t (k int)").await.unwrap();
    let mut down = postgres.down();
    std::fs::remove_dir_all(&postgres.layout.pgdata).unwrap();
    evenkeel_host::timeout(Duration::from_secs(20), down.wait_for(|down| *down)).await.unwrap().unwrap();
    assert!(client.batch_execute("SELECT 1").await.is_err(), "its sessions are gone too");

    postgres.restart().await.unwrap();
    assert_eq!(count(&postgres, "SELECT count(*) FROM pg_tables WHERE tablename = 't'").await, 0);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn damaged_data_is_distinguished_from_data_that_is_kept_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start(config(&dir)).await.unwrap();
    let pgdata = postgres.layout.pgdata.clone();
    postgres.halt().await.unwrap();
    // The data is as good as ever, and nobody may think otherwise.
    let good = std::fs::metadata(&pgdata).unwrap().permissions();
    std::fs::set_permissions(&pgdata, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = postgres.restart().await.unwrap_err();
    assert!(matches!(error, PostgresError::Failed { .. }), "{error}");
    std::fs::set_permissions(&pgdata, good).unwrap();
    postgres.restart().await.unwrap();
    postgres.halt().await.unwrap();

    for damage in ["", "damage"] {
        std::fs::write(pgdata.join("global/pg_control"), damage.repeat(2_000)).unwrap();
        let error = postgres.restart().await.unwrap_err();
        assert!(matches!(error, PostgresError::Damaged { .. }), "{error}");
        postgres.discard().await.unwrap();
        let moved = pgdata.with_extension("damaged");
        assert!(moved.join("PG_VERSION").exists() && !pgdata.exists());
        postgres.restart().await.unwrap();
        postgres.forget_discarded().await.unwrap();
        assert!(!moved.exists());
        postgres.halt().await.unwrap();
    }
    postgres.stop().await.unwrap();
}

/// What ALTER SYSTEM has written does not last: it could turn `fsync` off.
#[tokio::test]
async fn the_configuration_is_the_node_s() {
    let dir = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start(config(&dir)).await.unwrap();
    let client = postgres.connector().connect(SessionRole::Admin).await.unwrap();
    client.batch_execute("ALTER SYSTEM SET fsync = off").await.unwrap();
    drop(client);
    std::fs::write(postgres.layout.pgdata.join("postgresql.conf"), "nonsense here").unwrap();
    postgres.restart().await.unwrap();
    assert_eq!(count(&postgres, "SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'on'").await, 1);
    // This build's best compression, and not what keeps a server of another build from starting.
    let compressed = "SELECT count(*) FROM pg_settings WHERE name = 'wal_compression' AND setting <> 'off'";
    assert_eq!(count(&postgres, compressed).await, 1);
    postgres.stop().await.unwrap();
}
