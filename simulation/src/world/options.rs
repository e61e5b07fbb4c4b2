//! Options and report of a run.

use evenkeel_host::Bug;
use std::collections::BTreeMap;

/// Size of a simulation, and its faults.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The deliberate bug that is active, if any.
    pub bug: Option<Bug>,
    /// Shards; `None`: the seed decides.
    pub shards: Option<u32>,
    /// For how long faults come, in milliseconds.
    pub hurt_ms: u64,
    /// Whether faults come at all.
    pub faults: bool,
}

/// Result of a run.
#[derive(Debug, Default)]
pub struct RunReport {
    /// Violations, one sentence each; empty if there is none.
    pub wrong: Vec<String>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations in the history.
    pub operations: usize,
    /// Operators that ended, by kind and end.
    pub operators: BTreeMap<String, u64>,
    /// Other events, by kind.
    pub counts: BTreeMap<&'static str, u64>,
    /// Milliseconds simulated.
    pub simulated_ms: u64,
    /// Differs if two runs differ in a byte sent, in its time to the millisecond, or in a number
    /// drawn.
    pub fingerprint: u64,
}
