//! The steps of a run, from the table to the report.

use crate::cluster::Cluster;
use crate::error::InvalidSetting;
use crate::operator_text::describe;
use crate::run::balancer::BalancerSwitch;
use crate::run::chaos::{self, ChaosResult};
use crate::run::error::RunError;
use crate::run::options::{MAX_KEYS, RunOptions};
use crate::run::progress::ProgressListener;
use crate::run::table::run_table;
use crate::run::verification::verify_cluster;
use crate::run::watch::{Watch, WatchResult};
use crate::run::workload::Workload;
use evenkeel_client::admin::AdminClient;
use evenkeel_client::{Client, ClientConfig};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{CreateTableBody, OperatorBody, OperatorKind, RangeBody, ShardBody};
use evenkeel_workloads::OperationSource;
use evenkeel_workloads::replay::{Ledger, LoadOptions, Replay, Replayed, SecondSummary, VerifyOptions, load, verify};
use evenkeel_workloads::report::{OperatorRecord, RangeRecord, Report, RunRecord, assemble};
use evenkeel_workloads::target_sql::SqlTarget;
use std::sync::Arc;
use std::time::Duration;

/// How long operators that run at the end of the load may take to end, in seconds.
const QUIET_TIMEOUT_S: u64 = 60;
/// The number of names that are tried for the run's table.
const MAX_TABLES: u32 = 1_000;

/// The cluster of a run, and the faults that may be injected into it.
pub struct RunEnvironment<'a> {
    /// The placement driver.
    pub admin: AdminClient,
    /// Its balancer.
    pub balancer: BalancerSwitch,
    /// The cluster, if this process started it.
    pub cluster: Option<&'a Cluster>,
    /// Whether to kill processes during the load. Needs a cluster.
    pub chaos: bool,
    /// Receives the progress.
    pub progress: Arc<dyn ProgressListener>,
}

/// A finished run.
#[derive(Debug)]
pub struct FinishedRun {
    /// The report.
    pub report: Report,
    /// The violations that were found, in words.
    pub findings: Vec<String>,
}

/// Runs a workload. The balancer's switch is restored if the run is not cancelled.
pub async fn run(
    options: &RunOptions,
    workload: Workload,
    environment: &RunEnvironment<'_>,
) -> Result<FinishedRun, RunError> {
    let progress = &environment.progress;
    let shards: Vec<ShardBody> = environment.admin.get("/v1/shards").await.map_err(RunError::failed)?;
    let first = shards.iter().map(|s| s.info.id).min().ok_or_else(|| failed("the cluster has no shard"))?;
    let limit = capacity(&shards);
    let table = create_table(environment, options.table.as_deref(), first).await?;
    // A shard may be overloaded until the load is level. Statements wait for that long instead of
    // failing.
    let mut config = ClientConfig::new(environment.admin.urls());
    config.overload_patience_ms = config.statement_timeout_ms;
    let client = Client::connect(config).await.map_err(RunError::failed)?;
    let target = Arc::new(SqlTarget::new(client, &table));

    let ledger = load_rows(options, environment, &target, &workload).await?;
    let rows = ledger.len();
    progress
        .line(&format!("{rows} rows are in {table}, one range on shard {first}; the load starts: {}", workload.name));
    let started_ms = evenkeel_host::wall_ms();
    let watch = Watch::start(environment.admin.clone(), progress.clone());
    let input = LoadInput { shards: shards.len() as u32, limit, source: workload.source, ledger };
    let (replayed, chaos) = drive(options, environment, &target, input, &watch).await?;
    let moving = quiet(environment, &watch).await?;
    let watched = watch.end().await;

    let reading = progress.task("reading everything back", replayed.ledger.len() as u64);
    let steps = reading.clone();
    let verified = verify(&target, replayed.ledger, VerifyOptions::default(), move |n| steps.set(n)).await;
    let verification = verified.map_err(RunError::failed)?;
    reading.done();
    progress.line("comparing all replicas, and asking every shard what it owns");
    let checked = verify_cluster(&environment.admin).await;
    environment.balancer.restore().await?;
    // A failed comparison must not lose the measurements.
    let (differing_replicas, owners_wrong, found) = match checked {
        Ok(checked) => (Some(checked.differing_replicas), Some(checked.owners_wrong), checked.findings),
        Err(error) => (None, None, vec![format!("replicas and owners could not be compared: {error}")]),
    };

    let record = RunRecord {
        workload: workload.name,
        seed: options.seed,
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
    let report = assemble(&record).map_err(RunError::failed)?;
    Ok(FinishedRun { report, findings: record.findings })
}

/// Loads the workload's rows with the balancer off, so that they stay in one range.
async fn load_rows(
    options: &RunOptions,
    environment: &RunEnvironment<'_>,
    target: &Arc<SqlTarget>,
    workload: &Workload,
) -> Result<Ledger, RunError> {
    let mut ledger = Ledger::new(options.seed, MAX_KEYS);
    environment.balancer.switch_off().await?;
    let loading = environment.progress.task("loading rows", workload.rows.len() as u64);
    let rows = workload.rows.iter().copied();
    let loaded = load(target, &mut ledger, rows, LoadOptions::default(), |n| loading.set(n)).await;
    // The balancer is not left off after a failure.
    environment.balancer.restore().await?;
    loaded.map_err(RunError::failed)?;
    loading.done();
    Ok(ledger)
}

/// The load, and the state of the cluster and the rows before it.
struct LoadInput {
    shards: u32,
    limit: Option<u64>,
    source: Box<dyn OperationSource>,
    ledger: Ledger,
}

/// The load, and chaos beside it if asked for.
async fn drive(
    options: &RunOptions,
    environment: &RunEnvironment<'_>,
    target: &Arc<SqlTarget>,
    input: LoadInput,
    watch: &Watch,
) -> Result<(Replayed, ChaosResult), RunError> {
    let config = options.replay(input.shards, input.limit).map_err(failed)?;
    let replay = Replay::new(config, input.source, input.ledger);
    let replay = replay.map_err(RunError::failed)?;
    environment.progress.load_starts(options.duration_s, input.limit);
    let started = evenkeel_host::now();
    let progress = environment.progress.clone();
    let replaying = replay.run(target.clone(), move |summary: &SecondSummary| progress.second(summary));
    let (replayed, chaos) = match environment.cluster.filter(|_| environment.chaos) {
        None => (replaying.await, Ok(ChaosResult::default())),
        Some(cluster) => {
            let chaos = chaos::run(cluster, watch, &*environment.progress, started, options.duration_s, options.seed);
            tokio::join!(replaying, chaos)
        }
    };
    environment.progress.load_ended();
    Ok((replayed.map_err(RunError::failed)?, chaos?))
}

/// Creates the run's table with one range on `shard`, under the wanted name or the first free one.
/// Tables of earlier runs are not used: the run could not tell their rows from its own.
async fn create_table(
    environment: &RunEnvironment<'_>,
    wanted: Option<&str>,
    shard: ShardId,
) -> Result<String, RunError> {
    for number in 1..=MAX_TABLES {
        let name = match (wanted, number) {
            (Some(name), _) => name.to_string(),
            (None, 1) => "usertable".to_string(),
            (None, number) => format!("usertable_{number}"),
        };
        let invalid =
            |reason| InvalidSetting::new("table", format!("{name:?}"), format!("a table's name; this one: {reason}"));
        let schema = run_table(&name).map_err(invalid)?;
        let body = CreateTableBody { schema, shard: Some(shard), if_not_exists: false };
        match environment.admin.post::<_, serde_json::Value>("/v1/tables", &body).await {
            Ok(_) if number > 1 => {
                environment.progress.line(&format!(
                    "there are tables of earlier runs, which are left as they are; this run's is {name}"
                ));
                return Ok(name);
            }
            Ok(_) => return Ok(name),
            Err(error) if error.code() == "table-exists" && wanted.is_none() => continue,
            Err(error) if error.code() == "table-exists" => {
                return Err(InvalidSetting::new("table", name, "a name that no table has yet").into());
            }
            Err(error) => return Err(RunError::failed(error)),
        }
    }
    Err(failed(format!("usertable and usertable_2 to usertable_{MAX_TABLES} exist already; give another --table")))
}

/// Switches the balancer off and waits until no operator runs. An operator that runs at the
/// deadline is a finding.
async fn quiet(environment: &RunEnvironment<'_>, watch: &Watch) -> Result<Vec<String>, RunError> {
    environment.balancer.switch_off().await?;
    let deadline = evenkeel_host::now() + Duration::from_secs(QUIET_TIMEOUT_S);
    loop {
        let running = watch.fresh().await.running;
        if running.is_empty() {
            return Ok(Vec::new());
        }
        if evenkeel_host::now() >= deadline {
            let say = |o: &OperatorBody| {
                let detail = o.detail.as_deref().unwrap_or("no reason given");
                format!("operator {} still runs: {}, at {} ({detail})", o.id, describe(&o.kind), o.step)
            };
            return Ok(running.iter().map(say).collect());
        }
    }
}

/// The operators that were done, for the report.
fn operator_records(operators: &[OperatorBody], started_ms: u64) -> Vec<OperatorRecord> {
    use evenkeel_workloads::report::CompletedOperator as Kind;
    let since = |ms: u64| ms.saturating_sub(started_ms) as f64 / 1000.0;
    let record = |o: &OperatorBody| {
        let kind = match o.kind {
            OperatorKind::Split { .. } => Kind::Split,
            OperatorKind::Merge { .. } => Kind::Merge,
            OperatorKind::Move { .. } => Kind::Move,
            OperatorKind::CreateTable { .. } | OperatorKind::SchemaChange { .. } => return None,
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

/// The table's ranges at the end of the run. All of them were on `home` at first.
fn range_records(watched: &WatchResult, table: &str, home: ShardId) -> Vec<RangeRecord> {
    let of_table = watched.last.ranges.iter().filter(|r| r.route.table_name == table);
    let record = |r: &RangeBody| RangeRecord {
        home_shard: home.0,
        load: r.load.map_or(0.0, |l| l.reads_per_s + l.writes_per_s),
        bytes: r.load.map_or(0, |l| l.bytes),
    };
    of_table.map(record).collect()
}

/// The rate limit of the shards in statements per second, if they have one.
pub fn capacity(shards: &[ShardBody]) -> Option<u64> {
    shards.iter().filter_map(|s| s.capacity_per_s).reduce(f64::min).map(|c| c.round() as u64)
}

fn failed(line: impl Into<String>) -> RunError {
    RunError::Failed(line.into())
}
