//! Values in PostgreSQL's binary format, and the errors of statements.

use bytes::Bytes;

/// Object ids of the types that tables here have.
pub(super) const BIGINT: u32 = 20;
/// `bytea`.
pub(super) const BYTEA: u32 = 17;
/// `text`.
pub(super) const TEXT: u32 = 25;
/// Array types by their elements' types.
pub(super) const ARRAYS: [(u32, u32); 3] = [(BIGINT, 1016), (TEXT, 1009), (BYTEA, 1001)];

/// Why a statement failed: SQLSTATE and message.
#[derive(Debug, Clone)]
pub(super) struct Failed(pub &'static str, pub String);

/// A value.
pub(super) type Value = Option<Bytes>;

pub(super) fn int(value: i64) -> Value {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}

pub(super) fn as_int(value: &Value) -> Result<i64, Failed> {
    let raw: Option<[u8; 8]> = value.as_ref().and_then(|raw| raw[..].try_into().ok());
    raw.map(i64::from_be_bytes).ok_or_else(|| Failed("42804", "no bigint".into()))
}

/// The elements of an array in binary format.
pub(super) fn unpack(array: Value) -> Result<Vec<Value>, Failed> {
    let malformed = || Failed("22P03", "a malformed array".into());
    let raw = array.ok_or_else(malformed)?;
    let number = |at: usize| raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_be_bytes);
    if number(0) == Some(0) {
        return Ok(Vec::new());
    }
    let count = number(12).ok_or_else(malformed)?;
    let mut at = 20;
    let mut values = Vec::with_capacity(count.max(0) as usize);
    for _ in 0..count {
        let length = number(at).ok_or_else(malformed)?;
        at += 4;
        if length < 0 {
            values.push(None);
            continue;
        }
        let end = at + length as usize;
        if end > raw.len() {
            return Err(malformed());
        }
        values.push(Some(raw.slice(at..end)));
        at = end;
    }
    Ok(values)
}
