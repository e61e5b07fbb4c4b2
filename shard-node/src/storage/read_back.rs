//! Queries for the rows of some keys, as row images have them. Pure.

use super::StoreError;
use super::packed_keys::pack_whole_key;
use super::statements::{image_columns, table_name, typed_parameter};
use bytes::{BufMut, Bytes, BytesMut};
use evenkeel_protocol::rows::RowValues;
use evenkeel_protocol::schema::ColumnSchema;
use evenkeel_protocol::{Key, TableSchema};
use std::sync::Arc;

/// The object id of `text`.
const TEXT: u32 = 25;
/// Up to this many keys, a query for each costs less than one with arrays.
const MAX_SINGLE_KEYS: usize = 2;

/// One query. All of its parameters and columns are in the binary format.
#[derive(Debug, Clone)]
pub struct ReadBackQuery {
    /// The text.
    pub sql: Arc<str>,
    /// The parameters' types; 0 where the text says it.
    pub types: Vec<u32>,
    /// The parameters.
    pub parameters: Vec<Option<Bytes>>,
}

/// See the module.
#[derive(Debug)]
pub struct ReadBack {
    queries: Vec<ReadBackQuery>,
}

impl ReadBack {
    /// For these keys of a table. `locks`: the rows are locked.
    ///
    /// # Errors
    /// They are no keys of the table.
    pub fn of(schema: &TableSchema, keys: &[&Key], locks: bool) -> Result<ReadBack, StoreError> {
        let types = schema.key_types();
        let columns: Vec<&ColumnSchema> = schema.key_columns().collect();
        let mut packed = BytesMut::new();
        for key in keys {
            let malformed = |error| StoreError::Diverged(format!("{key:?} of table {}: {error}", schema.name));
            pack_whole_key(&types, key, &mut packed).map_err(malformed)?;
        }
        let values: Vec<Option<&[u8]>> = RowValues::new(&packed, keys.len() * columns.len()).collect();
        let locking = if locks { " FOR NO KEY UPDATE OF t" } else { "" };
        let select = format!("SELECT {} FROM {} AS t", image_columns(schema, "t."), table_name(schema));
        let name = |column: &ColumnSchema| TableSchema::quote(&column.name);
        // An array of arrays would be flattened.
        let has_arrays = columns.iter().any(|column| column.type_name.ends_with(']'));
        if keys.len() <= MAX_SINGLE_KEYS || has_arrays {
            let equal =
                columns.iter().enumerate().map(|(n, c)| format!("t.{} = {}", name(c), typed_parameter(c, n + 1)));
            let equal: Vec<String> = equal.collect();
            let sql: Arc<str> = format!("{select} WHERE {}{locking}", equal.join(" AND ")).into();
            let types: Vec<u32> = columns.iter().map(|column| sent_type(column)).collect();
            let queries = values.chunks(columns.len().max(1)).map(|key| ReadBackQuery {
                sql: sql.clone(),
                types: types.clone(),
                parameters: key.iter().map(|value| value.map(Bytes::copy_from_slice)).collect(),
            });
            return Ok(ReadBack { queries: queries.collect() });
        }
        let arrays = columns.iter().enumerate().map(|(n, column)| match column.type_oid {
            0 => format!("${}::text[]", n + 1),
            _ => format!("${}::{}[]", n + 1, column.type_name),
        });
        let given: Vec<String> = (0..columns.len()).map(|n| format!("k{n}")).collect();
        let equal = columns.iter().enumerate().map(|(n, column)| match column.type_oid {
            0 => format!("t.{} = given.k{n}::{}", name(column), column.type_name),
            _ => format!("t.{} = given.k{n}", name(column)),
        });
        let sql = format!(
            "{select} JOIN unnest({}) AS given({}) ON {}{locking}",
            arrays.collect::<Vec<_>>().join(", "),
            given.join(", "),
            equal.collect::<Vec<_>>().join(" AND ")
        );
        let parameters = columns.iter().enumerate().map(|(n, column)| {
            let values = values.iter().skip(n).step_by(columns.len().max(1)).copied();
            Some(array(sent_type(column), keys.len(), values))
        });
        let query = ReadBackQuery { sql: sql.into(), types: Vec::new(), parameters: parameters.collect() };
        Ok(ReadBack { queries: vec![query] })
    }

    /// The queries.
    pub fn queries(&self) -> &[ReadBackQuery] {
        &self.queries
    }
}

/// The type that a column's values travel as.
fn sent_type(column: &ColumnSchema) -> u32 {
    if column.type_oid == 0 { TEXT } else { column.type_oid }
}

/// An array in PostgreSQL's binary format.
fn array<'v>(element: u32, count: usize, values: impl Iterator<Item = Option<&'v [u8]>>) -> Bytes {
    let mut out = BytesMut::new();
    // One dimension; no nulls; the elements' type; the dimension's length and first index.
    out.put_i32(1);
    out.put_i32(0);
    out.put_u32(element);
    out.put_i32(count as i32);
    out.put_i32(1);
    values.for_each(|value| evenkeel_protocol::rows::put_value(&mut out, value));
    out.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::statements::tests::table;
    use super::*;
    use evenkeel_protocol::KeyValue;

    #[test]
    fn few_keys_are_read_one_by_one_and_many_as_arrays() {
        let schema = table("t", &[("a", "bigint", 20), ("m", "public.mood", 0), ("b", "text", 25)], &[2, 0]);
        let key = |n: i64| schema.codec().encode(&[KeyValue::Text("x".into()), KeyValue::Int(n)]).unwrap();
        let keys: Vec<Key> = (0..3).map(key).collect();
        let keys: Vec<&Key> = keys.iter().collect();
        let two = ReadBack::of(&schema, &keys[..2], true).unwrap();
        assert_eq!(two.queries().len(), 2);
        assert_eq!(
            &*two.queries()[0].sql,
            r#"SELECT t."a", t."m"::text, t."b" FROM public."t" AS t WHERE t."b" = $1 AND t."a" = $2 FOR NO KEY UPDATE OF t"#
        );
        assert_eq!(two.queries()[1].parameters[1], Some(Bytes::copy_from_slice(&1i64.to_be_bytes())));
        let three = ReadBack::of(&schema, &keys, false).unwrap();
        assert_eq!(
            &*three.queries()[0].sql,
            r#"SELECT t."a", t."m"::text, t."b" FROM public."t" AS t JOIN unnest($1::text[], $2::bigint[]) AS given(k0, k1) ON t."b" = given.k0 AND t."a" = given.k1"#
        );
        let texts = three.queries()[0].parameters[0].clone().unwrap();
        assert_eq!(&texts[..], b"\0\0\0\x01\0\0\0\0\0\0\0\x19\0\0\0\x03\0\0\0\x01\0\0\0\x01x\0\0\0\x01x\0\0\0\x01x");
    }

    #[test]
    fn keys_that_are_arrays_are_read_one_by_one() {
        let schema = table("t", &[("a", "integer[]", 1007)], &[0]);
        let key = Key(Bytes::from_static(b"x\0\0"));
        let keys = vec![&key; 5];
        let read = ReadBack::of(&schema, &keys, false).unwrap();
        assert_eq!((read.queries().len(), &read.queries()[0].types[..]), (5, &[1007][..]));
    }
}
