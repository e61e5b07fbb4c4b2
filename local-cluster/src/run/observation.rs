//! The placement driver's state as observed at one moment.

use evenkeel_protocol::api::{OperatorBody, RangeBody, ShardBody};

/// One observation.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// The number of observations so far.
    pub number: u64,
    /// Shards.
    pub shards: Vec<ShardBody>,
    /// Ranges.
    pub ranges: Vec<RangeBody>,
    /// Operators that run.
    pub running: Vec<OperatorBody>,
}
