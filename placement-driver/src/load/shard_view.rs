//! The latest report of one shard in this leadership, since when the shard reports, and its tables.

use super::clocks::{ahead_ms, latest_ms};
use crate::config::BalancerConfig;
use crate::state::PlacementState;
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::{TableId, TableSchema};
use std::collections::BTreeSet;
use std::sync::Arc;

/// If the latest report is older than this, any report counts as later, in milliseconds: the
/// numbers of the latest may have been wrong.
const ORDER_MS: u64 = 10_000;

/// A shard as it reports.
#[derive(Debug, Clone)]
pub struct ShardView {
    /// When its first report in this leadership came, in milliseconds of the state machine's time.
    pub first_ms: u64,
    /// When its latest report came, in milliseconds of the state machine's time.
    pub last_ms: u64,
    /// Since when it has had its present leader and has reported without a gap.
    pub steady_since_ms: u64,
    /// How far its leader's clock is ahead of the state machine's time, in milliseconds: the
    /// highest value that its reports have shown.
    pub clock_ahead_ms: i64,
    /// The latest report, without the tables.
    pub report: Arc<ShardReport>,
    /// Whether it has reported its tables in this leadership.
    pub tables_heard: bool,
    /// Its tables that the placement state lacks.
    pub unknown_tables: Arc<Vec<TableSchema>>,
    /// Its tables whose numbers belong to other tables in the placement state: they are of another
    /// cluster.
    pub foreign_tables: Arc<BTreeSet<TableId>>,
}

impl ShardView {
    /// The view after a report. `None` if a later report is known.
    pub(super) fn after(
        known: Option<&ShardView>,
        mut report: ShardReport,
        state: &PlacementState,
        config: &BalancerConfig,
        now_ms: u64,
    ) -> Option<ShardView> {
        let order = |report: &ShardReport| (report.term, report.sequence);
        let fresh = |known: &&ShardView| known.last_ms + ORDER_MS >= now_ms;
        if known.filter(fresh).is_some_and(|known| order(&known.report) >= order(&report)) {
            return None;
        }
        let steady = known.filter(|known| {
            known.report.term == report.term && now_ms.saturating_sub(known.last_ms) <= config.silent_after_ms
        });
        let seen_ms = ahead_ms(report.clock_ms, now_ms);
        let same_leader = known.filter(|known| known.report.term == report.term);
        let clock_ahead_ms = same_leader
            .map_or(seen_ms, |known| latest_ms(known.clock_ahead_ms, now_ms.saturating_sub(known.last_ms), seen_ms));
        let tables = report.tables.take();
        let mut view = ShardView {
            first_ms: known.map_or(now_ms, |known| known.first_ms),
            last_ms: now_ms,
            steady_since_ms: steady.map_or(now_ms, |known| known.steady_since_ms),
            clock_ahead_ms,
            report: Arc::new(report),
            tables_heard: known.is_some_and(|known| known.tables_heard),
            unknown_tables: known.map(|known| known.unknown_tables.clone()).unwrap_or_default(),
            foreign_tables: known.map(|known| known.foreign_tables.clone()).unwrap_or_default(),
        };
        if let Some(tables) = tables {
            view.hear_tables(&tables, state);
        }
        Some(view)
    }

    fn hear_tables(&mut self, tables: &[TableSchema], state: &PlacementState) {
        let known = |table: &TableSchema| state.tables.get(&table.id).map(|known| known.schema.clone());
        self.tables_heard = true;
        // Tables of schema changes come and go with these: while the shard has another version than
        // the state, they may differ.
        let same_version = self.report.schema.version == state.schema.version;
        let by_itself = |table: &&TableSchema| !table.create_sql.is_empty();
        let unknown: Vec<_> = tables.iter().filter(by_itself).filter(|table| known(table).is_none()).cloned().collect();
        let comparable = tables.iter().filter(|table| same_version || by_itself(table));
        let foreign = comparable.filter(|table| known(table).is_some_and(|known| *known != **table));
        self.foreign_tables = Arc::new(foreign.map(|table| table.id).collect());
        self.unknown_tables = Arc::new(unknown);
    }
}
