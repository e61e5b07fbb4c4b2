//! What a placement-driver replica needs to know, and the balancer's knobs.
//!
//! Everything here is plain data with defaults that suit a cluster on a local network. Values are checked once, at the
//! start ([`Config::check`]), so that the rest of the crate can rely on them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A replica's configuration. The maps name the replicas that found the cluster, or whom to ask to be let in; this one included. Later
/// members are known from the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This replica's number, 1 to 255: its own for life.
    pub replica: u64,
    /// Whether it waits, with an empty folder, to be let in by the replicas that exist. Otherwise an empty folder means a new cluster.
    #[serde(default)]
    pub join: bool,
    /// Where its log and its snapshots lie.
    pub data_dir: PathBuf,
    /// REST addresses of all replicas, as others reach them; it listens on its own.
    pub rest: BTreeMap<u64, SocketAddr>,
    /// RPC addresses of all replicas (shards report there); it listens on its own.
    pub rpc: BTreeMap<u64, SocketAddr>,
    /// Addresses of all replicas for the log's traffic; it listens on its own.
    pub log: BTreeMap<u64, SocketAddr>,
    /// Where it listens for REST, if that is not the address by which others reach it: behind a forwarded port, say.
    #[serde(default)]
    pub listen_rest: Option<SocketAddr>,
    /// The same for RPC.
    #[serde(default)]
    pub listen_rpc: Option<SocketAddr>,
    /// The same for the log's traffic.
    #[serde(default)]
    pub listen_log: Option<SocketAddr>,
    /// The balancer's knobs.
    #[serde(default)]
    pub balancer: BalancerConfig,
    /// A snapshot of the state is written after this many applied commands (or log bytes), so that the log can be compacted.
    #[serde(default = "default_snapshot_every_entries")]
    pub snapshot_every_entries: u64,
    /// Log kept behind the latest snapshot, so that a replica that was away for a short time needs no copy of the state. Bytes.
    #[serde(default = "default_log_retention_bytes")]
    pub log_retention_bytes: u64,
    /// Above this the log is compacted past replicas that are away. Bytes.
    #[serde(default = "default_log_cap_bytes")]
    pub log_cap_bytes: u64,
    /// Set it to a number larger than the last one, from 2, after the state was restored from an old copy (R30): versions of the routing table then
    /// count it, and nothing is numbered until all shards have told what they hold. Without it that begins once a shard's report
    /// shows that the state is an old one.
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
    /// Checks what types cannot say. An error is one line that names the key, the value and what is accepted.
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

/// The balancer's knobs. Loads are statements per second; shares are of the mean load of a shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalancerConfig {
    /// Whether a new cluster's balancer is on; later `POST /v1/balancer` says.
    pub enabled: bool,
    /// Below this total load, in statements per second, nothing is balanced: it would follow noise.
    pub min_load_per_s: f64,
    /// Imbalance over its floor above which the balancer acts.
    pub act_above: f64,
    /// Imbalance over its floor that it then plans to reach.
    pub goal: f64,
    /// How long the imbalance must last before it acts, in milliseconds.
    pub persist_ms: u64,
    /// The same once the load has been level, in milliseconds: then the total must be steady too.
    pub persist_level_ms: u64,
    /// How long a range must have been measured for its figures to count, in milliseconds.
    pub window_ms: u64,
    /// A shard whose last report is older than this is silent: neither source nor target (R29). Milliseconds.
    pub silent_after_ms: u64,
    /// A range is not moved back to a shard it left less than this ago, in milliseconds.
    pub cooldown_ms: u64,
    /// A range is not split again within this time, in milliseconds.
    pub resplit_ms: u64,
    /// A range that carries more than this share of the mean is split on a shard that has too much.
    pub split_above: f64,
    /// How many pieces of equal load a shard should have at least: the pieces of a split carry the mean over this.
    pub pieces_per_shard: f64,
    /// The most pieces of one split.
    pub split_ways: usize,
    /// The most ranges; above it nothing is split.
    pub max_ranges: usize,
    /// Moves that may always be under way at once, per source and per destination.
    pub moves_per_shard: usize,
    /// The most moves under way at once, per source and per destination: beyond `moves_per_shard` only while what they have left takes less than
    /// `move_backlog_ms` at the shard's bandwidth.
    pub max_moves_per_shard: usize,
    /// See `max_moves_per_shard`. Milliseconds.
    pub move_backlog_ms: u64,
    /// The bandwidth of a shard's moves as long as it has not been measured, in bytes per second.
    pub move_bytes_per_s: u64,
    /// Two neighbours on one shard are merged after both have been cold for this long, in milliseconds.
    pub merge_after_ms: u64,
    /// A range is cold below this share of the mean.
    pub cold_share: f64,
    /// A range with more bytes than this is split by size, whatever its load.
    pub split_bytes: u64,
    /// A merged range has at most this many bytes; at most a quarter of `split_bytes`, so that it is not split again.
    pub merged_max_bytes: u64,
    /// How far a range's load may shift within it in one to two seconds, as a share (0 to 1), for its figures to be worth
    /// splitting by.
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

/// The longest time in the configuration, in milliseconds: a hundred years.
const MAX_TIME_MS: u64 = 3_155_760_000_000;

impl BalancerConfig {
    /// Checks what types cannot say, as [`Config::check`] does.
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

    /// Infinity and what is no number pass every comparison, or none.
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
    fn what_is_wrong_is_named() {
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
