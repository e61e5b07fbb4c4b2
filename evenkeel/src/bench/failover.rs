//! `bench failover`: for how long writes stop when a leader dies, freezes, is cut off, or hands
//! over.
//!
//! A cluster of the usual size runs trials, one leader at a time
//! ([`evenkeel_local_cluster::failover`]). The measure is the client's: the time between two
//! acknowledgements. A failed statement is counted. None should fail, since each is safe to retry.

use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::display::table;
use crate::error::CommandError;
use crate::executable::own_executable;
use crate::screen::{Screen, while_waiting};
use crate::{outputs, roles};
use evenkeel_local_cluster::failover::acknowledgements::percentile;
use evenkeel_local_cluster::failover::trials::{FailoverTrials, LeaderFault, LeaderOf, Trial};
use evenkeel_local_cluster::run::ProgressListener;
use evenkeel_local_cluster::{Cluster, ClusterOptions};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The goal of a failover: the longest pause in milliseconds, and the share of trials that meet it.
const FAILOVER_BAR: (f64, f64) = (1_000.0, 0.98);
/// The goal of a planned hand-over, likewise.
const HANDOVER_BAR: (f64, f64) = (50.0, 0.98);

/// The configuration of `bench failover`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FailoverConfig {
    /// Trials of each kind.
    pub trials: usize,
    /// Kinds, separated by commas: `kill`, `freeze`, `cut`, `handover`.
    pub kind: String,
    /// The groups whose leaders fail, separated by commas: `shard`, `placement-driver`.
    pub role: String,
    /// The folder with PostgreSQL's programs; absent: searched for.
    pub postgres_bin: Option<PathBuf>,
    /// The file that receives the measurements as JSON.
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
    fn series(&self) -> Result<Vec<(LeaderOf, LeaderFault)>, ConfigError> {
        let kinds = [
            ("kill", LeaderFault::Kill),
            ("freeze", LeaderFault::Freeze),
            ("cut", LeaderFault::Cut),
            ("handover", LeaderFault::Handover),
        ];
        let roles = [("shard", LeaderOf::Shard), ("placement-driver", LeaderOf::PlacementDriver)];
        let kinds = named("kind", &self.kind, &kinds)?;
        let both =
            named("role", &self.role, &roles)?.into_iter().flat_map(|group| kinds.iter().map(move |k| (group, *k)));
        // The placement driver has no planned hand-over.
        Ok(both.filter(|series| *series != (LeaderOf::PlacementDriver, LeaderFault::Handover)).collect())
    }
}

/// The values that a list of names selects.
fn named<T: Copy>(key: &str, text: &str, all: &[(&str, T)]) -> Result<Vec<T>, ConfigError> {
    let find = |name: &str| all.iter().find(|(known, _)| *known == name.trim()).map(|(_, thing)| *thing);
    let found: Option<Vec<T>> = text.split(',').map(find).collect();
    found.ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        ConfigError::value(key, text, "configuration", format!("{}, with commas between", names.join(", ")))
    })
}

/// The trials of one kind, for the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailoverSeries {
    /// The group whose leader failed.
    pub role: LeaderOf,
    /// The fault.
    pub kind: LeaderFault,
    /// The trials.
    pub trials: Vec<Trial>,
    /// Statements that failed.
    pub failed: u64,
    /// The last failure's text.
    pub last_error: String,
}

impl FailoverSeries {
    /// The pause of a trial that is compared with the goal.
    fn pause_ms(&self, trial: &Trial) -> f64 {
        trial.placement_driver.unwrap_or(trial.sql).worst_ms()
    }

    fn bar(&self) -> (f64, f64) {
        if self.kind == LeaderFault::Handover { HANDOVER_BAR } else { FAILOVER_BAR }
    }

    /// The number of trials that meet the goal.
    pub fn within(&self) -> usize {
        self.trials.iter().filter(|trial| self.pause_ms(trial) <= self.bar().0).count()
    }

    /// Whether enough trials meet the goal, and no statement failed.
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
pub fn render(series: &[FailoverSeries]) -> String {
    let header =
        ["leader of", "pause p50/p99/max ms", "within", "slowest statement", "statements' gap", "failed", "bar"];
    table(&header, &series.iter().map(FailoverSeries::row).collect::<Vec<_>>())
}

/// Runs the trials. A missed goal is a failure. Every process that it starts has ended when it
/// returns.
pub async fn failover(layers: &Layers) -> Result<(), CommandError> {
    let config: FailoverConfig = resolve(&settings(), layers)?;
    let wanted = config.series()?;
    if let Some(path) = &config.json {
        outputs::check("json", path)?;
    }
    if config.postgres_bin.is_some() {
        roles::check_postgres(config.postgres_bin.as_deref())?;
    }
    let screen = Screen::new();
    // With links, all traffic passes through this process, which costs time. Only the trials that
    // need links run on such a cluster.
    let (cut, uncut): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, fault)| *fault == LeaderFault::Cut);
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

/// Runs these series on a cluster of their own. With `links` its processes can be cut off.
async fn on_a_cluster(
    config: &FailoverConfig,
    wanted: &[(LeaderOf, LeaderFault)],
    links: bool,
    screen: &Screen,
) -> Result<Vec<FailoverSeries>, CommandError> {
    let mut options = ClusterOptions::new(own_executable()?);
    options.postgres_bin.clone_from(&config.postgres_bin);
    options.balancer.insert("enabled".into(), toml::Value::Boolean(false));
    options.links = links;
    let end = roles::end_request(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
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
    wanted: &[(LeaderOf, LeaderFault)],
    cluster: &Cluster,
    screen: &Screen,
) -> Result<Vec<FailoverSeries>, CommandError> {
    let (ready, _) = while_waiting(screen, "starting three shards of three replicas", cluster.wait_ready()).await;
    ready.map_err(CommandError::failed)?;
    let trials = FailoverTrials::prepare(cluster, "failover").await.map_err(CommandError::Failed)?;
    let mut all = Vec::new();
    for (role, kind) in wanted {
        let what = format!("{} times: {role:?}'s leader, {kind:?}", config.trials);
        let (series, _) = while_waiting(screen, &what, trials.series(*role, *kind, config.trials)).await;
        let series = series.map_err(CommandError::Failed)?;
        let (role, kind) = (*role, *kind);
        let (trials, failed, last_error) = (series.trials, series.failed, series.last_error);
        all.push(FailoverSeries { role, kind, trials, failed, last_error });
        screen.line(&render(&all[all.len() - 1..]));
    }
    Ok(all)
}
