//! What the client remembers about the replicas of each shard: the one that answered last, and
//! those that were silent.
//!
//! It owns one number per shard and one time per silent replica. Both are hints: a wrong one costs
//! a redirect or a wait.

use evenkeel_protocol::ShardId;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

/// The replica of each shard that answered last.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    by_shard: RwLock<HashMap<ShardId, u64>>,
}

impl Leaders {
    /// The replica that answered last for this shard.
    pub(crate) fn get(&self, shard: ShardId) -> Option<u64> {
        self.by_shard.read().unwrap_or_else(PoisonError::into_inner).get(&shard).copied()
    }

    /// Records that a replica has answered. Usually it is the same as before, and only the shared
    /// lock is taken.
    pub(crate) fn answered(&self, shard: ShardId, replica: u64) {
        if self.get(shard) != Some(replica) {
            self.by_shard.write().unwrap_or_else(PoisonError::into_inner).insert(shard, replica);
        }
    }
}

/// How long `local` reads pass over a replica that was silent, in milliseconds. After that one read
/// finds out whether the replica is still silent.
const PASS_OVER_MS: u64 = 10_000;

/// The replicas that were silent for a `local` read, and since when, in milliseconds on the
/// client's clock. Any replica can answer such a read, so later reads need not wait for these
/// replicas.
#[derive(Debug, Default)]
pub(crate) struct SilentReplicas {
    since_ms: RwLock<HashMap<(ShardId, u64), u64>>,
}

impl SilentReplicas {
    /// Records that a replica was silent.
    pub(crate) fn noted(&self, shard: ShardId, replica: u64, now_ms: u64) {
        self.since_ms.write().unwrap_or_else(PoisonError::into_inner).insert((shard, replica), now_ms);
    }

    /// Records that a replica has answered.
    pub(crate) fn answered(&self, shard: ShardId, replica: u64) {
        let known = self.since_ms.read().unwrap_or_else(PoisonError::into_inner).contains_key(&(shard, replica));
        if known {
            self.since_ms.write().unwrap_or_else(PoisonError::into_inner).remove(&(shard, replica));
        }
    }

    /// Whether to ask another replica first. Once the time is over, the first caller gets `false`
    /// and finds out for all; the others go on passing the replica over.
    pub(crate) fn pass_over(&self, shard: ShardId, replica: u64, now_ms: u64) -> bool {
        let known = self.since_ms.read().unwrap_or_else(PoisonError::into_inner).get(&(shard, replica)).copied();
        match known {
            None => false,
            Some(since_ms) if now_ms < since_ms.saturating_add(PASS_OVER_MS) => true,
            Some(_) => {
                self.noted(shard, replica, now_ms);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks if each `local` read waits for the same silent replica.
    #[test]
    fn a_silent_replica_is_passed_over_for_a_while() {
        let (silent, shard) = (SilentReplicas::default(), ShardId(1));
        assert!(!silent.pass_over(shard, 1, 0));
        silent.noted(shard, 1, 100);
        assert!(silent.pass_over(shard, 1, 101) && silent.pass_over(shard, 1, 100 + PASS_OVER_MS - 1));
        assert!(!silent.pass_over(shard, 2, 101) && !silent.pass_over(ShardId(2), 1, 101));
        // One read finds out; the others do not wait.
        assert!(!silent.pass_over(shard, 1, 100 + PASS_OVER_MS));
        assert!(silent.pass_over(shard, 1, 101 + PASS_OVER_MS));
        silent.answered(shard, 1);
        assert!(!silent.pass_over(shard, 1, 102 + PASS_OVER_MS));
    }

    #[test]
    fn the_last_replica_to_answer_is_remembered() {
        let leaders = Leaders::default();
        assert_eq!(leaders.get(ShardId(1)), None);
        leaders.answered(ShardId(1), 2);
        leaders.answered(ShardId(1), 5);
        assert_eq!(leaders.get(ShardId(1)), Some(5));
    }
}
