//! Large blocks, loaded and then read and written by 16 clients. PostgreSQL with two standbys,
//! Evenkeel with the balancer on, and Evenkeel with the balancer off run in turn, each with an
//! empty disk.

use super::bench_cluster::SizeBench;
use super::blocks;
use super::figures::{Bar, Figure, least_window};
use super::target::PlainTarget;
use super::usage::{flush, of_tree};
use crate::bench::plain::PlainPostgres;
use crate::error::CommandError;
use crate::run_config::RunConfig;
use crate::screen::while_waiting;
use evenkeel_client::{Client, ClientConfig};
use evenkeel_local_cluster::Cluster;
use evenkeel_local_cluster::failover::acknowledgements::percentile;
use evenkeel_local_cluster::run::ProgressListener;
use evenkeel_local_cluster::run::options::MAX_KEYS;
use evenkeel_local_cluster::run::verification::verify_cluster;
use evenkeel_local_cluster::run::watch::Watch;
use evenkeel_protocol::api::{OperatorBody, OperatorKind};
use evenkeel_workloads::OperationSource;
use evenkeel_workloads::replay::{
    Ledger, LoadOptions, LoadPace, Replay, ReplayConfig, ReplayRecord, Target, Verification, VerifyOptions, load,
    verify,
};
use evenkeel_workloads::target_sql::SqlTarget;
use std::sync::Arc;
use std::time::Duration;

/// Clients, each with one statement under way at a time.
const CLIENTS: usize = 16;
/// Shards, of three replicas each.
const SHARDS: u32 = 3;
/// The table.
const TABLE: &str = "blocks";
/// Seed of all random choices: the same for every system.
const SEED: u64 = 1;
/// The window of the worst moment, in seconds.
const WINDOW_S: usize = 10;
/// How long operators that run at the end may take.
const QUIET_TIMEOUT: Duration = Duration::from_secs(120);
/// Time that a move may take beside copying its bytes, in seconds, for its request, its fence and
/// its publication.
const MOVE_BASE_S: f64 = 1.0;

/// The measurements of one system.
struct SystemRun {
    load_s: f64,
    record: ReplayRecord,
    verification: Verification,
    /// The time from the start of loading to the last row read back, in seconds.
    whole_s: f64,
    user_bytes: u64,
    written_bytes: u64,
}

impl SystemRun {
    /// Statements answered in each second of the load.
    fn per_second(&self) -> Vec<f64> {
        let whole = self.record.duration.as_secs() as usize;
        self.record.seconds.iter().take(whole.max(1)).map(|second| second.ok as f64).collect()
    }

    fn mean_per_s(&self) -> f64 {
        let seconds = self.per_second();
        seconds.iter().sum::<f64>() / seconds.len().max(1) as f64
    }

    fn worst_per_s(&self) -> f64 {
        least_window(&self.per_second(), WINDOW_S)
    }

    fn amplification(&self) -> f64 {
        self.written_bytes as f64 / self.user_bytes.max(1) as f64
    }

    /// The number of failed statements, wrong answers, lost rows and unread rows.
    fn wrong(&self) -> u64 {
        let totals = self.record.totals;
        totals.failed
            + totals.wrong_answers
            + totals.abandoned
            + self.verification.lost_writes
            + self.verification.unread_keys
            + self.verification.miscounted
            + self.verification.unwritten_rows
            + self.verification.wrong_pages
    }
}

/// Runs the three systems, PostgreSQL before and after, because the disk's speed varies over time.
pub async fn measure(bench: &SizeBench<'_>) -> Result<Vec<Figure>, CommandError> {
    let before = plain(bench).await?;
    let (balanced, moves, differing) = evenkeel(bench, true).await?;
    let (paused, _, differing_paused) = evenkeel(bench, false).await?;
    let after = plain(bench).await?;
    let mean = |of: fn(&SystemRun) -> f64| (of(&before) + of(&after)) / 2.0;
    let at = "blocks, balancer on";
    let mut figures = vec![
        Figure::new("statements/s, mean", at, balanced.mean_per_s(), "/s")
            .beside(mean(SystemRun::mean_per_s), Some(Bar::AtLeast(0.6))),
        Figure::new("statements/s, worst 10 s", at, balanced.worst_per_s(), "/s")
            .beside(mean(SystemRun::mean_per_s), Some(Bar::AtLeast(0.4))),
        Figure::new("statements/s, mean", "blocks, balancer paused", paused.mean_per_s(), "/s")
            .beside(mean(SystemRun::mean_per_s), Some(Bar::AtLeast(0.8))),
        Figure::new("loading", at, balanced.load_s, "s").beside(mean(|s| s.load_s), None),
        Figure::new("load to all rows read back", at, balanced.whole_s, "s").beside(mean(|s| s.whole_s), None),
        Figure::new("failed, lost, differing", at, (balanced.wrong() + differing) as f64, "").bar(Bar::AtMost(0.0)),
        Figure::new(
            "failed, lost, differing",
            "blocks, balancer paused",
            (paused.wrong() + differing_paused) as f64,
            "",
        )
        .bar(Bar::AtMost(0.0)),
        Figure::new("disk bytes per user byte", at, balanced.amplification(), "")
            .beside(mean(SystemRun::amplification), None),
        Figure::new("disk bytes per user byte", "blocks, balancer paused", paused.amplification(), "")
            .beside(mean(SystemRun::amplification), Some(Bar::AtMost(1.5))),
    ];
    figures.extend(of_moves(&moves));
    for message in balanced.record.messages.iter().chain(&paused.record.messages) {
        bench.screen.line(&format!("wrong: {message}"));
    }
    Ok(figures)
}

/// Figures of the moves: the number that took longer than expected, and the pauses.
fn of_moves(operators: &[OperatorBody]) -> Vec<Figure> {
    let moves: Vec<&OperatorBody> = operators.iter().filter(|o| matches!(o.kind, OperatorKind::Move { .. })).collect();
    let at = "blocks, balancer on";
    let seconds = |o: &OperatorBody| Some(o.ended_ms?.saturating_sub(o.created_ms) as f64 / 1e3);
    let done: Vec<(f64, f64)> = moves.iter().filter_map(|o| Some((o.bytes as f64, seconds(o)?))).collect();
    // The expected rate is the median rate of the moves themselves, which depends on the machine.
    let rates: Vec<f64> = done.iter().filter(|(bytes, _)| *bytes > 1e6).map(|(bytes, s)| bytes / s.max(1e-3)).collect();
    let rate = percentile(&rates, 0.5).max(1e6);
    let slow = done.iter().filter(|(bytes, s)| *s > 3.0 * (bytes / rate + MOVE_BASE_S)).count();
    let unended = moves.iter().filter(|o| o.status == "running" || o.status == "cancelling").count();
    let pauses: Vec<f64> = moves.iter().filter_map(|o| Some(o.pause_us? as f64 / 1e3)).collect();
    vec![
        Figure::new("moves", at, moves.len() as f64, ""),
        Figure::new("moves not ended", at, unended as f64, "").bar(Bar::AtMost(0.0)),
        Figure::new("moves longer than 3 x their bytes take", at, slow as f64, "").bar(Bar::AtMost(0.0)),
        Figure::new("pause of writes p50", at, percentile(&pauses, 0.5), "ms").bar(Bar::AtMost(10.0)),
        Figure::new("pause of writes p99", at, percentile(&pauses, 0.99), "ms").bar(Bar::AtMost(25.0)),
        Figure::new("pause of writes max", at, percentile(&pauses, 1.0), "ms").bar(Bar::AtMost(100.0)),
    ]
}

/// Operations, and the initial rows: key, and size in bytes.
type Load = (Box<dyn OperationSource>, Vec<(i64, u32)>);

/// The workload: a trace's, or a generated one.
fn workload(bench: &SizeBench<'_>) -> Result<Load, CommandError> {
    let Some(path) = &bench.config.trace else {
        return Ok(blocks::blocks(bench.bytes() / blocks::mean_block_bytes(), SEED));
    };
    let run = RunConfig { trace: Some(path.clone()), duration: Some(bench.config.duration), ..RunConfig::default() };
    let workload = run.prepare()?;
    Ok((workload.source, workload.rows))
}

async fn plain(bench: &SizeBench<'_>) -> Result<SystemRun, CommandError> {
    let starting = PlainPostgres::start(bench.config.postgres_bin.as_deref(), SHARDS * 3);
    let (plain, _) = while_waiting(&bench.screen, "starting PostgreSQL with two synchronous standbys", starting).await;
    let plain = plain.map_err(CommandError::Failed)?;
    let target = PlainTarget::create(&plain, TABLE, CLIENTS).await.map_err(CommandError::Failed)?;
    run(bench, Arc::new(target), 1, &plain.pids()).await
}

/// The run on Evenkeel, its operators, and the number of replicas that differ and places with a
/// wrong owner.
async fn evenkeel(bench: &SizeBench<'_>, balancer: bool) -> Result<(SystemRun, Vec<OperatorBody>, u64), CommandError> {
    let cluster = bench.cluster(SHARDS, balancer).await?;
    let ended = on_cluster(bench, &cluster).await;
    cluster.stop().await;
    ended
}

async fn on_cluster(
    bench: &SizeBench<'_>,
    cluster: &Cluster,
) -> Result<(SystemRun, Vec<OperatorBody>, u64), CommandError> {
    let mut options = ClientConfig::new(cluster.admin().urls());
    options.overload_patience_ms = options.statement_timeout_ms;
    let client = Client::connect(options).await.map_err(CommandError::failed)?;
    let target = SqlTarget::create(client, TABLE).await.map_err(CommandError::failed)?;
    let pids: Vec<u32> = cluster.process_ids().into_iter().filter_map(|id| cluster.pid(id)).collect();
    let watch = Watch::start(cluster.admin().clone(), Arc::new(bench.screen.clone()));
    let shown = run(bench, Arc::new(target), SHARDS, &pids).await?;
    quiet(cluster, &watch).await?;
    let operators = watch.end().await.operators;
    let verified = verify_cluster(cluster.admin()).await.map_err(CommandError::Failed)?;
    verified.findings.iter().for_each(|finding| bench.screen.line(finding));
    Ok((shown, operators, verified.differing_replicas + verified.left_behind + verified.owners_wrong))
}

/// Switches the balancer off and waits until no operator runs, or for [`QUIET_TIMEOUT`].
async fn quiet(cluster: &Cluster, watch: &Watch) -> Result<(), CommandError> {
    let off = serde_json::json!({ "enabled": false });
    let _: serde_json::Value = cluster.admin().post("/v1/balancer", &off).await.map_err(CommandError::failed)?;
    let deadline = evenkeel_host::now() + QUIET_TIMEOUT;
    while !watch.fresh().await.running.is_empty() && evenkeel_host::now() < deadline {}
    Ok(())
}

/// Loads rows, sends the load, and reads all rows back.
async fn run<T: Target>(
    bench: &SizeBench<'_>,
    target: Arc<T>,
    shards: u32,
    pids: &[u32],
) -> Result<SystemRun, CommandError> {
    let (source, rows) = workload(bench)?;
    let loaded_bytes: u64 = rows.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
    flush();
    let before = of_tree(pids);
    let begun = evenkeel_host::now();
    let mut ledger = Ledger::new(SEED, MAX_KEYS);
    let loading = bench.screen.task("loading rows", rows.len() as u64);
    let options = LoadOptions { concurrency: CLIENTS, ..LoadOptions::default() };
    load(&target, &mut ledger, rows, options, |n| loading.set(n)).await.map_err(CommandError::failed)?;
    loading.done();
    let load_s = evenkeel_host::elapsed(begun).as_secs_f64();
    let duration = Duration::from_secs_f64(bench.config.duration);
    let pace = LoadPace::AsFastAsPossible { workers: CLIENTS };
    let config = ReplayConfig { pace, duration, shards, ..ReplayConfig::default() };
    let counted = Counted { source, bytes: Arc::default() };
    let sent_bytes = counted.bytes.clone();
    let replay = Replay::new(config, Box::new(counted), ledger).map_err(CommandError::failed)?;
    bench.screen.load_starts(bench.config.duration, None);
    let screen = bench.screen.clone();
    let replayed = replay
        .run(target.clone(), move |summary: &evenkeel_workloads::replay::SecondSummary| screen.second(summary))
        .await;
    bench.screen.load_ended();
    let replayed = replayed.map_err(CommandError::failed)?;
    flush();
    let written_bytes = of_tree(pids).written_bytes.saturating_sub(before.written_bytes);
    let reading = bench.screen.task("reading everything back", replayed.ledger.len() as u64);
    let steps = reading.clone();
    let options = VerifyOptions { concurrency: CLIENTS, ..VerifyOptions::default() };
    let verification = verify(&target, replayed.ledger, options, move |n| steps.set(n)).await;
    reading.done();
    Ok(SystemRun {
        load_s,
        whole_s: evenkeel_host::elapsed(begun).as_secs_f64(),
        user_bytes: loaded_bytes + sent_bytes.load(std::sync::atomic::Ordering::Relaxed),
        record: replayed.record,
        verification: verification.map_err(CommandError::failed)?,
        written_bytes,
    })
}

/// A source that counts the bytes of its operations.
struct Counted {
    source: Box<dyn OperationSource>,
    bytes: Arc<std::sync::atomic::AtomicU64>,
}

impl OperationSource for Counted {
    fn next(
        &mut self,
        now: Duration,
    ) -> Result<Option<evenkeel_workloads::TimedOperation>, evenkeel_workloads::SourceError> {
        let next = self.source.next(now)?;
        if let Some(timed) = &next {
            let bytes = u64::from(timed.operation.value_bytes);
            self.bytes.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(next)
    }

    fn hottest_key_share(&self) -> Option<f64> {
        self.source.hottest_key_share()
    }
}
