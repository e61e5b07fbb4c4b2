//! The handles that all clients share.

use crate::history::SharedHistory;
use crate::membership_model::SharedMembership;
use crate::process::below;
use crate::registry::Registry;
use crate::topology::shard_info;
use evenkeel_protocol::{ShardId, TableSchema};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// See the module.
#[derive(Clone)]
pub struct Users {
    /// The placement drivers.
    pub registry: Registry,
    /// The history of the run.
    pub history: SharedHistory,
    /// The members of each group.
    pub membership: SharedMembership,
    /// How many shards there are.
    pub shards: u32,
    /// The table.
    pub schema: Arc<TableSchema>,
}

impl Users {
    /// Where a shard's replicas are as far as a user knows: those that it began with, and those in
    /// some placement driver's table. So replicas that have left are asked too.
    pub fn replicas(&self, shard: u32) -> BTreeMap<u64, SocketAddr> {
        let mut known = shard_info(shard).replicas;
        let registry = self.registry.borrow();
        if let Some(driver) = registry.values().nth(below(registry.len() as u64) as usize)
            && let Some(shard) = driver.applied().state.shards.get(&ShardId(shard))
        {
            known.extend(&shard.info.replicas);
        }
        known
    }
}
