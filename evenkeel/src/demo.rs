//! `demo`: starts a cluster on this machine, sends a skewed load to one shard, and shows how the
//! balancer spreads it.

use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::error::CommandError;
use crate::executable::own_executable;
use crate::run_config::{RunConfig, conclude};
use crate::screen::{Screen, while_waiting};
use crate::{outputs, roles};
use evenkeel_client::{Client, ClientConfig};
use evenkeel_local_cluster::endpoints::Endpoints;
use evenkeel_local_cluster::layout::{GATEWAY_DATABASE, GATEWAY_USER};
use evenkeel_local_cluster::run::balancer::BalancerSwitch;
use evenkeel_local_cluster::run::workload::Workload;
use evenkeel_local_cluster::run::{ProgressListener, RunEnvironment, run};
use evenkeel_local_cluster::{Cluster, ClusterOptions};
use evenkeel_placement_driver::BalancerConfig;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// The configuration of `demo`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct DemoConfig {
    /// The run.
    #[serde(flatten)]
    pub run: RunConfig,
    /// Shards.
    #[serde(default = "three")]
    pub shards: u32,
    /// Replicas of each shard.
    #[serde(default = "three")]
    pub replicas: u32,
    /// The cluster's folder; absent: a temporary folder.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
    /// The folder with PostgreSQL's programs; absent: searched for.
    #[serde(default)]
    pub postgres_bin: Option<PathBuf>,
    /// The rate limit of each shard's leader, in statements per second.
    #[serde(default)]
    pub shard_capacity: Option<f64>,
    /// The file that receives the endpoints as JSON.
    #[serde(default)]
    pub endpoints: Option<PathBuf>,
    /// Whether the cluster stays up after the run.
    #[serde(default)]
    pub keep: bool,
    /// Whether the cluster is started without a run.
    #[serde(default)]
    pub idle: bool,
    /// Whether processes are killed during the run.
    #[serde(default)]
    pub chaos: bool,
    /// The balancer's settings.
    #[serde(default)]
    pub balancer: toml::Table,
}

fn three() -> u32 {
    3
}

/// The settings of `demo`.
pub fn settings() -> Vec<Setting> {
    let balancer = roles::balancer_defaults();
    let mut settings = RunConfig::settings();
    settings.extend([
        Setting::optional("shards", Kind::Count(1, 64)),
        Setting::optional("replicas", Kind::Count(2, 7)),
        Setting::optional("data_dir", Kind::Path),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("shard_capacity", roles::CAPACITY_PER_S),
        Setting::optional("endpoints", Kind::Path),
        Setting::optional("keep", Kind::Flag),
        Setting::optional("idle", Kind::Flag),
        Setting::optional("chaos", Kind::Flag),
        Setting::optional("balancer", Kind::Section(balancer)),
    ]);
    settings
}

/// Runs the demonstration. Every process that it starts has ended when it returns.
pub async fn demo(layers: &Layers) -> Result<(), CommandError> {
    let config: DemoConfig = resolve(&settings(), layers)?;
    let workload = config.prepare()?;
    let screen = Screen::new();
    let mut options = ClusterOptions::new(own_executable()?);
    options.gateway = true;
    options.shards = config.shards;
    options.replicas = u64::from(config.replicas);
    options.data_dir.clone_from(&config.data_dir);
    options.shard_capacity_per_s = config.shard_capacity;
    options.postgres_bin.clone_from(&config.postgres_bin);
    options.balancer.clone_from(&config.balancer);
    let end = roles::end_request(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let cluster = Cluster::launch(options)?;
    let ended = tokio::select! {
        ended = with_cluster(&config, workload, &cluster, &screen) => ended,
        () = end => Err(CommandError::Interrupted),
    };
    screen.load_ended();
    screen.line("stopping everything");
    cluster.stop().await;
    ended
}

impl DemoConfig {
    /// Checks all settings and returns the workload. Starts nothing.
    fn prepare(&self) -> Result<Workload, ConfigError> {
        let refuse = |key, value: &dyn std::fmt::Display, accepted| {
            Err(ConfigError::value(key, value, "configuration", accepted))
        };
        if self.idle && self.chaos {
            return refuse("chaos", &true, "no --chaos with --idle: nothing would move");
        }
        if let Some(path) = self.run.report.as_ref().filter(|_| self.idle) {
            return refuse("report", &path.display(), "no --report with --idle: nothing is run");
        }
        if self.chaos && self.shards < 2 {
            return refuse("chaos", &true, "--chaos with two shards or more: with one nothing moves");
        }
        let balancer: BalancerConfig = toml::Value::Table(self.balancer.clone())
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError::new(format!("balancer: {}", e.message())))?;
        balancer.check().map_err(ConfigError::new)?;
        if self.postgres_bin.is_some() {
            roles::check_postgres(self.postgres_bin.as_deref())?;
        }
        if let Some(path) = &self.endpoints {
            outputs::check("endpoints", path)?;
            outputs::check("endpoints", &Endpoints::partial(path))?;
        }
        self.run.prepare()
    }
}

async fn with_cluster(
    config: &DemoConfig,
    workload: Workload,
    cluster: &Cluster,
    screen: &Screen,
) -> Result<(), CommandError> {
    let what = format!(
        "starting 3 placement drivers, {} shards of {} replicas, each with its own PostgreSQL, and a gateway, in {}",
        config.shards,
        config.replicas,
        cluster.root().display()
    );
    let (up, took) = while_waiting(screen, &what, async {
        cluster.wait_ready().await.map_err(CommandError::failed)?;
        first_answer(cluster).await
    })
    .await;
    up?;
    screen
        .line(&format!("the cluster is up and has answered its first SQL statement after {:.1} s", took.as_secs_f64()));
    if let Some(command) = psql(cluster) {
        screen.line(&format!("connect with {command}"));
    }
    if let Some(path) = &config.endpoints {
        cluster.keep_endpoints_in(path).map_err(CommandError::failed)?;
    }
    if let Some(limit) = config.shard_capacity {
        screen.line(&format!(
            "each shard's leader admits at most {limit:.0} statements/s: throughput below is under that limit, a stand-in for \
             machines of their own"
        ));
    }
    let mut ended = Ok(());
    if !config.idle {
        let admin = cluster.admin().clone();
        let balancer = BalancerSwitch::read(&admin).await?;
        let progress = Arc::new(screen.clone());
        let environment = RunEnvironment { admin, balancer, cluster: Some(cluster), chaos: config.chaos, progress };
        let finished = run(&config.run.options(), workload, &environment).await?;
        ended = conclude(&finished, &config.run, screen);
    }
    if config.keep || config.idle {
        if let Err(CommandError::Failed(line)) = &ended {
            screen.line(line);
        }
        screen.line(&how_to_connect(cluster));
        std::future::pending::<()>().await;
    }
    ended
}

/// Executes the first SQL statement, as a waiting user would.
async fn first_answer(cluster: &Cluster) -> Result<(), CommandError> {
    let client = Client::connect(ClientConfig::new(cluster.admin().urls())).await.map_err(CommandError::failed)?;
    client.execute("SELECT 1", &[]).await.map_err(CommandError::failed)?;
    Ok(())
}

/// The command that connects to the gateway.
fn psql(cluster: &Cluster) -> Option<String> {
    let address = cluster.gateway()?;
    let (host, port) = (address.ip(), address.port());
    Some(format!("psql 'host={host} port={port} user={GATEWAY_USER} dbname={GATEWAY_DATABASE}'"))
}

fn how_to_connect(cluster: &Cluster) -> String {
    let (urls, first) = (cluster.admin().urls().join(","), cluster.admin().urls().first().map_or("", String::as_str));
    let program = std::env::args().next().unwrap_or_else(|| "evenkeel".into());
    let psql = psql(cluster).map_or_else(String::new, |command| format!("\n  {command}"));
    format!(
        "The cluster stays up until Ctrl-C. In another terminal:\n  export EVENKEEL_URL={urls}\n  PD={first}   # one of them, for curl\n\
         For example:{psql}\n  {program} shards\n  {program} ranges\n  {program} decisions\n  {program} sql 'SELECT 1'\n  {program} replay \
         --workload hotspot-jump\n  curl -L $PD/v1/shards"
    )
}
