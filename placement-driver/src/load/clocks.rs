//! Clocks: how far each shard's clock is from the median.
//!
//! A shard refuses writes whose ids are too old by its log's time, which never goes back (R14). A
//! leader whose clock is far ahead therefore stops the writes of its shard for the length of the
//! error, and a range that moves there is affected too. A shard whose clock is off is therefore no
//! destination.
//!
//! Each report carries its leader's clock. A report only gets older on its way, so the highest
//! value that a leader has shown counts, reduced by the possible drift since then. The placement
//! driver's own clock is among those compared.

use evenkeel_protocol::ShardId;
use std::collections::BTreeMap;

/// A clock further than this from the median is off, in milliseconds.
pub const OFF_MS: u64 = 2_000;
/// Clocks that are needed for a median that shows which of them is wrong.
const LEAST_CLOCKS: usize = 3;
/// Clocks drift by at most one part in this many (log rule 9).
const DRIFT: u64 = 20;
/// The latest plausible clock, in milliseconds since the Unix epoch: in the year 10889.
pub(super) const MAX_CLOCK_MS: u64 = 1 << 48;

/// How far a clock is ahead of the state machine's time, in milliseconds. Only differences of such
/// values have a meaning.
pub(super) fn ahead_ms(clock_ms: u64, now_ms: u64) -> i64 {
    clock_ms.min(MAX_CLOCK_MS) as i64 - now_ms.min(MAX_CLOCK_MS) as i64
}

/// The advance of a leader's clock after a report with `seen_ms`, if it was `known_ms` at
/// `passed_ms` before.
pub(super) fn latest_ms(known_ms: i64, passed_ms: u64, seen_ms: i64) -> i64 {
    seen_ms.max(known_ms.saturating_sub((passed_ms / DRIFT) as i64))
}

/// How far each shard's clock is from the median, in milliseconds, from its advance. Empty if there
/// are too few.
pub(super) fn judge(ahead: BTreeMap<ShardId, i64>, own_ahead_ms: Option<i64>) -> BTreeMap<ShardId, i64> {
    let mut all: Vec<i64> = ahead.values().copied().chain(own_ahead_ms).collect();
    if all.len() < LEAST_CLOCKS {
        return BTreeMap::new();
    }
    all.sort_unstable();
    let middle = all.len() / 2;
    let median = if all.len().is_multiple_of(2) { all[middle - 1].midpoint(all[middle]) } else { all[middle] };
    ahead.into_iter().map(|(shard, ahead)| (shard, ahead - median)).collect()
}

#[cfg(test)]
#[path = "clocks_tests.rs"]
mod tests;
