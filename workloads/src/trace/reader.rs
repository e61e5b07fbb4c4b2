//! Reads a trace line by line, compressed or not, in any of the formats.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::error::TraceError;
use super::format::TraceFormat;
use super::record::TraceRecord;
use super::{csv, twitter};

/// The longest line that is read, in bytes. Twitter's anonymised keys reach a few hundred.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

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
