//! Configurations of replicas: small limits and short times, so that everything happens within
//! seconds.

use crate::membership_model::MembershipModel;
use crate::process;
use crate::topology::{Group, LOG, Part, REPLICAS, REST, RPC, addresses};
use evenkeel_placement_driver as placement_driver;
use evenkeel_protocol::ShardId;
use std::path::PathBuf;

/// Settings of the balancer for runs that last seconds.
fn balancer(enabled: bool) -> placement_driver::BalancerConfig {
    placement_driver::BalancerConfig {
        enabled,
        min_load_per_s: 10.0,
        persist_ms: 300,
        persist_level_ms: 800,
        window_ms: 400,
        cooldown_ms: 1_000,
        resplit_ms: 600,
        split_ways: 4,
        max_ranges: 12,
        merge_after_ms: 1_000,
        cold_share: 0.1,
        max_shift: 0.6,
        ..placement_driver::BalancerConfig::default()
    }
}

/// The configuration of a placement-driver replica.
pub(super) fn placement_driver_config(
    part: Part,
    membership: &MembershipModel,
    folder: PathBuf,
    incarnation: Option<u32>,
) -> placement_driver::Config {
    let (replicas, join) = membership.configured(part);
    let addresses = |port| addresses(part.group(), replicas.iter().copied(), port);
    placement_driver::Config {
        replica: part.replica(),
        join,
        data_dir: folder,
        rest: addresses(REST),
        rpc: addresses(RPC),
        log: addresses(LOG),
        listen_rest: None,
        listen_rpc: None,
        listen_log: None,
        balancer: balancer(membership.balanced),
        snapshot_every_entries: 20 + process::below(200),
        log_retention_bytes: 64 << 10,
        log_cap_bytes: 1 << 20,
        incarnation,
    }
}

/// The configuration of a replica of a shard.
pub(super) fn shard_config(shard: ShardId, part: Part, membership: &MembershipModel) -> evenkeel_shard_node::Config {
    let (replicas, join) = membership.configured(part);
    let own = |port| addresses(part.group(), replicas.iter().copied(), port);
    evenkeel_shard_node::Config {
        shard,
        replica: part.replica(),
        join,
        data_dir: PathBuf::from("/simulated"),
        rpc: own(RPC),
        log: own(LOG),
        listen_rpc: None,
        listen_log: None,
        placement_drivers: addresses(Group::PlacementDriver, 1..=REPLICAS, RPC),
        capacity_per_s: None,
        postgres_bin: None,
        servers_on_machine: 1,
        postgres_memory_mib: None,
        shared_buffers_mib: Some(1),
        max_wal_mib: None,
        write_lanes: 2,
        read_lanes: 1,
        max_transactions: 8,
        // Small, so that logs are compacted under replicas that lag behind; but the largest entry
        // must fit.
        log_cap_bytes: if membership.large { 8 << 20 } else { 1 << 20 },
        // Rounds of a few hundred milliseconds.
        scrub_bytes_per_s: 2 << 20,
        scrub_pause_ms: 300,
    }
}
