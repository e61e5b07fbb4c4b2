//! Constant expressions for the key of a new row: `39 + 3`, `45.4`, `4e1`.
//!
//! The key of a new row must be known before the row reaches PostgreSQL. This module therefore
//! computes the value that PostgreSQL would compute, and the statement carries the result, so that
//! the two cannot disagree. It computes exact values only: integers with PostgreSQL's types and
//! limits, and decimal numbers without division. The caller refuses every other expression.

use super::cast::{as_cast_to, integer_limits};
use super::syntax::{peel, string_value};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::key::KeyType;
use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator, Value as Literal};

/// Decimal digits that a number may have here; more are left alone.
const MAX_DIGITS: usize = 30;

/// A number as PostgreSQL types it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    /// `integer`, `bigint` or (after a cast) `smallint`.
    Int(i128, KeyType),
    /// `numeric`: a number of units, each ten to the power of minus the scale.
    Numeric { units: i128, scale: u32 },
}

/// The integer that PostgreSQL stores in an integer column for this expression: a decimal is
/// rounded, half away from zero. `None` if it is no constant, or one that is not computed here.
///
/// # Errors
/// What PostgreSQL says to an overflow (22003) or a division by zero (22012).
pub(super) fn assigned_integer(expr: &Expr) -> Result<Option<i128>, SqlError> {
    Ok(number(expr)?.and_then(|number| match number {
        Number::Int(value, _) => Some(value),
        Number::Numeric { units, scale } => rounded(units, scale),
    }))
}

/// The integer that a comparison with this expression is with; `None` also if it is none.
pub(super) fn compared_integer(expr: &Expr) -> Option<i128> {
    match number(expr).ok().flatten()? {
        Number::Int(value, _) => Some(value),
        Number::Numeric { units, scale } => {
            let unit = 10i128.checked_pow(scale)?;
            (units % unit == 0).then_some(units / unit)
        }
    }
}

fn number(expr: &Expr) -> Result<Option<Number>, SqlError> {
    match peel(expr) {
        Expr::Value(value) => Ok(literal(&value.value)),
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => number(expr),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match number(expr)? {
            Some(Number::Int(value, kind)) => limited(-value, kind).map(Some),
            Some(Number::Numeric { units, scale }) => Ok(Some(Number::Numeric { units: -units, scale })),
            None => Ok(None),
        },
        Expr::BinaryOp { left, op, right } => match (number(left)?, number(right)?) {
            (Some(left), Some(right)) => calculate(left, op, right),
            _ => Ok(None),
        },
        cast @ Expr::Cast { .. } => {
            let Some((inner, to)) = as_cast_to(cast)?.filter(|(_, to)| integer_limits(*to).is_some()) else {
                return Ok(None);
            };
            let value = match peel(inner) {
                Expr::Value(value) if string_value(&value.value).is_some() => {
                    string_value(&value.value).and_then(|text| text.trim().parse::<i64>().ok()).map(i128::from)
                }
                inner => assigned_integer(inner)?,
            };
            value.map(|value| limited(value, to)).transpose()
        }
        _ => Ok(None),
    }
}

fn literal(literal: &Literal) -> Option<Number> {
    let Literal::Number(text, false) = literal else { return None };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text.as_str(), 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let written = digits.len().saturating_add(exponent.unsigned_abs() as usize);
    if digits.is_empty() || written > MAX_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: i128 = digits.parse().ok()?;
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(match value {
            _ if value <= i32::MAX.into() => Number::Int(value, KeyType::Integer),
            _ if value <= i64::MAX.into() => Number::Int(value, KeyType::BigInt),
            _ => Number::Numeric { units: value, scale: 0 },
        });
    }
    let scale = fraction.len() as i32 - exponent;
    Some(match u32::try_from(scale) {
        Ok(scale) => Number::Numeric { units: value, scale },
        Err(_) => Number::Numeric { units: value.checked_mul(10i128.checked_pow(scale.unsigned_abs())?)?, scale: 0 },
    })
}

fn calculate(left: Number, op: &BinaryOperator, right: Number) -> Result<Option<Number>, SqlError> {
    if let (Number::Int(a, left), Number::Int(b, right)) = (left, right) {
        let kind = wider(left, right);
        let by_zero = || SqlError::new(codes::DIVISION_BY_ZERO, "division by zero");
        // At most 64 bits each, so nothing overflows 128.
        let value = match op {
            BinaryOperator::Plus => a + b,
            BinaryOperator::Minus => a - b,
            BinaryOperator::Multiply => a * b,
            BinaryOperator::Divide => a.checked_div(b).ok_or_else(by_zero)?,
            BinaryOperator::Modulo => a.checked_rem(b).ok_or_else(by_zero)?,
            _ => return Ok(None),
        };
        return limited(value, kind).map(Some);
    }
    let ((a, a_scale), (b, b_scale)) = (decimal(left), decimal(right));
    let scale = a_scale.max(b_scale);
    let raised = |units: i128, from: u32| units.checked_mul(10i128.checked_pow(scale - from)?);
    Ok(match op {
        BinaryOperator::Multiply => a.checked_mul(b).map(|units| Number::Numeric { units, scale: a_scale + b_scale }),
        BinaryOperator::Plus | BinaryOperator::Minus => {
            raised(a, a_scale).zip(raised(b, b_scale)).and_then(|(a, b)| {
                let units = if *op == BinaryOperator::Plus { a.checked_add(b) } else { a.checked_sub(b) };
                units.map(|units| Number::Numeric { units, scale })
            })
        }
        _ => None,
    })
}

fn decimal(number: Number) -> (i128, u32) {
    match number {
        Number::Int(value, _) => (value, 0),
        Number::Numeric { units, scale } => (units, scale),
    }
}

fn wider(left: KeyType, right: KeyType) -> KeyType {
    match (left, right) {
        (KeyType::BigInt, _) | (_, KeyType::BigInt) => KeyType::BigInt,
        (KeyType::Integer, _) | (_, KeyType::Integer) => KeyType::Integer,
        _ => KeyType::SmallInt,
    }
}

fn limited(value: i128, kind: KeyType) -> Result<Number, SqlError> {
    let fits = integer_limits(kind).is_some_and(|(least, most)| (least.into()..=most.into()).contains(&value));
    if fits {
        return Ok(Number::Int(value, kind));
    }
    Err(SqlError::new(codes::OUT_OF_RANGE, format!("{} out of range", kind.sql_name())))
}

/// Half away from zero.
fn rounded(units: i128, scale: u32) -> Option<i128> {
    let unit = 10i128.checked_pow(scale)?;
    let (whole, rest) = (units / unit, units % unit);
    Some(if rest.abs() * 2 >= unit { whole + units.signum() } else { whole })
}
