//! Gathering decided changes into few, large applies (R15): per table, the last image of each key.

use crate::entry::{Change, Changes};
use crate::fold::{Effect, ShardState};
use crate::store::StoreOperation;
use bytes::Bytes;
use evenkeel_protocol::{Key, TableId};
use std::collections::HashMap;

/// Changes gathered in the log's order.
#[derive(Default)]
pub struct Gathered {
    done: Vec<StoreOperation>,
    /// The last image of each key since the last operation that is not a row's.
    rows: HashMap<TableId, HashMap<Key, Option<Bytes>>>,
    bytes: usize,
}

impl Gathered {
    /// Whether nothing was gathered.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.rows.is_empty()
    }

    /// Bytes gathered, about.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds rows. The images stay slices of the entry they came in.
    pub fn add_changes(&mut self, changes: Changes) {
        for change in changes.changes {
            self.bytes += change.size_bytes();
            let Change { table, key, row } = change;
            self.rows.entry(table).or_default().insert(key, row);
        }
    }

    /// Adds what a control entry does to rows and tables.
    pub fn add_effect(&mut self, effect: Effect, state: &ShardState) {
        match effect {
            Effect::CreateTable(table) => self.operation(StoreOperation::CreateTable(table), state),
            Effect::Replace { table, interval, rows } => {
                self.bytes += rows.data.len();
                self.operation(StoreOperation::ReplaceInterval { table, interval, rows }, state);
            }
            Effect::Delete { table, interval } => {
                self.operation(StoreOperation::DeleteInterval { table, interval }, state);
            }
            Effect::Tail(entries) => {
                for entry in entries {
                    self.add_changes(entry.changes);
                }
            }
            Effect::OwnershipChanged
            | Effect::Fenced(_)
            | Effect::Adopted { .. }
            | Effect::MoveCancelled(_)
            | Effect::IngestOpened(_)
            | Effect::Checkpoint(_) => {}
        }
    }

    fn operation(&mut self, operation: StoreOperation, state: &ShardState) {
        self.close_rows(state);
        self.done.push(operation);
    }

    fn close_rows(&mut self, state: &ShardState) {
        for (table, rows) in self.rows.drain() {
            // A change is effective only in an owned range, whose table is known.
            let Some(table) = state.table(table).cloned() else { continue };
            let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
            for (key, row) in rows {
                match row {
                    Some(row) => upserts.push(row),
                    None => deletes.push(key),
                }
            }
            self.done.push(StoreOperation::Rows { table, upserts, deletes });
        }
    }

    /// What was gathered, as operations.
    pub fn take(&mut self, state: &ShardState) -> Vec<StoreOperation> {
        self.close_rows(state);
        self.bytes = 0;
        std::mem::take(&mut self.done)
    }
}
