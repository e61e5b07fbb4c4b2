//! One reading of what a transaction in users' own texts has changed: a series of queries, and the
//! changes that their answers make.
//!
//! Each query ends with one CommandComplete, which tells the answers apart.

use super::change_reports::ChangeReport;
use super::raw_transaction::RawTransaction;
use super::read_back::{FoundRows, read_rows};
use super::reported_changes::OrderedChange;
use crate::log_entry::Change;
use crate::log_entry::image::Image;
use crate::state_machine::ShardState;
use crate::storage::{
    RECORD_SQL, RESET_COUNTS, StoreError, TEXT_SETTINGS, WRITTEN_TABLES, sequence_image, sequence_state, table_file,
};
use bytes::Bytes;
use evenkeel_postgres_session::row::values;
use evenkeel_postgres_session::{Message, Requests, Values, tags};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{Key, SqlError, TableId, TableSchema};
use std::collections::{BTreeMap, BTreeSet};

/// Comes first: what PostgreSQL checks at COMMIT is checked now. Then the settings with which rows
/// are read, whatever the user's are: plans that need no statistics, and no limits but the node's.
const SETTINGS: &str = "SET CONSTRAINTS ALL IMMEDIATE; SET LOCAL search_path TO public;
    SET LOCAL plan_cache_mode TO force_generic_plan; SET LOCAL enable_seqscan TO off;
    SET LOCAL enable_hashjoin TO off; SET LOCAL enable_mergejoin TO off;
    SET LOCAL client_encoding TO 'UTF8'; SET LOCAL statement_timeout TO '30s'; SET LOCAL lock_timeout TO '2s'";

/// The entry that the transaction becomes.
#[derive(Debug, Clone, Copy)]
pub struct Preamble {
    /// Its term.
    pub term: u64,
    /// Its serial.
    pub serial: u64,
}

/// A query of the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Query {
    /// The tables that were written to.
    Written,
    /// The entry's record.
    Record,
    /// The file of a table that was truncated.
    File(TableId),
    /// The state of a sequence.
    Sequence(TableId),
    /// Rows of a table.
    Rows(TableId),
}

/// See the module.
#[derive(Default)]
pub struct EntryReading {
    requests: Requests,
    queries: Vec<Query>,
    /// The first series of answers is that of the settings.
    settings_first: bool,
    rows: BTreeMap<TableId, FoundRows>,
    /// Written tables: schema, name, whether it has triggers.
    written: Vec<(String, String, bool)>,
    files: BTreeMap<TableId, u32>,
    sequences: Vec<(TableId, Bytes)>,
    malformed: Option<SqlError>,
}

impl EntryReading {
    /// The series for a transaction. With a preamble it is the transaction's first reading.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn begin(
        state: &ShardState,
        raw: &mut RawTransaction,
        sequences: &BTreeSet<TableId>,
        preamble: Option<Preamble>,
    ) -> Result<EntryReading, StoreError> {
        let mut reading = EntryReading::default();
        if let Some(Preamble { term, serial }) = preamble {
            let texts = TEXT_SETTINGS.map(|(name, value)| format!("; SET LOCAL {name} TO {value}")).concat();
            let settings = format!("{SETTINGS}{texts}; {RESET_COUNTS}");
            reading.requests.query(&settings).map_err(StoreError::Refused)?;
            reading.settings_first = true;
            reading.ask(raw, Query::Written, WRITTEN_TABLES, &[])?;
            let record = [
                Some((term as i64).to_be_bytes().to_vec()),
                Some((serial as i64).to_be_bytes().to_vec()),
                Some(Vec::new()),
            ];
            let record: Vec<Option<Bytes>> = record.into_iter().map(|value| value.map(Bytes::from)).collect();
            reading.ask(raw, Query::Record, RECORD_SQL, &record)?;
        }
        for table in raw.reported.truncated() {
            if let Some(schema) = state.table(table) {
                reading.ask(raw, Query::File(table), &table_file(schema), &[])?;
            }
        }
        for sequence in sequences {
            if let Some(schema) = state.table(*sequence) {
                reading.ask(raw, Query::Sequence(*sequence), &sequence_state(schema), &[])?;
            }
        }
        let RawTransaction { session, reported, repeatable_read, .. } = raw;
        for (table, keys) in reported.keys() {
            let Some(schema) = state.table(*table) else { continue };
            // A snapshot may be older than a row that this transaction has not changed after all.
            let queries = read_rows(schema, keys, *repeatable_read, session, &mut reading.requests)?;
            reading.queries.extend(std::iter::repeat_n(Query::Rows(*table), queries));
            reading.rows.insert(*table, FoundRows::default());
        }
        reading.requests.sync();
        Ok(reading)
    }

    fn ask(
        &mut self,
        raw: &mut RawTransaction,
        query: Query,
        sql: &str,
        parameters: &[Option<Bytes>],
    ) -> Result<(), StoreError> {
        let name = raw.session.prepare_own(sql, &[], &mut self.requests).map_err(StoreError::Refused)?;
        let values = Values { formats: &[1], parameters, result_formats: &[1] };
        self.requests.bind("", &name, values).map_err(StoreError::Refused)?;
        self.requests.execute("", 0).map_err(StoreError::Refused)?;
        self.queries.push(query);
        Ok(())
    }

    /// Runs the series. The inner error says that the changes cannot become an entry.
    ///
    /// # Errors
    /// The error that PostgreSQL reports.
    pub async fn run(
        mut self,
        state: &ShardState,
        raw: &mut RawTransaction,
    ) -> Result<Result<Vec<Change>, SqlError>, StoreError> {
        let requests = std::mem::take(&mut self.requests);
        let mut in_settings = self.settings_first;
        let mut done = 0;
        let RawTransaction { session, reported, .. } = &mut *raw;
        let see = |message: &Message| match message.tag() {
            tags::READY_FOR_QUERY => in_settings = false,
            tags::NOTICE_RESPONSE => {
                let taken = ChangeReport::of_notice(&message.body()).and_then(|report| match report {
                    Some(report) => match state.table(report.table) {
                        Some(schema) => reported.add(schema, report),
                        None => Err(internal("a table was changed that this shard does not know")),
                    },
                    None => Ok(()),
                });
                if let Err(error) = taken {
                    self.malformed.get_or_insert(error);
                }
            }
            tags::COMMAND_COMPLETE if !in_settings => done += 1,
            tags::DATA_ROW if !in_settings => {
                let taken = match self.queries.get(done) {
                    Some(query) => self.row(*query, state, &message.body()),
                    None => Err(internal("an answer that was not asked for")),
                };
                if let Err(error) = taken {
                    self.malformed.get_or_insert(error);
                }
            }
            _ => {}
        };
        let run = session.run(requests, see).await;
        if run.is_err() {
            // Its statements may be taken for prepared.
            session.spoil();
        }
        run?;
        Ok(match self.malformed.take() {
            Some(error) => Err(error),
            None => self.changes(state, raw),
        })
    }

    fn row(&mut self, query: Query, state: &ShardState, body: &Bytes) -> Result<(), SqlError> {
        let malformed = || internal("an answer is malformed");
        if let (Query::Rows(table), Some(schema)) = (query, query.table().and_then(|table| state.table(table))) {
            return self.rows.entry(table).or_default().add(schema, body);
        }
        let values = values(body).ok_or_else(malformed)?;
        match (query, &values[..]) {
            (Query::Written, [Some(schema), Some(name), Some(triggers)]) => {
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                self.written.push((text(schema), text(name), *triggers == [1]));
            }
            (Query::File(table), [Some(file)]) => {
                let file: [u8; 4] = (*file).try_into().map_err(|_| malformed())?;
                self.files.insert(table, u32::from_be_bytes(file));
            }
            // The two values, packed.
            (Query::Sequence(table), [Some(_), Some(_)]) => self.sequences.push((table, body.slice(2..))),
            _ => return Err(malformed()),
        }
        Ok(())
    }

    /// What was read, as changes.
    fn changes(self, state: &ShardState, raw: &RawTransaction) -> Result<Vec<Change>, SqlError> {
        for (schema, name, has_triggers) in &self.written {
            let name = if schema == "public" { name.clone() } else { format!("{schema}.{name}") };
            let declared = state.tables().find(|table| table.name == name).is_some_and(|t| raw.writes.contains(&t.id));
            if !declared || !has_triggers {
                return Err(not_captured(&name));
            }
        }
        let mut changes = Vec::new();
        let mut since = BTreeMap::new();
        for (table, file) in &self.files {
            let effective =
                |(of, change): &(TableId, OrderedChange)| of == table && *change == OrderedChange::Truncated(*file);
            let Some(at) = raw.reported.ordered().iter().rposition(effective) else { continue };
            if !state.owns_whole(*table) {
                return Err(truncates_a_part());
            }
            since.insert(*table, at);
            changes.push(Change { table: *table, key: Key::MIN, image: Image::Truncated });
        }
        for (at, (table, change)) in raw.reported.ordered().iter().enumerate() {
            let image = match change {
                _ if since.get(table).is_some_and(|truncated| at < *truncated) => continue,
                OrderedChange::Inserted(row) => Image::New(row.clone()),
                OrderedChange::Deleted(row) => Image::Removed(row.clone()),
                OrderedChange::Truncated(_) => continue,
            };
            changes.push(Change { table: *table, key: Key::MIN, image });
        }
        for (table, found) in self.rows {
            if let Some(keys) = raw.reported.keys().get(&table) {
                found.add_changes(table, keys, &mut changes);
            }
        }
        for (table, state) in self.sequences {
            let image = Image::Whole(sequence_image(&state, raw.sets_sequences));
            changes.push(Change { table, key: Key::MIN, image });
        }
        Ok(changes)
    }
}

impl Query {
    fn table(self) -> Option<TableId> {
        match self {
            Query::Written | Query::Record => None,
            Query::File(table) | Query::Sequence(table) | Query::Rows(table) => Some(table),
        }
    }
}

fn internal(message: &str) -> SqlError {
    SqlError::new(codes::INTERNAL, message)
}

/// R7: the transaction has written to a table, and its changes were not to be captured.
pub(super) fn not_captured(table: &str) -> SqlError {
    SqlError::unsupported(
        format!("the transaction has written to {}, which its statements do not name", TableSchema::quote(table)),
        "Write to it by a statement of its own.",
    )
}

fn truncates_a_part() -> SqlError {
    SqlError::unsupported("the table has ranges on several shards", "Delete its rows instead.")
}
