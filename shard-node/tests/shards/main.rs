//! Shards of real replicas with real PostgreSQL servers: what a statement, a failover and a move
//! do.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;
mod pass_through;
mod schema;
mod scrub;
mod seeding;
mod streams;
mod tables;
mod transactions;
mod two_phase;
mod wide;

use evenkeel_protocol::shard::*;
use evenkeel_protocol::*;
use harness::{Shard, statement};
use std::time::Duration;

const TABLE: &str = "CREATE TABLE items (id bigint PRIMARY KEY, n integer NOT NULL, t text)";

fn start_logging() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_executed_replicated_and_survive_their_leader() {
    start_logging();
    let mut shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;
    for n in 0..50i64 {
        let reply = shard.sql("INSERT INTO items VALUES ($1, $2, 'x')", &[n.into(), n.into()]).await.unwrap();
        assert_eq!(reply.affected, 1);
    }
    let reply = shard.sql("UPDATE items SET n = n + 100 WHERE id = $1 RETURNING n", &[7i64.into()]).await.unwrap();
    assert_eq!(reply.rows.int(0, 0), Some(107));
    assert_eq!(shard.sql("DELETE FROM items WHERE id = 8", &[]).await.unwrap().affected, 1);
    assert_eq!(shard.sql("UPDATE items SET n = 0 WHERE id = 8", &[]).await.unwrap().affected, 0);
    let duplicate = shard.sql("INSERT INTO items VALUES (7, 1, 'y')", &[]).await.unwrap_err();
    assert!(matches!(duplicate, Failure::Sql(error) if error.code == "23505"));
    let scan = shard.sql("SELECT id FROM items WHERE id >= 5 ORDER BY id LIMIT 4", &[]).await.unwrap();
    assert_eq!((0..4).map(|i| scan.rows.int(i, 0).unwrap()).collect::<Vec<_>>(), [5, 6, 7, 9]);
    let before = shard.checked_sums().await;
    assert_eq!(before[0].1.rows, 49);

    // A retry under the same id is answered again and not executed again (invariant 7), by the next
    // leader too.
    let increment = statement("UPDATE items SET n = n + 1 WHERE id = 1 RETURNING n", &[]);
    let ShardReply::Rows(first) = shard.ask(&ShardRequest::Statement(increment.clone())).await else { panic!() };
    let old = shard.leader().await;
    shard.stop_replica(old).await;
    let new = shard.leader().await;
    assert_ne!(old, new);
    let ShardReply::Rows(again) = shard.ask(&ShardRequest::Statement(increment)).await else { panic!() };
    assert_eq!(first, again);
    let value = shard.sql("SELECT n FROM items WHERE id = 1", &[]).await.unwrap();
    assert_eq!(value.rows.int(0, 0), Some(2));
    shard.sql("INSERT INTO items VALUES (1000, 1, NULL)", &[]).await.unwrap();
    shard.start_replica(old);
    let begun = evenkeel_host::now();
    while shard.inspect(old).await.is_none_or(|i| i.applied == 0) {
        assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(30));
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shard.checked_sums().await[0].1.rows, 50);
    shard.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_moves_with_its_rows_and_its_answers() {
    start_logging();
    let (source, destination) = tokio::join!(Shard::start(1, 3), Shard::start(2, 3));
    let schema = source.create_table(TABLE, 1, 1).await;
    for n in 0..200i64 {
        source.sql("INSERT INTO items VALUES ($1, 0, 'x')", &[n.into()]).await.unwrap();
    }
    let key = |n| schema.codec().encode(&[KeyValue::Int(n)]).unwrap();
    let split = ControlRequest::Split {
        operator: OperatorId(1),
        range: RangeId(1),
        epoch: Epoch(1),
        at: vec![(key(100), RangeId(2))],
    };
    assert_eq!(source.control(split.clone()).await, ControlReply::Done);
    assert_eq!(source.control(split).await, ControlReply::Done, "asked again");
    let increment = statement("UPDATE items SET n = n + 1 WHERE id = 150", &[]);
    let ShardReply::Rows(first) = source.ask(&ShardRequest::Statement(increment.clone())).await else { panic!() };

    let operator = OperatorId(2);
    let interval = KeyInterval::new(key(100), None);
    let (epoch, rows) = source.moved(&destination, operator, (RangeId(2), Epoch(2)), &schema, interval).await;
    assert_eq!((epoch, rows), (Epoch(3), 100));
    let moved = source.sql("SELECT n FROM items WHERE id = 150", &[]).await.unwrap_err();
    assert_eq!(moved, Failure::Moved { to: Some(ShardId(2)), range: Some((RangeId(2), Epoch(3))) });
    let ShardReply::Rows(again) = destination.ask(&ShardRequest::Statement(increment)).await else { panic!() };
    assert_eq!(first, again, "the answer came with the range (R14)");
    let value = destination.sql("SELECT n FROM items WHERE id = 150", &[]).await.unwrap();
    assert_eq!(value.rows.int(0, 0), Some(1));
    while source.control(ControlRequest::Purge { operator }).await != ControlReply::Done {
        evenkeel_host::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(destination.control(ControlRequest::MoveForget { operator }).await, ControlReply::Done);
    assert_eq!(source.checked_sums().await[0].1.rows, 100);
    assert_eq!(destination.checked_sums().await[0].1.rows, 100);
    // No row was left behind; a row that was would be found, on the replica that holds it.
    assert_eq!((source.left_behind().await, destination.left_behind().await), (vec![], vec![]));
    source.behind_the_back(2, "INSERT INTO items VALUES (170, 0, 'left behind'), (171, 0, 'too')").await;
    destination.behind_the_back(3, "INSERT INTO items VALUES (50, 0, 'left behind')").await;
    assert_eq!(source.left_behind().await, [(2, key(170))]);
    assert_eq!(destination.left_behind().await, [(3, key(50))]);
    tokio::join!(source.stop(), destination.stop());
}

/// Log rule 10: the log is compacted past a replica that is down once it reaches its cap, and the
/// replica gets whole again from a peer.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_left_behind_by_compaction_takes_a_peers_state() {
    start_logging();
    let mut shard = Shard::start_with(1, 3, "log_cap_bytes = 16777216\n").await;
    shard.create_table(TABLE, 1, 1).await;
    let leader = shard.leader().await;
    let behind = (1..=3).find(|replica| *replica != leader).unwrap();
    shard.stop_replica(behind).await;
    let text = "x".repeat(20_000);
    let begun = evenkeel_host::now();
    let mut rows = 0i64;
    let last = loop {
        for _ in 0..50 {
            shard.sql("INSERT INTO items VALUES ($1, 1, $2)", &[rows.into(), text.as_str().into()]).await.unwrap();
            rows += 1;
        }
        // On a busy machine it may not answer in time.
        let Some(inspection) = shard.inspect(shard.leader().await).await else { continue };
        if inspection.first > 100 {
            break inspection.decided;
        }
        assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "never compacted: {inspection:?}");
    };
    shard.start_replica(behind);
    while shard.inspect(behind).await.is_none_or(|i| i.applied < last) {
        assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(90), "{:?}", shard.inspect(behind).await);
        evenkeel_host::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shard.checked_sums().await[0].1.rows, rows as u64);
    shard.stop().await;
}
