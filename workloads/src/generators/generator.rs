//! An endless workload, and its use as a source of operations.

use std::time::Duration;

use crate::operation::{Operation, OperationSource, SourceError, TimedOperation};

/// An endless workload.
pub trait Generator: Send {
    /// The operation due at `now` (time since the start of the run; never runs backwards).
    fn next(&mut self, now: Duration) -> Operation;

    /// Rows to load before the run: keys `0 .. initial_rows()`.
    fn initial_rows(&self) -> u64;

    /// Size of the value that row `key` is loaded with, in bytes.
    fn initial_value_bytes(&self, key: i64) -> u32;

    /// The hottest single key's share (0 to 1) of the operations.
    fn hottest_key_share(&self) -> f64;
}

/// A generator as a source that never ends and has no times of its own.
pub struct Endless(pub Box<dyn Generator>);

impl OperationSource for Endless {
    fn next(&mut self, now: Duration) -> Result<Option<TimedOperation>, SourceError> {
        Ok(Some(TimedOperation { at: None, operation: self.0.next(now) }))
    }

    fn hottest_key_share(&self) -> Option<f64> {
        Some(self.0.hottest_key_share())
    }
}
