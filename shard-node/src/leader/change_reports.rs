//! Reports of changes by triggers, as they come in notices (R7). Pure.
//!
//! `storage::capture_triggers` makes the triggers and describes the format. A report counts only if
//! PostgreSQL says that it comes from such a trigger: a user's function can raise a notice of the
//! same code.

use crate::storage::{REPORT_CODE, ReportKind, is_report_context};
use bytes::{BufMut, Bytes, BytesMut};
use evenkeel_postgres_session::error_response;
use evenkeel_protocol::key::hex_byte;
use evenkeel_protocol::{SqlError, TableId};

/// A report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeReport {
    /// The table that was changed.
    pub table: TableId,
    /// What was reported of it.
    pub what: Reported,
    /// The change was made by a function, and not by the statement itself: it may be undone within
    /// the function, and what it reports first may have happened last.
    pub by_function: bool,
}

/// What a report says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// Rows were changed or deleted that had these keys: packed values of the key's columns.
    OldKeys(Vec<Bytes>),
    /// Rows were inserted or changed that have these keys now.
    NewKeys(Vec<Bytes>),
    /// These rows of a table without a key were deleted: packed values of all columns.
    Deleted(Vec<Bytes>),
    /// These rows were inserted into a table without a key.
    Inserted(Vec<Bytes>),
    /// The table was truncated, and its rows are in this file since.
    Truncated {
        /// The file's number.
        file: u32,
    },
}

impl ChangeReport {
    /// The report in the body of a notice; `None` if it is a notice of another kind.
    ///
    /// # Errors
    /// It is a report that makes no sense: a fault of this program.
    pub fn of_notice(body: &[u8]) -> Result<Option<ChangeReport>, SqlError> {
        let notice = error_response::parse(body);
        if notice.code != REPORT_CODE {
            return Ok(None);
        }
        let context = notice.fields.as_ref().and_then(|fields| fields.context.as_deref()).unwrap_or_default();
        let (first, others) = context.split_once('\n').unwrap_or((context, ""));
        if !is_report_context(first) {
            return Ok(None);
        }
        let malformed = || SqlError::new("XX000", "a trigger's report of changes cannot be read");
        let (table, what) = parse(&notice.message).ok_or_else(malformed)?;
        // A cascade of a foreign key is a statement within another, but none of a function's.
        let by_function =
            others.lines().any(|line| line.starts_with("PL/pgSQL function ") || line.starts_with("SQL function "));
        Ok(Some(ChangeReport { table, what, by_function }))
    }
}

fn parse(message: &str) -> Option<(TableId, Reported)> {
    let mut words = message.split(' ');
    let table = TableId(words.next()?.parse().ok()?);
    let kind = ReportKind::of(words.next()?)?;
    if kind == ReportKind::Truncated {
        return Some((table, Reported::Truncated { file: words.next()?.parse().ok()? }));
    }
    let rows = words.map(row).collect::<Option<Vec<Bytes>>>()?;
    Some((
        table,
        match kind {
            ReportKind::OldKeys => Reported::OldKeys(rows),
            ReportKind::NewKeys => Reported::NewKeys(rows),
            ReportKind::Deleted => Reported::Deleted(rows),
            ReportKind::Inserted | ReportKind::Truncated => Reported::Inserted(rows),
        },
    ))
}

/// The packed values of a record in PostgreSQL's binary format, given as hexadecimal digits: the
/// number of columns, and then for each its type and its value as it is packed.
fn row(hex: &str) -> Option<Bytes> {
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|pair| hex_byte(*pair)).collect::<Option<Vec<u8>>>()?;
    let (count, mut record) = bytes.split_first_chunk::<4>().filter(|_| rest.is_empty())?;
    let mut packed = BytesMut::with_capacity(record.len());
    for _ in 0..u32::from_be_bytes(*count) {
        let (_, value) = record.split_first_chunk::<4>()?;
        let (length, tail) = value.split_first_chunk::<4>()?;
        let bytes = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let (_, tail) = tail.split_at_checked(bytes)?;
        packed.put_slice(&value[..4 + bytes]);
        record = tail;
    }
    record.is_empty().then(|| packed.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::rows::put_value;

    fn notice(message: &str, context: &str) -> Vec<u8> {
        format!("SINFO\0VINFO\0CEVK01\0M{message}\0W{context}\0\0").into_bytes()
    }

    fn packed(values: &[Option<&[u8]>]) -> Bytes {
        let mut out = BytesMut::new();
        values.iter().for_each(|value| put_value(&mut out, *value));
        out.freeze()
    }

    const OURS: &str = "PL/pgSQL function evenkeel.capture_7() line 15 at RAISE";
    /// As PostgreSQL 15 sends it for a key ('x', 1).
    const KEY: &str = "0000000200000019000000017800000014000000080000000000000001";

    #[test]
    fn keys_and_rows_come_packed() {
        let report = |message: &str| ChangeReport::of_notice(&notice(message, OURS)).unwrap().unwrap();
        let key = packed(&[Some(b"x"), Some(&1i64.to_be_bytes())]);
        let expected = |what| ChangeReport { table: TableId(7), what, by_function: false };
        assert_eq!(report(&format!("7 o {KEY} {KEY}")), expected(Reported::OldKeys(vec![key.clone(), key])));
        let null = packed(&[None, Some(b"")]);
        let row = "0000000200000019ffffffff0000001900000000";
        assert_eq!(report(&format!("7 i {row}")), expected(Reported::Inserted(vec![null])));
        assert_eq!(report("7 t 16465"), expected(Reported::Truncated { file: 16465 }));
    }

    #[test]
    fn a_change_by_a_function_is_known_as_such() {
        let report = |context: &str| ChangeReport::of_notice(&notice("7 n", context)).unwrap();
        let by_function = |inside: &str| report(&format!("{OURS}\n{inside}")).unwrap().by_function;
        assert!(by_function(
            "SQL statement \"INSERT INTO t VALUES (1)\"\nPL/pgSQL function f() line 1 at SQL statement"
        ));
        assert!(by_function("SQL function \"g\" statement 1"));
        assert!(!by_function(
            "SQL statement \"DELETE FROM ONLY \"public\".\"c\" WHERE $1 OPERATOR(pg_catalog.=) \"t\"\""
        ));
        // Anybody can raise such a notice.
        assert_eq!(report("PL/pgSQL function inline_code_block line 1 at RAISE"), None);
        assert_eq!(report("PL/pgSQL function \"evenkeel.capture_7\"() line 1 at RAISE"), None);
        assert_eq!(report(""), None);
        assert_eq!(ChangeReport::of_notice(b"SNOTICE\0C00000\0Mhello\0\0").unwrap(), None);
    }

    #[test]
    fn a_report_that_makes_no_sense_is_an_error() {
        for message in [
            "",
            "7",
            "x o",
            "7 z",
            "7 t",
            "7 t x",
            "7 o 00",
            "7 o 0",
            "7 i 0000000100000019000000ff00",
            &format!("7 o {KEY}00"),
        ] {
            assert!(ChangeReport::of_notice(&notice(message, OURS)).is_err(), "{message}");
        }
    }
}
