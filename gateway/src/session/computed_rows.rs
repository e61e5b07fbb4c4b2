//! Rows that a statement writes, computed in the engine database before any of them is sent to a
//! shard.
//!
//! There they are put into a table of the session's own, which has the columns, the defaults and
//! the checks of the user's. So they are whole rows, each of which belongs to one shard; what a
//! statement reads does not include its own rows; and an error of theirs comes before anything is
//! written. The transaction there is read-only, but for that table, and is rolled back.

use super::engine_run::{FIRST_USER_OID, as_of_one_server, session_ended};
use super::prepared::Values;
use crate::front::server::FrontPostgres;
use crate::front::sessions::{FrontSession, sql_error};
use crate::front::settings::Settings;
use crate::grammar::writes::COMPUTED;
use crate::remote::reads::StatementReads;
use bytes::Bytes;
use evenkeel_postgres_session::{CancelKey, Requests, Values as FrontValues, error_response, tags};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{SqlError, TableSchema};
use std::sync::Arc;

/// The portal that the rows are read through.
const PORTAL: &str = "evenkeel_rows";
/// The settings with which values in the text format are read alike by every session.
const EXACT: &str =
    "SET LOCAL datestyle TO ISO; SET LOCAL intervalstyle TO postgres; SET LOCAL extra_float_digits TO 3";
/// Types whose values are object ids, which mean something else on another server: regproc,
/// regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace,
/// regrole, regcollation.
const NAMES: [u32; 11] = [24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];

/// See the module. Dropped, its session is closed.
pub struct ComputedRows {
    front: Arc<FrontPostgres>,
    session: FrontSession,
    key: CancelKey,
    /// The table's schema and name, for errors.
    table: (String, String),
}

impl ComputedRows {
    /// Makes the table for rows of this one.
    ///
    /// # Errors
    /// As for a session.
    pub async fn begin(
        front: &Arc<FrontPostgres>,
        settings: &Settings,
        table: &TableSchema,
    ) -> Result<ComputedRows, SqlError> {
        let mut session = front.engine_sessions().take(settings).await?;
        let key = session.session.cancel_key();
        let key = key.ok_or_else(|| SqlError::new(codes::INTERNAL, "a session that names no process"))?;
        let (schema, name) = table.name.split_once('.').unwrap_or(("public", &table.name));
        let like = format!("{}.{}", TableSchema::quote(schema), TableSchema::quote(name));
        let sql = format!(
            "BEGIN READ WRITE; CREATE TEMPORARY TABLE {COMPUTED} (LIKE {like} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)
             ON COMMIT DROP; SET TRANSACTION READ ONLY"
        );
        session.session.simple(&sql).await.map_err(sql_error)?;
        Ok(ComputedRows { front: front.clone(), session, key, table: (schema.into(), name.into()) })
    }

    /// For cancelling its statement.
    pub fn cancel_key(&self) -> CancelKey {
        self.key
    }

    /// Whether a table as written is the one with this name.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn is_table(&mut self, written: &str, table: &TableSchema) -> Result<bool, SqlError> {
        let (schema, name) = table.name.split_once('.').unwrap_or(("public", &table.name));
        let known = format!("{}.{}", TableSchema::quote(schema), TableSchema::quote(name));
        let literal = |name: &str| format!("'{}'", name.replace('\'', "''"));
        let sql = format!("SELECT {}::regclass = {}::regclass", literal(written), literal(&known));
        let rows = self.session.session.query_text(&sql).await.map_err(sql_error)?;
        Ok(rows.into_iter().flatten().flatten().any(|value| value == "t"))
    }

    /// Computes the rows. `reads` is what the statement reads at shards, with the count of changes
    /// of the schema when that was opened.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn compute(
        &mut self,
        text: &str,
        (types, values): (&[u32], &Values),
        reads: Option<(&Arc<StatementReads>, u64)>,
    ) -> Result<(), SqlError> {
        let types: Vec<u32> = types.iter().map(|oid| if *oid < FIRST_USER_OID { *oid } else { 0 }).collect();
        let values = FrontValues { formats: &values.formats, parameters: &values.parameters, result_formats: &[] };
        let mut requests = Requests::default();
        requests.parse("", text, &types)?;
        requests.bind("", "", values)?;
        requests.execute("", 0)?;
        requests.sync();
        let _executing = reads.map(|(reads, _)| self.front.reading().executes(self.key.process(), reads.clone()));
        self.session.session.send(requests);
        self.answer().await?;
        match reads {
            // Another table may have had the name by then, below which there was nothing yet.
            Some((_, changes)) if self.front.engine_changes() != changes => {
                Err(SqlError::new(codes::SERIALIZATION_FAILURE, "the schema was changed while the statement ran"))
            }
            _ => Ok(()),
        }
    }

    /// Adds rows of a COPY, and returns how many.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn copy(&mut self, text: &str, data: &[u8]) -> Result<u64, SqlError> {
        let mut requests = Requests::default();
        requests.parse("", text, &[])?;
        requests.bind("", "", FrontValues::default())?;
        requests.execute("", 0)?;
        requests.copy_data(data)?;
        requests.copy_done();
        requests.sync();
        self.session.session.send(requests);
        self.answer().await
    }

    /// Whether some rows have the same key.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn repeat_keys(&mut self, table: &TableSchema) -> Result<bool, SqlError> {
        let columns: Vec<String> = table.key_columns().map(|column| TableSchema::quote(&column.name)).collect();
        let sql = format!("SELECT FROM pg_temp.{COMPUTED} GROUP BY {} HAVING count(*) > 1 LIMIT 1", columns.join(", "));
        Ok(!columns.is_empty() && !self.session.session.query_text(&sql).await.map_err(sql_error)?.is_empty())
    }

    /// Begins to read the rows, in the order in which they were computed, with these formats.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn read(&mut self, table: &TableSchema) -> Result<(), SqlError> {
        self.session.session.simple(EXACT).await.map_err(sql_error)?;
        let columns: Vec<String> = table.columns.iter().map(|column| TableSchema::quote(&column.name)).collect();
        let formats = formats(table);
        let values = FrontValues { result_formats: &formats, ..FrontValues::default() };
        let mut requests = Requests::default();
        requests.parse("", &format!("SELECT {} FROM pg_temp.{COMPUTED}", columns.join(", ")), &[])?;
        requests.bind(PORTAL, "", values)?;
        requests.sync();
        self.session.session.send(requests);
        self.answer().await.map(drop)
    }

    /// The bodies of the next rows' DataRow messages, at most `max_rows`; none at the end.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn next(&mut self, max_rows: u32) -> Result<Vec<Bytes>, SqlError> {
        let mut requests = Requests::default();
        requests.execute(PORTAL, max_rows)?;
        requests.sync();
        let mut rows = Vec::new();
        self.session.session.send(requests);
        let read = self.session.session.until_ready(|message| {
            if message.tag() == tags::DATA_ROW {
                rows.push(message.body());
            }
        });
        read.await.map_err(sql_error)?;
        Ok(rows)
    }

    /// Forgets how far the rows have been read.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn stop_reading(&mut self) -> Result<(), SqlError> {
        self.session.session.simple(&format!("CLOSE {PORTAL}")).await.map_err(sql_error).map(drop)
    }

    /// Ends it.
    pub async fn end(mut self) {
        if self.session.session.simple("ROLLBACK").await.is_ok() {
            self.front.engine_sessions().put_back(self.session);
        }
    }

    /// The number of rows that a command was about.
    async fn answer(&mut self) -> Result<u64, SqlError> {
        let session = &mut self.session.session;
        let (mut count, mut failed) = (0, None);
        while !session.is_ready() {
            let message = session.next().await.map_err(|_| session_ended())?;
            match message.tag() {
                tags::COMMAND_COMPLETE => count = counted(&message.text()),
                tags::ERROR_RESPONSE => {
                    failed.get_or_insert_with(|| error_response::parse(&message.body()));
                }
                _ => {}
            }
        }
        failed.map_or(Ok(count), |error| Err(as_of_table(as_of_one_server(error), &self.table)))
    }
}

/// The formats of the columns of computed rows: binary for PostgreSQL's own types, text for users'.
pub fn formats(table: &TableSchema) -> Vec<i16> {
    let binary = |oid: u32| oid != 0 && oid < FIRST_USER_OID && !NAMES.contains(&oid);
    table.columns.iter().map(|column| i16::from(binary(column.type_oid))).collect()
}

/// The number of rows in a command tag.
pub fn counted(tag: &str) -> u64 {
    tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// An error about the rows as one about the user's table.
fn as_of_table(mut error: SqlError, (schema, name): &(String, String)) -> SqlError {
    error.message = error.message.replace(COMPUTED, name);
    if let Some(fields) = &mut error.fields {
        if fields.table.as_deref() == Some(COMPUTED) {
            fields.table = Some(name.clone());
            fields.schema = Some(schema.clone());
        }
        fields.context = fields.context.take().map(|context| context.replace(COMPUTED, name));
        // The text is not the user's.
        fields.position = None;
    }
    error
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn errors_are_about_the_users_table() {
        let body = format!(
            "SERROR\0C23502\0Mnull value in column \"a\" of relation \"{COMPUTED}\"\0spg_temp_3\0t{COMPUTED}\0P9\0\0"
        );
        let error = as_of_table(error_response::parse(body.as_bytes()), &("s".into(), "t".into()));
        assert_eq!(error.message, "null value in column \"a\" of relation \"t\"");
        let fields = error.fields.unwrap();
        assert_eq!((fields.schema.as_deref(), fields.table.as_deref(), fields.position), (Some("s"), Some("t"), None));
    }

    #[test]
    fn counts_are_read_from_tags() {
        assert_eq!((counted("INSERT 0 3"), counted("COPY 7"), counted("BEGIN")), (3, 7, 0));
    }
}
