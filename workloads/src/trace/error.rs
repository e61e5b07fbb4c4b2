//! Errors of reading a trace.

use std::io;
use std::path::PathBuf;

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
        /// The problem, and what the format expects.
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
