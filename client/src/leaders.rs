//! Which replica of a shard to ask: the one that answered last, else who is said to lead, else one after the other.
//!
//! It owns one number per shard, a hint like everything a client knows: a wrong one costs a redirect.

use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

/// The replicas that answered last.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    by_shard: RwLock<HashMap<ShardId, u64>>,
}

impl Leaders {
    /// The replica that answered last for this shard.
    pub(crate) fn get(&self, shard: ShardId) -> Option<u64> {
        self.by_shard.read().unwrap_or_else(PoisonError::into_inner).get(&shard).copied()
    }

    /// A replica has answered. Usually it is the one that did before, and only the shared lock is taken.
    pub(crate) fn answered(&self, shard: ShardId, replica: u64) {
        if self.get(shard) != Some(replica) {
            self.by_shard.write().unwrap_or_else(PoisonError::into_inner).insert(shard, replica);
        }
    }
}

/// For how long a replica that was silent with a `local` read is passed over by others, in milliseconds. Then one read finds out whether it
/// still is.
const PASS_OVER_MS: u64 = 10_000;

/// The replicas that were silent with `local` reads, and since when (by the session's clock): any replica can answer those, so nobody need wait
/// for one that another read has just waited for in vain.
#[derive(Debug, Default)]
pub(crate) struct Silent {
    since_ms: RwLock<HashMap<(ShardId, u64), u64>>,
}

impl Silent {
    /// A replica has been silent.
    pub(crate) fn noted(&self, shard: ShardId, replica: u64, now_ms: u64) {
        self.since_ms.write().unwrap_or_else(PoisonError::into_inner).insert((shard, replica), now_ms);
    }

    /// A replica has answered.
    pub(crate) fn answered(&self, shard: ShardId, replica: u64) {
        let known = self.since_ms.read().unwrap_or_else(PoisonError::into_inner).contains_key(&(shard, replica));
        if known {
            self.since_ms.write().unwrap_or_else(PoisonError::into_inner).remove(&(shard, replica));
        }
    }

    /// Whether to ask another one first. Whoever is told not to, once the time is over, finds out for all: the others go on passing it over.
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

/// The replica to ask next: `wanted` if the shard has it, else the one after `last` (in order of numbers, around), else the
/// first. `None` if the shard has no replica.
pub(crate) fn choose(info: &ShardInfo, wanted: Option<u64>, last: Option<u64>) -> Option<(u64, SocketAddr)> {
    if let Some(wanted) = wanted
        && let Some(address) = info.replicas.get(&wanted)
    {
        return Some((wanted, *address));
    }
    let after = last.and_then(|last| info.replicas.range(last + 1..).next());
    after.or_else(|| info.replicas.first_key_value()).map(|(replica, address)| (*replica, *address))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks if each `local` read waits for the same silent replica.
    #[test]
    fn a_silent_replica_is_passed_over_for_a_while() {
        let (silent, shard) = (Silent::default(), ShardId(1));
        assert!(!silent.pass_over(shard, 1, 0));
        silent.noted(shard, 1, 100);
        assert!(silent.pass_over(shard, 1, 101) && silent.pass_over(shard, 1, 100 + PASS_OVER_MS - 1));
        assert!(!silent.pass_over(shard, 2, 101) && !silent.pass_over(ShardId(2), 1, 101));
        // One finds out; the others do not wait with it.
        assert!(!silent.pass_over(shard, 1, 100 + PASS_OVER_MS));
        assert!(silent.pass_over(shard, 1, 101 + PASS_OVER_MS));
        silent.answered(shard, 1);
        assert!(!silent.pass_over(shard, 1, 102 + PASS_OVER_MS));
    }

    #[test]
    fn every_replica_gets_its_turn_and_a_hint_goes_first() {
        let address = |n: u64| SocketAddr::from(([127, 0, 0, 1], n as u16));
        let info = ShardInfo { id: ShardId(1), replicas: [1, 2, 5].map(|n| (n, address(n))).into() };
        let next = |wanted, last| choose(&info, wanted, last).map(|(replica, _)| replica);
        assert_eq!(next(None, None), Some(1));
        assert_eq!(next(None, Some(1)), Some(2));
        assert_eq!(next(None, Some(2)), Some(5));
        assert_eq!(next(None, Some(5)), Some(1));
        assert_eq!(next(Some(5), Some(1)), Some(5));
        assert_eq!(next(Some(9), Some(2)), Some(5), "a replica that is not in the table is no hint");
        assert_eq!(choose(&ShardInfo { id: ShardId(1), replicas: [].into() }, Some(1), None), None);
        let leaders = Leaders::default();
        assert_eq!(leaders.get(ShardId(1)), None);
        leaders.answered(ShardId(1), 2);
        leaders.answered(ShardId(1), 5);
        assert_eq!(leaders.get(ShardId(1)), Some(5));
    }
}
