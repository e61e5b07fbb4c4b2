//! Transactions: one shard each, and a commit that is neither lost nor done twice.

use crate::world::{Cluster, Fault};
use crate::{BUMP, INSERT, READ, config, connect, until};
use evenkeel_client::{Client, ClientConfig, ClientError, Transaction, TransactionOptions};

async fn begin(client: &Client) -> Transaction {
    client.begin(TransactionOptions::default()).await.unwrap()
}

#[tokio::test]
async fn committed_changes_stay_and_others_go() {
    let cluster = Cluster::start(&[(1, 10), (2, 0)]).await;
    let client = connect(&cluster).await;
    let mut transaction = begin(&client).await;
    transaction.execute("SELECT 1", &[]).await.unwrap();
    transaction.execute(INSERT, &[11.into()]).await.unwrap();
    transaction.execute(BUMP, &[11.into()]).await.unwrap();
    transaction.execute("SELECT 1", &[]).await.unwrap();
    assert_eq!(transaction.execute(READ, &[11.into()]).await.unwrap().rows.int(0, 1), Some(2));
    transaction.commit().await.unwrap();
    assert_eq!(cluster.value(11), Some(2));

    let mut transaction = begin(&client).await;
    transaction.execute(INSERT, &[12.into()]).await.unwrap();
    transaction.rollback().await;
    assert_eq!((cluster.value(12), cluster.open_transactions()), (None, 0));

    let mut transaction = begin(&client).await;
    transaction.execute(INSERT, &[13.into()]).await.unwrap();
    drop(transaction);
    until("the dropped transaction is rolled back", || cluster.open_transactions() == 0).await;
    assert_eq!(cluster.value(13), None);
    begin(&client).await.commit().await.unwrap();
    assert_eq!(client.stats().failures, 0);
}

/// Two transactions on one connection are independent.
#[tokio::test]
async fn transactions_share_connections() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let mut open = Vec::new();
    for id in 0..8 {
        let mut transaction = begin(&client).await;
        transaction.execute(INSERT, &[id.into()]).await.unwrap();
        open.push(transaction);
    }
    assert_eq!(cluster.open_transactions(), 8);
    for (id, transaction) in open.into_iter().enumerate() {
        if id % 2 == 0 { transaction.commit().await.unwrap() } else { transaction.rollback().await }
    }
    let present: Vec<i64> = (0..8).filter(|id| cluster.value(*id).is_some()).collect();
    assert_eq!(present, [0, 2, 4, 6]);
}

/// Breaks if a lost commit is reported as failed, or sent under another id (R14, invariant 7).
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_asked_about() {
    for fault in [Fault::ForgetAnswer, Fault::Unsure, Fault::DieAfter] {
        let cluster = Cluster::start(&[(1, 0)]).await;
        let client = connect(&cluster).await;
        let mut transaction = begin(&client).await;
        transaction.execute(INSERT, &[1.into()]).await.unwrap();
        let name = format!("{fault:?}");
        cluster.script(1, [fault]);
        transaction.commit().await.unwrap();
        assert_eq!(cluster.value(1), Some(1), "{name}");
        let seen = cluster.seen();
        let commits: Vec<_> = seen.iter().filter(|request| request.what == "commit").collect();
        assert!(commits.len() == 2 && commits[0].id == commits[1].id, "{name}: {seen:?}");
    }
}

#[tokio::test]
async fn a_commit_that_did_not_happen_is_40001() {
    for fault in [Fault::DieBefore, Fault::Nothing] {
        let cluster = Cluster::start(&[(1, 0)]).await;
        let client = connect(&cluster).await;
        let mut transaction = begin(&client).await;
        transaction.execute(INSERT, &[1.into()]).await.unwrap();
        if fault == Fault::Nothing {
            cluster.elect(1, Some(2));
        }
        cluster.script(1, [fault]);
        let error = transaction.commit().await.unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), ("40001", true), "{error}");
        assert_eq!(cluster.value(1), None);
    }
}

/// Has a commit executed and its answer lost, runs `meanwhile`, and then lets the repeated commit
/// be answered.
async fn lose_the_answer(
    cluster: &Cluster,
    transaction: Transaction,
    meanwhile: impl AsyncFnOnce(),
) -> Result<(), ClientError> {
    cluster.script(1, [Fault::ForgetAnswer, Fault::Slow(100)]);
    let commits = || cluster.world().seen.iter().filter(|request| request.what == "commit").count();
    let committing = tokio::spawn(transaction.commit());
    until("the commit has been sent again", || commits() == 2).await;
    meanwhile().await;
    committing.await.unwrap()
}

/// Breaks if the repeated commit follows the rows: not every key's range moves with the answer.
#[tokio::test]
async fn a_lost_commit_is_asked_about_where_it_ran() {
    for sql in [INSERT, "INSERT INTO t (id, n) VALUES ($1, 1), (11, 1)", "UPDATE t SET n = n + 1 WHERE id > 20"] {
        let cluster = Cluster::start(&[(1, 10), (1, 0)]).await;
        let client = connect(&cluster).await;
        cluster.put([21]);
        let mut transaction = begin(&client).await;
        let params = if sql.contains("$1") { vec![1.into()] } else { vec![] };
        transaction.execute(sql, &params).await.unwrap();
        let moves = async || {
            cluster.world().move_range(1, 3);
            cluster.publish();
        };
        lose_the_answer(&cluster, transaction, moves).await.unwrap();
        assert_eq!(client.stats().failures, 0);
    }
}

/// The answers of a shard that was drained and removed are with its ranges.
#[tokio::test]
async fn a_lost_commit_of_a_removed_shard_is_asked_about_where_its_rows_are() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let mut transaction = begin(&client).await;
    transaction.execute(BUMP, &[7.into()]).await.unwrap();
    transaction.execute(INSERT, &[1.into()]).await.unwrap();
    let removal = async || {
        cluster.world().move_range(1, 3);
        cluster.world().infos.retain(|info| info.id.0 != 1);
        cluster.publish();
        until("the client has heard", || client.routes().shard(evenkeel_protocol::ShardId(1)).is_none()).await;
        for replica in 1..=3 {
            cluster.kill(1, replica).await;
        }
    };
    lose_the_answer(&cluster, transaction, removal).await.unwrap();
    assert_eq!(cluster.value(1), Some(1));
}

#[tokio::test]
async fn a_commit_that_cannot_be_asked_about_is_08007() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = Client::connect(ClientConfig { statement_timeout_ms: 400, ..config(&cluster) }).await.unwrap();
    let mut transaction = begin(&client).await;
    transaction.execute(INSERT, &[1.into()]).await.unwrap();
    cluster.kill(1, 2).await;
    cluster.kill(1, 3).await;
    cluster.script(1, [Fault::DieAfter]);
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(&error, ClientError::OutcomeUnknown(e) if e.code == "08007"), "{error}");
}

/// Breaks if a transaction's id is as old as the transaction: shards refuse old ids, which they may
/// have forgotten (R14).
#[tokio::test]
async fn the_id_of_a_commit_is_as_old_as_the_commit() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let mut transaction = begin(&client).await;
    transaction.execute(INSERT, &[1.into()]).await.unwrap();
    evenkeel_host::sleep(std::time::Duration::from_millis(20)).await;
    cluster.script(1, [Fault::ForgetAnswer]);
    transaction.commit().await.unwrap();
    let seen = cluster.seen();
    let [first, commit, again] = seen.as_slice() else { panic!("{seen:?}") };
    assert!(commit.id.first_sent_ms >= first.id.first_sent_ms + 20);
    assert_eq!((commit.id, commit.id.sequence), (again.id, first.id.sequence));
}

#[tokio::test]
async fn whatever_breaks_a_transaction_before_its_commit_is_40001() {
    for fault in [Fault::ForgetAnswer, Fault::DieAfter, Fault::Unsure] {
        let cluster = Cluster::start(&[(1, 0)]).await;
        let client = connect(&cluster).await;
        let mut transaction = begin(&client).await;
        transaction.execute(INSERT, &[1.into()]).await.unwrap();
        let name = format!("{fault:?}");
        cluster.script(1, [fault]);
        let error = transaction.execute(INSERT, &[2.into()]).await.unwrap_err();
        assert_eq!(error.code(), "40001", "{name}");
        assert_eq!(transaction.execute(READ, &[1.into()]).await.unwrap_err().code(), "25P02");
        assert_eq!(transaction.commit().await.unwrap_err().code(), "25P02");
        until("it is rolled back", || cluster.open_transactions() == 0).await;
        assert_eq!((cluster.value(1), cluster.value(2)), (None, None), "{name}");
    }
}

/// The first statement is retried freely, and a busy shard is waited for.
#[tokio::test]
async fn a_transaction_begins_in_spite_of_failures() {
    for fault in [Fault::ForgetAnswer, Fault::ForgetRequest, Fault::DieAfter, Fault::Unsure, Fault::Busy(5)] {
        let cluster = Cluster::start(&[(1, 0)]).await;
        let client = connect(&cluster).await;
        let mut transaction = begin(&client).await;
        let name = format!("{fault:?}");
        cluster.script(1, [fault, Fault::Nothing, Fault::Busy(5)]);
        assert!(transaction.execute(INSERT, &[1.into()]).await.unwrap().retries > 0, "{name}");
        transaction.execute(INSERT, &[2.into()]).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!((cluster.value(1), cluster.value(2)), (Some(1), Some(1)), "{name}");
        until("what was begun in vain is rolled back", || cluster.open_transactions() == 0).await;
    }
}

#[tokio::test]
async fn a_transaction_joins_the_shards_that_it_needs() {
    let cluster = Cluster::start(&[(1, 10), (2, 0)]).await;
    let client = connect(&cluster).await;
    for commits in [false, true] {
        let mut transaction = begin(&client).await;
        transaction.execute(INSERT, &[1.into()]).await.unwrap();
        transaction.execute(INSERT, &[11.into()]).await.unwrap();
        transaction.execute(INSERT, &[2.into()]).await.unwrap();
        assert_eq!(cluster.open_transactions(), 2, "once on each");
        match commits {
            true => transaction.commit().await.unwrap(),
            false => transaction.rollback().await,
        }
        let expected = if commits { Some(1) } else { None };
        assert_eq!([1, 2, 11].map(|key| cluster.value(key)), [expected; 3]);
        until("it has ended", || cluster.open_transactions() == 0).await;
    }
    // One that does not prepare it: nothing takes effect anywhere.
    let mut transaction = begin(&client).await;
    transaction.execute(INSERT, &[3.into()]).await.unwrap();
    transaction.execute(INSERT, &[13.into()]).await.unwrap();
    for shard in cluster.world().shards.values_mut() {
        for open in shard.open.keys().copied().collect::<Vec<_>>() {
            shard.undo(open);
        }
    }
    assert_eq!(transaction.commit().await.unwrap_err().code(), "40001");
    assert_eq!([3, 13].map(|key| cluster.value(key)), [None, None]);

    let mut transaction = begin(&client).await;
    assert_eq!(transaction.execute("SELECT id, n FROM t", &[]).await.unwrap_err().code(), "0A000");
    for text in ["COMMIT", "CREATE TABLE u (id bigint PRIMARY KEY)"] {
        assert_eq!(begin(&client).await.execute(text, &[]).await.unwrap_err().code(), "0A000", "{text}");
    }
    let mut reading = client.begin(TransactionOptions { read_only: true, repeatable_read: false }).await.unwrap();
    reading.execute(READ, &[1.into()]).await.unwrap();
    assert_eq!(reading.execute(INSERT, &[1.into()]).await.unwrap_err().code(), "25006");
}

/// If a range moves during a transaction, the transaction fails as retryable and not as
/// unsupported.
#[tokio::test]
async fn a_range_that_moves_under_a_transaction_is_40001() {
    for told in [false, true] {
        let cluster = Cluster::start(&[(1, 0)]).await;
        let client = connect(&cluster).await;
        let mut transaction = begin(&client).await;
        transaction.execute(INSERT, &[1.into()]).await.unwrap();
        cluster.world().move_range(1, 2);
        if told {
            cluster.publish();
            client.refresh().await.unwrap();
        }
        let error = transaction.execute(INSERT, &[2.into()]).await.unwrap_err();
        assert_eq!(error.code(), "40001", "told: {told}: {error}");
        let mut again = begin(&client).await;
        again.execute(INSERT, &[1.into()]).await.unwrap();
        again.commit().await.unwrap();
    }
}

/// Breaks if a setting outlives the rollback of its transaction, or is accepted in a failed one.
#[tokio::test]
async fn settings_belong_to_transactions() {
    use evenkeel_client::{Levels, ReadLevel};
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let mut session = client.begin_session(Levels::default());
    let run = async |session: &mut evenkeel_client::Session, text: &str| {
        session.execute(text, &[]).await.map(|answer| answer.command).map_err(|error| error.code().to_string())
    };
    let local = "SET evenkeel.read_level = 'local'";
    for end in ["ROLLBACK", "COMMIT"] {
        assert_eq!(run(&mut session, "BEGIN").await, Ok(Some("BEGIN")));
        assert_eq!(run(&mut session, local).await, Ok(Some("SET")));
        assert_eq!(run(&mut session, "SET LOCAL evenkeel.read_level = 'leader'").await, Ok(Some("SET")));
        assert_eq!(session.levels().read, ReadLevel::Leader);
        assert_eq!(run(&mut session, end).await, Ok(Some(end)));
        let kept = if end == "COMMIT" { ReadLevel::Local } else { ReadLevel::Linearizable };
        assert_eq!(session.levels().read, kept, "after {end}");
    }
    // A failed transaction accepts only its end; COMMIT is one.
    for (failing, code) in
        [("UPDATE nowhere SET n = 1 WHERE id = 1", "42P01"), ("SET evenkeel.colour = 'red'", "42704")]
    {
        run(&mut session, "BEGIN").await.unwrap();
        run(&mut session, "SET evenkeel.durability = 'local'").await.unwrap();
        assert_eq!(run(&mut session, failing).await, Err(code.into()));
        for text in ["SHOW evenkeel.durability", "SELECT id, n FROM t WHERE id = 1", local, "BEGIN", "RESET ALL"] {
            assert_eq!(run(&mut session, text).await, Err("25P02".into()), "{text}");
        }
        assert_eq!(run(&mut session, "COMMIT").await, Ok(Some("ROLLBACK")));
        assert!(!session.in_transaction());
        assert_eq!(session.levels().durability, evenkeel_client::Durability::Disk);
        assert_eq!(run(&mut session, "SHOW evenkeel.durability").await, Ok(Some("SHOW")));
    }
}
