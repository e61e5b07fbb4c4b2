//! Invariant 6: every key has one owner. The ranges that the shards' leaders own cover all keys,
//! and none twice.

use evenkeel_protocol::{Key, KeyInterval, ShardId};

/// Violations, in words. `owned`: each shard's ranges by its leader's log.
pub fn check(owned: &[(ShardId, KeyInterval)]) -> Vec<String> {
    let mut all: Vec<_> = owned.to_vec();
    all.sort_by(|a, b| a.1.start.cmp(&b.1.start));
    let mut wrong = Vec::new();
    let mut reached = Some(Key::MIN);
    for (shard, interval) in all {
        if reached.as_ref() != Some(&interval.start) {
            wrong.push(format!("shard {} owns {interval}, and the ranges before it end at {reached:?}", shard.0));
        }
        reached = interval.end;
    }
    if let Some(end) = reached {
        wrong.push(format!("no shard owns the keys from {end:?} on"));
    }
    wrong
}
