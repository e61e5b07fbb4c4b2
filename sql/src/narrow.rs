//! Which keys a WHERE clause can let through.
//!
//! [`Narrow`] is the part of the condition that speaks of key columns and constants; its region
//! covers every key of a row for which the condition can be true (R9). A condition that is not
//! understood becomes [`Narrow::Everything`]: with AND it narrows nothing, with OR it widens to the
//! whole table. NOT is not analysed, so "true" never depends on "false" or null.

use super::expr::Writer;
use super::operand::{Bound, Operand, operand};
use super::region::{KeyShape, Region};
use super::syntax::peel;
use evenkeel_protocol::error::SqlError;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::key::{Key, KeyType, KeyValue};
use evenkeel_protocol::schema::TableSchema;
use evenkeel_protocol::value::Value;
use sqlparser::ast::{BinaryOperator, Expr, Value as Literal};

/// The most keys of a list of points; a condition with more keys is widened to intervals over the
/// key's first columns.
const MAX_POINTS: usize = 10_000;

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn from_operator(op: &BinaryOperator) -> Option<Comparison> {
        Some(match op {
            BinaryOperator::Eq => Comparison::Equal,
            BinaryOperator::Lt => Comparison::Less,
            BinaryOperator::LtEq => Comparison::LessOrEqual,
            BinaryOperator::Gt => Comparison::Greater,
            BinaryOperator::GtEq => Comparison::GreaterOrEqual,
            _ => return None,
        })
    }

    /// The same with its sides exchanged.
    fn flipped(self) -> Comparison {
        match self {
            Comparison::Equal => Comparison::Equal,
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        }
    }

    fn or_equal(self) -> Comparison {
        match self {
            Comparison::Less => Comparison::LessOrEqual,
            Comparison::Greater => Comparison::GreaterOrEqual,
            other => other,
        }
    }

    fn strict(self) -> Comparison {
        match self {
            Comparison::LessOrEqual => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::Greater,
            other => other,
        }
    }

    fn is_upper(self) -> bool {
        matches!(self, Comparison::Less | Comparison::LessOrEqual)
    }
}

/// What a condition says about keys. Columns are counted in key order, from 0.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Narrow {
    /// Any key.
    Everything,
    /// No key.
    Nothing,
    /// All of these hold.
    All(Vec<Narrow>),
    /// One of these holds.
    Any(Vec<Narrow>),
    /// A column compares so with a constant.
    Column { column: usize, comparison: Comparison, operand: Operand },
    /// A column equals one of these.
    Among { column: usize, operands: Vec<Operand> },
    /// The first columns, as a row, compare so with these.
    Row { comparison: Comparison, operands: Vec<Operand> },
}

/// Reads conditions over one table.
pub(super) struct Reader<'a> {
    pub writer: &'a Writer<'a>,
    pub schema: &'a TableSchema,
    pub types: &'a [KeyType],
}

impl Reader<'_> {
    /// What `expr` says about keys.
    pub fn read(&self, expr: &Expr) -> Result<Narrow, SqlError> {
        match peel(expr) {
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                let mut parts = Vec::new();
                for side in [left, right] {
                    match self.read(side)? {
                        Narrow::Everything => {}
                        Narrow::All(inner) => parts.extend(inner),
                        part => parts.push(part),
                    }
                }
                Ok(if parts.is_empty() { Narrow::Everything } else { Narrow::All(parts) })
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => Ok(either(self.read(left)?, self.read(right)?)),
            Expr::BinaryOp { left, op, right } => match Comparison::from_operator(op) {
                Some(comparison) => self.compared(left, comparison, right),
                None => Ok(Narrow::Everything),
            },
            Expr::IsNotDistinctFrom(left, right) => self.compared(left, Comparison::Equal, right),
            Expr::InList { expr, list, negated: false } => self.among(expr, list),
            Expr::Between { expr, negated: false, low, high } => Ok(Narrow::All(vec![
                self.compared(expr, Comparison::GreaterOrEqual, low)?,
                self.compared(expr, Comparison::LessOrEqual, high)?,
            ])),
            Expr::IsNull(inner) if self.key_column(inner).is_some() => Ok(Narrow::Nothing),
            Expr::Value(value) if matches!(value.value, Literal::Boolean(false) | Literal::Null) => Ok(Narrow::Nothing),
            _ => Ok(Narrow::Everything),
        }
    }

    /// The key column that an expression is.
    fn key_column(&self, expr: &Expr) -> Option<usize> {
        let position = self.writer.as_column(expr)?;
        self.schema.key.iter().position(|key| *key == position)
    }

    fn operand(&self, expr: &Expr, column: usize) -> Result<Option<Operand>, SqlError> {
        operand(expr, column + 1, self.types[column])
    }

    fn compared(&self, left: &Expr, comparison: Comparison, right: &Expr) -> Result<Narrow, SqlError> {
        if let (Expr::Tuple(lefts), Expr::Tuple(rights)) = (peel(left), peel(right)) {
            let straight = self.rows(lefts, comparison, rights)?;
            let flipped = self.rows(rights, comparison.flipped(), lefts)?;
            return Ok(if straight == Narrow::Everything { flipped } else { straight });
        }
        for (column, constant, comparison) in [(left, right, comparison), (right, left, comparison.flipped())] {
            if let Some(column) = self.key_column(column)
                && let Some(operand) = self.operand(constant, column)?
            {
                return Ok(Narrow::Column { column, comparison, operand });
            }
        }
        Ok(Narrow::Everything)
    }

    fn rows(&self, columns: &[Expr], comparison: Comparison, values: &[Expr]) -> Result<Narrow, SqlError> {
        if comparison == Comparison::Equal {
            let mut parts = Vec::new();
            for (column, value) in columns.iter().zip(values) {
                parts.push(self.compared(column, Comparison::Equal, value)?);
            }
            parts.retain(|part| *part != Narrow::Everything);
            return Ok(if parts.is_empty() { Narrow::Everything } else { Narrow::All(parts) });
        }
        let mut operands = Vec::new();
        for (i, (column, value)) in columns.iter().zip(values).enumerate() {
            let in_order = i < self.types.len() && self.key_column(column) == Some(i);
            match if in_order { self.operand(value, i)? } else { None } {
                Some(operand) => operands.push(operand),
                None => break,
            }
        }
        // What follows the understood columns decides among rows that are equal in them.
        let comparison = if operands.len() < columns.len() { comparison.or_equal() } else { comparison };
        Ok(if operands.is_empty() { Narrow::Everything } else { Narrow::Row { comparison, operands } })
    }

    fn among(&self, expr: &Expr, list: &[Expr]) -> Result<Narrow, SqlError> {
        if let Expr::Tuple(columns) = peel(expr) {
            let mut parts = Vec::new();
            for item in list {
                match peel(item) {
                    Expr::Tuple(values) => parts.push(self.rows(columns, Comparison::Equal, values)?),
                    _ => return Ok(Narrow::Everything),
                }
            }
            return Ok(if parts.contains(&Narrow::Everything) { Narrow::Everything } else { Narrow::Any(parts) });
        }
        let Some(column) = self.key_column(expr) else { return Ok(Narrow::Everything) };
        let operands = list.iter().map(|item| self.operand(item, column)).collect::<Result<Option<Vec<_>>, _>>()?;
        Ok(operands.map_or(Narrow::Everything, |operands| Narrow::Among { column, operands }))
    }
}

/// One of two holds. Equalities of one column become one list, so that `a = 1 AND (b = 2 OR b = 3)`
/// names two keys.
fn either(left: Narrow, right: Narrow) -> Narrow {
    let list = |narrow: Narrow| match narrow {
        Narrow::Column { column, comparison: Comparison::Equal, operand } => Ok((column, vec![operand])),
        Narrow::Among { column, operands } => Ok((column, operands)),
        other => Err(other),
    };
    match (left, right) {
        (Narrow::Everything, _) | (_, Narrow::Everything) => Narrow::Everything,
        (Narrow::Nothing, other) | (other, Narrow::Nothing) => other,
        (left, right) => match (list(left.clone()), list(right.clone())) {
            (Ok((a, mut operands)), Ok((b, more))) if a == b => {
                operands.extend(more);
                Narrow::Among { column: a, operands }
            }
            _ => {
                let mut parts = Vec::new();
                for side in [left, right] {
                    match side {
                        Narrow::Any(inner) => parts.extend(inner),
                        part => parts.push(part),
                    }
                }
                Narrow::Any(parts)
            }
        },
    }
}

impl Narrow {
    /// Calls `visit` with every constant.
    pub fn operands(&self, visit: &mut dyn FnMut(&Operand)) {
        match self {
            Narrow::Everything | Narrow::Nothing => {}
            Narrow::All(parts) | Narrow::Any(parts) => parts.iter().for_each(|part| part.operands(visit)),
            Narrow::Column { operand, .. } => visit(operand),
            Narrow::Among { operands, .. } | Narrow::Row { operands, .. } => operands.iter().for_each(visit),
        }
    }

    /// The conditions that all hold.
    fn parts(&self) -> &[Narrow] {
        match self {
            Narrow::All(parts) => parts,
            other => std::slice::from_ref(other),
        }
    }

    /// The constant that key column number `column` must equal, if there is just one.
    pub fn fixed_column(&self, column: usize) -> Option<&Operand> {
        self.parts().iter().find_map(|part| match part {
            Narrow::Column { column: c, comparison: Comparison::Equal, operand } if *c == column => Some(operand),
            Narrow::Among { column: c, operands } if *c == column && operands.len() == 1 => operands.first(),
            _ => None,
        })
    }

    /// The keys it lets through.
    pub fn region(&self, shape: &KeyShape, params: &[Value]) -> Result<Region, SqlError> {
        match self {
            Narrow::Everything => Ok(Region::everything()),
            Narrow::Nothing => Ok(Region::NOTHING),
            Narrow::Row { comparison, operands } => row_region(*comparison, operands, shape, params),
            Narrow::Any(parts) => any_region(parts, shape, params),
            Narrow::All(_) | Narrow::Column { .. } | Narrow::Among { .. } => {
                let mut columns = Columns::new(shape.columns());
                for part in self.parts() {
                    if !columns.add(part, params)? {
                        return Ok(Region::NOTHING);
                    }
                }
                let mut region = columns.region(shape)?;
                for part in self.parts().iter().filter(|part| !is_column(part)) {
                    if region.is_nothing() {
                        break;
                    }
                    region = region.intersection(part.region(shape, params)?);
                }
                Ok(region)
            }
        }
    }
}

fn is_column(part: &Narrow) -> bool {
    matches!(part, Narrow::Column { .. } | Narrow::Among { .. })
}

/// Points and intervals are collected first: adding one at a time would sort each time.
fn any_region(parts: &[Narrow], shape: &KeyShape, params: &[Value]) -> Result<Region, SqlError> {
    let (mut points, mut intervals) = (Vec::new(), Vec::new());
    for part in parts {
        match part.region(shape, params)? {
            Region::Points(keys) => points.extend(keys),
            Region::Intervals(list) => intervals.extend(list),
        }
    }
    let points = Region::points(points);
    if intervals.is_empty() { Ok(points) } else { Region::intervals(intervals).union(points, shape) }
}

/// A row comparison: lexicographic over the first columns of the key, which is the order of keys.
fn row_region(
    comparison: Comparison,
    operands: &[Operand],
    shape: &KeyShape,
    params: &[Value],
) -> Result<Region, SqlError> {
    let mut comparison = comparison;
    let mut values = Vec::with_capacity(operands.len());
    for operand in operands {
        match operand.bound(params)? {
            Bound::Value(value) => values.push(value),
            // Null decides nothing: only rows that differ in an earlier column compare.
            Bound::Null => {
                comparison = comparison.strict();
                break;
            }
            // Every row that is equal so far is smaller, or every one is greater.
            Bound::Above => {
                comparison = if comparison.is_upper() { comparison.or_equal() } else { comparison.strict() };
                break;
            }
            Bound::Below => {
                comparison = if comparison.is_upper() { comparison.strict() } else { comparison.or_equal() };
                break;
            }
        }
    }
    if values.is_empty() {
        let all = matches!(comparison, Comparison::LessOrEqual | Comparison::GreaterOrEqual);
        return Ok(if all { Region::everything() } else { Region::NOTHING });
    }
    let interval = match comparison {
        Comparison::Less => KeyInterval::new(Key::MIN, Some(shape.first_with(&values)?)),
        Comparison::LessOrEqual => KeyInterval::new(Key::MIN, shape.first_after(&values)?),
        Comparison::GreaterOrEqual => KeyInterval::new(shape.first_with(&values)?, None),
        Comparison::Greater => match shape.first_after(&values)? {
            Some(start) => KeyInterval::new(start, None),
            None => return Ok(Region::NOTHING),
        },
        Comparison::Equal => KeyInterval::new(shape.first_with(&values)?, shape.first_after(&values)?),
    };
    Ok(Region::intervals(vec![interval]))
}

/// The values that one column can have.
#[derive(Debug, Clone, Default)]
struct Column {
    /// It is one of these; sorted.
    values: Option<Vec<KeyValue>>,
    /// It is at least this (or more, if false).
    lower: Option<(KeyValue, bool)>,
    /// It is at most this (or less, if false).
    upper: Option<(KeyValue, bool)>,
}

impl Column {
    fn admits(&self, value: &KeyValue) -> bool {
        self.lower.as_ref().is_none_or(|(low, inclusive)| value > low || (*inclusive && value == low))
            && self.upper.as_ref().is_none_or(|(high, inclusive)| value < high || (*inclusive && value == high))
    }

    fn limit(&mut self, mut values: Vec<KeyValue>) {
        values.sort_unstable();
        values.dedup();
        if let Some(old) = &self.values {
            values.retain(|value| old.binary_search(value).is_ok());
        }
        self.values = Some(values);
    }
}

/// The values that each column of the key can have.
struct Columns(Vec<Column>);

impl Columns {
    fn new(count: usize) -> Columns {
        Columns(vec![Column::default(); count])
    }

    /// Adds one condition; false if it can never hold.
    fn add(&mut self, part: &Narrow, params: &[Value]) -> Result<bool, SqlError> {
        match part {
            Narrow::Nothing => Ok(false),
            Narrow::Among { column, operands } => {
                let mut values = Vec::with_capacity(operands.len());
                for operand in operands {
                    // A null in the list, or a number outside the column's type, equals nothing.
                    if let Bound::Value(value) = operand.bound(params)? {
                        values.push(value);
                    }
                }
                self.0[*column].limit(values);
                Ok(true)
            }
            Narrow::Column { column, comparison, operand } => {
                self.compare(*column, *comparison, operand.bound(params)?)
            }
            _ => Ok(true),
        }
    }

    fn compare(&mut self, column: usize, comparison: Comparison, bound: Bound) -> Result<bool, SqlError> {
        let column = &mut self.0[column];
        let value = match bound {
            Bound::Null => return Ok(false),
            Bound::Below => return Ok(matches!(comparison, Comparison::Greater | Comparison::GreaterOrEqual)),
            Bound::Above => return Ok(comparison.is_upper()),
            Bound::Value(value) => value,
        };
        match comparison {
            Comparison::Equal => column.limit(vec![value]),
            Comparison::Less | Comparison::LessOrEqual => {
                let new = (value, comparison == Comparison::LessOrEqual);
                // Of two upper bounds the smaller one holds; at the same value the exclusive one.
                if column.upper.as_ref().is_none_or(|old| new < *old) {
                    column.upper = Some(new);
                }
            }
            Comparison::Greater | Comparison::GreaterOrEqual => {
                let new = (value, comparison == Comparison::GreaterOrEqual);
                let tighter = |old: &(KeyValue, bool)| new.0 > old.0 || (new.0 == old.0 && !new.1);
                if column.lower.as_ref().is_none_or(tighter) {
                    column.lower = Some(new);
                }
            }
        }
        Ok(true)
    }

    /// The keys whose columns are all admitted: the leading columns with known values make
    /// prefixes, the next one a range.
    fn region(mut self, shape: &KeyShape) -> Result<Region, SqlError> {
        for column in &mut self.0 {
            if let Some(values) = column.values.take() {
                column.values = Some(values.into_iter().filter(|value| column.admits(value)).collect());
            }
            if column.values.as_ref().is_some_and(Vec::is_empty) {
                return Ok(Region::NOTHING);
            }
        }
        let mut prefixes: Vec<Vec<KeyValue>> = vec![Vec::new()];
        let mut known = 0;
        for column in &self.0 {
            let Some(values) = &column.values else { break };
            if prefixes.len() * values.len() > MAX_POINTS {
                break;
            }
            prefixes = extended(&prefixes, values);
            known += 1;
        }
        if known == shape.columns() {
            let keys = prefixes.iter().map(|values| shape.first_with(values)).collect::<Result<_, _>>()?;
            return Ok(Region::points(keys));
        }
        let column = &self.0[known];
        let intervals = prefixes.iter().map(|prefix| prefix_interval(prefix, column, shape));
        Ok(Region::intervals(intervals.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()))
    }
}

fn extended(prefixes: &[Vec<KeyValue>], values: &[KeyValue]) -> Vec<Vec<KeyValue>> {
    let mut longer = Vec::with_capacity(prefixes.len() * values.len());
    for prefix in prefixes {
        for value in values {
            let mut prefix = prefix.clone();
            prefix.push(value.clone());
            longer.push(prefix);
        }
    }
    longer
}

/// The keys that begin with `prefix` and whose next column lies within its bounds. (A list of too
/// many values counts as its first and last.)
fn prefix_interval(prefix: &[KeyValue], column: &Column, shape: &KeyShape) -> Result<Option<KeyInterval>, SqlError> {
    let with = |value: &KeyValue| {
        let mut values = prefix.to_vec();
        values.push(value.clone());
        values
    };
    let (mut lower, mut upper) = (column.lower.clone(), column.upper.clone());
    if let Some([first, .., last]) = column.values.as_deref() {
        (lower, upper) = (Some((first.clone(), true)), Some((last.clone(), true)));
    }
    let start = match &lower {
        None => shape.first_with(prefix)?,
        Some((value, true)) => shape.first_with(&with(value))?,
        Some((value, false)) => match shape.first_after(&with(value))? {
            Some(start) => start,
            None => return Ok(None),
        },
    };
    let end = match &upper {
        None => shape.first_after(prefix)?,
        Some((value, true)) => shape.first_after(&with(value))?,
        Some((value, false)) => Some(shape.first_with(&with(value))?),
    };
    Ok(Some(KeyInterval::new(start, end)))
}
