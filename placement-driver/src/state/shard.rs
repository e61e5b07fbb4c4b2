//! A shard as the placement state knows it.

use evenkeel_protocol::routing::ShardInfo;
use serde::{Deserialize, Serialize};

/// A registered shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its replicas and their addresses.
    pub info: ShardInfo,
    /// The number of the configuration that `info` is of, as the shard has reported it. 0 until it
    /// has.
    pub epoch: u32,
    /// Whether the shard is being emptied.
    pub draining: bool,
    /// Whether an administrator has declared the shard lost for good (R23). Its reports are refused
    /// and nothing moves to it.
    pub lost: bool,
}
