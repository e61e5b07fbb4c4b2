//! Statement parameters, and key values as JSON and as text.
//!
//! A [`Value`] has the type of the client's value, not that of the column: `Int` serves every
//! integer column, `Text` serves any type by PostgreSQL's own input syntax. It is converted where
//! the column's type is known.

use crate::interval::KeyInterval;
use crate::key::{Key, KeyCodec, KeyError, KeyType, KeyValue};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The largest value of a row, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

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
    /// Its approximate size in a message, in bytes.
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

/// Reads a key value in PostgreSQL's input syntax, as far as that is the same for every session
/// setting (all of which have the time zone UTC): `bytea` as `\x…`, timestamps with the year first.
/// `None` if it is none, or is not understood here.
pub fn parse_text(kind: KeyType, text: &str) -> Option<KeyValue> {
    match kind {
        KeyType::Text => (!text.contains('\0')).then(|| KeyValue::Text(text.to_string())),
        KeyType::SmallInt | KeyType::Integer | KeyType::BigInt => text.trim().parse().ok().map(KeyValue::Int),
        KeyType::Uuid => parse_uuid(text).map(KeyValue::Uuid),
        KeyType::Bytea | KeyType::Opaque => Key::from_hex(text.strip_prefix("\\x")?).map(|k| KeyValue::Bytes(k.0)),
        KeyType::TimestampTz => parse_timestamp(text).or_else(|| parse_time_input(text)).map(KeyValue::Timestamp),
    }
}

/// A uuid as PostgreSQL takes it: 32 hexadecimal digits, a hyphen after any group of four, braces
/// around it.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let inner = text.strip_prefix('{').map_or(Some(text), |rest| rest.strip_suffix('}'))?;
    let mut digits = String::with_capacity(32);
    let mut hyphen = true;
    for c in inner.chars() {
        match c {
            '-' if !hyphen && digits.len().is_multiple_of(4) && digits.len() < 32 => hyphen = true,
            c if c.is_ascii_hexdigit() => {
                digits.push(c);
                hyphen = false;
            }
            _ => return None,
        }
    }
    u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32).map(u128::to_be_bytes)
}

/// A key from the JSON values of its columns: numbers for integers, strings for everything else
/// (see [`parse_text`]).
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
            // A text stays a text: a quoted number is no integer, so that a mistake in a script is
            // seen.
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

/// A key as people write it: the value of its column, or all of them in parentheses. Bytes that are
/// no key of these columns are shown in hexadecimal.
pub fn key_text(codec: &KeyCodec, key: &Key) -> String {
    match key_to_json(codec, key).as_deref() {
        Ok([single]) => single.to_string(),
        Ok(columns) => {
            let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
            format!("({})", columns.join(", "))
        }
        Err(_) => key.to_hex(),
    }
}

/// An interval as people write it, its bounds by [`key_text`]. The ends of the table are infinite.
pub fn interval_text(codec: &KeyCodec, interval: &KeyInterval) -> String {
    let start = if interval.start == Key::MIN { "-∞".to_string() } else { key_text(codec, &interval.start) };
    let end = interval.end.as_ref().map_or("+∞".to_string(), |end| key_text(codec, end));
    format!("[{start}, {end})")
}

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01 to 2000-01-01 in the proleptic Gregorian calendar.
const DAYS_TO_2000: i64 = 730_425;

/// Days since 2000-01-01 of a date of the proleptic Gregorian calendar. Years start in March here,
/// so that the leap day is the last day of a year.
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

/// Microseconds since 2000-01-01 UTC of an RFC 3339 time (`T` or a space between date and time; a
/// zone is required), or of `infinity` and `-infinity`.
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

/// The microseconds since 2000-01-01 UTC of further forms that PostgreSQL accepts: `epoch`, a date
/// alone, hours and minutes alone, no zone (it is UTC in every session), a space before the zone,
/// the era. Forms that depend on the day (`now`, `yesterday`), or that have the name of a month or
/// a zone, are not understood.
fn parse_time_input(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        "epoch" => return Some(days_from_civil(1970, 1, 1) * MICROS_PER_DAY),
        _ => {}
    }
    let (text, before_christ) = match text.strip_suffix("bc") {
        Some(rest) => (rest.trim_end(), true),
        None => (text.strip_suffix("ad").map_or(text.as_str(), str::trim_end), false),
    };
    let at = text.find([' ', 't']);
    let (date, time) = at.map_or((text, ""), |at| (&text[..at], text[at + 1..].trim_start()));
    if at.is_some() && time.is_empty() {
        return None;
    }
    let mut parts = date.split('-');
    let mut part = |digits: std::ops::RangeInclusive<usize>| -> Option<i64> {
        let part = parts.next().filter(|part| digits.contains(&part.len()))?;
        part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let (year, month, day) = (part(4..=6)?, part(1..=2)?, part(1..=2)?);
    if parts.next().is_some() || year == 0 {
        return None;
    }
    let year = if before_christ { 1 - year } else { year };
    let days = days_from_civil(year, month, day);
    // What PostgreSQL can store lies between these years.
    if civil_from_days(days) != (year, month, day) || !(-4712..=294_275).contains(&year) {
        return None;
    }
    let micros = if time.is_empty() { 0 } else { parse_time_of_day(time)? };
    Some(days * MICROS_PER_DAY + micros)
}

/// Microseconds since midnight UTC of `HH:MM`, `HH:MM:SS` or `HH:MM:SS.ffffff`, with or without a
/// zone.
fn parse_time_of_day(text: &str) -> Option<i64> {
    let zone_at = text.find(['z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = (text[..zone_at].trim_end(), &text[zone_at..]);
    let two = |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?;
    let (clock, fraction) = clock.split_once('.').map_or((clock, None), |(clock, fraction)| (clock, Some(fraction)));
    let mut parts = clock.split(':');
    let (hour, minute): (i64, i64) = (two(parts.next()?)?, two(parts.next()?)?);
    let second: Option<i64> = parts.next().map(|part| two(part).ok_or(())).transpose().ok()?;
    if hour > 23 || minute > 59 || second.unwrap_or(0) > 59 || parts.next().is_some() {
        return None;
    }
    let micros = match fraction {
        None => 0,
        Some(digits) if second.is_some() && (1..=6).contains(&digits.len()) => {
            let number: i64 = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
            number * 10i64.pow(6 - digits.len() as u32)
        }
        Some(_) => return None,
    };
    let offset_minutes = match zone.chars().next() {
        None => 0,
        Some('z') if zone.len() == 1 => 0,
        Some(sign @ ('+' | '-')) => {
            let (hours, minutes) = match zone[1..].split_once(':') {
                Some((hours, minutes)) => (two(hours)?, two(minutes)?),
                None if zone.len() == 5 => (two(&zone[1..3])?, two(&zone[3..5])?),
                None => (two(&zone[1..])?, 0),
            };
            if hours > 15 || minutes > 59 {
                return None;
            }
            if sign == '-' { -(hours * 60 + minutes) } else { hours * 60 + minutes }
        }
        Some(_) => return None,
    };
    Some(((hour * 60 + minute - offset_minutes) * 60 + second.unwrap_or(0)) * 1_000_000 + micros)
}

/// The reverse of [`parse_timestamp`], always in UTC with six digits of fraction, and with the era
/// before year 1. [`parse_text`] reads all of them.
pub fn format_timestamp(micros: i64) -> String {
    match micros {
        i64::MAX => return "infinity".into(),
        i64::MIN => return "-infinity".into(),
        _ => {}
    }
    let (days, rest) = (micros.div_euclid(MICROS_PER_DAY), micros.rem_euclid(MICROS_PER_DAY));
    let (year, month, day) = civil_from_days(days);
    let seconds = rest / 1_000_000;
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z{era}",
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
    fn keys_and_intervals_are_shown_as_people_write_them() {
        let codec = KeyCodec::new(vec![KeyType::BigInt, KeyType::Text]);
        let key = |n, text: &str| codec.encode(&[KeyValue::Int(n), KeyValue::Text(text.into())]).unwrap();
        assert_eq!(key_text(&codec, &key(100, "a")), r#"(100, "a")"#);
        let single = KeyCodec::new(vec![KeyType::BigInt]);
        let number = |n| single.encode(&[KeyValue::Int(n)]).unwrap();
        let interval = KeyInterval::new(Key::MIN, Some(number(10)));
        assert_eq!(
            (key_text(&single, &number(-5)), interval_text(&single, &interval)),
            ("-5".into(), "[-∞, 10)".into())
        );
        assert_eq!(interval_text(&single, &KeyInterval::new(number(10), None)), "[10, +∞)");
        assert_eq!(key_text(&single, &Key(vec![1].into())), "01", "no key of these columns");
    }

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

    /// Fails if a form that PostgreSQL accepts is refused, or read as another time. The numbers are
    /// PostgreSQL's, in a session at UTC.
    #[test]
    fn times_and_uuids_are_taken_in_the_forms_that_postgresql_takes() {
        let time = |text: &str| match parse_text(KeyType::TimestampTz, text) {
            Some(KeyValue::Timestamp(micros)) => Some(micros),
            _ => None,
        };
        for (text, same_as) in [
            ("2026-01-01 00:00+00", "2026-01-01T00:00:00Z"),
            ("2026-02-01", "2026-02-01T00:00:00Z"),
            ("2026-2-1 09:30", "2026-02-01T09:30:00Z"),
            (" 2026-02-01 09:30:05.25 +0130 ", "2026-02-01T08:00:05.25Z"),
            ("2026-02-01 09:30:05 -08:00", "2026-02-01T17:30:05Z"),
            ("2026-02-01T09:30:05", "2026-02-01T09:30:05Z"),
            ("2026-02-01 AD", "2026-02-01T00:00:00Z"),
            ("epoch", "1970-01-01T00:00:00Z"),
            ("INFINITY", "infinity"),
            ("-Infinity", "-infinity"),
        ] {
            assert_eq!(time(text), parse_timestamp(same_as), "{text}");
            assert!(time(text).is_some(), "{text}");
        }
        // SELECT extract(epoch FROM timestamptz '0044-03-15 BC' - timestamptz '2000-01-01') * 1e6
        assert_eq!(time("0044-03-15 BC"), Some(-64_464_508_800_000_000));
        for text in ["0044-03-15T12:30:00.000001Z BC", "20260-01-31T12:30:00.000000Z"] {
            assert_eq!(time(text).map(format_timestamp).as_deref(), Some(text));
        }
        for text in ["now", "yesterday", "Jan 1 2026", "2026-02-30", "2026-01-01 25:00", "0000-01-01", "é", ""] {
            assert_eq!(time(text), None, "{text}");
        }
        let uuid = |text| parse_text(KeyType::Uuid, text);
        let plain = uuid("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
        assert!(plain.is_some());
        for text in [
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
        ] {
            assert_eq!(uuid(text), plain, "{text}");
        }
        for text in [
            "urn:uuid:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99",
            "{a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0e-ebc999c0b4ef8bb6d6bb9bd380a11",
        ] {
            assert_eq!(uuid(text), None, "{text}");
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
