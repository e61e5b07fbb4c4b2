//! The roles of a process, placement driver, shard node and gateway: their settings, their start,
//! their end.
//!
//! A role runs until SIGTERM, SIGINT or, if asked for, the end of standard input. A panic in any of
//! its tasks ends the process.

use crate::config::{ConfigError, Kind, Layers, Setting, check_members, resolve};
use crate::gateway_config::{self, gateway_settings};
use evenkeel_client::causes::with_causes;
use evenkeel_gateway as gateway;
use evenkeel_placement_driver as placement_driver;
use evenkeel_shard_node as shard_node;
use std::future::Future;
use std::io::Read;
use tokio::signal::unix::{SignalKind, signal};

/// The rate limit of a shard's leader, in statements per second. Below one, a start would not
/// finish.
pub const CAPACITY_PER_S: Kind = Kind::Number(1.0, 1e9);
/// The lower bound of the log's size, in bytes: a few entries of the largest size.
const MIN_LOG_BYTES: i64 = 4 << 20;

/// Why a role ended with a failure.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The configuration is wrong: exit status 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The role could not start or continue: exit status 1.
    #[error("{0}")]
    Run(String),
}

/// The settings of `placement-driver`.
pub fn placement_driver_settings() -> Vec<Setting> {
    vec![
        Setting::required("replica", Kind::Count(1, 255)),
        Setting::optional("join", Kind::Flag),
        Setting::required("data_dir", Kind::Path),
        Setting::required("rest", Kind::Addresses),
        Setting::required("rpc", Kind::Addresses),
        Setting::required("log", Kind::Addresses),
        Setting::optional("listen_rest", Kind::Address),
        Setting::optional("listen_rpc", Kind::Address),
        Setting::optional("listen_log", Kind::Address),
        Setting::optional("balancer", Kind::Section(balancer_defaults())),
        Setting::optional("snapshot_every_entries", Kind::Count(1, i64::MAX)),
        Setting::optional("incarnation", Kind::Count(1, i64::MAX)),
        Setting::optional("log_retention_bytes", Kind::Count(MIN_LOG_BYTES, i64::MAX)),
        Setting::optional("log_cap_bytes", Kind::Count(MIN_LOG_BYTES, i64::MAX)),
    ]
}

/// The settings of `shard-node`.
pub fn shard_node_settings() -> Vec<Setting> {
    vec![
        Setting::required("shard", Kind::Count(1, i64::from(u32::MAX))),
        Setting::required("replica", Kind::Count(1, 255)),
        Setting::optional("join", Kind::Flag),
        Setting::required("data_dir", Kind::Path),
        Setting::required("rpc", Kind::Addresses),
        Setting::required("log", Kind::Addresses),
        Setting::optional("listen_rpc", Kind::Address),
        Setting::optional("listen_log", Kind::Address),
        Setting::optional("placement_drivers", Kind::Addresses),
        Setting::optional("capacity_per_s", CAPACITY_PER_S),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("servers_on_machine", Kind::Count(1, 1000)),
        Setting::optional("postgres_memory_mib", Kind::Count(64, 1 << 24)),
        Setting::optional("shared_buffers_mib", Kind::Count(1, 1 << 20)),
        Setting::optional("max_wal_mib", Kind::Count(32, 1 << 20)),
        Setting::optional("write_lanes", Kind::Count(1, 64)),
        Setting::optional("read_lanes", Kind::Count(1, 64)),
        Setting::optional("max_transactions", Kind::Count(1, 1000)),
        Setting::optional("log_cap_bytes", Kind::Count(MIN_LOG_BYTES, i64::MAX)),
        Setting::optional("scrub_bytes_per_s", Kind::Count(0, i64::MAX)),
        Setting::optional("scrub_pause_ms", Kind::Count(0, i64::MAX)),
    ]
}

/// The balancer's settings with their defaults.
pub fn balancer_defaults() -> toml::Table {
    toml::Table::try_from(placement_driver::BalancerConfig::default()).unwrap_or_default()
}

/// Checks that PostgreSQL's programs are in this folder.
pub fn check_postgres(folder: Option<&std::path::Path>) -> Result<(), ConfigError> {
    shard_node::postgres::find(folder, None).map(drop).map_err(|e| ConfigError::new(e.to_string()))
}

/// Runs a placement-driver replica until its end is requested.
pub async fn run_placement_driver(layers: &Layers, end_with_stdin: bool) -> Result<(), RoleError> {
    end_on_panic();
    let config: placement_driver::Config = resolve(&placement_driver_settings(), layers)?;
    config.check().map_err(ConfigError::new)?;
    if config.log_cap_bytes < config.log_retention_bytes {
        let accepted = format!("at least log_retention_bytes, {}", config.log_retention_bytes);
        return Err(ConfigError::value("log_cap_bytes", config.log_cap_bytes, "all layers", accepted).into());
    }
    let end = end_request(end_with_stdin).map_err(|e| RoleError::Run(format!("listening for signals: {e}")))?;
    on_a_worker(placement_driver::run(config, end)).await?.map_err(|e| RoleError::Run(with_causes(&e)))
}

/// Runs a shard's replica until its end is requested.
pub async fn run_shard_node(layers: &Layers, end_with_stdin: bool) -> Result<(), RoleError> {
    end_on_panic();
    let config: shard_node::Config = resolve(&shard_node_settings(), layers)?;
    check_members(config.replica, &[("rpc", &config.rpc), ("log", &config.log)])?;
    let end = end_request(end_with_stdin).map_err(|e| RoleError::Run(format!("listening for signals: {e}")))?;
    on_a_worker(shard_node::run(config, end)).await?.map_err(|e| RoleError::Run(with_causes(&e)))
}

/// Runs a gateway until its end is requested.
pub async fn run_gateway(layers: &Layers, end_with_stdin: bool) -> Result<(), RoleError> {
    end_on_panic();
    let config = gateway_config::complete(resolve(&gateway_settings(), layers)?)?;
    let end = end_request(end_with_stdin).map_err(|e| RoleError::Run(format!("listening for signals: {e}")))?;
    on_a_worker(gateway::run(config, end)).await?.map_err(RoleError::Run)
}

/// Runs a role as a task of the runtime. The main thread is not a worker of the runtime: each
/// wake-up between it and a task would pass through another thread, and a shard's applier, which
/// runs here, wakes tasks for every write.
async fn on_a_worker<T: Send + 'static>(role: impl Future<Output = T> + Send + 'static) -> Result<T, RoleError> {
    tokio::spawn(role).await.map_err(|error| RoleError::Run(error.to_string()))
}

/// Makes a panic in any task end the process, in every build profile. A replica that has lost a
/// task would look healthy and not serve.
fn end_on_panic() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        show(panic);
        std::process::abort();
    }));
}

/// Resolves on SIGTERM or SIGINT, and with `end_with_stdin` when standard input closes: the parent
/// process has then ended, and no other would end this one.
pub fn end_request(end_with_stdin: bool) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (closed, mut stdin_closed) = tokio::sync::mpsc::channel::<()>(1);
    if end_with_stdin {
        // A separate thread: the runtime's end would wait for a blocked read of standard input.
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut scrap = [0; 64];
            while std::io::stdin().read(&mut scrap).is_ok_and(|n| n > 0) {}
            drop(closed);
        })?;
    } else {
        // Keeps the channel open.
        std::mem::forget(closed);
    }
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("ending: SIGTERM"),
            _ = interrupt.recv() => tracing::info!("ending: SIGINT"),
            _ = stdin_closed.recv() => tracing::info!("ending: standard input is closed"),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_local_cluster::layout::{Layout, ProcessSpec};
    use evenkeel_local_cluster::{ClusterOptions, ProcessId};
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    #[test]
    fn a_local_cluster_s_configurations_are_accepted_by_their_roles() {
        let options =
            ClusterOptions { shard_capacity_per_s: Some(500.0), gateway: true, ..ClusterOptions::new("/bin/true") };
        let layout = Layout::new(&options, Path::new("/data"), (20_000..20_028).collect());
        let specs = layout.specs(&options).unwrap();
        assert_eq!(specs.len(), 12);
        let (mut addresses, mut placement_drivers) = (BTreeSet::new(), BTreeMap::new());
        for spec in &specs {
            let text =
                |spec: &ProcessSpec| Layers { file: Some(("x".into(), spec.config.clone())), ..Default::default() };
            match spec.id {
                ProcessId::ShardNode(shard, replica) => {
                    let config: shard_node::Config = resolve(&shard_node_settings(), &text(spec)).unwrap();
                    assert_eq!((config.shard.0, config.replica, config.rpc.len()), (shard, replica, 3));
                    assert_eq!(config.capacity_per_s, Some(500.0));
                    assert_eq!(config.servers_on_machine, 9, "nine replicas share the machine");
                    assert_eq!(config.data_dir, Path::new("/data").join(format!("shard-{shard}-{replica}")));
                    assert_eq!(config.placement_drivers, placement_drivers);
                    addresses.extend([config.rpc[&replica], config.log[&replica]]);
                }
                ProcessId::PlacementDriver(replica) => {
                    let config: placement_driver::Config = resolve(&placement_driver_settings(), &text(spec)).unwrap();
                    assert_eq!((config.replica, config.rest.len()), (replica, 3));
                    // Placement drivers come first.
                    placement_drivers.clone_from(&config.rpc);
                    addresses.extend([config.rest[&replica], config.rpc[&replica], config.log[&replica]]);
                }
                ProcessId::Gateway => panic!("it keeps no data"),
            }
        }
        let file = layout.gateway_spec(&options).unwrap().map(|spec| ("x".to_string(), spec.config));
        let settings = resolve(&gateway_settings(), &Layers { file, ..Default::default() }).unwrap();
        let config = gateway_config::complete(settings).unwrap();
        assert_eq!((config.data_dir.as_path(), config.endpoints), (Path::new("/data/gateway"), layout.rest_urls()));
        assert!(addresses.insert(config.listen));
        assert_eq!(addresses.len(), 28);
    }
}
