//! The processes of a cluster: their names, folders, addresses and configurations.
//!
//! [`Layout`] owns the assignment of ports to processes and never reuses the number of a shard or a
//! replica. It is pure: ports are reserved by the caller, and nothing is written.

use crate::address::loopback;
use crate::error::ClusterError;
use crate::options::ClusterOptions;
use crate::process_id::ProcessId;
use crate::toml_text::to_toml;
use evenkeel_placement_driver::NewMember;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::NewReplica;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The user in the gateway's URL. The gateway of a local cluster admits any.
pub const GATEWAY_USER: &str = "app";
/// The database in the gateway's URL. A cluster is one database, whatever it is called.
pub const GATEWAY_DATABASE: &str = "postgres";

/// Addresses by replica number.
type Addresses = BTreeMap<u64, SocketAddr>;

/// A process that is to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessSpec {
    /// Its name.
    pub id: ProcessId,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The file that receives its log.
    pub log_file: PathBuf,
    /// The file that receives its configuration.
    pub config_file: PathBuf,
    /// Its configuration as TOML.
    pub config: String,
}

/// The addresses of every process of a cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    placement_driver: PlacementDriverLayout,
    shards: BTreeMap<ShardId, ShardLayout>,
    /// Where the gateway listens, if there is one. Clients reach it without a proxy.
    gateway: Option<SocketAddr>,
    /// The proxy in front of an address, by that address (see [`crate::links`]).
    proxies: BTreeMap<SocketAddr, SocketAddr>,
    /// The number of a removed shard is never reused.
    last_shard: u32,
}

#[derive(Debug, Clone)]
struct PlacementDriverLayout {
    rest: Addresses,
    rpc: Addresses,
    log: Addresses,
    /// The number of a removed replica is never reused.
    last_replica: u64,
}

#[derive(Debug, Clone)]
struct ShardLayout {
    rpc: Addresses,
    log: Addresses,
    /// The number of a removed replica is never reused.
    last_replica: u64,
}

impl Layout {
    /// Assigns `ports` to the processes of `options`: three per placement driver, two per shard
    /// replica, twice as many with links, and one for the gateway.
    pub fn new(options: &ClusterOptions, root: &Path, ports: Vec<u16>) -> Layout {
        let mut ports = ports.into_iter();
        let count = options.placement_drivers;
        let placement_driver = PlacementDriverLayout {
            rest: assign(count, &mut ports),
            rpc: assign(count, &mut ports),
            log: assign(count, &mut ports),
            last_replica: count,
        };
        let mut proxies = BTreeMap::new();
        if options.links {
            for addresses in [&placement_driver.rest, &placement_driver.rpc, &placement_driver.log] {
                proxies.extend(assign_proxies(addresses, &mut ports));
            }
        }
        let (root, shards) = (root.to_path_buf(), BTreeMap::new());
        let mut layout = Layout { root, placement_driver, shards, gateway: None, proxies, last_shard: 0 };
        for _ in 0..options.shards {
            layout.place_shard(options, &mut ports);
        }
        layout.gateway = ports.next().filter(|_| options.gateway).map(loopback);
        layout
    }

    /// Every process that keeps data, in the order of starting.
    pub fn specs(&self, options: &ClusterOptions) -> Result<Vec<ProcessSpec>, ClusterError> {
        let mut specs = Vec::new();
        for replica in 1..=options.placement_drivers {
            specs.push(self.placement_driver_spec(options, replica)?);
        }
        // Replica by replica, so that all shards reach a quorum at about the same time.
        for replica in 1..=options.replicas {
            for shard in self.shards.keys() {
                specs.push(self.shard_spec(options, *shard, replica)?);
            }
        }
        Ok(specs)
    }

    /// The gateway, if there is one. It needs the placement driver to start.
    pub fn gateway_spec(&self, options: &ClusterOptions) -> Result<Option<ProcessSpec>, ClusterError> {
        let Some(listen) = self.gateway else { return Ok(None) };
        let id = ProcessId::Gateway;
        let config = serde_json::json!({
            "listen": listen,
            "url": self.rest_urls().join(","),
            "data_dir": self.root.join(id.to_string()),
            "postgres_bin": options.postgres_bin,
            "trust_loopback": true,
        });
        Ok(Some(self.spec(id, to_toml(&config)?)))
    }

    /// Where the gateway listens, if there is one.
    pub fn gateway(&self) -> Option<SocketAddr> {
        self.gateway
    }

    /// The gateway's URL for PostgreSQL clients, if there is one.
    pub fn gateway_url(&self) -> Option<String> {
        self.gateway.map(|address| format!("postgresql://{GATEWAY_USER}@{address}/{GATEWAY_DATABASE}"))
    }

    /// Adds a shard on `ports`: two per replica, and twice as many with links.
    pub fn add_shard(
        &mut self,
        options: &ClusterOptions,
        ports: Vec<u16>,
    ) -> Result<(ShardInfo, Vec<ProcessSpec>), ClusterError> {
        let shard = self.place_shard(options, &mut ports.into_iter());
        let specs = (1..=options.replicas).map(|replica| self.shard_spec(options, shard, replica));
        let specs = specs.collect::<Result<_, _>>()?;
        let replicas = self.shards.get(&shard).map(|s| self.advertised(&s.rpc)).unwrap_or_default();
        Ok((ShardInfo { id: shard, replicas }, specs))
    }

    /// Adds a replica of a shard on `ports` (two). It waits to be added to the replica group.
    pub fn add_replica(
        &mut self,
        options: &ClusterOptions,
        shard: ShardId,
        ports: &[u16],
    ) -> Result<(NewReplica, ProcessSpec), ClusterError> {
        let addresses = self.shards.get_mut(&shard).ok_or(ClusterError::NoSuchShard(shard))?;
        let [rpc, log] = *ports else { return Err(ClusterError::NoPorts(format!("a replica of shard {shard}"))) };
        let replica = addresses.last_replica + 1;
        addresses.last_replica = replica;
        let new = NewReplica { replica, rpc: loopback(rpc), log: loopback(log) };
        addresses.rpc.insert(replica, new.rpc);
        addresses.log.insert(replica, new.log);
        let spec = self.shard_spec(options, shard, replica)?;
        Ok((new, joining(spec)))
    }

    /// Adds a replica of the placement driver on `ports` (three). It waits to be added to the
    /// replica group.
    pub fn add_placement_driver(
        &mut self,
        options: &ClusterOptions,
        ports: &[u16],
    ) -> Result<(NewMember, ProcessSpec), ClusterError> {
        let [rest, rpc, log] = *ports else { return Err(ClusterError::NoPorts("a placement driver".into())) };
        let replica = self.placement_driver.last_replica + 1;
        self.placement_driver.last_replica = replica;
        let new = NewMember { replica, rest: loopback(rest), rpc: loopback(rpc), log: loopback(log) };
        self.placement_driver.rest.insert(replica, new.rest);
        self.placement_driver.rpc.insert(replica, new.rpc);
        self.placement_driver.log.insert(replica, new.log);
        let spec = self.placement_driver_spec(options, replica)?;
        Ok((new, joining(spec)))
    }

    /// Removes a replica, or the gateway.
    pub fn remove_replica(&mut self, id: ProcessId) {
        match id {
            ProcessId::PlacementDriver(replica) => {
                self.placement_driver.rest.remove(&replica);
                self.placement_driver.rpc.remove(&replica);
                self.placement_driver.log.remove(&replica);
            }
            ProcessId::ShardNode(shard, replica) => {
                if let Some(addresses) = self.shards.get_mut(&ShardId(shard)) {
                    addresses.rpc.remove(&replica);
                    addresses.log.remove(&replica);
                }
            }
            ProcessId::Gateway => self.gateway = None,
        }
    }

    /// Removes a shard.
    pub fn remove_shard(&mut self, shard: ShardId) {
        self.shards.remove(&shard);
    }

    /// The URLs of the placement driver's replicas.
    pub fn rest_urls(&self) -> Vec<String> {
        self.advertised(&self.placement_driver.rest).values().map(|address| format!("http://{address}")).collect()
    }

    /// The shards as they are registered with the placement driver.
    pub fn shard_infos(&self) -> Vec<ShardInfo> {
        let info = |(id, shard): (&ShardId, &ShardLayout)| ShardInfo { id: *id, replicas: self.advertised(&shard.rpc) };
        self.shards.iter().map(info).collect()
    }

    /// The proxies in front of a process's addresses, each with the address it forwards to. Empty
    /// without links.
    pub fn proxies_of(&self, id: ProcessId) -> Vec<(SocketAddr, SocketAddr)> {
        let (replica, addresses) = match id {
            ProcessId::PlacementDriver(replica) => {
                (replica, vec![&self.placement_driver.rest, &self.placement_driver.rpc, &self.placement_driver.log])
            }
            ProcessId::ShardNode(shard, replica) => {
                (replica, self.shards.get(&ShardId(shard)).map(|s| vec![&s.rpc, &s.log]).unwrap_or_default())
            }
            ProcessId::Gateway => return Vec::new(),
        };
        let own = addresses.iter().filter_map(|all| all.get(&replica));
        own.filter_map(|real| Some((*self.proxies.get(real)?, *real))).collect()
    }

    /// Addresses as processes and clients know them: those of the proxies, if there are any.
    fn advertised(&self, addresses: &Addresses) -> Addresses {
        addresses.iter().map(|(replica, real)| (*replica, *self.proxies.get(real).unwrap_or(real))).collect()
    }

    /// Sets where the process listens, if a proxy has its advertised address.
    fn listen(&self, config: &mut serde_json::Value, key: &str, addresses: &Addresses, replica: u64) {
        if let Some(real) = addresses.get(&replica).filter(|real| self.proxies.contains_key(real)) {
            config[key] = real.to_string().into();
        }
    }

    fn place_shard(&mut self, options: &ClusterOptions, ports: &mut impl Iterator<Item = u16>) -> ShardId {
        self.last_shard += 1;
        let replicas = options.replicas;
        let (rpc, log) = (assign(replicas, ports), assign(replicas, ports));
        let shard = ShardLayout { rpc, log, last_replica: replicas };
        if options.links {
            for addresses in [&shard.rpc, &shard.log] {
                self.proxies.extend(assign_proxies(addresses, ports));
            }
        }
        self.shards.insert(ShardId(self.last_shard), shard);
        ShardId(self.last_shard)
    }

    fn placement_driver_spec(&self, options: &ClusterOptions, replica: u64) -> Result<ProcessSpec, ClusterError> {
        let id = ProcessId::PlacementDriver(replica);
        let mut config = serde_json::json!({
            "replica": replica,
            "data_dir": self.root.join(id.to_string()),
            "rest": self.advertised(&self.placement_driver.rest),
            "rpc": self.advertised(&self.placement_driver.rpc),
            "log": self.advertised(&self.placement_driver.log),
        });
        self.listen(&mut config, "listen_rest", &self.placement_driver.rest, replica);
        self.listen(&mut config, "listen_rpc", &self.placement_driver.rpc, replica);
        self.listen(&mut config, "listen_log", &self.placement_driver.log, replica);
        if !options.balancer.is_empty() {
            config["balancer"] = serde_json::to_value(&options.balancer).unwrap_or_default();
        }
        Ok(self.spec(id, to_toml(&config)?))
    }

    fn shard_spec(&self, options: &ClusterOptions, shard: ShardId, replica: u64) -> Result<ProcessSpec, ClusterError> {
        let id = ProcessId::ShardNode(shard.0, replica);
        let addresses = self.shards.get(&shard).ok_or(ClusterError::NoSuchShard(shard))?;
        let mut config = serde_json::json!({
            "shard": shard,
            "replica": replica,
            "data_dir": self.root.join(id.to_string()),
            "rpc": self.advertised(&addresses.rpc),
            "log": self.advertised(&addresses.log),
            "placement_drivers": self.advertised(&self.placement_driver.rpc),
            "capacity_per_s": options.shard_capacity_per_s,
            "postgres_bin": options.postgres_bin,
            // The whole cluster is on this machine.
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

/// The same process, which waits to be added to its replica group. Top-level keys precede any
/// section.
fn joining(spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec { config: format!("join = true\n{}", spec.config), ..spec }
}

fn assign(count: u64, ports: &mut impl Iterator<Item = u16>) -> Addresses {
    (1..=count).zip(ports).map(|(number, port)| (number, loopback(port))).collect()
}

/// A proxy in front of each of these addresses.
fn assign_proxies(addresses: &Addresses, ports: &mut impl Iterator<Item = u16>) -> Vec<(SocketAddr, SocketAddr)> {
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
    fn every_process_has_addresses_of_its_own() {
        let (options, layout) = layout();
        let specs = layout.specs(&options).unwrap();
        assert_eq!(specs.len(), 12);
        let mut addresses = BTreeSet::new();
        for spec in &specs {
            let config: toml::Table = spec.config.parse().unwrap();
            let own = |key: &str| config[key][&spec_replica(spec)].as_str().unwrap().to_string();
            match spec.id {
                ProcessId::ShardNode(..) => addresses.extend([own("rpc"), own("log")]),
                ProcessId::PlacementDriver(_) => addresses.extend([own("rest"), own("rpc"), own("log")]),
                ProcessId::Gateway => panic!("it keeps no data"),
            }
        }
        assert_eq!(addresses.len(), 27);
    }

    fn spec_replica(spec: &ProcessSpec) -> String {
        match spec.id {
            ProcessId::PlacementDriver(replica) | ProcessId::ShardNode(_, replica) => replica.to_string(),
            ProcessId::Gateway => panic!("it keeps no data"),
        }
    }

    #[test]
    fn a_gateway_has_the_last_port_and_no_proxy() {
        let (options, without) = layout();
        assert_eq!((without.gateway_spec(&options).unwrap(), without.gateway_url()), (None, None));
        let options = ClusterOptions { gateway: true, links: true, ..options };
        let layout = Layout::new(&options, Path::new("/data"), (20_000..20_055).collect());
        let spec = layout.gateway_spec(&options).unwrap().unwrap();
        let config: toml::Table = spec.config.parse().unwrap();
        assert_eq!(config["listen"].as_str(), Some("127.0.0.1:20054"));
        assert_eq!(config["url"].as_str(), Some(&*layout.rest_urls().join(",")));
        assert_eq!(layout.gateway_url().as_deref(), Some("postgresql://app@127.0.0.1:20054/postgres"));
        assert!(layout.proxies_of(spec.id).is_empty());
    }

    #[test]
    fn with_links_every_process_knows_the_others_by_their_proxies() {
        let options = ClusterOptions { links: true, ..ClusterOptions::new("/bin/true") };
        let layout = Layout::new(&options, Path::new("/data"), (20_000..20_054).collect());
        let proxies: BTreeSet<_> = layout.proxies.values().copied().collect();
        assert_eq!((layout.proxies.len(), proxies.len()), (27, 27));
        for spec in layout.specs(&options).unwrap() {
            let config: toml::Table = spec.config.parse().unwrap();
            let address = |value: &toml::Value| value.as_str().unwrap().parse::<SocketAddr>().unwrap();
            for key in ["rest", "rpc", "log", "placement_drivers"] {
                for (number, known) in config.get(key).and_then(|v| v.as_table()).into_iter().flatten() {
                    assert!(proxies.contains(&address(known)), "{} {key} {number}", spec.id);
                }
            }
            let listens = ["listen_rest", "listen_rpc", "listen_log"].into_iter().filter_map(|key| config.get(key));
            let forwarded: BTreeSet<_> = layout.proxies_of(spec.id).into_iter().map(|(_, real)| real).collect();
            assert_eq!(listens.map(address).collect::<BTreeSet<_>>(), forwarded);
        }
        let registered = layout.shard_infos().into_iter().flat_map(|info| info.replicas.into_values());
        assert!(registered.into_iter().all(|address| proxies.contains(&address)));
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
