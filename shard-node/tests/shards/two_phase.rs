//! R26: transactions over several shards, in both phases, and what becomes of them when a leader or
//! a client goes in between.

use super::harness::{Shard, id, statement};
use super::{TABLE, start_logging};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::*;
use evenkeel_protocol::*;
use evenkeel_rpc::Connection;
use std::time::Duration;

type ToShard = Connection<ShardRequest, ShardReply>;

async fn ask(connection: &ToShard, request: ShardRequest) -> Result<ShardReply, Failure> {
    match connection.call_within(&request, Duration::from_secs(20)).await.unwrap() {
        ShardReply::Failed(failure) => Err(failure),
        reply => Ok(reply),
    }
}

/// The answer of whichever replica leads.
async fn ask_leader(shard: &Shard, request: &ShardRequest) -> Result<ShardReply, Failure> {
    loop {
        match ask(&shard.connect_to_leader().await, request.clone()).await {
            Err(Failure::NotLeader { .. }) => {}
            answered => return answered,
        }
    }
}

/// The transaction's part on a shard: adds to a row.
async fn add(connection: &ToShard, row: i64, more: i64) {
    let statement = statement("UPDATE items SET n = n + $2 WHERE id = $1", &[row.into(), more.into()]);
    let begin = Some(TransactionOptions::default());
    let reply = ask(connection, ShardRequest::InTransaction { transaction: 1, begin, statement }).await.unwrap();
    assert!(matches!(reply, ShardReply::Rows(reply) if reply.affected == 1));
}

async fn prepare(connection: &ToShard, id: TxnId, decider: &ShardInfo) -> Result<ShardReply, Failure> {
    ask(connection, ShardRequest::Prepare { transaction: 1, id, decider: decider.clone() }).await
}

fn commit(id: TxnId, participants: &[&Shard]) -> ShardRequest {
    let participants = participants.iter().map(|shard| shard.info.clone()).collect();
    ShardRequest::Commit { transaction: 1, id, key: None, durability: Durability::Disk, participants }
}

async fn shard_with_rows(number: u32, replicas: usize) -> Shard {
    let shard = Shard::start(number, replicas).await;
    shard.create_table(TABLE, 1, 1).await;
    for row in 1..=2i64 {
        shard.sql("INSERT INTO items VALUES ($1, 0, NULL)", &[row.into()]).await.unwrap();
    }
    shard
}

async fn value(shard: &Shard, row: i64) -> Option<i64> {
    shard.sql("SELECT n FROM items WHERE id = $1", &[row.into()]).await.unwrap().rows.int(0, 0)
}

/// Waits until the transaction is resolved on a shard.
async fn until_resolved(shard: &Shard, id: TxnId) -> Duration {
    let begun = evenkeel_host::now();
    while let ShardReply::StillPrepared(ids) = shard.ask(&ShardRequest::AskPrepared { ids: vec![id] }).await
        && !ids.is_empty()
    {
        assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(30), "it is never resolved");
        evenkeel_host::sleep(Duration::from_millis(10)).await;
    }
    evenkeel_host::elapsed(begun)
}

/// A transaction is committed on both shards; and if its client leaves after the decision, the
/// other shard asks for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_reaches_the_participants_also_without_the_client() {
    start_logging();
    let (participant, decider) = (shard_with_rows(1, 3).await, shard_with_rows(2, 2).await);
    for (round, tells) in [(1i64, true), (2, false)] {
        let (first, second) = (participant.connect_to_leader().await, decider.connect_to_leader().await);
        let id = id();
        add(&first, 1, 5).await;
        add(&second, 1, -5).await;
        assert_eq!(prepare(&first, id, &decider.info).await, Ok(ShardReply::Done));
        assert_eq!(value(&participant, 1).await, Some(5 * (round - 1)), "nothing is committed yet");
        assert_eq!(ask(&second, commit(id, &[&participant])).await, Ok(ShardReply::Done));
        if tells {
            assert_eq!(ask(&first, ShardRequest::Resolve { id, committed: true }).await, Ok(ShardReply::Done));
        } else {
            drop(first);
            let waited = until_resolved(&participant, id).await;
            assert!(waited < Duration::from_secs(1), "in doubt for {waited:?}");
        }
        assert_eq!((value(&participant, 1).await, value(&decider, 1).await), (Some(5 * round), Some(-5 * round)));
    }
    participant.checked_sums().await;
    participant.stop().await;
    decider.stop().await;
}

/// A deciding shard that is asked before it has committed never will; both parts are as before.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_early_ends_the_transaction() {
    start_logging();
    let (participant, decider) = (shard_with_rows(1, 2).await, shard_with_rows(2, 2).await);
    let (first, second) = (participant.connect_to_leader().await, decider.connect_to_leader().await);
    let id = id();
    add(&first, 1, 5).await;
    add(&second, 1, -5).await;
    assert_eq!(prepare(&first, id, &decider.info).await, Ok(ShardReply::Done));
    // Its client is gone for the one, not for the other.
    drop(first);
    until_resolved(&participant, id).await;
    let late = ask(&second, commit(id, &[&participant])).await;
    assert!(matches!(&late, Err(Failure::Sql(error)) if error.code == "40001"), "{late:?}");
    assert_eq!((value(&participant, 1).await, value(&decider, 1).await), (Some(0), Some(0)));
    // Its rows are free.
    participant.sql("UPDATE items SET n = 7 WHERE id = 1", &[]).await.unwrap();
    participant.stop().await;
    decider.stop().await;
}

/// The leader that has prepared a transaction goes. Its successor has neither the rows nor the
/// locks: statements on them wait, others do not; and the decision applies the rows on every
/// replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_outlives_its_leader() {
    start_logging();
    let mut shard = shard_with_rows(1, 3).await;
    // Nobody answers for it, so that the transaction stays in doubt.
    let nobody = ShardInfo { id: ShardId(9), replicas: Default::default() };
    let id = id();
    let connection = shard.connect_to_leader().await;
    add(&connection, 1, 5).await;
    assert_eq!(prepare(&connection, id, &nobody).await, Ok(ShardReply::Done));
    let old = shard.leader().await;
    shard.stop_replica(old).await;
    assert_eq!(value(&shard, 2).await, Some(0), "another row");
    for sql in ["SELECT n FROM items WHERE id = 1", "UPDATE items SET n = 9 WHERE id = 1", "SELECT id FROM items"] {
        let waited = ask_leader(&shard, &ShardRequest::Statement(statement(sql, &[]))).await;
        assert!(matches!(waited, Err(Failure::Busy { .. })), "{sql}: {waited:?}");
    }
    // Nor is the range given away, although no statement delays its fence.
    let operator = OperatorId(7);
    let to = ShardInfo { id: ShardId(2), replicas: Default::default() };
    let open = ControlRequest::MoveOpen { operator, range: RangeId(1), epoch: Epoch(1), to };
    assert_eq!(shard.control(open).await, ControlReply::Done);
    let fenced = ask_leader(&shard, &ShardRequest::Fence { operator, attempt: 1 }).await;
    assert!(matches!(&fenced, Err(Failure::Busy { reason, .. }) if reason.contains("prepared")), "{fenced:?}");
    let cancel = ControlRequest::MoveCancel { operator, range: RangeId(1) };
    assert_eq!(shard.control(cancel).await, ControlReply::Done);
    assert_eq!(shard.ask(&ShardRequest::Resolve { id, committed: true }).await, ShardReply::Done);
    assert_eq!(value(&shard, 1).await, Some(5));
    // Again, as after a lost answer.
    assert_eq!(shard.ask(&ShardRequest::Resolve { id, committed: true }).await, ShardReply::Done);
    shard.start_replica(old);
    assert_eq!(shard.checked_sums().await[0].1.rows, 2);
    shard.stop().await;
}

/// A replica that starts again finds prepared transactions, also if they were prepared before the
/// position that its PostgreSQL has recorded.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_survive_a_restart() {
    start_logging();
    let mut shard = shard_with_rows(1, 2).await;
    let nobody = ShardInfo { id: ShardId(9), replicas: Default::default() };
    let id = id();
    let connection = shard.connect_to_leader().await;
    add(&connection, 1, 5).await;
    assert_eq!(prepare(&connection, id, &nobody).await, Ok(ShardReply::Done));
    // Positions are recorded every half second.
    let begun = evenkeel_host::now();
    while evenkeel_host::elapsed(begun) < Duration::from_millis(1_500) {
        shard.sql("UPDATE items SET n = n + 1 WHERE id = 2", &[]).await.unwrap();
    }
    for replica in [1, 2] {
        shard.stop_replica(replica).await;
    }
    for replica in [1, 2] {
        shard.start_replica(replica);
    }
    let ShardReply::StillPrepared(ids) = shard.ask(&ShardRequest::AskPrepared { ids: vec![id] }).await else {
        panic!()
    };
    assert_eq!(ids, [id]);
    assert_eq!(shard.ask(&ShardRequest::Resolve { id, committed: false }).await, ShardReply::Done);
    assert_eq!(value(&shard, 1).await, Some(0));
    shard.stop().await;
}
