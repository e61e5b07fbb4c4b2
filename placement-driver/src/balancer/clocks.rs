//! Judging clocks: how far each shard's is from the median of all.
//!
//! A shard refuses writes whose ids are too old by its log's time, which never goes back (R14): a leader whose clock is far ahead stops its shard's
//! writes for as long as the error is large. A range that moves to such a shard shares that. So clocks are compared, and a shard whose clock
//! is off is no destination.
//!
//! Each report tells its leader's clock. On its way a report gets older, never younger: of a leader's clock the latest it has shown is kept,
//! less what clocks may drift apart since. The placement driver's own clock is one of those compared.

use super::heard::ShardView;
use evenkeel_protocol::ShardId;
use std::collections::BTreeMap;

/// A clock that is further than this from the median is off, in milliseconds.
pub const OFF_MS: u64 = 2_000;
/// Fewer clocks than this have no median that says which of them is wrong.
const LEAST_CLOCKS: usize = 3;
/// Clocks run within one in so many of real time (log rule 9).
const DRIFT: u64 = 20;
/// A clock beyond this is none, in milliseconds since the Unix epoch: some time in the year 10889.
pub(super) const MAX_CLOCK_MS: u64 = 1 << 48;

/// How far a clock is ahead of the state machine's time, in milliseconds: that itself means nothing, but differences do.
pub(super) fn ahead_ms(clock_ms: u64, now_ms: u64) -> i64 {
    clock_ms.min(MAX_CLOCK_MS) as i64 - now_ms.min(MAX_CLOCK_MS) as i64
}

/// What is known of a leader's clock, `passed_ms` after `known_ms` was, once another report has shown `seen_ms`.
pub(super) fn latest_ms(known_ms: i64, passed_ms: u64, seen_ms: i64) -> i64 {
    seen_ms.max(known_ms.saturating_sub((passed_ms / DRIFT) as i64))
}

/// How far each speaking shard's clock is from the median, in milliseconds; empty if there are too few to judge.
pub(super) fn judge<'a>(
    speaking: impl Iterator<Item = (&'a ShardId, &'a ShardView)>,
    own_ahead_ms: Option<i64>,
) -> BTreeMap<ShardId, i64> {
    let ahead: BTreeMap<ShardId, i64> = speaking.map(|(shard, view)| (*shard, view.clock_ahead_ms)).collect();
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::balancer::Picture;
    use crate::balancer::testing::state_with_table;
    use crate::config::BalancerConfig;
    use crate::operators::testing::report;
    use evenkeel_protocol::ShardId;
    use evenkeel_protocol::report::ShardReport;

    const WALL_MS: u64 = 1_700_000_000_000;

    fn heard(clocks: &[(u32, u64, u64)], own_ms: Option<u64>) -> Picture {
        let (state, config) = (state_with_table(4), BalancerConfig::default());
        let mut picture = Picture::default();
        for (sequence, (shard, clock_ms, now_ms)) in clocks.iter().enumerate() {
            let report = ShardReport { clock_ms: *clock_ms, ..report(*shard, sequence as u64 + 1, vec![]) };
            assert!(picture.observe(report, &state, &config, *now_ms).taken);
        }
        let now_ms = clocks.last().unwrap().2;
        picture.set_clock(own_ms, now_ms);
        picture.update(&state, &config, now_ms);
        picture
    }

    #[test]
    fn the_clock_that_is_off_is_told_from_the_others() {
        let hour = WALL_MS + 3_600_000;
        let picture = heard(&[(1, WALL_MS, 5000), (2, hour, 5000), (3, WALL_MS + 1500, 5000)], None);
        assert_eq!(picture.clock_off_ms(ShardId(2)), Some(3_598_500));
        assert!(picture.clock_is_off(ShardId(2)));
        assert!(!picture.clock_is_off(ShardId(1)) && !picture.clock_is_off(ShardId(3)));
        // Of two nobody can say which is wrong; the placement driver's own clock decides.
        assert_eq!(heard(&[(1, WALL_MS, 5000), (2, hour, 5000)], None).clock_off_ms(ShardId(2)), None);
        let picture = heard(&[(1, WALL_MS, 5000), (2, hour, 5000)], Some(WALL_MS + 20));
        assert!(picture.clock_is_off(ShardId(2)) && !picture.clock_is_off(ShardId(1)));
        let slow = heard(&[(1, WALL_MS - 60_000, 5000), (2, WALL_MS, 5000)], Some(WALL_MS));
        assert!(slow.clock_is_off(ShardId(1)) && slow.clock_off_ms(ShardId(1)).unwrap() < 0);
    }

    #[test]
    fn a_report_that_was_long_on_its_way_does_not_make_a_clock_slow() {
        let clocks = [(1, WALL_MS, 5000), (2, WALL_MS, 5000), (3, WALL_MS, 5000), (1, WALL_MS + 500, 8500)];
        let mut later = clocks.to_vec();
        later.extend([(2, WALL_MS + 3500, 8500), (3, WALL_MS + 3500, 8500)]);
        assert!(!heard(&later, None).clock_is_off(ShardId(1)));
    }
}
