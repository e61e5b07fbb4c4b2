//! The column types that a table can have: PostgreSQL's built-in scalar types, whose object ids are
//! the same on every server.

use evenkeel_protocol::error::SqlError;
use sqlparser::ast::{CharacterLength, DataType, ExactNumberInfo, TimezoneInfo};

/// A built-in type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BuiltIn {
    /// As PostgreSQL spells it in a cast.
    pub sql: String,
    /// Its object id.
    pub oid: u32,
    /// Whether it has a length or precision, so that a cast to it can change a value.
    pub limited: bool,
}

/// Which values a parameter of a type takes, as far as a key's type can be mistaken for another: a
/// parameter that is bound as one of two types with different families may not be what the other
/// reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `smallint`, `integer`, `bigint`: the number is the same or the binding fails.
    Integer,
    /// `text` and `varchar`.
    Text,
    /// Any other type, by object id.
    Other(u32),
    /// PostgreSQL decides by rules that are not repeated here.
    Unknown,
}

impl Family {
    pub fn of(oid: u32) -> Family {
        match oid {
            20 | 21 | 23 => Family::Integer,
            25 | 1043 => Family::Text,
            other => Family::Other(other),
        }
    }
}

/// The built-in type that a type in SQL stands for.
pub(super) fn built_in(data_type: &DataType) -> Result<BuiltIn, SqlError> {
    use DataType as T;
    let plain = |sql: &str, oid| Ok(BuiltIn { sql: sql.to_string(), oid, limited: false });
    match data_type {
        T::SmallInt(None) | T::Int2(None) => plain("smallint", 21),
        T::Int(None) | T::Integer(None) | T::Int4(None) => plain("integer", 23),
        T::BigInt(None) | T::Int8(None) => plain("bigint", 20),
        T::Text => plain("text", 25),
        T::Bool | T::Boolean => plain("boolean", 16),
        T::Real | T::Float4 => plain("real", 700),
        T::Float8 | T::DoublePrecision | T::Float(ExactNumberInfo::None) => plain("double precision", 701),
        T::Float(ExactNumberInfo::Precision(1..=24)) => plain("real", 700),
        T::Float(ExactNumberInfo::Precision(25..=53)) => plain("double precision", 701),
        T::Uuid => plain("uuid", 2950),
        T::Bytea => plain("bytea", 17),
        T::Date => plain("date", 1082),
        T::JSON => plain("json", 114),
        T::JSONB => plain("jsonb", 3802),
        T::Interval { fields: None, precision: None } => plain("interval", 1186),
        T::Time(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            Ok(with_precision("time", 1083, *precision))
        }
        T::Timestamp(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            Ok(with_precision("timestamp", 1114, *precision))
        }
        T::Timestamp(precision, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
            Ok(with_precision("timestamptz", 1184, *precision))
        }
        T::Varchar(length) | T::CharacterVarying(length) | T::CharVarying(length) => match length {
            None => plain("varchar", 1043),
            Some(length) => with_length("varchar", 1043, length),
        },
        T::Char(length) | T::Character(length) => match length {
            None => with_length("char", 1042, &CharacterLength::IntegerLength { length: 1, unit: None }),
            Some(length) => with_length("char", 1042, length),
        },
        T::Numeric(info) | T::Decimal(info) | T::Dec(info) => Ok(numeric(info)),
        T::Array(_) => Err(SqlError::unsupported("arrays are not supported yet as column types", "use jsonb")),
        T::Custom(name, _) if is_serial(&name.to_string()) => Err(SqlError::unsupported(
            format!("{name} is not supported yet, because it needs a sequence"),
            "use bigint or uuid and draw the numbers in the client",
        )),
        other => Err(SqlError::unsupported(
            format!("the type {} is not supported", other.to_string().to_lowercase()),
            "use one of smallint, integer, bigint, numeric, real, double precision, text, varchar, char, boolean, uuid, \
             bytea, date, time, timestamp, timestamptz, interval, json, jsonb",
        )),
    }
}

fn is_serial(name: &str) -> bool {
    ["serial", "serial2", "serial4", "serial8", "bigserial", "smallserial"].iter().any(|s| s.eq_ignore_ascii_case(name))
}

fn with_precision(sql: &str, oid: u32, precision: Option<u64>) -> BuiltIn {
    match precision {
        None => BuiltIn { sql: sql.to_string(), oid, limited: false },
        Some(digits) => BuiltIn { sql: format!("{sql}({digits})"), oid, limited: true },
    }
}

fn with_length(sql: &str, oid: u32, length: &CharacterLength) -> Result<BuiltIn, SqlError> {
    match length {
        CharacterLength::IntegerLength { length, unit: None } => {
            Ok(BuiltIn { sql: format!("{sql}({length})"), oid, limited: true })
        }
        _ => Err(SqlError::unsupported("this length is not supported", "give the length as a number of characters")),
    }
}

fn numeric(info: &ExactNumberInfo) -> BuiltIn {
    let (sql, limited) = match info {
        ExactNumberInfo::None => ("numeric".to_string(), false),
        ExactNumberInfo::Precision(p) => (format!("numeric({p})"), true),
        ExactNumberInfo::PrecisionAndScale(p, s) => (format!("numeric({p},{s})"), true),
    };
    BuiltIn { sql, oid: 1700, limited }
}
