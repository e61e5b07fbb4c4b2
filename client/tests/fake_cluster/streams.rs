//! Streams: complete and in order under every fault between their pieces, bounded, and ended when
//! their reader is gone.

use crate::world::{Cluster, Fault, PIECE_ROWS};
use crate::{BUMP, READ, config, connect, until};
use evenkeel_client::{Client, ClientConfig, ClientError, RowStream, SqlError};
use evenkeel_protocol::RowBatch;

const ALL: &str = "SELECT id, n FROM t";

fn ids(rows: &RowBatch) -> Vec<i64> {
    (0..rows.count as usize).map(|row| rows.int(row, 0).unwrap()).collect()
}

async fn rest(stream: &mut RowStream) -> Result<Vec<i64>, ClientError> {
    let mut all = Vec::new();
    while let Some(rows) = stream.next().await? {
        assert!(rows.count > 0);
        all.extend(ids(&rows));
    }
    Ok(all)
}

async fn streamed(client: &Client, text: &str) -> Vec<i64> {
    rest(&mut client.stream(text, &[]).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_stream_is_whole_and_in_the_order_of_the_keys() {
    let cluster = Cluster::start(&[(3, 10), (1, 20), (2, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put((0..30).rev());
    let all: Vec<i64> = (0..30).collect();
    let backwards: Vec<i64> = (0..30).rev().collect();
    assert_eq!(streamed(&client, ALL).await, all);
    assert_eq!(streamed(&client, &format!("{ALL} ORDER BY id DESC")).await, backwards);
    assert_eq!(streamed(&client, &format!("{ALL} WHERE id > 5 AND id < 22 ORDER BY id")).await, all[6..22]);
    assert_eq!(streamed(&client, &format!("{ALL} WHERE id IN (25, 3, 15, 99)")).await, [3, 15, 25]);
    assert_eq!(streamed(&client, &format!("{ALL} ORDER BY id LIMIT 13")).await, all[..13]);
    assert_eq!(streamed(&client, &format!("{ALL} ORDER BY id DESC LIMIT 13")).await, backwards[..13]);
    cluster.seen();
    assert_eq!(streamed(&client, &format!("{ALL} ORDER BY id LIMIT 4")).await, all[..4]);
    assert_eq!(cluster.seen().len(), 1, "what has enough asks no further");
    let empty = client.stream(&format!("{ALL} LIMIT 0"), &[]).await.unwrap();
    assert_eq!((empty.columns().len(), cluster.seen().len()), (2, 1));
}

/// Breaks if a stream continues by old routes, begins again, or skips a row.
#[tokio::test]
async fn ranges_split_and_move_between_two_pieces() {
    for way in ["", " ORDER BY id DESC"] {
        let cluster = Cluster::start(&[(3, 10), (1, 20), (2, 0)]).await;
        let client = connect(&cluster).await;
        cluster.put(0..30);
        let mut stream = client.stream(&format!("{ALL}{way}"), &[]).await.unwrap();
        let mut seen = ids(&stream.next().await.unwrap().unwrap());
        {
            // The range that is partly read, the next one, and the last one.
            let mut world = cluster.world();
            world.split(1, 2, 4);
            world.split(4, 6, 5);
            world.move_range(5, 2);
            world.split(2, 15, 7);
            world.move_range(7, 3);
            world.split(3, 26, 8);
            world.split(8, 27, 9);
            world.move_range(9, 1);
            world.publish();
        }
        seen.extend(rest(&mut stream).await.unwrap());
        let mut expected: Vec<i64> = (0..30).collect();
        if !way.is_empty() {
            expected.reverse();
        }
        assert_eq!(seen, expected, "{way}");
        assert!(client.stats().redirects > 0);
    }
}

#[tokio::test]
async fn a_piece_that_gets_lost_is_asked_for_again() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put(0..40);
    let conflict = SqlError::new("40001", "conflict");
    cluster.script(
        1,
        [
            Fault::ForgetAnswer,
            Fault::Nothing,
            Fault::Busy(1),
            Fault::Unsure,
            Fault::DieBefore,
            Fault::Nothing,
            Fault::Error(conflict),
            Fault::Slow(150),
            Fault::DieAfter,
        ],
    );
    assert_eq!(streamed(&client, ALL).await, (0..40).collect::<Vec<_>>());
    assert_eq!(client.stats().failures, 0);
}

/// Breaks if a stream that cannot continue looks like one that has ended.
#[tokio::test]
async fn what_cannot_go_on_is_an_error() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put(0..40);
    let error = SqlError::new("22012", "division by zero");
    cluster.script(1, [Fault::Nothing, Fault::Nothing, Fault::Error(error)]);
    let mut stream = client.stream(ALL, &[]).await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap_err().code(), "22012");
    assert_eq!(stream.next().await, Ok(None), "nothing comes after an error");
    assert_eq!(
        client.stream("SELECT * FROM nowhere", &[]).await.err().map(|e| e.code().to_string()),
        Some("42P01".into())
    );
    let slow = ClientConfig { stream_timeout_ms: 200, ..config(&cluster) };
    let slow = Client::connect(slow).await.unwrap();
    cluster.script(1, [Fault::Nothing, Fault::UntilGone]);
    let mut stream = slow.stream(ALL, &[]).await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap_err().code(), "57014");
    until("the shard hears of it", || cluster.world().gone == 1).await;
}

/// Breaks if pieces are requested faster than they are read: unread pieces would fill the memory.
#[tokio::test]
async fn a_slow_reader_is_not_overrun() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    let rows = 100 * PIECE_ROWS as i64;
    cluster.put(0..rows);
    let mut stream = client.stream(ALL, &[]).await.unwrap();
    // One is taken, one is queued, and one has arrived and waits to be queued.
    let pieces = || cluster.world().seen.len();
    until("as many are asked for as may be", || pieces() == 3).await;
    for taken in 1..10 {
        assert_eq!(stream.next().await.unwrap().unwrap().count, PIECE_ROWS as u32);
        // The reader has taken the first piece already.
        let asked = 2 + taken.max(1);
        until("the next is asked for", || pieces() >= asked).await;
        assert!(pieces() <= asked + 1, "{} pieces for {taken} that were taken", pieces());
        // Other statements do not wait for it.
        client.execute(READ, &[1.into()]).await.unwrap();
        cluster.world().seen.pop();
    }
    assert_eq!(rest(&mut stream).await.unwrap().len() as i64, rows - 9 * PIECE_ROWS as i64);
}

#[tokio::test]
async fn a_dropped_stream_ends_its_execution() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put(0..40);
    cluster.script(1, [Fault::Nothing, Fault::UntilGone]);
    let stream = client.stream(ALL, &[]).await.unwrap();
    until("the second piece is under way", || cluster.world().seen.len() == 2).await;
    assert_eq!(cluster.world().gone, 0);
    drop(stream);
    until("the shard hears of it", || cluster.world().gone == 1).await;
    // So does a read whose caller is gone.
    cluster.script(1, [Fault::UntilGone]);
    let read = tokio::spawn({
        let client = client.clone();
        async move { client.execute(ALL, &[]).await }
    });
    until("it is under way", || cluster.world().seen.len() == 3).await;
    read.abort();
    until("the shard hears of it", || cluster.world().gone == 2).await;
}

#[tokio::test]
async fn other_statements_arrive_as_one_piece() {
    let cluster = Cluster::start(&[(1, 0)]).await;
    let client = connect(&cluster).await;
    cluster.put(0..9);
    let mut one = client.stream(READ, &[3.into()]).await.unwrap();
    assert_eq!(ids(&one.next().await.unwrap().unwrap()), [3]);
    assert_eq!(one.next().await, Ok(None));
    let bumped = client.stream(BUMP, &[3.into()]).await.unwrap();
    assert_eq!((bumped.answer().affected, cluster.value(3)), (1, Some(2)));
    assert!(cluster.seen().iter().all(|seen| seen.what != "piece"));
    // In a session a stream follows the earlier statements, and belongs to the transaction.
    let mut session = client.begin_session(evenkeel_client::Levels::default());
    let mut all = session.stream(ALL, &[]).await.unwrap();
    assert_eq!((all.columns().len(), rest(&mut all).await.unwrap().len()), (2, 9));
    assert_eq!(cluster.seen()[0].what, "piece");
    session.execute("BEGIN", &[]).await.unwrap();
    session.stream("UPDATE t SET n = n + 1 WHERE id = 4", &[]).await.unwrap();
    assert_eq!(rest(&mut session.stream(ALL, &[]).await.unwrap()).await.unwrap().len(), 9);
    assert!(cluster.seen().iter().all(|seen| seen.what != "piece"));
    assert_eq!(session.stream("ROLLBACK", &[]).await.unwrap().answer().command, Some("ROLLBACK"));
}
