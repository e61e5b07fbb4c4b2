//! What snapshots read, and what goes in as it was read, against a real server.
#![allow(clippy::unwrap_used)]

use super::statements::tests::table;
use super::test_support::*;
use super::*;
use crate::postgres::SessionRole;
use crate::state_machine::{CopiedRows, RangeSize};
use bytes::Bytes;
use evenkeel_protocol::KeyInterval;
use evenkeel_protocol::shard::RangeChecksum;
use std::sync::Arc;

/// R21, R31: one moment, whatever happens after; the same sum on every replica, whatever order the
/// rows lie in.
#[tokio::test]
async fn a_snapshot_sees_one_moment_and_checksums_compare_replicas() {
    let (_dir1, one) = start().await;
    let (_dir2, two) = start().await;
    let schema = pairs();
    let keys: Vec<PairKey> = (0..500).map(|i| (i % 50 - 25, format!("k{i}"))).collect();
    let rows: Vec<Bytes> = keys.iter().map(|key| image(key, Some(&key.1))).collect();
    let create = StoreOperation::CreateTable(schema.clone());
    let (mut store1, _) = Store::open(&one.connector()).await.unwrap();
    let (mut store2, _) = Store::open(&two.connector()).await.unwrap();
    store1.apply(&batch(1, vec![create.clone(), upsert(&schema, rows.clone())])).await.unwrap();
    let backwards: Vec<Bytes> = rows.iter().rev().cloned().collect();
    store2.apply(&batch(1, vec![create, upsert(&schema, backwards)])).await.unwrap();
    // Updated twice on one replica: the same contents, elsewhere on the pages.
    store1.apply(&batch(2, vec![upsert(&schema, vec![image(&keys[7], None)])])).await.unwrap();
    store1.apply(&batch(3, vec![upsert(&schema, vec![rows[7].clone()])])).await.unwrap();

    let mut before = PinnedSnapshot::open(&one.connector()).await.unwrap();
    // Before anything is read: the moment is that of opening.
    store1.apply(&batch(4, vec![upsert(&schema, vec![image(&keys[7], Some("other"))])])).await.unwrap();
    let sum = before.checksum(&schema, &KeyInterval::ALL).await.unwrap();
    assert_eq!(sum, checksum(&two.connector(), &schema).await);
    assert_eq!(sum.rows, 500);
    let (low, high) = (encoded(&pair(-5, "")), encoded(&pair(5, "k3")));
    let parts = KeyInterval::ALL.split(&[low, high]).unwrap();
    let mut total = RangeChecksum { rows: 0, sum: 0 };
    for part in &parts {
        let sum = before.checksum(&schema, part).await.unwrap();
        total = RangeChecksum { rows: total.rows + sum.rows, sum: total.sum.wrapping_add(sum.sum) };
        let found = read(&mut before, &schema, part, 7, 1 << 20).await;
        assert_eq!(u64::from(found.count), sum.rows);
        // A table of a few pages is all in the sample, and weighs what the rows weighed when they
        // came.
        let sample = sample(&before, &schema, part).await.unwrap();
        let mut came = RangeSize::default();
        came.add_rows(&found);
        assert_eq!((sample.rows.len() as u64, sample.scale), (sum.rows, 1.0));
        let weighed: u64 = sample.rows.iter().map(|(_, bytes)| bytes).sum();
        assert!(weighed.abs_diff(came.bytes) <= came.bytes / 8, "{weighed} bytes, not {}", came.bytes);
        let codec = schema.codec();
        let inside = images(&found).iter().all(|row| part.contains(&schema.key_of_row(&codec, row).unwrap()));
        assert!(inside, "{part}");
    }
    assert_eq!(total, sum);
    // Rows of equal size come to equal pieces.
    let cuts = size_split_keys(&before, &schema, &KeyInterval::ALL, 4).await.unwrap();
    let pieces = KeyInterval::ALL.split(&cuts).unwrap();
    assert_eq!(pieces.len(), 4);
    for piece in &pieces {
        let rows = before.checksum(&schema, piece).await.unwrap().rows;
        assert!((115..=135).contains(&rows), "{rows} of 500 rows in {piece}");
    }
    let narrow = KeyInterval::new(encoded(&pair(-5, "")), Some(encoded(&pair(5, "k3"))));
    let cuts = size_split_keys(&before, &schema, &narrow, 2).await.unwrap();
    assert!(cuts.len() == 1 && narrow.splits_at(&cuts[0]), "{cuts:?}");

    before.renew().await.unwrap();
    let changed = before.checksum(&schema, &KeyInterval::ALL).await.unwrap();
    assert!(changed.rows == sum.rows && changed.sum != sum.sum, "one value changes the sum");

    // Chunks keep to their bytes, but for the row that goes over them.
    let long = image(&pair(100, "long"), Some(&"x".repeat(5000)));
    store1.apply(&batch(5, vec![upsert(&schema, vec![long])])).await.unwrap();
    before.renew().await.unwrap();
    let chunk = before.chunk(&schema, &KeyInterval::ALL, 1000, 600).await.unwrap();
    assert!(!chunk.last && chunk.rows.data.len() < 700, "{}", chunk.rows.data.len());
    let again = before.checksum(&schema, &chunk.covered).await.unwrap();
    assert_eq!(chunk.checksum, again, "a chunk's checksum is that of its interval");
    assert_eq!(read(&mut before, &schema, &KeyInterval::ALL, 1000, 600).await.count, 501);
    let empty = KeyInterval::new(encoded(&pair(3, "")), Some(encoded(&pair(3, ""))));
    assert!(before.chunk(&schema, &empty, 1, 1).await.unwrap().last);
    assert_eq!(before.checksum(&schema, &empty).await.unwrap().rows, 0);
    drop((before, store1, store2));
    one.stop().await.unwrap();
    two.stop().await.unwrap();
}

/// Sessions for snapshots are used again, those that are reserved are there when they are wanted,
/// and one that was lost is nobody's trouble.
#[tokio::test]
async fn sessions_for_snapshots_are_kept_ready() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let (mut store, _) = Store::open(&connector).await.unwrap();
    let schema = pairs();
    store.apply(&batch(1, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();
    let snapshots = Snapshots::new(connector.clone());
    let mut first = snapshots.take().await.unwrap();
    assert_eq!(first.checksum(&schema, &KeyInterval::ALL).await.unwrap().rows, 0);
    snapshots.give_back(first).await;
    assert_eq!(snapshots.idle(), 1);
    // The one that is used again sees what has come in meanwhile.
    store.apply(&batch(2, vec![upsert(&schema, vec![image(&pair(1, "a"), None)])])).await.unwrap();
    let mut again = snapshots.take().await.unwrap();
    assert_eq!((snapshots.idle(), again.checksum(&schema, &KeyInterval::ALL).await.unwrap().rows), (0, 1));
    snapshots.give_back(again).await;

    let (one, other) = (snapshots.take().await.unwrap(), snapshots.take().await.unwrap());
    snapshots.give_back(one).await;
    snapshots.give_back(other).await;
    assert_eq!(snapshots.idle(), 2);

    let admin = connector.connect(SessionRole::Admin).await.unwrap();
    let end = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE state = 'idle' AND pid <> pg_backend_pid()";
    let ended: i64 = admin.query_one(end, &[]).await.unwrap().get(0);
    assert!(ended >= 2, "{ended} sessions ended");
    let mut after = snapshots.take().await.unwrap();
    assert_eq!(after.checksum(&schema, &KeyInterval::ALL).await.unwrap().rows, 1);
}

/// Breaks if a chunk is cut by what the rows before it weighed (E9), or if a long row cannot
/// travel: rows from a few bytes to more than a chunk lie side by side, and each chunk keeps to its
/// bytes.
#[tokio::test]
async fn chunks_are_cut_by_bytes_whatever_the_rows_weigh() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let schema = Arc::new(table("mixed", &[("id", "bigint", 20), ("v", "bytea", 17)], &[0]));
    let (mut store, _) = Store::open(&connector).await.unwrap();
    store.apply(&batch(1, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();
    let admin = connector.connect(SessionRole::Admin).await.unwrap();
    let fill = "ALTER TABLE mixed ALTER v SET STORAGE EXTERNAL;
        INSERT INTO mixed SELECT i, decode(repeat('ab', CASE WHEN i = 500 THEN 3000000 WHEN i % 100 > 94 THEN 65536 ELSE 20 END), 'hex')
        FROM generate_series(1, 1000) AS i";
    admin.batch_execute(fill).await.unwrap();
    let mut snapshot = PinnedSnapshot::open(&connector).await.unwrap();
    let whole = snapshot.checksum(&schema, &KeyInterval::ALL).await.unwrap();
    let (mut rest, mut rows, mut sum, mut longest) = (KeyInterval::ALL, 0, 0u64, 0);
    loop {
        let chunk = snapshot.chunk(&schema, &rest, 4096, 200_000).await.unwrap();
        assert!(chunk.rows.count == 1 || chunk.rows.data.len() < 270_000, "{} bytes", chunk.rows.data.len());
        longest = longest.max(chunk.rows.data.len());
        rows += chunk.checksum.rows;
        sum = sum.wrapping_add(chunk.checksum.sum);
        if chunk.last {
            break;
        }
        rest.start = chunk.covered.end.unwrap();
    }
    assert_eq!(RangeChecksum { rows, sum }, whole);
    assert!(longest > 3_000_000, "the longest row is a chunk of its own: {longest}");

    // Rows to be deleted are measured without reading them.
    let (mut rest, mut rows, mut extents) = (KeyInterval::ALL, 0, 0);
    loop {
        let extent = snapshot.extent(&schema, &rest, 300, 500_000).await.unwrap();
        assert!(extent.rows <= 300 && (extent.rows == 1 || extent.bytes < 3_600_000), "{extent:?}");
        (rows, extents) = (rows + extent.rows, extents + 1);
        if extent.last {
            break;
        }
        rest.start = extent.covered.end.unwrap();
    }
    assert!(rows == 1000 && extents > 5, "{rows} rows in {extents} extents");
    drop(snapshot);
    postgres.stop().await.unwrap();
}

/// Breaks if a replica does not notice that it has stored something else than what a copy brought
/// (R24).
#[tokio::test]
async fn a_chunk_that_is_not_stored_as_it_was_sent_is_reported() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let schema = pairs();
    let (mut store, _) = Store::open(&connector).await.unwrap();
    store.apply(&batch(1, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();
    let keys: Vec<PairKey> = (0..50).map(|n| pair(n, "k")).collect();
    let rows: Vec<Bytes> = keys.iter().map(|key| image(key, Some("v"))).collect();
    store.apply(&batch(2, vec![upsert(&schema, rows)])).await.unwrap();
    let mut snapshot = PinnedSnapshot::open(&connector).await.unwrap();
    let chunk = snapshot.chunk(&schema, &KeyInterval::ALL, 1000, 1 << 20).await.unwrap();
    drop(snapshot);
    let replace = |checksum| {
        let copied = Some(CopiedRows { operator: evenkeel_protocol::OperatorId(3), attempt: 2, checksum });
        let (table, interval, rows) = (schema.clone(), KeyInterval::ALL, chunk.rows.clone());
        StoreOperation::ReplaceInterval { table, interval, rows, copied }
    };
    assert_eq!(store.apply(&batch(3, vec![replace(chunk.checksum)])).await, Ok(vec![]));
    // A trigger that changes stored rows, as damage would.
    let admin = connector.connect(SessionRole::Admin).await.unwrap();
    let spoil = "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'w'; RETURN NEW; END $$;
        CREATE TRIGGER spoil BEFORE INSERT ON pairs FOR EACH ROW WHEN (NEW.k1 = 7) EXECUTE FUNCTION spoil();
        ALTER TABLE pairs ENABLE ALWAYS TRIGGER spoil";
    admin.batch_execute(spoil).await.unwrap();
    let differing = store.apply(&batch(4, vec![replace(chunk.checksum)])).await.unwrap();
    assert_eq!(differing.len(), 1);
    assert_eq!((differing[0].copied.attempt, differing[0].stored.rows), (2, 50));
    assert_ne!(differing[0].stored.sum, chunk.checksum.sum);
    drop(store);
    postgres.stop().await.unwrap();
}

/// Many rows that are not there go in by COPY. Breaks if they are other rows then, if what fails
/// half-way is in, or if the session is of no use after it.
#[tokio::test]
async fn many_rows_go_in_as_they_were_read() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let columns = [("id", "bigint", 20), ("tags", "text[]", 1009), ("n", "numeric", 1700), ("v", "bytea", 17)];
    let schema = Arc::new(table("many", &columns, &[0]));
    let (mut store, _) = Store::open(&connector).await.unwrap();
    store.apply(&batch(1, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();
    let admin = connector.connect(SessionRole::Admin).await.unwrap();
    let fill = "ALTER TABLE many ALTER v SET STORAGE EXTERNAL;
        INSERT INTO many SELECT i, CASE WHEN i % 3 = 0 THEN NULL ELSE ARRAY['a', NULL, i::text] END, i / 7.0,
            CASE WHEN i % 5 = 0 THEN NULL ELSE decode(repeat('ab', CASE WHEN i = 501 THEN 3000000 ELSE 20 END), 'hex') END
        FROM generate_series(1, 1001) AS i";
    admin.batch_execute(fill).await.unwrap();
    let mut snapshot = PinnedSnapshot::open(&connector).await.unwrap();
    let whole = snapshot.checksum(&schema, &KeyInterval::ALL).await.unwrap();
    let (mut rest, mut pieces) = (KeyInterval::ALL, Vec::new());
    loop {
        let piece = snapshot.piece(&schema, &rest, 400, 20_000).await.unwrap();
        assert_eq!(piece.covered.start, rest.start);
        assert!(piece.rows.count == 1 || (piece.rows.data.len() <= 20_000 && piece.rows.count <= 400));
        let (covered, last) = (piece.covered.clone(), piece.last);
        pieces.push(piece);
        match covered.end.filter(|_| !last) {
            Some(next) => rest.start = next,
            None => break,
        }
    }
    assert!(pieces.iter().filter(|piece| piece.rows.count >= 32).count() > 3, "{} pieces", pieces.len());
    assert!(pieces.iter().any(|piece| piece.rows.data.len() > 2_999_999), "the longest row is a piece of its own");
    drop(snapshot);
    store
        .apply(&batch(2, vec![StoreOperation::DeleteInterval { table: schema.clone(), interval: KeyInterval::ALL }]))
        .await
        .unwrap();

    // A key twice: nothing of the batch is in, and the position neither.
    let replace =
        |interval, rows| StoreOperation::ReplaceInterval { table: schema.clone(), interval, rows, copied: None };
    let mut twice = pieces[0].rows.clone();
    twice.append(&pieces[0].rows);
    let failed = store.apply(&batch(3, vec![replace(pieces[0].covered.clone(), twice)])).await;
    assert!(matches!(failed, Err(StoreError::Diverged(_))), "{failed:?}");
    assert_eq!((checksum(&connector, &schema).await.rows, store.position()), (0, 2));
    // Two in one batch, and once more over existing rows.
    for _ in 0..2 {
        for pair in pieces.chunks(2) {
            let operations = pair.iter().map(|piece| replace(piece.covered.clone(), piece.rows.clone())).collect();
            store.apply(&batch(3, operations)).await.unwrap();
        }
        assert_eq!(checksum(&connector, &schema).await, whole);
    }
    drop((store, admin));
    postgres.stop().await.unwrap();
}
