//! Which processes a cluster has: their names, folders, addresses and configurations. Pure; ports are handed in.

use super::{ClusterOptions, ProcessId, loopback};
use crate::config::{ConfigError, to_toml};
use evenkeel_placement_driver::NewMember;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::NewReplica;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Addresses by replica number.
type Addresses = BTreeMap<u64, SocketAddr>;

/// One process to be.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessSpec {
    /// What it is.
    pub id: ProcessId,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Where its log goes.
    pub log_file: PathBuf,
    /// Where its configuration goes.
    pub config_file: PathBuf,
    /// Its configuration, TOML.
    pub config: String,
}

/// Where everything listens.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    driver_rest: Addresses,
    driver_rpc: Addresses,
    driver_log: Addresses,
    shards: BTreeMap<ShardId, ShardLayout>,
    /// Where others reach an address, if a proxy stands before it (see [`super::links`]).
    fronts: BTreeMap<SocketAddr, SocketAddr>,
    /// Never reused: a removed shard's number stays its own.
    last_shard: u32,
    last_driver: u64,
}

#[derive(Debug, Clone)]
struct ShardLayout {
    rpc: Addresses,
    log: Addresses,
    /// Never reused: a number is a replica's own for life.
    last_replica: u64,
}

impl Layout {
    /// Hands out `ports` (three per placement driver, two per shard replica; twice as many with links) to the processes of
    /// `options`.
    pub fn new(options: &ClusterOptions, root: &Path, ports: Vec<u16>) -> Layout {
        let mut ports = ports.into_iter();
        let drivers = options.placement_drivers;
        let mut layout = Layout {
            root: root.to_path_buf(),
            driver_rest: hand_out(drivers, &mut ports),
            driver_rpc: hand_out(drivers, &mut ports),
            driver_log: hand_out(drivers, &mut ports),
            shards: BTreeMap::new(),
            fronts: BTreeMap::new(),
            last_shard: 0,
            last_driver: drivers,
        };
        if options.links {
            for addresses in [&layout.driver_rest, &layout.driver_rpc, &layout.driver_log] {
                layout.fronts.extend(front(addresses, &mut ports));
            }
        }
        for _ in 0..options.shards {
            layout.place_shard(options, &mut ports);
        }
        layout
    }

    /// The processes.
    pub fn specs(&self, options: &ClusterOptions) -> Result<Vec<ProcessSpec>, ConfigError> {
        let mut specs = Vec::new();
        for replica in 1..=options.placement_drivers {
            specs.push(self.driver_spec(options, replica)?);
        }
        // Replica by replica, not shard by shard: so all shards get a quorum at about the same time.
        for replica in 1..=options.replicas {
            for shard in self.shards.keys() {
                specs.push(self.shard_spec(options, *shard, replica)?);
            }
        }
        Ok(specs)
    }

    /// Places a further shard on `ports` (two per replica; twice as many with links).
    pub fn add_shard(
        &mut self,
        options: &ClusterOptions,
        ports: Vec<u16>,
    ) -> Result<(ShardInfo, Vec<ProcessSpec>), ConfigError> {
        let shard = self.place_shard(options, &mut ports.into_iter());
        let specs = (1..=options.replicas).map(|replica| self.shard_spec(options, shard, replica));
        let specs = specs.collect::<Result<_, _>>()?;
        let replicas = self.shards.get(&shard).map(|s| self.seen(&s.rpc)).unwrap_or_default();
        Ok((ShardInfo { id: shard, replicas }, specs))
    }

    /// Places a further replica of a shard on `ports` (two); it waits to be let in.
    pub fn add_replica(
        &mut self,
        options: &ClusterOptions,
        shard: ShardId,
        ports: &[u16],
    ) -> Result<(NewReplica, ProcessSpec), ConfigError> {
        let missing = || ConfigError::new(format!("no shard {shard}, or no ports for it"));
        let addresses = self.shards.get_mut(&shard).ok_or_else(missing)?;
        let [rpc, log] = *ports else { return Err(missing()) };
        let replica = addresses.last_replica + 1;
        addresses.last_replica = replica;
        let new = NewReplica { replica, rpc: loopback(rpc), log: loopback(log) };
        addresses.rpc.insert(replica, new.rpc);
        addresses.log.insert(replica, new.log);
        let spec = self.shard_spec(options, shard, replica)?;
        Ok((new, joining(spec)))
    }

    /// Places a further replica of the placement driver on `ports` (three); it waits to be let in.
    pub fn add_driver(
        &mut self,
        options: &ClusterOptions,
        ports: &[u16],
    ) -> Result<(NewMember, ProcessSpec), ConfigError> {
        let [rest, rpc, log] = *ports else { return Err(ConfigError::new("no ports for a placement driver")) };
        let replica = self.last_driver + 1;
        self.last_driver = replica;
        let new = NewMember { replica, rest: loopback(rest), rpc: loopback(rpc), log: loopback(log) };
        self.driver_rest.insert(replica, new.rest);
        self.driver_rpc.insert(replica, new.rpc);
        self.driver_log.insert(replica, new.log);
        let spec = self.driver_spec(options, replica)?;
        Ok((new, joining(spec)))
    }

    /// Forgets a replica.
    pub fn forget(&mut self, id: ProcessId) {
        match id {
            ProcessId::PlacementDriver(replica) => {
                self.driver_rest.remove(&replica);
                self.driver_rpc.remove(&replica);
                self.driver_log.remove(&replica);
            }
            ProcessId::ShardNode(shard, replica) => {
                if let Some(addresses) = self.shards.get_mut(&ShardId(shard)) {
                    addresses.rpc.remove(&replica);
                    addresses.log.remove(&replica);
                }
            }
        }
    }

    /// Forgets a shard.
    pub fn remove_shard(&mut self, shard: ShardId) {
        self.shards.remove(&shard);
    }

    /// The URLs of the placement driver's replicas.
    pub fn rest_urls(&self) -> Vec<String> {
        self.seen(&self.driver_rest).values().map(|address| format!("http://{address}")).collect()
    }

    /// The shards, as they are registered.
    pub fn shard_infos(&self) -> Vec<ShardInfo> {
        let info = |(id, shard): (&ShardId, &ShardLayout)| ShardInfo { id: *id, replicas: self.seen(&shard.rpc) };
        self.shards.iter().map(info).collect()
    }

    /// The proxies before a process's addresses: each with where it leads. None without links.
    pub fn fronts_of(&self, id: ProcessId) -> Vec<(SocketAddr, SocketAddr)> {
        let (replica, addresses) = match id {
            ProcessId::PlacementDriver(replica) => {
                (replica, vec![&self.driver_rest, &self.driver_rpc, &self.driver_log])
            }
            ProcessId::ShardNode(shard, replica) => {
                (replica, self.shards.get(&ShardId(shard)).map(|s| vec![&s.rpc, &s.log]).unwrap_or_default())
            }
        };
        let own = addresses.iter().filter_map(|all| all.get(&replica));
        own.filter_map(|real| Some((*self.fronts.get(real)?, *real))).collect()
    }

    /// Addresses as everybody is told them: with what stands before them.
    fn seen(&self, addresses: &Addresses) -> Addresses {
        addresses.iter().map(|(replica, real)| (*replica, *self.fronts.get(real).unwrap_or(real))).collect()
    }

    /// Has the process listen behind what stands before its address, if anything does.
    fn listen(&self, config: &mut serde_json::Value, key: &str, addresses: &Addresses, replica: u64) {
        if let Some(real) = addresses.get(&replica).filter(|real| self.fronts.contains_key(real)) {
            config[key] = real.to_string().into();
        }
    }

    fn place_shard(&mut self, options: &ClusterOptions, ports: &mut impl Iterator<Item = u16>) -> ShardId {
        self.last_shard += 1;
        let replicas = options.replicas;
        let (rpc, log) = (hand_out(replicas, ports), hand_out(replicas, ports));
        let shard = ShardLayout { rpc, log, last_replica: replicas };
        if options.links {
            for addresses in [&shard.rpc, &shard.log] {
                self.fronts.extend(front(addresses, ports));
            }
        }
        self.shards.insert(ShardId(self.last_shard), shard);
        ShardId(self.last_shard)
    }

    fn driver_spec(&self, options: &ClusterOptions, replica: u64) -> Result<ProcessSpec, ConfigError> {
        let id = ProcessId::PlacementDriver(replica);
        let mut config = serde_json::json!({
            "replica": replica,
            "data_dir": self.root.join(id.to_string()),
            "rest": self.seen(&self.driver_rest),
            "rpc": self.seen(&self.driver_rpc),
            "log": self.seen(&self.driver_log),
        });
        self.listen(&mut config, "listen_rest", &self.driver_rest, replica);
        self.listen(&mut config, "listen_rpc", &self.driver_rpc, replica);
        self.listen(&mut config, "listen_log", &self.driver_log, replica);
        if !options.balancer.is_empty() {
            config["balancer"] = serde_json::to_value(&options.balancer).unwrap_or_default();
        }
        Ok(self.spec(id, to_toml(&config)?))
    }

    fn shard_spec(&self, options: &ClusterOptions, shard: ShardId, replica: u64) -> Result<ProcessSpec, ConfigError> {
        let id = ProcessId::ShardNode(shard.0, replica);
        let addresses = self.shards.get(&shard).ok_or_else(|| ConfigError::new(format!("no shard {shard}")))?;
        let mut config = serde_json::json!({
            "shard": shard,
            "replica": replica,
            "data_dir": self.root.join(id.to_string()),
            "rpc": self.seen(&addresses.rpc),
            "log": self.seen(&addresses.log),
            "placement_drivers": self.seen(&self.driver_rpc),
            "capacity_per_s": options.shard_capacity_per_s,
            "postgres_bin": options.postgres_bin,
            // All of the cluster is on this machine.
            "servers_on_machine": (self.shards.len() as u64 * options.replicas).max(1),
        });
        self.listen(&mut config, "listen_rpc", &addresses.rpc, replica);
        self.listen(&mut config, "listen_log", &addresses.log, replica);
        for (key, value) in &options.shard_node {
            config[key] = serde_json::to_value(value).unwrap_or_default();
        }
        Ok(self.spec(id, to_toml(&config)?))
    }

    fn spec(&self, id: ProcessId, config: String) -> ProcessSpec {
        ProcessSpec {
            id,
            data_dir: self.root.join(id.to_string()),
            log_file: self.root.join(format!("{id}.log")),
            config_file: self.root.join(format!("{id}.toml")),
            config,
        }
    }
}

/// The same process, but waiting to be let in. Keys at the top come before any section.
fn joining(spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec { config: format!("join = true\n{}", spec.config), ..spec }
}

fn hand_out(count: u64, ports: &mut impl Iterator<Item = u16>) -> Addresses {
    (1..=count).zip(ports).map(|(number, port)| (number, loopback(port))).collect()
}

/// A port for a proxy before each of these addresses.
fn front(addresses: &Addresses, ports: &mut impl Iterator<Item = u16>) -> Vec<(SocketAddr, SocketAddr)> {
    addresses.values().zip(ports).map(|(real, port)| (*real, loopback(port))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    fn layout() -> (ClusterOptions, Layout) {
        let options = ClusterOptions { shard_capacity_per_s: Some(500.0), ..ClusterOptions::new("/bin/true") };
        let layout = Layout::new(&options, Path::new("/data"), (20_000..20_027).collect());
        (options, layout)
    }

    #[test]
    fn every_process_has_addresses_of_its_own_and_a_configuration_that_its_role_accepts() {
        let (options, layout) = layout();
        let specs = layout.specs(&options).unwrap();
        assert_eq!(specs.len(), 12);
        let mut addresses = BTreeSet::new();
        for spec in &specs {
            let text = |spec: &ProcessSpec| crate::config::Layers {
                file: Some(("x".into(), spec.config.clone())),
                ..Default::default()
            };
            match spec.id {
                ProcessId::ShardNode(shard, replica) => {
                    let config: evenkeel_shard_node::Config =
                        crate::config::resolve(&crate::roles::shard_node_settings(), &[], &text(spec)).unwrap();
                    assert_eq!((config.shard.0, config.replica, config.rpc.len()), (shard, replica, 3));
                    assert_eq!(config.capacity_per_s, Some(500.0));
                    assert_eq!(config.servers_on_machine, 9, "nine replicas share the machine");
                    assert_eq!(config.data_dir, Path::new("/data").join(format!("shard-{shard}-{replica}")));
                    assert_eq!(config.placement_drivers, layout.driver_rpc);
                    addresses.extend([config.rpc[&replica], config.log[&replica]]);
                }
                ProcessId::PlacementDriver(replica) => {
                    let config: evenkeel_placement_driver::Config =
                        crate::config::resolve(&crate::roles::placement_driver_settings(), &[], &text(spec)).unwrap();
                    assert_eq!((config.replica, config.rest.len()), (replica, 3));
                    addresses.extend([config.rest[&replica], config.rpc[&replica], config.log[&replica]]);
                }
            }
        }
        assert_eq!(addresses.len(), 27);
    }

    #[test]
    fn with_links_everybody_is_told_what_stands_before_an_address() {
        let options = ClusterOptions { links: true, ..ClusterOptions::new("/bin/true") };
        let layout = Layout::new(&options, Path::new("/data"), (20_000..20_054).collect());
        let fronts: BTreeSet<_> = layout.fronts.values().copied().collect();
        assert_eq!((layout.fronts.len(), fronts.len()), (27, 27));
        for spec in layout.specs(&options).unwrap() {
            let config: toml::Table = spec.config.parse().unwrap();
            let address = |value: &toml::Value| value.as_str().unwrap().parse::<SocketAddr>().unwrap();
            for key in ["rest", "rpc", "log", "placement_drivers"] {
                for (number, told) in config.get(key).and_then(|v| v.as_table()).into_iter().flatten() {
                    assert!(fronts.contains(&address(told)), "{} {key} {number}", spec.id);
                }
            }
            let listens = ["listen_rest", "listen_rpc", "listen_log"].into_iter().filter_map(|key| config.get(key));
            let led_to: BTreeSet<_> = layout.fronts_of(spec.id).into_iter().map(|(_, real)| real).collect();
            assert_eq!(listens.map(address).collect::<BTreeSet<_>>(), led_to);
        }
        let told = layout.shard_infos().into_iter().flat_map(|info| info.replicas.into_values());
        assert!(told.into_iter().all(|address| fronts.contains(&address)));
    }

    #[test]
    fn a_removed_shard_s_number_is_not_used_again() {
        let (options, mut layout) = layout();
        layout.remove_shard(ShardId(3));
        let (info, specs) = layout.add_shard(&options, (21_000..21_006).collect()).unwrap();
        assert_eq!(info.id, ShardId(4));
        assert_eq!(specs.len(), 3);
        assert_eq!(layout.shard_infos().len(), 3);
    }
}
