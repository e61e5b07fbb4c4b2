//! What has been heard of a shard in this leadership: its latest report, since when it reports, its tables, and what was wrong.

use super::clocks::{ahead_ms, latest_ms};
use super::validation::Fault;
use crate::config::BalancerConfig;
use crate::state::State;
use evenkeel_protocol::report::ShardReport;
use evenkeel_protocol::{TableId, TableSchema};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A shard whose latest report is older than this takes any report for later, in milliseconds: the order of the latest may have been wrong.
const ORDER_MS: u64 = 10_000;
/// A fault in a shard's reports is logged at most this often, unless it is another one, in milliseconds.
const LOG_FAULT_EVERY_MS: u64 = 10_000;

/// What is known of a shard.
#[derive(Debug, Clone)]
pub struct ShardView {
    /// Its first report in this leadership, in milliseconds of the state machine's time.
    pub first_ms: u64,
    /// Its latest report came then.
    pub last_ms: u64,
    /// Since when it has had its present leader, or has spoken again after a silence.
    pub steady_since_ms: u64,
    /// How far its leader's clock is ahead of the state machine's time, in milliseconds: the latest that its reports have shown.
    pub clock_ahead_ms: i64,
    /// The latest report, without the tables.
    pub report: Arc<ShardReport>,
    /// Whether it has said in this leadership which tables it has.
    pub tables_heard: bool,
    /// Of its tables those that are not known here.
    pub unknown_tables: Arc<Vec<TableSchema>>,
    /// Of its tables those that are other tables here: they are of another cluster.
    pub foreign_tables: Arc<BTreeSet<TableId>>,
}

impl ShardView {
    /// What is known once a report has come; `None` if a later one has come already.
    pub(super) fn after(
        known: Option<&ShardView>,
        mut report: ShardReport,
        state: &State,
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

    fn hear_tables(&mut self, tables: &[TableSchema], state: &State) {
        let known = |table: &TableSchema| state.tables.get(&table.id).map(|known| known.schema.clone());
        self.tables_heard = true;
        let unknown: Vec<_> = tables.iter().filter(|table| known(table).is_none()).cloned().collect();
        let foreign = tables.iter().filter(|table| known(table).is_some_and(|known| *known != **table));
        self.foreign_tables = Arc::new(foreign.map(|table| table.id).collect());
        self.unknown_tables = Arc::new(unknown);
    }
}

/// The latest fault found in a shard's reports.
#[derive(Debug, Clone)]
pub struct FaultView {
    /// What it was.
    pub fault: Fault,
    /// When the report came, in milliseconds of the state machine's time.
    pub at_ms: u64,
    logged_ms: u64,
}

impl FaultView {
    /// What is known once another one was found, and whether that is to be logged.
    pub(super) fn after(known: Option<&FaultView>, fault: &Fault, now_ms: u64) -> (FaultView, bool) {
        let logged_ms = known.filter(|known| known.fault.what == fault.what).map(|known| known.logged_ms);
        let log = logged_ms.is_none_or(|at| at + LOG_FAULT_EVERY_MS <= now_ms);
        let logged_ms = logged_ms.filter(|_| !log).unwrap_or(now_ms);
        (FaultView { fault: fault.clone(), at_ms: now_ms, logged_ms }, log)
    }
}

/// What came of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether it was taken in: it is the latest of its shard, and can be trusted.
    pub taken: bool,
    /// What was wrong with it.
    pub fault: Option<Fault>,
    /// Whether that is to be logged: it is not what was logged just now.
    pub log: bool,
}
