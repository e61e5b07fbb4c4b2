//! Names and addresses: groups, their replicas, the machine of each, and the ports that machines
//! listen on.

use crate::net;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Where a machine listens for requests.
pub const RPC: u16 = 1;
/// Where it listens for the other replicas.
pub const LOG: u16 = 2;
/// Where a placement driver would listen for REST.
pub const REST: u16 = 3;
/// Replicas that each group begins with.
pub const REPLICAS: u64 = 3;
/// The machine of the clients.
pub const CLIENTS: u32 = 90;
/// A replica of a group; each has a machine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A replica of the placement driver.
    PlacementDriver(u64),
    /// A replica of a shard.
    Shard(ShardId, u64),
}

impl Part {
    /// Its machine.
    pub fn machine(self) -> u32 {
        match self {
            Part::PlacementDriver(replica) => replica as u32,
            Part::Shard(shard, replica) => shard.0 * 10 + replica as u32,
        }
    }

    /// Its group.
    pub fn group(self) -> Group {
        match self {
            Part::PlacementDriver(_) => Group::PlacementDriver,
            Part::Shard(shard, _) => Group::Shard(shard),
        }
    }

    /// Its number in its group.
    pub fn replica(self) -> u64 {
        match self {
            Part::PlacementDriver(replica) | Part::Shard(_, replica) => replica,
        }
    }
}

/// A group of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The placement driver.
    PlacementDriver,
    /// A shard.
    Shard(ShardId),
}

impl Group {
    /// Its replica of this number.
    pub fn part(self, replica: u64) -> Part {
        match self {
            Group::PlacementDriver => Part::PlacementDriver(replica),
            Group::Shard(shard) => Part::Shard(shard, replica),
        }
    }
}

/// Addresses of the replicas that a shard begins with.
pub fn shard_info(shard: u32) -> ShardInfo {
    ShardInfo { id: ShardId(shard), replicas: addresses(Group::Shard(ShardId(shard)), 1..=REPLICAS, RPC) }
}

/// Addresses of some replicas of a group, at a port.
pub fn addresses(group: Group, replicas: impl IntoIterator<Item = u64>, port: u16) -> BTreeMap<u64, SocketAddr> {
    let address = |replica| (replica, net::address(group.part(replica).machine(), port));
    replicas.into_iter().map(address).collect()
}
