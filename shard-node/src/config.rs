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
    /// Whether it waits, with an empty folder, to be admitted to a shard that exists. Otherwise an
    /// empty folder means a new shard.
    #[serde(default)]
    pub join: bool,
    /// Where everything it keeps lies: the log, PostgreSQL's data, sockets.
    pub data_dir: PathBuf,
    /// RPC addresses of the replicas that found the shard, or whom to ask to be admitted; its own
    /// included, on which it listens. Later members are known from the shard's log.
    pub rpc: BTreeMap<u64, SocketAddr>,
    /// The same replicas' addresses for the log's traffic.
    pub log: BTreeMap<u64, SocketAddr>,
    /// Where it listens for RPC, if that is not the address by which others reach it: behind a
    /// forwarded port, say.
    #[serde(default)]
    pub listen_rpc: Option<SocketAddr>,
    /// The same for the log's traffic.
    #[serde(default)]
    pub listen_log: Option<SocketAddr>,
    /// RPC addresses of the placement driver's replicas, by number.
    #[serde(default)]
    pub placement_drivers: BTreeMap<u64, SocketAddr>,
    /// Statements a second that a leader admits at most: a stand-in for a machine of its own where
    /// shards share one. Absent: no limit.
    #[serde(default)]
    pub capacity_per_s: Option<f64>,
    /// The folder with `postgres` and `initdb`; absent: found.
    #[serde(default)]
    pub postgres_bin: Option<PathBuf>,
    /// Shard replicas whose PostgreSQL servers share this machine's memory and disk: each takes its
    /// part of them.
    #[serde(default = "default_servers_on_machine")]
    pub servers_on_machine: u32,
    /// The memory that PostgreSQL counts with, in MiB. Absent: the machine's, or its control
    /// group's, divided by the servers on it.
    #[serde(default)]
    pub postgres_memory_mib: Option<u32>,
    /// PostgreSQL's `shared_buffers`, in MiB. Absent: a quarter of its memory, from 32 MiB to 4
    /// GiB.
    #[serde(default)]
    pub shared_buffers_mib: Option<u32>,
    /// PostgreSQL's `max_wal_size`, in MiB. Absent: a sixteenth of the free disk divided by the
    /// servers on it, from 128 MiB to 1 GiB. A start after a crash replays that much before the
    /// replica serves.
    #[serde(default)]
    pub max_wal_mib: Option<u32>,
    /// PostgreSQL sessions for batches of autocommit writes. One gathers the largest batches, and a
    /// batch costs little more than a statement: more of them pay only where PostgreSQL has
    /// processors to spare (docs/decisions/write-queues.md).
    #[serde(default = "default_write_lanes")]
    pub write_lanes: usize,
    /// PostgreSQL sessions for autocommit reads.
    #[serde(default = "default_read_lanes")]
    pub read_lanes: usize,
    /// Transactions with several statements open at once.
    #[serde(default = "default_max_transactions")]
    pub max_transactions: usize,
    /// What the log may take, in bytes. Up to half of it is kept for a replica that is down, for
    /// ten minutes.
    #[serde(default = "default_log_cap_bytes")]
    pub log_cap_bytes: u64,
    /// How fast a leader compares what its replicas hold in the background, in bytes of rows a
    /// second. 0: not at all.
    #[serde(default = "default_scrub_bytes_per_s")]
    pub scrub_bytes_per_s: u64,
    /// How long it rests between two rounds over all of its ranges, in milliseconds.
    #[serde(default = "default_scrub_pause_ms")]
    pub scrub_pause_ms: u64,
}

fn default_servers_on_machine() -> u32 {
    1
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
    512 << 20
}
fn default_scrub_bytes_per_s() -> u64 {
    4 << 20
}
fn default_scrub_pause_ms() -> u64 {
    600_000
}
