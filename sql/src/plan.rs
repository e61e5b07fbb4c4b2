//! A statement bound to its table: what it does, which keys it touches, what a shard runs for it.

use super::narrow::Narrow;
use super::operand::{Bound, Operand};
use super::refuse::{key_error, missing_parameter};
use super::region::{KeyShape, Region};
use evenkeel_protocol::error::{SqlError, codes};
use evenkeel_protocol::ids::TableId;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::key::{Key, KeyError};
use evenkeel_protocol::value::Value;

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlanKind {
    /// Reads.
    Select,
    /// Adds rows (or, with ON CONFLICT DO UPDATE, changes those that exist).
    Insert,
    /// Changes rows, never their keys.
    Update,
    /// Removes rows.
    Delete,
}

/// What comes back after the columns that the user asked for: the changes that go into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capture {
    /// Nothing: the statement does not write.
    None,
    /// All columns of the table in schema order: the new image of each row inserted or updated.
    /// After those of an INSERT with ON CONFLICT DO UPDATE comes `xmax`: zero for a row that was
    /// not there before.
    Rows,
    /// The key columns in key order, then those of [`Plan::assigned`]: what an UPDATE has changed
    /// of each row. The others stay as they are, and need not be read.
    Assigned,
    /// The key columns in key order: the key of each row deleted.
    Keys,
}

/// What a captured row did to the table's number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowEffect {
    /// Not a write.
    None,
    /// Each captured row is new.
    Inserts,
    /// A captured row is new or was there before (ON CONFLICT DO UPDATE).
    Upserts,
    /// Each captured row was there before.
    Updates,
    /// Each captured row is gone.
    Deletes,
}

/// A statement's `LIMIT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitExpr {
    /// A number of rows.
    Rows(u64),
    /// A parameter, from 0.
    Parameter(usize),
}

/// How a SELECT behaves when its keys lie in several ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan {
    /// It names one key.
    Single,
    /// The ranges' results, one after the other in key order, are the result.
    RangeByRange {
        /// How many rows suffice.
        limit: Option<LimitExpr>,
    },
    /// Only a PostgreSQL that has all of its keys can answer: aggregates, other orders, DISTINCT,
    /// OFFSET.
    Whole,
}

/// The keys that a statement can read or write; it never reads or writes a row outside of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touches {
    /// No row at all.
    Nothing,
    /// These rows at most; sorted, each once.
    Keys(Vec<Key>),
    /// The rows in here; sorted, disjoint, none empty.
    Intervals(Vec<KeyInterval>),
}

/// Where a plan's keys come from.
#[derive(Debug, Clone)]
pub(super) enum Keys {
    /// It has no table.
    NoTable,
    /// Each row that is inserted has these key columns.
    Rows {
        /// Of each row.
        rows: Vec<Vec<Operand>>,
        /// What to say of each column that is null.
        nulls: Vec<SqlError>,
    },
    /// The key columns equal these.
    Point(Vec<Operand>),
    /// The condition lets these through.
    Condition(Narrow),
}

/// The SQL in pieces, so that a clip can be put in.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces {
    /// All before WHERE.
    pub head: String,
    /// Where in it the columns asked for end.
    pub columns_end: usize,
    /// The user's condition.
    pub filter: Option<String>,
    /// GROUP BY, HAVING and ORDER BY, or RETURNING.
    pub tail: String,
    /// The value of LIMIT.
    pub limit: Option<String>,
    /// The value of OFFSET.
    pub offset: Option<String>,
    /// FOR UPDATE.
    pub lock: String,
    /// The key columns as the statement can call them, and their types.
    pub key: Vec<(String, &'static str)>,
}

impl Pieces {
    pub fn assemble(&self, clips: &[String], limit: Option<&str>) -> String {
        let mut sql = self.head.clone();
        let user =
            self.filter.iter().map(|filter| if clips.is_empty() { filter.clone() } else { format!("({filter})") });
        let conditions: Vec<String> = user.chain(clips.iter().cloned()).collect();
        if !conditions.is_empty() {
            sql.push_str(" WHERE ");
            sql.push_str(&conditions.join(" AND "));
        }
        sql.push_str(&self.tail);
        for (word, value) in [(" LIMIT ", limit.or(self.limit.as_deref())), (" OFFSET ", self.offset.as_deref())] {
            if let Some(value) = value {
                sql.push_str(word);
                sql.push_str(value);
            }
        }
        sql.push_str(&self.lock);
        sql
    }
}

/// A statement bound to its table.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) kind: PlanKind,
    pub(super) table: Option<TableId>,
    pub(super) parameters: usize,
    pub(super) locks: bool,
    pub(super) sql: String,
    pub(super) pieces: Pieces,
    pub(super) returned: usize,
    pub(super) capture: Capture,
    pub(super) assigned: Vec<usize>,
    pub(super) effect: RowEffect,
    pub(super) scan: Scan,
    pub(super) descending: bool,
    pub(super) limit: Option<LimitExpr>,
    pub(super) keys: Keys,
    pub(super) shape: KeyShape,
    /// An INSERT of one row without ON CONFLICT.
    pub(super) plain_insert: bool,
}

impl Plan {
    /// What it does.
    pub fn kind(&self) -> PlanKind {
        self.kind
    }

    /// Its table; `None` for a SELECT without FROM.
    pub fn table(&self) -> Option<TableId> {
        self.table
    }

    /// How many parameters it has: the highest `$n`.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Whether it can change rows.
    pub fn writes(&self) -> bool {
        self.kind != PlanKind::Select
    }

    /// Whether it takes row locks without writing: SELECT … FOR UPDATE or FOR SHARE.
    pub fn locks(&self) -> bool {
        self.locks
    }

    /// The keys it touches with these parameters (R9).
    ///
    /// [`Touches::Nothing`] says that no row can matter, not that there is nothing to run: `SELECT
    /// count(*) … WHERE id = NULL` still answers with one row. Any shard that has the table can run
    /// it.
    ///
    /// # Errors
    ///
    /// A parameter is missing (42P02), of another type than the key it is compared with (42804,
    /// 22P02), out of its range (22003), or null where a row to insert needs a key (23502).
    pub fn touches(&self, params: &[Value]) -> Result<Touches, SqlError> {
        if params.len() < self.parameters {
            return Err(missing_parameter(params.len(), params.len()));
        }
        match &self.keys {
            Keys::NoTable => Ok(Touches::Nothing),
            Keys::Point(operands) => self.point(operands, params),
            Keys::Rows { rows, nulls } => self.inserted(rows, nulls, params),
            Keys::Condition(narrow) => Ok(match narrow.region(&self.shape, params)? {
                region if region.is_nothing() => Touches::Nothing,
                Region::Points(keys) => Touches::Keys(keys),
                Region::Intervals(intervals) => Touches::Intervals(intervals),
            }),
        }
    }

    fn point(&self, operands: &[Operand], params: &[Value]) -> Result<Touches, SqlError> {
        // Most keys have one column; a slice of one value needs no allocation.
        if let [operand] = operands {
            let Bound::Value(value) = operand.bound(params)? else { return Ok(Touches::Nothing) };
            let key = self.shape.codec.encode(std::slice::from_ref(&value)).map_err(key_error)?;
            return Ok(Touches::Keys(vec![key]));
        }
        let mut values = Vec::with_capacity(operands.len());
        for operand in operands {
            let Bound::Value(value) = operand.bound(params)? else { return Ok(Touches::Nothing) };
            values.push(value);
        }
        Ok(Touches::Keys(vec![self.shape.codec.encode(&values).map_err(key_error)?]))
    }

    fn inserted(&self, rows: &[Vec<Operand>], nulls: &[SqlError], params: &[Value]) -> Result<Touches, SqlError> {
        let mut keys = Vec::with_capacity(rows.len());
        let mut values = Vec::with_capacity(self.shape.columns());
        for row in rows {
            values.clear();
            for (column, operand) in row.iter().enumerate() {
                match operand.bound(params)? {
                    Bound::Value(value) => values.push(value),
                    Bound::Null => {
                        let null = nulls.get(column).cloned();
                        return Err(null.unwrap_or_else(|| key_error(KeyError::Null { column: column + 1 })));
                    }
                    Bound::Below | Bound::Above => {
                        let kind = self.shape.codec.types[column].sql_name();
                        return Err(SqlError::new(codes::OUT_OF_RANGE, format!("{kind} out of range")));
                    }
                }
            }
            keys.push(self.shape.codec.encode(&values).map_err(key_error)?);
        }
        if keys.len() > 1 {
            keys.sort_unstable();
            keys.dedup();
        }
        Ok(Touches::Keys(keys))
    }

    /// What the shard runs.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// For an INSERT of one row without ON CONFLICT: the same INSERT, but where PostgreSQL would
    /// find a unique constraint violated no row is inserted, and none comes back. So among other
    /// statements it cannot fail for that, which would undo them all.
    pub fn insert_if_absent_sql(&self) -> Option<String> {
        self.plain_insert.then(|| format!("{} ON CONFLICT DO NOTHING{}", self.pieces.head, self.pieces.tail))
    }

    /// How many columns the user asked for; the captured columns follow them.
    pub fn returned(&self) -> usize {
        self.returned
    }

    /// What follows the user's columns.
    pub fn capture(&self) -> Capture {
        self.capture
    }

    /// The positions of the columns that an UPDATE assigns, ascending; empty for anything else.
    pub fn assigned(&self) -> &[usize] {
        &self.assigned
    }

    /// What a captured row did to the number of rows.
    pub fn effect(&self) -> RowEffect {
        self.effect
    }

    /// How it behaves over several ranges.
    pub fn scan(&self) -> Scan {
        self.scan.clone()
    }

    /// The value of its LIMIT, in rows; `None` for no limit.
    ///
    /// # Errors
    ///
    /// The parameter is missing (42P02), negative (2201W) or not a number (42804).
    pub fn row_limit(&self, params: &[Value]) -> Result<Option<u64>, SqlError> {
        let index = match &self.limit {
            None => return Ok(None),
            Some(LimitExpr::Rows(rows)) => return Ok(Some(*rows)),
            Some(LimitExpr::Parameter(index)) => *index,
        };
        let rows = match params.get(index) {
            None => return Err(missing_parameter(index, params.len())),
            Some(Value::Null) => return Ok(None),
            Some(Value::Int(rows)) => Some(*rows),
            Some(Value::Text(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        let rows = rows.ok_or_else(|| SqlError::new(codes::DATATYPE_MISMATCH, "LIMIT is a number of rows"))?;
        u64::try_from(rows).map(Some).map_err(|_| SqlError::new("2201W", "LIMIT must not be negative"))
    }

    /// Whether a scan that can be read range by range must be read from the last range to the
    /// first.
    pub fn descending(&self) -> bool {
        self.descending
    }

    /// What the shard runs with a clip: only rows with keys from `start` on and before `end`, and
    /// at most `limit` rows. The added parameters follow the statement's own: the start's key
    /// columns, the end's key columns, the limit as `bigint`. An UPDATE or DELETE takes the clip on
    /// keys; an INSERT has none, and returns what [`Plan::sql`] does.
    pub fn clipped_sql(&self, start: bool, end: bool, limit: bool) -> String {
        let (clips, limit) = self.clips(start.then_some(">="), end, limit);
        self.pieces.assemble(&clips, limit.as_deref())
    }

    /// The same for a SELECT that is read piece by piece: in the order of its keys, whose columns
    /// follow those asked for. `behind`: only what comes behind `start`.
    pub fn piece_sql(&self, start: bool, behind: bool, end: bool, limit: bool) -> String {
        let (clips, limit) = self.clips(start.then_some(if behind { ">" } else { ">=" }), end, limit);
        let way = if self.descending { " DESC" } else { "" };
        let names = || self.pieces.key.iter().map(|(column, _)| column.as_str());
        let order: Vec<String> = names().map(|column| format!("{column}{way}")).collect();
        let mut pieces = self.pieces.clone();
        let added: String = names().map(|column| format!(", {column}")).collect();
        pieces.head.insert_str(pieces.columns_end, &added);
        // Whatever order was asked for is a part of this one: ranges could not answer one after the
        // other otherwise. One with parameters stays where it is, since PostgreSQL does not take a
        // statement that leaves one out.
        let asked = pieces.tail.contains('$').then(|| format!("{}, ", pieces.tail));
        pieces.tail = asked.unwrap_or_else(|| " ORDER BY ".into()) + &order.join(", ");
        pieces.assemble(&clips, limit.as_deref())
    }

    /// The conditions and the limit that a clip adds.
    fn clips(&self, start: Option<&str>, end: bool, limit: bool) -> (Vec<String>, Option<String>) {
        let mut next = self.parameters;
        let mut row = || {
            let values = self.pieces.key.iter().map(|(_, kind)| {
                next += 1;
                format!("${next}::{kind}")
            });
            in_row(values.collect())
        };
        let columns = in_row(self.pieces.key.iter().map(|(column, _)| column.clone()).collect());
        let mut clips = Vec::new();
        let bounds = start.into_iter().chain(end.then_some("<"));
        for operator in bounds.filter(|_| !self.pieces.key.is_empty()) {
            clips.push(format!("{columns} {operator} {}", row()));
        }
        let limit = (limit && self.kind == PlanKind::Select).then(|| {
            let added = format!("${}::bigint", next + 1);
            match &self.pieces.limit {
                // least() ignores nulls, as LIMIT does.
                Some(own) => format!("least({own}, {added})"),
                None => added,
            }
        });
        (clips, limit)
    }
}

/// One column stays a plain comparison, several make a row.
fn in_row(values: Vec<String>) -> String {
    match &values[..] {
        [single] => single.clone(),
        _ => format!("({})", values.join(", ")),
    }
}
