//! Statement parameters, and key values as JSON and as text.
//!
//! A [`Value`] says what the client has, not what the column is: `Int` serves every integer column, `Text` serves any type
//! by PostgreSQL's own input syntax. What it becomes is decided where the type is known.

use crate::key::{Key, KeyCodec, KeyError, KeyType, KeyValue};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A statement's parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// SQL null.
    Null,
    /// `boolean`.
    Bool(bool),
    /// Any integer type, range-checked against the parameter's.
    Int(i64),
    /// `real` or `double precision`.
    Float(f64),
    /// `text`, or the input syntax of any other type.
    Text(String),
    /// `bytea`.
    Bytes(Bytes),
    /// `uuid`.
    Uuid([u8; 16]),
    /// `timestamptz`: microseconds since 2000-01-01 UTC.
    Timestamp(i64),
}

impl From<i64> for Value {
    fn from(v: i64) -> Value {
        Value::Int(v)
    }
}
impl From<i32> for Value {
    fn from(v: i32) -> Value {
        Value::Int(v.into())
    }
}
impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::Text(v.to_string())
    }
}
impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::Text(v)
    }
}
impl From<Bytes> for Value {
    fn from(v: Bytes) -> Value {
        Value::Bytes(v)
    }
}
impl From<bool> for Value {
    fn from(v: bool) -> Value {
        Value::Bool(v)
    }
}
impl From<f64> for Value {
    fn from(v: f64) -> Value {
        Value::Float(v)
    }
}

impl Value {
    /// The size it takes in a message, in bytes, about.
    pub fn size_bytes(&self) -> usize {
        match self {
            Value::Text(v) => v.len(),
            Value::Bytes(v) => v.len(),
            Value::Uuid(_) => 16,
            _ => 8,
        }
    }

    /// The value as the key column number `column` (from 1) of type `kind`.
    pub fn to_key_value(&self, column: usize, kind: KeyType) -> Result<KeyValue, KeyError> {
        let wrong = || KeyError::WrongType { column, expected: kind.sql_name(), found: self.describe() };
        Ok(match (kind, self) {
            (_, Value::Null) => return Err(KeyError::Null { column }),
            (KeyType::SmallInt | KeyType::Integer | KeyType::BigInt, Value::Int(v)) => KeyValue::Int(*v),
            (KeyType::TimestampTz, Value::Timestamp(v)) => KeyValue::Timestamp(*v),
            (KeyType::Uuid, Value::Uuid(v)) => KeyValue::Uuid(*v),
            (KeyType::Bytea, Value::Bytes(v)) => KeyValue::Bytes(v.clone()),
            (_, Value::Text(text)) => parse_text(kind, text).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        })
    }

    fn describe(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(v) => format!("the boolean {v}"),
            Value::Int(v) => format!("the integer {v}"),
            Value::Float(v) => format!("the number {v}"),
            Value::Text(v) => format!("the text {:?}", v.chars().take(40).collect::<String>()),
            Value::Bytes(v) => format!("{} bytes", v.len()),
            Value::Uuid(_) => "a uuid".into(),
            Value::Timestamp(_) => "a timestamp".into(),
        }
    }
}

/// Reads a key value in PostgreSQL's input syntax, as far as that is the same for every session setting: `bytea` as `\x…`,
/// timestamps as RFC 3339 with a zone. `None` if it is none.
pub fn parse_text(kind: KeyType, text: &str) -> Option<KeyValue> {
    match kind {
        KeyType::Text => (!text.contains('\0')).then(|| KeyValue::Text(text.to_string())),
        KeyType::SmallInt | KeyType::Integer | KeyType::BigInt => text.trim().parse().ok().map(KeyValue::Int),
        KeyType::Uuid => uuid::Uuid::try_parse(text).ok().map(|u| KeyValue::Uuid(*u.as_bytes())),
        KeyType::Bytea => Key::from_hex(text.strip_prefix("\\x")?).map(|k| KeyValue::Bytes(k.0)),
        KeyType::TimestampTz => parse_timestamp(text).map(KeyValue::Timestamp),
    }
}

/// A key from the JSON values of its columns: numbers for integers, strings for everything else (see [`parse_text`]).
pub fn key_from_json(codec: &KeyCodec, columns: &[serde_json::Value]) -> Result<Key, KeyError> {
    if columns.len() != codec.types.len() {
        return Err(KeyError::WrongCount { expected: codec.types.len(), found: columns.len() });
    }
    let values = columns.iter().zip(&codec.types).enumerate().map(|(i, (json, kind))| {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(b) => Value::Bool(*b),
            serde_json::Value::Number(n) => match n.as_i64() {
                Some(n) => Value::Int(n),
                None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            // A text stays a text: a quoted number is no integer, so that a mistake in a script is seen.
            serde_json::Value::String(s) => Value::Text(s.clone()),
            other => {
                let found = other.to_string().chars().take(40).collect();
                return Err(KeyError::WrongType { column: i + 1, expected: kind.sql_name(), found });
            }
        };
        let integer = matches!(kind, KeyType::SmallInt | KeyType::Integer | KeyType::BigInt);
        if integer && matches!(value, Value::Text(_)) {
            return Err(KeyError::WrongType { column: i + 1, expected: kind.sql_name(), found: value.describe() });
        }
        value.to_key_value(i + 1, *kind)
    });
    codec.encode(&values.collect::<Result<Vec<_>, _>>()?)
}

/// A key's columns as JSON, the reverse of [`key_from_json`].
pub fn key_to_json(codec: &KeyCodec, key: &Key) -> Result<Vec<serde_json::Value>, KeyError> {
    let json = |value: KeyValue| match value {
        KeyValue::Int(v) => v.into(),
        KeyValue::Text(v) => v.into(),
        KeyValue::Bytes(v) => format!("\\x{}", Key(v).to_hex()).into(),
        KeyValue::Uuid(v) => uuid::Uuid::from_bytes(v).to_string().into(),
        KeyValue::Timestamp(v) => format_timestamp(v).into(),
    };
    Ok(codec.decode(key)?.into_iter().map(json).collect())
}

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01 to 2000-01-01 in the proleptic Gregorian calendar.
const DAYS_TO_2000: i64 = 730_425;

/// Days since 2000-01-01 of a date of the proleptic Gregorian calendar. Years start in March here, so that the leap day is
/// the last day of a year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - DAYS_TO_2000
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_2000;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

/// Microseconds since 2000-01-01 UTC of an RFC 3339 time (`T` or a space between date and time; a zone is required), or of
/// `infinity` and `-infinity`.
pub fn parse_timestamp(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let punctuation = |at: usize, accepted: &[u8]| text.as_bytes().get(at).is_some_and(|b| accepted.contains(b));
    if !(punctuation(4, b"-")
        && punctuation(7, b"-")
        && punctuation(10, b"Tt ")
        && punctuation(13, b":")
        && punctuation(16, b":"))
    {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let days = days_from_civil(year, month, day);
    if civil_from_days(days) != (year, month, day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    let mut micros = 0;
    if punctuation(at, b".") {
        let digits = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 6 {
            return None;
        }
        micros = number(at + 1..at + 1 + digits)? * 10i64.pow(6 - digits as u32);
        at += 1 + digits;
    }
    let offset_minutes = match text.get(at..)? {
        "Z" | "z" => 0,
        zone if zone.starts_with(['+', '-']) => {
            let hours = number(at + 1..at + 3)?;
            let minutes = match &zone[3..] {
                "" => 0,
                rest if rest.len() == 3 && rest.starts_with(':') => number(at + 4..at + 6)?,
                _ => return None,
            };
            let total = hours * 60 + minutes;
            if hours > 15 || minutes > 59 {
                return None;
            }
            if zone.starts_with('-') { -total } else { total }
        }
        _ => return None,
    };
    let seconds = (hour * 60 + minute - offset_minutes) * 60 + second;
    Some(days * MICROS_PER_DAY + seconds * 1_000_000 + micros)
}

/// The reverse of [`parse_timestamp`], always in UTC with six digits of fraction.
pub fn format_timestamp(micros: i64) -> String {
    match micros {
        i64::MAX => return "infinity".into(),
        i64::MIN => return "-infinity".into(),
        _ => {}
    }
    let (days, rest) = (micros.div_euclid(MICROS_PER_DAY), micros.rem_euclid(MICROS_PER_DAY));
    let (year, month, day) = civil_from_days(days);
    let seconds = rest / 1_000_000;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        rest % 1_000_000
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn timestamps_are_those_of_postgresql() {
        // SELECT extract(epoch FROM t - timestamptz '2000-01-01 00:00Z') * 1e6
        for (text, micros) in [
            ("2000-01-01T00:00:00Z", 0),
            ("2000-02-29 12:00:00.5+00", 5_140_800_500_000),
            ("1999-12-31T23:59:59.999999Z", -1),
            ("2026-11-21T08:00:00+01:30", 848_557_800_000_000),
            ("1970-01-01T00:00:00Z", -946_684_800_000_000),
            ("infinity", i64::MAX),
        ] {
            assert_eq!(parse_timestamp(text), Some(micros), "{text}");
        }
        for text in [
            "2000-02-30T00:00:00Z",
            "2000-01-01",
            "2000-01-01T00:00:00",
            "2000-01-01T24:00:00Z",
            "é",
            "2000-01-01T00:00:00é",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
    }

    #[test]
    fn json_keys_of_the_wrong_type_are_refused() {
        let codec = KeyCodec::new(vec![KeyType::BigInt, KeyType::Text]);
        assert!(key_from_json(&codec, &[json!(1), json!("a")]).is_ok());
        for bad in [
            vec![json!("1"), json!("a")],
            vec![json!(1.5), json!("a")],
            vec![json!(1)],
            vec![json!(1), json!(2)],
            vec![json!(null), json!("a")],
            vec![json!([1]), json!("a")],
        ] {
            assert!(key_from_json(&codec, &bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn timestamps_round_trip(micros in -60_000_000_000_000_000i64..240_000_000_000_000_000) {
            prop_assert_eq!(parse_timestamp(&format_timestamp(micros)), Some(micros));
        }

        #[test]
        fn json_keys_round_trip(n in any::<i64>(), text in "[^\0]{0,8}", id in any::<[u8; 16]>(), raw in proptest::collection::vec(any::<u8>(), 0..6), t in 0i64..900_000_000_000_000_000) {
            let codec = KeyCodec::new(vec![KeyType::BigInt, KeyType::Text, KeyType::Uuid, KeyType::Bytea]);
            let key = codec.encode(&[KeyValue::Int(n), KeyValue::Text(text), KeyValue::Uuid(id), KeyValue::Bytes(raw.into())]).unwrap();
            prop_assert_eq!(key_from_json(&codec, &key_to_json(&codec, &key).unwrap()).unwrap(), key);
            let codec = KeyCodec::new(vec![KeyType::TimestampTz]);
            let key = codec.encode(&[KeyValue::Timestamp(t % 240_000_000_000_000_000)]).unwrap();
            prop_assert_eq!(key_from_json(&codec, &key_to_json(&codec, &key).unwrap()).unwrap(), key);
        }
    }
}
