//! The flags of the commands that are configured in layers. Flags are text here. The command's
//! settings define their values, once for all layers.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Collects the flags that were given, under their keys.
macro_rules! given {
    ($self:ident: $($key:ident),* $(,)?) => {{
        let mut given: Vec<(&'static str, String)> = Vec::new();
        $(if let Some(text) = &$self.$key {
            given.push((stringify!($key), text.clone()));
        })*
        given
    }};
}

/// Adds the switches that were given.
macro_rules! switches {
    ($given:ident, $self:ident: $($key:ident),* $(,)?) => {
        $(if $self.$key {
            $given.push((stringify!($key), "true".to_string()));
        })*
    };
}

/// Flags of `placement-driver`.
#[derive(Debug, Args)]
pub struct PlacementDriverFlags {
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This replica's number: 1, 2, …
    #[arg(long, value_name = "N")]
    replica: Option<String>,
    /// Where the replica keeps its state
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// REST addresses of all replicas, its own included: 1=IP:PORT,2=IP:PORT,3=IP:PORT
    #[arg(long, value_name = "ADDRESSES")]
    rest: Option<String>,
    /// Addresses that shards report to, of all replicas
    #[arg(long, value_name = "ADDRESSES")]
    rpc: Option<String>,
    /// Addresses of the replicated log, of all replicas
    #[arg(long = "log-addresses", value_name = "ADDRESSES")]
    log: Option<String>,
    /// Where to listen for REST, if others reach it by another address
    #[arg(long, value_name = "IP:PORT")]
    listen_rest: Option<String>,
    /// Where to listen for RPC, if others reach it by another address
    #[arg(long, value_name = "IP:PORT")]
    listen_rpc: Option<String>,
    /// Where to listen for the replicated log, if others reach it by another address
    #[arg(long, value_name = "IP:PORT")]
    listen_log: Option<String>,
    /// Start with an empty folder and wait to be admitted by those that exist
    #[arg(long)]
    join: bool,
    /// Commands after which a snapshot of the state is written
    #[arg(long, value_name = "N")]
    snapshot_every_entries: Option<String>,
    /// Log kept behind the latest snapshot, in bytes
    #[arg(long, value_name = "BYTES")]
    log_retention_bytes: Option<String>,
    /// What the log may take, in bytes; above it compaction does not wait for replicas that are
    /// down
    #[arg(long, value_name = "BYTES")]
    log_cap_bytes: Option<String>,
    /// After the state was restored from a backup: a number larger than the last
    #[arg(long, value_name = "N")]
    incarnation: Option<String>,
    /// End when standard input closes
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

impl PlacementDriverFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let mut given = given!(self: replica, data_dir, rest, rpc, log, listen_rest, listen_rpc, listen_log,
            snapshot_every_entries, log_retention_bytes, log_cap_bytes, incarnation);
        switches!(given, self: join);
        given
    }
}

/// Flags of `shard-node`.
#[derive(Debug, Args)]
pub struct ShardNodeFlags {
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The shard it belongs to
    #[arg(long, value_name = "N")]
    shard: Option<String>,
    /// Its number in the shard: 1, 2, …
    #[arg(long, value_name = "N")]
    replica: Option<String>,
    /// Where everything it keeps lies, PostgreSQL's data included
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Addresses for clients, of all the shard's replicas: 1=IP:PORT,2=IP:PORT,3=IP:PORT
    #[arg(long, value_name = "ADDRESSES")]
    rpc: Option<String>,
    /// Addresses of the replicated log, of all the shard's replicas
    #[arg(long = "log-addresses", value_name = "ADDRESSES")]
    log: Option<String>,
    /// Where to listen for RPC, if others reach it by another address
    #[arg(long, value_name = "IP:PORT")]
    listen_rpc: Option<String>,
    /// Where to listen for the replicated log, if others reach it by another address
    #[arg(long, value_name = "IP:PORT")]
    listen_log: Option<String>,
    /// Start with an empty folder and wait to be admitted by those that exist
    #[arg(long)]
    join: bool,
    /// Addresses of the placement driver's replicas, to report to
    #[arg(long, value_name = "ADDRESSES")]
    placement_drivers: Option<String>,
    /// Statements a second that the leader admits at most
    #[arg(long, value_name = "OPS")]
    capacity_per_s: Option<String>,
    /// The folder with `postgres` and `initdb` [default: found]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<String>,
    /// Shard replicas whose PostgreSQL servers share this machine [default: 1]
    #[arg(long, value_name = "N")]
    servers_on_machine: Option<String>,
    /// The memory that PostgreSQL counts with, in MiB [default: the machine's, divided by the
    /// servers on it]
    #[arg(long, value_name = "MIB")]
    postgres_memory_mib: Option<String>,
    /// PostgreSQL's shared_buffers, in MiB [default: a quarter of its memory]
    #[arg(long, value_name = "MIB")]
    shared_buffers_mib: Option<String>,
    /// PostgreSQL's max_wal_size, in MiB, which a start after a crash replays [default: by the free
    /// disk, at most 1024]
    #[arg(long, value_name = "MIB")]
    max_wal_mib: Option<String>,
    /// PostgreSQL sessions for batches of writes
    #[arg(long, value_name = "N")]
    write_lanes: Option<String>,
    /// PostgreSQL sessions for reads
    #[arg(long, value_name = "N")]
    read_lanes: Option<String>,
    /// Transactions with several statements open at once
    #[arg(long, value_name = "N")]
    max_transactions: Option<String>,
    /// What the log may take, in bytes; above half of it compaction does not wait for replicas that
    /// are down
    #[arg(long, value_name = "BYTES")]
    log_cap_bytes: Option<String>,
    /// How fast a leader compares what its replicas hold, in bytes a second; 0: not at all
    /// [default: 4194304]
    #[arg(long, value_name = "BYTES")]
    scrub_bytes_per_s: Option<String>,
    /// How long it rests between two rounds over all of its ranges [default: 600000]
    #[arg(long, value_name = "MS")]
    scrub_pause_ms: Option<String>,
    /// End when standard input closes
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

impl ShardNodeFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let mut given = given!(self: shard, replica, data_dir, rpc, log, listen_rpc, listen_log, placement_drivers, capacity_per_s, postgres_bin,
            servers_on_machine, postgres_memory_mib, shared_buffers_mib, max_wal_mib, write_lanes, read_lanes, max_transactions, log_cap_bytes,
            scrub_bytes_per_s, scrub_pause_ms);
        switches!(given, self: join);
        given
    }
}

/// Flags of `gateway`. Users and rules are in its file alone.
#[derive(Debug, Args)]
pub struct GatewayFlags {
    /// A TOML file with these settings, and with users and rules
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients connect
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// URLs of the placement driver's replicas, comma between
    #[arg(long, value_name = "URLS")]
    url: Option<String>,
    /// Instead of --url: the file that `demo --endpoints` wrote
    #[arg(long, value_name = "FILE")]
    endpoints: Option<String>,
    /// The folder of its own PostgreSQL; it is emptied at every start
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The folder with `postgres` and `initdb` [default: found]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<String>,
    /// The certificate chain for TLS, in PEM
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<String>,
    /// The certificate's private key, in PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Let anyone on this machine connect as any user without a password
    #[arg(long)]
    trust_loopback: bool,
    /// Clients at a time [default: 10000]
    #[arg(long, value_name = "N")]
    max_clients: Option<String>,
    /// End when standard input closes
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

impl GatewayFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let mut given =
            given!(self: listen, url, endpoints, data_dir, postgres_bin, tls_certificate, tls_key, max_clients);
        switches!(given, self: trust_loopback);
        given
    }
}

/// Flags of a run, shared by `demo` and `replay`.
#[derive(Debug, Args)]
pub struct RunFlags {
    /// The workload: mixgraph, ycsb-a … ycsb-f, zipf:1.2, hotspot-jump, hotspot-drift, sequential,
    /// uniform, …
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// A trace file to replay instead: CSV or CSV.gz `time_us,op,key[,value_bytes]`; Twitter's
    /// cache trace with --trace-format
    #[arg(long, value_name = "FILE")]
    trace: Option<String>,
    /// The trace's format: csv or twitter [default: csv]
    #[arg(long, value_name = "FORMAT")]
    trace_format: Option<String>,
    /// With --trace: this share of the reads becomes updates, 0 to 1
    #[arg(long, value_name = "SHARE")]
    update_share: Option<String>,
    /// How long the load lasts: 60, 90s, 2m
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// The seed of all random choices of the workload
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// Rows to begin with; for a trace, the keys it names
    #[arg(long, value_name = "N")]
    rows: Option<String>,
    /// Statements a second, sent whether or not earlier ones are answered; 0: as fast as it goes
    #[arg(long, value_name = "OPS")]
    rate: Option<String>,
    /// Statements under way at once at most
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// The table [default: usertable, or the next free name]
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    report: Option<String>,
}

impl RunFlags {
    fn given(&self) -> Vec<(&'static str, String)> {
        given!(self: workload, trace, trace_format, update_share, duration, seed, rows, rate, workers, table, report)
    }
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoFlags {
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    run: RunFlags,
    /// Shards
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// Replicas of each shard
    #[arg(long, value_name = "N")]
    replicas: Option<String>,
    /// Where everything is kept; a cluster that is there is started again [default: a temporary
    /// folder, removed in the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// The folder with `postgres` and `initdb` [default: found]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<String>,
    /// An admission limit on each shard's leader, in statements a second: a stand-in for a machine
    /// of its own
    #[arg(long, value_name = "OPS")]
    shard_capacity: Option<String>,
    /// Write how to reach the cluster as JSON to this file
    #[arg(long, value_name = "FILE")]
    endpoints: Option<String>,
    /// Leave the cluster up after the run, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Start the cluster without load, and leave it up until Ctrl-C
    #[arg(long)]
    idle: bool,
    /// Kill -9 a shard leader, a shard follower, the placement driver's leader and a PostgreSQL
    /// server while ranges move
    #[arg(long)]
    chaos: bool,
}

impl DemoFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let mut given = self.run.given();
        given.extend(given!(self: shards, replicas, data_dir, postgres_bin, shard_capacity, endpoints));
        switches!(given, self: keep, idle, chaos);
        given
    }
}

/// Flags of `replay`.
#[derive(Debug, Args)]
pub struct ReplayFlags {
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The file that `demo --endpoints` wrote
    #[arg(long, value_name = "FILE")]
    endpoints: Option<String>,
    /// Instead of --endpoints: URLs of the placement driver's replicas, comma between
    #[arg(long, value_name = "URLS")]
    url: Option<String>,
    #[command(flatten)]
    run: RunFlags,
}

impl ReplayFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let mut given = self.run.given();
        given.extend(given!(self: endpoints, url));
        given
    }
}

/// Flags of `bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchFlags {
    #[command(subcommand)]
    pub only_this: Option<BenchCommand>,
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Numbers of clients, comma between
    #[arg(long, value_name = "LIST")]
    clients: Option<String>,
    /// How long each measurement lasts
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// How often each measurement is taken; the median counts
    #[arg(long, value_name = "N")]
    rounds: Option<String>,
    /// Rows of the table
    #[arg(long, value_name = "N")]
    rows: Option<String>,
    /// The folder with PostgreSQL's programs [default: found]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<String>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Only these parts, comma between: sql, routes
    #[arg(long, value_name = "PARTS")]
    only: Option<String>,
}

impl BenchFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        given!(self: clients, duration, rounds, rows, postgres_bin, json, only)
    }
}

/// Measurements that are selected by name.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure for how long writes stand still when a leader dies, freezes, is cut off or hands
    /// over
    Failover(FailoverFlags),
    /// Measure loads, moves, restarts and re-seeding on gigabytes, beside PostgreSQL
    Size(SizeFlags),
}

/// Flags of `bench size`.
#[derive(Debug, Args)]
pub struct SizeFlags {
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A trace of large blocks [default: a pattern made here]
    #[arg(long, value_name = "FILE")]
    trace: Option<String>,
    /// How long its statements are sent [default: 30s]
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Gigabytes of the smaller data set [default: 1]
    #[arg(long, value_name = "N")]
    gigabytes: Option<String>,
    /// Gigabytes of the larger data set; 0: none [default: 5]
    #[arg(long, value_name = "N")]
    large_gigabytes: Option<String>,
    /// Only these parts, comma between: trace, moves, replicas; or reseed, a part of replicas
    #[arg(long, value_name = "PARTS")]
    only: Option<String>,
    /// The folder with PostgreSQL's programs [default: found]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<String>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

impl SizeFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        given!(self: trace, duration, gigabytes, large_gigabytes, only, postgres_bin, json)
    }
}

/// Flags of `bench failover`.
#[derive(Debug, Args)]
pub struct FailoverFlags {
    /// A TOML file with these settings
    #[arg(long, env = "EVENKEEL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Trials of each kind [default: 50]
    #[arg(long, value_name = "N")]
    trials: Option<String>,
    /// Only these, comma between: kill, freeze, cut, handover
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Only the leaders of these, comma between: shard, placement-driver
    #[arg(long, value_name = "ROLES")]
    role: Option<String>,
    /// The folder with PostgreSQL's programs [default: found]
    #[arg(long, value_name = "DIR")]
    postgres_bin: Option<String>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

impl FailoverFlags {
    /// The given flags.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        given!(self: trials, kind, role, postgres_bin, json)
    }
}
