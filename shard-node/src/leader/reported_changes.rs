//! The changes that triggers have reported in a transaction, until they are read and proposed (R7).
//! Pure.
//!
//! Of tables with a key only the keys are kept, each once: what became of the rows is read at the
//! end. Of tables without a key the rows are kept, in their order, and savepoints are followed:
//! rolled-back changes must not be proposed. Truncations are kept with the file that the table has
//! since; whether one is still in effect shows at the end, when the table has that file or not.

use super::change_reports::{ChangeReport, Reported};
use bytes::Bytes;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowValues;
use evenkeel_protocol::{Key, SqlError, TableId, TableSchema};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The most savepoints that a transaction has at a time.
const MAX_SAVEPOINTS: usize = 10_000;
/// What a key takes in memory beside its bytes, in bytes.
const KEY_OVERHEAD_BYTES: usize = 64;

/// What was reported of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySeen {
    /// First as that of a row which was inserted or got it: there was no such row before.
    pub new_first: bool,
    /// As that of a row before it was changed or deleted.
    pub old: bool,
    /// By a function, whose reports come in no certain order.
    pub by_function: bool,
}

impl KeySeen {
    /// Whether a row of the key may have been there before, and be there no more. Of a row that was
    /// inserted and then deleted, the log need not know.
    pub fn may_be_gone(self) -> bool {
        self.old && (self.by_function || !self.new_first)
    }
}

/// Something whose place among others matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderedChange {
    /// A row of a table without a key was inserted.
    Inserted(Bytes),
    /// One was deleted.
    Deleted(Bytes),
    /// The table was truncated, and has this file since.
    Truncated(u32),
}

/// See the module.
#[derive(Debug, Default)]
pub struct ReportedChanges {
    keys: BTreeMap<TableId, HashMap<Key, KeySeen>>,
    /// Keys reported since the last look.
    fresh: Vec<(TableId, Key)>,
    ordered: Vec<(TableId, OrderedChange)>,
    /// The number of ordered changes before the present step.
    before_step: usize,
    /// Each with the number of ordered changes before it.
    savepoints: Vec<(String, usize)>,
    bytes: usize,
}

impl ReportedChanges {
    /// Takes in a report on a table.
    ///
    /// # Errors
    /// 0A000: a function has changed a table without a key. XX000: the report does not fit the
    /// table. 54000: a key is too long.
    pub fn add(&mut self, schema: &TableSchema, report: ChangeReport) -> Result<(), SqlError> {
        let table = report.table;
        match report.what {
            Reported::OldKeys(rows) => self.add_keys(schema, &rows, true, report.by_function),
            Reported::NewKeys(rows) => self.add_keys(schema, &rows, false, report.by_function),
            Reported::Truncated { file } => {
                self.fresh.push((table, Key::MIN));
                self.ordered.push((table, OrderedChange::Truncated(file)));
                Ok(())
            }
            Reported::Inserted(_) | Reported::Deleted(_) if report.by_function => Err(SqlError::unsupported(
                format!("a function cannot change table {}, which has no primary key", schema.relation()),
                "Give the table a primary key.",
            )),
            Reported::Inserted(rows) => {
                self.add_rows(table, rows, OrderedChange::Inserted);
                Ok(())
            }
            Reported::Deleted(rows) => {
                self.fresh.push((table, Key::MIN));
                self.add_rows(table, rows, OrderedChange::Deleted);
                Ok(())
            }
        }
    }

    fn add_keys(&mut self, schema: &TableSchema, rows: &[Bytes], old: bool, by_function: bool) -> Result<(), SqlError> {
        let codec = schema.codec();
        let keys = self.keys.entry(schema.id).or_default();
        for row in rows {
            let key = codec.encode_binary(RowValues::new(row, schema.key.len()));
            let key = key.map_err(|error| SqlError::new(codes::PROGRAM_LIMIT, error.to_string()))?;
            self.fresh.push((schema.id, key.clone()));
            match keys.get_mut(&key) {
                Some(known) => {
                    known.old |= old;
                    known.by_function |= by_function;
                }
                None => {
                    self.bytes += key.0.len() + KEY_OVERHEAD_BYTES;
                    keys.insert(key, KeySeen { new_first: !old, old, by_function });
                }
            }
        }
        Ok(())
    }

    fn add_rows(&mut self, table: TableId, rows: Vec<Bytes>, change: impl Fn(Bytes) -> OrderedChange) {
        self.bytes += rows.iter().map(|row| row.len() + KEY_OVERHEAD_BYTES).sum::<usize>();
        self.ordered.extend(rows.into_iter().map(|row| (table, change(row))));
    }

    /// A step begins.
    pub fn begin_step(&mut self) {
        self.before_step = self.ordered.len();
    }

    /// The step has failed, and PostgreSQL undoes what it did.
    pub fn undo_step(&mut self) {
        self.ordered.truncate(self.before_step);
    }

    /// SAVEPOINT.
    ///
    /// # Errors
    /// 54000: there are too many.
    pub fn savepoint(&mut self, name: String) -> Result<(), SqlError> {
        if self.savepoints.len() >= MAX_SAVEPOINTS {
            return Err(SqlError::new(codes::PROGRAM_LIMIT, format!("more than {MAX_SAVEPOINTS} savepoints")));
        }
        self.savepoints.push((name, self.ordered.len()));
        Ok(())
    }

    /// ROLLBACK TO a savepoint, which stays.
    pub fn roll_back_to(&mut self, name: &str) {
        if let Some(at) = self.savepoints.iter().rposition(|(other, _)| other == name) {
            self.ordered.truncate(self.savepoints[at].1);
            self.savepoints.truncate(at + 1);
        }
    }

    /// RELEASE of a savepoint, and of those within it.
    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.savepoints.iter().rposition(|(other, _)| other == name) {
            self.savepoints.truncate(at);
        }
    }

    /// The keys that were reported since the last call.
    pub fn take_fresh(&mut self) -> Vec<(TableId, Key)> {
        std::mem::take(&mut self.fresh)
    }

    /// What it takes in memory, about, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// All keys.
    pub fn keys(&self) -> &BTreeMap<TableId, HashMap<Key, KeySeen>> {
        &self.keys
    }

    /// Changes in their order.
    pub fn ordered(&self) -> &[(TableId, OrderedChange)] {
        &self.ordered
    }

    /// Tables that were truncated, perhaps only until something was rolled back.
    pub fn truncated(&self) -> BTreeSet<TableId> {
        let truncated = |(table, change): &(TableId, OrderedChange)| match change {
            OrderedChange::Truncated(_) => Some(*table),
            OrderedChange::Inserted(_) | OrderedChange::Deleted(_) => None,
        };
        self.ordered.iter().filter_map(truncated).collect()
    }

    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ordered.is_empty()
    }

    /// The number of reported keys.
    pub fn key_count(&self) -> usize {
        self.keys.values().map(HashMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::BytesMut;
    use evenkeel_protocol::rows::put_value;
    use evenkeel_protocol::schema::ColumnSchema;

    fn packed(n: i64) -> Bytes {
        let mut out = BytesMut::new();
        put_value(&mut out, Some(&n.to_be_bytes()));
        out.freeze()
    }

    fn table(key: &[usize]) -> TableSchema {
        let columns = vec![ColumnSchema { name: "k".into(), type_name: "bigint".into(), type_oid: 20 }];
        TableSchema { id: TableId(1), name: "t".into(), columns, key: key.to_vec(), ..TableSchema::default() }
    }

    fn report(what: Reported) -> ChangeReport {
        ChangeReport { table: TableId(1), what, by_function: false }
    }

    #[test]
    fn a_key_is_kept_once_and_an_old_one_stays_old() {
        let (schema, mut reported) = (table(&[0]), ReportedChanges::default());
        for what in [
            Reported::NewKeys(vec![packed(1), packed(2)]),
            Reported::OldKeys(vec![packed(2), packed(3)]),
            Reported::NewKeys(vec![packed(3)]),
        ] {
            reported.add(&schema, report(what)).unwrap();
        }
        let key = |n| schema.codec().encode_binary(RowValues::new(&packed(n), 1)).unwrap();
        let keys = &reported.keys()[&TableId(1)];
        let may_be_gone = [1, 2, 3].map(|n| keys[&key(n)].may_be_gone());
        assert_eq!((keys.len(), may_be_gone), (3, [false, false, true]));
        assert_eq!(reported.take_fresh().len(), 5);
        let by_function = ChangeReport { by_function: true, ..report(Reported::OldKeys(vec![packed(2)])) };
        reported.add(&schema, by_function).unwrap();
        assert!(reported.keys()[&TableId(1)][&key(2)].may_be_gone(), "the order is not certain");
        // Reported again, it is claimed again.
        assert_eq!(reported.take_fresh().len(), 1);
    }

    // R18: rolled-back changes must not be replayed.
    #[test]
    fn rows_without_a_key_follow_savepoints() {
        let (schema, mut reported) = (table(&[]), ReportedChanges::default());
        let insert = |reported: &mut ReportedChanges, n| {
            reported.begin_step();
            reported.add(&schema, report(Reported::Inserted(vec![packed(n)]))).unwrap();
        };
        let rows = |reported: &ReportedChanges| {
            let row = |(_, change): &(TableId, OrderedChange)| match change {
                OrderedChange::Inserted(row) => i64::from_be_bytes(row[4..].try_into().unwrap()),
                other => panic!("{other:?}"),
            };
            reported.ordered().iter().map(row).collect::<Vec<_>>()
        };
        insert(&mut reported, 1);
        reported.savepoint("a".into()).unwrap();
        insert(&mut reported, 2);
        reported.savepoint("a".into()).unwrap();
        insert(&mut reported, 3);
        reported.roll_back_to("a");
        assert_eq!(rows(&reported), [1, 2]);
        insert(&mut reported, 4);
        reported.release("a");
        insert(&mut reported, 5);
        reported.undo_step();
        assert_eq!(rows(&reported), [1, 2, 4]);
        reported.roll_back_to("a");
        assert_eq!(rows(&reported), [1]);
    }

    #[test]
    fn functions_do_not_change_tables_without_a_key() {
        let inserted = ChangeReport { by_function: true, ..report(Reported::Inserted(vec![packed(1)])) };
        let refused = ReportedChanges::default().add(&table(&[]), inserted.clone()).unwrap_err();
        assert_eq!(refused.code, codes::FEATURE_NOT_SUPPORTED);
        let keyed = ChangeReport { what: Reported::NewKeys(vec![packed(1)]), ..inserted };
        assert!(ReportedChanges::default().add(&table(&[0]), keyed).is_ok());
    }
}
