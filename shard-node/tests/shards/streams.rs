//! Reads piece by piece, and reads that nobody waits for.

use super::harness::{Shard, statement};
use super::{TABLE, start_logging};
use evenkeel_protocol::shard::{PIECE_BYTES, Piece, PieceRequest, ReadLevel, ShardReply, ShardRequest};
use evenkeel_protocol::{Epoch, Failure, Key, KeyInterval, KeyValue, OperatorId, RangeId, ShardId, TableSchema, Value};
use std::time::Duration;

const ALL: &str = "SELECT id, body FROM files";

fn request(sql: &str, after: Option<Key>, limit: Option<u64>) -> PieceRequest {
    let mut statement = statement(sql, &[]);
    statement.limit = limit;
    PieceRequest { statement, after }
}

async fn piece(shard: &Shard, request: PieceRequest) -> Result<Piece, Failure> {
    match shard.ask(&ShardRequest::Piece(request)).await {
        ShardReply::Piece(piece) => Ok(piece),
        ShardReply::Failed(failure) => Err(failure),
        other => panic!("{other:?}"),
    }
}

fn ids(piece: &Piece) -> Vec<i64> {
    (0..piece.reply.rows.count as usize).map(|row| piece.reply.rows.int(row, 0).unwrap()).collect()
}

/// All of a statement's rows, and how many pieces they came in.
async fn all(shard: &Shard, sql: &str, read: ReadLevel) -> (Vec<i64>, usize) {
    let (mut seen, mut pieces, mut after) = (Vec::new(), 0, None);
    loop {
        let mut request = request(sql, after, None);
        request.statement.read = read;
        let piece = piece(shard, request).await.unwrap();
        assert!(piece.reply.rows.data.len() <= PIECE_BYTES + (16 << 10));
        assert_eq!(piece.reply.columns.len() as u32, piece.reply.rows.width, "the key that is added is not told");
        seen.extend(ids(&piece));
        pieces += 1;
        match piece.more_after {
            Some(key) => after = Some(key),
            None => return (seen, pieces),
        }
    }
}

/// E3: fifty megabytes come in pieces of one row each, and go on where the range went while they
/// came.
#[tokio::test(flavor = "multi_thread")]
async fn large_rows_are_streamed_while_their_range_moves() {
    start_logging();
    let (source, destination) = tokio::join!(Shard::start(1, 3), Shard::start(2, 3));
    let schema = source.create_table("CREATE TABLE files (id bigint PRIMARY KEY, n bigint, body bytea)", 1, 1).await;
    let body = Value::Bytes(vec![7; 1_000_000].into());
    for id in 0..50i64 {
        source.sql("INSERT INTO files VALUES ($1, 0, $2)", &[id.into(), body.clone()]).await.unwrap();
    }
    let whole = source.sql(ALL, &[]).await.unwrap_err();
    assert!(matches!(&whole, Failure::Sql(error) if error.code == "54000"), "{whole}");
    let (mut seen, mut after, mut at) = (Vec::new(), None, &source);
    loop {
        if seen.len() == 20 && std::ptr::eq(at, &source) {
            let moved = source.moved(&destination, OperatorId(2), (RangeId(1), Epoch(1)), &schema, KeyInterval::ALL);
            assert_eq!(moved.await, (Epoch(2), 50));
            let gone = piece(&source, request(ALL, after.clone(), None)).await.unwrap_err();
            assert_eq!(gone, Failure::Moved { to: Some(ShardId(2)), range: Some((RangeId(1), Epoch(2))) });
            at = &destination;
        }
        let piece = piece(at, request(ALL, after, None)).await.unwrap();
        assert!(piece.reply.rows.count <= 1, "one row is more than a piece");
        seen.extend(ids(&piece));
        match piece.more_after {
            Some(key) => after = Some(key),
            None => break,
        }
    }
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    tokio::join!(source.stop(), destination.stop());
}

fn key(schema: &TableSchema, id: i64) -> Key {
    schema.codec().encode(&[KeyValue::Int(id)]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_come_in_the_order_of_the_keys_with_what_was_asked_for() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    let schema = shard.create_table(TABLE, 1, 1).await;
    for from in (0..2_000i64).step_by(100) {
        let rows: Vec<String> = (from..from + 100).rev().map(|id| format!("({id}, {id}, $1)")).collect();
        let text = Value::Text("x".repeat(900));
        shard.sql(&format!("INSERT INTO items VALUES {}", rows.join(", ")), &[text]).await.unwrap();
    }
    let rows: Vec<i64> = (0..2_000).collect();
    let backwards: Vec<i64> = rows.iter().rev().copied().collect();
    for read in [ReadLevel::Linearizable, ReadLevel::Leader, ReadLevel::Local] {
        let (seen, pieces) = all(&shard, "SELECT id, t FROM items", read).await;
        assert!(seen == rows && (6..20).contains(&pieces), "{pieces} pieces of {} rows", seen.len());
    }
    let (seen, _) = all(&shard, "SELECT id, t FROM items ORDER BY id DESC", ReadLevel::Linearizable).await;
    assert_eq!(seen, backwards);
    let (seen, _) =
        all(&shard, "SELECT n + 1 AS id, t FROM items WHERE n >= 1500 LIMIT 400", ReadLevel::Linearizable).await;
    assert_eq!(seen[..3], [1501, 1502, 1503], "what the key is called otherwise does not matter");
    let limited = piece(&shard, request("SELECT id FROM items", Some(key(&schema, 9)), Some(3))).await.unwrap();
    assert_eq!((ids(&limited), limited.more_after), (vec![10, 11, 12], None), "the rest of the limit has come");
    // Where the row that came last has been deleted meanwhile, the next comes all the same.
    shard.sql("DELETE FROM items WHERE id IN (9, 10)", &[]).await.unwrap();
    let next = piece(&shard, request("SELECT id FROM items", Some(key(&schema, 9)), Some(1))).await.unwrap();
    assert_eq!(ids(&next), [11]);
    for other in ["SELECT id FROM items ORDER BY n", "SELECT count(*) FROM items", "DELETE FROM items WHERE id > 5"] {
        let refused = piece(&shard, request(other, None, None)).await.unwrap_err();
        assert!(matches!(&refused, Failure::Sql(error) if error.code == "0A000"), "{other}: {refused}");
    }
    shard.stop().await;
}

/// Reads that last, and whether each is ended; an error is a number of reads that was not seen.
async fn not_ended(shard: &Shard, sql: &str) -> Result<(), i64> {
    let leader = shard.leader().await;
    // As long as somebody holds this every read lasts.
    let holder = shard.postgres(leader).await;
    holder.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let looker = shard.postgres(leader).await;
    let reads = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'evenkeel_user' AND state = 'active'\
             AND query LIKE '%FROM \"items\"%'";
        looker.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
    };
    let until = async |wanted: i64| {
        let begun = evenkeel_host::now();
        while reads().await != wanted {
            if evenkeel_host::elapsed(begun) > Duration::from_secs(20) {
                return Err(wanted);
            }
            evenkeel_host::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    };
    for asked in [
        ShardRequest::Statement(statement(sql, &[])),
        ShardRequest::Piece(request(sql, None, None)),
        ShardRequest::Piece({
            let mut local = request(sql, None, None);
            local.statement.read = ReadLevel::Local;
            local
        }),
    ] {
        let connection = shard.connect_to_leader().await;
        for _ in 0..2 {
            let call = tokio::spawn({
                let (connection, asked) = (connection.clone(), asked.clone());
                async move { connection.call(&asked).await }
            });
            until(1).await?;
            call.abort();
            until(0).await?;
        }
        // So does the end of its connection.
        let call = tokio::spawn(async move { connection.call(&asked).await });
        until(1).await?;
        call.abort();
        until(0).await?;
    }
    holder.batch_execute("ROLLBACK").await.unwrap();
    Ok(())
}

/// E3: what nobody waits for any more is ended in PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_nobody_waits_for_is_ended() {
    start_logging();
    let shard = Shard::start(1, 3).await;
    shard.create_table(TABLE, 1, 1).await;
    shard.sql("INSERT INTO items VALUES (1, 1, 'x')", &[]).await.unwrap();
    let sql = "SELECT id, n FROM items";
    // Whoever is looked at must be the leader all the time.
    let never = shard.in_one_leadership(async |_| not_ended(&shard, sql).await.err()).await;
    assert_eq!(never, None, "that many reads were never seen");
    assert_eq!(shard.sql(sql, &[]).await.unwrap().rows.count, 1);
    shard.stop().await;
}
