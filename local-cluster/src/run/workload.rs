//! The workload of a run: operations, and the rows that exist before them.

use crate::run::options::MAX_KEYS;
use evenkeel_workloads::generators::{Endless, Generator};
use evenkeel_workloads::trace::{Survey, TraceError, TraceOptions, TraceReader, TraceSource};
use evenkeel_workloads::{OperationSource, Scenario};

/// A workload that is ready to run.
pub struct Workload {
    /// Its name in the report.
    pub name: String,
    /// Its operations.
    pub source: Box<dyn OperationSource>,
    /// The share (0 to 1) of operations that touch the hottest key, if it is known in advance. For
    /// a trace it depends on how much of it is replayed, and is counted.
    pub hottest_key_share: Option<f64>,
    /// The initial rows: key, and size of the value in bytes.
    pub rows: Vec<(i64, u32)>,
}

impl Workload {
    /// The workload that a scenario generates, with `rows` initial rows. The error is one line.
    pub fn generated(scenario: &Scenario, rows: u64, seed: u64) -> Result<Workload, String> {
        let generator: Box<dyn Generator> = scenario.generator(rows, seed).map_err(|e| e.to_string())?;
        let keys = 0..generator.initial_rows() as i64;
        let rows = keys.map(|key| (key, generator.initial_value_bytes(key))).collect();
        let hottest_key_share = Some(generator.hottest_key_share());
        let source = Box::new(Endless(generator));
        Ok(Workload { name: scenario.name().to_string(), source, hottest_key_share, rows })
    }

    /// The workload of a trace file. The file is read once to learn its keys.
    pub fn of_trace(options: TraceOptions) -> Result<Workload, TraceError> {
        let mut reader = TraceReader::open(&options.path, options.format)?;
        let survey = Survey::take(&mut reader, MAX_KEYS)?;
        let rows = survey.initial_rows.iter().map(|(key, bytes)| (*key, options.value_bytes(*bytes))).collect();
        let name = options.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let source = TraceSource::open(options, &survey)?;
        Ok(Workload { name: format!("trace {name}"), source: Box::new(source), hottest_key_share: None, rows })
    }
}
