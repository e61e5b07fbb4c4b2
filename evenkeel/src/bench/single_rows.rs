//! `bench`: single-row statements beside PostgreSQL, and route lookups beside nginx.
//!
//! One shard of three replicas runs beside PostgreSQL with two streaming standbys, of which one
//! must confirm: updates and linearizable reads of single rows by primary key, with the same number
//! of clients. `GET /v1/routes/{table}?key=` runs beside nginx with a file of the same size, both
//! under wrk.

use crate::bench::closed_loop::measure;
use crate::bench::comparison::{Comparison, Measurement, render};
use crate::bench::plain::PlainPostgres;
use crate::bench::routes;
use crate::bench::row_tables::{EvenkeelRows, PlainRows};
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::error::CommandError;
use crate::executable::own_executable;
use crate::screen::{Screen, while_waiting};
use crate::{outputs, roles};
use evenkeel_local_cluster::run::ProgressListener;
use evenkeel_local_cluster::{Cluster, ClusterOptions};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The longest measurement, in seconds.
const MAX_DURATION_S: f64 = 3_600.0;
/// Replicas of the shard, and PostgreSQL servers of either system.
const REPLICAS: u32 = 3;
/// Connections of wrk.
const WRK_CONNECTIONS: usize = 16;
/// The goal of updates at 16 and 64 clients, as a ratio of throughputs.
const UPDATE_BAR: f64 = 0.5;
/// The goal of reads.
const READ_BAR: f64 = 0.4;
/// The goal of route lookups.
const ROUTES_BAR: f64 = 0.3;

/// The configuration of `bench`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct BenchConfig {
    /// Numbers of clients, separated by commas.
    pub clients: String,
    /// The duration of each measurement, in seconds.
    pub duration: f64,
    /// The number of rounds.
    pub rounds: usize,
    /// Rows of the table.
    pub rows: i64,
    /// The folder with PostgreSQL's programs; absent: searched for.
    pub postgres_bin: Option<PathBuf>,
    /// The file that receives the measurements as JSON.
    pub json: Option<PathBuf>,
    /// The selected parts: `sql`, `routes`.
    pub only: String,
}

impl Default for BenchConfig {
    fn default() -> BenchConfig {
        BenchConfig {
            clients: "1,16,64".into(),
            duration: 4.0,
            rounds: 3,
            rows: 20_000,
            postgres_bin: None,
            json: None,
            only: "sql,routes".into(),
        }
    }
}

/// The settings of `bench`.
pub fn settings() -> Vec<Setting> {
    vec![
        Setting::optional("clients", Kind::Text),
        Setting::optional("duration", Kind::Seconds(0.001, MAX_DURATION_S)),
        Setting::optional("rounds", Kind::Count(1, 100)),
        Setting::optional("rows", Kind::Count(1, 10_000_000)),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("json", Kind::Path),
        Setting::optional("only", Kind::Text),
    ]
}

/// Runs the measurements. Every process that it starts has ended when it returns.
pub async fn bench(layers: &Layers) -> Result<(), CommandError> {
    let config: BenchConfig = resolve(&settings(), layers)?;
    let clients = numbers(&config.clients)?;
    let parts: Vec<&str> = config.only.split(',').map(str::trim).collect();
    if let Some(part) = parts.iter().find(|p| !["sql", "routes"].contains(p)) {
        return Err(
            ConfigError::value("only", part, "configuration", "sql, routes, or both with a comma between").into()
        );
    }
    if let Some(path) = &config.json {
        outputs::check("json", path)?;
    }
    if config.postgres_bin.is_some() {
        roles::check_postgres(config.postgres_bin.as_deref())?;
    }
    let screen = Screen::new();
    let mut options = ClusterOptions::new(own_executable()?);
    options.shards = 1;
    options.postgres_bin.clone_from(&config.postgres_bin);
    // One range: the measurement is of a shard, not of the balancer.
    options.balancer.insert("enabled".into(), toml::Value::Boolean(false));
    let end = roles::end_request(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let cluster = Cluster::launch(options)?;
    let measured = tokio::select! {
        measured = measure_all(&config, &clients, &parts, &cluster, &screen) => measured,
        () = end => Err(CommandError::Interrupted),
    };
    cluster.stop().await;
    let comparisons = measured?;
    screen.line(&render(&comparisons));
    if let Some(path) = &config.json {
        let text = serde_json::to_string_pretty(&comparisons).map_err(CommandError::failed)? + "\n";
        outputs::write(path, &text).map_err(CommandError::Failed)?;
    }
    Ok(())
}

fn numbers(text: &str) -> Result<Vec<usize>, ConfigError> {
    let parse = |part: &str| part.trim().parse().ok().filter(|n| (1..=128).contains(n));
    let numbers: Option<Vec<usize>> = text.split(',').map(parse).collect();
    numbers.ok_or_else(|| {
        ConfigError::value("clients", text, "configuration", "numbers from 1 to 128 with commas between")
    })
}

async fn measure_all(
    config: &BenchConfig,
    clients: &[usize],
    parts: &[&str],
    cluster: &Cluster,
    screen: &Screen,
) -> Result<Vec<Comparison>, CommandError> {
    let (ready, _) = while_waiting(screen, "starting one shard of three replicas", cluster.wait_ready()).await;
    ready.map_err(CommandError::failed)?;
    let evenkeel = EvenkeelRows::load(cluster, config.rows).await.map_err(CommandError::Failed)?;
    let mut comparisons = Vec::new();
    if parts.contains(&"sql") {
        comparisons.extend(sql(config, clients, &evenkeel, screen).await.map_err(CommandError::Failed)?);
    }
    if parts.contains(&"routes") {
        comparisons.push(route_lookups(config, cluster, screen).await.map_err(CommandError::Failed)?);
    }
    Ok(comparisons)
}

async fn sql(
    config: &BenchConfig,
    clients: &[usize],
    evenkeel: &EvenkeelRows,
    screen: &Screen,
) -> Result<Vec<Comparison>, String> {
    let starting = PlainPostgres::start(config.postgres_bin.as_deref(), REPLICAS);
    let (plain, _) = while_waiting(screen, "starting PostgreSQL with two synchronous standbys (ANY 1)", starting).await;
    let plain = plain?;
    let most = clients.iter().copied().max().unwrap_or(1);
    let rows = PlainRows::load(&plain, config.rows, most).await?;
    let duration = Duration::from_secs_f64(config.duration);
    let mut comparisons = Vec::new();
    for &count in clients {
        for write in [true, false] {
            let what = if write { "update" } else { "read" };
            let (mut ours, mut theirs): (Vec<Measurement>, Vec<Measurement>) = Default::default();
            for round in 0..config.rounds {
                let seed = round as u64;
                ours.push(measure(&evenkeel.for_writes(write), count, config.rows, duration, seed).await?);
                theirs.push(measure(&rows.for_writes(write), count, config.rows, duration, seed).await?);
            }
            let bar = match (write, count) {
                (true, 16..) => Some(UPDATE_BAR),
                (true, _) => None,
                (false, _) => Some(READ_BAR),
            };
            let comparison = Comparison::new(what, count, "postgresql", &ours, &theirs, bar);
            screen.line(&format!(
                "{what} by {count} clients: {:.0}/s beside {:.0}/s, ratio {:.2}",
                comparison.evenkeel.per_s, comparison.other.per_s, comparison.ratio
            ));
            comparisons.push(comparison);
        }
    }
    Ok(comparisons)
}

async fn route_lookups(config: &BenchConfig, cluster: &Cluster, screen: &Screen) -> Result<Comparison, String> {
    let base = cluster.admin().urls().first().ok_or("there is no placement driver")?;
    let url = format!("{base}/v1/routes/bench?key={}", config.rows / 2);
    let body = routes::fetch(&url).await?;
    let nginx = routes::Nginx::start(&body).await?;
    let duration = Duration::from_secs_f64(config.duration);
    let (mut ours, mut theirs): (Vec<Measurement>, Vec<Measurement>) = Default::default();
    for _ in 0..config.rounds {
        ours.push(routes::wrk(&url, WRK_CONNECTIONS, duration).await?);
        theirs.push(routes::wrk(&nginx.url(), WRK_CONNECTIONS, duration).await?);
    }
    let comparison = Comparison::new("routes", WRK_CONNECTIONS, "nginx", &ours, &theirs, Some(ROUTES_BAR));
    screen.line(&format!(
        "GET /v1/routes/bench?key= ({} bytes): {:.0}/s beside nginx's {:.0}/s, ratio {:.2}",
        body.len(),
        comparison.evenkeel.per_s,
        comparison.other.per_s,
        comparison.ratio
    ));
    Ok(comparison)
}
