//! What is run: a workload by its name, or a trace file; and the rows it begins with.

use super::RunConfig;
use crate::cli::CommandError;
use crate::config::ConfigError;
use evenkeel_workloads::generators::{Endless, Generator};
use evenkeel_workloads::trace::{Survey, TraceFormat, TraceOptions, TraceReader, TraceSource};
use evenkeel_workloads::{Scenario, Source};
use std::path::Path;

/// A workload that is ready to run.
pub struct Workload {
    /// Its name, as the report calls it.
    pub name: String,
    /// Its operations.
    pub source: Box<dyn Source>,
    /// The share (0 to 1) of the operations that touch the hottest key, where the workload knows it; of a trace it depends on
    /// how much of it is replayed, and is counted.
    pub hottest_key_share: Option<f64>,
    /// The rows it begins with: key, and size of the value in bytes.
    pub rows: Vec<(i64, u32)>,
}

impl Workload {
    /// The workload that `config` names. A trace is read once to learn its keys.
    pub fn prepare(config: &RunConfig) -> Result<Workload, CommandError> {
        match &config.trace {
            Some(path) => Workload::trace(config, path),
            None => Workload::generated(config),
        }
    }

    fn generated(config: &RunConfig) -> Result<Workload, CommandError> {
        let scenario: Scenario = config.workload.parse().map_err(|e| ConfigError::new(format!("workload: {e}")))?;
        let made = scenario.generator(config.rows, config.seed);
        let generator: Box<dyn Generator> = made.map_err(|e| ConfigError::new(format!("rows: {e}")))?;
        let keys = 0..generator.initial_rows() as i64;
        let rows = keys.map(|key| (key, generator.initial_value_bytes(key))).collect();
        let hottest_key_share = Some(generator.hottest_key_share());
        let source = Box::new(Endless(generator));
        Ok(Workload { name: scenario.name().to_string(), source, hottest_key_share, rows })
    }

    fn trace(config: &RunConfig, path: &Path) -> Result<Workload, CommandError> {
        let accepted = "csv or twitter";
        let format = match &config.trace_format {
            None => TraceFormat::default(),
            Some(name) => {
                name.parse().map_err(|_| ConfigError::value("trace_format", name, "configuration", accepted))?
            }
        };
        let mut reader = TraceReader::open(path, format).map_err(CommandError::failed)?;
        let survey = Survey::take(&mut reader, super::MAX_KEYS).map_err(CommandError::failed)?;
        let mut options = TraceOptions::new(path, format);
        options.update_share = config.update_share;
        options.seed = config.seed;
        // Asked for a time, it begins again if it must; else it is replayed once.
        options.repeat = config.duration.is_some();
        let rows = survey.initial_rows.iter().map(|(key, bytes)| (*key, options.value_bytes(*bytes))).collect();
        let source = TraceSource::open(options, &survey).map_err(CommandError::failed)?;
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Workload { name: format!("trace {name}"), source: Box::new(source), hottest_key_share: None, rows })
    }
}
