//! Transactions and batches: what does not fit, what comes too late, what must not outlive its
//! leadership.

use super::harness::{Shard, id, statement};
use super::{TABLE, start_logging};
use evenkeel_protocol::shard::*;
use evenkeel_protocol::value::MAX_VALUE_BYTES;
use evenkeel_protocol::*;
use evenkeel_rpc::Connection;
use std::time::Duration;

/// A transaction on a connection.
struct Transaction<'a> {
    connection: &'a Connection<ShardRequest, ShardReply>,
    number: u64,
    begin: Option<TransactionOptions>,
}

impl<'a> Transaction<'a> {
    fn new(connection: &'a Connection<ShardRequest, ShardReply>, number: u64, repeatable_read: bool) -> Self {
        Transaction { connection, number, begin: Some(TransactionOptions { repeatable_read, read_only: false }) }
    }

    async fn ask(&self, request: ShardRequest) -> Result<ShardReply, Failure> {
        match self.connection.call_within(&request, Duration::from_secs(60)).await.unwrap() {
            ShardReply::Failed(failure) => Err(failure),
            reply => Ok(reply),
        }
    }

    async fn sql(&mut self, sql: &str, params: &[Value]) -> Result<StatementReply, Failure> {
        let (transaction, begin) = (self.number, self.begin.take());
        let request = ShardRequest::InTransaction { transaction, begin, statement: statement(sql, params) };
        match self.ask(request).await? {
            ShardReply::Rows(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    async fn commit(self) -> Result<(), Failure> {
        let durability = Durability::Disk;
        self.ask(ShardRequest::Commit {
            transaction: self.number,
            id: id(),
            key: None,
            durability,
            participants: Vec::new(),
        })
        .await
        .map(drop)
    }

    async fn roll_back(self) {
        self.ask(ShardRequest::Rollback { transaction: self.number }).await.unwrap();
    }
}

/// The SQLSTATE of a refusal; `00000` if it is none.
fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
    match result {
        Ok(_) => "00000".into(),
        Err(Failure::Sql(error)) => error.code.to_string(),
        Err(other) => format!("{other:?}"),
    }
}

/// R12: a value or a transaction that is larger than it may be is refused as a whole, and whoever
/// asked can go on.
#[tokio::test(flavor = "multi_thread")]
async fn larger_values_than_allowed_are_refused_and_the_session_goes_on() {
    start_logging();
    // A transaction may take half of the log's cap.
    let shard = Shard::start_with(1, 3, "log_cap_bytes = 67108864\n").await;
    shard.create_table(TABLE, 1, 1).await;
    let insert = "INSERT INTO items VALUES ($1, 0, $2)";
    let count = async || shard.sql("SELECT id FROM items", &[]).await.unwrap().affected;

    let (third, whole) = ("x".repeat(11 << 20), "x".repeat(MAX_VALUE_BYTES + 1));
    assert_eq!(code(shard.sql(insert, &[1i64.into(), whole.as_str().into()]).await), "54000");
    assert_eq!(count().await, 0);

    let codes = shard.in_one_leadership(async |connection| {
        let mut codes = Vec::new();
        let mut large = Transaction::new(&connection, 1, false);
        for (n, text) in [(1i64, &*third), (2, &*third), (3, &*third), (4, "small")] {
            codes.push(code(large.sql(insert, &[n.into(), text.into()]).await));
        }
        codes.push(code(large.commit().await));
        codes.push(format!("{} rows", count().await));
        // On the same connection, and with what fits.
        let mut fits = Transaction::new(&connection, 2, false);
        for n in [1i64, 2] {
            codes.push(code(fits.sql(insert, &[n.into(), third.as_str().into()]).await));
        }
        codes.push(code(fits.commit().await));
        shard.sql("DELETE FROM items WHERE id >= 0", &[]).await.unwrap();
        codes
    });
    let large = ["00000", "00000", "54000", "25P02", "40001", "0 rows"];
    assert_eq!(codes.await, [&large[..], &["00000"; 3]].concat());
    // Statements that share a batch are not refused because they do not fit into one entry together
    // (R10).
    let part = "x".repeat(400 << 10);
    let texts: Vec<[Value; 2]> = (10..26i64).map(|n| [n.into(), part.as_str().into()]).collect();
    let inserted = futures::future::join_all(texts.iter().map(|params| shard.sql(insert, params))).await;
    assert!(inserted.iter().all(Result::is_ok), "{inserted:?}");
    assert_eq!(shard.checked_sums().await[0].1.rows, 16);
    shard.stop().await;
}

/// R10: one statement of a batch that PostgreSQL refuses, or that waits for a lock, takes no other
/// with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_fails_takes_no_other_of_its_batch_with_it() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;
    let insert = "INSERT INTO items VALUES ($1, 1, NULL)";
    let mut base = 0i64;
    let (codes, held) = shard
        .in_one_leadership(async |connection| {
            base += 1_000;
            // Every fourth row is there already, and one is held.
            for n in (0..200).step_by(4) {
                shard.sql(insert, &[(base + n).into()]).await.unwrap();
            }
            let mut holder = Transaction::new(&connection, 1, false);
            let held = "UPDATE items SET n = n + 1 WHERE id = $1";
            drop(holder.sql(held, &[base.into()]).await);
            // Many at once, so that they share batches.
            let ask = async |sql: &str, n: i64| {
                let request = ShardRequest::Statement(statement(sql, &[n.into()]));
                match connection.call_within(&request, Duration::from_secs(60)).await.unwrap() {
                    ShardReply::Failed(failure) => code::<()>(Err(failure)),
                    _ => code(Ok(())),
                }
            };
            let asked = futures::future::join_all((1..200).map(|n| ask(insert, base + n)));
            let (codes, waited) = tokio::join!(asked, ask(held, base));
            (codes, [waited, code(holder.commit().await)])
        })
        .await;
    let wanted = (1..200).map(|n| if n % 4 == 0 { "23505" } else { "00000" });
    assert!(codes.iter().map(String::as_str).eq(wanted), "{codes:?}");
    assert_eq!(held, ["40001", "00000"]);
    shard.checked_sums().await;
    shard.stop().await;
}

/// R3: a transaction ends with its leadership, so that what the next one decides finds no lock of
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_ends_with_its_leadership() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;
    shard.sql("INSERT INTO items VALUES (1, 0, NULL)", &[]).await.unwrap();
    let (connection, old) = shard
        .in_one_leadership(async |connection| {
            let mut transaction = Transaction::new(&connection, 1, false);
            drop(transaction.sql("UPDATE items SET n = 1 WHERE id = 1", &[]).await);
            (connection, shard.leader().await)
        })
        .await;
    let to = old % 3 + 1;
    let begun = evenkeel_host::now();
    while shard.leader().await == old {
        shard.control(ControlRequest::TransferLeadership { to: Some(to) }).await;
        assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "replica {old} goes on leading");
        evenkeel_host::sleep(Duration::from_millis(100)).await;
    }
    shard.sql("UPDATE items SET n = 2 WHERE id = 1", &[]).await.unwrap();
    let begun = evenkeel_host::now();
    let applied = async |written: Option<u64>| {
        let old = shard.inspect(old).await;
        written.is_some() && old.as_ref().map(|i| i.applied) >= written || {
            // The lock would be waited for, again and again, for more than three minutes.
            assert!(evenkeel_host::elapsed(begun) < Duration::from_secs(60), "the row is still locked: {old:?}");
            false
        }
    };
    let mut written = None;
    while !applied(written).await {
        if written.is_none() {
            written = shard.inspect(shard.leader().await).await.map(|i| i.decided);
        }
        evenkeel_host::sleep(Duration::from_millis(20)).await;
    }
    let transaction = Transaction { connection: &connection, number: 1, begin: None };
    assert_eq!(code(transaction.commit().await), "40001");
    assert_eq!(shard.sql("SELECT n FROM items WHERE id = 1", &[]).await.unwrap().rows.int(0, 0), Some(2));
    shard.stop().await;
}

/// R25: a snapshot does not hold the rows of a range that came after it, and must not pass for one
/// that does.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_sees_no_range_that_was_adopted_after_it() {
    start_logging();
    let (source, destination) = tokio::join!(Shard::start(1, 3), Shard::start(2, 3));
    // A table for each leadership that this may take.
    let mut table = 0;
    let seen = destination.in_one_leadership(async |connection| {
        table += 1;
        let seen = snapshot_beside_a_move(&source, &destination, &connection, table).await;
        seen.map(|seen| seen.map_or_else(|failure| code::<()>(Err(failure)), |reply| reply.affected.to_string()))
    });
    assert_eq!(seen.await, ["1", "1", "1", "40001", "1", "1"]);
    tokio::join!(source.stop(), destination.stop());
}

/// What a repeatable-read transaction and another one see of a range that is there before, of one
/// that comes while they are open, and what a new one sees.
async fn snapshot_beside_a_move(
    source: &Shard,
    destination: &Shard,
    connection: &Connection<ShardRequest, ShardReply>,
    table: u32,
) -> [Result<StatementReply, Failure>; 6] {
    let name = format!("items{table}");
    let (low, high) = (u64::from(2 * table), u64::from(2 * table + 1));
    let schema = source.create_table(&TABLE.replace("items", &name), table, low).await;
    for n in [5i64, 150] {
        source.sql(&format!("INSERT INTO {name} VALUES ($1, 0, 'x')"), &[n.into()]).await.unwrap();
    }
    let at = schema.codec().encode(&[KeyValue::Int(100)]).unwrap();
    let operator = |n: u32| OperatorId((10 * table + n).into());
    let (range, epoch, pieces) = (RangeId(low), Epoch(1), vec![(at.clone(), RangeId(high))]);
    let split = ControlRequest::Split { operator: operator(1), range, epoch, at: pieces };
    assert_eq!(source.control(split).await, ControlReply::Done);
    let (lower, upper) = (KeyInterval::new(Key::MIN, Some(at.clone())), KeyInterval::new(at, None));
    source.moved(destination, operator(2), (RangeId(high), Epoch(2)), &schema, upper).await;

    let read = |id: i64| format!("SELECT n FROM {name} WHERE id = {id}");
    let number = u64::from(10 * table);
    let mut old = Transaction::new(connection, number, true);
    let mut latest = Transaction::new(connection, number + 1, false);
    let before = [old.sql(&read(150), &[]).await, latest.sql(&read(150), &[]).await];
    source.moved(destination, operator(3), (RangeId(low), Epoch(2)), &schema, lower).await;
    let mut later = Transaction::new(connection, number + 2, true);
    let after = [
        old.sql(&read(150), &[]).await,
        old.sql(&read(5), &[]).await,
        // Each statement of this one has a snapshot of its own.
        latest.sql(&read(5), &[]).await,
        later.sql(&read(5), &[]).await,
    ];
    for transaction in [old, latest, later] {
        transaction.roll_back().await;
    }
    let ([a, b], [c, d, e, f]) = (before, after);
    [a, b, c, d, e, f]
}

/// `--shard-capacity` is for all that the leader executes: statements of transactions count, each
/// for itself.
#[tokio::test(flavor = "multi_thread")]
async fn statements_of_transactions_count_towards_the_admission_limit() {
    const PER_S: u32 = 20;
    const STATEMENTS: u32 = 10;
    start_logging();
    let shard = Shard::start_with(1, 3, &format!("capacity_per_s = {PER_S}\n")).await;
    shard.create_table(TABLE, 1, 1).await;
    let executed = shard.in_one_leadership(async |connection| {
        let mut transaction = Transaction::new(&connection, 1, false);
        let (begun, mut codes) = (evenkeel_host::now(), Vec::new());
        for n in 0..STATEMENTS {
            codes.push(code(transaction.sql("INSERT INTO items VALUES ($1, 0, NULL)", &[i64::from(n).into()]).await));
        }
        let took = evenkeel_host::elapsed(begun);
        transaction.roll_back().await;
        (took, codes)
    });
    let (took, codes) = executed.await;
    assert_eq!(codes, ["00000"; STATEMENTS as usize]);
    let least = Duration::from_secs(1) * (STATEMENTS - 2) / PER_S;
    assert!(took >= least, "{STATEMENTS} statements took {took:?}, at {PER_S} a second");
    shard.stop().await;
}

/// E10: breaks if a COMMIT that is refused at the door leaves its transaction open: clients whose
/// clocks are wrong would take all sessions, and hold their rows for half a minute each.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_by_a_wrong_clock_leaves_no_transaction_open() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;
    shard.sql("INSERT INTO items VALUES (1, 0, '')", &[]).await.unwrap();
    let outcome = shard
        .in_one_leadership(async |connection| {
            let mut codes = Vec::new();
            for (number, ahead_ms) in [(1, 3_600_000i64), (2, -3_600_000)] {
                let mut open = Transaction::new(&connection, number, false);
                open.sql("UPDATE items SET n = n + 1 WHERE id = 1", &[]).await.unwrap();
                let wrong = TxnId { first_sent_ms: id().first_sent_ms.saturating_add_signed(ahead_ms), ..id() };
                let (transaction, durability) = (number, Durability::Disk);
                let request =
                    ShardRequest::Commit { transaction, id: wrong, key: None, durability, participants: Vec::new() };
                codes.push(code(open.ask(request).await));
                // Its row is free at once: no other statement has to wait for a lock.
                codes.push(code(shard.sql("UPDATE items SET n = n + 10 WHERE id = 1", &[]).await));
            }
            codes
        })
        .await;
    assert_eq!(outcome, ["40001", "00000", "40001", "00000"]);
    shard.stop().await;
}

/// E5: breaks if a COMMIT takes effect after its client has learnt, on another connection, that it
/// was lost: the client has begun again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_comes_after_it_was_said_to_be_lost_does_not_take_effect() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;
    shard.sql("INSERT INTO items VALUES (1, 0, '')", &[]).await.unwrap();
    let outcome = shard
        .in_one_leadership(async |connection| {
            let mut open = Transaction::new(&connection, 1, false);
            open.sql("UPDATE items SET n = n + 1 WHERE id = 1", &[]).await.unwrap();
            let (commit, durability) = (id(), Durability::Disk);
            // The client has lost that connection and asks on another one; the server reads the
            // first one late.
            let elsewhere = shard.connect_to_leader().await;
            let asking = Transaction::new(&elsewhere, 1, false);
            let request =
                ShardRequest::Commit { transaction: 1, id: commit, key: None, durability, participants: Vec::new() };
            let asked = asking.ask(request.clone()).await;
            let late = open.ask(request.clone()).await;
            let again = asking.ask(request).await;
            [code(asked), code(late), code(again)]
        })
        .await;
    assert_eq!(outcome, ["40001", "40001", "40001"]);
    let changed = shard.sql("UPDATE items SET n = 7 WHERE id = 1 AND n = 0", &[]).await.unwrap();
    assert_eq!(changed.affected, 1, "it did not take effect");
    shard.stop().await;
}

/// E17: clients that idle in transactions do not keep out statements that run by themselves, and
/// these do not take all sessions either.
#[tokio::test(flavor = "multi_thread")]
async fn idle_transactions_keep_no_statement_out() {
    start_logging();
    let shard = Shard::start_with(1, 3, "max_transactions = 3\n").await;
    shard.create_table(TABLE, 1, 1).await;
    shard.sql("INSERT INTO items VALUES (1, 0, ''), (2, 0, ''), (3, 0, '')", &[]).await.unwrap();
    shard
        .in_one_leadership(async |connection| {
            let begin = |transaction| ShardRequest::InTransaction {
                transaction,
                begin: Some(TransactionOptions::default()),
                statement: statement("SELECT n FROM items WHERE id = 1", &[]),
            };
            let full = loop {
                let number = id().sequence;
                match connection.call(&begin(number)).await {
                    Ok(ShardReply::Rows(_)) => {}
                    other => break other,
                }
            };
            let wanted = matches!(&full, Ok(ShardReply::Failed(Failure::Sql(error))) if error.code == "53300");
            let several = statement("UPDATE items SET n = n + 1 WHERE id IN (1, 2)", &[]);
            let written = connection.call(&ShardRequest::Statement(several)).await;
            // In another leadership there are other transactions.
            let over = matches!(&written, Ok(ShardReply::Failed(Failure::NotLeader { .. })) | Err(_));
            if wanted && !over {
                assert!(matches!(&written, Ok(ShardReply::Rows(reply)) if reply.affected == 2), "{written:?}");
            }
        })
        .await;
    shard.stop().await;
}
