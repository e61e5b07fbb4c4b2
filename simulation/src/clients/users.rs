//! The handles that all clients share.

use crate::history::SharedHistory;
use crate::membership_model::SharedMembership;
use crate::registry::Registry;
use crate::shard_calls::ShardCalls;

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
    /// Requests of an administrator to shards.
    pub calls: ShardCalls,
}
