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
