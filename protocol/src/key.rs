//! Order-preserving ("memcomparable") encoding of primary keys.
//!
//! A row's key is the concatenation of its key columns, each encoded so that comparing two
//! encodings byte by byte gives the order that PostgreSQL gives the values (`COLLATE "C"` for
//! text). Routing, ownership, splitting and copying all compare encoded keys and never look inside;
//! only the edges (SQL, JSON) decode.
//!
//! | type | encoding |
//! |---|---|
//! | `smallint`, `integer`, `bigint` | big-endian two's complement with the sign bit flipped; 2, 4 or 8 bytes |
//! | `timestamptz` | microseconds since 2000-01-01 UTC, as a `bigint`; ±infinity are the extremes, as in PostgreSQL |
//! | `uuid` | its 16 bytes |
//! | `text`, `bytea`, others | bytes with `00` written as `00 FF`, closed by `00 00`, so that a prefix sorts before what extends it |

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest encoded key, in bytes. PostgreSQL's own limit for a B-tree entry is about a third of
/// its 8 KiB page.
pub const MAX_KEY_BYTES: usize = 2600;

/// A type a primary-key column can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// `smallint`, 16 bits.
    SmallInt,
    /// `integer`, 32 bits.
    Integer,
    /// `bigint`, 64 bits.
    BigInt,
    /// `text`, compared bytewise (`COLLATE "C"`).
    Text,
    /// `uuid`.
    Uuid,
    /// `bytea`.
    Bytea,
    /// `timestamptz`, microseconds.
    TimestampTz,
    /// Any other type, by its value in PostgreSQL's binary format (text, for a type that a user has
    /// created). Its encodings tell values apart and say nothing of their order, so that a table
    /// with such a key is one range for ever. Values that PostgreSQL takes for equal may have
    /// several encodings (`1.0` and `1.00`).
    Opaque,
}

impl KeyType {
    /// The key type of a PostgreSQL type, by its object id; `None` if such a column cannot be part
    /// of a key.
    pub fn from_oid(oid: u32) -> Option<KeyType> {
        Some(match oid {
            21 => KeyType::SmallInt,
            23 => KeyType::Integer,
            20 => KeyType::BigInt,
            25 => KeyType::Text,
            2950 => KeyType::Uuid,
            17 => KeyType::Bytea,
            1184 => KeyType::TimestampTz,
            _ => return None,
        })
    }

    /// The PostgreSQL name of the type.
    pub fn sql_name(self) -> &'static str {
        match self {
            KeyType::SmallInt => "smallint",
            KeyType::Integer => "integer",
            KeyType::BigInt => "bigint",
            KeyType::Text => "text",
            KeyType::Uuid => "uuid",
            KeyType::Bytea => "bytea",
            KeyType::TimestampTz => "timestamptz",
            KeyType::Opaque => "of another type",
        }
    }

    /// The type's fixed width in PostgreSQL's binary format, in bytes; `None` for `text` and
    /// `bytea`.
    fn width(self) -> Option<usize> {
        match self {
            KeyType::SmallInt => Some(2),
            KeyType::Integer => Some(4),
            KeyType::BigInt | KeyType::TimestampTz => Some(8),
            KeyType::Uuid => Some(16),
            KeyType::Text | KeyType::Bytea | KeyType::Opaque => None,
        }
    }
}

/// One column of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeyValue {
    /// For the three integer types.
    Int(i64),
    /// For `text`.
    Text(String),
    /// For `bytea`, and for types whose order is not known.
    Bytes(Bytes),
    /// For `uuid`.
    Uuid([u8; 16]),
    /// For `timestamptz`: microseconds since 2000-01-01 UTC.
    Timestamp(i64),
}

/// An encoded key; ordered as the rows are. The empty key sorts before every row's key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub Bytes);

impl Key {
    /// Before every row's key.
    pub const MIN: Key = Key(Bytes::new());

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Lower-case hexadecimal, as URLs and tables show keys whose types are not at hand.
    pub fn to_hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(self.0.len() * 2), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// The reverse of [`Key::to_hex`]; `None` if the text is not hexadecimal.
    pub fn from_hex(text: &str) -> Option<Key> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = pairs.iter().map(|pair| hex_byte(*pair)).collect();
        bytes.filter(|_| rest.is_empty()).map(|bytes| Key(bytes.into()))
    }
}

/// The byte that two hexadecimal digits stand for; `None` if they are none. (`from_str_radix` would
/// take a sign.)
pub fn hex_byte([high, low]: [u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.to_hex())
    }
}

/// Why a value cannot be (part of) a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The value is of another type than the key's column.
    #[error("key column {column} is {expected}, not {found}")]
    WrongType {
        /// Which column, from 1.
        column: usize,
        /// The column's type.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The number does not fit the column's type.
    #[error("key column {column}: {value} is out of range for {expected}")]
    OutOfRange {
        /// Which column, from 1.
        column: usize,
        /// The column's type.
        expected: &'static str,
        /// The value.
        value: i64,
    },
    /// Fewer or more values than the key has columns.
    #[error("the key has {expected} column(s), {found} given")]
    WrongCount {
        /// Columns of the key.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A key column is null.
    #[error("key column {column} is null")]
    Null {
        /// Which column, from 1.
        column: usize,
    },
    /// Longer than [`MAX_KEY_BYTES`].
    #[error("the key is {found} bytes long; at most {MAX_KEY_BYTES} are possible")]
    TooLong {
        /// Its encoded length in bytes.
        found: usize,
    },
    /// The bytes are not an encoding of these column types.
    #[error("not an encoded key of this table")]
    Malformed,
}

/// Encodes and decodes the keys of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyCodec {
    /// The key columns' types, in key order.
    pub types: Vec<KeyType>,
}

impl KeyCodec {
    /// A codec for keys with these column types.
    pub fn new(types: Vec<KeyType>) -> KeyCodec {
        KeyCodec { types }
    }

    /// Encodes a whole key.
    pub fn encode(&self, values: &[KeyValue]) -> Result<Key, KeyError> {
        if values.len() != self.types.len() {
            return Err(KeyError::WrongCount { expected: self.types.len(), found: values.len() });
        }
        self.encode_prefix(values)
    }

    /// Encodes the first columns of a key: the result sorts before every key that begins with them.
    pub fn encode_prefix(&self, values: &[KeyValue]) -> Result<Key, KeyError> {
        let mut out = Vec::with_capacity(16 * values.len());
        for (column, (value, kind)) in values.iter().zip(&self.types).enumerate() {
            encode_value(column + 1, *kind, value, &mut out)?;
        }
        finish(out)
    }

    /// Encodes a key from its columns in PostgreSQL's binary format, as rows carry them. `columns`
    /// yields the key columns in key order.
    pub fn encode_binary<'a>(&self, columns: impl IntoIterator<Item = Option<&'a [u8]>>) -> Result<Key, KeyError> {
        let mut out = Vec::with_capacity(16 * self.types.len());
        let mut count = 0;
        for (column, (raw, kind)) in columns.into_iter().zip(&self.types).enumerate() {
            let raw = raw.ok_or(KeyError::Null { column: column + 1 })?;
            count += 1;
            match kind.width() {
                Some(width) if raw.len() != width => return Err(KeyError::Malformed),
                Some(_) => {
                    let first = out.len();
                    out.extend_from_slice(raw);
                    if *kind != KeyType::Uuid {
                        out[first] ^= 0x80;
                    }
                }
                None => escape(raw, &mut out),
            }
        }
        if count != self.types.len() {
            return Err(KeyError::WrongCount { expected: self.types.len(), found: count });
        }
        finish(out)
    }

    /// Decodes a whole key.
    pub fn decode(&self, key: &Key) -> Result<Vec<KeyValue>, KeyError> {
        let mut rest = key.as_bytes();
        let values = self.types.iter().map(|kind| decode_value(*kind, &mut rest)).collect::<Result<_, _>>()?;
        if rest.is_empty() { Ok(values) } else { Err(KeyError::Malformed) }
    }

    /// The smallest key after `key`, so that `[key, successor)` holds `key` alone; `None` if `key`
    /// is the last possible.
    ///
    /// The last column takes its next value; a column that has none (an integer's maximum) falls
    /// back to the column before it, whose next value is followed by the smallest of the rest.
    pub fn successor(&self, key: &Key) -> Result<Option<Key>, KeyError> {
        let mut values = self.decode(key)?;
        for column in (0..values.len()).rev() {
            if let Some(next) = next_value(self.types[column], &values[column]) {
                values[column] = next;
                for (value, kind) in values.iter_mut().zip(&self.types).skip(column + 1) {
                    *value = least_value(*kind);
                }
                return self.encode(&values).map(Some);
            }
        }
        Ok(None)
    }
}

impl KeyValue {
    /// The value in PostgreSQL's binary format for a column of `kind`.
    pub fn to_binary(&self, kind: KeyType) -> Bytes {
        match (self, kind) {
            (KeyValue::Int(v), KeyType::SmallInt) => Bytes::copy_from_slice(&(*v as i16).to_be_bytes()),
            (KeyValue::Int(v), KeyType::Integer) => Bytes::copy_from_slice(&(*v as i32).to_be_bytes()),
            (KeyValue::Int(v) | KeyValue::Timestamp(v), _) => Bytes::copy_from_slice(&v.to_be_bytes()),
            (KeyValue::Text(v), _) => Bytes::copy_from_slice(v.as_bytes()),
            (KeyValue::Bytes(v), _) => v.clone(),
            (KeyValue::Uuid(v), _) => Bytes::copy_from_slice(v),
        }
    }
}

fn finish(out: Vec<u8>) -> Result<Key, KeyError> {
    if out.len() > MAX_KEY_BYTES {
        return Err(KeyError::TooLong { found: out.len() });
    }
    Ok(Key(out.into()))
}

fn escape(raw: &[u8], out: &mut Vec<u8>) {
    for &byte in raw {
        out.push(byte);
        if byte == 0 {
            out.push(0xFF);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn encode_value(column: usize, kind: KeyType, value: &KeyValue, out: &mut Vec<u8>) -> Result<(), KeyError> {
    let out_of_range = |value| KeyError::OutOfRange { column, expected: kind.sql_name(), value };
    match (kind, value) {
        (KeyType::SmallInt, KeyValue::Int(v)) => {
            let v = i16::try_from(*v).map_err(|_| out_of_range(*v))?;
            out.extend_from_slice(&((v as u16) ^ (1 << 15)).to_be_bytes());
        }
        (KeyType::Integer, KeyValue::Int(v)) => {
            let v = i32::try_from(*v).map_err(|_| out_of_range(*v))?;
            out.extend_from_slice(&((v as u32) ^ (1 << 31)).to_be_bytes());
        }
        (KeyType::BigInt, KeyValue::Int(v)) | (KeyType::TimestampTz, KeyValue::Timestamp(v)) => {
            out.extend_from_slice(&((*v as u64) ^ (1 << 63)).to_be_bytes());
        }
        (KeyType::Text, KeyValue::Text(v)) => escape(v.as_bytes(), out),
        (KeyType::Bytea | KeyType::Opaque, KeyValue::Bytes(v)) => escape(v, out),
        (KeyType::Uuid, KeyValue::Uuid(v)) => out.extend_from_slice(v),
        (_, other) => {
            let found = format!("{other:?}");
            return Err(KeyError::WrongType { column, expected: kind.sql_name(), found });
        }
    }
    Ok(())
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], KeyError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(KeyError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

fn decode_value(kind: KeyType, rest: &mut &[u8]) -> Result<KeyValue, KeyError> {
    Ok(match kind {
        KeyType::SmallInt => KeyValue::Int(i64::from((u16::from_be_bytes(take(rest)?) ^ (1 << 15)) as i16)),
        KeyType::Integer => KeyValue::Int(i64::from((u32::from_be_bytes(take(rest)?) ^ (1 << 31)) as i32)),
        KeyType::BigInt => KeyValue::Int((u64::from_be_bytes(take(rest)?) ^ (1 << 63)) as i64),
        KeyType::TimestampTz => KeyValue::Timestamp((u64::from_be_bytes(take(rest)?) ^ (1 << 63)) as i64),
        KeyType::Uuid => KeyValue::Uuid(take(rest)?),
        KeyType::Text => KeyValue::Text(String::from_utf8(unescape(rest)?).map_err(|_| KeyError::Malformed)?),
        KeyType::Bytea | KeyType::Opaque => KeyValue::Bytes(unescape(rest)?.into()),
    })
}

fn unescape(rest: &mut &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut out = Vec::new();
    loop {
        match *rest {
            [0, 0, tail @ ..] => {
                *rest = tail;
                return Ok(out);
            }
            [0, 0xFF, tail @ ..] => {
                out.push(0);
                *rest = tail;
            }
            [0, ..] | [] => return Err(KeyError::Malformed),
            [byte, tail @ ..] => {
                out.push(*byte);
                *rest = tail;
            }
        }
    }
}

fn next_value(kind: KeyType, value: &KeyValue) -> Option<KeyValue> {
    match value {
        KeyValue::Int(v) => {
            let max = match kind {
                KeyType::SmallInt => i64::from(i16::MAX),
                KeyType::Integer => i64::from(i32::MAX),
                _ => i64::MAX,
            };
            (*v < max).then(|| KeyValue::Int(v + 1))
        }
        KeyValue::Timestamp(v) => v.checked_add(1).map(KeyValue::Timestamp),
        // PostgreSQL's text holds no NUL, so nothing lies between a text and itself followed by
        // U+0001.
        KeyValue::Text(v) => Some(KeyValue::Text(format!("{v}\u{1}"))),
        KeyValue::Bytes(v) => {
            let mut next = v.to_vec();
            next.push(0);
            Some(KeyValue::Bytes(next.into()))
        }
        KeyValue::Uuid(v) => u128::from_be_bytes(*v).checked_add(1).map(|n| KeyValue::Uuid(n.to_be_bytes())),
    }
}

/// The smallest value of a type.
pub fn least_value(kind: KeyType) -> KeyValue {
    match kind {
        KeyType::SmallInt => KeyValue::Int(i64::from(i16::MIN)),
        KeyType::Integer => KeyValue::Int(i64::from(i32::MIN)),
        KeyType::BigInt => KeyValue::Int(i64::MIN),
        KeyType::Text => KeyValue::Text(String::new()),
        KeyType::Uuid => KeyValue::Uuid([0; 16]),
        KeyType::Bytea | KeyType::Opaque => KeyValue::Bytes(Bytes::new()),
        KeyType::TimestampTz => KeyValue::Timestamp(i64::MIN),
    }
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
