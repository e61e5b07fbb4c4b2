//! Canonical definitions of tables.
//!
//! A shard runs a table's `create_sql` as superuser (R6). So the text is never the user's own: it
//! is written again from the parsed definition. [`canonical`] does that for a [`TableSchema`] that
//! somebody else has composed, and rejects one whose text defines another table than its name,
//! columns and key do. The canonical text of a canonical definition is itself.

use crate::{Command, parse};
use evenkeel_protocol::schema::TableSchema;

/// The schema with its canonical `create_sql`. Its id is 0.
///
/// # Errors
/// One sentence, if the text is no definition of the table that the schema describes.
pub fn canonical(schema: &TableSchema) -> Result<TableSchema, String> {
    let bad = |reason: String| Err(format!("table {:?}: {reason}", schema.name));
    let found = match parse(&schema.create_sql) {
        Ok(Command::CreateTable { schema, .. }) => schema,
        Ok(_) => return bad("create_sql is no CREATE TABLE".into()),
        Err(error) => return bad(format!("create_sql: {error}")),
    };
    let same = found.name == schema.name && found.columns == schema.columns && found.key == schema.key;
    if same { Ok(found) } else { bad("create_sql defines another table than name, columns and key do".into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_canonical_text_is_the_stores_own_and_stays_as_it_is() {
        let text = "CREATE TABLE x (id bigint PRIMARY KEY, v text);";
        let Command::CreateTable { schema, .. } = parse(text).unwrap() else { panic!("no CREATE TABLE") };
        let written = TableSchema { create_sql: text.into(), ..schema.clone() };
        assert_eq!(canonical(&written), Ok(schema.clone()));
        assert_eq!(canonical(&schema), Ok(schema.clone()));
        for wrong in ["DROP TABLE x", "CREATE TABLE y (id bigint PRIMARY KEY, v text)", "…", ""] {
            assert!(canonical(&TableSchema { create_sql: wrong.into(), ..schema.clone() }).is_err(), "{wrong}");
        }
        assert!(canonical(&TableSchema { key: vec![1], ..schema }).is_err());
    }
}
