//! The keys that a statement declares to a shard. Pure.
//!
//! Where the statement's conditions are understood, only the keys that they let through are
//! declared. Otherwise the statement declares whole tables: if several shards own them, it can read
//! them and not write to them.

use bytes::{Bytes, BytesMut};
use evenkeel_protocol::pass_through::TableUse;
use evenkeel_protocol::{Key, KeyInterval, TableSchema, Value};
use evenkeel_sql::{Plan, Touches};
use std::sync::Arc;

/// A table that a statement touches.
#[derive(Debug, Clone)]
pub struct TouchedTable {
    /// The table or sequence.
    pub table: Arc<TableSchema>,
    /// Whether rows can be written or locked.
    pub writes: bool,
}

/// A parameter as the client sent it.
#[derive(Debug, Clone, Copy)]
pub struct Parameter<'a> {
    /// Its type, as an object id.
    pub type_oid: u32,
    /// Whether it is in the binary format.
    pub binary: bool,
    /// Its value; `None` for null.
    pub value: Option<&'a [u8]>,
}

/// The tables with the keys that a statement can touch. `narrow` is its analysis, if there is one.
pub fn declared(touched: &[TouchedTable], narrow: Option<&Plan>, parameters: &[Parameter<'_>]) -> Vec<TableUse> {
    let whole = |touched: &TouchedTable| TableUse {
        table: touched.table.id,
        keys: vec![KeyInterval::ALL],
        writes: touched.writes,
    };
    if let (Some(plan), [only]) = (narrow, touched)
        && let Some(keys) = narrowed(plan, parameters)
    {
        return vec![TableUse { table: only.table.id, keys, writes: only.writes }];
    }
    touched.iter().map(whole).collect()
}

/// The keys by the statement's conditions; `None` if they do not help.
fn narrowed(plan: &Plan, parameters: &[Parameter<'_>]) -> Option<Vec<KeyInterval>> {
    let values: Vec<Value> = parameters.iter().map(value).collect::<Option<_>>()?;
    match plan.touches(&values) {
        Ok(Touches::Keys(keys)) if !keys.is_empty() => Some(keys.into_iter().map(only).collect()),
        Ok(Touches::Intervals(intervals)) if !intervals.is_empty() => Some(intervals),
        // No row, or a parameter that does not fit: PostgreSQL gives the answer.
        _ => None,
    }
}

/// The interval of one key.
pub(super) fn only(key: Key) -> KeyInterval {
    let mut end = BytesMut::from(&key.0[..]);
    end.extend_from_slice(&[0]);
    KeyInterval { start: key, end: Some(Key(end.freeze())) }
}

/// A parameter's value for the analysis; `None` if it is of a kind that cannot be compared here.
fn value(parameter: &Parameter<'_>) -> Option<Value> {
    let Some(raw) = parameter.value else { return Some(Value::Null) };
    if !parameter.binary {
        return std::str::from_utf8(raw).ok().map(|text| Value::Text(text.to_string()));
    }
    Some(match parameter.type_oid {
        16 => Value::Bool(*raw.first()? != 0),
        21 => Value::Int(i16::from_be_bytes(raw.try_into().ok()?).into()),
        23 => Value::Int(i32::from_be_bytes(raw.try_into().ok()?).into()),
        20 => Value::Int(i64::from_be_bytes(raw.try_into().ok()?)),
        25 | 1043 => Value::Text(std::str::from_utf8(raw).ok()?.to_string()),
        17 => Value::Bytes(Bytes::copy_from_slice(raw)),
        2950 => Value::Uuid(raw.try_into().ok()?),
        1184 => Value::Timestamp(i64::from_be_bytes(raw.try_into().ok()?)),
        // Never part of a key that is ordered here, and not null: any other value will do.
        _ => Value::Bool(true),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_sql::Command;

    fn table() -> Arc<TableSchema> {
        let Command::CreateTable { schema, .. } =
            evenkeel_sql::parse("CREATE TABLE t (id bigint PRIMARY KEY, v text)").unwrap()
        else {
            panic!()
        };
        Arc::new(schema)
    }

    fn keys(sql: &str, parameters: &[Parameter<'_>]) -> Vec<KeyInterval> {
        let table = table();
        let Command::Statement(parsed) = evenkeel_sql::parse(sql).unwrap() else { panic!() };
        let plan = parsed.bind(Some(&table)).unwrap();
        let touched = [TouchedTable { table, writes: true }];
        declared(&touched, Some(&plan), parameters).remove(0).keys
    }

    #[test]
    fn parameters_narrow_in_both_formats() {
        let eight = 8i64.to_be_bytes();
        let binary = Parameter { type_oid: 20, binary: true, value: Some(&eight) };
        let text = Parameter { type_oid: 20, binary: false, value: Some(b"8") };
        let sql = "UPDATE t SET v = 'x' WHERE id = $1";
        let [one] = &keys(sql, &[binary])[..] else { panic!() };
        assert_eq!(vec![one.clone()], keys(sql, &[text]));
        assert!(one.contains(&one.start) && one.end.is_some());
        let null = Parameter { value: None, ..binary };
        assert_eq!(keys(sql, &[null]), [KeyInterval::ALL]);
    }
}
