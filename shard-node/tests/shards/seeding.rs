//! A replica that is re-seeded by its peers.

use super::harness::Shard;
use evenkeel_protocol::Value;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

const TABLE: &str = "CREATE TABLE items (id bigint PRIMARY KEY, v bigint, text text)";
/// A log that is soon compacted past a replica that is down, in bytes.
const SMALL_LOG: &str = "log_cap_bytes = 16777216\n";
/// Bytes of one row's text.
const ROW_BYTES: usize = 20_000;
/// Writers at once.
const WRITERS: i64 = 8;
/// How long anything may take, in seconds.
const PATIENCE_S: u64 = 120;

async fn insert(shard: &Shard, rows: i64) {
    let text = "x".repeat(ROW_BYTES);
    let next = AtomicI64::new(0);
    let writer = async || {
        loop {
            let id = next.fetch_add(1, Ordering::Relaxed);
            if id >= rows {
                return;
            }
            shard.sql("INSERT INTO items VALUES ($1, 0, $2)", &[id.into(), text.as_str().into()]).await.unwrap();
        }
    };
    futures::future::join_all((0..WRITERS).map(|_| writer())).await;
}

async fn until(shard: &Shard, replica: u64, what: &str, holds: impl Fn(&evenkeel_protocol::shard::Inspection) -> bool) {
    let begun = evenkeel_host::now();
    while !shard.inspect(replica).await.is_some_and(|now| holds(&now)) {
        let patience = Duration::from_secs(PATIENCE_S);
        assert!(evenkeel_host::elapsed(begun) < patience, "not {what}: {:?}", shard.inspect(replica).await);
        evenkeel_host::sleep(Duration::from_millis(5)).await;
    }
}

/// R32: rows that have come once do not come again, whoever dies; and rows that are written
/// meanwhile, in rows that have come and in rows that have not, is in there at the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_re_seeded_goes_on_after_it_was_stopped_half_way() {
    super::start_logging();
    let rows: i64 = std::env::var("SEED_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(2_400);
    let all_bytes = rows as u64 * ROW_BYTES as u64;
    let mut shard = Shard::start_with(1, 3, SMALL_LOG).await;
    shard.create_table(TABLE, 1, 1).await;
    let leader = shard.leader().await;
    let wiped = (1..=3).find(|replica| *replica != leader).unwrap();
    shard.stop_replica(wiped).await;
    insert(&shard, rows).await;
    let last = shard.inspect(shard.leader().await).await.unwrap().decided;

    let begun = evenkeel_host::now();
    shard.start_replica(wiped);
    until(&shard, wiped, "half way", |now| now.seeding && now.seeded_bytes > all_bytes / 3).await;
    let first = shard.inspect(wiped).await.unwrap();
    shard.stop_replica(wiped).await;
    println!("{} bytes in {:.1} s", first.seeded_bytes, evenkeel_host::elapsed(begun).as_secs_f64());
    assert!(first.seeding && first.seeded_bytes < all_bytes, "it was to be stopped half way: {first:?}");

    shard.start_replica(wiped);
    let begun = evenkeel_host::now();
    let (done, writes) = (AtomicBool::new(false), AtomicI64::new(0));
    let write = async {
        while !done.load(Ordering::Relaxed) {
            let n = writes.fetch_add(1, Ordering::Relaxed);
            let id = Value::from(n * 7_919 % rows);
            shard.sql("UPDATE items SET v = v + 1 WHERE id = $1", &[id]).await.unwrap();
            if n % 16 == 0 {
                shard.sql("DELETE FROM items WHERE id = $1", &[(n * 31 % rows).into()]).await.unwrap();
            }
        }
    };
    let seeded = async {
        until(&shard, wiped, "whole", |now| now.applied >= last).await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(write, seeded);
    let second = shard.inspect(wiped).await.unwrap();
    println!("{} bytes in {:.1} s", second.seeded_bytes, evenkeel_host::elapsed(begun).as_secs_f64());
    assert!(!second.seeding);
    // What was stored between the last look and the stop has come too, and the rest has grown by
    // nothing.
    let left = all_bytes - first.seeded_bytes;
    assert!(second.seeded_bytes <= left + left / 10, "{} of {left} bytes were left", second.seeded_bytes);
    assert!(writes.load(Ordering::Relaxed) > 16, "nothing was written meanwhile");
    shard.checked_sums().await;
    shard.stop().await;
}

/// Where no table is, no row is missing: the replica is whole at once, although no piece comes, and
/// nothing is written.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_shard_without_tables_is_whole_at_once() {
    super::start_logging();
    let mut shard = Shard::start(1, 3).await;
    let leader = shard.leader().await;
    let wiped = (1..=3).find(|replica| *replica != leader).unwrap();
    shard.stop_replica(wiped).await;
    shard.wipe_replica(wiped);
    shard.start_replica(wiped);
    until(&shard, wiped, "whole", |now| !now.seeding && now.applied > 0).await;
    shard.stop().await;
}
