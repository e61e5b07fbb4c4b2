//! The command `bench size`: its parts, one after another.

use crate::bench::size::bench_cluster::SizeBench;
use crate::bench::size::config::{SizeConfig, settings};
use crate::bench::size::figures::{Figure, json, render};
use crate::bench::size::{moves, replicas, trace};
use crate::config::{ConfigError, Layers, resolve};
use crate::error::CommandError;
use crate::screen::Screen;
use crate::{outputs, roles};
use evenkeel_local_cluster::run::ProgressListener;

/// Bytes of disk per byte of data: three replicas, their logs, copies of moving ranges, and
/// PostgreSQL beside them.
const DISK_PER_BYTE: u64 = 20;
/// Bytes of disk that are needed for any amount of data.
const DISK_BASE: u64 = 10 << 30;
/// Runs the measurements. A missed goal is a failure. Every process that it starts has ended when
/// it returns.
pub async fn size(layers: &Layers) -> Result<(), CommandError> {
    let config: SizeConfig = resolve(&settings(), layers)?;
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
    let bench = SizeBench { config: &config, screen: Screen::new() };
    let end = roles::end_request(false).map_err(|e| CommandError::Failed(format!("listening for signals: {e}")))?;
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

async fn measure(bench: &SizeBench<'_>, parts: &[&str]) -> Result<Vec<Figure>, CommandError> {
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

/// Shows the figures of a part when it is done.
fn shown(bench: &SizeBench<'_>, figures: Vec<Figure>) -> Vec<Figure> {
    bench.screen.line(&render(&figures));
    figures
}

/// Refuses a disk that is too small. A full disk would distort the figures.
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
