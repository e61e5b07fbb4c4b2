//! Rows with large values.

use super::harness::Shard;
use super::start_logging;
use evenkeel_protocol::value::MAX_VALUE_BYTES;
use evenkeel_protocol::{Epoch, Failure, KeyInterval, OperatorId, RangeId, Value};

/// A value of this size that does not compress to little, and differs by `seed`.
fn value(bytes: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + ((state >> 40) % 26) as u8)
    };
    (0..bytes).map(letter).collect()
}

/// E13: what an UPDATE leaves alone is neither logged nor written again, and every replica has the
/// same rows afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_wide_rows_logs_what_it_assigns() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    shard.create_table("CREATE TABLE wide (id bigint PRIMARY KEY, n bigint, body text, note text)", 1, 1).await;
    for id in 0..24i64 {
        let body = value(64 << 10, id as u64);
        shard.sql("INSERT INTO wide VALUES ($1, 0, $2, 'a')", &[id.into(), body.into()]).await.unwrap();
    }
    // Whole rows would take a megabyte and a half, which is more than an entry holds.
    for _ in 0..4 {
        assert_eq!(shard.sql("UPDATE wide SET n = n + 1 WHERE id >= 0", &[]).await.unwrap().affected, 24);
        assert_eq!(shard.sql("UPDATE wide SET note = note || 'b' WHERE id < 3", &[]).await.unwrap().affected, 3);
    }
    // Another column of the same rows, and a new row and a part of it, in one batch of a follower.
    shard.sql("INSERT INTO wide VALUES (100, 1, $1, 'new')", &[value(5000, 7).into()]).await.unwrap();
    shard.sql("UPDATE wide SET note = 'newer' WHERE id = 100", &[]).await.unwrap();
    shard.sql("DELETE FROM wide WHERE id = 5", &[]).await.unwrap();
    assert_eq!(shard.sql("UPDATE wide SET n = 0 WHERE id = 5", &[]).await.unwrap().affected, 0);
    // The same on all replicas, or this does not return.
    assert_eq!(shard.checked_sums().await[0].1.rows, 24);
    let found = shard.sql("SELECT n, note, length(body) FROM wide WHERE id = 2", &[]).await.unwrap();
    assert_eq!(found.rows.int(0, 0), Some(4));
    assert_eq!(found.rows.value(0, 1), Some(Some(&b"abbbb"[..])));
    shard.stop().await;
}

const FILES: &str = "CREATE TABLE files (id bigint PRIMARY KEY, n bigint, body bytea)";

/// R12, E14: a value of several entries' size is written, changed, read, survives its leader and
/// moves.
#[tokio::test(flavor = "multi_thread")]
async fn values_larger_than_an_entry_are_written_and_moved() {
    start_logging();
    let (mut source, destination) = tokio::join!(Shard::start(1, 3), Shard::start(2, 3));
    let schema = source.create_table(FILES, 1, 1).await;
    let body = |bytes: usize, seed| Value::Bytes(value(bytes, seed).into());
    for (id, bytes) in [(1i64, 3 << 20), (2, 100), (3, 9 << 20), (4, (1 << 20) - 40)] {
        let params = [id.into(), body(bytes, id as u64)];
        assert_eq!(source.sql("INSERT INTO files VALUES ($1, 0, $2)", &params).await.unwrap().affected, 1);
    }
    assert_eq!(source.sql("UPDATE files SET n = n + 1 WHERE id >= 1", &[]).await.unwrap().affected, 4);
    // A whole statement's changes are more than any of its rows.
    let both = "UPDATE files SET body = body || $1, n = n + 1 WHERE id <= 2";
    assert_eq!(source.sql(both, &[body(2 << 20, 9)]).await.unwrap().affected, 2);
    assert_eq!(source.checked_sums().await[0].1.rows, 4);
    let sum = "SELECT n, length(body), md5(body) FROM files WHERE id = $1";
    let before = source.sql(sum, &[3i64.into()]).await.unwrap();
    assert_eq!(before.rows.value(0, 1), Some(Some(&(9i32 << 20).to_be_bytes()[..])));
    let whole = source.sql("SELECT body FROM files WHERE id = 3", &[]).await.unwrap();
    assert_eq!(whole.rows.value(0, 0).flatten().map(<[u8]>::len), Some(9 << 20));

    // Too large values are refused before anything is executed.
    let refused = source.sql("INSERT INTO files VALUES (5, 0, $1)", &[body(MAX_VALUE_BYTES + 1, 1)]).await;
    assert!(matches!(&refused, Err(Failure::Sql(error)) if error.code == "54000"), "{refused:?}");

    let old = source.leader().await;
    source.stop_replica(old).await;
    assert_eq!(source.sql(sum, &[3i64.into()]).await.unwrap().rows, before.rows);
    source.sql("INSERT INTO files VALUES (6, 0, $1)", &[body(2 << 20, 6)]).await.unwrap();
    source.start_replica(old);

    let (epoch, rows) =
        source.moved(&destination, OperatorId(2), (RangeId(1), Epoch(1)), &schema, KeyInterval::ALL).await;
    assert_eq!((epoch, rows), (Epoch(2), 5));
    assert_eq!(destination.sql(sum, &[3i64.into()]).await.unwrap().rows, before.rows);
    assert_eq!(destination.checked_sums().await[0].1.rows, 5);
    tokio::join!(source.stop(), destination.stop());
}
