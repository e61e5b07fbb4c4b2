//! Constants that keys are compared with: literals and parameters, as a value of the key column's
//! type.
//!
//! A constant is understood only where PostgreSQL would read it as the same value. Any other
//! operand yields no constant, and its condition then narrows nothing.

use super::cast::{Cast, CastOperand, as_cast, as_literal, integer_limits, is_integer};
use super::constant::compared_integer;
use super::refuse::{key_error, missing_parameter};
use super::syntax::{parameter_index, peel, string_value};
use super::types::Family;
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::key::{KeyError, KeyType, KeyValue};
use evenkeel_protocol::value::{Value, parse_text};
use sqlparser::ast::{Expr, UnaryOperator, Value as Literal};

/// A constant beside a key column.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// Known when the statement is bound.
    Fixed(Bound),
    /// Known when it runs.
    Parameter {
        /// Which, from 0.
        index: usize,
        /// The type it is cast to; without one PostgreSQL gives it the column's.
        cast: Option<KeyType>,
        /// The key column's type.
        kind: KeyType,
        /// The key column's number, from 1, for messages.
        column: usize,
    },
}

/// A constant's value among those of a column's type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bound {
    /// Null: no comparison with it is true.
    Null,
    /// Smaller than every value of the column's type.
    Below,
    /// One of the column's type.
    Value(KeyValue),
    /// Greater than every value of the column's type.
    Above,
}

impl Operand {
    /// The parameter it depends on (from 0), and the family of types that it must have wherever it
    /// is used.
    pub fn parameter(&self) -> Option<(usize, Family)> {
        match self {
            Operand::Fixed(_) => None,
            Operand::Parameter { index, cast, kind, .. } => Some((*index, family(cast.unwrap_or(*kind)))),
        }
    }

    /// Its value with these parameters.
    pub fn bound(&self, params: &[Value]) -> Result<Bound, SqlError> {
        match self {
            Operand::Fixed(bound) => Ok(bound.clone()),
            Operand::Parameter { index, cast, kind, column } => {
                let value = params.get(*index).ok_or_else(|| missing_parameter(*index, params.len()))?;
                if *value == Value::Null {
                    return Ok(Bound::Null);
                }
                let read_as = cast.unwrap_or(*kind);
                let value = value.to_key_value(*column, read_as).map_err(key_error)?;
                // PostgreSQL binds the parameter as `read_as` and fails if it does not fit.
                if let (KeyValue::Int(n), Bound::Below | Bound::Above) = (&value, place(read_as, value.clone())) {
                    return Err(out_of_range(*n, read_as));
                }
                Ok(place(*kind, value))
            }
        }
    }
}

fn place(kind: KeyType, value: KeyValue) -> Bound {
    match (&value, integer_limits(kind)) {
        (KeyValue::Int(n), Some((least, _))) if *n < least => Bound::Below,
        (KeyValue::Int(n), Some((_, most))) if *n > most => Bound::Above,
        _ => Bound::Value(value),
    }
}

fn family(kind: KeyType) -> Family {
    Family::of(match kind {
        KeyType::SmallInt => 21,
        KeyType::Integer => 23,
        KeyType::BigInt => 20,
        KeyType::Text => 25,
        KeyType::Uuid => 2950,
        KeyType::Bytea => 17,
        KeyType::TimestampTz => 1184,
        // No family: `key_types` refuses it before.
        KeyType::Opaque => 0,
    })
}

/// The constant that `expr` is beside the key column number `column` (from 1) of type `kind`:
/// `None` if it is none, or if PostgreSQL would not read it as a value of that type.
pub(super) fn operand(expr: &Expr, column: usize, kind: KeyType) -> Result<Option<Operand>, SqlError> {
    let expr = peel(expr);
    if let Some(literal) = as_literal(expr)
        && let Some(operand) = literal_operand(literal, None, column, kind)?
    {
        return Ok(Some(operand));
    }
    if let Some(Cast { inner, to }) = as_cast(expr)? {
        let Some(to) = to.filter(|to| *to == kind || (is_integer(*to) && is_integer(kind))) else { return Ok(None) };
        if let CastOperand::Literal(literal) = inner
            && let Some(operand) = literal_operand(literal, Some(to), column, kind)?
        {
            return Ok(Some(operand));
        }
    }
    if !is_integer(kind) {
        return mismatch(expr, column, kind);
    }
    Ok(integer(expr)?.or_else(|| compared_integer(expr)).map(|n| integer_operand(n, kind)))
}

/// An integer that was computed, as a value of an integer column.
pub(super) fn integer_operand(n: i128, kind: KeyType) -> Operand {
    let beyond = if n < 0 { Bound::Below } else { Bound::Above };
    Operand::Fixed(i64::try_from(n).map_or(beyond, |n| place(kind, KeyValue::Int(n))))
}

/// A parameter, null or text, with the type it is cast to; `None` for other literals.
fn literal_operand(
    literal: &Literal,
    cast: Option<KeyType>,
    column: usize,
    kind: KeyType,
) -> Result<Option<Operand>, SqlError> {
    Ok(match literal {
        Literal::Placeholder(name) => Some(Operand::Parameter { index: parameter_index(name)?, cast, kind, column }),
        Literal::Null => Some(Operand::Fixed(Bound::Null)),
        literal => match string_value(literal) {
            Some(text) => Some(Operand::Fixed(place(kind, text_value(text, cast.unwrap_or(kind), column)?))),
            None => None,
        },
    })
}

/// A number beside a key that is none: PostgreSQL has no such comparison.
fn mismatch(expr: &Expr, column: usize, kind: KeyType) -> Result<Option<Operand>, SqlError> {
    match expr {
        Expr::Value(value) if matches!(value.value, Literal::Number(..) | Literal::Boolean(_)) => Err(SqlError::new(
            codes::DATATYPE_MISMATCH,
            format!("key column {column} is {}, not a number", kind.sql_name()),
        )
        .hint("put the value in single quotes, or pass it as a parameter")),
        _ => Ok(None),
    }
}

/// An integer constant: digits, signs, and casts to integer types.
fn integer(expr: &Expr) -> Result<Option<i128>, SqlError> {
    match peel(expr) {
        Expr::Value(value) => Ok(digits(&value.value)),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Ok(integer(expr)?.map(|n| -n)),
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => integer(expr),
        cast @ Expr::Cast { .. } => {
            let Some(Cast { inner, to: Some(to) }) = as_cast(cast)? else { return Ok(None) };
            let Some((least, most)) = integer_limits(to) else { return Ok(None) };
            let value = match inner {
                CastOperand::Literal(literal) => digits(literal),
                CastOperand::Other(expr) => integer(expr)?,
            };
            // A number that does not fit is PostgreSQL's to refuse.
            Ok(value.filter(|n| (i128::from(least)..=i128::from(most)).contains(n)))
        }
        _ => Ok(None),
    }
}

/// Numbers with a point or an exponent are numeric, and left alone; so are integers beyond 64 bits,
/// but those compare alike.
fn digits(literal: &Literal) -> Option<i128> {
    match literal {
        Literal::Number(digits, false) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    }
}

/// A string literal read as `kind`.
fn text_value(text: &str, kind: KeyType, column: usize) -> Result<KeyValue, SqlError> {
    match parse_text(kind, text) {
        Some(KeyValue::Int(n)) => match place(kind, KeyValue::Int(n)) {
            Bound::Value(value) => Ok(value),
            _ => Err(out_of_range(n, kind)),
        },
        Some(value) => Ok(value),
        None if is_integer(kind) && is_long_integer(text) => Err(SqlError::new(
            codes::OUT_OF_RANGE,
            format!("value {:?} is out of range for type {}", shortened(text), kind.sql_name()),
        )),
        None => Err(key_error(KeyError::WrongType {
            column,
            expected: kind.sql_name(),
            found: format!("the text {:?}", shortened(text)),
        })),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Whether it is an integer, of more digits than any type has.
fn is_long_integer(text: &str) -> bool {
    let digits = text.trim().trim_start_matches(['+', '-']);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn out_of_range(value: i64, kind: KeyType) -> SqlError {
    SqlError::new(codes::OUT_OF_RANGE, format!("value {value} is out of range for type {}", kind.sql_name()))
}
