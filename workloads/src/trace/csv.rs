//! Evenkeel's trace format: `time_us,op,key[,value_bytes]`, with an optional header line of those
//! names.
//!
//! `time_us` is in microseconds from any origin and may be empty, which leaves the pace to the
//! replay. `op` is one of `read`, `update`, `insert`, `delete`, `scan`. `key` is a signed 64-bit
//! integer. `value_bytes` may be missing or empty.

use std::time::Duration;

use super::fields::{field, shorten};
use super::record::{SCAN_LIMIT_ROWS, TraceRecord};
use crate::operation::{Operation, OperationKind};

/// Whether a file's first line is the header.
pub(super) fn is_header(line: &str) -> bool {
    line.trim_start_matches('\u{feff}').split(',').next().map(str::trim) == Some("time_us")
}

/// Parses one line without its line end.
pub(super) fn parse(line: &str) -> Result<TraceRecord, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let (time, op, key, value_bytes) = match fields[..] {
        [time, op, key] => (time, op, key, ""),
        [time, op, key, value_bytes] => (time, op, key, value_bytes),
        _ => return Err(format!("has {} fields, expected time_us,op,key[,value_bytes]", fields.len())),
    };
    let time = match time.trim() {
        "" => None,
        text => Some(Duration::from_micros(field("time_us", text, "microseconds, or nothing")?)),
    };
    let kind = match op.trim() {
        "read" => OperationKind::Read,
        "update" => OperationKind::Update,
        "insert" => OperationKind::Insert,
        "delete" => OperationKind::Delete,
        "scan" => OperationKind::Scan { limit_rows: SCAN_LIMIT_ROWS },
        other => return Err(format!("op is `{}`, expected read, update, insert, delete or scan", shorten(other))),
    };
    let key = field("key", key, "a signed 64-bit integer")?;
    let value_bytes = match value_bytes.trim() {
        "" => 0,
        text => field("value_bytes", text, "a size in bytes, or nothing")?,
    };
    Ok(TraceRecord { time, operation: Operation { kind, key, value_bytes } })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_fields_and_what_may_be_left_out() {
        let full = parse("1500,update,-7,300").unwrap();
        assert_eq!(full.time, Some(Duration::from_micros(1_500)));
        assert_eq!(full.operation, Operation { kind: OperationKind::Update, key: -7, value_bytes: 300 });
        let bare = parse(",read,9223372036854775807").unwrap();
        assert_eq!((bare.time, bare.operation.key, bare.operation.value_bytes), (None, i64::MAX, 0));
        assert_eq!(parse(",delete,1,").unwrap().operation.kind, OperationKind::Delete);
        assert!(is_header("time_us,op,key") && is_header("\u{feff}time_us,op,key,value_bytes"));
        assert!(!is_header(",read,1"));
    }

    #[test]
    fn each_bad_field_is_named() {
        for (line, problem) in [
            ("1,read", "has 2 fields, expected time_us,op,key[,value_bytes]"),
            ("1,read,2,3,4", "has 5 fields, expected time_us,op,key[,value_bytes]"),
            ("-1,read,2", "time_us is `-1`, expected microseconds, or nothing"),
            ("1,read,abc", "key is `abc`, expected a signed 64-bit integer"),
            ("1,read,9223372036854775808", "key is `9223372036854775808`, expected a signed 64-bit integer"),
            ("1,read,2,-3", "value_bytes is `-3`, expected a size in bytes, or nothing"),
        ] {
            assert_eq!(parse(line).unwrap_err(), problem);
        }
    }
}
