//! A trace as a source of operations.

use std::path::PathBuf;
use std::time::Duration;

use super::error::TraceError;
use super::format::TraceFormat;
use super::reader::TraceReader;
use super::record::TraceRecord;
use super::survey::Survey;
use crate::operation::{OperationKind, OperationSource, SourceError, TimedOperation};
use crate::seed::SeededRandom;

/// How a trace is replayed.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: TraceFormat,
    /// Share (0 to 1) of the reads that become updates, decided by the seed.
    pub update_share: f64,
    /// Size of written values where the trace names none, in bytes.
    pub default_value_bytes: u32,
    /// Largest value that is written, in bytes; larger ones in the trace are written at this size.
    pub max_value_bytes: u32,
    /// Start again at the end. Recorded times go on from where they were.
    pub repeat: bool,
    /// Seed of the reads that become updates.
    pub seed: u64,
}

impl TraceOptions {
    /// Every option at its usual value: no updates added, 100-byte values, at most 64 KiB, once
    /// through, seed 1.
    pub fn new(path: impl Into<PathBuf>, format: TraceFormat) -> Self {
        Self {
            path: path.into(),
            format,
            update_share: 0.0,
            default_value_bytes: 100,
            max_value_bytes: 64 * 1024,
            repeat: false,
            seed: 1,
        }
    }

    /// The size that a value of `recorded_bytes` in the trace is written with, in bytes.
    pub fn value_bytes(&self, recorded_bytes: u32) -> u32 {
        let wanted = if recorded_bytes == 0 { self.default_value_bytes } else { recorded_bytes };
        wanted.min(self.max_value_bytes)
    }
}

type FileReader = TraceReader<Box<dyn std::io::BufRead + Send>>;

/// Feeds a trace file to the engine.
pub struct TraceSource {
    options: TraceOptions,
    reader: FileReader,
    random: SeededRandom,
    hottest_key_share: f64,
    /// Recorded time of the current pass's first timed record.
    origin: Option<Duration>,
    /// Time in the replay at which the current pass began.
    pass_start: Duration,
    /// Time in the replay of the last timed record.
    latest: Duration,
    /// Whether the current pass has given a record: an empty file must not be repeated for ever.
    given: bool,
}

impl TraceSource {
    /// Opens the trace. The survey says how hot its hottest key is.
    pub fn open(options: TraceOptions, survey: &Survey) -> Result<Self, TraceError> {
        let reader = TraceReader::open(&options.path, options.format)?;
        Ok(Self {
            random: SeededRandom::new(options.seed, 0x7472_6163),
            hottest_key_share: survey.hottest_key_share,
            options,
            reader,
            origin: None,
            pass_start: Duration::ZERO,
            latest: Duration::ZERO,
            given: false,
        })
    }

    fn next_record(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        loop {
            if let Some(record) = self.reader.next_record()? {
                self.given = true;
                return Ok(Some(record));
            }
            if !self.options.repeat || !self.given {
                return Ok(None);
            }
            self.reader = TraceReader::open(&self.options.path, self.options.format)?;
            (self.origin, self.pass_start, self.given) = (None, self.latest, false);
        }
    }

    fn place(&mut self, recorded: Duration) -> Duration {
        let origin = *self.origin.get_or_insert(recorded);
        // Traces that were merged from several machines step back a little; time here does not.
        self.latest = self.latest.max(self.pass_start + recorded.saturating_sub(origin));
        self.latest
    }
}

impl OperationSource for TraceSource {
    fn next(&mut self, _now: Duration) -> Result<Option<TimedOperation>, SourceError> {
        let Some(record) = self.next_record()? else { return Ok(None) };
        let at = record.time.map(|time| self.place(time));
        let mut operation = record.operation;
        if operation.kind == OperationKind::Read && self.random.chance(self.options.update_share) {
            operation.kind = OperationKind::Update;
        }
        operation.value_bytes =
            if operation.kind.writes() { self.options.value_bytes(operation.value_bytes) } else { 0 };
        Ok(Some(TimedOperation { at, operation }))
    }

    fn hottest_key_share(&self) -> Option<f64> {
        Some(self.hottest_key_share)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn source(text: &str, change: impl FnOnce(&mut TraceOptions)) -> (tempfile::TempDir, TraceSource) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        std::fs::write(&path, text).unwrap();
        let mut options = TraceOptions::new(path.clone(), TraceFormat::Csv);
        change(&mut options);
        let survey = Survey::take(&mut TraceReader::open(&path, TraceFormat::Csv).unwrap(), 1_000).unwrap();
        (folder, TraceSource::open(options, &survey).unwrap())
    }

    #[test]
    fn times_start_at_zero_never_step_back_and_go_on_when_repeated() {
        let (_folder, mut source) = source("500,read,1\n700,read,1\n600,read,1\n", |options| options.repeat = true);
        let times: Vec<u128> =
            (0..7).map(|_| source.next(Duration::ZERO).unwrap().unwrap().at.unwrap().as_micros()).collect();
        assert_eq!(times, [0, 200, 200, 200, 400, 400, 400]);
    }

    #[test]
    fn a_seeded_share_of_reads_becomes_updates() {
        let text = ",read,1\n".repeat(5_000) + &",scan,2\n".repeat(10);
        let updates = |seed| {
            let (_folder, mut source) = source(&text, |options| {
                (options.update_share, options.seed) = (0.2, seed);
            });
            let mut kinds = Vec::new();
            while let Some(timed) = source.next(Duration::ZERO).unwrap() {
                assert_eq!(timed.operation.value_bytes > 0, timed.operation.kind.writes());
                kinds.push(timed.operation.kind);
            }
            kinds
        };
        let first = updates(1);
        assert_eq!(first, updates(1));
        assert_ne!(first, updates(2));
        let count = first.iter().filter(|kind| **kind == OperationKind::Update).count();
        assert!((900..1_100).contains(&count), "{count}");
        assert_eq!(first.len(), 5_010);
    }

    #[test]
    fn sizes_come_from_the_trace_within_the_limit() {
        let (_folder, mut source) =
            source(",update,1\n,update,1,7\n,update,1,999999\n", |options| options.max_value_bytes = 200);
        let sizes: Vec<u32> =
            (0..3).map(|_| source.next(Duration::ZERO).unwrap().unwrap().operation.value_bytes).collect();
        assert_eq!(sizes, [100, 7, 200]);
    }
}
