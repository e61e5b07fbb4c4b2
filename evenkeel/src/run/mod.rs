//! One run of a workload against a cluster, with its checks and its report. `demo` and `replay` differ only in whose the
//! cluster is.
//!
//! In order: make the table, load its rows with the balancer held still (so that everything lies in one range on one
//! shard), set the balancer as it was and start the load at the same moment, watch, wait until nothing moves any more, read everything back,
//! compare all replicas, see that every key has one owner, report.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | what a run is told, and whether it can be done |
//! | [`workload`] | what is run, from its name or a trace |
//! | [`watch`] | what the placement driver says while the run goes on |
//! | [`screen`] | the live picture: bars on a terminal, lines elsewhere |
//! | [`balancer`] | the balancer, held still and restored |
//! | [`chaos`] | what is killed, and when |
//! | [`checks`] | checksums and owners, asked of the shards themselves |

pub mod balancer;
pub mod chaos;
pub mod checks;
pub mod config;
pub mod screen;
pub mod watch;
pub mod workload;

pub use config::RunConfig;

use crate::cli::CommandError;
use crate::cluster::Cluster;
use crate::config::ConfigError;
use crate::outputs;
use crate::rest::Rest;
use balancer::Balancer;
use evenkeel_client::{Client, ClientConfig};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{CreateTableBody, OperatorBody, OperatorKind, ShardBody};
use evenkeel_workloads::Source;
use evenkeel_workloads::replay::{Ledger, LoadOptions, Replay, Replayed, SecondSummary, VerifyOptions, load, verify};
use evenkeel_workloads::report::{OperatorRecord, RangeRecord, Report, RunRecord, assemble};
use evenkeel_workloads::target_sql::SqlTarget;
use screen::Screen;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use watch::{Watch, Watched};
use workload::Workload;

/// How long what moves at the end of the load may take to end, in seconds.
const SETTLE_TIMEOUT_S: u64 = 60;
/// How many names are tried for the run's table.
const MAX_TABLES: u32 = 1_000;

/// Whose cluster it is, and what may be done to it.
pub struct Stage<'a> {
    /// The placement driver.
    pub rest: Rest,
    /// Its balancer.
    pub balancer: Balancer,
    /// The cluster, if it is this process's own.
    pub cluster: Option<&'a Cluster>,
    /// Whether to kill processes on the way; needs a cluster.
    pub chaos: bool,
    /// Where to show things.
    pub screen: Screen,
}

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// What it has shown.
    pub report: Report,
    /// What was found wrong, in words; empty if nothing was.
    pub findings: Vec<String>,
}

impl Finished {
    /// Shows the report, and writes it where `config` says. The error says that something was wrong, or that the file was not written.
    pub fn conclude(&self, config: &RunConfig, screen: &Screen) -> Result<(), CommandError> {
        screen.line("");
        screen.line(&self.report.to_string());
        if let Some(path) = &config.report {
            outputs::write(path, &self.report.to_json())
                .map_err(|e| failed(format!("the report is above only: {e}")))?;
            screen.line(&format!("the report is in {}", path.display()));
        }
        if self.report.is_good() { Ok(()) } else { Err(failed("the run has found something wrong: see the report")) }
    }
}

/// Prepares and runs it. Afterwards the balancer is on.
pub async fn run(config: &RunConfig, stage: &Stage<'_>) -> Result<Finished, CommandError> {
    run_prepared(config, config.prepare()?, stage).await
}

/// Runs what was prepared. Afterwards the balancer is on.
pub async fn run_prepared(config: &RunConfig, workload: Workload, stage: &Stage<'_>) -> Result<Finished, CommandError> {
    let screen = &stage.screen;
    let shards: Vec<ShardBody> = stage.rest.get("/v1/shards").await.map_err(CommandError::failed)?;
    let first = shards.iter().map(|s| s.info.id).min().ok_or_else(|| failed("the cluster has no shard"))?;
    let limit = capacity(&shards);
    let table = create_table(stage, config.table.as_deref(), first).await?;
    // A shard may be overloaded until the load is level; what a run shows is that, not who is refused meanwhile.
    let mut options = ClientConfig::new(stage.rest.urls());
    options.overload_patience_ms = options.statement_timeout_ms;
    let client = Client::connect(options).await.map_err(CommandError::failed)?;
    let target = Arc::new(SqlTarget::new(client, &table));

    let ledger = load_rows(config, stage, &target, &workload).await?;
    let rows = ledger.len();
    screen.line(&format!("{rows} rows are in {table}, one range on shard {first}; the load starts: {}", workload.name));
    let started_ms = unix_ms();
    let watch = Watch::start(stage.rest.clone(), screen.clone());
    let driven = Driven { shards: shards.len() as u32, limit, source: workload.source, ledger };
    let (replayed, chaos) = drive(config, stage, &target, driven, &watch).await?;
    let moving = settle(stage, &watch).await?;
    let watched = watch.end().await;

    let reading = screen.progress("reading everything back", replayed.ledger.len() as u64);
    let progress = reading.clone();
    let verified = verify(&target, replayed.ledger, VerifyOptions::default(), move |n| progress.set(n)).await;
    let verification = verified.map_err(CommandError::failed)?;
    reading.done();
    screen.line("comparing all replicas, and asking every shard what it owns");
    let checked = checks::check(&stage.rest).await;
    stage.balancer.restore().await?;
    // What could not be compared is no reason to lose what was measured.
    let (differing_replicas, owners_wrong, found) = match checked {
        Ok(checked) => (Some(checked.differing_replicas), Some(checked.owners_wrong), checked.findings),
        Err(error) => (None, None, vec![format!("replicas and owners could not be compared: {error}")]),
    };

    let record = RunRecord {
        workload: workload.name,
        seed: config.seed,
        shards: shards.len() as u32,
        hottest_key_share: workload.hottest_key_share.unwrap_or(replayed.record.hottest_key_share),
        verification,
        operators: operator_records(&watched.operators, started_ms),
        ranges: range_records(&watched, &table, first),
        differing_replicas,
        owners_wrong,
        faults: chaos.faults,
        shard_capacity_per_s: limit,
        findings: [found, moving, chaos.findings].concat(),
        replay: replayed.record,
    };
    let report = assemble(&record).map_err(CommandError::failed)?;
    Ok(Finished { report, findings: record.findings })
}

/// Loads the workload's rows while the balancer is held still, so that they stay in one range.
async fn load_rows(
    config: &RunConfig,
    stage: &Stage<'_>,
    target: &Arc<SqlTarget>,
    workload: &Workload,
) -> Result<Ledger, CommandError> {
    let mut ledger = Ledger::new(config.seed, config::MAX_KEYS);
    stage.balancer.hold().await?;
    let loading = stage.screen.progress("loading rows", workload.rows.len() as u64);
    let rows = workload.rows.iter().copied();
    let loaded = load(target, &mut ledger, rows, LoadOptions::default(), |n| loading.set(n)).await;
    // Whatever came of it, the balancer is not left off.
    stage.balancer.restore().await?;
    loaded.map_err(CommandError::failed)?;
    loading.done();
    Ok(ledger)
}

/// What is sent to the cluster, and what is known of it and of the rows.
struct Driven {
    shards: u32,
    limit: Option<u64>,
    source: Box<dyn Source>,
    ledger: Ledger,
}

/// The load itself, and beside it chaos if that is wanted.
async fn drive(
    config: &RunConfig,
    stage: &Stage<'_>,
    target: &Arc<SqlTarget>,
    driven: Driven,
    watch: &Watch,
) -> Result<(Replayed, chaos::Done), CommandError> {
    let replay = Replay::new(config.replay(driven.shards, driven.limit)?, driven.source, driven.ledger);
    let replay = replay.map_err(CommandError::failed)?;
    stage.screen.load_starts(config.duration_s(), driven.limit);
    let started = Instant::now();
    let screen = stage.screen.clone();
    let replaying = replay.run(target.clone(), move |summary: &SecondSummary| screen.second(summary));
    let (replayed, chaos) = match stage.cluster.filter(|_| stage.chaos) {
        None => (replaying.await, Ok(chaos::Done::default())),
        Some(cluster) => {
            let chaos = chaos::run(cluster, watch, &stage.screen, started, config.duration_s(), config.seed);
            tokio::join!(replaying, chaos)
        }
    };
    stage.screen.load_ended();
    Ok((replayed.map_err(CommandError::failed)?, chaos?))
}

/// Makes the run's table with one range on `shard`, under the wanted name, or under the first free one. Rows of earlier runs are left
/// alone: this run could not tell them from its own.
async fn create_table(stage: &Stage<'_>, wanted: Option<&str>, shard: ShardId) -> Result<String, CommandError> {
    for number in 1..=MAX_TABLES {
        let name = match (wanted, number) {
            (Some(name), _) => name.to_string(),
            (None, 1) => "usertable".to_string(),
            (None, number) => format!("usertable_{number}"),
        };
        let schema = config::create_table(&name)?;
        let body = CreateTableBody { schema, shard: Some(shard), if_not_exists: false };
        match stage.rest.post::<_, serde_json::Value>("/v1/tables", &body).await {
            Ok(_) if number > 1 => {
                stage.screen.line(&format!(
                    "there are tables of earlier runs, which are left as they are; this run's is {name}"
                ));
                return Ok(name);
            }
            Ok(_) => return Ok(name),
            Err(error) if error.code() == "table-exists" && wanted.is_none() => continue,
            Err(error) if error.code() == "table-exists" => {
                return Err(ConfigError::value("table", name, "configuration", "a name that no table has yet").into());
            }
            Err(error) => return Err(CommandError::failed(error)),
        }
    }
    Err(failed(format!("usertable and usertable_2 to usertable_{MAX_TABLES} exist already; give another --table")))
}

/// Holds the balancer still and waits until nothing moves any more. What still moves at the deadline is a finding.
async fn settle(stage: &Stage<'_>, watch: &Watch) -> Result<Vec<String>, CommandError> {
    stage.balancer.hold().await?;
    let deadline = Instant::now() + Duration::from_secs(SETTLE_TIMEOUT_S);
    loop {
        let running = watch.fresh().await.running;
        if running.is_empty() {
            return Ok(Vec::new());
        }
        if Instant::now() >= deadline {
            let say = |o: &OperatorBody| {
                let detail = o.detail.as_deref().unwrap_or("no reason given");
                format!(
                    "operator {} still runs: {}, at {} ({detail})",
                    o.id,
                    crate::cli::show::describe(&o.kind),
                    o.step
                )
            };
            return Ok(running.iter().map(say).collect());
        }
    }
}

/// The operators that were carried out, as the report wants them.
fn operator_records(operators: &[OperatorBody], started_ms: u64) -> Vec<OperatorRecord> {
    use evenkeel_workloads::report::OperatorKind as Kind;
    let since = |ms: u64| ms.saturating_sub(started_ms) as f64 / 1000.0;
    let record = |o: &OperatorBody| {
        let kind = match o.kind {
            OperatorKind::Split { .. } => Kind::Split,
            OperatorKind::Merge { .. } => Kind::Merge,
            OperatorKind::Move { .. } => Kind::Move,
            OperatorKind::CreateTable { .. } => return None,
        };
        let ended_ms = o.ended_ms.filter(|_| o.status == "done")?;
        Some(OperatorRecord {
            kind,
            started_s: since(o.created_ms),
            ended_s: since(ended_ms),
            moved_bytes: if kind == Kind::Move { o.bytes } else { 0 },
            pause_ms: o.pause_us.map(|us| us as f64 / 1000.0),
        })
    };
    operators.iter().filter_map(record).collect()
}

/// The table's ranges at the end; all of them began on `home`.
fn range_records(watched: &Watched, table: &str, home: ShardId) -> Vec<RangeRecord> {
    let of_table = watched.last.ranges.iter().filter(|r| r.route.table_name == table);
    let record = |r: &evenkeel_protocol::api::RangeBody| RangeRecord {
        home_shard: home.0,
        load: r.load.map_or(0.0, |l| l.reads_per_s + l.writes_per_s),
        bytes: r.load.map_or(0, |l| l.bytes),
    };
    of_table.map(record).collect()
}

/// The shards' admission limit, if they have one.
pub fn capacity(shards: &[ShardBody]) -> Option<u64> {
    shards.iter().filter_map(|s| s.capacity_per_s).reduce(f64::min).map(|c| c.round() as u64)
}

fn failed(line: impl Into<String>) -> CommandError {
    CommandError::Failed(line.into())
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
