//! A scan's text, clipped to the keys that its shard has been asked for. Pure.
//!
//! A shard's PostgreSQL may hold rows that the shard does not own (any more, or yet). A foreign
//! table's remote name is therefore no table's; where it stands, the rows of the shard's part are
//! put. Bounds are parameters in PostgreSQL's binary format, so that no value has to be written as
//! text, and they are compared in the order of the keys, which is PostgreSQL's own for the types
//! that a key of several ranges can have.

use bytes::Bytes;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::TableUse;
use evenkeel_protocol::{Key, SqlError, TableId, TableSchema};
use std::fmt::Write;

/// The schema of foreign tables' remote names. No table is in it.
pub const REMOTE_SCHEMA: &str = "evenkeel_remote";
/// The most parameters of a statement in PostgreSQL's protocol.
const MAX_PARAMETERS: usize = 65_535;

/// The remote name of a table, within [`REMOTE_SCHEMA`].
pub fn remote_name(table: TableId) -> String {
    format!("t{}", table.0)
}

/// A scan's text as the shard executes it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Clipped {
    /// The text.
    pub sql: String,
    /// The types of the added parameters, as object ids.
    pub types: Vec<u32>,
    /// Their values, in the binary format.
    pub values: Vec<Bytes>,
}

/// Clips a scan that has this number of parameters. `schema` finds a table that the statement reads
/// by its id. `None` if one of its tables is not among the shard's: then it has no rows.
///
/// # Errors
/// 0A000: the statement has not said that it reads the table. XX000: the text is not one of
/// postgres_fdw's, or a bound is no key. 54000: too many ranges.
pub fn clipped<'a>(
    query: &str,
    parameters: usize,
    part: &[TableUse],
    schema: impl Fn(TableId) -> Option<&'a TableSchema>,
) -> Result<Option<Clipped>, SqlError> {
    let mut clipped = Clipped::default();
    let mut rest = query;
    while let Some((before, table, behind)) = next_table(rest) {
        let known = schema(table).ok_or_else(|| {
            SqlError::unsupported(
                "a function that reads tables, in a statement that reads several shards, is not supported",
                "Read the tables in the statement itself.",
            )
        })?;
        let Some(used) = part.iter().find(|used| used.table == table) else { return Ok(None) };
        clipped.sql.push_str(before);
        clipped.rows_of(known, used, parameters)?;
        if !has_alias(behind) {
            // Infallible: it is a String.
            _ = write!(clipped.sql, " AS t{}", table.0);
        }
        rest = behind;
    }
    if clipped.sql.is_empty() {
        return Err(internal("a scan without a table"));
    }
    clipped.sql.push_str(rest);
    match parameters + clipped.values.len() > MAX_PARAMETERS {
        true => Err(SqlError::new(codes::PROGRAM_LIMIT, "the table has too many ranges for this statement")),
        false => Ok(Some(clipped)),
    }
}

/// The condition that only rows of this part fulfil, in a statement on the table that has this
/// number of parameters.
///
/// # Errors
/// XX000: a bound is no key. 54000: too many ranges.
pub fn within(table: &TableSchema, part: &TableUse, parameters: usize) -> Result<Clipped, SqlError> {
    let mut clipped = Clipped::default();
    let condition = clipped.condition(table, part, parameters)?;
    clipped.sql = condition.map_or_else(|| "true".into(), |condition| format!("({condition})"));
    match parameters + clipped.values.len() > MAX_PARAMETERS {
        true => Err(SqlError::new(codes::PROGRAM_LIMIT, "the table has too many ranges for this statement")),
        false => Ok(clipped),
    }
}

impl Clipped {
    /// Adds a subquery for a table's rows within a part.
    fn rows_of(&mut self, table: &TableSchema, part: &TableUse, before: usize) -> Result<(), SqlError> {
        let schema = if table.name.contains('.') { "" } else { "public." };
        _ = write!(self.sql, "(SELECT * FROM {schema}{}", table.relation());
        if let Some(condition) = self.condition(table, part, before)? {
            _ = write!(self.sql, " WHERE {condition}");
        }
        self.sql.push(')');
        Ok(())
    }

    /// What the rows of a part fulfil; `None` if all do.
    fn condition(&mut self, table: &TableSchema, part: &TableUse, before: usize) -> Result<Option<String>, SqlError> {
        let columns: Vec<String> = table.key_columns().map(|column| TableSchema::quote(&column.name)).collect();
        let columns = in_row(&columns);
        let mut intervals = Vec::new();
        for interval in &part.keys {
            let mut bounds = Vec::new();
            if interval.start != Key::MIN {
                bounds.push(format!("{columns} >= {}", self.bound(table, &interval.start, before)?));
            }
            if let Some(end) = &interval.end {
                bounds.push(format!("{columns} < {}", self.bound(table, end, before)?));
            }
            intervals.push(if bounds.is_empty() { "true".into() } else { bounds.join(" AND ") });
        }
        Ok(match &intervals[..] {
            [all] if all == "true" => None,
            [] => Some("false".into()),
            _ => Some(format!("({})", intervals.join(" OR "))),
        })
    }

    /// Adds a key as parameters.
    fn bound(&mut self, table: &TableSchema, key: &Key, before: usize) -> Result<String, SqlError> {
        let values = table.codec().decode(key).map_err(|_| internal("a range is not bounded by a whole key"))?;
        let kinds = table.key_types();
        let mut names = Vec::new();
        for ((value, kind), column) in values.iter().zip(kinds).zip(table.key_columns()) {
            self.types.push(column.type_oid);
            self.values.push(value.to_binary(kind));
            names.push(format!("${}", before + self.values.len()));
        }
        Ok(in_row(&names))
    }
}

/// One column stays a plain comparison, several make a row.
fn in_row(names: &[String]) -> String {
    match names {
        [single] => single.clone(),
        _ => format!("({})", names.join(", ")),
    }
}

/// The first remote name outside of constants and quoted names: the text before it, the table, and
/// the text behind it.
fn next_table(text: &str) -> Option<(&str, TableId, &str)> {
    let mut quoted_by: Option<char> = None;
    for (at, character) in text.char_indices() {
        match (quoted_by, character) {
            // postgres_fdw doubles quotes and backslashes, so that a quote always toggles.
            (Some(quote), character) if quote == character => quoted_by = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quoted_by = Some(character),
            (None, 'e') => {
                let name = text[at..].strip_prefix(REMOTE_SCHEMA).and_then(|rest| rest.strip_prefix(".t"));
                let Some(name) = name else { continue };
                let digits = name.len() - name.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
                let Ok(id) = name[..digits].parse() else { continue };
                return Some((&text[..at], TableId(id), &name[digits..]));
            }
            _ => {}
        }
    }
    None
}

/// Whether postgres_fdw gives the table a name of its own (`r1`).
fn has_alias(behind: &str) -> bool {
    let name = behind.strip_prefix(" r").unwrap_or_default();
    name.starts_with(|digit: char| digit.is_ascii_digit())
}

fn internal(message: &str) -> SqlError {
    SqlError::new(codes::INTERNAL, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::KeyInterval;
    use evenkeel_protocol::key::KeyValue;

    fn table(sql: &str) -> TableSchema {
        let evenkeel_sql::Command::CreateTable { schema, .. } = evenkeel_sql::parse(sql).unwrap() else { panic!() };
        TableSchema { id: TableId(7), ..schema }
    }

    fn clip(query: &str, parameters: usize, table: &TableSchema, keys: &[KeyInterval]) -> Option<Clipped> {
        let part = [TableUse { table: table.id, keys: keys.to_vec(), writes: false }];
        clipped(query, parameters, &part, |id| (id == table.id).then_some(table)).unwrap()
    }

    fn key(table: &TableSchema, values: &[KeyValue]) -> Key {
        table.codec().encode(values).unwrap()
    }

    #[test]
    fn a_table_is_replaced_by_its_part() {
        let t = table("CREATE TABLE t (id bigint PRIMARY KEY, v text)");
        let query = "SELECT id FROM evenkeel_remote.t7 WHERE ((v = 'evenkeel_remote.t7')) ORDER BY id ASC NULLS LAST";
        let all = clip(query, 0, &t, &[KeyInterval::ALL]).unwrap();
        let behind = "WHERE ((v = 'evenkeel_remote.t7')) ORDER BY id ASC NULLS LAST";
        assert_eq!(all.sql, format!("SELECT id FROM (SELECT * FROM public.\"t\") AS t7 {behind}"));
        let (one, two) = (key(&t, &[KeyValue::Int(1)]), key(&t, &[KeyValue::Int(2)]));
        let keys = [KeyInterval::new(Key::MIN, Some(one.clone())), KeyInterval::new(one, Some(two))];
        let part = clip("SELECT NULL FROM evenkeel_remote.t7 WHERE ((v = $1::text))", 1, &t, &keys).unwrap();
        let within = "WHERE (\"id\" < $2 OR \"id\" >= $3 AND \"id\" < $4)";
        assert_eq!(
            part.sql,
            format!("SELECT NULL FROM (SELECT * FROM public.\"t\" {within}) AS t7 WHERE ((v = $1::text))")
        );
        assert_eq!((part.types, part.values.len()), (vec![20, 20, 20], 3));
    }

    #[test]
    fn keys_of_several_columns_are_compared_as_rows() {
        let t = table("CREATE TABLE t (a text, b integer, PRIMARY KEY (b, a))");
        let from = key(&t, &[KeyValue::Int(5), KeyValue::Text("x'y".into())]);
        let part = clip("SELECT a FROM evenkeel_remote.t7 r1", 0, &t, &[KeyInterval::new(from, None)]).unwrap();
        assert_eq!(part.sql, "SELECT a FROM (SELECT * FROM public.\"t\" WHERE ((\"b\", \"a\") >= ($1, $2))) r1");
        assert_eq!((part.types, &part.values[1][..]), (vec![23, 25], &b"x'y"[..]));
    }

    #[test]
    fn a_table_that_the_shard_is_not_asked_for_has_no_rows() {
        let t = table("CREATE TABLE t (id bigint PRIMARY KEY)");
        let query = "SELECT id FROM evenkeel_remote.t7";
        assert_eq!(clipped(query, 0, &[], |_| Some(&t)).unwrap(), None);
        // One that the statement does not read at all is a function's.
        assert_eq!(clipped(query, 0, &[], |_| None).unwrap_err().code, codes::FEATURE_NOT_SUPPORTED);
        assert!(clipped("SELECT 1", 0, &[], |_| None).is_err());
    }
}
