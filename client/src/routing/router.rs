//! The route of a statement: a pure function of the keys that it touches and of the routing table.
//! It promises:
//!
//! - A statement that is sent to one shard touches only keys of that shard, as far as the table
//!   says.
//! - The pieces of a scan are in key order, cover each touched key exactly once, and each lie
//!   within ranges of one shard.
//! - A statement that would be wrong over several shards is refused with a sentence and never sent.
//!
//! The table may be stale: the shards check every statement again (R9, invariant 2).

use super::redirect::RedirectHint;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::pass_through::TableUse;
use evenkeel_protocol::routing::{Route, RoutingTable};
use evenkeel_protocol::{Key, ShardId, SqlError, TableId};
use evenkeel_sql::{Plan, PlanKind, Scan, Touches};

/// How a statement whose keys are on several shards can be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Across {
    /// Read range by range, in key order.
    RangeByRange,
    /// Not at all, because it writes.
    Writes(PlanKind),
    /// Not at all, because it locks rows.
    Locks,
    /// Not at all, because its result depends on all of its rows together.
    Whole,
}

impl Across {
    /// How this statement can be executed.
    pub(crate) fn of(plan: &Plan) -> Across {
        if plan.writes() {
            return Across::Writes(plan.kind());
        }
        if plan.locks() {
            return Across::Locks;
        }
        match plan.scan() {
            Scan::RangeByRange { .. } => Across::RangeByRange,
            _ => Across::Whole,
        }
    }

    /// 0A000 with an alternative, if the statement cannot be executed over several shards.
    fn refusal(self, table: &str) -> Option<SqlError> {
        let (what, instead) = match self {
            Across::RangeByRange => return None,
            Across::Writes(kind) => {
                let verb = match kind {
                    PlanKind::Insert => "INSERT",
                    PlanKind::Update => "UPDATE",
                    PlanKind::Delete => "DELETE",
                    PlanKind::Select => "SELECT",
                };
                (
                    format!("this {verb} touches keys of {table} on several shards"),
                    format!(
                        "Transactions across shards are not supported yet: send one {verb} per key, or per group of \
                         keys that one shard owns."
                    ),
                )
            }
            Across::Locks => (
                format!("this SELECT would lock rows of {table} on several shards"),
                "Transactions across shards are not supported yet: lock the rows of one key at a time.".to_string(),
            ),
            Across::Whole => (
                format!("this SELECT needs all of its rows together, and those of {table} are on several shards"),
                "Leave out aggregates, GROUP BY, DISTINCT, OFFSET and any order but that of the primary key, or \
                 restrict the WHERE clause to keys that one shard owns."
                    .to_string(),
            ),
        };
        Some(SqlError::unsupported(what, instead))
    }
}

/// The route of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To one shard, unchanged.
    OneShard(ShardId),
    /// To several shards, each with its piece, in key order.
    RangeByRange(Vec<Piece>),
}

/// A piece of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The shard that owns it.
    pub shard: ShardId,
    /// Its keys.
    pub clip: KeyInterval,
}

/// Why a statement has no route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoTarget {
    /// It cannot be executed correctly.
    Refused(SqlError),
    /// The table has no route for some of its keys: fetch the table again.
    Unknown,
}

/// The route of a statement on `table`, which is `None` only for statements that touch no table.
pub(crate) fn route(
    across: Across,
    touches: &Touches,
    table: Option<TableId>,
    routes: &RoutingTable,
) -> Result<Target, NoTarget> {
    if let (Touches::Keys(keys), Some(table)) = (touches, table)
        && let [first, .., last] | [first @ last] = keys.as_slice()
    {
        // The most frequent cases, one key and one range, need no allocation. The keys are sorted.
        let route = routes.lookup(table, first).ok_or(NoTarget::Unknown)?;
        if route.interval.contains(last) {
            return Ok(Target::OneShard(route.shard));
        }
    }
    let Some(schema) = table.and_then(|table| routes.schema(table)) else {
        return any_shard(table, routes);
    };
    let pieces = pieces(touches, &KeyInterval::ALL, schema.id, routes).ok_or(NoTarget::Unknown)?;
    let Some(first) = pieces.first() else { return any_shard(table, routes) };
    if pieces.iter().all(|piece| piece.shard == first.shard) {
        return Ok(Target::OneShard(first.shard));
    }
    match across.refusal(&schema.name) {
        Some(refusal) => Err(NoTarget::Refused(refusal)),
        None => Ok(Target::RangeByRange(pieces)),
    }
}

/// The shard that owns all of these keys of all of these tables; `None` if a route is unknown, or
/// if no key is named.
///
/// # Errors
/// 0A000: they lie on several shards.
pub(crate) fn shard_of_tables(tables: &[TableUse], routes: &RoutingTable) -> Result<Option<ShardId>, SqlError> {
    let mut found: Option<(ShardId, TableId)> = None;
    for used in tables {
        let touches = Touches::Intervals(used.keys.clone());
        let Some(pieces) = pieces(&touches, &KeyInterval::ALL, used.table, routes) else { return Ok(None) };
        for piece in pieces {
            match found {
                None => found = Some((piece.shard, used.table)),
                Some((shard, _)) if shard == piece.shard => {}
                Some((_, first)) => return Err(on_several_shards(first, used.table, routes)),
            }
        }
    }
    Ok(found.map(|(shard, _)| shard))
}

fn on_several_shards(first: TableId, other: TableId, routes: &RoutingTable) -> SqlError {
    let name = |table| routes.schema(table).map_or_else(|| format!("table {}", table.0), |schema| schema.name.clone());
    let rows = match first == other {
        true => format!("rows of {}", name(first)),
        false => format!("rows of {} and {}", name(first), name(other)),
    };
    SqlError::unsupported(
        format!("this statement needs {rows} that lie on several shards"),
        "A statement can read several shards, but not yet write to them or lock rows there: name the rows of one shard by key.",
    )
}

/// The route of a statement by a redirect that the table could not merge. The statement must touch
/// a single key, since a redirect is about one range, and the table must not know the key's range
/// with the same or a later epoch.
pub(crate) fn hinted(
    hint: RedirectHint,
    touches: &Touches,
    table: Option<TableId>,
    routes: &RoutingTable,
) -> Option<ShardId> {
    let (Touches::Keys(keys), Some(table)) = (touches, table) else { return None };
    let [key] = keys.as_slice() else { return None };
    let overtaken = routes.lookup(table, key).is_some_and(|route| route.epoch >= hint.epoch);
    (!overtaken && routes.shard(hint.shard).is_some()).then_some(hint.shard)
}

/// A statement that touches no key can run on any shard with its table.
fn any_shard(table: Option<TableId>, routes: &RoutingTable) -> Result<Target, NoTarget> {
    let owner = match table {
        Some(table) => routes.overlapping(table, &KeyInterval::ALL).first().map(|r| r.shard),
        None => routes.shards().next().map(|s| s.id),
    };
    owner.map(Target::OneShard).ok_or(NoTarget::Unknown)
}

/// The ranges that a statement touches within `within`, as pieces of a scan in key order.
/// Neighbouring ranges of one shard form one piece. `None` if the table has no route for some of
/// the touched keys.
///
/// A piece is bounded by its ranges and not by the touched keys: the shard determines which of the
/// piece's keys are touched, and only the bounds of ranges are certain to be whole keys.
pub(crate) fn pieces(
    touches: &Touches,
    within: &KeyInterval,
    table: TableId,
    routes: &RoutingTable,
) -> Option<Vec<Piece>> {
    let mut pieces = Pieces { done: Vec::new(), within };
    match touches {
        Touches::Nothing => {}
        Touches::Keys(keys) => {
            for key in keys.iter().filter(|key| within.contains(key)) {
                pieces.push(routes.lookup(table, key)?);
            }
        }
        Touches::Intervals(intervals) => {
            for interval in intervals {
                pieces.push_all(&interval.intersection(within), table, routes)?;
            }
        }
    }
    Some(pieces.done)
}

struct Pieces<'a> {
    done: Vec<Piece>,
    within: &'a KeyInterval,
}

impl Pieces<'_> {
    /// Adds the ranges of an interval; `None` if some of its keys have no route.
    fn push_all(&mut self, interval: &KeyInterval, table: TableId, routes: &RoutingTable) -> Option<()> {
        if interval.is_empty() {
            return Some(());
        }
        let mut covered_to: Option<Key> = Some(interval.start.clone());
        for route in routes.overlapping(table, interval) {
            let part = route.interval.intersection(interval);
            if covered_to.as_ref() != Some(&part.start) {
                return None;
            }
            covered_to = part.end;
            self.push(route);
        }
        (covered_to == interval.end).then_some(())
    }

    /// Adds a range. It extends the last piece if that is on the same shard and ends where the
    /// range begins.
    fn push(&mut self, route: &Route) {
        let clip = route.interval.intersection(self.within);
        match self.done.last_mut() {
            Some(last) if last.clip.end == clip.end => {}
            Some(last) if last.shard == route.shard && last.clip.end.as_ref() == Some(&clip.start) => {
                last.clip.end = clip.end;
            }
            _ => self.done.push(Piece { shard: route.shard, clip }),
        }
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
pub(crate) mod tests;
