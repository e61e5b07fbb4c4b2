//! Names of the processes of a cluster.

use std::fmt;

/// A process of a cluster. The order is the order of starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessId {
    /// A replica of the placement driver, by number.
    PlacementDriver(u64),
    /// A replica of a shard: the shard, and the replica's number.
    ShardNode(u32, u64),
    /// The gateway.
    Gateway,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessId::PlacementDriver(replica) => write!(f, "placement-driver-{replica}"),
            ProcessId::ShardNode(shard, replica) => write!(f, "shard-{shard}-{replica}"),
            ProcessId::Gateway => write!(f, "gateway"),
        }
    }
}

impl ProcessId {
    /// The subcommand of the executable that runs the process.
    pub fn role(self) -> &'static str {
        match self {
            ProcessId::PlacementDriver(_) => "placement-driver",
            ProcessId::ShardNode(..) => "shard-node",
            ProcessId::Gateway => "gateway",
        }
    }
}
