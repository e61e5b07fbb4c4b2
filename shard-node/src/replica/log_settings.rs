//! Timing and limits of a shard's log.

use evenkeel_replicated_log::{Limits, Timing};

/// The smallest segment of the log, in bytes.
const MIN_SEGMENT_BYTES: u64 = 1 << 20;
/// The same in a simulation, where logs are short: they must be compacted all the same.
const SIMULATED_SEGMENT_BYTES: u64 = 16 << 10;

/// For how long the log is kept for a replica that is down, unless it comes to half of its cap, in
/// milliseconds. What a replica that was away for less needs is there, and no state has to be
/// transferred.
const ABSENT_MS: u64 = 600_000;

/// The log's clock settings. A simulation, which lasts for seconds, keeps the shorter absence.
pub(super) fn log_timing() -> Timing {
    let default = Timing::default();
    let simulated = evenkeel_host::simulation().is_some();
    Timing { forget_peer_ms: if simulated { default.forget_peer_ms } else { ABSENT_MS }, ..default }
}

/// The log's limits under this cap: a log that must stay small keeps less for replicas that are
/// down, in smaller segments.
pub(super) fn log_limits(log_cap_bytes: u64) -> Limits {
    let default = Limits::default();
    let least = if evenkeel_host::simulation().is_some() { SIMULATED_SEGMENT_BYTES } else { MIN_SEGMENT_BYTES };
    Limits {
        log_cap_bytes,
        retention_bytes: default.retention_bytes.min(log_cap_bytes / 4),
        segment_bytes: default.segment_bytes.min((log_cap_bytes / 8).max(least)),
        ..default
    }
}
