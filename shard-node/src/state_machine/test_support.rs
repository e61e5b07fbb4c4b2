//! Shared by tests: a table `t` with one `bigint` column that is its key, keys of it, and shards.
#![allow(clippy::unwrap_used)]

use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{Key, KeyInterval, KeyValue, ShardId, TableId, TableSchema};

/// Table 1, `t (id bigint PRIMARY KEY)`.
pub(crate) fn schema() -> TableSchema {
    TableSchema {
        id: TableId(1),
        name: "t".into(),
        columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
        key: vec![0],
        create_sql: "CREATE TABLE t (id bigint PRIMARY KEY)".into(),
    }
}

/// The key of the row with this id.
pub(crate) fn key(id: i64) -> Key {
    schema().codec().encode(&[KeyValue::Int(id)]).unwrap()
}

/// Keys as scripts write them: `FROM..TO`, `..TO`, `FROM..`.
pub(crate) fn keys(text: &str) -> KeyInterval {
    let key = |id: &str| (!id.is_empty()).then(|| key(id.parse().unwrap()));
    let (start, end) = text.split_once("..").unwrap();
    KeyInterval::new(key(start).unwrap_or(Key::MIN), key(end))
}

/// A shard without known replicas.
pub(crate) fn shard(id: u32) -> ShardInfo {
    ShardInfo { id: ShardId(id), replicas: Default::default() }
}
