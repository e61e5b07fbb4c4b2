//! How fast a replica applies decided changes: rows per second of `Store::apply`, by rows per
//! batch.
//!
//! `cargo run --release -p evenkeel-shard-node --example apply_rate [SECONDS_PER_LINE
//! [VALUE_BYTES]]`
//!
//! Starts a PostgreSQL of its own in a temporary folder, fills a table, and updates random rows of
//! it. Apart from the batch's size nothing changes between the lines. Each line gives the time that
//! passed and the processor time that this program and all of PostgreSQL's processes took together:
//! the latter is what counts where replicas share a machine, and it bears other work beside it.
#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use evenkeel_protocol::rows::{RowBuilder, put_value};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{Key, KeyInterval, KeyValue, TableId, TableSchema};
use evenkeel_shard_node::load::RangeMeter;
use evenkeel_shard_node::postgres::{Postgres, PostgresConfig, Resources, SessionRole};
use evenkeel_shard_node::storage::{ApplyBatch, PinnedSnapshot, Store, StoreOperation};
use rand::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// The most rows of the table, and the most bytes.
const MAX_ROWS: i64 = 200_000;
const MAX_BYTES: i64 = 200 << 20;
/// Bytes of a row's value, unless they are given.
const VALUE_BYTES: usize = 100;
/// Bytes of a piece of rows, as a replica that is re-seeded gets them.
const PIECE_BYTES: usize = 2 << 20;

/// Bytes that PostgreSQL cannot compress.
fn value(bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    evenkeel_host::rng().fill(&mut value[..]);
    value
}

fn table() -> Arc<TableSchema> {
    let column = |name: &str, type_name: &str, type_oid| ColumnSchema {
        name: name.into(),
        type_name: type_name.into(),
        type_oid,
    };
    Arc::new(TableSchema {
        id: TableId(1),
        name: "rows".into(),
        columns: vec![column("k", "bigint", 20), column("v", "bytea", 17)],
        key: vec![0],
        create_sql: "CREATE TABLE public.rows (k bigint PRIMARY KEY, v bytea)".into(),
        ..TableSchema::default()
    })
}

fn image(k: i64, value: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(16 + value.len());
    put_value(&mut row, Some(&k.to_be_bytes()));
    put_value(&mut row, Some(value));
    row.freeze()
}

fn batch(position: u64, operations: Vec<StoreOperation>) -> ApplyBatch {
    ApplyBatch { operations, position, term: 1, ..ApplyBatch::default() }
}

/// Times one line of the report.
struct Watch {
    processes: Vec<String>,
    begin: Instant,
    cpu: Duration,
}

impl Watch {
    async fn start(admin: &Client) -> Watch {
        let rows = admin.query("SELECT pid FROM pg_stat_activity", &[]).await.unwrap();
        let mut processes: Vec<String> = rows.iter().map(|row| row.get::<_, i32>(0).to_string()).collect();
        processes.push("self".into());
        let cpu = cpu_time(&processes);
        Watch { processes, begin: evenkeel_host::now(), cpu }
    }

    /// Time passed since the start.
    fn passed_s(&self) -> f64 {
        evenkeel_host::elapsed(self.begin).as_secs_f64()
    }

    fn report(&self, what: &str, rows: usize) {
        let (passed, cpu) = (evenkeel_host::elapsed(self.begin), cpu_time(&self.processes) - self.cpu);
        let per_row_us = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
        let rate = rows as f64 / passed.as_secs_f64();
        println!(
            "{what:<28} {rate:>9.0} rows/s {:>8.2} µs/row {:>8.2} µs CPU/row",
            per_row_us(passed),
            per_row_us(cpu)
        );
    }
}

/// The processor time that processes have taken; those that are gone count nothing.
fn cpu_time(processes: &[String]) -> Duration {
    let of = |process: &String| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // After the program's name in parentheses: user and system time are the 12th and 13th
        // field, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    Duration::from_millis(10 * processes.iter().filter_map(of).sum::<u64>())
}

fn measure_meter() {
    let mut meter = RangeMeter::new(0);
    for (what, keys) in [("meter, 1,000 keys", 1_000u64), ("meter, 1,000,000 keys", 1_000_000)] {
        let keys: Vec<Key> = (0..100_000)
            .map(|_| Key(Bytes::copy_from_slice(&evenkeel_host::rng().random_range(0..keys).to_be_bytes())))
            .collect();
        let this = ["self".to_string()];
        let begin = cpu_time(&this);
        for _ in 0..20 {
            keys.iter().for_each(|key| meter.record(key, true, 50.0));
        }
        let took = (cpu_time(&this) - begin).as_secs_f64();
        println!("{what:<28} {:>9.0} ns CPU/statement", took * 1e9 / (20 * keys.len()) as f64);
    }
    let begin = cpu_time(&["self".to_string()]);
    let points = (0..1000).map(|n| meter.load(n).sketch.len()).max();
    let took = (cpu_time(&["self".to_string()]) - begin).as_secs_f64() * 1e3;
    println!("{:<28} {took:>9.0} µs CPU ({points:?} points)", "meter, one report");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let seconds: f64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3.0);
    let value_bytes = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(VALUE_BYTES);
    let value = value(value_bytes);
    let rows_of_all = MAX_ROWS.min((MAX_BYTES / value_bytes.max(1) as i64 / 5000).max(1) * 5000);
    measure_meter();
    let dir = tempfile::tempdir().unwrap();
    let begin = evenkeel_host::now();
    let config = PostgresConfig {
        bin_dir: None,
        data_dir: dir.path().to_path_buf(),
        resources: Resources { shared_buffers_mib: Some(128), ..Resources::default() },
        max_connections: 20,
    };
    let postgres = Postgres::start(config).await.unwrap();
    println!("initdb and start: {:?}", evenkeel_host::elapsed(begin));
    let (mut store, _) = Store::open(&postgres.connector()).await.unwrap();
    let admin = postgres.connector().connect(SessionRole::Admin).await.unwrap();
    let schema = table();
    store.apply(&batch(1, vec![StoreOperation::CreateTable(schema.clone())])).await.unwrap();

    let watch = Watch::start(&admin).await;
    for from in (0..rows_of_all).step_by(5000) {
        let mut builder = RowBuilder::new(2);
        (from..from + 5000).for_each(|k| builder.push([Some(&k.to_be_bytes()[..]), Some(&value[..])]));
        let bound = |k: i64| schema.codec().encode(&[KeyValue::Int(k)]).unwrap();
        let interval = KeyInterval::new(bound(from), Some(bound(from + 5000)));
        let rows = builder.finish();
        let replace = StoreOperation::ReplaceInterval { table: schema.clone(), interval, rows, copied: None };
        store.apply(&batch(1, vec![replace])).await.unwrap();
    }
    watch.report("replace interval, 5,000 rows", rows_of_all as usize);

    let mut position = 1;
    for size in [1usize, 2, 3, 10, 100, 1000] {
        let (watch, mut rows) = (Watch::start(&admin).await, 0);
        while watch.passed_s() < seconds {
            let mut keys = BTreeSet::new();
            while keys.len() < size {
                keys.insert(evenkeel_host::rng().random_range(0..rows_of_all));
            }
            let upserts = keys.into_iter().map(|k| image(k, &value)).collect();
            position += 1;
            let rows_operation = StoreOperation::Rows { table: schema.clone(), upserts, deletes: Vec::new() };
            let batch = batch(position, vec![rows_operation]);
            store.apply(&batch).await.unwrap();
            rows += size;
            if position % 1000 == 0 {
                store.prune(&[], position).await.unwrap();
            }
        }
        watch.report(&format!("upsert, batches of {size}"), rows);
    }

    let mut snapshot = PinnedSnapshot::open(&postgres.connector()).await.unwrap();
    let (watch, mut rest, mut chunks) = (Watch::start(&admin).await, KeyInterval::ALL, 0);
    loop {
        let chunk = snapshot.chunk(&schema, &rest, 5000, 512 << 10).await.unwrap();
        snapshot.renew().await.unwrap();
        chunks += 1;
        if chunk.last {
            break;
        }
        rest.start = chunk.covered.end.unwrap();
    }
    watch.report(&format!("copy, {chunks} chunks"), rows_of_all as usize);
    let (watch, mut rest, mut pieces) = (Watch::start(&admin).await, KeyInterval::ALL, 0);
    loop {
        let piece = snapshot.piece(&schema, &rest, 16_384, PIECE_BYTES).await.unwrap();
        snapshot.renew().await.unwrap();
        pieces += 1;
        if piece.last {
            break;
        }
        rest.start = piece.covered.end.unwrap();
    }
    watch.report(&format!("re-seeding, {pieces} pieces"), rows_of_all as usize);
    let watch = Watch::start(&admin).await;
    snapshot.checksum(&schema, &KeyInterval::ALL).await.unwrap();
    watch.report("checksum", rows_of_all as usize);
    drop((store, snapshot, admin));
    postgres.stop().await.unwrap();
}
