//! Write batches: the changes of many entries as few statements (R15).
//!
//! A batch keeps the last image of each key, per table. Operations that change whole intervals or
//! tables close the rows that were collected before them.

use crate::log_entry::image::{Columns, Image, Merged};
use crate::log_entry::{Change, Changes};
use crate::state_machine::{ControlEffect, ShardState};
use crate::storage::{OrderedRow, StoreOperation};
use bytes::Bytes;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::{Key, TableId, TableSchema};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Changes in the log's order.
#[derive(Default)]
pub struct WriteBatch {
    done: Vec<StoreOperation>,
    /// The changes of each table since the last operation on an interval or a table.
    rows: BTreeMap<TableId, TableChanges>,
    bytes: usize,
}

/// The changes of one table.
#[derive(Default)]
struct TableChanges {
    /// All rows were deleted before.
    truncated: bool,
    /// The merged images of each key.
    merged: HashMap<Key, Merged>,
    /// Images without a key, in their order: rows of a table without one, states of a sequence.
    ordered: Vec<Image>,
}

impl TableChanges {
    fn add(&mut self, key: Key, image: Image) {
        if image == Image::Truncated {
            *self = TableChanges { truncated: true, ..TableChanges::default() };
            return;
        }
        if key == Key::MIN {
            return self.ordered.push(image);
        }
        match self.merged.entry(key) {
            Entry::Occupied(mut merged) => merged.get_mut().then(image),
            Entry::Vacant(place) => _ = place.insert(image.into()),
        }
    }
}

impl WriteBatch {
    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.rows.is_empty()
    }

    /// Its size, approximately, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds rows. The images stay slices of the entry they came in.
    pub fn add_changes(&mut self, changes: Changes) {
        for change in changes.changes {
            self.bytes += change.size_bytes();
            let Change { table, key, image } = change;
            self.rows.entry(table).or_default().add(key, image);
        }
    }

    /// Adds the effect of a control entry on rows and tables.
    pub fn add_effect(&mut self, effect: ControlEffect, state: &ShardState) {
        match effect {
            ControlEffect::CreateTable(table) => self.operation(StoreOperation::CreateTable(table), state),
            ControlEffect::DropTable(table) => self.operation(StoreOperation::DropTable(table), state),
            ControlEffect::ChangeSchema(delta) => self.operation(StoreOperation::ChangeSchema(delta), state),
            ControlEffect::Replace { table, interval, rows, copied } => {
                self.bytes += rows.data.len();
                self.operation(StoreOperation::ReplaceInterval { table, interval, rows, copied: Some(copied) }, state);
            }
            ControlEffect::Delete { table, interval } => {
                self.operation(StoreOperation::DeleteInterval { table, interval }, state);
            }
            ControlEffect::Tail { entries, .. } => {
                for entry in entries {
                    self.add_changes(entry.changes);
                }
            }
            ControlEffect::OwnershipChanged
            | ControlEffect::Fenced(_)
            | ControlEffect::Adopted { .. }
            | ControlEffect::MoveCancelled(_)
            | ControlEffect::IngestOpened(_) => {}
        }
    }

    fn operation(&mut self, operation: StoreOperation, state: &ShardState) {
        self.close_rows(state);
        self.done.push(operation);
    }

    fn close_rows(&mut self, state: &ShardState) {
        for (table, TableChanges { truncated, merged, ordered }) in std::mem::take(&mut self.rows) {
            // A change is effective only in an owned range, whose table is known.
            let Some(table) = state.table(table).cloned() else { continue };
            if truncated {
                self.done.push(StoreOperation::Truncate(table.clone()));
            }
            if !ordered.is_empty() {
                self.add_ordered(&table, ordered);
            }
            // In key order, as they were inserted where keys ascend: pages of the index fill up
            // instead of being split in the middle.
            let mut rows: Vec<(Key, Merged)> = merged.into_iter().collect();
            rows.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
            let (mut upserts, mut deletes) = (Vec::new(), Vec::new());
            let mut parts: BTreeMap<Columns, Vec<(Key, Bytes)>> = BTreeMap::new();
            for (key, merged) in rows {
                match merged.into_packed() {
                    Merged::Row(row) => upserts.push(row),
                    Merged::Gone => deletes.push(key),
                    Merged::Part(part) => {
                        parts.entry(part.columns().clone()).or_default().push((key, part.packed().clone()));
                    }
                    // Never after it was packed.
                    Merged::Values { .. } => {}
                }
            }
            for (columns, rows) in parts {
                self.done.push(StoreOperation::Update { table: table.clone(), columns, rows });
            }
            if !upserts.is_empty() || !deletes.is_empty() {
                self.done.push(StoreOperation::Rows { table, upserts, deletes });
            }
        }
    }

    /// Adds images without a key.
    fn add_ordered(&mut self, table: &Arc<TableSchema>, images: Vec<Image>) {
        if table.kind == RelationKind::Sequence {
            let images = images.into_iter().filter_map(|image| match image {
                Image::Whole(image) => Some(StoreOperation::Sequence { sequence: table.clone(), image }),
                _ => None,
            });
            return self.done.extend(images);
        }
        let changes = images.into_iter().filter_map(|image| match image {
            Image::New(row) | Image::Whole(row) => Some(OrderedRow::Inserted(row)),
            Image::Removed(row) => Some(OrderedRow::Removed(row)),
            Image::Part(_) | Image::Gone | Image::Truncated => None,
        });
        self.done.push(StoreOperation::Ordered { table: table.clone(), changes: changes.collect() });
    }

    /// Empties the batch and returns its operations.
    pub fn take(&mut self, state: &ShardState) -> Vec<StoreOperation> {
        self.close_rows(state);
        self.bytes = 0;
        std::mem::take(&mut self.done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::Control;
    use crate::log_entry::image::PartialRow;
    use evenkeel_protocol::rows::put_value;
    use evenkeel_protocol::schema::ColumnSchema;
    use evenkeel_protocol::{KeyValue, RangeId};

    fn schema() -> TableSchema {
        let column = |name: &str| ColumnSchema { name: name.into(), type_name: "text".into(), type_oid: 25 };
        let columns = ["k", "a", "b"].map(column).into();
        TableSchema {
            id: TableId(1),
            name: "t".into(),
            columns,
            key: vec![0],
            create_sql: String::new(),
            ..TableSchema::default()
        }
    }

    fn founded() -> ShardState {
        let mut state = ShardState::default();
        state.control(1, &Control::CreateTable { schema: schema(), range: RangeId(1) }).unwrap();
        state
    }

    fn key(n: i64) -> Key {
        schema().codec().encode(&[KeyValue::Text(n.to_string())]).unwrap()
    }

    fn packed(values: &[&str]) -> Bytes {
        let mut out = bytes::BytesMut::new();
        values.iter().for_each(|value| put_value(&mut out, Some(value.as_bytes())));
        out.freeze()
    }

    fn part(columns: &[usize], values: &[&str]) -> Image {
        Image::Part(PartialRow::new(Columns::new(columns.iter().copied()), packed(values)).unwrap())
    }

    // R15, E13, E19: one operation per kind, rows in the order of their keys, parts merged into
    // what they change.
    #[test]
    fn rows_are_coalesced_and_come_in_the_order_of_their_keys() {
        let mut batch = WriteBatch::default();
        for (n, image) in [
            (9, Image::New(packed(&["9", "a", "b"]))),
            (3, Image::Whole(packed(&["3", "a", "b"]))),
            (9, part(&[1], &["c"])),
            (5, part(&[1], &["x"])),
            (4, part(&[1], &["y"])),
            (5, part(&[2], &["z"])),
            (7, Image::Gone),
            (6, part(&[1], &["w"])),
            (6, Image::Gone),
        ] {
            let changes = vec![Change { table: TableId(1), key: key(n), image }];
            batch.add_changes(Changes { changes, ..Changes::default() });
        }
        let operations = batch.take(&founded());
        let [
            StoreOperation::Update { columns, rows, .. },
            StoreOperation::Update { columns: both, rows: merged, .. },
            StoreOperation::Rows { upserts, deletes, .. },
        ] = &operations[..]
        else {
            panic!("{operations:?}");
        };
        assert_eq!((columns, rows), (&Columns::new([1]), &vec![(key(4), packed(&["y"]))]));
        assert_eq!((both, merged), (&Columns::new([1, 2]), &vec![(key(5), packed(&["x", "z"]))]));
        assert_eq!(upserts, &[packed(&["3", "a", "b"]), packed(&["9", "c", "b"])]);
        assert_eq!(deletes, &[key(6), key(7)]);
    }

    /// R18, R7: rows without a key keep their order and are never merged; a truncation takes the
    /// place of everything before it.
    #[test]
    fn rows_without_a_key_stay_in_order_and_a_truncation_supersedes() {
        let mut state = founded();
        let heap = TableSchema { id: TableId(2), name: "heap".into(), key: Vec::new(), ..schema() };
        let kind = RelationKind::Sequence;
        let sequence =
            TableSchema { id: TableId(3), name: "s".into(), kind, columns: Vec::new(), key: Vec::new(), ..schema() };
        for (n, schema) in [(2, heap), (3, sequence)] {
            state.control(n, &Control::CreateTable { schema, range: RangeId(n) }).unwrap();
        }
        let row = || packed(&["1", "a", "b"]);
        let mut batch = WriteBatch::default();
        for (table, key, image) in [
            (1, key(1), Image::New(row())),
            (2, Key::MIN, Image::New(row())),
            (1, Key::MIN, Image::Truncated),
            (2, Key::MIN, Image::Removed(row())),
            (3, Key::MIN, Image::Whole(packed(&["5"]))),
            (2, Key::MIN, Image::New(row())),
            (1, key(2), Image::Whole(row())),
            (3, Key::MIN, Image::Whole(packed(&["6"]))),
        ] {
            let changes = vec![Change { table: TableId(table), key, image }];
            batch.add_changes(Changes { changes, ..Changes::default() });
        }
        let operations = batch.take(&state);
        let [
            StoreOperation::Truncate(truncated),
            StoreOperation::Rows { upserts, deletes, .. },
            StoreOperation::Ordered { changes, .. },
            StoreOperation::Sequence { image: first, .. },
            StoreOperation::Sequence { image: second, .. },
        ] = &operations[..]
        else {
            panic!("{operations:?}");
        };
        assert_eq!((truncated.id, &upserts[..], &deletes[..]), (TableId(1), &[row()][..], &[][..]));
        assert_eq!(changes, &[OrderedRow::Inserted(row()), OrderedRow::Removed(row()), OrderedRow::Inserted(row())]);
        assert_eq!([first, second], [&packed(&["5"]), &packed(&["6"])]);
    }
}
