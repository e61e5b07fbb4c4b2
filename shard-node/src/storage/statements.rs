//! The SQL with which a replica changes and reads its tables: text made from a schema, nothing
//! else.
//!
//! Types are given by object id when a statement is prepared, so that the text needs no casts and
//! every built-in type is treated alike.

use super::StoreError;
use super::packed_keys::pack_key;
use crate::log_entry::image::Columns;
use crate::state_machine::ROW_OVERHEAD_BYTES;
use bytes::{Bytes, BytesMut};
use evenkeel_protocol::rows::{RowValues, put_value};
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{KeyInterval, TableSchema};
use std::fmt::Write;

/// The values of a sequence's image.
pub(super) const SEQUENCE_VALUES: usize = 3;

/// The table's name, qualified and quoted.
pub(super) fn table_name(schema: &TableSchema) -> String {
    if schema.name.contains('.') { schema.relation() } else { format!("public.{}", schema.relation()) }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(TableSchema::quote).collect();
    quoted.join(", ")
}

/// All columns, in the table's order.
pub(super) fn columns(schema: &TableSchema) -> String {
    list(schema.columns.iter().map(|column| column.name.as_str()))
}

/// All columns as a row image has them, of a table or alias that `prefix` names: values of types
/// that users have created travel as text.
pub(super) fn image_columns(schema: &TableSchema, prefix: &str) -> String {
    let of = |column: &ColumnSchema| match column.type_oid {
        0 => format!("{prefix}{}::text", TableSchema::quote(&column.name)),
        _ => format!("{prefix}{}", TableSchema::quote(&column.name)),
    };
    schema.columns.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// A parameter with a value of a column.
pub(super) fn typed_parameter(column: &ColumnSchema, number: usize) -> String {
    match column.type_oid {
        0 => format!("${number}::text::{}", column.type_name),
        _ => format!("${number}"),
    }
}

/// A query for the number of the file that a table's rows are in.
pub fn table_file(schema: &TableSchema) -> String {
    let name = table_name(schema).replace('\'', "''");
    format!("SELECT pg_catalog.pg_relation_filenode('{name}'::pg_catalog.regclass)")
}

/// The image of a sequence whose state is these packed values: `exactly`, or as far as it goes on.
pub fn sequence_image(state: &[u8], exactly: bool) -> Bytes {
    let mut image = BytesMut::from(state);
    put_value(&mut image, Some(&[exactly.into()]));
    image.freeze()
}

/// A query for the state of a sequence, as its image begins with it.
pub fn sequence_state(schema: &TableSchema) -> String {
    format!("SELECT last_value, is_called FROM {}", table_name(schema))
}

/// The key's columns, in the key's order.
pub(super) fn key_columns(schema: &TableSchema) -> String {
    list(schema.key_columns().map(|column| column.name.as_str()))
}

fn parameters(from: usize, count: usize) -> String {
    let each: Vec<String> = (from..from + count).map(|n| format!("${n}")).collect();
    each.join(", ")
}

/// Where inserted rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// One parameter per column.
    One,
    /// One array parameter per column.
    Many,
}

/// Whether values of types that users have created are among the table's.
pub(super) fn has_texts(schema: &TableSchema) -> bool {
    schema.columns.iter().any(|column| column.type_oid == 0)
}

/// Whether PostgreSQL makes values of the table's columns that it takes from nobody unless told to.
pub(super) fn makes_values(schema: &TableSchema) -> bool {
    !schema.sequences.is_empty()
}

/// Inserts whole rows; with `upsert`, rows that are there take the new values.
pub(super) fn insert(schema: &TableSchema, source: Source, upsert: bool) -> String {
    let width = schema.columns.len();
    let overriding = if makes_values(schema) { "OVERRIDING SYSTEM VALUE " } else { "" };
    let mut sql = format!("INSERT INTO {} ({}) {overriding}", table_name(schema), columns(schema));
    let typed = schema.columns.iter().enumerate().map(|(n, column)| typed_parameter(column, n + 1));
    let given = |n: usize, column: &ColumnSchema| match column.type_oid {
        0 => format!("given.v{n}::{}", column.type_name),
        _ => format!("given.v{n}"),
    };
    let _ = match source {
        Source::One => write!(sql, "VALUES ({})", typed.collect::<Vec<_>>().join(", ")),
        Source::Many if !has_texts(schema) => write!(sql, "SELECT * FROM unnest({})", parameters(1, width)),
        Source::Many => {
            let values: Vec<String> = schema.columns.iter().enumerate().map(|(n, column)| given(n, column)).collect();
            let names: Vec<String> = (0..width).map(|n| format!("v{n}")).collect();
            let from = format!("unnest({}) AS given({})", parameters(1, width), names.join(", "));
            write!(sql, "SELECT {} FROM {from}", values.join(", "))
        }
    };
    if upsert {
        let others = schema.columns.iter().enumerate().filter(|(i, _)| !schema.key.contains(i));
        let set: Vec<String> =
            others.map(|(_, c)| TableSchema::quote(&c.name)).map(|name| format!("{name} = EXCLUDED.{name}")).collect();
        let _ = write!(sql, " ON CONFLICT ({}) DO ", key_columns(schema));
        sql.push_str(&if set.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", set.join(", ")) });
    }
    sql
}

/// Deletes one of the rows that have these values: in a table without a key it does not matter
/// which of several. Values are the same if their hashes' input is ([`row_hash`]).
pub(super) fn remove(schema: &TableSchema) -> String {
    let table = table_name(schema);
    let same = schema.columns.iter().enumerate().map(|(n, column)| {
        let (name, value) = (TableSchema::quote(&column.name), typed_parameter(column, n + 1));
        match EQUAL_IS_SAME.contains(&column.type_oid) {
            true => format!("{name} IS NOT DISTINCT FROM {value}"),
            false => format!("{name}::text IS NOT DISTINCT FROM ({value})::text"),
        }
    });
    let same = same.collect::<Vec<_>>().join(" AND ");
    // Not a number, and so an error (invariant 5), if there is no such row.
    format!(
        "WITH gone AS (DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} WHERE {same} LIMIT 1) RETURNING 1) \
         SELECT CASE count(*) WHEN 1 THEN 1 ELSE concat(count(*), ' of the deleted rows are here')::integer END FROM gone"
    )
}

/// Brings a sequence forward, in its direction, or to exactly a value. Parameters: the last value,
/// whether it has been used, and whether it is set to exactly that.
pub(super) fn set_sequence(schema: &TableSchema) -> String {
    let table = table_name(schema);
    let name = table.replace('\'', "''");
    // What has not been used comes before what has.
    format!(
        "SELECT pg_catalog.setval(q.seqrelid::pg_catalog.regclass, $1, $2)
    FROM pg_catalog.pg_sequence AS q, {table} AS s
    WHERE q.seqrelid = '{name}'::pg_catalog.regclass AND ($3 OR q.seqcycle
        OR CASE WHEN q.seqincrement > 0 THEN $1 > s.last_value ELSE $1 < s.last_value END
        OR ($1 = s.last_value AND $2 AND NOT s.is_called))"
    )
}

/// Takes whole rows that are not there, in PostgreSQL's binary format for COPY.
pub(super) fn copy_in(schema: &TableSchema) -> String {
    format!("COPY {} ({}) FROM STDIN (FORMAT binary)", table_name(schema), columns(schema))
}

/// Sets these columns of rows that are there, by their keys. Parameters: the key's columns, then
/// the values.
pub(super) fn update(schema: &TableSchema, columns: &Columns, source: Source) -> String {
    let (name, width) = (table_name(schema), schema.key.len());
    let set: Vec<&str> = columns.positions().filter_map(|at| schema.columns.get(at)).map(|c| c.name.as_str()).collect();
    let assigned = |value: &dyn Fn(usize) -> String| {
        let each: Vec<String> =
            set.iter().enumerate().map(|(i, name)| format!("{} = {}", TableSchema::quote(name), value(i))).collect();
        each.join(", ")
    };
    match source {
        Source::One => {
            let set = assigned(&|i| format!("${}", width + i + 1));
            format!("UPDATE {name} SET {set} WHERE ({}) = ({})", key_columns(schema), parameters(1, width))
        }
        Source::Many => {
            let given: Vec<String> =
                (0..width).map(|i| format!("k{i}")).chain((0..set.len()).map(|i| format!("v{i}"))).collect();
            let set = assigned(&|i| format!("given.v{i}"));
            let given = format!("unnest({}) AS given({})", parameters(1, given.len()), given.join(", "));
            format!("UPDATE {name} AS t SET {set} FROM {given} WHERE {}", key_is_given(schema))
        }
    }
}

/// Whether the row of `t` has the key that is `given`.
fn key_is_given(schema: &TableSchema) -> String {
    let equal = schema.key_columns().enumerate().map(|(i, column)| {
        let name = TableSchema::quote(&column.name);
        match column.type_oid {
            0 => format!("t.{name} = given.k{i}::{}", column.type_name),
            _ => format!("t.{name} = given.k{i}"),
        }
    });
    equal.collect::<Vec<_>>().join(" AND ")
}

/// Deletes rows by their keys.
pub(super) fn delete(schema: &TableSchema, source: Source) -> String {
    let width = schema.key.len();
    let name = table_name(schema);
    match source {
        Source::One => {
            let key = schema.key_columns().enumerate().map(|(n, column)| typed_parameter(column, n + 1));
            format!("DELETE FROM {name} WHERE ({}) = ({})", key_columns(schema), key.collect::<Vec<_>>().join(", "))
        }
        Source::Many => {
            let given: Vec<String> = (0..width).map(|i| format!("k{i}")).collect();
            let given = given.join(", ");
            format!(
                "DELETE FROM {name} AS t USING unnest({}) AS given({given}) WHERE {}",
                parameters(1, width),
                key_is_given(schema)
            )
        }
    }
}

/// The shape of an interval's predicate: how many key columns each bound has; 0 for a bound that
/// does not bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Shape {
    pub start: usize,
    pub end: usize,
}

/// An interval's bounds as parameters: the packed columns of the start and then of the end.
#[derive(Debug)]
pub(super) struct Bounds {
    pub shape: Shape,
    packed: BytesMut,
}

impl Bounds {
    /// Of an interval that is not empty. A bound may be a key's prefix, as long as it ends where a
    /// column ends: all keys that begin with it are after it, and comparing its columns says just
    /// that.
    pub fn of(schema: &TableSchema, interval: &KeyInterval) -> Result<Bounds, StoreError> {
        let malformed = |_| StoreError::Diverged(format!("{interval} is no interval of table {}", schema.name));
        let types = schema.key_types();
        let mut packed = BytesMut::new();
        let start = pack_key(&types, &interval.start, &mut packed).map_err(malformed)?;
        let end = match &interval.end {
            Some(end) => pack_key(&types, end, &mut packed).map_err(malformed)?,
            None => 0,
        };
        Ok(Bounds { shape: Shape { start, end }, packed })
    }

    /// The values, in the order of the predicate's parameters.
    pub fn values(&self) -> RowValues<'_> {
        RowValues::new(&self.packed, self.shape.start + self.shape.end)
    }
}

/// ` WHERE …` for an interval; its parameters are numbered from 1. Row comparisons are what an
/// index on the key answers directly.
pub(super) fn where_in(schema: &TableSchema, shape: Shape) -> String {
    let names: Vec<&str> = schema.key_columns().map(|column| column.name.as_str()).collect();
    let side = |operator: &str, columns: usize, from: usize| {
        let left = list(names.iter().take(columns).copied());
        (columns > 0).then(|| format!("({left}) {operator} ({})", parameters(from, columns)))
    };
    let sides: Vec<String> =
        [side(">=", shape.start, 1), side("<", shape.end, shape.start + 1)].into_iter().flatten().collect();
    if sides.is_empty() { String::new() } else { format!(" WHERE {}", sides.join(" AND ")) }
}

/// What each column of a row takes where it lies, in bytes; values that lie elsewhere are not read
/// for it.
pub(super) fn column_sizes(schema: &TableSchema) -> String {
    let sizes: Vec<String> =
        schema.columns.iter().map(|column| format!("pg_column_size({})", TableSchema::quote(&column.name))).collect();
    sizes.join(", ")
}

/// The number of an interval's rows, and the exact sum of their hashes as text.
pub(super) fn checksum(schema: &TableSchema, shape: Shape) -> String {
    let (hash, table, filter) = (row_hash(schema), table_name(schema), where_in(schema, shape));
    format!("SELECT count(*), coalesce(sum({hash}), 0)::text FROM {table}{filter}")
}

/// The object ids of the parameters of [`where_in`].
pub(super) fn where_types(schema: &TableSchema, shape: Shape) -> impl Iterator<Item = u32> {
    let of = |count: usize| schema.key_columns().take(count).map(|column| column.type_oid);
    of(shape.start).chain(of(shape.end))
}

/// Types whose values' length stands in the row, or in the pointer that stands there, before
/// compression: text, varchar, char and bytea.
const OF_KNOWN_LENGTH: [u32; 4] = [25, 1043, 1042, 17];

/// What a row's values take, uncompressed as far as that can be known without reading one that lies
/// outside of its row, in bytes, and what PostgreSQL keeps beside them.
pub(super) fn row_bytes(schema: &TableSchema) -> String {
    let each = schema.columns.iter().map(|column| {
        let of = if OF_KNOWN_LENGTH.contains(&column.type_oid) { "octet_length" } else { "pg_column_size" };
        format!("coalesce({of}({}), 0)", TableSchema::quote(&column.name))
    });
    format!("{ROW_OVERHEAD_BYTES} + {}", each.collect::<Vec<_>>().join(" + "))
}

/// A 64-bit hash of a row's contents, the same on every server of one byte order. Values of types
/// whose equality is identity are hashed as they are; of the others (`1.0` equals `1.00`, `-0`
/// equals `0`; some have no hash at all) the text is.
pub(super) fn row_hash(schema: &TableSchema) -> String {
    let columns = schema.columns.iter().map(|column| {
        let name = TableSchema::quote(&column.name);
        if EQUAL_IS_SAME.contains(&column.type_oid) { name } else { format!("{name}::text") }
    });
    let columns: Vec<String> = columns.collect();
    format!("hash_record_extended(ROW({}), 0)", columns.join(", "))
}

/// Types two of whose values are equal only if they are the same: boolean, bytea, "char", name, the
/// integers, text, oid, char(n), varchar, date, time, timestamp, timestamptz, timetz, uuid.
const EQUAL_IS_SAME: [u32; 17] = [16, 17, 18, 19, 20, 21, 23, 25, 26, 1042, 1043, 1082, 1083, 1114, 1184, 1266, 2950];

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::{Key, KeyValue, TableId};

    /// A table from (name, type, object id) per column and the key's positions.
    pub fn table(name: &str, columns: &[(&str, &str, u32)], key: &[usize]) -> TableSchema {
        let columns: Vec<ColumnSchema> = columns
            .iter()
            .map(|(name, type_name, oid)| ColumnSchema {
                name: name.to_string(),
                type_name: type_name.to_string(),
                type_oid: *oid,
            })
            .collect();
        let mut schema = TableSchema {
            id: TableId(1),
            name: name.into(),
            columns,
            key: key.to_vec(),
            create_sql: String::new(),
            ..TableSchema::default()
        };
        let define = |c: &ColumnSchema| {
            let collate = if c.type_oid == 25 { " COLLATE \"C\"" } else { "" };
            format!("{} {}{collate}", TableSchema::quote(&c.name), c.type_name)
        };
        let defined: Vec<String> = schema.columns.iter().map(define).collect();
        schema.create_sql = format!(
            "CREATE TABLE {} ({}, PRIMARY KEY ({}))",
            table_name(&schema),
            defined.join(", "),
            key_columns(&schema)
        );
        schema
    }

    fn pair() -> TableSchema {
        table("a\"b", &[("k1", "bigint", 20), ("v", "text", 25), ("k2", "text", 25)], &[2, 0])
    }

    #[test]
    fn the_text_of_changes() {
        assert_eq!(
            insert(&pair(), Source::Many, true),
            r#"INSERT INTO public."a""b" ("k1", "v", "k2") SELECT * FROM unnest($1, $2, $3) ON CONFLICT ("k2", "k1") DO UPDATE SET "v" = EXCLUDED."v""#
        );
        assert_eq!(
            insert(&table("t", &[("k", "bigint", 20)], &[0]), Source::One, true),
            r#"INSERT INTO public."t" ("k") VALUES ($1) ON CONFLICT ("k") DO NOTHING"#
        );
        assert_eq!(
            delete(&pair(), Source::Many),
            r#"DELETE FROM public."a""b" AS t USING unnest($1, $2) AS given(k0, k1) WHERE t."k2" = given.k0 AND t."k1" = given.k1"#
        );
        let columns = Columns::new([1]);
        assert_eq!(
            update(&pair(), &columns, Source::Many),
            r#"UPDATE public."a""b" AS t SET "v" = given.v0 FROM unnest($1, $2, $3) AS given(k0, k1, v0) WHERE t."k2" = given.k0 AND t."k1" = given.k1"#
        );
        assert_eq!(
            update(&pair(), &columns, Source::One),
            r#"UPDATE public."a""b" SET "v" = $3 WHERE ("k2", "k1") = ($1, $2)"#
        );
        assert_eq!(copy_in(&pair()), r#"COPY public."a""b" ("k1", "v", "k2") FROM STDIN (FORMAT binary)"#);
        assert_eq!(delete(&pair(), Source::One), r#"DELETE FROM public."a""b" WHERE ("k2", "k1") = ($1, $2)"#);
    }

    #[test]
    fn values_of_users_types_travel_as_text() {
        let schema = table("t", &[("k", "public.mood", 0), ("v", "json", 114)], &[0]);
        assert_eq!(
            insert(&schema, Source::One, false),
            r#"INSERT INTO public."t" ("k", "v") VALUES ($1::text::public.mood, $2)"#
        );
        assert_eq!(
            insert(&schema, Source::Many, true),
            r#"INSERT INTO public."t" ("k", "v") SELECT given.v0::public.mood, given.v1 FROM unnest($1, $2) AS given(v0, v1) ON CONFLICT ("k") DO UPDATE SET "v" = EXCLUDED."v""#
        );
        assert_eq!(delete(&schema, Source::One), r#"DELETE FROM public."t" WHERE ("k") = ($1::text::public.mood)"#);
        assert_eq!(image_columns(&schema, ""), r#""k"::text, "v""#);
        assert_eq!(
            remove(&schema),
            r#"WITH gone AS (DELETE FROM public."t" WHERE ctid = (SELECT ctid FROM public."t" WHERE "k"::text IS NOT DISTINCT FROM ($1::text::public.mood)::text AND "v"::text IS NOT DISTINCT FROM ($2)::text LIMIT 1) RETURNING 1) SELECT CASE count(*) WHEN 1 THEN 1 ELSE concat(count(*), ' of the deleted rows are here')::integer END FROM gone"#
        );
    }

    #[test]
    fn sizes_are_taken_of_columns_so_that_no_large_value_is_fetched() {
        assert_eq!(
            row_bytes(&pair()),
            r#"28 + coalesce(pg_column_size("k1"), 0) + coalesce(octet_length("v"), 0) + coalesce(octet_length("k2"), 0)"#
        );
    }

    #[test]
    fn the_text_of_intervals() {
        let schema = pair();
        let codec = schema.codec();
        let whole = codec.encode(&[KeyValue::Text("x".into()), KeyValue::Int(5)]).unwrap();
        let prefix = codec.encode_prefix(&[KeyValue::Text("y".into())]).unwrap();
        let bounds = Bounds::of(&schema, &KeyInterval::new(whole.clone(), Some(prefix))).unwrap();
        assert_eq!(where_in(&schema, bounds.shape), r#" WHERE ("k2", "k1") >= ($1, $2) AND ("k2") < ($3)"#);
        assert_eq!(where_types(&schema, bounds.shape).collect::<Vec<_>>(), [25, 20, 25]);
        let values: Vec<_> = bounds.values().collect();
        assert_eq!(values, [Some(&b"x"[..]), Some(&5i64.to_be_bytes()), Some(b"y")]);
        assert_eq!(where_in(&schema, Bounds::of(&schema, &KeyInterval::ALL).unwrap().shape), "");
        let torn = Key(whole.0.slice(..whole.0.len() - 1));
        assert!(Bounds::of(&schema, &KeyInterval::new(torn, None)).is_err());
    }
}
