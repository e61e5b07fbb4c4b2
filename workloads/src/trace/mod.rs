//! Recorded workloads.
//!
//! A trace is read as a stream: memory does not grow with its length, a line that is too long is an error and not an
//! allocation, and every error names the line. Two formats are known, each in a module of its own: [`csv`], ours, and
//! [`twitter`], the cache traces that Twitter published (Yang, Yue and Rashmi, OSDI 2020). Both may be compressed with
//! gzip; that is seen in the content, not in the file's name.
//!
//! [`Survey`] reads a trace once before it is replayed, for what has to be known first: the keys to load, and the share
//! of the hottest of them. [`TraceSource`] then feeds it to the engine, and can turn a seeded share of reads into updates,
//! since most published traces are almost all reads.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;

use crate::operation::Operation;

pub mod csv;
mod source;
mod survey;
pub mod twitter;

pub use source::{TraceOptions, TraceSource};
pub use survey::Survey;

/// The longest line that is read, in bytes. Twitter's anonymised keys reach a few hundred.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// Rows that a recorded scan is taken to have read; the formats do not say.
pub const SCAN_LIMIT_ROWS: u32 = 20;

/// Why a trace cannot be replayed. None of these goes away by trying again.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened.
    #[error("cannot open the trace {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Reading failed on the way, for example because compressed data is cut short.
    #[error("the trace cannot be read past line {line}: {source}")]
    Read {
        /// The last line that was read; 0 if none.
        line: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not what the format says.
    #[error("line {line} of the trace: {problem}")]
    Line {
        /// The line's number, from 1.
        line: u64,
        /// What is wrong with it and what is expected.
        problem: String,
    },
    /// The file's compression is not supported.
    #[error("the trace {path} is compressed with {compression}; only gzip is read: decompress it first")]
    Compression {
        /// The file.
        path: PathBuf,
        /// The compression found.
        compression: &'static str,
    },
    /// More keys than can be remembered.
    #[error("line {line} of the trace brings more than {max_keys} different keys")]
    TooManyKeys {
        /// The line's number, from 1.
        line: u64,
        /// The limit.
        max_keys: usize,
    },
    /// The trace holds no operation.
    #[error("the trace is empty")]
    Empty,
}

/// A trace's format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceFormat {
    /// `time_us,op,key[,value_bytes]`; see [`csv`].
    #[default]
    Csv,
    /// Twitter's cache traces; see [`twitter`].
    Twitter,
}

impl std::str::FromStr for TraceFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "csv" => Ok(Self::Csv),
            "twitter" => Ok(Self::Twitter),
            _ => Err(format!("unknown trace format `{name}`; accepted: csv, twitter")),
        }
    }
}

/// One recorded operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Time as recorded (of any origin); `None` if the trace leaves it open.
    pub time: Option<Duration>,
    /// The operation. `value_bytes` is 0 where the trace does not say.
    pub operation: Operation,
}

/// Reads the records of a trace one by one.
pub struct TraceReader<R> {
    input: R,
    format: TraceFormat,
    line: u64,
    buffer: Vec<u8>,
}

impl TraceReader<Box<dyn BufRead + Send>> {
    /// Opens a file, compressed with gzip or not.
    pub fn open(path: &Path, format: TraceFormat) -> Result<Self, TraceError> {
        let opening = |source| TraceError::Open { path: path.to_owned(), source };
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(opening)?);
        let magic = file.fill_buf().map_err(opening)?;
        let input: Box<dyn BufRead + Send> = if magic.starts_with(&[0x1f, 0x8b]) {
            // Several gzip members in a row are one file, as gzip itself sees it.
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file)))
        } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Err(TraceError::Compression { path: path.to_owned(), compression: "zstd" });
        } else {
            Box::new(file)
        };
        Ok(Self::new(input, format))
    }
}

impl<R: BufRead> TraceReader<R> {
    /// Reads from any buffered input.
    pub fn new(input: R, format: TraceFormat) -> Self {
        Self { input, format, line: 0, buffer: Vec::new() }
    }

    /// Number of the line read last, from 1; 0 before the first.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Reads the next line into the buffer; false at the end.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = self.input.by_ref().take(limit).read_until(b'\n', &mut self.buffer);
        let length = read.map_err(|source| TraceError::Read { line: self.line, source })?;
        if length == 0 {
            return Ok(false);
        }
        self.line += 1;
        if length > MAX_LINE_BYTES {
            return Err(self.problem(format!("is longer than {MAX_LINE_BYTES} bytes")));
        }
        Ok(true)
    }

    fn problem(&self, problem: String) -> TraceError {
        TraceError::Line { line: self.line, problem }
    }

    /// The next record, or `None` at the end. After an error the reader must not be used further.
    pub fn next_record(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        loop {
            if !self.read_line()? {
                return Ok(None);
            }
            let line = std::str::from_utf8(&self.buffer).map_err(|_| self.problem("is not UTF-8".to_owned()))?;
            let line = line.trim_end_matches(['\n', '\r']);
            if line.trim().is_empty() {
                continue;
            }
            let first = self.line == 1;
            let parsed = match self.format {
                TraceFormat::Csv if first && csv::is_header(line) => continue,
                TraceFormat::Csv => csv::parse(line),
                TraceFormat::Twitter if first && twitter::is_header(line) => continue,
                TraceFormat::Twitter => twitter::parse(line),
            };
            return parsed.map(Some).map_err(|problem| self.problem(problem));
        }
    }
}

/// Parses one field of a line; the error says which field, what it holds, and what is expected.
fn field<T: std::str::FromStr>(name: &str, text: &str, expected: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("{name} is `{}`, expected {expected}", shorten(text)))
}

/// A field as it may be shown in a message.
fn shorten(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    if text.chars().count() <= SHOWN_CHARS {
        text.to_owned()
    } else {
        text.chars().take(SHOWN_CHARS).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::operation::OperationKind;

    fn read(text: &str, format: TraceFormat) -> Result<Vec<TraceRecord>, TraceError> {
        let mut reader = TraceReader::new(text.as_bytes(), format);
        let mut records = Vec::new();
        while let Some(record) = reader.next_record()? {
            records.push(record);
        }
        Ok(records)
    }

    #[test]
    fn errors_name_the_line() {
        let error = read("time_us,op,key\n1,read,5\n\n2,fetch,6\n", TraceFormat::Csv).unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 4 of the trace: op is `fetch`, expected read, update, insert, delete or scan"
        );
        let long = format!(",read,1\n,read,{}\n", "1".repeat(MAX_LINE_BYTES));
        assert!(read(&long, TraceFormat::Csv).unwrap_err().to_string().starts_with("line 2 of the trace: is longer"));
        let mut reader = TraceReader::new(&b",read,\xff\n"[..], TraceFormat::Csv);
        assert_eq!(reader.next_record().unwrap_err().to_string(), "line 1 of the trace: is not UTF-8");
    }

    #[test]
    fn gzip_is_seen_by_content_and_a_cut_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.csv");
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        for key in 0..5_000 {
            writeln!(encoder, ",read,{key}").unwrap();
        }
        let compressed = encoder.finish().unwrap();
        std::fs::write(&path, &compressed).unwrap();
        let mut reader = TraceReader::open(&path, TraceFormat::Csv).unwrap();
        let mut count = 0;
        while let Some(record) = reader.next_record().unwrap() {
            assert_eq!((record.operation.key, record.operation.kind), (count, OperationKind::Read));
            count += 1;
        }
        assert_eq!((count, reader.line()), (5_000, 5_000));

        std::fs::write(&path, &compressed[..compressed.len() - 20]).unwrap();
        let mut reader = TraceReader::open(&path, TraceFormat::Csv).unwrap();
        let error = loop {
            match reader.next_record() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a cut file ended as if it were whole"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, TraceError::Read { .. }), "{error}");

        std::fs::write(&path, [0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap();
        assert!(matches!(TraceReader::open(&path, TraceFormat::Csv), Err(TraceError::Compression { .. })));
        let missing = TraceReader::open(&folder.path().join("none"), TraceFormat::Csv);
        assert!(matches!(missing, Err(TraceError::Open { .. })));
    }

    #[test]
    fn windows_line_ends_and_a_missing_last_one_are_fine() {
        assert_eq!(read(",read,1\r\n,read,2", TraceFormat::Csv).unwrap().len(), 2);
        assert!(read("", TraceFormat::Csv).unwrap().is_empty());
        assert_eq!("zip".parse::<TraceFormat>().unwrap_err(), "unknown trace format `zip`; accepted: csv, twitter");
    }
}
