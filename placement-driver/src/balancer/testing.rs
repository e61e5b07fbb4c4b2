//! Shared by tests: keys of a table with one `bigint` key column, a state with such a table, and
//! the runner of golden scripts.
#![allow(clippy::unwrap_used)]

use crate::state::{Command, PlacementState, Proposal, Step, Transition, apply};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{Key, KeyCodec, KeyType, KeyValue, OperatorId, ShardId, TableId, TableSchema};
use std::collections::BTreeMap;

pub fn codec() -> KeyCodec {
    KeyCodec::new(vec![KeyType::BigInt])
}

pub fn key(n: i64) -> Key {
    codec().encode(&[KeyValue::Int(n)]).unwrap_or_default()
}

pub fn schema(name: &str) -> TableSchema {
    let column = ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 };
    let create_sql = format!("CREATE TABLE {name} (id bigint PRIMARY KEY)");
    TableSchema { id: TableId(0), name: name.into(), columns: vec![column], key: vec![0], create_sql }
}

/// A shard with three replicas.
pub fn shard(id: u32) -> ShardInfo {
    let address = |n: u64| (n, ([127, 0, 0, 1], 1000 + 10 * id as u16 + n as u16).into());
    ShardInfo { id: ShardId(id), replicas: (1..=3).map(address).collect::<BTreeMap<_, _>>() }
}

/// Applies a command that must take effect.
pub fn must(state: &mut PlacementState, at_ms: u64, command: Command) -> crate::state::Effect {
    let text = format!("{command:?}");
    let since_ms = at_ms.saturating_sub(state.time_ms());
    let result = apply(state, Proposal { at_ms, since_ms, nonce: 0, command });
    assert!(result.is_ok(), "{text}: {result:?}");
    result.unwrap()
}

/// Shards 1 to `shards` and the table `t`, whose one range is on shard 1.
pub fn state_with_table(shards: u32) -> PlacementState {
    let mut state = PlacementState::default();
    for id in 1..=shards {
        must(&mut state, 1, Command::AddShard(shard(id)));
    }
    must(&mut state, 1, Command::CreateTable { schema: schema("t"), shard: Some(ShardId(1)), if_not_exists: false });
    let operator = OperatorId(1);
    must(&mut state, 1, Command::Advance { operator, from: Step::Apply, transition: Transition::Applied });
    state
}
