//! Operators in words.

use evenkeel_protocol::api::{OperatorBody, OperatorKind};

/// Whether an operator has not ended.
pub fn is_running(operator: &OperatorBody) -> bool {
    matches!(operator.status.as_str(), "running" | "cancelling")
}

/// The action of an operator in a few words.
pub fn describe(kind: &OperatorKind) -> String {
    match kind {
        OperatorKind::CreateTable { table, shard } => format!("create table {table} on shard {shard}"),
        OperatorKind::Split { range, shard, into } => {
            format!("split range {range} on shard {shard} into {}", into.len())
        }
        OperatorKind::Merge { left, right, shard } => format!("merge ranges {left} and {right} on shard {shard}"),
        OperatorKind::Move { range, from, to } => format!("move range {range} from shard {from} to {to}"),
        OperatorKind::SchemaChange { version } => format!("change the schema to version {version}"),
    }
}
