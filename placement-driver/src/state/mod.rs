//! The replicated state machine: shards, tables, ranges, operators, decisions, the next ids, and the coordination store.
//!
//! [`State::apply`] is a deterministic function of the state and a [`Proposal`]; time comes with the proposal. Every replica
//! applies the same proposals in the same order and so has the same state, byte for byte when encoded.
//!
//! It promises, whatever is proposed:
//! - the ranges of a table partition all of its keys: no gap, no overlap, at every version;
//! - epochs only grow per key (invariant 6), ids are never reused, operators' numbers only grow (R20);
//! - while an operator runs on a range no other can begin on it;
//! - every history is bounded.
//!
//! Routes change only when a shard has said that its log says so: by the transition that ends a split, merge or adoption, or by
//! [`Command::TakeRoutes`], [`Command::TakeTables`] and [`Command::Reconciled`], which carry what shards have reported.

mod apply;
mod changes;
mod command;
mod operator;
mod restoration;
mod routes;
#[cfg(test)]
mod tests;

pub(crate) use apply::check_schema;
pub use changes::{Change, Changes, MAX_CHANGES};
pub use command::{Action, Command, Effect, NewDecision, Proposal, Refusal};
pub use operator::{MAX_HISTORY, Operator, Status, Step, Transition, Work};
pub use restoration::{Found, SKIPPED_NUMBERS};

use crate::kv;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::api::DecisionBody;
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::routing::{Route, RouteVersion, ShardInfo};
use evenkeel_protocol::{OperatorId, RangeId, ShardId, TableId, TableSchema};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The most tables.
pub const MAX_TABLES: usize = 1000;
/// The most shards.
pub const MAX_SHARDS: usize = 256;
/// The most ranges, whoever asks for a split.
pub const MAX_RANGES: usize = 16_384;
/// The most replicas of one shard.
pub const MAX_REPLICAS: usize = 9;
/// The most operators under way at once.
pub const MAX_RUNNING: usize = 64;
/// Tables whose creation was given up and that are remembered.
pub const MAX_GIVEN_UP: usize = 256;
/// Operators that have ended and are remembered.
pub const MAX_ENDED: usize = 512;
/// Decisions that are remembered.
pub const MAX_DECISIONS: usize = 256;
/// Shards a range remembers having left.
pub const MAX_LEFT: usize = 4;
/// Pieces of one split.
pub const MAX_PIECES: usize = 64;
/// A range on which operators have failed is left alone for at most this long, in milliseconds, unless the configured pause is longer.
pub const MAX_COOLDOWN_MS: u64 = 600_000;

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its replicas.
    pub info: ShardInfo,
    /// The epoch of its membership that these are of, as the shard has told; 0 as long as only somebody else has.
    pub epoch: u32,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Whether somebody has declared it lost for good: nothing that comes from it is believed, and nothing goes to it (R23).
    pub lost: bool,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its schema.
    pub schema: Arc<TableSchema>,
    /// The operator that creates it; `None` once its shard has answered and its range is published.
    pub creating: Option<OperatorId>,
}

/// A range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its place.
    pub route: Route,
    /// The operator that works on it.
    pub operator: Option<OperatorId>,
    /// When its bounds last changed, in milliseconds of [`State::time_ms`].
    pub bounds_since_ms: u64,
    /// The shards its rows left lately and when (milliseconds of [`State::time_ms`]), oldest first; pieces of a split inherit it.
    pub left: Vec<(ShardId, u64)>,
    /// The operators that ended in vain on it since the last that did not.
    pub failures: Failures,
}

/// Operators that ended in vain on a range, one after the other: it is left alone for longer after each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many.
    pub times: u32,
    /// When the last of them ended, in milliseconds of [`State::time_ms`].
    pub last_ms: u64,
}

impl Failures {
    /// Until when the range is left alone, in milliseconds of [`State::time_ms`]: `cooldown_ms` after the first failure, twice as long after each
    /// further one, at most [`MAX_COOLDOWN_MS`].
    pub fn until_ms(&self, cooldown_ms: u64) -> Option<u64> {
        let doublings = self.times.checked_sub(1)?.min(20);
        let pause_ms = cooldown_ms.saturating_mul(1 << doublings).min(cooldown_ms.max(MAX_COOLDOWN_MS));
        Some(self.last_ms + pause_ms)
    }
}

/// The two clocks at a proposal.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// The proposer's clock, in milliseconds since the Unix epoch: for people, who read it. It can be set wrong, so nothing is decided by it.
    at_ms: u64,
    /// [`State::time_ms`]: what is decided by time is decided by this.
    time_ms: u64,
}

impl Range {
    /// When its rows last left `shard`, if that is remembered.
    pub fn left_at_ms(&self, shard: ShardId) -> Option<u64> {
        self.left.iter().rev().find(|(id, _)| *id == shard).map(|(_, at)| *at)
    }
}

/// A decision of the balancer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Its number.
    pub id: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// When, in milliseconds of [`State::time_ms`].
    pub time_ms: u64,
    /// What was decided.
    pub decided: NewDecision,
    /// The operators it made.
    pub operators: Vec<OperatorId>,
    /// What came of it, once its operators have ended.
    pub outcome: Option<String>,
}

impl Decision {
    /// The form in which REST shows it.
    pub fn body(&self) -> DecisionBody {
        DecisionBody {
            id: self.id,
            at_ms: self.at_ms,
            why: self.decided.why.clone(),
            imbalance_before: self.decided.imbalance_before,
            imbalance_expected: self.decided.imbalance_expected,
            alternatives: self.decided.alternatives.clone(),
            operators: self.operators.clone(),
            outcome: self.outcome.clone(),
        }
    }
}

/// The state. Its fields can be read by anyone and are changed by [`State::apply`] alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The routing table's version.
    pub version: RouteVersion,
    /// The shards.
    pub shards: BTreeMap<ShardId, Shard>,
    /// The tables, those being created included.
    pub tables: BTreeMap<TableId, Table>,
    /// The latest tables whose creation ended in vain, and its operator: should a shard have one all the same, it is to go.
    pub given_up: BTreeMap<TableId, OperatorId>,
    /// The ranges of the tables that are ready.
    pub ranges: BTreeMap<RangeId, Range>,
    /// Operators under way, and the latest that ended.
    pub operators: BTreeMap<OperatorId, Operator>,
    /// The latest decisions, oldest first.
    pub decisions: VecDeque<Decision>,
    /// Whether the balancer is on; `None` until someone has said, which means as configured.
    pub balancer_enabled: Option<bool>,
    /// Whether ids may not be given out yet, after a restoration from a backup (R30).
    pub restoring: bool,
    /// What changed in the latest versions.
    pub changes: Changes,
    /// The coordination store. It has revisions of its own and no part in routing.
    pub kv: kv::Store,
    time_ms: u64,
    next_table: TableId,
    next_range: RangeId,
    next_operator: OperatorId,
    next_decision: u64,
}

impl Default for State {
    fn default() -> Self {
        State {
            version: RouteVersion { incarnation: 1, number: 0 },
            shards: BTreeMap::new(),
            tables: BTreeMap::new(),
            given_up: BTreeMap::new(),
            ranges: BTreeMap::new(),
            operators: BTreeMap::new(),
            decisions: VecDeque::new(),
            balancer_enabled: None,
            restoring: false,
            changes: Changes::default(),
            kv: kv::Store::default(),
            time_ms: 0,
            next_table: TableId(1),
            next_range: RangeId(1),
            next_operator: OperatorId(1),
            next_decision: 1,
        }
    }
}

impl State {
    /// The table called `name`, whether or not it is ready.
    pub fn table_named(&self, name: &str) -> Option<&Table> {
        self.tables.values().find(|table| table.schema.name == name)
    }

    /// The operators under way, in order of their numbers.
    pub fn running(&self) -> impl Iterator<Item = &Operator> {
        self.operators.values().filter(|operator| !operator.status.is_over())
    }

    /// The state machine's own time at the last proposal, in milliseconds: how long leaders have led so far, by their own processes' clocks, which
    /// nobody sets. See [`Proposal::since_ms`].
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The number the next operator will get: smaller ones have existed.
    pub fn next_operator(&self) -> OperatorId {
        self.next_operator
    }

    /// Whether any of these numbers has not been given by this state: whoever has seen it knows more than the state does (R30).
    pub fn has_not_given(&self, seen: HighestNumbers) -> bool {
        seen.operator >= self.next_operator || seen.range >= self.next_range || seen.table >= self.next_table
    }

    /// The ranges of a table in key order.
    pub fn ranges_of(&self, table: TableId) -> Vec<&Range> {
        let mut ranges: Vec<_> = self.ranges.values().filter(|range| range.route.table == table).collect();
        ranges.sort_by(|a, b| a.route.interval.start.cmp(&b.route.interval.start));
        ranges
    }

    /// The ranges of every table, in key order.
    pub fn ranges_by_table(&self) -> BTreeMap<TableId, Vec<&Range>> {
        let mut tables: BTreeMap<TableId, Vec<&Range>> = BTreeMap::new();
        for range in self.ranges.values() {
            tables.entry(range.route.table).or_default().push(range);
        }
        for ranges in tables.values_mut() {
            ranges.sort_by(|a, b| a.route.interval.start.cmp(&b.route.interval.start));
        }
        tables
    }

    /// Whether a shard owns nothing, and nothing under way involves it.
    pub fn is_empty(&self, id: ShardId) -> bool {
        let owns = self.ranges.values().any(|range| range.route.shard == id) && !deliberate(Bug::RemovedTooSoon);
        !owns && !self.running().any(|operator| operator.work.involves(id))
    }

    /// How many ranges each shard owns.
    pub fn range_counts(&self) -> BTreeMap<ShardId, usize> {
        let mut counts: BTreeMap<ShardId, usize> = self.shards.keys().map(|id| (*id, 0)).collect();
        for range in self.ranges.values() {
            *counts.entry(range.route.shard).or_default() += 1;
        }
        counts
    }
}
