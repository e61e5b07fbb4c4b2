//! From a run's record to its report.

use super::error::ReportError;
use super::least_moved::least_moved_bytes;
use super::report_data::{FINAL_WINDOW_S, LEVEL_FACTOR, LatencyMs, PauseMs, Quantiles, Report, Statements, Throughput};
use super::run_record::{CompletedOperator, RunRecord};
use super::targets;
use crate::replay::{SecondRecord, latency_histogram, quantile_ms};

/// Assembles the report. Fails only on a record that no run can have produced.
pub fn assemble(run: &RunRecord) -> Result<Report, ReportError> {
    check(run)?;
    let whole = &run.replay.seconds[..whole_seconds(run)];
    let floor = |shards: u32| (f64::from(shards) * run.hottest_key_share).max(1.0);
    let level_s = level_since(whole, floor);
    let first_split_s = run
        .operators
        .iter()
        .filter(|operator| operator.kind == CompletedOperator::Split)
        .map(|operator| operator.ended_s)
        .min_by(f64::total_cmp);
    let phases = Phases::new(run.replay.seconds.len(), first_split_s, level_s);
    let count = |kind| run.operators.iter().filter(|operator| operator.kind == kind).count() as u64;
    let moves = || run.operators.iter().filter(|operator| operator.kind == CompletedOperator::Move);
    let totals = run.replay.totals;
    let imbalance_floor = floor(run.shards);
    let unreadable = run.verification.findings.iter().map(|finding| format!("key {}: {}", finding.key, finding.what));
    let mut report = Report {
        workload: run.workload.clone(),
        seed: run.seed,
        shards: run.shards,
        duration_s: round(run.replay.duration.as_secs_f64(), 3),
        imbalance_floor: round(imbalance_floor, 4),
        imbalance_final: final_imbalance(whole),
        imbalance: whole.iter().map(|second| second.imbalance().map(|value| round(value, 4))).collect(),
        first_split_s: first_split_s.map(|second| round(second, 3)),
        level_s: level_s.map(|second| second as u64),
        splits: count(CompletedOperator::Split),
        moves: count(CompletedOperator::Move),
        merges: count(CompletedOperator::Merge),
        moved_bytes: moves().map(|operator| operator.moved_bytes).sum(),
        least_moved_bytes: least_moved_bytes(&run.ranges, run.shards, imbalance_floor),
        pause_ms: pauses(moves().filter_map(|operator| operator.pause_ms).collect()),
        latency_ms: phases.latency(&run.replay.seconds),
        statements: Statements { ok: totals.ok, retried: totals.retried, failed: totals.failed },
        throughput_per_s: phases.throughput(whole),
        lost_writes: run.verification.lost_writes,
        differing_replicas: run.differing_replicas,
        owners_wrong: run.owners_wrong,
        faults: run.faults.clone(),
        verified_keys: run.verification.verified_keys,
        unread_keys: run.verification.unread_keys,
        miscounted_rows: run.verification.miscounted,
        listed_rows: run.verification.listed_rows,
        unwritten_rows: run.verification.unwritten_rows,
        wrong_pages: run.verification.wrong_pages,
        wrong_answers: totals.wrong_answers,
        not_started: totals.not_started,
        abandoned: totals.abandoned,
        moves_after_level: level_s.map_or(0, |level| {
            // Once the load has ended there is nothing left to be level.
            let load_after_level = level as f64..run.replay.duration.as_secs_f64();
            moves().filter(|operator| load_after_level.contains(&operator.started_s)).count() as u64
        }),
        shard_capacity_per_s: run.shard_capacity_per_s,
        targets: Vec::new(),
        findings: run.findings.clone(),
        messages: run.replay.messages.iter().cloned().chain(unreadable).collect(),
    };
    report.targets = targets::judge(&report);
    Ok(report)
}

/// Refuses what no run can have produced, so that a mistake of the caller does not become a number
/// in a report.
fn check(run: &RunRecord) -> Result<(), ReportError> {
    let error = |code, message| Err(ReportError { code, message });
    if run.shards == 0 {
        return error("no-shards", "a run on 0 shards".to_owned());
    }
    if run.replay.seconds.is_empty() {
        return error("no-seconds", "a run without a single second".to_owned());
    }
    if !(0.0..=1.0).contains(&run.hottest_key_share) {
        return error("wrong-share", format!("the hottest key's share is {}, not 0 to 1", run.hottest_key_share));
    }
    for operator in &run.operators {
        let ordered = operator.started_s.is_finite() && operator.ended_s >= operator.started_s;
        if !ordered || !operator.ended_s.is_finite() {
            let (started, ended) = (operator.started_s, operator.ended_s);
            let message = format!("a {:?} began at {started} s and ended at {ended} s", operator.kind);
            return error("wrong-operator-times", message);
        }
        if operator.pause_ms.is_some_and(|pause| !(0.0..f64::INFINITY).contains(&pause)) {
            return error("wrong-pause", format!("a pause of {:?} ms", operator.pause_ms));
        }
    }
    if let Some(range) = run.ranges.iter().find(|range| !(0.0..f64::INFINITY).contains(&range.load)) {
        return error("wrong-load", format!("a range with a load of {}", range.load));
    }
    Ok(())
}

/// Seconds that the load filled: the rest of a second would have an imbalance by chance. At least
/// one.
fn whole_seconds(run: &RunRecord) -> usize {
    let whole = run.replay.duration.as_secs_f64().floor().max(1.0) as usize;
    whole.min(run.replay.seconds.len())
}

/// The first second from which on, to the end, every second with answers is level.
fn level_since(seconds: &[SecondRecord], floor: impl Fn(u32) -> f64) -> Option<usize> {
    let mut since = None;
    for (index, second) in seconds.iter().enumerate().rev() {
        match second.imbalance() {
            None => {}
            Some(imbalance) if imbalance <= LEVEL_FACTOR * floor(second.shards) => since = Some(index),
            Some(_) => break,
        }
    }
    since
}

fn final_imbalance(seconds: &[SecondRecord]) -> Option<f64> {
    let window = &seconds[seconds.len().saturating_sub(FINAL_WINDOW_S)..];
    let values: Vec<f64> = window.iter().filter_map(SecondRecord::imbalance).collect();
    (!values.is_empty()).then(|| round(values.iter().sum::<f64>() / values.len() as f64, 4))
}

/// Nearest-rank quantiles: a run has a handful of moves, and a value between two of them was never
/// measured.
fn pauses(mut values: Vec<f64>) -> PauseMs {
    values.sort_by(f64::total_cmp);
    let at = |quantile: f64| {
        let rank = (quantile * values.len() as f64).ceil().max(1.0) as usize;
        values.get(rank - 1).map(|value| round(*value, 3))
    };
    PauseMs { p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

/// The seconds at which phases end.
struct Phases {
    before_end: usize,
    during_end: usize,
}

impl Phases {
    fn new(seconds: usize, first_split_s: Option<f64>, level_s: Option<usize>) -> Self {
        // A split within the first second leaves that second to "before": it is the only one there
        // is.
        let split = first_split_s.map_or(seconds, |at| (at.max(0.0) as usize).max(1));
        let during_end = level_s.unwrap_or(seconds).min(seconds);
        Self { before_end: split.min(during_end), during_end }
    }

    fn latency(&self, seconds: &[SecondRecord]) -> LatencyMs {
        LatencyMs {
            before: quantiles(&seconds[..self.before_end]),
            during: quantiles(&seconds[self.before_end..self.during_end]),
            after: quantiles(&seconds[self.during_end..]),
        }
    }

    /// Of whole seconds only: the last part of a second would count as little throughput.
    fn throughput(&self, whole: &[SecondRecord]) -> Throughput {
        let mean = |seconds: &[SecondRecord]| {
            let ok: u64 = seconds.iter().map(|second| second.ok).sum();
            (!seconds.is_empty()).then(|| round(ok as f64 / seconds.len() as f64, 1))
        };
        let end = |second: usize| second.min(whole.len());
        Throughput { before: mean(&whole[..end(self.before_end)]), after: mean(&whole[end(self.during_end)..]) }
    }
}

fn quantiles(seconds: &[SecondRecord]) -> Quantiles {
    let mut all = latency_histogram();
    for second in seconds {
        // All histograms have the same bounds, so adding them cannot fail.
        let _same_bounds = all.add(&second.latency);
    }
    let at = |quantile| quantile_ms(&all, quantile).map(|value| round(value, 3));
    Quantiles { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
}

/// Rounds for reading: digits past what was measured only make reports harder to compare.
fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
