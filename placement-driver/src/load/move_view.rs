//! Moves under way: the progress of each, as its destination reports it, and the bytes per second
//! that shards move.

use super::shard_view::ShardView;
use crate::state::{PlacementState, Step, Work};
use evenkeel_protocol::report::{MoveProgress, OperatorReport, ShardReport};
use evenkeel_protocol::{OperatorId, ShardId};
use std::collections::BTreeMap;

/// The shortest time over which a move's rate is measured, in milliseconds.
const RATE_OVER_MS: u64 = 500;
/// Weight of a new rate in the shard's bandwidth.
const BANDWIDTH_WEIGHT: f64 = 0.3;

/// The progress of a move, by its destination's reports.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveView {
    /// The latest progress report.
    pub progress: MoveProgress,
    /// When it last progressed, in milliseconds of the state machine's time: rows, bytes or the
    /// cursor changed, or the lag behind the source's log was smaller than ever before.
    pub further_ms: u64,
    /// Since when the destination has had all chunks, in milliseconds of the state machine's time.
    /// `None` while it copies.
    pub copied_ms: Option<u64>,
    /// Bytes per second, once measured.
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

    /// Takes in a progress report. `lag` is the number of positions of the source's log that the
    /// destination lacks.
    fn see(&mut self, reported: &MoveProgress, lag: u64, now_ms: u64) {
        let known = &self.progress;
        let came = (reported.rows, reported.bytes, &reported.cursor) != (known.rows, known.bytes, &known.cursor);
        if came || reported.attempts != known.attempts || lag < self.least_lag {
            self.further_ms = now_ms;
        }
        if reported.attempts != known.attempts {
            self.least_lag = u64::MAX;
        }
        self.least_lag = self.least_lag.min(lag);
        self.copied_ms = (reported.attempts > 0 && reported.cursor.is_none()).then(|| self.copied_ms.unwrap_or(now_ms));
        let (since_ms, before) = self.measured;
        let passed_ms = now_ms.saturating_sub(since_ms);
        if passed_ms >= RATE_OVER_MS {
            self.bytes_per_s = Some(reported.bytes.saturating_sub(before) as f64 * 1000.0 / passed_ms as f64);
            self.measured = (now_ms, reported.bytes);
        }
        self.progress = reported.clone();
    }
}

/// Takes in what a report says about the moves to its shard.
pub(super) fn observe(
    moves: &mut BTreeMap<OperatorId, MoveView>,
    shards: &BTreeMap<ShardId, ShardView>,
    report: &ShardReport,
    now_ms: u64,
) {
    for seen in &report.operators {
        let Some(reported) = &seen.progress else { continue };
        let sends = |view: &&ShardView| {
            let source = |o: &OperatorReport| o.operator == seen.operator && o.progress.is_none();
            view.report.shard != report.shard && view.report.operators.iter().any(source)
        };
        let source = shards.values().find(sends).map(|view| view.report.applied);
        let lag = source.map_or(u64::MAX, |applied| applied.saturating_sub(reported.position));
        moves.entry(seen.operator).or_insert_with(|| MoveView::new(now_ms)).see(reported, lag, now_ms);
    }
}

/// Forgets the moves that have ended, and learns from the others how many bytes per second each
/// shard moves, in and out.
pub(super) fn follow(
    moves: &mut BTreeMap<OperatorId, MoveView>,
    bandwidth: &mut BTreeMap<ShardId, f64>,
    state: &PlacementState,
) {
    moves.retain(|id, _| state.operators.get(id).is_some_and(|operator| !operator.status.is_over()));
    bandwidth.retain(|id, _| state.shards.contains_key(id));
    let mut seen: BTreeMap<ShardId, f64> = BTreeMap::new();
    for operator in state.running().filter(|operator| operator.step == Step::Copy) {
        let (Work::Move { from, to, .. }, Some(view)) = (&operator.work, moves.get(&operator.id)) else { continue };
        // A move that catches up moves only new writes, less than its bandwidth.
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
