//! Validation of shards' reports. A report with impossible figures must not affect the decisions
//! about other shards.
//!
//! A figure that is not a number, negative, or beyond any machine would spread from one range to
//! the mean, and from there to every decision. [`validate`] checks each number of a report before
//! it is used:
//! - A load that is impossible is left out. Its range counts as not measured, and the known load
//!   stays.
//! - An impossible number of a range, an operator or an epoch makes the whole report untrustworthy.
//!   The report is refused, and the shard counts as silent.
//!
//! Both are a [`ReportFault`], which appears as a metric, a log line, and a rejection of the
//! balancer.

use crate::state::{MAX_RANGES, MAX_REPLICAS, PlacementState};
use evenkeel_protocol::report::{
    HighestNumbers, MAX_HOT_KEYS, MAX_SKETCH_POINTS, MoveProgress, OperatorPhase, OperatorReport, RangeLoad,
    RangeReport, ShardReport,
};
use evenkeel_protocol::{Epoch, Key, KeyCodec};

/// Statements per second of a range, at most.
pub const MAX_RATE_PER_S: f64 = 1e9;
/// Microseconds per second that PostgreSQL works for a range, at most: ten thousand processors.
const MAX_POSTGRES_US_PER_S: f64 = 1e10;
/// Rows of a range, its bytes, and the microseconds of a pause, at most.
const MAX_AMOUNT: u64 = 1 << 50;
/// The largest plausible number of a range, an operator or a report.
const MAX_NUMBER: u64 = 1 << 48;
/// The largest plausible number of a table.
const MAX_TABLE_NUMBER: u32 = 1 << 30;
/// The largest plausible term.
const MAX_TERM: u64 = 1 << 63;
/// Operators that one report names, at most.
const MAX_OPERATORS: usize = 65_536;
/// The largest plausible number of a shard's configuration.
const MAX_MEMBERSHIP: u32 = 1 << 20;
/// Epochs by which one operator raises a range, at most: taking a range back raises it by two
/// (R23).
const EPOCHS_PER_OPERATOR: u64 = 2;
/// Rounding error by which a share may exceed 1.
const ROUNDING: f64 = 1e-6;

/// A fault in a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFault {
    /// The kind of number, for metrics.
    pub what: &'static str,
    /// The fault, in one sentence.
    pub found: String,
    /// Whether the whole report was refused. Otherwise only the faulty part was left out.
    pub refused: bool,
}

fn refuse<T>(what: &'static str, found: String) -> Result<T, ReportFault> {
    Err(ReportFault { what, found, refused: true })
}

/// Removes impossible figures from a report. Returns the first fault.
///
/// # Errors
/// The report cannot be trusted at all.
pub fn validate(report: &mut ShardReport, state: &PlacementState) -> Result<Option<ReportFault>, ReportFault> {
    if state.shards.get(&report.shard).is_some_and(|shard| shard.lost) {
        // R23: its ranges have been taken back. If its report counted, they would have two owners.
        return refuse("lost", "the shard was declared lost for good, and reports all the same".into());
    }
    numbers(report)?;
    let latest = latest_epoch(state, report);
    for range in &report.ranges {
        check_range(range, latest)?;
    }
    for operator in &report.operators {
        check_operator(operator, latest)?;
    }
    let mut fault = None;
    let mut left_out = |what, found| {
        fault.get_or_insert(ReportFault { what, found, refused: false });
    };
    if report.members.as_ref().is_some_and(|m| !(1..=MAX_REPLICAS).contains(&m.replicas.len())) {
        left_out("members", format!("a shard has 1 to {MAX_REPLICAS} replicas"));
        report.members = None;
    }
    if report.capacity_per_s.is_some_and(|capacity| !is_rate(capacity, MAX_RATE_PER_S)) {
        left_out("capacity", format!("it admits {:?} statements/s", report.capacity_per_s));
        report.capacity_per_s = None;
    }
    for range in &mut report.ranges {
        let table = state.tables.get(&range.table).map(|table| table.schema.codec());
        if let Some((what, found)) = wrong_load(&range.load) {
            left_out(what, format!("range {}: {found}", range.id));
            range.load = RangeLoad::default();
        } else if let Some(codec) = &table {
            only_whole_keys(&mut range.load, codec);
        }
    }
    report.operators.iter_mut().for_each(clamp_operator);
    Ok(fault)
}

/// Checks the numbers of ranges, tables, operators, terms and reports.
fn numbers(report: &ShardReport) -> Result<(), ReportFault> {
    let HighestNumbers { operator, range, table } = report.highest;
    let range = report.ranges.iter().map(|r| r.id).fold(range, Ord::max);
    let table = report.ranges.iter().map(|r| r.table).fold(table, Ord::max);
    let operator = report.operators.iter().map(|o| o.operator).fold(operator, Ord::max);
    let range = report.operators.iter().map(|o| o.range).fold(range, Ord::max);
    if operator.0 > MAX_NUMBER || range.0 > MAX_NUMBER || table.0 > MAX_TABLE_NUMBER {
        return refuse("number", format!("it names operator {operator}, range {range} and table {table}"));
    }
    if report.term >= MAX_TERM || report.sequence > MAX_NUMBER {
        return refuse("order", format!("it is number {} of term {}", report.sequence, report.term));
    }
    if report.members.as_ref().is_some_and(|members| members.epoch > MAX_MEMBERSHIP) {
        return refuse("members", "its membership has changed more often than can be".into());
    }
    // Incoming ranges are named beside the owned ones.
    if report.ranges.len() > 2 * MAX_RANGES || report.operators.len() > MAX_OPERATORS {
        let (ranges, operators) = (report.ranges.len(), report.operators.len());
        return refuse("count", format!("it names {ranges} ranges and {operators} operators"));
    }
    Ok(())
}

/// The latest epoch that any range can have: each operator so far has raised it.
fn latest_epoch(state: &PlacementState, report: &ShardReport) -> Epoch {
    let operators = state.next_operator().0.max(report.highest.operator.0 + 1);
    Epoch(1 + EPOCHS_PER_OPERATOR.saturating_mul(operators))
}

fn check_range(range: &RangeReport, latest: Epoch) -> Result<(), ReportFault> {
    if range.epoch > latest {
        return refuse("epoch", format!("range {} is at epoch {}, beyond {latest}", range.id, range.epoch));
    }
    if range.interval.is_empty() {
        return refuse("interval", format!("range {} has no keys", range.id));
    }
    Ok(())
}

fn check_operator(operator: &OperatorReport, latest: Epoch) -> Result<(), ReportFault> {
    match operator.phase {
        OperatorPhase::Adopted { epoch, .. } if epoch > latest => {
            refuse("epoch", format!("operator {} has adopted at epoch {epoch}, beyond {latest}", operator.operator))
        }
        _ => Ok(()),
    }
}

fn is_rate(rate: f64, most: f64) -> bool {
    // NaN is in no range.
    (0.0..=most).contains(&rate)
}

/// The first impossible figure of a range's load.
fn wrong_load(load: &RangeLoad) -> Option<(&'static str, String)> {
    for (name, rate, most) in [
        ("reads_per_s", load.reads_per_s, MAX_RATE_PER_S),
        ("writes_per_s", load.writes_per_s, MAX_RATE_PER_S),
        ("postgres_us_per_s", load.postgres_us_per_s, MAX_POSTGRES_US_PER_S),
    ] {
        if !is_rate(rate, most) {
            return Some(("rate", format!("{name} is {rate}")));
        }
    }
    if load.rows > MAX_AMOUNT || load.bytes > MAX_AMOUNT {
        return Some(("size", format!("it has {} rows of {} bytes", load.rows, load.bytes)));
    }
    let shares = || load.sketch.iter().chain(&load.hot).map(|(_, share)| *share);
    if let Some(share) = shares().find(|share| !is_rate(*share, 1.0 + ROUNDING)) {
        return Some(("share", format!("a key has {share} of its load")));
    }
    let (points, hot) = (load.sketch.len(), load.hot.len());
    if points > MAX_SKETCH_POINTS || hot > MAX_HOT_KEYS || !load.sketch.is_sorted_by(|a, b| a.0 < b.0) {
        return Some(("sketch", format!("{points} points in no order, or too many, and {hot} hot keys")));
    }
    None
}

/// Removes points that are not whole keys: a scan may begin at a part of a key, where a range
/// cannot be split. The load counts at the point before.
fn only_whole_keys(load: &mut RangeLoad, codec: &KeyCodec) {
    let whole = |key: &Key| *key == Key::MIN || codec.decode(key).is_ok();
    if load.sketch.iter().chain(&load.hot).all(|(key, _)| whole(key)) {
        return;
    }
    let mut points: Vec<(Key, f64)> = Vec::with_capacity(load.sketch.len());
    for (key, share) in std::mem::take(&mut load.sketch) {
        match points.last_mut() {
            _ if whole(&key) => points.push((key, share)),
            Some((_, before)) => *before += share,
            None => points.push((Key::MIN, share)),
        }
    }
    load.sketch = points;
    load.hot.retain(|(key, _)| whole(key));
}

/// Limits figures that are only shown, or show whether a move progresses.
fn clamp_operator(operator: &mut OperatorReport) {
    let clamp = |amounts: &mut [&mut u64]| amounts.iter_mut().for_each(|amount| **amount = (**amount).min(MAX_AMOUNT));
    match &mut operator.phase {
        OperatorPhase::Adopted { pause_us, rows, bytes, .. } => clamp(&mut [pause_us, rows, bytes]),
        OperatorPhase::Copying { rows, bytes, .. } => clamp(&mut [rows, bytes]),
        OperatorPhase::CatchingUp { bytes, .. } => clamp(&mut [bytes]),
        _ => {}
    }
    if let Some(MoveProgress { rows, bytes, attempts, .. }) = &mut operator.progress {
        clamp(&mut [rows, bytes, attempts]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::balancer::testing::{key, state_with_table};
    use crate::operators::testing::{owned_report, report};
    use evenkeel_protocol::{KeyInterval, OperatorId, RangeId};

    fn with_load(load: RangeLoad) -> ShardReport {
        let mut report = owned_report(1, 1, RangeId(1), 1, KeyInterval::ALL);
        report.ranges[0].load = load;
        report
    }

    fn verdict(mut report: ShardReport) -> (Result<Option<&'static str>, &'static str>, ShardReport) {
        let verdict = validate(&mut report, &state_with_table(2));
        (verdict.map(|fault| fault.map(|fault| fault.what)).map_err(|fault| fault.what), report)
    }

    #[test]
    fn figures_that_cannot_be_are_left_out_and_told() {
        for figure in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e30] {
            let load = RangeLoad { observed_ms: 5000, reads_per_s: figure, ..RangeLoad::default() };
            let (told, left) = verdict(with_load(load.clone()));
            assert_eq!((told, &left.ranges[0].load), (Ok(Some("rate")), &RangeLoad::default()), "{figure}");
            let load = RangeLoad { reads_per_s: 1.0, postgres_us_per_s: figure, ..load };
            assert_eq!(verdict(with_load(load)).0, Ok(Some("rate")), "{figure}");
            let load = RangeLoad { sketch: vec![(key(1), figure)], ..RangeLoad::default() };
            assert_eq!(verdict(with_load(load)).0, Ok(Some("share")), "{figure}");
            let load = RangeLoad { hot: vec![(key(1), figure)], ..RangeLoad::default() };
            assert_eq!(verdict(with_load(load)).0, Ok(Some("share")), "{figure}");
            let (told, left) = verdict(ShardReport { capacity_per_s: Some(figure), ..report(1, 1, vec![]) });
            assert_eq!((told, left.capacity_per_s), (Ok(Some("capacity")), None), "{figure}");
        }
        let load = RangeLoad { bytes: u64::MAX, ..RangeLoad::default() };
        assert_eq!(verdict(with_load(load)).0, Ok(Some("size")));
        let load = RangeLoad { sketch: vec![(key(2), 0.5), (key(1), 0.5)], ..RangeLoad::default() };
        assert_eq!(verdict(with_load(load)).0, Ok(Some("sketch")));
    }

    #[test]
    fn what_can_be_is_taken_as_it_is() {
        let load = RangeLoad {
            observed_ms: u64::MAX,
            reads_per_s: 1e8,
            writes_per_s: 0.0,
            rows: 1 << 40,
            bytes: 1 << 45,
            postgres_us_per_s: 1e8,
            sketch: vec![(Key::MIN, 0.25), (key(1), 0.75)],
            hot: vec![(key(1), 0.7)],
        };
        let (told, left) = verdict(with_load(load.clone()));
        assert_eq!((told, &left.ranges[0].load), (Ok(None), &load));
    }

    #[test]
    fn numbers_that_nobody_gave_make_a_report_worthless() {
        let range = |id, epoch, interval| owned_report(1, 1, RangeId(id), epoch, interval);
        let adopted = OperatorPhase::Adopted { epoch: Epoch(u64::MAX), pause_us: 0, rows: 0, bytes: 0 };
        let adopted = OperatorReport { operator: OperatorId(1), range: RangeId(1), phase: adopted, progress: None };
        let highest = HighestNumbers { operator: OperatorId(u64::MAX), ..HighestNumbers::default() };
        for (what, report) in [
            ("epoch", range(1, 100, KeyInterval::ALL)),
            ("epoch", report(1, 1, vec![adopted])),
            ("interval", range(1, 1, KeyInterval::new(key(5), Some(key(5))))),
            ("number", range(u64::MAX, 1, KeyInterval::ALL)),
            ("number", ShardReport { highest, ..report(1, 1, vec![]) }),
            ("order", ShardReport { term: u64::MAX, ..report(1, 1, vec![]) }),
            ("order", ShardReport { sequence: u64::MAX, ..report(1, 1, vec![]) }),
        ] {
            assert_eq!(verdict(report).0, Err(what));
        }
    }

    #[test]
    fn a_range_is_not_split_at_a_part_of_a_key() {
        let part = Key(vec![0x01].into());
        assert!(crate::balancer::testing::codec().decode(&part).is_err());
        let sketch = vec![(part.clone(), 0.5), (key(1), 0.25), (key(2), 0.25)];
        let (told, left) = verdict(with_load(RangeLoad { sketch, hot: vec![(part, 0.5)], ..RangeLoad::default() }));
        assert_eq!(told, Ok(None));
        let load = &left.ranges[0].load;
        assert_eq!(load.sketch, [(Key::MIN, 0.5), (key(1), 0.25), (key(2), 0.25)]);
        assert!(load.hot.is_empty());
    }
}
