//! What is seen of the moves under way: how far each is, and how many bytes a second the shards move.

use super::heard::ShardView;
use crate::state::{State, Step, Work};
use evenkeel_protocol::report::{MoveProgress, OperatorReport, ShardReport};
use evenkeel_protocol::{OperatorId, ShardId};
use std::collections::BTreeMap;

/// A move's rate is measured over at least this long, in milliseconds.
const RATE_OVER_MS: u64 = 500;
/// How much of a new rate is taken into the shard's bandwidth at once.
const BANDWIDTH_WEIGHT: f64 = 0.3;

/// How far a move is, by its destination's reports.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveView {
    /// What was told last.
    pub progress: MoveProgress,
    /// When it last got further, in milliseconds of the state machine's time: rows, bytes or the cursor have changed, or less of the source's
    /// log was to come than ever before.
    pub further_ms: u64,
    /// Since when all chunks have been at the destination, in milliseconds of the state machine's time; `None` while it copies.
    pub copied_ms: Option<u64>,
    /// Bytes per second, once they have been measured.
    pub bytes_per_s: Option<f64>,
    least_lag: u64,
    measured: (u64, u64),
}

impl MoveView {
    fn new(now_ms: u64) -> MoveView {
        MoveView {
            progress: MoveProgress::default(),
            further_ms: now_ms,
            copied_ms: None,
            bytes_per_s: None,
            least_lag: u64::MAX,
            measured: (now_ms, 0),
        }
    }

    /// `lag`: positions of the source's log still to come.
    fn see(&mut self, told: &MoveProgress, lag: u64, now_ms: u64) {
        let known = &self.progress;
        let came = (told.rows, told.bytes, &told.cursor) != (known.rows, known.bytes, &known.cursor);
        if came || told.attempts != known.attempts || lag < self.least_lag {
            self.further_ms = now_ms;
        }
        if told.attempts != known.attempts {
            self.least_lag = u64::MAX;
        }
        self.least_lag = self.least_lag.min(lag);
        self.copied_ms = (told.attempts > 0 && told.cursor.is_none()).then(|| self.copied_ms.unwrap_or(now_ms));
        let (since_ms, before) = self.measured;
        let passed_ms = now_ms.saturating_sub(since_ms);
        if passed_ms >= RATE_OVER_MS {
            self.bytes_per_s = Some(told.bytes.saturating_sub(before) as f64 * 1000.0 / passed_ms as f64);
            self.measured = (now_ms, told.bytes);
        }
        self.progress = told.clone();
    }
}

/// Takes in what a report tells of the moves that come to its shard.
pub(super) fn observe(
    moves: &mut BTreeMap<OperatorId, MoveView>,
    shards: &BTreeMap<ShardId, ShardView>,
    report: &ShardReport,
    now_ms: u64,
) {
    for seen in &report.operators {
        let Some(told) = &seen.progress else { continue };
        let sends = |view: &&ShardView| {
            let source = |o: &OperatorReport| o.operator == seen.operator && o.progress.is_none();
            view.report.shard != report.shard && view.report.operators.iter().any(source)
        };
        let source = shards.values().find(sends).map(|view| view.report.applied);
        let lag = source.map_or(u64::MAX, |applied| applied.saturating_sub(told.position));
        moves.entry(seen.operator).or_insert_with(|| MoveView::new(now_ms)).see(told, lag, now_ms);
    }
}

/// Forgets the moves that are over, and learns from the others how many bytes a second each shard moves, in or out.
pub(super) fn follow(
    moves: &mut BTreeMap<OperatorId, MoveView>,
    bandwidth: &mut BTreeMap<ShardId, f64>,
    state: &State,
) {
    moves.retain(|id, _| state.operators.get(id).is_some_and(|operator| !operator.status.is_over()));
    bandwidth.retain(|id, _| state.shards.contains_key(id));
    let mut seen: BTreeMap<ShardId, f64> = BTreeMap::new();
    for operator in state.running().filter(|operator| operator.step == Step::Copy) {
        let (Work::Move { from, to, .. }, Some(view)) = (&operator.work, moves.get(&operator.id)) else { continue };
        // What catches up moves what is written, not what it could.
        let Some(rate) = view.bytes_per_s.filter(|rate| view.copied_ms.is_none() && *rate > 0.0) else { continue };
        for shard in [from, to] {
            *seen.entry(*shard).or_default() += rate;
        }
    }
    for (shard, rate) in seen {
        let known = bandwidth.entry(shard).or_insert(rate);
        *known += (rate - *known) * BANDWIDTH_WEIGHT;
    }
}
