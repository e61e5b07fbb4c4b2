//! The settings of a run, shared by `demo` and `replay`. Invalid settings are rejected before
//! anything starts.

use crate::config::{ConfigError, Kind, Setting};
use crate::error::CommandError;
use crate::outputs;
use evenkeel_local_cluster::run::options::MAX_KEYS;
use evenkeel_local_cluster::run::table::run_table;
use evenkeel_local_cluster::run::workload::Workload;
use evenkeel_local_cluster::run::{FinishedRun, ProgressListener, RunOptions};
use evenkeel_workloads::Scenario;
use evenkeel_workloads::replay::{MAX_IN_FLIGHT, MAX_RATE_PER_S, MAX_RUN_S, MIN_RATE_PER_S};
use evenkeel_workloads::scenario::MAX_ROWS;
use evenkeel_workloads::trace::{TraceFormat, TraceOptions};
use serde::Deserialize;
use std::path::{Path, PathBuf};

// Half of the keys are reserved for rows that a workload inserts.
const _: () = assert!(MAX_ROWS as usize <= MAX_KEYS / 2);
/// The shortest load, in seconds.
const MIN_DURATION_S: f64 = 0.001;
/// Default duration of a generated load, in seconds.
const DEFAULT_DURATION_S: f64 = 60.0;
/// Default bound of a trace's replay, in seconds.
const MAX_TRACE_S: f64 = 3600.0;
/// The settings of a run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// The workload's name.
    pub workload: String,
    /// A trace file instead.
    pub trace: Option<PathBuf>,
    /// The trace's format.
    pub trace_format: Option<String>,
    /// The share (0 to 1) of reads that become updates.
    pub update_share: f64,
    /// The duration of the load, in seconds; absent: a minute, or the time to replay a trace once.
    pub duration: Option<f64>,
    /// The seed of all random choices.
    pub seed: u64,
    /// Initial rows.
    pub rows: u64,
    /// Operations per second; 0: as fast as possible. Absent: see [`RunOptions::rate`].
    pub rate: Option<f64>,
    /// The bound of operations in flight; 0: a default.
    pub workers: usize,
    /// The table; absent: `usertable`, or the next free name.
    pub table: Option<String>,
    /// The file that receives the report as JSON.
    pub report: Option<PathBuf>,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            workload: "mixgraph".into(),
            trace: None,
            trace_format: None,
            update_share: 0.0,
            duration: None,
            seed: 1,
            rows: 20_000,
            rate: None,
            workers: 0,
            table: None,
            report: None,
        }
    }
}

impl RunConfig {
    /// The settings of a run.
    pub fn settings() -> Vec<Setting> {
        vec![
            Setting::optional("workload", Kind::Text),
            Setting::optional("trace", Kind::Path).instead_of("workload"),
            Setting::optional("trace_format", Kind::Text),
            Setting::optional("update_share", Kind::Share),
            Setting::optional("duration", Kind::Seconds(MIN_DURATION_S, MAX_RUN_S as f64)),
            Setting::optional("seed", Kind::Count(0, i64::MAX)),
            Setting::optional("rows", Kind::Count(1, MAX_ROWS as i64)),
            Setting::optional("rate", Kind::ZeroOr(MIN_RATE_PER_S, MAX_RATE_PER_S)),
            Setting::optional("workers", Kind::Count(1, MAX_IN_FLIGHT as i64)),
            Setting::optional("table", Kind::Text),
            Setting::optional("report", Kind::Path),
        ]
    }

    /// Checks all settings and returns the workload. A trace is read to its end.
    pub fn prepare(&self) -> Result<Workload, ConfigError> {
        self.options().replay(1, None).map_err(ConfigError::new)?;
        if let Some(name) = &self.table {
            run_table(name).map_err(|reason| {
                let accepted = format!("a table's name; this one: {reason}");
                ConfigError::value("table", format!("{name:?}"), "configuration", accepted)
            })?;
        }
        if let Some(path) = &self.report {
            outputs::check("report", path)?;
        }
        if self.trace.is_none() {
            let alone = |line: String| ConfigError::new(format!("{line} (configuration): accepted only with a trace"));
            if self.update_share > 0.0 {
                return Err(alone(format!("update_share = {}", self.update_share)));
            }
            if let Some(format) = &self.trace_format {
                return Err(alone(format!("trace_format = {format}")));
            }
        }
        match &self.trace {
            Some(path) => of_trace(self, path),
            None => generated(self),
        }
    }

    fn format(&self) -> Result<TraceFormat, ConfigError> {
        let Some(name) = &self.trace_format else { return Ok(TraceFormat::default()) };
        name.parse().map_err(|_| ConfigError::value("trace_format", name, "configuration", "csv or twitter"))
    }

    /// The parameters of the run itself.
    pub fn options(&self) -> RunOptions {
        RunOptions {
            seed: self.seed,
            duration_s: self.duration_s(),
            rate: self.rate,
            workers: self.workers,
            is_trace: self.trace.is_some(),
            table: self.table.clone(),
        }
    }

    /// The bound of the load's duration, in seconds.
    pub fn duration_s(&self) -> f64 {
        let default = if self.trace.is_some() { MAX_TRACE_S } else { DEFAULT_DURATION_S };
        self.duration.unwrap_or(default)
    }
}

/// The workload of a scenario, by its name.
fn generated(config: &RunConfig) -> Result<Workload, ConfigError> {
    let scenario: Scenario = config.workload.parse().map_err(|e| ConfigError::new(format!("workload: {e}")))?;
    Workload::generated(&scenario, config.rows, config.seed).map_err(|e| ConfigError::new(format!("rows: {e}")))
}

/// The workload of a trace file.
fn of_trace(config: &RunConfig, path: &Path) -> Result<Workload, ConfigError> {
    let mut options = TraceOptions::new(path, config.format()?);
    options.update_share = config.update_share;
    options.seed = config.seed;
    // With a duration the trace is repeated as often as needed; without one it is replayed once.
    options.repeat = config.duration.is_some();
    Workload::of_trace(options).map_err(|error| {
        let accepted = format!("a trace that can be replayed; this one: {error}");
        ConfigError::value("trace", path.display(), "configuration", accepted)
    })
}

/// Shows the report of a run, and writes it to the file of the configuration. The error says that
/// the run found a violation, or that the file was not written.
pub fn conclude(
    finished: &FinishedRun,
    config: &RunConfig,
    progress: &dyn ProgressListener,
) -> Result<(), CommandError> {
    progress.line("");
    progress.line(&finished.report.to_string());
    if let Some(path) = &config.report {
        outputs::write(path, &finished.report.to_json())
            .map_err(|e| CommandError::Failed(format!("the report is above only: {e}")))?;
        progress.line(&format!("the report is in {}", path.display()));
    }
    if finished.report.is_good() {
        return Ok(());
    }
    Err(CommandError::Failed("the run has found something wrong: see the report".into()))
}
