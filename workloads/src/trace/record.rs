//! One recorded operation.

use std::time::Duration;

use crate::operation::Operation;

/// Rows that a recorded scan is taken to have read; the formats do not say.
pub const SCAN_LIMIT_ROWS: u32 = 20;

/// One recorded operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Time as recorded (of any origin); `None` if the trace leaves it open.
    pub time: Option<Duration>,
    /// The operation. `value_bytes` is 0 where the trace does not say.
    pub operation: Operation,
}
