//! R31: comparison of replicas. A row that was changed behind the back of one replica is found, and
//! that replica is named.

use super::{TABLE, start_logging};
use crate::harness::Shard;
use evenkeel_protocol::scrub::{Difference, ScrubReport};
use evenkeel_protocol::shard::*;
use evenkeel_protocol::*;
use std::time::Duration;

/// Rounds that follow one another without a rest.
const RESTLESS: &str = "scrub_bytes_per_s = 1073741824\nscrub_pause_ms = 10\n";
/// The background does not interfere.
const OFF: &str = "scrub_bytes_per_s = 0\n";
const PATIENCE: Duration = Duration::from_secs(60);

async fn filled(shard: &Shard, rows: i64) -> TableSchema {
    let schema = shard.create_table(TABLE, 1, 1).await;
    for n in 1..=rows {
        shard.sql("INSERT INTO items VALUES ($1, 0, 'x')", &[n.into()]).await.unwrap();
    }
    schema
}

fn key(schema: &TableSchema, n: i64) -> Key {
    schema.codec().encode(&[KeyValue::Int(n)]).unwrap()
}

/// The one difference that there is.
async fn difference(shard: &Shard) -> Difference {
    let compared = shard.compared().await;
    assert!(compared.silent.is_empty(), "{compared:?}");
    let [difference] = &compared.differences[..] else { panic!("{compared:?}") };
    difference.clone()
}

async fn scrubbed(shard: &Shard) -> ScrubReport {
    let ControlReply::Report(report) = shard.control(ControlRequest::Report).await else { panic!("no report") };
    report.scrub
}

// Finding F5: it was the others that were named.
#[tokio::test(flavor = "multi_thread")]
async fn the_replica_whose_row_was_changed_is_named_whichever_it_is() {
    start_logging();
    let shard = Shard::start_with(1, 3, OFF).await;
    let schema = filled(&shard, 60).await;
    assert_eq!(shard.checked_sums().await[0].1.rows, 60);
    let leader = shard.leader().await;
    for bad in 1..=3 {
        let who = format!("replica {bad}, leader {leader}");
        shard.behind_the_back(bad, "UPDATE items SET n = 7 WHERE id = 33").await;
        let found = difference(&shard).await;
        assert_eq!((found.range, &found.replicas[..]), (RangeId(1), &[bad][..]), "{who}: {found:?}");
        assert_eq!(found.interval, KeyInterval::new(key(&schema, 33), Some(key(&schema, 34))), "{who}");
        assert!(found.detail.contains("table items, keys from 33 to before 34"), "{}", found.detail);
        // One that is gone, and one that came from nowhere.
        shard.behind_the_back(bad, "UPDATE items SET n = 0 WHERE id = 33; DELETE FROM items WHERE id = 50").await;
        let found = difference(&shard).await;
        assert!(found.replicas == [bad] && found.interval.contains(&key(&schema, 50)), "{who}: {found:?}");
        shard.behind_the_back(bad, "INSERT INTO items VALUES (50, 0, 'x'), (1000, 0, 'y')").await;
        let found = difference(&shard).await;
        assert!(found.replicas == [bad] && found.interval.contains(&key(&schema, 1000)), "{who}: {found:?}");
        shard.behind_the_back(bad, "DELETE FROM items WHERE id = 1000").await;
        shard.checked_sums().await;
    }
    shard.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_nobody_can_say_which_is_right() {
    start_logging();
    let shard = Shard::start_with(1, 2, OFF).await;
    filled(&shard, 5).await;
    shard.behind_the_back(2, "UPDATE items SET n = 7 WHERE id = 3").await;
    let found = difference(&shard).await;
    assert!(found.replicas.is_empty(), "{found:?}");
    shard.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_finds_it_by_itself_and_its_successor_too() {
    start_logging();
    let mut shard = Shard::start_with(1, 3, RESTLESS).await;
    filled(&shard, 20).await;
    let leader = shard.leader().await;
    let bad = leader % 3 + 1;
    shard.behind_the_back(bad, "UPDATE items SET n = 7 WHERE id = 13").await;
    let begun = evenkeel_host::now();
    let blames = |report: &ScrubReport| report.differences.iter().any(|d| d.replicas == [bad]);
    while !blames(&scrubbed(&shard).await) {
        assert!(evenkeel_host::elapsed(begun) < PATIENCE, "{:?}", scrubbed(&shard).await);
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
    // The bad one leads now: the others are right all the same.
    let hand_over = ControlRequest::TransferLeadership { to: Some(bad) };
    assert_eq!(shard.control(hand_over).await, ControlReply::Done);
    while shard.leader().await != bad || !blames(&scrubbed(&shard).await) {
        assert!(evenkeel_host::elapsed(begun) < PATIENCE, "{:?}", scrubbed(&shard).await);
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
    // As advised: it comes back without its data, and takes the others'.
    shard.stop_replica(bad).await;
    shard.wipe_replica(bad);
    shard.start_replica(bad);
    let rested = |report: &ScrubReport, since: u64| report.rounds > since + 1 && report.differences.is_empty();
    let since = scrubbed(&shard).await.rounds;
    while shard.inspect(bad).await.is_none_or(|i| i.seeding || i.applied == 0)
        || !rested(&scrubbed(&shard).await, since)
    {
        assert!(evenkeel_host::elapsed(begun) < PATIENCE * 2, "{:?}", scrubbed(&shard).await);
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shard.checked_sums().await[0].1.rows, 20);
    shard.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_splits_and_moves_meanwhile_raise_no_alarm() {
    start_logging();
    let (source, destination) = tokio::join!(Shard::start_with(1, 3, RESTLESS), Shard::start_with(2, 3, RESTLESS));
    let schema = filled(&source, 200).await;
    let writes = async {
        let mut failed = 0;
        for n in 0..400i64 {
            let id = n % 200 + 1;
            let done = source.sql("UPDATE items SET n = n + 1 WHERE id = $1", &[id.into()]).await;
            failed += u32::from(done.is_err());
        }
        failed
    };
    let changes = async {
        let mut operator = 0;
        // Pieces of ten keys are cut off at the end and move away, one after the other.
        for (n, new) in [(150i64, 2u64), (100, 3)] {
            operator += 1;
            let at = vec![(key(&schema, n), RangeId(new))];
            let (range, epoch) = (RangeId(1), Epoch(operator));
            let split = ControlRequest::Split { operator: OperatorId(2 * operator), range, epoch, at };
            assert_eq!(source.control(split).await, ControlReply::Done);
            let end = (new == 3).then(|| key(&schema, 150));
            let interval = KeyInterval::new(key(&schema, n), end);
            let moving = (RangeId(new), Epoch(operator + 1));
            source.moved(&destination, OperatorId(2 * operator + 1), moving, &schema, interval).await;
        }
    };
    tokio::join!(writes, changes);
    for shard in [&source, &destination] {
        let begun = evenkeel_host::now();
        let since = scrubbed(shard).await.rounds;
        while scrubbed(shard).await.rounds < since + 3 {
            assert!(evenkeel_host::elapsed(begun) < PATIENCE, "{:?}", scrubbed(shard).await);
            evenkeel_host::sleep(Duration::from_millis(20)).await;
        }
        let report = scrubbed(shard).await;
        assert!(report.found == 0 && report.pieces > 3, "{report:?}");
    }
    tokio::join!(source.stop(), destination.stop());
}
