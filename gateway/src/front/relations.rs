//! The tables and sequences of the catalog, and what a change of the schema did to them.
//!
//! The front PostgreSQL is asked before and after a change. Relations are distinguished apart by
//! their object ids, so that a renamed table is the same table.

use super::sessions::sql_error;
use evenkeel_postgres_session::Session;
use evenkeel_protocol::api::ChangedRelation;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::key::KeyType;
use evenkeel_protocol::schema::{ColumnSchema, MAX_COLUMNS, RelationKind};
use evenkeel_protocol::{SqlError, TableSchema};
use std::collections::BTreeMap;

/// The object ids below this are PostgreSQL's own, and the same on every server.
const FIRST_USER_OID: u32 = 16_384;

/// One row for each relation that users made: its object id, schema, name, kind and persistence;
/// its columns (name, type as SQL, type's object id, whether it is generated, the collation's name)
/// as JSON-free text separated by control characters; the positions of its key's columns; whether
/// it has foreign keys on either side, other unique or exclusion constraints or indexes, users'
/// triggers, rules; and the object ids of the sequences that belong to its columns or defaults.
const RELATIONS: &str = "
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence,
  (SELECT string_agg(concat_ws(E'\\x1f', a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid::text,
      (a.attgenerated <> '')::text, coalesce(l.collname, ''), a.attnum::text), E'\\x1e' ORDER BY a.attnum)
     FROM pg_attribute a LEFT JOIN pg_collation l ON l.oid = a.attcollation
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  (SELECT array_to_string(i.indkey::int2[], ',') FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
  EXISTS (SELECT 1 FROM pg_constraint k WHERE k.contype = 'f' AND c.oid IN (k.conrelid, k.confrelid)),
  EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary),
  EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) OR c.relhasrules,
  (SELECT string_agg(DISTINCT s.oid::text, ',') FROM pg_class s WHERE s.relkind = 'S' AND
      (EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid
          AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.deptype IN ('a', 'i'))
       OR EXISTS (SELECT 1 FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
          WHERE f.adrelid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid))),
  EXISTS (SELECT 1 FROM pg_constraint k WHERE k.contype = 'p' AND k.conrelid = c.oid AND k.condeferrable)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'S', 'p', 'f', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'evenkeel')
  AND n.nspname NOT LIKE 'pg_toast%' AND n.nspname NOT LIKE 'pg_temp%'
ORDER BY c.oid";

/// A relation in the catalog.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// What the store has to know of it. Its id and its sequences' ids are not known here.
    pub schema: TableSchema,
    /// The object ids of its sequences.
    sequences: Vec<u32>,
    /// Why the store cannot hold it, if it cannot.
    refusal: Option<String>,
}

/// The relations of a catalog, by their object ids.
pub type Relations = BTreeMap<u32, Relation>;

/// Asks for all relations, in whatever transaction is open.
///
/// # Errors
/// The session's own; XX000 if a row makes no sense.
pub async fn read(session: &mut Session) -> Result<Relations, SqlError> {
    let rows = session.query_text(RELATIONS).await.map_err(sql_error)?;
    rows.iter()
        .map(|row| relation(row).ok_or_else(|| internal("a relation of the catalog is not understood")))
        .collect()
}

/// What a change did: the relations that are new or different, and the names of those that are
/// gone.
///
/// # Errors
/// 0A000: the store cannot hold what was made.
pub fn difference(before: &Relations, after: &Relations) -> Result<(Vec<ChangedRelation>, Vec<String>), SqlError> {
    let mut changed = Vec::new();
    for (oid, now) in after {
        let was = before.get(oid);
        if was == Some(now) {
            continue;
        }
        if let Some(refusal) = &now.refusal {
            return Err(SqlError::new(codes::FEATURE_NOT_SUPPORTED, refusal.clone()));
        }
        let sequences = now.sequences.iter().filter_map(|oid| after.get(oid)).map(|s| s.schema.name.clone()).collect();
        let was = was.map(|was| was.schema.name.clone());
        changed.push(ChangedRelation { was, schema: now.schema.clone(), sequences });
    }
    let gone = before.iter().filter(|(oid, _)| !after.contains_key(oid));
    Ok((changed, gone.map(|(_, was)| was.schema.name.clone()).collect()))
}

fn relation(row: &[Option<String>]) -> Option<(u32, Relation)> {
    let text = |column: usize| row.get(column)?.as_deref();
    let flag = |column: usize| text(column) == Some("t");
    let oid: u32 = text(0)?.parse().ok()?;
    let (namespace, name, kind) = (text(1)?, text(2)?, text(3)?);
    let refusal = refusal(namespace, name, kind, text(4)?);
    let numbers = |column: usize, separator: char| {
        text(column).unwrap_or("").split(separator).filter_map(|number| number.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    let sequences = numbers(10, ',');
    let full_name = if namespace == "public" { name.to_string() } else { format!("{namespace}.{name}") };
    let mut schema = TableSchema { name: full_name, pinned: true, ..TableSchema::default() };
    if kind == "S" {
        schema.kind = RelationKind::Sequence;
        return Some((oid, Relation { schema, sequences: Vec::new(), refusal }));
    }
    let columns: Vec<Vec<&str>> =
        text(5).unwrap_or("").split('\u{1e}').filter(|c| !c.is_empty()).map(|c| c.split('\u{1f}').collect()).collect();
    let mut generated = false;
    let mut bytewise = Vec::new();
    let mut attribute_numbers = Vec::new();
    for column in &columns {
        let [name, type_name, type_oid, is_generated, collation, number] = column[..] else { return None };
        let type_oid: u32 = type_oid.parse().ok()?;
        generated |= is_generated == "true";
        bytewise.push(["", "C", "POSIX", "default"].contains(&collation));
        attribute_numbers.push(number.parse::<u32>().ok()?);
        let type_oid = if type_oid < FIRST_USER_OID { type_oid } else { 0 };
        schema.columns.push(ColumnSchema { name: name.into(), type_name: type_name.into(), type_oid });
    }
    schema.key = numbers(6, ',')
        .iter()
        .map(|number| attribute_numbers.iter().position(|other| other == number))
        .collect::<Option<Vec<_>>>()?;
    let (foreign_keys, unique, code, deferrable) = (flag(7), flag(8), flag(9), flag(11));
    let ordered = !schema.key.is_empty()
        && schema.key.iter().all(|&at| KeyType::from_oid(schema.columns[at].type_oid).is_some() && bytewise[at]);
    schema.pinned = !ordered || deferrable || foreign_keys || unique || code || !sequences.is_empty();
    let strange = schema.columns.iter().any(|column| column.type_oid == 0);
    schema.pass_through_only = schema.pinned || strange;
    // Replicas insert whole rows, and PostgreSQL takes no values for such columns.
    let generated = generated.then(|| format!("table {name} has a generated column, which is not supported yet"));
    let refusal = refusal.or(generated).or_else(|| {
        (schema.columns.len() > MAX_COLUMNS)
            .then(|| format!("table {name} has {} columns; at most {MAX_COLUMNS} are possible", schema.columns.len()))
    });
    Some((oid, Relation { schema, sequences, refusal }))
}

fn refusal(namespace: &str, name: &str, kind: &str, persistence: &str) -> Option<String> {
    if namespace.contains('.') || name.contains('.') {
        return Some(format!("the name {namespace}.{name} has a dot inside of a part, which is not supported"));
    }
    match (kind, persistence) {
        ("p", _) => Some("partitioned tables are not supported: tables split by themselves".into()),
        ("f", _) => Some("foreign tables are not supported".into()),
        ("m", _) => Some("materialized views are not supported yet: use a view".into()),
        (_, "t" | "u") => Some("temporary and unlogged tables are not supported".into()),
        _ => None,
    }
}

fn internal(message: &str) -> SqlError {
    SqlError::new(codes::INTERNAL, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(
        oid: &str,
        name: &str,
        columns: &str,
        key: Option<&str>,
        flags: [&str; 4],
        sequences: Option<&str>,
    ) -> Vec<Option<String>> {
        let [foreign, unique, code, deferrable] = flags;
        let text = |text: &str| Some(text.to_string());
        vec![
            text(oid),
            text("public"),
            text(name),
            text("r"),
            text("p"),
            text(columns),
            key.map(Into::into),
            text(foreign),
            text(unique),
            text(code),
            sequences.map(Into::into),
            text(deferrable),
        ]
    }

    const PLAIN: [&str; 4] = ["f", "f", "f", "f"];
    const ID: &str = "id\u{1f}bigint\u{1f}20\u{1f}false\u{1f}\u{1f}1";

    #[test]
    fn a_table_splits_if_its_key_is_ordered_and_nothing_holds_it_together() {
        let one = |key, flags, sequences| relation(&row("20000", "t", ID, key, flags, sequences)).unwrap().1.schema;
        assert!(!one(Some("1"), PLAIN, None).pinned);
        assert_eq!(one(Some("1"), PLAIN, None).key, [0]);
        assert!(one(None, PLAIN, None).pinned);
        assert!(one(Some("1"), ["t", "f", "f", "f"], None).pinned);
        assert!(one(Some("1"), ["f", "t", "f", "f"], None).pinned);
        assert!(one(Some("1"), PLAIN, Some("20001")).pinned);
    }

    #[test]
    fn a_generated_column_is_refused() {
        let column = ID.replace("false", "true");
        let (oid, made) = relation(&row("20000", "t", &column, Some("1"), PLAIN, None)).unwrap();
        let refused = difference(&Relations::new(), &Relations::from([(oid, made)])).unwrap_err();
        assert_eq!(refused.code, codes::FEATURE_NOT_SUPPORTED);
    }

    #[test]
    fn a_difference_has_new_renamed_and_dropped_relations() {
        let of = |rows: &[Vec<Option<String>>]| rows.iter().map(|row| relation(row).unwrap()).collect::<Relations>();
        let before = of(&[row("1", "a", ID, Some("1"), PLAIN, None), row("2", "b", ID, Some("1"), PLAIN, None)]);
        let after = of(&[row("1", "a2", ID, Some("1"), PLAIN, None), row("3", "c", ID, Some("1"), PLAIN, None)]);
        let (changed, gone) = difference(&before, &after).unwrap();
        let changed: Vec<_> = changed.iter().map(|c| (c.was.as_deref(), c.schema.name.as_str())).collect();
        assert_eq!(changed, [(Some("a"), "a2"), (None, "c")]);
        assert_eq!(gone, ["b"]);
    }
}
