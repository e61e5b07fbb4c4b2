//! What the store applies, against a real server.
#![allow(clippy::unwrap_used)]

use super::parameters::parameter;
use super::statements::tests::table;
use super::test_support::*;
use super::*;
use crate::log_entry::image::Columns;
use crate::postgres::SessionRole;
use bytes::Bytes;
use evenkeel_protocol::rows::{RowBuilder, put_value};
use evenkeel_protocol::{Key, KeyInterval, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every type that a column can have goes through images unchanged, nulls included, by arrays and
/// by single rows.
#[tokio::test]
async fn every_type_survives_reading_and_applying() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let columns = [
        ("id", "bigint", 20),
        ("t", "smallint", 21),
        ("T", "integer", 23),
        ("a\"b", "text", 25),
        ("vc", "varchar(7)", 1043),
        ("c", "char(5)", 1042),
        ("b", "boolean", 16),
        ("r", "real", 700),
        ("d", "double precision", 701),
        ("n", "numeric(10,2)", 1700),
        ("u", "uuid", 2950),
        ("by", "bytea", 17),
        ("tz", "timestamptz", 1184),
        ("ts", "timestamp", 1114),
        ("dt", "date", 1082),
        ("ti", "time", 1083),
        ("iv", "interval", 1186),
        ("j", "json", 114),
        ("jb", "jsonb", 3802),
    ];
    let source = Arc::new(table("source", &columns, &[0]));
    let (mut store, recovered) = Store::open(&connector).await.unwrap();
    assert_eq!(recovered, Recovered::default());
    store.apply(&batch(1, vec![StoreOperation::CreateTable(source.clone())])).await.unwrap();
    let admin = connector.connect(SessionRole::Admin).await.unwrap();
    let fill = "INSERT INTO source
        SELECT i, -i, i * 7, repeat('ü', i), 'v' || i, 'c' || i, i % 2 = 0, i / 3.0, i / 7.0, i * 1.25,
            ('00000000-0000-0000-0000-0000000000' || (10 + i))::uuid, decode(repeat('00', i), 'hex'),
            timestamptz '2026-01-01 00:00Z' + i * interval '1 day', timestamp '2026-01-01' - i * interval '1 us',
            date '1999-12-31' + i, time '00:00' + i * interval '1 s', i * interval '1 month 2 days 3 s',
            json_build_object('i', i), jsonb_build_array(i, null, 'x') FROM generate_series(1, 20) AS i;
        INSERT INTO source (id) VALUES (99)";
    admin.batch_execute(fill).await.unwrap();
    let rows = read(&mut PinnedSnapshot::open(&connector).await.unwrap(), &source, &KeyInterval::ALL, 6, 1 << 20).await;
    assert_eq!(rows.count, 21);
    let images: Vec<Bytes> = images(&rows);

    for (n, pieces) in [images.len(), 1].into_iter().enumerate() {
        let copy = Arc::new(table(&format!("copy{n}"), &columns, &[0]));
        let mut operations = vec![StoreOperation::CreateTable(copy.clone())];
        operations.extend(images.chunks(pieces).map(|piece| upsert(&copy, piece.to_vec())));
        store.apply(&batch(2, operations)).await.unwrap();
        assert_eq!(checksum(&connector, &copy).await, checksum(&connector, &source).await);
    }
    // R15: `unnest` would flatten an array column.
    let arrays = Arc::new(table("arrays", &[("k", "integer", 23), ("a", "integer[]", 1007)], &[0]));
    store.apply(&batch(3, vec![StoreOperation::CreateTable(arrays.clone())])).await.unwrap();
    admin.batch_execute("INSERT INTO arrays VALUES (1, '{1,2}'), (2, '{{3},{4}}'), (3, null)").await.unwrap();
    let before = checksum(&connector, &arrays).await;
    let mut snapshot = PinnedSnapshot::open(&connector).await.unwrap();
    let rows = read(&mut snapshot, &arrays, &KeyInterval::ALL, 9, 1 << 20).await;
    drop(snapshot);
    let replace =
        StoreOperation::ReplaceInterval { table: arrays.clone(), interval: KeyInterval::ALL, rows, copied: None };
    store.apply(&batch(4, vec![replace])).await.unwrap();
    assert_eq!(checksum(&connector, &arrays).await, before);
    drop((store, admin));
    postgres.stop().await.unwrap();
}

/// Random batches against a map: whatever the operations, the table is what the map is.
#[tokio::test]
async fn batches_do_what_a_map_does() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let (mut store, _) = Store::open(&connector).await.unwrap();
    let schema = pairs();
    store.apply(&batch(0, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();
    let mut snapshot = PinnedSnapshot::open(&connector).await.unwrap();
    let mut model: BTreeMap<PairKey, Option<String>> = BTreeMap::new();
    let mut state = 7u32;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % below
    };
    for position in 1..=150u64 {
        let mut operations = Vec::new();
        for _ in 0..=random(3) {
            let some_key = |random: &mut dyn FnMut(u32) -> u32| {
                (random(8) as i32 - 4, ["", "a", "a\u{1}", "b", "ü"][random(5) as usize].to_string())
            };
            let (mut low, mut high) = (some_key(&mut random), some_key(&mut random));
            if high < low {
                std::mem::swap(&mut low, &mut high);
            }
            let interval = KeyInterval::new(encoded(&low), (random(4) > 0).then(|| encoded(&high)));
            let inside = |key: &PairKey| *key >= low && (interval.end.is_none() || *key < high);
            let mut rows: BTreeMap<PairKey, Option<String>> = BTreeMap::new();
            for _ in 0..random(6) {
                // Some are too large for arrays.
                let value = |random: &mut dyn FnMut(u32) -> u32| {
                    if random(6) == 0 { format!("{position}").repeat(3000) } else { format!("{position}") }
                };
                rows.insert(some_key(&mut random), (random(5) > 0).then(|| value(&mut random)));
            }
            operations.push(match random(6) {
                0 => {
                    model.retain(|key, _| !inside(key));
                    StoreOperation::DeleteInterval { table: schema.clone(), interval }
                }
                1 => {
                    rows.retain(|key, _| inside(key));
                    model.retain(|key, _| !inside(key));
                    let mut builder = RowBuilder::new(3);
                    for (key, v) in &rows {
                        let k1 = key.0.to_be_bytes();
                        builder.push([v.as_deref().map(str::as_bytes), Some(key.1.as_bytes()), Some(&k1)]);
                    }
                    model.extend(rows);
                    StoreOperation::ReplaceInterval {
                        table: schema.clone(),
                        interval,
                        rows: builder.finish(),
                        copied: None,
                    }
                }
                2 | 3 => {
                    // E13: parts change existing rows, and make none.
                    let mut parts = Vec::new();
                    for (key, v) in rows {
                        let mut packed = bytes::BytesMut::new();
                        put_value(&mut packed, v.as_deref().map(str::as_bytes));
                        parts.push((encoded(&key), packed.freeze()));
                        model.entry(key).and_modify(|old| *old = v);
                    }
                    StoreOperation::Update { table: schema.clone(), columns: Columns::new([0]), rows: parts }
                }
                _ => {
                    let deleted: Vec<PairKey> =
                        (0..random(5)).map(|_| some_key(&mut random)).filter(|key| !rows.contains_key(key)).collect();
                    model.retain(|key, _| !deleted.contains(key));
                    let upserts = rows.iter().map(|(key, v)| image(key, v.as_deref())).collect();
                    let deletes = deleted.iter().map(encoded).collect();
                    model.extend(rows);
                    StoreOperation::Rows { table: schema.clone(), upserts, deletes }
                }
            });
        }
        store.apply(&batch(position, operations)).await.unwrap();
        snapshot.renew().await.unwrap();
        let found = read(&mut snapshot, &schema, &KeyInterval::ALL, 1 + random(9) as usize, 1 << 20).await;
        let expected: Vec<Bytes> = model.iter().map(|(key, v)| image(key, v.as_deref())).collect();
        assert_eq!(images(&found), expected, "after batch {position}");
    }
    drop((store, snapshot));
    postgres.stop().await.unwrap();
}

/// Invariant 3: applied entries are recorded with their rows, for applied batches and for the
/// leader's own transactions.
#[tokio::test]
async fn a_new_session_learns_which_entries_are_applied() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let (mut store, _) = Store::open(&connector).await.unwrap();
    let schema = pairs();
    let answers = Bytes::from_static(b"answers");
    store.apply(&batch(5, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();
    let with_state = ApplyBatch { state: Some(Bytes::from_static(b"state")), ..batch(7, Vec::new()) };
    store.apply(&with_state).await.unwrap();
    store
        .apply(&ApplyBatch {
            answers: answers.clone(),
            transactions: Some(Bytes::from_static(b"transactions")),
            ..batch(9, Vec::new())
        })
        .await
        .unwrap();

    // R5: the leader's sessions add their own record, in the users' transaction, with the users'
    // rights and no more.
    let user = connector.connect(SessionRole::User).await.unwrap();
    for (serial, end) in [(1i64, "COMMIT"), (2, "ROLLBACK"), (3, "COMMIT")] {
        user.batch_execute("BEGIN READ WRITE; INSERT INTO pairs VALUES ('v', 'k', 1) ON CONFLICT DO NOTHING")
            .await
            .unwrap();
        user.execute(RECORD_SQL, &[&4i64, &serial, &&b"own"[..]]).await.unwrap();
        user.batch_execute(end).await.unwrap();
    }
    for (begin, refused) in [("", "25006"), ("BEGIN READ WRITE", "23505")] {
        user.batch_execute(begin).await.unwrap();
        let twice = user.execute(RECORD_SQL, &[&4i64, &1i64, &&b""[..]]).await.unwrap_err();
        assert_eq!(twice.code().map(|c| c.code()), Some(refused), "an entry takes effect once, behind its BEGIN");
    }
    user.batch_execute("ROLLBACK").await.unwrap();
    for hidden in ["SELECT * FROM evenkeel.applied", "DELETE FROM evenkeel.applied", "SELECT * FROM evenkeel.position"]
    {
        let refused = user.batch_execute(&format!("BEGIN READ WRITE; {hidden}")).await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code()), Some("42501"), "{hidden}");
        user.batch_execute("ROLLBACK").await.unwrap();
    }

    let (mut store, mut recovered) = Store::open(&connector).await.unwrap();
    recovered.records.sort_by_key(|record| record.serial);
    let record = |serial| AppliedRecord { term: 4, serial, answers: Bytes::from_static(b"own") };
    let expected = Recovered {
        reached: 9,
        position: 9,
        term: 1,
        state: Some((7, Bytes::from_static(b"state"))),
        records: vec![record(1), record(3)],
        seeding: None,
        transactions: Some(Bytes::from_static(b"transactions")),
        answers: vec![answers.clone()],
    };
    assert_eq!(recovered, expected);
    assert_eq!(store.position(), 9);

    // Pruning deletes the given records, but never the latest position or state.
    store.prune(&[(4, 1), (4, 77)], u64::MAX).await.unwrap();
    assert_eq!(store.positions.iter().map(|row| row.index).collect::<Vec<_>>(), [7, 9]);
    let (mut store, recovered) = Store::open(&connector).await.unwrap();
    assert_eq!(recovered, Recovered { records: vec![record(3)], ..expected.clone() });
    store.apply(&ApplyBatch { state: Some(Bytes::from_static(b"later")), ..batch(9, Vec::new()) }).await.unwrap();
    store.prune(&[], 9).await.unwrap();
    assert_eq!(store.positions.len(), 2, "the position 9 before the state's is not below 9");
    store.prune(&[], 10).await.unwrap();
    let (mut store, recovered) = Store::open(&connector).await.unwrap();
    assert_eq!(recovered.state, Some((9, Bytes::from_static(b"later"))));
    assert_eq!(recovered.transactions, expected.transactions, "an earlier batch of the position had them");

    store.clear().await.unwrap();
    let (mut store, recovered) = Store::open(&connector).await.unwrap();
    assert_eq!(recovered, Recovered::default());
    // The same table can be made again, even with other columns.
    let other = Arc::new(table("pairs", &[("k", "bigint", 20)], &[0]));
    store.apply(&batch(1, vec![StoreOperation::CreateTable(other.clone())])).await.unwrap();
    let mut row = bytes::BytesMut::new();
    put_value(&mut row, Some(&1i64.to_be_bytes()));
    let row = row.freeze();
    store.apply(&batch(2, vec![upsert(&other, vec![row.clone()]), upsert(&other, vec![row.clone()])])).await.unwrap();
    // It can be dropped, more than once, and its name taken by a table with other columns.
    let drop_it = || StoreOperation::DropTable(other.clone());
    let named_alike = Arc::new(table("pairs", &[("t", "text", 25), ("k", "bigint", 20)], &[1]));
    let create = StoreOperation::CreateTable(named_alike.clone());
    store.apply(&batch(3, vec![upsert(&other, vec![row]), drop_it(), drop_it(), create])).await.unwrap();
    assert_eq!(checksum(&connector, &named_alike).await.rows, 0);
    drop((user, store));
    postgres.stop().await.unwrap();
}

/// Invariant 5: what the data causes stops the replica; nothing of the batch is in, and the session
/// can go on.
#[tokio::test]
async fn a_batch_that_fails_leaves_nothing_and_says_what_must_happen_next() {
    let (_dir, postgres) = start().await;
    let connector = postgres.connector();
    let (mut store, _) = Store::open(&connector).await.unwrap();
    let mut schema = table("pairs", &[("v", "text", 25), ("k2", "text", 25), ("k1", "integer", 23)], &[2, 1]);
    schema.create_sql = schema.create_sql.replace(", PRIMARY", ", CHECK (v <> 'bad'), PRIMARY");
    let schema = Arc::new(schema);
    let good = upsert(&schema, vec![image(&pair(1, "a"), Some("good"))]);
    store.apply(&batch(1, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();

    let bad = upsert(&schema, vec![image(&pair(2, "a"), Some("bad"))]);
    let twice = upsert(&schema, vec![image(&pair(2, "a"), None), image(&pair(2, "a"), None)]);
    let torn = upsert(&schema, vec![Bytes::from_static(&[0, 0, 0, 9])]);
    let other = upsert(&Arc::new(table("missing", &[("k", "integer", 23)], &[0])), vec![image(&pair(1, "a"), None)]);
    let interval = KeyInterval::new(Key(Bytes::from_static(&[1])), None);
    let no_key = StoreOperation::DeleteInterval { table: schema.clone(), interval };
    for failing in [bad, twice, torn, other, no_key] {
        let error = store.apply(&batch(2, vec![good.clone(), failing])).await.unwrap_err();
        assert!(matches!(error, StoreError::Diverged(_)), "{error:?}");
        assert_eq!(checksum(&connector, &schema).await.rows, 0);
        assert_eq!(Store::open(&connector).await.unwrap().1.position, 1);
    }

    // A lock in the way is of the moment.
    let user = connector.connect(SessionRole::Admin).await.unwrap();
    user.batch_execute("BEGIN READ WRITE; LOCK TABLE pairs").await.unwrap();
    store.client.batch_execute("SET lock_timeout = '20ms'").await.unwrap();
    let error = store.apply(&batch(2, vec![good.clone()])).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused(e) if e.code == "55P03"), "{error:?}");
    user.batch_execute("COMMIT").await.unwrap();
    store.apply(&batch(2, vec![good.clone()])).await.unwrap();

    let error = store.apply(&batch(1, Vec::new())).await.unwrap_err();
    assert!(matches!(error, StoreError::Diverged(_)), "positions do not go back");
    drop((user, store));
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_lost_session_is_reported_and_so_is_a_dropped_apply() {
    let (_dir, mut postgres) = start().await;
    let connector = postgres.connector();
    let (mut store, _) = Store::open(&connector).await.unwrap();
    let schema = pairs();
    let create = batch(1, vec![StoreOperation::CreateTable(schema.clone())]);
    let first: i32 = store.client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let admin = connector.connect(SessionRole::Admin).await.unwrap();
    assert!(futures::FutureExt::now_or_never(store.apply(&create)).is_none());
    assert_eq!(store.apply(&create).await, Err(StoreError::SessionLost), "nobody knows what became of the first");
    drop(store);
    // R2: whoever opens the store again must have seen the end of the session before.
    while !admin.query("SELECT FROM pg_stat_activity WHERE pid = $1", &[&first]).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }

    let (mut store, recovered) = Store::open(&connector).await.unwrap();
    if recovered.position == 0 {
        store.apply(&create).await.unwrap();
    }
    let pid: i32 = store.client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    admin.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let row = upsert(&schema, vec![image(&pair(1, "a"), None)]);
    assert_eq!(store.apply(&batch(2, vec![row.clone()])).await, Err(StoreError::SessionLost));

    // R16: what a synchronous batch covers is there after the worst crash. (Without `sync`, this
    // loses both rows on most runs.)
    let (mut store, _) = Store::open(&connector).await.unwrap();
    store.apply(&batch(2, vec![row])).await.unwrap();
    let synced = ApplyBatch { sync: true, ..batch(3, vec![upsert(&schema, vec![image(&pair(2, "b"), None)])]) };
    store.apply(&synced).await.unwrap();
    let pid = rustix::process::Pid::from_raw(postgres.pid().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    postgres.down().wait_for(|down| *down).await.unwrap();
    assert_eq!(store.apply(&batch(4, Vec::new())).await, Err(StoreError::SessionLost));
    postgres.restart().await.unwrap();
    assert_eq!(Store::open(&connector).await.unwrap().1.position, 3);
    assert_eq!(checksum(&connector, &schema).await.rows, 2);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn parameters_become_what_postgresql_inferred() {
    let (_dir, postgres) = start().await;
    let client = postgres.connector().connect(SessionRole::User).await.unwrap();
    let echo = async |ty: &str, value: Value| -> Result<Option<String>, StoreError> {
        let statement = client.prepare(&format!("SELECT ($1::{ty})::text")).await.unwrap();
        let bound = parameter(&value);
        Ok(client.query_one(&statement, &[&bound]).await?.get(0))
    };
    for (ty, value, expected) in [
        ("smallint", Value::Int(-3), "-3"),
        ("bigint", Value::Int(i64::MAX), "9223372036854775807"),
        ("numeric", Value::Int(i64::MIN), "-9223372036854775808"),
        ("numeric", Value::Float(0.1), "0.1"),
        ("real", Value::Int(3), "3"),
        ("double precision", Value::Float(-1.5), "-1.5"),
        ("boolean", Value::Bool(true), "true"),
        ("text", Value::Text("ü".into()), "ü"),
        ("integer", Value::Text(" 7".into()), "7"),
        ("jsonb", Value::Text("{\"a\": 1}".into()), "{\"a\": 1}"),
        ("bytea", Value::Bytes(Bytes::from_static(&[0, 255])), "\\x00ff"),
        ("uuid", Value::Uuid([0x11; 16]), "11111111-1111-1111-1111-111111111111"),
        ("timestamptz", Value::Timestamp(0), "2000-01-01 00:00:00+00"),
    ] {
        assert_eq!(echo(ty, value.clone()).await.unwrap().as_deref(), Some(expected), "{ty} {value:?}");
    }
    assert_eq!(echo("uuid", Value::Null).await.unwrap(), None);
    for (ty, value, code) in [
        ("integer", Value::Int(1 << 40), "22003"),
        ("text", Value::Int(1), "42804"),
        ("integer", Value::Text("x".into()), "22P02"),
        ("text", Value::Text("a\0b".into()), "22021"),
    ] {
        let error = echo(ty, value).await.unwrap_err();
        assert!(matches!(&error, StoreError::Refused(e) if e.code == code), "{error:?}");
    }
    assert!(echo("integer", Value::Int(1)).await.is_ok(), "the session lives on");
    drop(client);
    postgres.stop().await.unwrap();
}
