//! Twitter's cache traces: `timestamp,anonymized key,key size,value size,client id,operation,TTL`.
//!
//! Times are whole seconds. Keys are strings; they are hashed to 64 bits, the same everywhere and
//! always, so neighbours in key order are *not* related as they may have been in the original. What
//! a cache does maps to what a row sees:
//!
//! | cache | row |
//! |---|---|
//! | `get`, `gets` | read |
//! | `add` | insert |
//! | `set`, `replace`, `cas`, `append`, `prepend`, `incr`, `decr` | update |
//! | `delete` | delete |

use std::time::Duration;

use super::fields::{field, shorten};
use super::record::TraceRecord;
use crate::operation::{Operation, OperationKind};
use crate::seed::{fnv1a64, mix64};

/// Whether a file's first line is a header.
pub(super) fn is_header(line: &str) -> bool {
    line.split(',').next().map(str::trim) == Some("timestamp")
}

/// The row's key for a cache key. FNV-1a leaves similar strings close together in the high bits;
/// mixing spreads them.
pub fn key_of(cache_key: &str) -> i64 {
    mix64(fnv1a64(cache_key.as_bytes())) as i64
}

/// Parses one line without its line end.
pub(super) fn parse(line: &str) -> Result<TraceRecord, String> {
    // The key is anonymised but may keep a comma of its own, so the other six fields are taken from
    // the ends.
    let (time, rest) = line.split_once(',').ok_or_else(|| wrong_fields(line))?;
    let mut ends = rest.rsplitn(6, ',');
    let mut last = || ends.next().ok_or_else(|| wrong_fields(line));
    let (ttl, op, client, value_size, key_size, key) = (last()?, last()?, last()?, last()?, last()?, last()?);
    let seconds: u64 = field("timestamp", time, "whole seconds")?;
    field::<u64>("TTL", ttl, "whole seconds")?;
    field::<u64>("client id", client, "a number")?;
    field::<u64>("key size", key_size, "a size in bytes")?;
    let value_bytes = field("value size", value_size, "a size in bytes")?;
    let kind = match op.trim() {
        "get" | "gets" => OperationKind::Read,
        "add" => OperationKind::Insert,
        "set" | "replace" | "cas" | "append" | "prepend" | "incr" | "decr" => OperationKind::Update,
        "delete" => OperationKind::Delete,
        other => {
            let expected = "get, gets, set, add, replace, cas, append, prepend, incr, decr or delete";
            return Err(format!("operation is `{}`, expected {expected}", shorten(other)));
        }
    };
    let operation = Operation { kind, key: key_of(key), value_bytes };
    Ok(TraceRecord { time: Some(Duration::from_secs(seconds)), operation })
}

fn wrong_fields(line: &str) -> String {
    let expected = "timestamp,anonymized key,key size,value size,client id,operation,TTL";
    format!("has {} fields, expected {expected}", line.split(',').count())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_is_read_and_its_key_hashed_for_ever_alike() {
        let record = parse("17,q:q:1:8WTfjZU14ee,17,213,4,get,0").unwrap();
        assert_eq!(record.time, Some(Duration::from_secs(17)));
        assert_eq!(record.operation.kind, OperationKind::Read);
        assert_eq!(record.operation.value_bytes, 213);
        assert_eq!(record.operation.key, key_of("q:q:1:8WTfjZU14ee"));
        assert_ne!(key_of("q:q:1:8WTfjZU14ee"), key_of("q:q:1:8WTfjZU14ef"));
        assert_eq!(parse("0,a,b,3,1,1,set,60").unwrap().operation.key, key_of("a,b"));
    }

    #[test]
    fn each_bad_field_is_named() {
        for (line, problem) in [
            (
                "1,k,1,1,get,0",
                "has 6 fields, expected timestamp,anonymized key,key size,value size,client id,operation,TTL",
            ),
            ("x,k,1,1,1,get,0", "timestamp is `x`, expected whole seconds"),
            ("1,k,1,-1,1,get,0", "value size is `-1`, expected a size in bytes"),
        ] {
            assert_eq!(parse(line).unwrap_err(), problem);
        }
        assert!(parse("1,k,1,1,1,flush,0").unwrap_err().starts_with("operation is `flush`, expected get, gets"));
    }
}
