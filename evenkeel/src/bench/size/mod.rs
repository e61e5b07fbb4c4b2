//! `bench size`: what Evenkeel does on gigabytes, beside PostgreSQL with two synchronous standbys that does the same.
//!
//! | part | what it measures |
//! |---|---|
//! | [`trace`] | large blocks loaded, read and written by 16 clients, balancer on and paused; bytes written to disk; every move's time and pause |
//! | [`moves`] | one range of a gigabyte moved under a thousand updates a second; a row of a megabyte updated in a loop while it moves |
//! | [`replicas`] | a scan beside keyed reads, a leader killed under full load, a replica and a whole shard started again, a wiped replica |
//!
//! [`usage`] counts bytes and memory, [`figures`] holds figures and bars, [`target`] is PostgreSQL as a replay's target, [`blocks`] makes
//! data of any size. Bars that are missed are reported, and the command fails.

pub mod blocks;
pub mod figures;
pub mod moves;
pub mod replicas;
pub mod target;
pub mod trace;
pub mod usage;
mod wide;

use crate::cli::CommandError;
use crate::cluster::{Cluster, ClusterOptions};
use crate::config::{ConfigError, Kind, Layers, Setting, resolve};
use crate::run::screen::{Screen, while_waiting};
use crate::{outputs, roles};
use figures::{Bar, Figure, json, render};
use serde::Deserialize;
use std::path::PathBuf;
use usage::Peak;

/// Disk that one gigabyte of data needs while it is measured, in bytes: three replicas, their logs, what moves, and PostgreSQL beside it.
const DISK_PER_BYTE: u64 = 20;
/// Disk that is needed in any case, in bytes.
const DISK_BASE: u64 = 10 << 30;
/// The most memory that a replica's process may hold, in bytes; its PostgreSQL has its own.
const MEMORY_BUDGET_BYTES: f64 = 512.0 * 1024.0 * 1024.0;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SizeConfig {
    /// A trace of large blocks; absent: a pattern made here.
    pub trace: Option<PathBuf>,
    /// How long the trace's statements are sent, in seconds.
    pub duration: f64,
    /// Gigabytes (10^9 bytes) of the smaller data set.
    pub gigabytes: f64,
    /// Gigabytes of the larger one; 0: only the smaller is measured.
    pub large_gigabytes: f64,
    /// Parts, comma between: `trace`, `moves`, `replicas`; or `reseed`, the part of `replicas` that re-seeds a wiped replica.
    pub only: String,
    /// The folder with PostgreSQL's programs; absent: found.
    pub postgres_bin: Option<PathBuf>,
    /// Where the figures go as JSON.
    pub json: Option<PathBuf>,
}

impl Default for SizeConfig {
    fn default() -> SizeConfig {
        SizeConfig {
            trace: None,
            duration: 30.0,
            gigabytes: 1.0,
            large_gigabytes: 5.0,
            only: "trace,moves,replicas".into(),
            postgres_bin: None,
            json: None,
        }
    }
}

/// The settings of `bench size`.
pub fn settings() -> Vec<Setting> {
    vec![
        Setting::optional("trace", Kind::Path),
        Setting::optional("duration", Kind::Seconds(1.0, 3_600.0)),
        Setting::optional("gigabytes", Kind::ZeroOr(0.001, 1_000.0)),
        Setting::optional("large_gigabytes", Kind::ZeroOr(0.001, 1_000.0)),
        Setting::optional("only", Kind::Text),
        Setting::optional("postgres_bin", Kind::Path),
        Setting::optional("json", Kind::Path),
    ]
}

/// What the parts share.
pub(crate) struct Bench<'a> {
    config: &'a SizeConfig,
    screen: Screen,
}

impl Bench<'_> {
    /// The bytes of the smaller data set.
    fn bytes(&self) -> u64 {
        (self.config.gigabytes * 1e9) as u64
    }

    /// A cluster of so many shards; with the balancer on or off.
    async fn cluster(&self, shards: u32, balancer: bool) -> Result<Cluster, CommandError> {
        let mut options = ClusterOptions::new(crate::demo::own_executable()?);
        options.shards = shards;
        options.postgres_bin.clone_from(&self.config.postgres_bin);
        options.balancer.insert("enabled".into(), toml::Value::Boolean(balancer));
        let cluster = Cluster::launch(options)?;
        let what = format!("starting {shards} shards of three replicas");
        let (ready, _) = while_waiting(&self.screen, &what, cluster.wait_ready()).await;
        ready.map_err(CommandError::failed)?;
        Ok(cluster)
    }

    /// Runs `work` on the cluster, ends the cluster, and gives what `work` gave. Meanwhile `peak` is told what memory its processes hold.
    async fn on<T>(
        &self,
        cluster: Cluster,
        peak: &Peak,
        work: impl AsyncFnOnce(&Cluster) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let pids = || cluster.process_ids().into_iter().filter_map(|id| cluster.pid(id)).collect();
        let ended = tokio::select! {
            ended = work(&cluster) => ended,
            never = peak.watch(pids) => match never {},
        };
        cluster.stop().await;
        ended
    }
}

/// The most memory that one process of a cluster has held, against the budget.
fn memory(peak: &Peak, at: &str) -> Figure {
    let most = peak.bytes() as f64 / 1e6;
    Figure::new("peak memory of one process", at, most, "MB").bar(Bar::AtMost(MEMORY_BUDGET_BYTES / 1e6))
}

/// Runs the measurements; a bar that is missed is a failure. Whatever happens, nothing that it started is left running.
pub async fn size(layers: &Layers) -> Result<(), CommandError> {
    let config: SizeConfig = resolve(&settings(), &roles::all_keys(), layers)?;
    let parts: Vec<&str> = config.only.split(',').map(str::trim).collect();
    if let Some(part) = parts.iter().find(|p| !["trace", "moves", "replicas", "reseed"].contains(p)) {
        let accepted = "trace, moves, replicas, reseed, with commas between";
        return Err(ConfigError::value("only", part, "configuration", accepted).into());
    }
    if let Some(path) = &config.json {
        outputs::check("json", path)?;
    }
    if config.postgres_bin.is_some() {
        roles::check_postgres(config.postgres_bin.as_deref())?;
    }
    check_disk(&config)?;
    let bench = Bench { config: &config, screen: Screen::new() };
    let end = roles::told_to_end(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
    let figures = tokio::select! {
        figures = measure(&bench, &parts) => figures?,
        () = end => return Err(CommandError::Interrupted),
    };
    bench.screen.line(&render(&figures));
    if let Some(path) = &config.json {
        outputs::write(path, &json(&figures).map_err(CommandError::failed)?).map_err(CommandError::Failed)?;
    }
    let missed: Vec<String> =
        figures.iter().filter(|f| f.met() == Some(false)).map(|f| format!("{} ({})", f.what, f.at)).collect();
    if missed.is_empty() { Ok(()) } else { Err(CommandError::Failed(format!("bars missed: {}", missed.join("; ")))) }
}

async fn measure(bench: &Bench<'_>, parts: &[&str]) -> Result<Vec<Figure>, CommandError> {
    let mut figures = Vec::new();
    if parts.contains(&"trace") {
        figures.extend(shown(bench, trace::measure(bench).await?));
    }
    if parts.contains(&"moves") {
        figures.extend(shown(bench, moves::measure(bench).await?));
    }
    if parts.contains(&"replicas") {
        figures.extend(shown(bench, replicas::measure(bench).await?));
    } else if parts.contains(&"reseed") {
        figures.extend(shown(bench, replicas::measure_reseed(bench).await?));
    }
    Ok(figures)
}

/// Shows the figures of a part as soon as they are known.
fn shown(bench: &Bench<'_>, figures: Vec<Figure>) -> Vec<Figure> {
    bench.screen.line(&render(&figures));
    figures
}

/// Refuses where the disk is too small: a full disk would be measured instead.
fn check_disk(config: &SizeConfig) -> Result<(), CommandError> {
    let folder = std::env::temp_dir();
    let stat = rustix::fs::statvfs(&folder).map_err(|e| CommandError::Failed(format!("{}: {e}", folder.display())))?;
    let free = stat.f_bavail * stat.f_frsize;
    let most = config.gigabytes.max(config.large_gigabytes / 2.0) * 1e9;
    let needed = DISK_BASE + most as u64 * DISK_PER_BYTE / 2;
    if free >= needed {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let folder = folder.display();
    Err(CommandError::Failed(format!(
        "{folder} has {:.0} GB free, and this needs {:.0} GB: make room, or ask for less with --gigabytes and --large-gigabytes",
        gb(free),
        gb(needed)
    )))
}
