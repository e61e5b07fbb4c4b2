//! The record of a run: everything that a report is made of.

use serde::Serialize;

use crate::replay::{ReplayRecord, Verification};

/// What an operator did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletedOperator {
    /// Cut a range.
    Split,
    /// Took a range to another shard.
    Move,
    /// Joined two ranges.
    Merge,
}

/// An operator that was carried out. Those that were cancelled, that failed, or that had ended
/// before the load began do not belong here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperatorRecord {
    /// What it did.
    pub kind: CompletedOperator,
    /// When it began, in seconds since the start of the load.
    pub started_s: f64,
    /// When it was done, likewise.
    pub ended_s: f64,
    /// Bytes that it carried to another shard.
    pub moved_bytes: u64,
    /// How long writes to the range waited at the switch, in milliseconds; `None` if they did not.
    pub pause_ms: Option<f64>,
}

/// A range as it is at the end of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeRecord {
    /// The shard that owned its keys when the load began.
    pub home_shard: u32,
    /// Its load at the end, in any unit that is the same for all ranges.
    pub load: f64,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// Something that was done to the cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FaultRecord {
    /// When, in seconds since the start of the load.
    pub at_s: f64,
    /// What.
    pub what: String,
}

/// Everything a report is made of.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// The workload's name.
    pub workload: String,
    /// The run's seed.
    pub seed: u64,
    /// Shards at the end of the run.
    pub shards: u32,
    /// Share (0 to 1) of the hottest single key. The workload's own figure where it has one,
    /// otherwise what was counted.
    pub hottest_key_share: f64,
    /// What the engine saw.
    pub replay: ReplayRecord,
    /// What reading back has shown.
    pub verification: Verification,
    /// Operators that were carried out, in any order.
    pub operators: Vec<OperatorRecord>,
    /// All ranges at the end.
    pub ranges: Vec<RangeRecord>,
    /// Replicas whose content differs from their shard's; `None` if that was not checked.
    pub differing_replicas: Option<u64>,
    /// Keys or key intervals owned by no shard or by several; `None` if that was not checked.
    pub owners_wrong: Option<u64>,
    /// What was done to the cluster, in order.
    pub faults: Vec<FaultRecord>,
    /// Admission limit of each shard's leader, in statements per second, if one was set.
    pub shard_capacity_per_s: Option<u64>,
    /// What else was found wrong, in words; whoever ran it takes the run for failed.
    pub findings: Vec<String>,
}
