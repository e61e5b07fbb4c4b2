//! The report as data, and its JSON.

use serde::Serialize;

use super::error::ReportError;
use super::run_record::FaultRecord;

/// Level is an imbalance of at most this many times its floor.
pub const LEVEL_FACTOR: f64 = 1.25;

/// Seconds at the end of the run over which the final imbalance is the mean.
pub const FINAL_WINDOW_S: usize = 10;

/// Median, 99th percentile and maximum, in milliseconds; null where there is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PauseMs {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Maximum.
    pub max: Option<f64>,
}

/// Quantiles of a latency, in milliseconds; null where nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// 99.9th percentile.
    pub p999: Option<f64>,
}

/// Latency of operations by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyMs {
    /// Up to the first split.
    pub before: Quantiles,
    /// From the first split until level; to the end if it never was.
    pub during: Quantiles,
    /// From level on.
    pub after: Quantiles,
}

/// Statements by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statements {
    /// Answered.
    pub ok: u64,
    /// Of these, answered after at least one retry inside the client.
    pub retried: u64,
    /// Not answered.
    pub failed: u64,
}

/// Answered statements per second; null where a phase did not last a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Throughput {
    /// Up to the first split.
    pub before: Option<f64>,
    /// From level on.
    pub after: Option<f64>,
}

/// One target of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunTarget {
    /// The target, in words.
    pub wanted: String,
    /// The result, in words.
    pub found: String,
    /// Whether the result meets it.
    pub met: bool,
}

/// The report of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The workload's name.
    pub workload: String,
    /// The run's seed: the same workload, rows and seed give the same operations.
    pub seed: u64,
    /// Shards at the end.
    pub shards: u32,
    /// How long operations were started for, in seconds.
    pub duration_s: f64,
    /// `max(1, N·p)`.
    pub imbalance_floor: f64,
    /// Mean of the last ten seconds; null if nothing was answered in them.
    pub imbalance_final: Option<f64>,
    /// One value per second; null for a second in which nothing was answered.
    pub imbalance: Vec<Option<f64>>,
    /// When the first split was done, in seconds since the start of the load; null if there was
    /// none.
    pub first_split_s: Option<f64>,
    /// The first second of those, to the end, in which the load was level; null if it was not at
    /// the end.
    pub level_s: Option<u64>,
    /// Splits carried out.
    pub splits: u64,
    /// Moves carried out.
    pub moves: u64,
    /// Merges carried out.
    pub merges: u64,
    /// Bytes that moves carried to another shard.
    pub moved_bytes: u64,
    /// The fewest bytes that any plan would have had to move to be level; see
    /// [`least_moved_bytes`](super::least_moved_bytes).
    pub least_moved_bytes: u64,
    /// How long writes waited, per move.
    pub pause_ms: PauseMs,
    /// Latency of operations.
    pub latency_ms: LatencyMs,
    /// Statements by how they ended.
    pub statements: Statements,
    /// Throughput before and after.
    pub throughput_per_s: Throughput,
    /// Keys whose acknowledged write could not be read back.
    pub lost_writes: u64,
    /// Replicas whose content differs; null if not checked.
    pub differing_replicas: Option<u64>,
    /// Keys without exactly one owner; null if not checked.
    pub owners_wrong: Option<u64>,
    /// What chaos did and when.
    pub faults: Vec<FaultRecord>,
    /// Keys that were read back and judged.
    pub verified_keys: u64,
    /// Keys that could not be read back: nothing is known about them.
    pub unread_keys: u64,
    /// Rows whose count of writes is not what was acknowledged: a write was applied twice, or one
    /// that a later one covers not at all.
    pub miscounted_rows: u64,
    /// Rows in a listing of the whole table after the run.
    pub listed_rows: u64,
    /// Rows of it that nobody wrote.
    pub unwritten_rows: u64,
    /// Pages of it that could not be read, left a row out, or were out of order.
    pub wrong_pages: u64,
    /// Answers during the run that contradict what was acknowledged before.
    pub wrong_answers: u64,
    /// Operations that were due and never started: the store did not keep up with the rate.
    pub not_started: u64,
    /// Operations that never ended.
    pub abandoned: u64,
    /// Moves that began after the load was level and before it ended; a balancer that stops makes
    /// none.
    pub moves_after_level: u64,
    /// Admission limit of each shard's leader, in statements per second. Where it is set,
    /// throughput is the limit's, not the machine's.
    pub shard_capacity_per_s: Option<u64>,
    /// What a run should show, and whether this one did.
    pub targets: Vec<RunTarget>,
    /// What was found wrong beside the figures, in words.
    pub findings: Vec<String>,
    /// The first failures, wrong answers and lost keys, in words.
    pub messages: Vec<String>,
}

impl Report {
    /// Whether nothing was lost, wrong, or left undone. How soon and how well the load became level
    /// is for [`Report::targets`] to say.
    pub fn is_good(&self) -> bool {
        self.lost_writes == 0
            && self.unread_keys == 0
            && self.miscounted_rows == 0
            && self.unwritten_rows == 0
            && self.wrong_pages == 0
            && self.wrong_answers == 0
            && self.statements.failed == 0
            && self.differing_replicas == Some(0)
            && self.owners_wrong == Some(0)
            && self.findings.is_empty()
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        // Every field is a number, a string or a list of them, which always serialises; non-finite
        // floats become null.
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .unwrap_or_else(|error| ReportError { code: "not-serialisable", message: error.to_string() }.to_json())
    }
}
