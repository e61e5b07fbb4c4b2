//! Options of a cluster: its size, its folder, and the settings of its processes.

use std::path::PathBuf;

/// The cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The executable that has the subcommands.
    pub executable: PathBuf,
    /// Shards, numbered from 1.
    pub shards: u32,
    /// Replicas of each shard.
    pub replicas: u64,
    /// Replicas of the placement driver.
    pub placement_drivers: u64,
    /// The cluster's folder; a cluster that is in it is started again. Absent: a temporary folder,
    /// removed at the end.
    pub data_dir: Option<PathBuf>,
    /// Whether a gateway is started, to which PostgreSQL clients of this machine connect.
    pub gateway: bool,
    /// The rate limit of each shard's leader, in statements per second.
    pub shard_capacity_per_s: Option<f64>,
    /// The folder with PostgreSQL's programs. Absent: searched for.
    pub postgres_bin: Option<PathBuf>,
    /// The placement driver's `[balancer]` section; absent keys have their defaults.
    pub balancer: toml::Table,
    /// Further settings of every shard node.
    pub shard_node: toml::Table,
    /// Whether faults can be injected: all traffic passes through [`crate::links`], and processes
    /// read fault hooks ([`crate::Cluster::set_fault_hook`]).
    pub links: bool,
    /// The log filter of the processes (`RUST_LOG` syntax).
    pub log: String,
    /// How long the cluster may take to be ready, in milliseconds.
    pub start_timeout_ms: u64,
}

impl ClusterOptions {
    /// Three placement drivers and three shards of three replicas each, run by `executable`.
    pub fn new(executable: impl Into<PathBuf>) -> ClusterOptions {
        ClusterOptions {
            executable: executable.into(),
            shards: 3,
            replicas: 3,
            placement_drivers: 3,
            gateway: false,
            data_dir: None,
            shard_capacity_per_s: None,
            postgres_bin: None,
            balancer: toml::Table::new(),
            shard_node: toml::Table::new(),
            links: false,
            log: "info".into(),
            start_timeout_ms: 120_000,
        }
    }
}
