//! The two roles a process can have: their settings, what makes them end, and their run.

use crate::config::{ConfigError, Kind, Layers, Setting, check_members, resolve};
use evenkeel_placement_driver as placement_driver;
use evenkeel_shard_node as shard_node;
use std::future::Future;
use std::io::Read;
use tokio::signal::unix::{SignalKind, signal};

/// What a shard's leader may be limited to, in statements a second. Less than one, and not even a start would end.
pub const CAPACITY_PER_S: Kind = Kind::Number(1.0, 1e9);
/// The least that a log may take, in bytes: a few entries of the largest size.
const MIN_LOG_BYTES: i64 = 4 << 20;

/// Why a role's process ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The configuration is wrong: exit status 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It could not run on: exit status 1.
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

/// Keys that some command knows: in the environment, which all share, a key of another command is no mistake.
pub fn all_keys() -> Vec<&'static str> {
    let all = [
        placement_driver_settings(),
        shard_node_settings(),
        crate::demo::settings(),
        crate::replay::settings(),
        crate::bench::settings(),
        crate::bench::failover::settings(),
        crate::bench::size::settings(),
    ];
    all.iter().flatten().map(|s| s.key).collect()
}

/// Runs a placement-driver replica until told to end.
pub async fn run_placement_driver(layers: &Layers, end_with_stdin: bool) -> Result<(), RoleError> {
    end_on_panic();
    let config: placement_driver::Config = resolve(&placement_driver_settings(), &all_keys(), layers)?;
    config.check().map_err(ConfigError::new)?;
    if config.log_cap_bytes < config.log_retention_bytes {
        let accepted = format!("at least log_retention_bytes, {}", config.log_retention_bytes);
        return Err(ConfigError::value("log_cap_bytes", config.log_cap_bytes, "all layers", accepted).into());
    }
    let end = told_to_end(end_with_stdin).map_err(|e| RoleError::Run(format!("listening for signals: {e}")))?;
    on_a_worker(placement_driver::run(config, end)).await?.map_err(|e| RoleError::Run(with_causes(&e)))
}

/// Runs a shard's replica until told to end.
pub async fn run_shard_node(layers: &Layers, end_with_stdin: bool) -> Result<(), RoleError> {
    end_on_panic();
    let config: shard_node::Config = resolve(&shard_node_settings(), &all_keys(), layers)?;
    check_members(config.replica, &[("rpc", &config.rpc), ("log", &config.log)])?;
    let end = told_to_end(end_with_stdin).map_err(|e| RoleError::Run(format!("listening for signals: {e}")))?;
    on_a_worker(shard_node::run(config, end)).await?.map_err(|e| RoleError::Run(with_causes(&e)))
}

/// Runs a role as a task of the runtime. The thread that called `main` is not one of the runtime's workers: every wake-up between
/// it and a task would go through another thread, and a shard's applier, which runs here, wakes tasks for every write.
async fn on_a_worker<T: Send + 'static>(role: impl Future<Output = T> + Send + 'static) -> Result<T, RoleError> {
    tokio::spawn(role).await.map_err(|error| RoleError::Run(error.to_string()))
}

/// From here on a panic anywhere ends the process, in every build profile: a replica with one task missing would look alive
/// and not be.
fn end_on_panic() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        show(panic);
        std::process::abort();
    }));
}

/// Resolves on SIGTERM or SIGINT, and with `end_with_stdin` when standard input closes: then whoever started this process is
/// gone, and nobody else would end it.
pub fn told_to_end(end_with_stdin: bool) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (closed, mut stdin_closed) = tokio::sync::mpsc::channel::<()>(1);
    if end_with_stdin {
        // A thread of its own: the runtime would wait for a read of standard input to end before it ends itself.
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut scrap = [0; 64];
            while std::io::stdin().read(&mut scrap).is_ok_and(|n| n > 0) {}
            drop(closed);
        })?;
    } else {
        // Never closes by itself.
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

/// An error and what caused it, in one line: many errors' own texts leave out what went wrong below.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
