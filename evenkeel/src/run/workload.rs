//! What is run: a workload by its name, or a trace file; and the rows it begins with.

use super::config::{MAX_KEYS, RunConfig};
use crate::config::ConfigError;
use evenkeel_workloads::Source;
use evenkeel_workloads::generators::{Endless, Generator};
use evenkeel_workloads::trace::{Survey, TraceError, TraceOptions, TraceReader, TraceSource};
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
    pub fn prepare(config: &RunConfig) -> Result<Workload, ConfigError> {
        match &config.trace {
            Some(path) => Workload::trace(config, path),
            None => Workload::generated(config),
        }
    }

    fn generated(config: &RunConfig) -> Result<Workload, ConfigError> {
        let scenario = config.scenario()?;
        let made = scenario.generator(config.rows, config.seed);
        let generator: Box<dyn Generator> = made.map_err(|e| ConfigError::new(format!("rows: {e}")))?;
        let keys = 0..generator.initial_rows() as i64;
        let rows = keys.map(|key| (key, generator.initial_value_bytes(key))).collect();
        let hottest_key_share = Some(generator.hottest_key_share());
        let source = Box::new(Endless(generator));
        Ok(Workload { name: scenario.name().to_string(), source, hottest_key_share, rows })
    }

    fn trace(config: &RunConfig, path: &Path) -> Result<Workload, ConfigError> {
        let wrong = |error: TraceError| {
            let accepted = format!("a trace that can be replayed; this one: {error}");
            ConfigError::value("trace", path.display(), "configuration", accepted)
        };
        let format = config.format()?;
        let mut reader = TraceReader::open(path, format).map_err(wrong)?;
        let survey = Survey::take(&mut reader, MAX_KEYS).map_err(wrong)?;
        let mut options = TraceOptions::new(path, format);
        options.update_share = config.update_share;
        options.seed = config.seed;
        // Asked for a time, it begins again if it must; else it is replayed once.
        options.repeat = config.duration.is_some();
        let rows = survey.initial_rows.iter().map(|(key, bytes)| (*key, options.value_bytes(*bytes))).collect();
        let source = TraceSource::open(options, &survey).map_err(wrong)?;
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Workload { name: format!("trace {name}"), source: Box::new(source), hottest_key_share: None, rows })
    }
}
