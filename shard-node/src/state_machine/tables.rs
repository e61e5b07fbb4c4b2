//! The tables of a shard.

use super::refusal::{EntryRefusal, refuse};
use super::shared_map::SharedMap;
use evenkeel_protocol::{TableId, TableSchema};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The tables that this shard knows, by id. Encoded as the map alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tables(SharedMap<TableId, Arc<TableSchema>>);

impl Tables {
    /// A table.
    pub(super) fn get(&self, id: TableId) -> Option<&Arc<TableSchema>> {
        self.0.get(&id)
    }

    /// All tables, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.0.values()
    }

    pub(super) fn contains(&self, id: TableId) -> bool {
        self.0.contains_key(&id)
    }

    pub(super) fn remove(&mut self, id: TableId) {
        self.0.remove(&id);
    }

    /// Making a table whose name another one has would change nothing in PostgreSQL, and its rows
    /// would not fit there (invariant 5).
    pub(super) fn expect_free_name(&self, schema: &TableSchema) -> Result<(), EntryRefusal> {
        match self.0.values().find(|other| other.name == schema.name && other.id != schema.id) {
            Some(other) => refuse("name-taken", format!("table {} is named {:?} here", other.id, other.name)),
            None => Ok(()),
        }
    }

    /// Adds a table, or replaces it by what a schema change has made of it.
    pub(super) fn replace(&mut self, schema: &TableSchema) {
        self.0.insert(schema.id, Arc::new(schema.clone()));
    }

    /// A pinned table is one range and stays where it is.
    pub(super) fn expect_not_pinned(&self, id: TableId) -> Result<(), EntryRefusal> {
        match self.0.get(&id) {
            Some(table) if table.pinned => refuse("pinned", format!("table {id} stays whole, and on its shard")),
            _ => Ok(()),
        }
    }

    /// Adds a table unless it is known, and returns its shared schema.
    pub(super) fn add(&mut self, schema: &TableSchema) -> Arc<TableSchema> {
        if let Some(known) = self.0.get(&schema.id) {
            return known.clone();
        }
        let schema = Arc::new(schema.clone());
        self.0.insert(schema.id, schema.clone());
        schema
    }
}
