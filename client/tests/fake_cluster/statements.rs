//! Single statements: their routes, their retries, and the ids of these.

use crate::world::{Cluster, Fault, Seen};
use crate::{BUMP, INSERT, READ, config, connect, until};
use evenkeel_client::{Answer, Client, ClientConfig, ClientError, SqlError};

fn ids(answer: &Answer) -> Vec<i64> {
    (0..answer.rows.count as usize).map(|row| answer.rows.int(row, 0).unwrap()).collect()
}

/// Checks that all requests carry one id; returns their number.
fn one_id(seen: &[Seen]) -> usize {
    assert!(seen.iter().all(|request| request.id == seen[0].id), "{seen:?}");
    seen.len()
}

#[tokio::test]
async fn a_statement_goes_to_the_shard_of_its_key() {
    let cluster = Cluster::start(&[(1, 10), (2, 20), (3, 0)]).await;
    let client = connect(&cluster).await;
    for (id, shard) in [(5, 1), (15, 2), (25, 3)] {
        let answer = client.execute(INSERT, &[id.into()]).await.unwrap();
        assert_eq!((answer.affected, answer.shard.0, answer.retries), (1, shard, 0));
        let answer = client.execute(READ, &[id.into()]).await.unwrap();
        assert_eq!((answer.rows.int(0, 1), answer.shard.0), (Some(1), shard));
    }
    assert_eq!(client.execute("SELECT 1", &[]).await.unwrap().retries, 0);
    let stats = client.stats();
    assert_eq!((stats.statements, stats.failures, stats.retries, stats.redirects), (7, 0, 0, 0));
}

/// Breaks if a retry takes a new id, or if the retry window is ignored: the row would be
/// incremented twice (invariant 7, R14).
#[tokio::test]
async fn a_retried_write_carries_the_same_id_and_is_applied_once() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put([1]);
    let mut value = 1;
    for faults in [
        vec![Fault::ForgetAnswer],
        vec![Fault::ForgetRequest],
        vec![Fault::Unsure],
        vec![Fault::ForgetAnswer, Fault::Busy(5), Fault::ForgetAnswer],
        vec![Fault::Error(SqlError::new("40001", "conflict")), Fault::Nothing],
        vec![Fault::DieAfter],
        vec![Fault::DieBefore],
    ] {
        cluster.seen();
        let name = format!("{faults:?}");
        let attempts = faults.iter().filter(|fault| **fault != Fault::Nothing).count() + 1;
        cluster.script(1, faults);
        let answer = client.execute(BUMP, &[1.into()]).await.unwrap();
        value += 1;
        assert_eq!((answer.affected, cluster.value(1)), (1, Some(value)), "{name}");
        assert!(answer.retries > 0, "{name}");
        assert_eq!(one_id(&cluster.seen()), attempts, "{name}");
    }
    assert_eq!(client.stats().failures, 0);
}

/// Breaks if a refusal counts as proof that nothing happened.
#[tokio::test]
async fn keys_that_come_apart_while_the_answer_is_lost_are_08007() {
    let cluster = Cluster::start(&[(1, 10), (1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.script(1, [Fault::ForgetAnswer, Fault::Busy(100)]);
    let insert = {
        let client = client.clone();
        tokio::spawn(async move { client.execute("INSERT INTO t (id, n) VALUES (1, 1), (11, 1)", &[]).await })
    };
    until("it has been sent again", || cluster.world().seen.len() == 2).await;
    cluster.world().move_range(2, 2);
    cluster.publish();
    let error = insert.await.unwrap().unwrap_err();
    assert!(matches!(&error, ClientError::OutcomeUnknown(_)), "{error}");
    assert_eq!((error.code(), cluster.value(1), cluster.value(11)), ("08007", Some(1), Some(1)));
}

/// All replicas die; the final error depends on whether a request may have been executed.
#[tokio::test]
async fn at_the_deadline_the_error_says_whether_it_may_have_happened() {
    for (fault, code) in [(Fault::DieAfter, "08007"), (Fault::Nothing, "08006")] {
        let cluster = Cluster::start(&[(1, 0)]).await;
        let client = Client::connect(ClientConfig { statement_timeout_ms: 300, ..config(&cluster) }).await.unwrap();
        cluster.put([1]);
        cluster.kill(1, 2).await;
        cluster.kill(1, 3).await;
        if fault == Fault::Nothing {
            cluster.kill(1, 1).await;
        }
        cluster.script(1, [fault]);
        let error = client.execute(BUMP, &[1.into()]).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert_eq!(matches!(error, ClientError::OutcomeUnknown(_)), code == "08007");
        assert!(error.sql().unwrap().hint.is_some());
        // A read of a cluster that is gone never has an unknown outcome.
        assert_eq!(client.execute(READ, &[1.into()]).await.unwrap_err().code(), "08006");
    }
}

#[tokio::test]
async fn a_busy_shard_is_waited_for_until_the_deadline() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.script(1, [Fault::Busy(20), Fault::Busy(20)]);
    assert_eq!(client.execute(READ, &[1.into()]).await.unwrap().retries, 2);
    let client = Client::connect(ClientConfig { statement_timeout_ms: 300, ..config(&cluster) }).await.unwrap();
    cluster.script(1, std::iter::repeat_n(Fault::Busy(20), 100));
    let error = client.execute(READ, &[1.into()]).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_silent_leader_is_left_once_another_leads() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put([1]);
    client.execute(READ, &[1.into()]).await.unwrap();
    cluster.pause(1, 1);
    cluster.elect(1, Some(3));
    let answer = client.execute(BUMP, &[1.into()]).await.unwrap();
    assert_eq!((answer.affected, cluster.value(1)), (1, Some(2)));
    cluster.resume(1, 1);
    assert_eq!(client.execute(READ, &[1.into()]).await.unwrap().retries, 0, "the new leader is remembered");
}

/// Breaks if a slow answer counts as lost: the leader would get the statement twice while it
/// executes it.
#[tokio::test]
async fn a_slow_leader_is_waited_for_and_asked_once() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put([1]);
    cluster.script(1, [Fault::Slow(400)]);
    let answer = client.execute(BUMP, &[1.into()]).await.unwrap();
    assert_eq!((answer.affected, answer.retries), (1, 0));
    assert_eq!(cluster.seen().len(), 1);
}

#[tokio::test]
async fn a_scan_over_three_ranges_comes_in_key_order() {
    let cluster = Cluster::start(&[(3, 10), (1, 20), (2, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put((0..30).rev());
    let select = |text: &str| {
        let (client, text) = (client.clone(), format!("SELECT id, n FROM t {text}"));
        async move { client.execute(&text, &[]).await.unwrap() }
    };
    let all: Vec<i64> = (0..30).collect();
    assert_eq!(ids(&select("ORDER BY id").await), all);
    let answer = select("").await;
    assert_eq!((ids(&answer), answer.affected, answer.columns.len()), (all.clone(), 30, 2));
    assert_eq!(ids(&select("WHERE id >= 8 ORDER BY id LIMIT 5").await), all[8..13]);
    assert_eq!(ids(&select("WHERE id IN (25, 3, 15, 99)").await), [3, 15, 25]);
    assert_eq!(ids(&select("WHERE id > 5 AND id < 22 ORDER BY id").await), all[6..22]);
    // With a limit that the first range satisfies, no other range is read; with limit 0 one is, for
    // the columns.
    cluster.seen();
    assert_eq!(ids(&select("ORDER BY id LIMIT 10").await), all[..10]);
    assert_eq!(cluster.seen().len(), 1);
    let empty = select("LIMIT 0").await;
    assert_eq!((empty.rows.count, empty.columns.len(), cluster.seen().len()), (0, 2, 1));
}

/// Breaks if ranges are always read from the first: with a descending order the last rows would not
/// be first, or would be missing.
#[tokio::test]
async fn a_scan_over_three_ranges_comes_backwards() {
    let cluster = Cluster::start(&[(3, 10), (1, 20), (2, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put(0..30);
    let select = |text: &str| {
        let (client, text) = (client.clone(), format!("SELECT id, n FROM t {text}"));
        async move { client.execute(&text, &[]).await.unwrap() }
    };
    let backwards: Vec<i64> = (0..30).rev().collect();
    assert_eq!(ids(&select("ORDER BY id DESC").await), backwards);
    cluster.seen();
    assert_eq!(ids(&select("ORDER BY id DESC LIMIT 3").await), [29, 28, 27]);
    assert_eq!(cluster.seen().len(), 1, "the last range has enough");
    assert_eq!(ids(&select("WHERE id < 22 ORDER BY id DESC LIMIT 5").await), [21, 20, 19, 18, 17]);
    {
        let mut world = cluster.world();
        world.move_range(1, 2);
        world.split(2, 15, 7);
        world.move_range(7, 3);
        world.publish();
    }
    assert_eq!(ids(&select("ORDER BY id DESC LIMIT 28").await), backwards[..28], "with stale routes");
}

/// The ranges of a scan split and move without notice to the client: no row is missed or arrives
/// twice.
#[tokio::test]
async fn a_scan_with_stale_routes_is_whole() {
    for text in ["SELECT id, n FROM t ORDER BY id", "SELECT id, n FROM t ORDER BY id LIMIT 28"] {
        let cluster = Cluster::start(&[(3, 10), (1, 20), (2, 0)]).await;
        let client = connect(&cluster).await;
        cluster.put(0..30);
        {
            let mut world = cluster.world();
            world.move_range(1, 2);
            world.split(2, 15, 7);
            world.move_range(7, 3);
            // The placement driver knows; the watch has not reported it yet.
            world.publish();
        }
        let expected: Vec<i64> = if text.ends_with("28") { (0..28).collect() } else { (0..30).collect() };
        let answer = client.execute(text, &[]).await.unwrap();
        assert_eq!(ids(&answer), expected);
        assert!(answer.retries > 0);
    }
}

#[tokio::test]
async fn what_cannot_be_done_over_shards_is_refused_clearly() {
    let cluster = Cluster::start(&[(1, 10), (2, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put([5, 15]);
    for text in [
        "INSERT INTO t (id, n) VALUES (1, 1), (11, 1)",
        "UPDATE t SET n = 0",
        "DELETE FROM t WHERE id IN (5, 15)",
        "SELECT count(*) FROM t",
        "SELECT id FROM t ORDER BY n",
        "SELECT id FROM t FOR UPDATE",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
    ] {
        let error = client.execute(text, &[]).await.unwrap_err();
        assert_eq!(error.code(), "0A000", "{text}: {error}");
        assert!(error.sql().unwrap().hint.is_some(), "{text}");
    }
    assert!(cluster.seen().is_empty(), "nothing of it was sent");
    assert_eq!(client.execute("UPDATE t SET n = n + 1 WHERE id < 9", &[]).await.unwrap().affected, 1);
    let error = client.execute("SELECT * FROM nowhere", &[]).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("42P01", false));
    assert_eq!(client.execute("SELEKT", &[]).await.unwrap_err().code(), "42601");
    cluster.script(1, [Fault::Error(SqlError::new("23505", "duplicate key"))]);
    let error = client.execute(INSERT, &[1.into()]).await.unwrap_err();
    assert!(matches!(&error, ClientError::Sql(e) if e.message == "duplicate key"), "{error}");
}

/// A refusal is never due to outdated routes.
#[tokio::test]
async fn a_refusal_is_checked_against_fresh_routes() {
    let cluster = Cluster::start(&[(1, 10), (2, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put([5, 15]);
    cluster.world().move_range(2, 1);
    cluster.world().publish();
    assert_eq!(client.execute("DELETE FROM t", &[]).await.unwrap().affected, 2);
}

#[tokio::test]
async fn an_answer_larger_than_the_limit_is_refused() {
    let cluster = Cluster::start(&[(1, 10), (2, 0)]).await;
    let client = Client::connect(ClientConfig { max_answer_bytes: 300, ..config(&cluster) }).await.unwrap();
    cluster.put(0..20);
    assert_eq!(client.execute("SELECT id, n FROM t", &[]).await.unwrap_err().code(), "53400");
    assert_eq!(client.execute("SELECT id, n FROM t LIMIT 12", &[]).await.unwrap().rows.count, 12);
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let routes = client.routes();
    client.execute(READ, &[1.into()]).await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let with_client = tasks();
    drop(client);
    // Two background tasks, and two tasks per end of a connection.
    until("the tasks end", || tasks() < with_client - 3).await;
    assert_eq!(routes.tables().count(), 1);
}
