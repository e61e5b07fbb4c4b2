//! Schema of a table: its columns, key and definition, as every process has it.

use crate::ids::TableId;
use crate::key::{Key, KeyCodec, KeyError, KeyType};
use crate::rows::RowValues;
use serde::{Deserialize, Serialize};

/// The most columns a table can have.
pub const MAX_COLUMNS: usize = 200;

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnSchema {
    /// Its name, as PostgreSQL stores it (in lower case unless it was quoted).
    pub name: String,
    /// Its type, as PostgreSQL spells it in a cast (`bigint`, `numeric(10,2)`).
    pub type_name: String,
    /// The type's object id, if it is one of PostgreSQL's built-in types, whose ids are the same
    /// everywhere. 0 for a type that a user has created: its values travel as text.
    pub type_oid: u32,
}

/// A table's columns, key and definition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Its number; 0 until the placement driver has given it one.
    pub id: TableId,
    /// Its name, as PostgreSQL stores it: `table` for one in the schema `public`, `schema.table`
    /// for others. Names of schemas and relations contain no dot themselves.
    pub name: String,
    /// Its columns, in order. A row image has exactly these.
    pub columns: Vec<ColumnSchema>,
    /// Which columns make the primary key: positions in `columns`, in key order.
    pub key: Vec<usize>,
    /// The normalised `CREATE TABLE`, as each shard runs it. Empty for what a schema change has
    /// created: each shard has that already.
    pub create_sql: String,
    /// Whether it is a table or a sequence.
    pub kind: RelationKind,
    /// Whether it is one range that never splits and stays on its shard. A table is pinned if it
    /// has no primary key, or one whose order this store does not know; or if its shard alone can
    /// check or do something for it: unique and foreign keys, triggers, sequences.
    pub pinned: bool,
    /// Whether statements on it can only be passed through: their changes are reported by triggers,
    /// not by RETURNING. For tables with foreign keys, triggers of users or generated columns, and
    /// with columns of types that a user has created.
    pub pass_through_only: bool,
    /// The sequences that belong to its columns. They are pinned to the same shard.
    pub sequences: Vec<TableId>,
}

/// What a [`TableSchema`] describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelationKind {
    /// A table.
    #[default]
    Table,
    /// A sequence: a pinned relation without columns. Its state is an image of three values under
    /// the empty key: the last value (`bigint`), whether it has been used (`boolean`), and whether
    /// it was set to just that (`boolean`): otherwise a sequence only goes on.
    Sequence,
}

impl TableSchema {
    /// The codec of its keys.
    pub fn codec(&self) -> KeyCodec {
        KeyCodec::new(self.key_types())
    }

    /// The key columns' types, in key order.
    pub fn key_types(&self) -> Vec<KeyType> {
        self.key_columns().map(|column| KeyType::from_oid(column.type_oid).unwrap_or(KeyType::Opaque)).collect()
    }

    /// Whether it has a key whose order is known, so that it can be cut into ranges.
    pub fn is_ordered(&self) -> bool {
        !self.key.is_empty() && !self.key_types().contains(&KeyType::Opaque)
    }

    /// The key columns, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &ColumnSchema> {
        self.key.iter().filter_map(|&i| self.columns.get(i))
    }

    /// The key of a packed row image (see [`crate::rows`]).
    pub fn key_of_row(&self, codec: &KeyCodec, row: &[u8]) -> Result<Key, KeyError> {
        let values: Vec<Option<&[u8]>> = RowValues::new(row, self.columns.len()).collect();
        if values.len() != self.columns.len() {
            return Err(KeyError::Malformed);
        }
        codec.encode_binary(self.key.iter().map(|&i| values[i]))
    }

    /// The relation as SQL needs it. A name with a dot is that of a schema and a relation.
    pub fn relation(&self) -> String {
        match self.name.split_once('.') {
            Some((schema, name)) => format!("{}.{}", TableSchema::quote(schema), TableSchema::quote(name)),
            None => TableSchema::quote(&self.name),
        }
    }

    /// A name as SQL needs it: in double quotes, quotes inside doubled.
    pub fn quote(name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
