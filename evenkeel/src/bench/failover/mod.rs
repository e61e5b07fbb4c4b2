//! `bench failover`: for how long writes stand still when a leader dies, freezes or is cut off, and when it hands over.
//!
//! A cluster of the usual size is hurt again and again, one leader at a time, while writers write at an even pace. What counts is
//! what a client sees: the time between two acknowledgements. Each trial waits until the cluster is whole again before the
//! next. A statement that fails is counted; none should, since each is safe to retry.

pub mod acks;
pub mod writers;

use crate::cli::CommandError;
use crate::cli::show::table;
use crate::cluster::{Cluster, ClusterOptions, ProcessId, wait};
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::rest::Rest;
use crate::run::checks::inspect_all;
use crate::run::screen::{Screen, while_waiting};
use crate::{outputs, roles};
use acks::{Pause, all_resumed, pause, percentile};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::CreateTableBody;
use evenkeel_sql as sql;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use writers::{Record, Writers, of_placement_driver, of_sql};

/// The shard that is hurt.
const SHARD: u32 = 1;
/// Writers, each with connections of its own.
const WRITERS: usize = 8;
/// Writes a second of each.
const WRITES_PER_S: f64 = 25.0;
/// Writes a second to the placement driver.
const DRIVER_WRITES_PER_S: f64 = 50.0;
/// Acknowledged writes per writer that show that a trial is over.
const RESUMED: usize = 3;
/// How long before the fault acknowledgements are kept, in milliseconds: the last before it must be among them.
const BEFORE_MS: f64 = 2_000.0;
/// How long a placement driver may take to say whether it leads: it may be frozen.
const ASK: Duration = Duration::from_millis(250);
/// How long a trial and the repair after it may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a failover should last at most, in milliseconds, and in which share of trials.
const FAILOVER_BAR: (f64, f64) = (1_000.0, 0.98);
/// What a planned hand-over should last at most, in milliseconds.
const HANDOVER_BAR: (f64, f64) = (50.0, 0.98);

/// What is done to a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Freeze,
    /// Nothing reaches it, and nothing comes from it.
    Cut,
    /// It is asked to hand over: no fault.
    Handover,
}

/// Whose leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// A shard.
    Shard,
    /// The placement driver.
    PlacementDriver,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FailoverConfig {
    /// Trials of each kind.
    pub trials: usize,
    /// Kinds, comma between: `kill`, `freeze`, `cut`, `handover`.
    pub kind: String,
    /// Whose leaders, comma between: `shard`, `placement-driver`.
    pub role: String,
    /// The folder with PostgreSQL's programs; absent: found.
    pub postgres_bin: Option<PathBuf>,
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
}

impl Default for FailoverConfig {
    fn default() -> FailoverConfig {
        FailoverConfig {
            trials: 50,
            kind: "kill,freeze,cut,handover".into(),
            role: "shard,placement-driver".into(),
            postgres_bin: None,
            json: None,
        }
    }
}

/// The settings of `bench failover`.
pub fn settings() -> Vec<Setting> {
    vec![
        Setting::optional("trials", Kind::Count(1, 10_000)),
        Setting::optional("kind", Kind::Text),
        Setting::optional("role", Kind::Text),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("json", Kind::Path),
    ]
}

impl FailoverConfig {
    fn series(&self) -> Result<Vec<(Group, Fault)>, ConfigError> {
        let kinds =
            [("kill", Fault::Kill), ("freeze", Fault::Freeze), ("cut", Fault::Cut), ("handover", Fault::Handover)];
        let roles = [("shard", Group::Shard), ("placement-driver", Group::PlacementDriver)];
        let kinds = named("kind", &self.kind, &kinds)?;
        let both =
            named("role", &self.role, &roles)?.into_iter().flat_map(|group| kinds.iter().map(move |k| (group, *k)));
        // There is no way to ask the placement driver to hand over.
        Ok(both.filter(|series| *series != (Group::PlacementDriver, Fault::Handover)).collect())
    }
}

/// The things that a list of names asks for.
fn named<T: Copy>(key: &str, text: &str, all: &[(&str, T)]) -> Result<Vec<T>, ConfigError> {
    let find = |name: &str| all.iter().find(|(known, _)| *known == name.trim()).map(|(_, thing)| *thing);
    let found: Option<Vec<T>> = text.split(',').map(find).collect();
    found.ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        ConfigError::value(key, text, "configuration", format!("{}, with commas between", names.join(", ")))
    })
}

/// One trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// For how long writes to rows of the shard stood still.
    pub sql: Pause,
    /// For how long writes to the placement driver did; absent if it was a shard that was hurt.
    pub placement_driver: Option<Pause>,
}

/// All trials of one kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Whose leader was hurt.
    pub role: Group,
    /// How.
    pub kind: Fault,
    /// The trials.
    pub trials: Vec<Trial>,
    /// Statements that failed.
    pub failed: u64,
    /// The last failure's text.
    pub last_error: String,
}

impl Series {
    /// What of a trial is held against the bar.
    fn pause_ms(&self, trial: &Trial) -> f64 {
        trial.placement_driver.unwrap_or(trial.sql).worst_ms()
    }

    fn bar(&self) -> (f64, f64) {
        if self.kind == Fault::Handover { HANDOVER_BAR } else { FAILOVER_BAR }
    }

    /// Trials within the bar.
    pub fn within(&self) -> usize {
        self.trials.iter().filter(|trial| self.pause_ms(trial) <= self.bar().0).count()
    }

    /// Whether enough trials are within the bar, and no statement failed.
    pub fn met(&self) -> bool {
        self.within() as f64 >= (self.bar().1 * self.trials.len() as f64).ceil() && self.failed == 0
    }

    fn row(&self) -> Vec<String> {
        let main: Vec<f64> = self.trials.iter().map(|t| self.pause_ms(t)).collect();
        let sql: Vec<f64> = self.trials.iter().map(|t| t.sql.slowest_ms).collect();
        let gap: Vec<f64> = self.trials.iter().map(|t| t.sql.gap_ms).collect();
        let ms = |values: &[f64]| {
            let at = |share| percentile(values, share);
            format!("{:.0} / {:.0} / {:.0}", at(0.5), at(0.99), at(1.0))
        };
        vec![
            format!("{:?} {:?}", self.role, self.kind).to_lowercase(),
            ms(&main),
            format!("{} of {}", self.within(), self.trials.len()),
            ms(&sql),
            ms(&gap),
            self.failed.to_string(),
            if self.met() { "met".into() } else { "MISSED".into() },
        ]
    }
}

/// The series as a table.
pub fn render(series: &[Series]) -> String {
    let header =
        ["leader of", "pause p50/p99/max ms", "within", "slowest statement", "statements' gap", "failed", "bar"];
    table(&header, &series.iter().map(Series::row).collect::<Vec<_>>())
}

/// Runs the trials; a bar that is missed is a failure. Whatever happens, nothing that it started is left running.
pub async fn failover(layers: &Layers) -> Result<(), CommandError> {
    let config: FailoverConfig = resolve(&settings(), &roles::all_keys(), layers)?;
    let wanted = config.series()?;
    if let Some(path) = &config.json {
        outputs::check("json", path)?;
    }
    if config.postgres_bin.is_some() {
        roles::check_postgres(config.postgres_bin.as_deref())?;
    }
    let screen = Screen::new();
    // Who can be cut off is reached through this process, which costs time that no other kind has to pay: it is another cluster.
    let (cut, uncut): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, fault)| *fault == Fault::Cut);
    let mut series = Vec::new();
    for (wanted, links) in [(uncut, false), (cut, true)] {
        if !wanted.is_empty() {
            series.extend(on_a_cluster(&config, &wanted, links, &screen).await?);
        }
    }
    screen.line(&render(&series));
    if let Some(path) = &config.json {
        let text = serde_json::to_string_pretty(&series).map_err(CommandError::failed)? + "\n";
        outputs::write(path, &text).map_err(CommandError::Failed)?;
    }
    let missed: Vec<String> =
        series.iter().filter(|s| !s.met()).map(|s| format!("{:?} {:?}", s.role, s.kind)).collect();
    if missed.is_empty() { Ok(()) } else { Err(CommandError::Failed(format!("bars missed: {}", missed.join(", ")))) }
}

/// Runs these series on a cluster of their own, with `links` one whose processes can be cut off.
async fn on_a_cluster(
    config: &FailoverConfig,
    wanted: &[(Group, Fault)],
    links: bool,
    screen: &Screen,
) -> Result<Vec<Series>, CommandError> {
    let mut options = ClusterOptions::new(crate::demo::own_executable()?);
    options.postgres_bin.clone_from(&config.postgres_bin);
    options.balancer.insert("enabled".into(), toml::Value::Boolean(false));
    options.links = links;
    let end = roles::told_to_end(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let cluster = Cluster::launch(options)?;
    let measured = tokio::select! {
        measured = measure_all(config, wanted, &cluster, screen) => measured,
        () = end => Err(CommandError::Interrupted),
    };
    cluster.stop().await;
    measured
}

async fn measure_all(
    config: &FailoverConfig,
    wanted: &[(Group, Fault)],
    cluster: &Cluster,
    screen: &Screen,
) -> Result<Vec<Series>, CommandError> {
    let (ready, _) = while_waiting(screen, "starting three shards of three replicas", cluster.wait_ready()).await;
    ready.map_err(CommandError::failed)?;
    let trials = Trials::prepare(cluster, "failover").await.map_err(CommandError::Failed)?;
    let mut all = Vec::new();
    for (role, kind) in wanted {
        let what = format!("{} times: {role:?}'s leader, {kind:?}", config.trials);
        let (series, _) = while_waiting(screen, &what, trials.series(*role, *kind, config.trials)).await;
        all.push(series.map_err(CommandError::Failed)?);
        screen.line(&render(&all[all.len() - 1..]));
    }
    Ok(all)
}

/// A cluster with writers at work, ready to be hurt. The tests use it, too.
pub struct Trials<'a> {
    cluster: &'a Cluster,
    sql: Writers,
    driver: Writers,
}

impl<'a> Trials<'a> {
    /// Makes the table `name` on the shard that is to be hurt, and starts the writers.
    pub async fn prepare(cluster: &'a Cluster, name: &str) -> Result<Trials<'a>, String> {
        let create = format!("CREATE TABLE {name} (id bigint PRIMARY KEY, n bigint NOT NULL)");
        let sql::Command::CreateTable { schema, .. } = sql::parse(&create).map_err(|e| e.to_string())? else {
            return Err(format!("{create} is no CREATE TABLE"));
        };
        let body = CreateTableBody { schema, shard: Some(ShardId(SHARD)), if_not_exists: false };
        let _: serde_json::Value = cluster.rest().post("/v1/tables", &body).await.map_err(|e| e.to_string())?;
        let urls = cluster.rest().urls();
        let upsert =
            format!("INSERT INTO {name} (id, n) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET n = {name}.n + 1");
        let sql = of_sql(urls, &upsert, WRITERS, WRITES_PER_S).await?;
        let driver = of_placement_driver(urls, DRIVER_WRITES_PER_S)?;
        Ok(Trials { cluster, sql, driver })
    }

    /// `count` trials of one kind.
    pub async fn series(&self, role: Group, kind: Fault, count: usize) -> Result<Series, String> {
        let failed_before = self.sql.record.failed();
        let mut trials = Vec::with_capacity(count);
        for _ in 0..count {
            trials.push(self.trial(role, kind).await?);
        }
        let failed = self.sql.record.failed() - failed_before;
        Ok(Series { role, kind, trials, failed, last_error: self.sql.record.last_error() })
    }

    /// Hurts the leader, waits until all writers write again, mends, and waits until the cluster is whole.
    pub async fn trial(&self, role: Group, kind: Fault) -> Result<Trial, String> {
        let victim = self.leader(role, None).await?;
        let record = &self.sql.record;
        // Both kinds of writers are at work before, so that there is something to be interrupted.
        for writers in [&self.sql, &self.driver] {
            let from_ms = writers.record.now_ms() - BEFORE_MS;
            writers.record.forget_before(from_ms);
            resumed(writers, writers.record.now_ms()).await?;
        }
        let (fault_ms, driver_fault_ms) = (record.now_ms(), self.driver.record.now_ms());
        self.hurt(victim, kind).await?;
        self.resumed(role, fault_ms, driver_fault_ms).await?;
        // Only what ends with another leader was a failover, and only what is written under that one is behind it. Nobody is asked while
        // writes stand still: that would take its share of what is measured.
        let next = self.leader(role, Some(victim)).await?;
        self.resumed(role, record.now_ms(), self.driver.record.now_ms()).await?;
        let trial = Trial {
            sql: pause(&record.acks(), fault_ms),
            placement_driver: (role == Group::PlacementDriver)
                .then(|| pause(&self.driver.record.acks(), driver_fault_ms)),
        };
        tracing::info!(%victim, %next, ?kind, ?trial, "a trial");
        self.mend(victim, kind).await?;
        Ok(trial)
    }

    /// Waits until those that somebody of this role lets write do so, each after a time of its own clock.
    async fn resumed(&self, role: Group, from_ms: f64, driver_from_ms: f64) -> Result<(), String> {
        resumed(&self.sql, from_ms).await?;
        if role == Group::PlacementDriver {
            resumed(&self.driver, driver_from_ms).await?;
        }
        Ok(())
    }

    /// Waits until a process leads by its own word, another one than `not`, which is not asked.
    async fn leader(&self, role: Group, not: Option<ProcessId>) -> Result<ProcessId, String> {
        let deadline = Instant::now() + PATIENCE;
        let what = not.map_or("a leader".to_string(), |not| format!("another leader than {not}"));
        let looked = wait::until(self.cluster, &what, deadline, async || match role {
            Group::Shard => self.shard_leader(not).await,
            Group::PlacementDriver => self.driver_leader(not).await,
        });
        looked.await.map_err(|e| e.to_string())
    }

    async fn shard_leader(&self, not: Option<ProcessId>) -> Result<ProcessId, String> {
        let mut shard = self.cluster.shards().into_iter().find(|s| s.id == ShardId(SHARD)).ok_or("no such shard")?;
        shard.replicas.retain(|number, _| Some(ProcessId::ShardNode(SHARD, *number)) != not);
        let answers = inspect_all(&shard).await;
        let leads = answers.values().find(|answer| answer.leads).map(|answer| answer.replica);
        leads.map(|number| ProcessId::ShardNode(SHARD, number)).ok_or_else(|| format!("{answers:?}"))
    }

    async fn driver_leader(&self, not: Option<ProcessId>) -> Result<ProcessId, String> {
        let mut seen = Vec::new();
        for url in self.cluster.rest().urls() {
            let asked = Rest::new([url.clone()]);
            let status = tokio::time::timeout(ASK, asked.get::<serde_json::Value>("/v1/status")).await;
            let Ok(Ok(status)) = status else { continue };
            let leader = status["replica"].as_u64().filter(|_| status["leads"] == true).map(ProcessId::PlacementDriver);
            match leader.filter(|leader| Some(*leader) != not) {
                Some(leader) => return Ok(leader),
                None => seen.push(status),
            }
        }
        Err(format!("{seen:?}"))
    }

    async fn hurt(&self, victim: ProcessId, kind: Fault) -> Result<(), String> {
        let done = match kind {
            Fault::Kill => self.cluster.kill(victim),
            Fault::Freeze => self.cluster.pause(victim),
            Fault::Cut => {
                self.cluster.cut_off(victim, true);
                Ok(())
            }
            Fault::Handover => {
                let path = format!("/v1/shards/{SHARD}/transfer-leader");
                let asked = self.cluster.rest().post(&path, &serde_json::json!({ "to": null })).await;
                asked.map(|_: serde_json::Value| ()).map_err(Into::into)
            }
        };
        done.map_err(|e| format!("{victim}: {e}"))
    }

    async fn mend(&self, victim: ProcessId, kind: Fault) -> Result<(), String> {
        let done = match kind {
            Fault::Kill => self.cluster.restart(victim),
            Fault::Freeze => self.cluster.resume(victim),
            Fault::Cut => {
                self.cluster.cut_off(victim, false);
                Ok(())
            }
            Fault::Handover => Ok(()),
        };
        done.map_err(|e| format!("{victim}: {e}"))?;
        let deadline = Instant::now() + PATIENCE;
        wait::placement_drivers_ready(self.cluster, deadline).await.map_err(|e| e.to_string())?;
        wait::shards_whole(self.cluster, deadline).await.map_err(|e| e.to_string())
    }
}

/// Waits until all of these writers write after `from_ms`.
async fn resumed(writers: &Writers, from_ms: f64) -> Result<(), String> {
    let record: &Record = &writers.record;
    let deadline = Instant::now() + PATIENCE;
    while !all_resumed(&record.acks(), writers.count, from_ms, RESUMED) {
        if Instant::now() >= deadline {
            let (seconds, error) = (PATIENCE.as_secs(), record.last_error());
            return Err(format!("not all writers could write within {seconds} s; the last error: {error}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
