//! Shared by the tests of the store: a server, tables, rows, batches, and reading them back.
#![allow(clippy::unwrap_used)]

use super::statements::tests::table;
use super::*;
use crate::postgres::{Connector, Postgres, PostgresConfig, Resources};
use bytes::Bytes;
use evenkeel_protocol::rows::put_value;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, KeyValue, RowBatch, TableSchema};
use std::sync::Arc;
use tempfile::TempDir;

pub(super) async fn start() -> (TempDir, Postgres) {
    let dir = tempfile::tempdir().unwrap();
    let config = PostgresConfig {
        bin_dir: None,
        data_dir: dir.path().to_path_buf(),
        resources: Resources { shared_buffers_mib: Some(16), ..Resources::default() },
        max_connections: 30,
    };
    let postgres = Postgres::start(config).await.unwrap();
    (dir, postgres)
}

pub(super) fn pairs() -> Arc<TableSchema> {
    Arc::new(table("pairs", &[("v", "text", 25), ("k2", "text", 25), ("k1", "integer", 23)], &[2, 1]))
}

pub(super) type PairKey = (i32, String);

pub(super) fn image(key: &PairKey, v: Option<&str>) -> Bytes {
    let mut row = bytes::BytesMut::new();
    put_value(&mut row, v.map(str::as_bytes));
    put_value(&mut row, Some(key.1.as_bytes()));
    put_value(&mut row, Some(&key.0.to_be_bytes()));
    row.freeze()
}

pub(super) fn encoded(key: &PairKey) -> Key {
    pairs().codec().encode(&[KeyValue::Int(key.0.into()), KeyValue::Text(key.1.clone())]).unwrap()
}

pub(super) fn pair(k1: i32, k2: &str) -> PairKey {
    (k1, k2.to_string())
}

pub(super) fn upsert(table: &Arc<TableSchema>, upserts: Vec<Bytes>) -> StoreOperation {
    StoreOperation::Rows { table: table.clone(), upserts, deletes: Vec::new() }
}

pub(super) fn batch(position: u64, operations: Vec<StoreOperation>) -> ApplyBatch {
    ApplyBatch { operations, position, term: 1, ..ApplyBatch::default() }
}

/// All rows of an interval, read in chunks.
pub(super) async fn read(
    snapshot: &mut PinnedSnapshot,
    schema: &TableSchema,
    interval: &KeyInterval,
    rows: usize,
    bytes: usize,
) -> RowBatch {
    let (mut all, mut rest) = (RowBatch::default(), interval.clone());
    loop {
        let chunk = snapshot.chunk(schema, &rest, rows, bytes).await.unwrap();
        assert_eq!(chunk.covered.start, rest.start);
        assert!(chunk.rows.count as usize <= rows);
        all.append(&chunk.rows);
        if chunk.last {
            assert_eq!(chunk.covered.end, rest.end);
            return all;
        }
        rest.start = chunk.covered.end.unwrap();
    }
}

pub(super) async fn checksum(connector: &Connector, schema: &TableSchema) -> RangeChecksum {
    let mut snapshot = PinnedSnapshot::open(connector).await.unwrap();
    snapshot.checksum(schema, &KeyInterval::ALL).await.unwrap()
}

pub(super) fn images(rows: &RowBatch) -> Vec<Bytes> {
    let image = |row: evenkeel_protocol::rows::RowValues<'_>| {
        let mut image = bytes::BytesMut::new();
        row.for_each(|value| put_value(&mut image, value));
        image.freeze()
    };
    rows.rows().map(image).collect()
}
