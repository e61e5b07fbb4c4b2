//! A range as the placement state knows it, and how long it rests after failures.

use super::limits::MAX_COOLDOWN_MS;
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::{OperatorId, ShardId};
use serde::{Deserialize, Serialize};

/// A range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its keys, its owner and its epoch.
    pub route: Route,
    /// The operator that works on it.
    pub operator: Option<OperatorId>,
    /// When its bounds last changed, in milliseconds of the state machine's time.
    pub bounds_since_ms: u64,
    /// The shards that its rows left lately, each with the time in milliseconds of the state
    /// machine's time, oldest first. The pieces of a split inherit it.
    pub left: Vec<(ShardId, u64)>,
    /// The operators that failed on it since the last success.
    pub failures: Failures,
}

impl Range {
    /// When its rows last left `shard`, if that is remembered.
    pub fn left_at_ms(&self, shard: ShardId) -> Option<u64> {
        self.left.iter().rev().find(|(id, _)| *id == shard).map(|(_, at)| *at)
    }
}

/// Consecutive operators that failed or were cancelled on a range. The pause after them doubles
/// each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Their number.
    pub times: u32,
    /// When the last of them ended, in milliseconds of the state machine's time.
    pub last_ms: u64,
}

impl Failures {
    /// The end of the pause, in milliseconds of the state machine's time: `cooldown_ms` after the
    /// first failure, twice as long after each further one, at most [`MAX_COOLDOWN_MS`]. `None`
    /// without a failure.
    pub fn until_ms(&self, cooldown_ms: u64) -> Option<u64> {
        let doublings = self.times.checked_sub(1)?.min(20);
        let pause_ms = cooldown_ms.saturating_mul(1 << doublings).min(cooldown_ms.max(MAX_COOLDOWN_MS));
        Some(self.last_ms + pause_ms)
    }
}
