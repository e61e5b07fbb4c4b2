//! Where a statement goes: a pure function of what it touches and of the routing table.
//!
//! It owns no state. It promises that a statement sent to one shard touches, as far as the table knows, keys of that shard
//! only; that the pieces of a scan come in key order, cover every key the scan touches exactly once, and lie each within
//! ranges of its own shard; and that whatever would be wrong over several shards is refused with a sentence, never sent.
//! The table may be stale: the shards judge every statement again (R9, invariant 2).

use super::redirect::RedirectHint;
use evenkeel_protocol::interval::KeyInterval;
use evenkeel_protocol::routing::{Route, RoutingTable};
use evenkeel_protocol::{Key, ShardId, SqlError, TableId};
use evenkeel_sql::{Plan, PlanKind, Scan, Touches};

/// What a statement may do when its keys lie on several shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Across {
    /// Be read range by range, in key order.
    RangeByRange,
    /// Nothing, because it writes.
    Writes(PlanKind),
    /// Nothing, because it locks rows.
    Locks,
    /// Nothing, because its result depends on all of its rows together.
    Whole,
}

impl Across {
    /// What this statement may do.
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

    /// 0A000 with what to do instead, if it cannot be done over several shards.
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

/// Where a statement goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// To one shard, as it is.
    OneShard(ShardId),
    /// To several, each with its piece; in key order.
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

/// Why a statement goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoTarget {
    /// It cannot be done correctly.
    Refused(SqlError),
    /// The table has no route for some of its keys: fetch it again.
    Unknown,
}

/// Where a statement on `table` goes. `table` is `None` only for statements that touch nothing.
pub(crate) fn route(
    across: Across,
    touches: &Touches,
    table: Option<TableId>,
    routes: &RoutingTable,
) -> Result<Target, NoTarget> {
    if let (Touches::Keys(keys), Some(table)) = (touches, table)
        && let [first, .., last] | [first @ last] = keys.as_slice()
    {
        // By far the most frequent cases, one key and one range: no allocation. Keys come sorted.
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

/// Where a redirect that the table could not take in says that this statement goes: only if it touches a single key, since a
/// redirect speaks of one range, and only as long as the table knows nothing as late about that key.
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

/// A statement that touches no key can run anywhere; where its table is, the table exists.
fn any_shard(table: Option<TableId>, routes: &RoutingTable) -> Result<Target, NoTarget> {
    let owner = match table {
        Some(table) => routes.overlapping(table, &KeyInterval::ALL).first().map(|r| r.shard),
        None => routes.shards().next().map(|s| s.id),
    };
    owner.map(Target::OneShard).ok_or(NoTarget::Unknown)
}

/// The ranges that a statement touches (within `within`), as pieces of a scan in key order. Neighbouring ranges of one shard make
/// one piece. `None` if the table has no route for some of what is touched.
///
/// A piece is bounded by its ranges, not by what is touched: the shard works out itself which of the piece's keys are, and
/// only a range's bounds are sure to be whole keys.
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
    /// Adds the ranges that an interval lies in: all of it, or it is not known where it lies.
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

    /// Adds a range. It joins the piece before it if that ends where the range begins, on the same shard.
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
