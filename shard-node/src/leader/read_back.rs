//! Reading the rows of reported keys again, before they are proposed (R7). Pure: the requests, and
//! what their answers say.
//!
//! A reported key says that a row may have changed; the row says what became of it. The entry gets
//! an image of each row that is found, and a deletion of each reported key that no found row has.
//! That is right for keys that are equal without being the same, such as `1.0` and `1.00`, too.
//!
//! Whoever reads must have claimed the keys before (R4): nothing is decided about a claimed key
//! between the reading and the proposal, so that a row which is not this transaction's own is as
//! the log has it.

use super::postgres_session::check_value_size;
use super::raw_session::RawSession;
use super::reported_changes::KeySeen;
use crate::log_entry::Change;
use crate::log_entry::image::Image;
use crate::storage::{ReadBack, StoreError};
use bytes::Bytes;
use evenkeel_postgres_session::{Requests, Values};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowValues;
use evenkeel_protocol::{Key, SqlError, TableId, TableSchema};
use std::collections::HashMap;

/// Keys of one query, at most.
const KEYS_PER_QUERY: usize = 10_000;

/// Adds requests for the rows of these keys of a table. `locks`: the rows are locked, so that one
/// which another transaction has changed since the snapshot is an error. Returns the number of
/// queries.
///
/// # Errors
/// The requests cannot be made.
pub fn read_rows(
    schema: &TableSchema,
    keys: &HashMap<Key, KeySeen>,
    locks: bool,
    session: &mut RawSession,
    requests: &mut Requests,
) -> Result<usize, StoreError> {
    let all: Vec<&Key> = keys.keys().collect();
    let mut queries = 0;
    for some in all.chunks(KEYS_PER_QUERY) {
        for query in ReadBack::of(schema, some, locks)?.queries() {
            let name = session.prepare_own(&query.sql, &query.types, requests).map_err(StoreError::Refused)?;
            let values = Values { formats: &[1], parameters: &query.parameters, result_formats: &[1] };
            requests.bind("", &name, values).map_err(StoreError::Refused)?;
            requests.execute("", 0).map_err(StoreError::Refused)?;
            queries += 1;
        }
    }
    Ok(queries)
}

/// The rows of a table that were found.
#[derive(Debug, Default)]
pub struct FoundRows(HashMap<Key, Bytes>);

impl FoundRows {
    /// Takes in a row, as the body of its message.
    ///
    /// # Errors
    /// It is not a row of the table, or is too large.
    pub fn add(&mut self, schema: &TableSchema, body: &Bytes) -> Result<(), SqlError> {
        // Behind the number of values. The message lies in a buffer of many.
        let row = Bytes::copy_from_slice(body.get(2..).unwrap_or_default());
        let mut sizes = RowValues::new(&row, schema.columns.len()).map(|value| value.map_or(0, <[u8]>::len));
        sizes.try_for_each(check_value_size)?;
        let key = schema.key_of_row(&schema.codec(), &row);
        let key = key.map_err(|error| SqlError::new(codes::PROGRAM_LIMIT, error.to_string()))?;
        self.0.insert(key, row);
        Ok(())
    }

    /// Adds what became of the rows of the reported keys.
    pub fn add_changes(mut self, table: TableId, keys: &HashMap<Key, KeySeen>, changes: &mut Vec<Change>) {
        for (key, seen) in keys {
            let image = match self.0.remove(key) {
                Some(row) if seen.new_first => Image::New(row),
                Some(row) => Image::Whole(row),
                None if seen.may_be_gone() => Image::Gone,
                None => continue,
            };
            changes.push(Change { table, key: key.clone(), image });
        }
        // Found by a key that is equal to the row's, and not the same.
        changes.extend(self.0.into_iter().map(|(key, row)| Change { table, key, image: Image::Whole(row) }));
    }
}
