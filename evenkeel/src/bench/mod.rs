//! `bench`: Evenkeel beside what it is compared with, on the same machine and in the same run.
//!
//! - One shard of three replicas beside PostgreSQL with two streaming standbys of which one must confirm
//!   ([`plain`]): single-row updates and linearizable single-row reads by primary key, with the same number of clients.
//! - `GET /v1/routes/{table}?key=` beside nginx serving a file of the same size, both under wrk ([`routes`]).
//! - `bench failover`: how long writes stand still when a leader fails ([`failover`]).
//! - `bench size`: gigabytes loaded, moved, read and recovered ([`size`]).
//!
//! Measurements alternate between the two systems, both up and the other idle, so that what drifts on the machine meets both;
//! the median of the rounds counts.

pub mod failover;
pub mod figures;
pub mod load;
pub mod plain;
pub mod routes;
pub mod size;

use crate::cli::CommandError;
use crate::cluster::{Cluster, ClusterOptions};
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::run::screen::{Screen, while_waiting};
use crate::{outputs, roles};
use bytes::Bytes;
use evenkeel_client::{Client, ClientConfig, Value};
use figures::{Comparison, Figure, render};
use load::{Operate, measure};
use plain::PlainPostgres;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of each row's value.
const VALUE_BYTES: usize = 100;
/// The longest measurement, in seconds.
const MAX_DURATION_S: f64 = 3_600.0;
/// Rows per INSERT while loading.
const LOAD_ROWS: i64 = 500;
/// Replicas of the shard, and so PostgreSQL servers of either side.
const REPLICAS: u32 = 3;
/// Connections of wrk.
const WRK_CONNECTIONS: usize = 16;
/// What updates should reach at 16 and 64 clients.
const UPDATE_BAR: f64 = 0.5;
/// What reads should reach.
const READ_BAR: f64 = 0.4;
/// What a route's lookup should reach.
const ROUTES_BAR: f64 = 0.3;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct BenchConfig {
    /// Numbers of clients, comma between.
    pub clients: String,
    /// How long each measurement lasts, in seconds.
    pub duration: f64,
    /// How often each is taken.
    pub rounds: usize,
    /// Rows of the table.
    pub rows: i64,
    /// The folder with PostgreSQL's programs; absent: found.
    pub postgres_bin: Option<PathBuf>,
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
    /// Which parts: `sql`, `routes`.
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

/// Runs the measurements. Whatever happens, nothing that it started is left running.
pub async fn bench(layers: &Layers) -> Result<(), CommandError> {
    let config: BenchConfig = resolve(&settings(), &roles::all_keys(), layers)?;
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
    let mut options = ClusterOptions::new(crate::demo::own_executable()?);
    options.shards = 1;
    options.postgres_bin.clone_from(&config.postgres_bin);
    // One range: what is measured is a shard, not the balancer.
    options.balancer.insert("enabled".into(), toml::Value::Boolean(false));
    let end = roles::told_to_end(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
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
            let (mut ours, mut theirs): (Vec<Figure>, Vec<Figure>) = Default::default();
            for round in 0..config.rounds {
                let seed = round as u64;
                ours.push(
                    measure(&EvenkeelRows { write, ..evenkeel.clone() }, count, config.rows, duration, seed).await?,
                );
                theirs.push(measure(&PlainRows { write, ..rows.clone() }, count, config.rows, duration, seed).await?);
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
    let base = cluster.rest().urls().first().ok_or("there is no placement driver")?;
    let url = format!("{base}/v1/routes/bench?key={}", config.rows / 2);
    let body = routes::fetch(&url).await?;
    let nginx = routes::Nginx::start(&body).await?;
    let duration = Duration::from_secs_f64(config.duration);
    let (mut ours, mut theirs): (Vec<Figure>, Vec<Figure>) = Default::default();
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

const CREATE: &str = "CREATE TABLE bench (id bigint PRIMARY KEY, value bytea NOT NULL)";
const UPDATE: &str = "UPDATE bench SET value = $2 WHERE id = $1";
const READ: &str = "SELECT value FROM bench WHERE id = $1";

/// One INSERT of the rows from `from` to before `to`.
fn insert(from: i64, to: i64) -> String {
    let value = "ab".repeat(VALUE_BYTES);
    let rows: Vec<String> = (from..to).map(|id| format!("({id}, '\\x{value}')")).collect();
    format!("INSERT INTO bench (id, value) VALUES {}", rows.join(", "))
}

/// The table on Evenkeel.
#[derive(Clone)]
struct EvenkeelRows {
    client: Client,
    value: Bytes,
    write: bool,
}

impl EvenkeelRows {
    async fn load(cluster: &Cluster, rows: i64) -> Result<EvenkeelRows, String> {
        let client = Client::connect(ClientConfig::new(cluster.rest().urls())).await.map_err(|e| e.to_string())?;
        client.execute(CREATE, &[]).await.map_err(|e| e.to_string())?;
        for from in (0..rows).step_by(LOAD_ROWS as usize) {
            let text = insert(from, rows.min(from + LOAD_ROWS));
            client.execute(&text, &[]).await.map_err(|e| e.to_string())?;
        }
        Ok(EvenkeelRows { client, value: Bytes::from(vec![0xCD; VALUE_BYTES]), write: false })
    }
}

impl Operate for EvenkeelRows {
    async fn operate(&self, _client: usize, key: i64) -> Result<(), String> {
        let done = if self.write {
            self.client.execute(UPDATE, &[Value::Int(key), Value::Bytes(self.value.clone())]).await.map(|a| a.affected)
        } else {
            self.client.execute(READ, &[Value::Int(key)]).await.map(|a| u64::from(a.rows.count))
        };
        exactly_one(done.map_err(|e| e.to_string())?)
    }
}

/// The same table on plain PostgreSQL, one connection per client.
#[derive(Clone)]
struct PlainRows {
    connections: Arc<Vec<PlainConnection>>,
    value: Arc<[u8]>,
    write: bool,
}

struct PlainConnection {
    client: tokio_postgres::Client,
    update: tokio_postgres::Statement,
    read: tokio_postgres::Statement,
}

impl PlainRows {
    async fn load(plain: &PlainPostgres, rows: i64, connections: usize) -> Result<PlainRows, String> {
        let first = plain.connect().await?;
        first.batch_execute(CREATE).await.map_err(|e| e.to_string())?;
        for from in (0..rows).step_by(LOAD_ROWS as usize) {
            first.batch_execute(&insert(from, rows.min(from + LOAD_ROWS))).await.map_err(|e| e.to_string())?;
        }
        first.batch_execute("VACUUM ANALYZE bench").await.map_err(|e| e.to_string())?;
        let mut prepared = Vec::new();
        for _ in 0..connections {
            let client = plain.connect().await?;
            let update = client.prepare(UPDATE).await.map_err(|e| e.to_string())?;
            let read = client.prepare(READ).await.map_err(|e| e.to_string())?;
            prepared.push(PlainConnection { client, update, read });
        }
        Ok(PlainRows { connections: Arc::new(prepared), value: vec![0xCD; VALUE_BYTES].into(), write: false })
    }
}

impl Operate for PlainRows {
    async fn operate(&self, client: usize, key: i64) -> Result<(), String> {
        let connection = self.connections.get(client).ok_or("no connection for this client")?;
        let done = if self.write {
            connection.client.execute(&connection.update, &[&key, &&self.value[..]]).await
        } else {
            connection.client.query(&connection.read, &[&key]).await.map(|rows| rows.len() as u64)
        };
        exactly_one(done.map_err(|e| e.to_string())?)
    }
}

fn exactly_one(rows: u64) -> Result<(), String> {
    if rows == 1 { Ok(()) } else { Err(format!("{rows} rows instead of one")) }
}
