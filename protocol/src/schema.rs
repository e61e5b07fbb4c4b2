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
    /// The type's object id; only PostgreSQL's built-in types are possible, whose ids are the same
    /// everywhere.
    pub type_oid: u32,
}

/// A table's columns, key and definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Its number; 0 until the placement driver has given it one.
    pub id: TableId,
    /// Its name, as PostgreSQL stores it.
    pub name: String,
    /// Its columns, in order. A row image has exactly these.
    pub columns: Vec<ColumnSchema>,
    /// Which columns make the primary key: positions in `columns`, in key order.
    pub key: Vec<usize>,
    /// The normalised `CREATE TABLE`, as each shard runs it.
    pub create_sql: String,
}

impl TableSchema {
    /// The codec of its keys.
    pub fn codec(&self) -> KeyCodec {
        KeyCodec::new(self.key_types())
    }

    /// The key columns' types, in key order.
    pub fn key_types(&self) -> Vec<KeyType> {
        self.key.iter().filter_map(|&i| KeyType::from_oid(self.columns.get(i)?.type_oid)).collect()
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

    /// A name as SQL needs it: in double quotes, quotes inside doubled.
    pub fn quote(name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}
