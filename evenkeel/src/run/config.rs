//! What a run is told, and whether it can be done: everything that can be known to be wrong is found before anything is started.

use super::workload::Workload;
use crate::config::{ConfigError, Kind, Setting};
use crate::outputs;
use evenkeel_protocol::TableSchema;
use evenkeel_sql as sql;
use evenkeel_workloads::Scenario;
use evenkeel_workloads::replay::{MAX_IN_FLIGHT, MAX_RATE_PER_S, MAX_RUN_S, MIN_RATE_PER_S, Pace, ReplayConfig};
use evenkeel_workloads::scenario::MAX_ROWS;
use evenkeel_workloads::trace::TraceFormat;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The most keys that a run may write to: what it has to remember of each is a few words.
pub const MAX_KEYS: usize = 20_000_000;
// Half of the keys are left for those that a workload inserts.
const _: () = assert!(MAX_ROWS as usize <= MAX_KEYS / 2);
/// The shortest load, in seconds.
const MIN_DURATION_S: f64 = 0.001;
/// How long a generated load lasts unless told otherwise, in seconds.
const DEFAULT_DURATION_S: f64 = 60.0;
/// How long a trace is replayed at most unless told otherwise, in seconds.
const MAX_TRACE_S: f64 = 3600.0;
/// Operations a second unless told otherwise: what two cores carry with time to spare, the whole cluster on them.
const DEFAULT_RATE_PER_S: f64 = 1_500.0;
/// Where shards have a limit, the share of all their limits together: with what piles up at the one that has all the load at first they
/// must be done some time.
const LIMITED_SHARE: f64 = 0.8;
/// Where they have one, so many operations are under way at once as one shard answers within this time, in seconds. A shard that is
/// asked for more at once than it does in a quarter of a second refuses, and luck decides who is let in when.
const LIMITED_ANSWER_S: f64 = 0.2;
/// Operations under way at once without a rate, unless told otherwise: enough to keep two cores busy, and no more, so that latency
/// is not just the length of a queue.
const DEFAULT_WORKERS: usize = 16;
/// Operations under way at once at a rate, unless told otherwise.
const DEFAULT_IN_FLIGHT: usize = 1_000;

/// What to run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// The workload's name.
    pub workload: String,
    /// A trace file instead.
    pub trace: Option<PathBuf>,
    /// The trace's format.
    pub trace_format: Option<String>,
    /// The share of reads that become updates.
    pub update_share: f64,
    /// How long the load lasts, in seconds; absent: a minute, and for a trace as long as it takes to replay it once.
    pub duration: Option<f64>,
    /// The seed of all random choices.
    pub seed: u64,
    /// Rows to begin with.
    pub rows: u64,
    /// Operations a second; 0: as fast as it goes. Absent: a rate that leaves this machine, or shards that have a limit, time to spare, and
    /// for a trace as fast as it goes.
    pub rate: Option<f64>,
    /// Operations under way at once at most.
    pub workers: usize,
    /// The table; absent: `usertable`, or the next free name.
    pub table: Option<String>,
    /// Where the report goes as JSON.
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
    /// Its settings.
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

    /// The run's workload, if all settings can be obeyed. A trace is read to its end for that.
    pub fn prepare(&self) -> Result<Workload, ConfigError> {
        self.replay(1, None)?;
        if let Some(name) = &self.table {
            create_table(name)?;
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
        Workload::prepare(self)
    }

    /// The workload by its name, or why there is none.
    pub(super) fn scenario(&self) -> Result<Scenario, ConfigError> {
        self.workload.parse().map_err(|e| ConfigError::new(format!("workload: {e}")))
    }

    /// The trace's format, or why there is none such.
    pub(super) fn format(&self) -> Result<TraceFormat, ConfigError> {
        let Some(name) = &self.trace_format else { return Ok(TraceFormat::default()) };
        name.parse().map_err(|_| ConfigError::value("trace_format", name, "configuration", "csv or twitter"))
    }

    /// How the load is sent, to so many shards, each of which admits `limit` statements a second at most.
    pub(super) fn replay(&self, shards: u32, limit: Option<u64>) -> Result<ReplayConfig, ConfigError> {
        let wrong = |e: &dyn std::fmt::Display| ConfigError::new(format!("duration = {}: {e}", self.duration_s()));
        let duration = Duration::try_from_secs_f64(self.duration_s()).map_err(|e| wrong(&e))?;
        let replay = ReplayConfig { pace: self.pace(shards, limit), duration, shards, ..ReplayConfig::default() };
        replay.validate().map_err(|e| ConfigError::new(e.to_string()))?;
        Ok(replay)
    }

    fn pace(&self, shards: u32, limit: Option<u64>) -> Pace {
        let or = |default: usize| if self.workers == 0 { default } else { self.workers };
        let rate_per_s = limit.map_or(DEFAULT_RATE_PER_S, |limit| LIMITED_SHARE * limit as f64 * f64::from(shards));
        let default = if self.trace.is_some() { 0.0 } else { rate_per_s.max(MIN_RATE_PER_S) };
        let in_flight = limit.map_or(DEFAULT_IN_FLIGHT, |limit| {
            ((limit as f64 * LIMITED_ANSWER_S) as usize).clamp(DEFAULT_WORKERS, DEFAULT_IN_FLIGHT)
        });
        match self.rate.unwrap_or(default) {
            0.0 => Pace::AsFastAsPossible { workers: or(DEFAULT_WORKERS) },
            rate => Pace::Rate { operations_per_s: rate, max_in_flight: or(in_flight) },
        }
    }

    /// How long the load lasts at most, in seconds.
    pub fn duration_s(&self) -> f64 {
        let default = if self.trace.is_some() { MAX_TRACE_S } else { DEFAULT_DURATION_S };
        self.duration.unwrap_or(default)
    }
}

/// The run's table, under this name.
pub fn create_table(name: &str) -> Result<TableSchema, ConfigError> {
    let text = format!("CREATE TABLE {} {}", TableSchema::quote(name), evenkeel_workloads::target_sql::COLUMNS);
    let wrong = |reason: String| {
        ConfigError::value("table", format!("{name:?}"), "configuration", format!("a table's name; this one: {reason}"))
    };
    match sql::parse(&text) {
        Ok(sql::Command::CreateTable { schema, .. }) => Ok(schema),
        Ok(_) => Err(wrong("makes no table".into())),
        Err(error) => Err(wrong(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shards_admit_bounds_the_load_unless_a_rate_is_given() {
        let pace = |rate, limit| RunConfig { rate, ..RunConfig::default() }.pace(3, limit);
        let at = |operations_per_s, max_in_flight| Pace::Rate { operations_per_s, max_in_flight };
        assert_eq!(pace(None, None), at(1_500.0, 1_000));
        assert_eq!(pace(None, Some(500)), at(1_200.0, 100));
        assert_eq!(pace(Some(900.0), Some(500)), at(900.0, 100));
        assert_eq!(pace(None, Some(10)), at(24.0, DEFAULT_WORKERS), "never so few that shards wait for each other");
    }
}
