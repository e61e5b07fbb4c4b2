//! The report as text for people.

use std::fmt::{self, Display, Formatter};

use super::report_data::{LEVEL_FACTOR, PauseMs, Quantiles, Report};

/// The most columns of the line that shows the imbalance over time.
const SPARKLINE_COLUMNS: usize = 60;

/// The report as a page of text, about twenty-five lines of at most 100 columns, with a line for
/// every target that the run met or missed.
impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write_text(self, out)
    }
}

fn write_text(report: &Report, out: &mut Formatter<'_>) -> fmt::Result {
    writeln!(
        out,
        "{} with seed {}, {} shards, {:.0} s of load",
        report.workload, report.seed, report.shards, report.duration_s
    )?;
    writeln!(out, "  imbalance    {}", sparkline(report))?;
    writeln!(
        out,
        "               at the end {} (floor {:.2}; level is at most {:.2})",
        or_dash(report.imbalance_final, 2),
        report.imbalance_floor,
        LEVEL_FACTOR * report.imbalance_floor
    )?;
    let level = report.level_s.map_or("never level".to_owned(), |second| format!("level from second {second}"));
    let split = report.first_split_s.map_or("no split".to_owned(), |second| format!("first split at {second:.1} s"));
    writeln!(out, "  levelling    {split}, {level}")?;
    writeln!(
        out,
        "               {} splits, {} moves ({} after level), {} merges; {} moved, at least {} needed",
        report.splits,
        report.moves,
        report.moves_after_level,
        report.merges,
        bytes(report.moved_bytes),
        bytes(report.least_moved_bytes)
    )?;
    writeln!(out, "  write pauses {}", pause(&report.pause_ms))?;
    for (name, quantiles) in
        [("before", report.latency_ms.before), ("during", report.latency_ms.during), ("after", report.latency_ms.after)]
    {
        writeln!(out, "  latency      {name:<7}{}", latency(&quantiles))?;
    }
    write!(
        out,
        "  throughput   {} statements/s before, {} after",
        or_dash(report.throughput_per_s.before, 0),
        or_dash(report.throughput_per_s.after, 0)
    )?;
    match report.shard_capacity_per_s {
        // A throughput under a limit says nothing about the machine.
        Some(limit) => writeln!(out, "  (each shard limited to {limit}/s, as if on a machine of its own)")?,
        None => writeln!(out)?,
    }
    let statements = report.statements;
    writeln!(
        out,
        "  statements   {} answered ({} after a retry), {} failed, {} wrong, {} not started, {} abandoned",
        statements.ok,
        statements.retried,
        statements.failed,
        report.wrong_answers,
        report.not_started,
        report.abandoned
    )?;
    writeln!(
        out,
        "  read back    {} keys: {} lost, {} unreadable; replicas that differ: {}; keys without one owner: {}",
        report.verified_keys,
        report.lost_writes,
        report.unread_keys,
        or_unchecked(report.differing_replicas),
        or_unchecked(report.owners_wrong)
    )?;
    writeln!(
        out,
        "  listed       {} rows: {} that nobody wrote, {} whose writes are miscounted; pages that are wrong: {}",
        report.listed_rows, report.unwritten_rows, report.miscounted_rows, report.wrong_pages
    )?;
    write_judgement(report, out)
}

/// What was done to the cluster, which targets were met, and what was wrong.
fn write_judgement(report: &Report, out: &mut Formatter<'_>) -> fmt::Result {
    for fault in &report.faults {
        writeln!(out, "  fault        at {:.1} s: {}", fault.at_s, fault.what)?;
    }
    for target in &report.targets {
        writeln!(out, "  {:<13}{}: {}", if target.met { "met" } else { "MISSED" }, target.wanted, target.found)?;
    }
    for finding in &report.findings {
        writeln!(out, "  WRONG        {finding}")?;
    }
    for message in &report.messages {
        writeln!(out, "  note         {message}")?;
    }
    Ok(())
}

/// The imbalance over time: from 1 (lowest) to the number of shards, one column per second or
/// several seconds.
fn sparkline(report: &Report) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let per_column = report.imbalance.len().div_ceil(SPARKLINE_COLUMNS).max(1);
    let span = f64::from(report.shards).max(1.5) - 1.0;
    report
        .imbalance
        .chunks(per_column)
        .map(|chunk| {
            let worst = chunk.iter().flatten().copied().max_by(f64::total_cmp);
            worst.map_or(' ', |value| LEVELS[(((value - 1.0) / span * 7.0).round() as usize).min(7)])
        })
        .collect()
}

fn or_dash(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

fn or_unchecked(value: Option<u64>) -> String {
    value.map_or("not checked".to_owned(), |value| value.to_string())
}

fn latency(quantiles: &Quantiles) -> String {
    let of = |value| or_dash(value, 2);
    format!("p50 {} ms, p99 {} ms, p99.9 {} ms", of(quantiles.p50), of(quantiles.p99), of(quantiles.p999))
}

fn pause(pauses: &PauseMs) -> String {
    let of = |value| or_dash(value, 1);
    format!("p50 {} ms, p99 {} ms, longest {} ms", of(pauses.p50), of(pauses.p99), of(pauses.max))
}

fn bytes(count: u64) -> String {
    let value = count as f64;
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{:.0} kB", value / 1e3),
        10_000_000..=9_999_999_999 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}
