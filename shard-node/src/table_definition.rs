//! Definitions of tables, as a shard's leader checks them for the placement driver.
//!
//! The placement driver parses no SQL. It asks a shard's leader for the canonical definition of a
//! new table, and the leader checks the definition again before it executes it, so that no
//! placement driver can make a shard run a text that the store has not written itself (R6).

use evenkeel_protocol::TableSchema;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_sql::definition::canonical;

/// The answer to [`ControlRequest::CheckTable`].
pub(crate) fn check(schema: &TableSchema) -> ControlReply {
    match canonical(schema) {
        Ok(schema) => ControlReply::Table(Box::new(schema)),
        Err(reason) => refused(reason),
    }
}

/// The rejection of a request whose table must not be created: a new table whose text is not
/// canonical, or a moving range's table whose text defines another table. A moving range's table
/// may have been created by a version with another canonical text.
pub(crate) fn rejection(request: &ControlRequest) -> Option<ControlReply> {
    match request {
        // A schema change has created it already: there is no text to be executed.
        ControlRequest::CreateTable { schema, .. } if schema.create_sql.is_empty() && schema.pinned => None,
        ControlRequest::CreateTable { schema, .. } => match canonical(schema) {
            Ok(canonical) if canonical.create_sql == schema.create_sql => None,
            Ok(_) => Some(refused(format!("table {:?}: create_sql is not in canonical form", schema.name))),
            Err(reason) => Some(refused(reason)),
        },
        ControlRequest::IngestOpen { schema, .. } => canonical(schema).err().map(refused),
        _ => None,
    }
}

fn refused(reason: String) -> ControlReply {
    ControlReply::Refused { code: "bad-definition".into(), reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::RangeId;

    /// R6: only a text that the store has written itself is executed.
    #[test]
    fn a_new_table_is_created_by_its_canonical_text_only() {
        let text = "CREATE TABLE x (id bigint PRIMARY KEY, v text)";
        let Ok(evenkeel_sql::Command::CreateTable { schema, .. }) = evenkeel_sql::parse(text) else {
            panic!("no CREATE TABLE")
        };
        let create = |schema| ControlRequest::CreateTable { schema, range: RangeId(1) };
        let written = TableSchema { create_sql: text.into(), ..schema.clone() };
        assert_eq!(check(&written), ControlReply::Table(Box::new(schema.clone())));
        assert_eq!(rejection(&create(schema.clone())), None);
        assert!(rejection(&create(written)).is_some());
        let other = TableSchema { create_sql: "CREATE TABLE x AS SELECT 1".into(), ..schema };
        assert!(matches!(check(&other), ControlReply::Refused { .. }) && rejection(&create(other)).is_some());
    }
}
