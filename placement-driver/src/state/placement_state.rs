//! The placement state: its content, and the questions that need no more than the state to answer.

use super::changes::VersionChanges;
use super::decision::Decision;
use super::numbers::Numbers;
use super::operator_status::Operator;
use super::range::Range;
use super::schema::Schema;
use super::shard::Shard;
use super::table::Table;
use crate::coordination;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::routing::RouteVersion;
use evenkeel_protocol::{OperatorId, RangeId, ShardId, TableId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// The placement state. Every module may read its fields; only [`apply`](super::apply()) changes
/// them.
///
/// The order of fields is the format of the snapshot (postcard).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacementState {
    /// The version of the routing table.
    pub version: RouteVersion,
    /// The shards.
    pub shards: BTreeMap<ShardId, Shard>,
    /// The tables, also those that are being created.
    pub tables: BTreeMap<TableId, Table>,
    /// The latest tables whose creation was given up, each with its operator. A shard that has made
    /// one of them all the same is asked to drop it.
    pub given_up: BTreeMap<TableId, OperatorId>,
    /// The ranges of the tables that are ready.
    pub ranges: BTreeMap<RangeId, Range>,
    /// The operators under way, and the latest that have ended.
    pub operators: BTreeMap<OperatorId, Operator>,
    /// The latest decisions, oldest first.
    pub decisions: VecDeque<Decision>,
    /// Whether the balancer is on. `None` until an administrator has switched it: the configuration
    /// then decides.
    pub balancer_enabled: Option<bool>,
    /// Whether a restoration from an old copy is under way (R30). No numbers are given meanwhile.
    pub restoring: bool,
    /// The changes of the latest versions.
    pub changes: VersionChanges,
    /// The coordination store. It has revisions of its own and no part in routing.
    pub kv: coordination::CoordinationStore,
    /// The schema: all tables that were not made one by one.
    pub schema: Schema,
    pub(super) time_ms: u64,
    pub(super) numbers: Numbers,
}

impl Default for PlacementState {
    fn default() -> Self {
        PlacementState {
            version: RouteVersion { incarnation: 1, number: 0 },
            shards: BTreeMap::new(),
            tables: BTreeMap::new(),
            given_up: BTreeMap::new(),
            ranges: BTreeMap::new(),
            operators: BTreeMap::new(),
            decisions: VecDeque::new(),
            balancer_enabled: None,
            restoring: false,
            changes: VersionChanges::default(),
            kv: coordination::CoordinationStore::default(),
            schema: Schema::default(),
            time_ms: 0,
            numbers: Numbers::default(),
        }
    }
}

impl PlacementState {
    /// The table called `name`, whether or not it is ready.
    pub fn table_named(&self, name: &str) -> Option<&Table> {
        self.tables.values().find(|table| table.schema.name == name)
    }

    /// The operators under way, in order of their numbers.
    pub fn running(&self) -> impl Iterator<Item = &Operator> {
        self.operators.values().filter(|operator| !operator.status.is_over())
    }

    /// The schema change under way.
    pub fn schema_operator(&self) -> Option<&Operator> {
        self.running().find(|operator| operator.work.schema_plan().is_some())
    }

    /// Whether a table is one range that neither splits nor moves.
    pub fn is_pinned(&self, table: TableId) -> bool {
        self.tables.get(&table).is_some_and(|table| table.schema.pinned)
    }

    /// The names of the pinned tables on a shard, in order.
    pub fn pinned_on(&self, shard: ShardId) -> Vec<&str> {
        let here = self.ranges.values().filter(|range| range.route.shard == shard);
        let mut names: Vec<&str> = here
            .filter_map(|range| self.tables.get(&range.route.table))
            .filter(|table| table.schema.pinned)
            .map(|table| table.schema.name.as_str())
            .collect();
        names.sort_unstable();
        names
    }

    /// The state machine's own time at the last proposal, in milliseconds: the sum of the times for
    /// which leaders have led, by their processes' monotonic clocks. See
    /// [`Proposal::since_ms`](super::Proposal::since_ms).
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The number that the next operator gets. All smaller ones have been given.
    pub fn next_operator(&self) -> OperatorId {
        self.numbers.next_operator()
    }

    /// Whether any of these numbers was never given by this state. A shard that has seen one knows
    /// of commands that the state lacks (R30).
    pub fn has_not_given(&self, seen: HighestNumbers) -> bool {
        self.numbers.has_not_given(seen)
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

    /// Whether a shard owns nothing and no operator under way involves it.
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
