//! Expressions and conditions, evaluated over rows. Pure.

use super::data::{Row, Table};
use super::statement::{Condition, Expr};
use super::values::{BIGINT, Failed, TEXT, Value, as_int, int, unpack};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The rows of joined arrays; one without columns if there are none.
pub(super) fn joined<'a>(
    given: &'a [(usize, String)],
    parameters: &[Value],
) -> Result<Vec<BTreeMap<&'a str, Value>>, Failed> {
    if given.is_empty() {
        return Ok(vec![BTreeMap::new()]);
    }
    let arrays = given.iter().map(|(n, _)| unpack(parameters[*n].clone())).collect::<Result<Vec<_>, _>>()?;
    let row = |n: usize| given.iter().zip(&arrays).map(move |((_, name), array)| (name.as_str(), array[n].clone()));
    Ok((0..arrays.first().map_or(0, Vec::len)).map(|n| row(n).collect()).collect())
}

/// The values that an expression can refer to.
#[derive(Clone, Copy, Default)]
pub(super) struct Scope<'a> {
    pub(super) row: Option<&'a Row>,
    pub(super) excluded: Option<&'a [Value]>,
    pub(super) given: Option<&'a BTreeMap<&'a str, Value>>,
    /// Whether the row was there, and so has been locked before it was written.
    pub(super) locked: bool,
    pub(super) parameters: &'a [Value],
}

pub(super) fn eval(table: &Table, expr: &Expr, scope: &Scope<'_>) -> Result<Value, Failed> {
    let column = |row: Option<&[Value]>, name: &str| match (row, table.column(name)) {
        (Some(row), Some(at)) => Ok(row[at].clone()),
        _ => Err(Failed("42703", format!("column {name:?} does not exist here"))),
    };
    Ok(match expr {
        Expr::Column(name) if name == "xmax" => Some(Bytes::copy_from_slice(&u32::from(scope.locked).to_be_bytes())),
        Expr::Column(name) => column(scope.row.map(|row| &**row), name)?,
        Expr::Excluded(name) => column(scope.excluded, name)?,
        Expr::Given(name) => scope.given.and_then(|given| given.get(name.as_str()).cloned()).flatten(),
        Expr::Parameter(n) => match scope.parameters.get(*n) {
            Some(value) => value.clone(),
            None => return Err(Failed("42P02", format!("there is no parameter ${}", n + 1))),
        },
        Expr::Int(value) => int(*value),
        Expr::Text(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        Expr::Add(a, b) => match (eval(table, a, scope)?, eval(table, b, scope)?) {
            (None, _) | (_, None) => None,
            (a, b) => int(as_int(&a)?.wrapping_add(as_int(&b)?)),
        },
        Expr::Subtract(a, b) => match (eval(table, a, scope)?, eval(table, b, scope)?) {
            (None, _) | (_, None) => None,
            (a, b) => int(as_int(&a)?.wrapping_sub(as_int(&b)?)),
        },
        Expr::RowHash => match scope.row {
            Some(row) => int(row_hash(row)),
            None => return Err(Failed("42703", "no row to be hashed".into())),
        },
        Expr::RowSize => match scope.row {
            Some(row) => int(row.iter().flatten().map(|value| value.len() as i64).sum()),
            None => return Err(Failed("42703", "no row to be measured".into())),
        },
        Expr::Size(inner) => {
            let size = eval(table, inner, scope)?.map(|raw| 1 + raw.len() as i32);
            size.map(|size| Bytes::copy_from_slice(&size.to_be_bytes()))
        }
        Expr::IsNotNull(inner) => Some(Bytes::copy_from_slice(&[u8::from(eval(table, inner, scope)?.is_some())])),
    })
}

pub(super) fn project(table: &Table, exprs: &[Expr], scope: &Scope<'_>) -> Result<Vec<Value>, Failed> {
    exprs.iter().map(|expr| eval(table, expr, scope)).collect()
}

pub(super) fn changed(
    table: &Table,
    old: &Row,
    set: &[(String, Expr)],
    scope: &Scope<'_>,
) -> Result<Vec<Value>, Failed> {
    let mut new = old.to_vec();
    for (column, expr) in set {
        let at = table.column(column).ok_or_else(|| Failed("42703", format!("column {column:?} does not exist")))?;
        new[at] = eval(table, expr, scope)?;
    }
    Ok(new)
}

pub(super) fn compare(a: &[u8], b: &[u8], oid: u32) -> std::cmp::Ordering {
    match (<[u8; 8]>::try_from(a), <[u8; 8]>::try_from(b)) {
        (Ok(a), Ok(b)) if oid == BIGINT => i64::from_be_bytes(a).cmp(&i64::from_be_bytes(b)),
        _ => a.cmp(b),
    }
}

pub(super) fn matches(table: &Table, filter: &[Condition], scope: &Scope<'_>) -> Result<bool, Failed> {
    for condition in filter {
        let mut order = std::cmp::Ordering::Equal;
        for (left, right) in condition.left.iter().zip(&condition.right) {
            let (Some(a), Some(b)) = (eval(table, left, scope)?, eval(table, right, scope)?) else { return Ok(false) };
            order = order.then_with(|| compare(&a, &b, type_of(table, left)));
        }
        let holds = match condition.operator.as_str() {
            "=" => order.is_eq(),
            "<" => order.is_lt(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            _ => order.is_ge(),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The key, if the conditions name all of its columns.
pub(super) fn single_key(table: &Table, filter: &[Condition], scope: &Scope<'_>) -> Result<Option<Vec<u8>>, Failed> {
    let mut row: Vec<Value> = vec![None; table.columns.len()];
    for condition in filter.iter().filter(|condition| condition.operator == "=") {
        for (left, right) in condition.left.iter().zip(&condition.right) {
            if let Expr::Column(name) = left
                && let Some(at) = table.column(name)
            {
                row[at] = eval(table, right, scope)?;
            }
        }
    }
    Ok(if table.key.is_empty() { None } else { table.key_of(&row) })
}

/// An expression's type.
pub(super) fn type_of(table: &Table, expr: &Expr) -> u32 {
    match expr {
        Expr::Column(name) | Expr::Excluded(name) => table.column(name).map_or(BIGINT, |at| table.columns[at].1),
        Expr::Text(_) => TEXT,
        Expr::IsNotNull(_) => 16,
        Expr::Size(_) => 23,
        _ => BIGINT,
    }
}

pub(super) fn row_hash(row: &Row) -> i64 {
    let values = row.iter().flat_map(|value| match value {
        Some(raw) => [&[1][..], &raw[..]],
        None => [&[0][..], &[]],
    });
    let hash = values
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash as i64
}

/// Names and types of the columns that these expressions make.
pub(super) fn named(table: &Table, exprs: &[Expr]) -> Vec<(String, u32)> {
    let name = |expr: &Expr| match expr {
        Expr::Column(name) => name.clone(),
        _ => "value".into(),
    };
    exprs.iter().map(|expr| (name(expr), type_of(table, expr))).collect()
}
