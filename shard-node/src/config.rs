//! A shard replica's configuration.

use evenkeel_protocol::ShardId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a shard replica needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The shard it belongs to.
    pub shard: ShardId,
    /// Its number in the shard, 1 to 255: its own for life. A new machine gets a new one.
    pub replica: u64,
    /// Whether it waits, with an empty folder, to be let into a shard that exists. Otherwise an empty folder means a new shard.
    #[serde(default)]
    pub join: bool,
    /// Where everything it keeps lies: the log, PostgreSQL's data, sockets.
    pub data_dir: PathBuf,
    /// RPC addresses of the replicas that found the shard, or whom to ask to be let in; its own included, on which it listens. Later
    /// members are known from the shard's log.
    pub rpc: BTreeMap<u64, SocketAddr>,
    /// The same replicas' addresses for the log's traffic.
    pub log: BTreeMap<u64, SocketAddr>,
    /// Where it listens for RPC, if that is not the address by which others reach it: behind a forwarded port, say.
    #[serde(default)]
    pub listen_rpc: Option<SocketAddr>,
    /// The same for the log's traffic.
    #[serde(default)]
    pub listen_log: Option<SocketAddr>,
    /// RPC addresses of the placement driver's replicas, by number.
    #[serde(default)]
    pub placement_drivers: BTreeMap<u64, SocketAddr>,
    /// Statements a second that a leader admits at most: a stand-in for a machine of its own where shards share one. Absent: no limit.
    #[serde(default)]
    pub capacity_per_s: Option<f64>,
    /// The folder with `postgres` and `initdb`; absent: found.
    #[serde(default)]
    pub postgres_bin: Option<PathBuf>,
    /// PostgreSQL's `shared_buffers`, in MiB.
    #[serde(default = "default_shared_buffers_mib")]
    pub shared_buffers_mib: u32,
    /// PostgreSQL sessions for batches of autocommit writes. One gathers the largest batches, and a batch costs little more than a
    /// statement: more of them pay only where PostgreSQL has processors to spare (docs/decisions/lanes.md).
    #[serde(default = "default_write_lanes")]
    pub write_lanes: usize,
    /// PostgreSQL sessions for autocommit reads.
    #[serde(default = "default_read_lanes")]
    pub read_lanes: usize,
    /// Transactions with several statements open at once.
    #[serde(default = "default_max_transactions")]
    pub max_transactions: usize,
    /// What the log may take, in bytes. Above half of it compaction does not wait for replicas that are down.
    #[serde(default = "default_log_cap_bytes")]
    pub log_cap_bytes: u64,
}

fn default_shared_buffers_mib() -> u32 {
    64
}
fn default_write_lanes() -> usize {
    1
}
fn default_read_lanes() -> usize {
    4
}
fn default_max_transactions() -> usize {
    64
}
fn default_log_cap_bytes() -> u64 {
    256 << 20
}
