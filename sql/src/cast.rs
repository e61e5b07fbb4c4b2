//! Casts of constants to types of key columns, and the limits of these types.

use super::syntax::peel;
use super::types::built_in;
use evenkeel_protocol::error::SqlError;
use evenkeel_protocol::key::KeyType;
use sqlparser::ast::{CastKind, Expr, Value as Literal};

/// A cast of a constant.
pub(super) struct Cast<'a> {
    /// The expression that is cast.
    pub inner: CastOperand<'a>,
    /// `None` for a type that is not a key's, or that changes the value (`varchar(3)`,
    /// `timestamptz(0)`).
    pub to: Option<KeyType>,
}

/// The expression below a cast.
pub(super) enum CastOperand<'a> {
    Literal(&'a Literal),
    Other(&'a Expr),
}

/// Reads `expr` as a cast; `None` if it is none.
pub(super) fn as_cast(expr: &Expr) -> Result<Option<Cast<'_>>, SqlError> {
    let (inner, data_type) = match expr {
        Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, format: None } => {
            let inner = peel(expr);
            (as_literal(inner).map_or(CastOperand::Other(inner), CastOperand::Literal), data_type)
        }
        Expr::TypedString(typed) => (CastOperand::Literal(&typed.value.value), &typed.data_type),
        _ => return Ok(None),
    };
    let target = built_in(data_type)?;
    let oid = if target.oid == 1043 { 25 } else { target.oid };
    Ok(Some(Cast { inner, to: KeyType::from_oid(oid).filter(|_| !target.limited) }))
}

/// The expression that is cast, and the key's type that it is cast to.
pub(super) fn as_cast_to(expr: &Expr) -> Result<Option<(&Expr, KeyType)>, SqlError> {
    let Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr: inner, .. } = expr else { return Ok(None) };
    Ok(as_cast(expr)?.and_then(|cast| cast.to).map(|to| (&**inner, to)))
}

/// Reads `expr` as a literal; `None` if it is none.
pub(super) fn as_literal(expr: &Expr) -> Option<&Literal> {
    match expr {
        Expr::Value(value) => Some(&value.value),
        _ => None,
    }
}

/// The least and the greatest value of an integer type; `None` for other types.
pub(super) fn integer_limits(kind: KeyType) -> Option<(i64, i64)> {
    Some(match kind {
        KeyType::SmallInt => (i16::MIN.into(), i16::MAX.into()),
        KeyType::Integer => (i32::MIN.into(), i32::MAX.into()),
        KeyType::BigInt => (i64::MIN, i64::MAX),
        _ => return None,
    })
}

/// Whether `kind` is an integer type.
pub(super) fn is_integer(kind: KeyType) -> bool {
    integer_limits(kind).is_some()
}
