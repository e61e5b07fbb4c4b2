//! A shard goes only when it is empty: whoever owns a range, or is said to, is in the table.

use evenkeel_placement_driver::state::PlacementState;
use evenkeel_protocol::{KeyInterval, ShardId};

/// What is wrong with the shards in the table, in words. `owned`: each shard's ranges, as its leader's log has them.
pub fn check(state: &PlacementState, owned: &[(ShardId, KeyInterval)]) -> Vec<String> {
    let routed = state.ranges.values().map(|range| (range.route.shard, &range.route.interval));
    let all = routed.chain(owned.iter().map(|(shard, interval)| (*shard, interval)));
    let gone = all.filter(|(shard, _)| !state.shards.contains_key(shard));
    gone.map(|(shard, interval)| format!("shard {shard} has been removed and owns {interval}")).collect()
}
