//! The report for people.

use std::fmt::Write;

use super::{LEVEL_FACTOR, PauseMs, Quantiles, Report};

/// The most columns that the picture of the imbalance takes.
const PICTURE_COLUMNS: usize = 60;

impl Report {
    /// The report as a page of text, about twenty-five lines of at most 100 columns, with a line for every target it met or
    /// missed.
    pub fn render_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _infallible = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{} with seed {}, {} shards, {:.0} s of load",
            self.workload, self.seed, self.shards, self.duration_s
        )?;
        writeln!(out, "  imbalance    {}", self.picture())?;
        writeln!(
            out,
            "               at the end {} (floor {:.2}; level is at most {:.2})",
            or_dash(self.imbalance_final, 2),
            self.imbalance_floor,
            LEVEL_FACTOR * self.imbalance_floor
        )?;
        let level = self.level_s.map_or("never level".to_owned(), |second| format!("level from second {second}"));
        let split = self.first_split_s.map_or("no split".to_owned(), |second| format!("first split at {second:.1} s"));
        writeln!(out, "  levelling    {split}, {level}")?;
        writeln!(
            out,
            "               {} splits, {} moves ({} after level), {} merges; {} moved, at least {} needed",
            self.splits,
            self.moves,
            self.moves_after_level,
            self.merges,
            bytes(self.moved_bytes),
            bytes(self.least_moved_bytes)
        )?;
        writeln!(out, "  write pauses {}", pause(&self.pause_ms))?;
        for (name, quantiles) in
            [("before", self.latency_ms.before), ("during", self.latency_ms.during), ("after", self.latency_ms.after)]
        {
            writeln!(out, "  latency      {name:<7}{}", latency(&quantiles))?;
        }
        write!(
            out,
            "  throughput   {} statements/s before, {} after",
            or_dash(self.throughput_per_s.before, 0),
            or_dash(self.throughput_per_s.after, 0)
        )?;
        match self.shard_capacity_per_s {
            // A throughput under a limit says nothing about the machine.
            Some(limit) => writeln!(out, "  (each shard limited to {limit}/s, as if on a machine of its own)")?,
            None => writeln!(out)?,
        }
        let statements = self.statements;
        writeln!(
            out,
            "  statements   {} answered ({} after a retry), {} failed, {} wrong, {} not started, {} abandoned",
            statements.ok, statements.retried, statements.failed, self.wrong_answers, self.not_started, self.abandoned
        )?;
        writeln!(
            out,
            "  read back    {} keys: {} lost, {} unreadable; replicas that differ: {}; keys without one owner: {}",
            self.verified_keys,
            self.lost_writes,
            self.unread_keys,
            or_unchecked(self.differing_replicas),
            or_unchecked(self.owners_wrong)
        )?;
        writeln!(
            out,
            "  listed       {} rows: {} that nobody wrote, {} whose writes are miscounted; pages that are wrong: {}",
            self.listed_rows, self.unwritten_rows, self.miscounted_rows, self.wrong_pages
        )?;
        self.write_judgement(out)
    }

    /// What was done to the cluster, which targets were met, and what was wrong.
    fn write_judgement(&self, out: &mut String) -> std::fmt::Result {
        for fault in &self.faults {
            writeln!(out, "  fault        at {:.1} s: {}", fault.at_s, fault.what)?;
        }
        for target in &self.targets {
            writeln!(out, "  {:<13}{}: {}", if target.met { "met" } else { "MISSED" }, target.wanted, target.found)?;
        }
        for finding in &self.findings {
            writeln!(out, "  WRONG        {finding}")?;
        }
        for message in &self.messages {
            writeln!(out, "  note         {message}")?;
        }
        Ok(())
    }

    /// The imbalance over time: from 1 (lowest) to the number of shards, one column per second or several seconds.
    fn picture(&self) -> String {
        const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let per_column = self.imbalance.len().div_ceil(PICTURE_COLUMNS).max(1);
        let span = f64::from(self.shards).max(1.5) - 1.0;
        self.imbalance
            .chunks(per_column)
            .map(|chunk| {
                let worst = chunk.iter().flatten().copied().max_by(f64::total_cmp);
                worst.map_or(' ', |value| LEVELS[(((value - 1.0) / span * 7.0).round() as usize).min(7)])
            })
            .collect()
    }
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
