//! Recorded workloads.
//!
//! A trace is read as a stream: memory does not grow with its length, a line that is too long is an
//! error and not an allocation, and every error names the line. Two formats are known, each in a
//! module of its own: [`csv`], Evenkeel's own, and [`twitter`], the cache traces that Twitter
//! published (Yang, Yue and Rashmi, OSDI 2020). Both may be compressed with gzip; that is seen in
//! the content, not in the file's name.
//!
//! [`Survey`] reads a trace once before it is replayed, to learn the keys to load and the share of
//! the hottest of them. [`TraceSource`] then feeds it to the engine, and can turn a seeded share of
//! reads into updates, since most published traces are almost all reads.

pub mod csv;
mod error;
mod fields;
mod format;
mod reader;
mod record;
mod source;
mod survey;
pub mod twitter;

pub use error::TraceError;
pub use format::TraceFormat;
pub use reader::{MAX_LINE_BYTES, TraceReader};
pub use record::{SCAN_LIMIT_ROWS, TraceRecord};
pub use source::{TraceOptions, TraceSource};
pub use survey::Survey;
