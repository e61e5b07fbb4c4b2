//! Tables and rows. Pure.

use bytes::Bytes;
use evenkeel_protocol::{KeyCodec, KeyType};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A row: each value in PostgreSQL's binary format, `None` for null.
pub type Row = Arc<[Option<Bytes>]>;

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Names and types (object ids) of its columns.
    pub columns: Vec<(String, u32)>,
    /// The key's columns.
    pub key: Vec<usize>,
    /// Its rows by their encoded keys.
    pub rows: BTreeMap<Vec<u8>, Row>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[(&str, u32)], key: &[usize]) -> Table {
        let columns = columns.iter().map(|(name, oid)| (name.to_string(), *oid)).collect();
        Table { columns, key: key.to_vec(), rows: BTreeMap::new() }
    }

    /// A column's place.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|(column, _)| column == name)
    }

    /// The encoded key of a row; `None` if a part of it is null.
    pub fn key_of(&self, row: &[Option<Bytes>]) -> Option<Vec<u8>> {
        let types: Option<Vec<KeyType>> = self.key.iter().map(|&at| KeyType::from_oid(self.columns[at].1)).collect();
        let values = self.key.iter().map(|&at| row[at].as_deref());
        KeyCodec::new(types?).encode_binary(values).ok().map(|key| key.as_bytes().to_vec())
    }
}

/// All tables, by name. Cheap to clone: a snapshot is a clone.
#[derive(Clone, Debug, Default)]
pub struct Tables(BTreeMap<Arc<str>, Arc<Table>>);

/// The changes of a transaction, made when it commits.
#[derive(Debug, Default)]
pub struct Commit {
    /// Whether it waits for the disk.
    pub sync: bool,
    /// Tables made, emptied or dropped.
    pub tables: Vec<(Arc<str>, Option<Table>)>,
    /// Rows written (`None`: deleted), by table and key.
    pub rows: BTreeMap<(Arc<str>, Vec<u8>), Option<Row>>,
}

/// How to undo one change.
#[derive(Debug)]
pub enum Undo {
    /// A row as it was.
    Row(Arc<str>, Vec<u8>, Option<Row>),
    /// A table as it was.
    Table(Arc<str>, Option<Arc<Table>>),
}

impl Tables {
    /// A table.
    pub fn get(&self, name: &str) -> Option<&Arc<Table>> {
        self.0.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Table>)> {
        self.0.iter()
    }

    /// Makes a transaction's changes; gives how to take them back, in the order they were made.
    pub fn commit(&mut self, commit: Commit) -> Vec<Undo> {
        let mut undo = Vec::with_capacity(commit.tables.len() + commit.rows.len());
        for (name, table) in commit.tables {
            let before = match table {
                Some(table) => self.0.insert(name.clone(), Arc::new(table)),
                None => self.0.remove(&name),
            };
            undo.push(Undo::Table(name, before));
        }
        for ((name, key), row) in commit.rows {
            let before = self.put(&name, key.clone(), row);
            undo.push(Undo::Row(name, key, before));
        }
        undo
    }

    /// Takes a commit back, which must be the last that is in.
    pub fn take_back(&mut self, undo: Vec<Undo>) {
        for step in undo.into_iter().rev() {
            match step {
                Undo::Row(name, key, before) => _ = self.put(&name, key, before),
                Undo::Table(name, Some(before)) => _ = self.0.insert(name, before),
                Undo::Table(name, None) => _ = self.0.remove(&name),
            }
        }
    }

    fn put(&mut self, name: &str, key: Vec<u8>, row: Option<Row>) -> Option<Row> {
        let table = Arc::make_mut(self.0.get_mut(name)?);
        match row {
            Some(row) => table.rows.insert(key, row),
            None => table.rows.remove(&key),
        }
    }
}
