//! The part of a statement's rows that a request asks for: its clip, its limit, and for a piece the
//! rows after a key. Pure.

use super::plan_cache::BoundPlan;
use bytes::Bytes;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{PieceRequest, StatementRequest};
use evenkeel_protocol::{Failure, Key, KeyInterval, SqlError, Value};
use evenkeel_sql::Touches;
use std::sync::Arc;

/// A parameter that the shard adds to a user's.
pub enum AddedParameter {
    /// A key column, in PostgreSQL's binary format.
    Key(Bytes),
    /// A number of rows.
    Limit(Value),
}

/// The keys that a statement touches, within its clip.
pub fn touches(bound: &BoundPlan, request: &StatementRequest) -> Result<Touches, Failure> {
    let touches = bound.plan.touches(&request.params)?;
    let Some(clip) = &request.clip else { return Ok(touches) };
    Ok(match touches {
        Touches::Nothing => Touches::Nothing,
        Touches::Keys(keys) => match keys.into_iter().filter(|key| clip.contains(key)).collect::<Vec<_>>() {
            keys if keys.is_empty() => Touches::Nothing,
            keys => Touches::Keys(keys),
        },
        Touches::Intervals(intervals) => {
            let parts: Vec<KeyInterval> =
                intervals.iter().map(|i| i.intersection(clip)).filter(|part| !part.is_empty()).collect();
            if parts.is_empty() { Touches::Nothing } else { Touches::Intervals(parts) }
        }
    })
}

/// The first of the keys.
pub fn first_key(touches: &Touches) -> Option<&Key> {
    match touches {
        Touches::Nothing => None,
        Touches::Keys(keys) => keys.first(),
        Touches::Intervals(intervals) => intervals.first().map(|i| &i.start),
    }
}

/// The SQL of a read and the parameters that its clip adds.
pub fn clipped(bound: &BoundPlan, request: &StatementRequest) -> Result<(Arc<str>, Vec<AddedParameter>), Failure> {
    if bound.schema.is_none() || (request.clip.is_none() && request.limit.is_none()) {
        return Ok((bound.sql.clone(), Vec::new()));
    }
    let (start, end) = bounds(request);
    let sql = bound.clipped_sql(start.is_some(), end.is_some(), request.limit.is_some());
    Ok((sql, added(bound, request, start, end)?))
}

/// The statement of a piece. Its clip is narrowed to the rows after the last received row.
pub struct Narrowed {
    /// The statement.
    pub request: StatementRequest,
    /// Whether the clip's first key belongs to that row and is excluded.
    pub behind: bool,
}

impl Narrowed {
    /// The statement of a SELECT that reads in ascending or descending key order.
    pub fn new(piece: PieceRequest, descending: bool) -> Narrowed {
        let PieceRequest { statement: mut request, after } = piece;
        let Some(after) = after else { return Narrowed { request, behind: false } };
        let mut clip = request.clip.take().unwrap_or(KeyInterval::ALL);
        let mut behind = false;
        if descending {
            clip = clip.intersection(&KeyInterval::new(Key::MIN, Some(after)));
        } else if clip.start <= after {
            clip.start = after;
            behind = true;
        }
        request.clip = Some(clip);
        Narrowed { request, behind }
    }

    /// The SQL of the piece and the parameters that are added.
    pub fn clipped(&self, bound: &BoundPlan) -> Result<(Arc<str>, Vec<AddedParameter>), Failure> {
        let (start, end) = bounds(&self.request);
        let sql = bound.piece_sql(start.is_some(), self.behind, end.is_some(), self.request.limit.is_some());
        Ok((sql, added(bound, &self.request, start, end)?))
    }
}

/// The bounds of a clip, if it has them.
fn bounds(request: &StatementRequest) -> (Option<&Key>, Option<&Key>) {
    let clip = request.clip.as_ref();
    (clip.map(|clip| &clip.start).filter(|start| **start != Key::MIN), clip.and_then(|clip| clip.end.as_ref()))
}

fn added(
    bound: &BoundPlan,
    request: &StatementRequest,
    start: Option<&Key>,
    end: Option<&Key>,
) -> Result<Vec<AddedParameter>, Failure> {
    let mut added = Vec::new();
    for bound_key in [start, end].into_iter().flatten() {
        let values = bound
            .codec
            .decode(bound_key)
            .map_err(|_| SqlError::new(codes::INTERNAL, "a clip does not lie at a whole key of the table"))?;
        let types = bound.schema.as_ref().map(|schema| schema.key_types()).unwrap_or_default();
        added.extend(values.iter().zip(types).map(|(value, kind)| AddedParameter::Key(value.to_binary(kind))));
    }
    if let Some(limit) = request.limit {
        added.push(AddedParameter::Limit(Value::Int(limit.min(i64::MAX as u64) as i64)));
    }
    Ok(added)
}
