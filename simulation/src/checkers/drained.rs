//! A shard is removed only when it is empty: every shard that owns a range, by its own log or by
//! the routing table, is known to the placement driver.

use evenkeel_placement_driver::state::PlacementState;
use evenkeel_protocol::{KeyInterval, ShardId};

/// Violations, in words. `owned`: each shard's ranges by its leader's log.
pub fn check(state: &PlacementState, owned: &[(ShardId, KeyInterval)]) -> Vec<String> {
    let routed = state.ranges.values().map(|range| (range.route.shard, &range.route.interval));
    let all = routed.chain(owned.iter().map(|(shard, interval)| (*shard, interval)));
    let gone = all.filter(|(shard, _)| !state.shards.contains_key(shard));
    gone.map(|(shard, interval)| format!("shard {shard} has been removed and owns {interval}")).collect()
}
