//! A table as the placement state knows it, and which schemas it accepts.

use super::refusal::Refusal;
use evenkeel_protocol::schema::{MAX_COLUMNS, RelationKind};
use evenkeel_protocol::{OperatorId, TableSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The longest name of a schema or relation, in bytes: PostgreSQL's own limit.
const MAX_NAME_BYTES: usize = 63;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its schema.
    pub schema: Arc<TableSchema>,
    /// The operator that creates it. `None` once its shard has answered and its first range is
    /// published.
    pub creating: Option<OperatorId>,
}

/// Checks what the placement state relies on in a table or sequence of a schema change. A pinned
/// one needs no key that can be ordered.
pub(super) fn check_relation(schema: &TableSchema) -> Result<(), Refusal> {
    let invalid = |reason: &str| Err(Refusal::InvalidTable(format!("table {:?}: {reason}", schema.name)));
    // The names of a schema and a relation, and a dot.
    if schema.name.is_empty() || schema.name.len() > 2 * MAX_NAME_BYTES + 1 || schema.name.matches('.').count() > 1 {
        return invalid("a name is NAME or SCHEMA.NAME, each of 1 to 63 bytes");
    }
    if schema.columns.len() > MAX_COLUMNS {
        return invalid("it has too many columns");
    }
    let mut columns = BTreeSet::new();
    if !schema.columns.iter().all(|column| columns.insert(&column.name)) {
        return invalid("a column is named twice");
    }
    let mut key = BTreeSet::new();
    if !schema.key.iter().all(|&i| i < schema.columns.len() && key.insert(i)) {
        return invalid("its key is not made of its columns");
    }
    if schema.kind == RelationKind::Sequence && !(schema.pinned && schema.columns.is_empty()) {
        return invalid("a sequence is pinned and has no columns");
    }
    if !schema.pinned && (schema.key.is_empty() || schema.key_types().len() != schema.key.len()) {
        return invalid("it must be pinned: it has no primary key whose order is known here");
    }
    Ok(())
}

/// Checks what the placement state relies on in a schema: a name, distinct columns, and a primary
/// key of types that have a key encoding. That the text of the definition agrees with the schema is
/// checked before the table is proposed (R6).
pub(crate) fn check_schema(schema: &TableSchema) -> Result<(), Refusal> {
    let invalid = |reason: &str| Err(Refusal::InvalidTable(format!("table {:?}: {reason}", schema.name)));
    if schema.name.is_empty() || schema.name.len() > MAX_NAME_BYTES {
        return invalid("a name has 1 to 63 bytes");
    }
    if schema.columns.is_empty() || schema.columns.len() > MAX_COLUMNS {
        return invalid("it has no columns, or too many");
    }
    let mut columns = BTreeSet::new();
    if !schema.columns.iter().all(|column| columns.insert(&column.name)) {
        return invalid("a column is named twice");
    }
    let mut key = BTreeSet::new();
    if schema.key.is_empty() || !schema.key.iter().all(|&i| i < schema.columns.len() && key.insert(i)) {
        return invalid("it needs a primary key made of its columns");
    }
    if !schema.is_ordered() {
        return invalid("key columns are smallint, integer, bigint, text, uuid, bytea or timestamptz");
    }
    Ok(())
}
