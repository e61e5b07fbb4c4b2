//! The configuration of a replica, and the parameters of the balancer.
//!
//! It is plain data, with defaults for a cluster on a local network. [`Config::check`] checks all
//! values once, at the start; the rest of the crate relies on them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The configuration of a replica. The maps name the first replicas of the cluster, this one
/// included; a replica that joins asks them. The log has later members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The number of this replica, 1 to 255. It never changes, and no other replica ever has it.
    pub replica: u64,
    /// Whether the replica, with an empty folder, waits until the existing replicas admit it.
    /// Otherwise an empty folder means a new cluster.
    #[serde(default)]
    pub join: bool,
    /// The folder of its log and its snapshots.
    pub data_dir: PathBuf,
    /// The REST addresses of all replicas, as others reach them. The replica listens on its own.
    pub rest: BTreeMap<u64, SocketAddr>,
    /// The RPC addresses of all replicas, for the shards' reports. The replica listens on its own.
    pub rpc: BTreeMap<u64, SocketAddr>,
    /// The addresses of all replicas for the log's traffic. The replica listens on its own.
    pub log: BTreeMap<u64, SocketAddr>,
    /// The address on which the replica listens for REST, if others reach it by another one, such
    /// as a forwarded port.
    #[serde(default)]
    pub listen_rest: Option<SocketAddr>,
    /// The same for RPC.
    #[serde(default)]
    pub listen_rpc: Option<SocketAddr>,
    /// The same for the log's traffic.
    #[serde(default)]
    pub listen_log: Option<SocketAddr>,
    /// The parameters of the balancer.
    #[serde(default)]
    pub balancer: BalancerConfig,
    /// The number of applied commands after which a snapshot is written, so that the log can be
    /// compacted. Large commands cause a snapshot earlier.
    #[serde(default = "default_snapshot_every_entries")]
    pub snapshot_every_entries: u64,
    /// The size of the log that is kept behind the latest snapshot, in bytes. A replica that was
    /// away for a short time then needs no state transfer.
    #[serde(default = "default_log_retention_bytes")]
    pub log_retention_bytes: u64,
    /// The size of the log above which it is compacted past replicas that are away, in bytes.
    #[serde(default = "default_log_cap_bytes")]
    pub log_cap_bytes: u64,
    /// The incarnation. After a restoration of the state from an old copy (R30), set it to a number
    /// larger than the last one, from 2. Versions of the routing table then contain it, and no
    /// numbers are assigned until all shards have reported. Without it this begins once a shard's
    /// report shows that the state is old.
    #[serde(default)]
    pub incarnation: Option<u32>,
}

fn default_snapshot_every_entries() -> u64 {
    2000
}

fn default_log_retention_bytes() -> u64 {
    8 << 20
}

fn default_log_cap_bytes() -> u64 {
    128 << 20
}

impl Config {
    /// Checks the constraints that types do not express.
    ///
    /// # Errors
    /// One line that names the key, the value and the accepted values.
    pub fn check(&self) -> Result<(), String> {
        for (name, map) in [("rest", &self.rest), ("rpc", &self.rpc), ("log", &self.log)] {
            let found: Vec<_> = map.keys().collect();
            if !map.keys().eq(self.log.keys()) {
                let expected: Vec<_> = self.log.keys().collect();
                return Err(format!("{name}: replicas {found:?}, but log has {expected:?}"));
            }
            if map.keys().any(|id| !(1..=255).contains(id)) {
                return Err(format!("{name}: replicas are numbered 1 to 255, found {found:?}"));
            }
        }
        if !self.log.contains_key(&self.replica) {
            return Err(format!("replica: {} is not among the {} replicas of log", self.replica, self.log.len()));
        }
        if self.snapshot_every_entries == 0 {
            return Err("snapshot_every_entries: 0; at least 1 is accepted".into());
        }
        self.balancer.check()
    }
}

/// The parameters of the balancer. Loads are statements per second. Shares are of the mean load of
/// a shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalancerConfig {
    /// Whether the balancer of a new cluster is on. Later `POST /v1/balancer` switches it.
    pub enabled: bool,
    /// The total load below which nothing is balanced, in statements per second: the balancer would
    /// follow noise.
    pub min_load_per_s: f64,
    /// The imbalance, divided by its minimum, above which the balancer acts.
    pub act_above: f64,
    /// The imbalance, divided by its minimum, that the balancer plans to reach.
    pub goal: f64,
    /// How long the imbalance must last before the balancer acts, in milliseconds.
    pub persist_ms: u64,
    /// The same once the load has been balanced, in milliseconds. The total load must then be
    /// steady too.
    pub persist_level_ms: u64,
    /// How long a range must have been measured before its load is used, in milliseconds.
    pub window_ms: u64,
    /// The age of the last report above which a shard is silent, in milliseconds. A silent shard is
    /// neither source nor destination (R29).
    pub silent_after_ms: u64,
    /// How long a range is not moved back to a shard that it has left, in milliseconds.
    pub cooldown_ms: u64,
    /// How long a range is not split again, in milliseconds.
    pub resplit_ms: u64,
    /// The share above which a range of an overloaded shard is split.
    pub split_above: f64,
    /// The minimum number of pieces of equal load that a shard should have. Each piece of a split
    /// carries the mean load divided by it.
    pub pieces_per_shard: f64,
    /// The maximum number of pieces of one split.
    pub split_ways: usize,
    /// The number of ranges above which nothing is split.
    pub max_ranges: usize,
    /// The number of moves that may always be under way at once, per source and per destination.
    pub moves_per_shard: usize,
    /// The maximum number of moves under way at once, per source and per destination. More than
    /// `moves_per_shard` are possible only while the remaining bytes of those under way take less
    /// than `move_backlog_ms`.
    pub max_moves_per_shard: usize,
    /// See `max_moves_per_shard`, in milliseconds.
    pub move_backlog_ms: u64,
    /// The assumed bandwidth of a shard's moves until it has been measured, in bytes per second.
    pub move_bytes_per_s: u64,
    /// How long two neighbours on one shard must be cold before they are merged, in milliseconds.
    pub merge_after_ms: u64,
    /// The share below which a range is cold.
    pub cold_share: f64,
    /// The size above which a range is split, whatever its load, in bytes.
    pub split_bytes: u64,
    /// The maximum size of a merged range, in bytes. At most a quarter of `split_bytes`, so that
    /// the range is not split again.
    pub merged_max_bytes: u64,
    /// The share of a range's load (0 to 1) that may shift within the range in one to two seconds.
    /// Above it the range is not split by load.
    pub max_shift: f64,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        BalancerConfig {
            enabled: true,
            min_load_per_s: 50.0,
            act_above: 1.15,
            goal: 1.03,
            persist_ms: 1200,
            persist_level_ms: 4000,
            window_ms: 2000,
            silent_after_ms: 1500,
            cooldown_ms: 10_000,
            resplit_ms: 3000,
            split_above: 0.5,
            pieces_per_shard: 4.0,
            split_ways: 32,
            max_ranges: 4096,
            moves_per_shard: 2,
            max_moves_per_shard: 4,
            move_backlog_ms: 500,
            move_bytes_per_s: 16 << 20,
            merge_after_ms: 60_000,
            cold_share: 0.01,
            split_bytes: 256 << 20,
            merged_max_bytes: 64 << 20,
            max_shift: 0.3,
        }
    }
}

/// The maximum of all times in the configuration, in milliseconds: a hundred years.
const MAX_TIME_MS: u64 = 3_155_760_000_000;

impl BalancerConfig {
    /// Checks the constraints that types do not express.
    ///
    /// # Errors
    /// As for [`Config::check`].
    pub fn check(&self) -> Result<(), String> {
        self.check_figures()?;
        let at_least = |name: &str, value: f64, least: f64| {
            if value >= least { Ok(()) } else { Err(format!("balancer.{name}: {value}; at least {least} is accepted")) }
        };
        at_least("goal", self.goal, 1.0)?;
        at_least("act_above", self.act_above, self.goal)?;
        at_least("pieces_per_shard", self.pieces_per_shard, 1.0)?;
        at_least("split_above", self.split_above, 0.01)?;
        at_least("split_ways", self.split_ways as f64, 2.0)?;
        at_least("moves_per_shard", self.moves_per_shard as f64, 1.0)?;
        at_least("max_moves_per_shard", self.max_moves_per_shard as f64, self.moves_per_shard as f64)?;
        at_least("move_bytes_per_s", self.move_bytes_per_s as f64, 1.0)?;
        at_least("split_bytes", self.split_bytes as f64, (1 << 20) as f64)?;
        if self.merged_max_bytes > self.split_bytes / 4 {
            let most = self.split_bytes / 4;
            return Err(format!(
                "balancer.merged_max_bytes: {}; at most a quarter of split_bytes, {most}, is accepted",
                self.merged_max_bytes
            ));
        }
        at_least("window_ms", self.window_ms as f64, 1.0)
    }

    /// Checks numbers that comparisons do not reject: infinity, and NaN.
    fn check_figures(&self) -> Result<(), String> {
        for (name, value, most) in [
            ("min_load_per_s", self.min_load_per_s, f64::MAX),
            ("act_above", self.act_above, f64::MAX),
            ("goal", self.goal, f64::MAX),
            ("split_above", self.split_above, f64::MAX),
            ("pieces_per_shard", self.pieces_per_shard, f64::MAX),
            ("cold_share", self.cold_share, 1.0),
            ("max_shift", self.max_shift, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                let accepted = if most == 1.0 { "0 to 1 is accepted" } else { "a number from 0 is accepted" };
                return Err(format!("balancer.{name}: {value}; {accepted}"));
            }
        }
        for (name, value) in [
            ("persist_ms", self.persist_ms),
            ("persist_level_ms", self.persist_level_ms),
            ("window_ms", self.window_ms),
            ("silent_after_ms", self.silent_after_ms),
            ("cooldown_ms", self.cooldown_ms),
            ("resplit_ms", self.resplit_ms),
            ("move_backlog_ms", self.move_backlog_ms),
            ("merge_after_ms", self.merge_after_ms),
        ] {
            if value > MAX_TIME_MS {
                return Err(format!("balancer.{name}: {value}; at most {MAX_TIME_MS} is accepted"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config() -> Config {
        let addresses: BTreeMap<u64, SocketAddr> =
            (1..=3).map(|n| (n, ([127, 0, 0, 1], 7000 + n as u16).into())).collect();
        Config {
            replica: 1,
            join: false,
            data_dir: "/nowhere".into(),
            rest: addresses.clone(),
            rpc: addresses.clone(),
            log: addresses,
            listen_rest: None,
            listen_rpc: None,
            listen_log: None,
            balancer: BalancerConfig::default(),
            snapshot_every_entries: 10,
            log_retention_bytes: 0,
            log_cap_bytes: 0,
            incarnation: None,
        }
    }

    #[test]
    fn keys_that_mean_nothing_are_refused() {
        for key in ["tolerable", "patient_ms", "moves_total", "persist"] {
            let text = serde_json::json!({ key: 1 });
            let error = serde_json::from_value::<BalancerConfig>(text).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_is_named() {
        config().check().unwrap();
        let wrong = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(wrong(|c| c.replica = 4).starts_with("replica: 4"));
        assert!(wrong(|c| c.rest.retain(|id, _| *id != 2)).starts_with("rest:"));
        assert!(wrong(|c| c.rpc.retain(|id, _| *id != 3)).starts_with("rpc:"));
        assert!(wrong(|c| c.replica = 300).starts_with("replica: 300"));
        assert!(wrong(|c| c.balancer.split_bytes = 128 << 20).starts_with("balancer.merged_max_bytes: 67108864"));
        assert!(wrong(|c| c.balancer.act_above = 1.0).starts_with("balancer.act_above: 1"));
        assert!(wrong(|c| c.balancer.goal = f64::INFINITY).starts_with("balancer.goal: inf"));
        assert!(wrong(|c| c.balancer.max_shift = f64::NAN).starts_with("balancer.max_shift: NaN"));
        assert!(wrong(|c| c.balancer.cold_share = -1.0).starts_with("balancer.cold_share: -1"));
        assert!(wrong(|c| c.balancer.silent_after_ms = u64::MAX).starts_with("balancer.silent_after_ms"));
    }
}
