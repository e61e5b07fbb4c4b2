//! Replicas of a shard with gigabytes of rows: a scan beside keyed reads, a leader killed under
//! full load, a replica and a whole shard started again, a replica wiped and re-seeded.

use super::bench_cluster::{SizeBench, memory};
use super::figures::{Bar, Figure};
use super::usage::Peak;
use super::wide::{BODY_BYTES, Wide};
use crate::error::CommandError;
use evenkeel_client::Value;
use evenkeel_local_cluster::failover::acknowledgements::{all_resumed, pause, percentile};
use evenkeel_local_cluster::run::ProgressListener;
use evenkeel_local_cluster::shard_calls::inspect_all;
use evenkeel_local_cluster::{Cluster, ProcessId};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::Inspection;
use evenkeel_workloads::seed::SeededRandom;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// The shard.
const SHARD: u32 = 1;
/// The name of the figure of a whole shard's restart.
const RESTART_OF_SHARD: &str = "restart of a whole shard";
/// Its replicas.
const REPLICAS: u64 = 3;
/// Clients that write as fast as possible while the leader is killed.
const CLIENTS: usize = 32;
/// Updates a second that make 10 MB/s.
const SEED_UPDATES_PER_S: f64 = 10e6 / BODY_BYTES as f64;
/// How long a replica or a shard may take to serve again.
const PATIENCE: Duration = Duration::from_secs(600);
/// Acknowledged writes per writer after which writes have resumed.
const RESUMED: usize = 3;
/// Clients whose keyed reads are timed.
const READERS: usize = 4;
/// How long keyed reads are timed without the scan.
const READ_TIME: Duration = Duration::from_secs(5);
/// How long clients write as fast as possible before the leader is killed.
const FULL_LOAD_TIME: Duration = Duration::from_secs(8);
/// Positions of the log that a serving replica may be behind: the writes of a fraction of a second.
const BEHIND: u64 = 500;

/// Measures with the smaller data set, and the restarts with the larger one again: they must not
/// depend on the size.
pub async fn measure(bench: &SizeBench<'_>) -> Result<Vec<Figure>, CommandError> {
    let cluster = bench.cluster(SHARD, false).await?;
    let (small, large) = (Peak::default(), Peak::default());
    let mut figures = bench.on(cluster, &small, async |cluster| on_cluster(bench, cluster).await).await?;
    figures.push(memory(&small, &format!("{} GB", bench.config.gigabytes)));
    if bench.config.large_gigabytes > 0.0 {
        let at = format!("{} GB", bench.config.large_gigabytes);
        let cluster = bench.cluster(SHARD, false).await?;
        let restarted = bench.on(cluster, &large, async |cluster| on_large(bench, cluster).await).await?;
        let of_shard = |figures: &[Figure]| {
            figures.iter().find(|figure| figure.what == RESTART_OF_SHARD).map_or(f64::NAN, |figure| figure.value)
        };
        let times = of_shard(&restarted) / of_shard(&figures).max(0.1);
        figures.extend(restarted);
        figures.push(Figure::new("restart beside the smaller's", &at, times, "x").bar(Bar::AtMost(1.3)));
        let times = large.bytes() as f64 / small.bytes().max(1) as f64;
        figures.push(Figure::new("peak memory beside the smaller's", &at, times, "x").bar(Bar::AtMost(1.1)));
        figures.push(memory(&large, &at));
    }
    Ok(figures)
}

/// Measures only the re-seeding, with the smaller data set.
pub async fn measure_reseed(bench: &SizeBench<'_>) -> Result<Vec<Figure>, CommandError> {
    let cluster = bench.cluster(SHARD, false).await?;
    let (peak, at) = (Peak::default(), format!("{} GB", bench.config.gigabytes));
    let reseeded = async |cluster: &Cluster| {
        let (shard, rows) = loaded(bench, cluster).await?;
        shard.reseeded(rows, &at).await
    };
    let mut figures = bench.on(cluster, &peak, reseeded).await?;
    figures.push(memory(&peak, &at));
    Ok(figures)
}

/// The shard with the rows of the smaller data set, and their number.
async fn loaded<'a>(bench: &'a SizeBench<'a>, cluster: &'a Cluster) -> Result<(Shard<'a>, u64), CommandError> {
    let rows = bench.bytes() / BODY_BYTES;
    let shard = Shard { bench, cluster, wide: Wide::create(cluster, "wide", SHARD).await? };
    bench.screen.line(&format!("loading {} GB", bench.config.gigabytes));
    shard.wide.load(0, rows).await?;
    Ok((shard, rows))
}

/// Restarts with the larger data set.
async fn on_large(bench: &SizeBench<'_>, cluster: &Cluster) -> Result<Vec<Figure>, CommandError> {
    let large = bench.config.large_gigabytes;
    let shard = Shard { bench, cluster, wide: Wide::create(cluster, "wide", SHARD).await? };
    bench.screen.line(&format!("loading {large} GB"));
    shard.wide.load(0, (large * 1e9) as u64 / BODY_BYTES).await?;
    shard.restarts(&format!("{large} GB")).await
}

async fn on_cluster(bench: &SizeBench<'_>, cluster: &Cluster) -> Result<Vec<Figure>, CommandError> {
    let (shard, rows) = loaded(bench, cluster).await?;
    let at = format!("{} GB", bench.config.gigabytes);
    let mut figures = shard.scan(rows, &at).await?;
    figures.extend(shard.killed(rows, &at).await?);
    figures.extend(shard.reseeded(rows, &at).await?);
    figures.extend(shard.restarts(&at).await?);
    Ok(figures)
}

struct Shard<'a> {
    bench: &'a SizeBench<'a>,
    cluster: &'a Cluster,
    wide: Wide,
}

impl Shard<'_> {
    async fn inspect(&self) -> BTreeMap<u64, Inspection> {
        match self.cluster.shards().into_iter().find(|shard| shard.id == ShardId(SHARD)) {
            Some(shard) => inspect_all(&shard).await,
            None => BTreeMap::new(),
        }
    }

    async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) -> Result<f64, CommandError> {
        let begun = evenkeel_host::now();
        while !done().await {
            if evenkeel_host::elapsed(begun) > PATIENCE {
                return Err(CommandError::Failed(format!("waited {} s for {what}", PATIENCE.as_secs())));
            }
            evenkeel_host::sleep(Duration::from_millis(20)).await;
        }
        Ok(evenkeel_host::elapsed(begun).as_secs_f64())
    }

    async fn leader(&self) -> Result<u64, CommandError> {
        let mut found = None;
        self.until("a leader", async || {
            found = self.inspect().await.values().find(|i| i.leads).map(|i| i.replica);
            found.is_some()
        })
        .await?;
        found.ok_or_else(|| CommandError::Failed("the shard has no leader".into()))
    }

    /// Keyed reads until `other` has ended; their latencies, in milliseconds, and what `other`
    /// gave.
    async fn keyed_reads<T>(&self, rows: u64, other: impl Future<Output = T>) -> Result<(Vec<f64>, T), CommandError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut readers = JoinSet::new();
        for reader in 0..READERS {
            let (client, stop) = (self.wide.client.clone(), stop.clone());
            let text = format!("SELECT n FROM {} WHERE id = $1", self.wide.table);
            readers.spawn(async move {
                let mut random = SeededRandom::new(reader as u64, 2);
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = evenkeel_host::now();
                    let answer = client.execute(&text, &[Value::Int(random.below(rows) as i64)]).await;
                    latencies.push(answer.map_or(f64::INFINITY, |_| evenkeel_host::elapsed(begun).as_secs_f64() * 1e3));
                }
                latencies
            });
        }
        let other = other.await;
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some(latencies) = readers.join_next().await {
            all.extend(latencies.map_err(CommandError::failed)?);
        }
        Ok((all, other))
    }

    /// Scans all rows beside keyed reads.
    async fn scan(&self, rows: u64, at: &str) -> Result<Vec<Figure>, CommandError> {
        self.bench.screen.line("reading everything in one statement, beside keyed reads");
        let (alone, ()) = self.keyed_reads(rows, evenkeel_host::sleep(READ_TIME)).await?;
        let begun = evenkeel_host::now();
        let (beside, scanned) = self.keyed_reads(rows, self.wide.scan()).await?;
        let took_s = evenkeel_host::elapsed(begun).as_secs_f64();
        let scanned = scanned.unwrap_or_else(|error| {
            self.bench.screen.line(&format!("the scan failed: {error}"));
            0
        });
        let (alone, beside) = (percentile(&alone, 0.99), percentile(&beside, 0.99));
        Ok(vec![
            Figure::new("rows of one SELECT *", at, scanned as f64, "").bar(Bar::AtLeast(rows as f64)),
            Figure::new("one SELECT *", at, took_s, "s"),
            Figure::new("keyed reads p99", at, alone, "ms"),
            Figure::new("keyed reads p99 beside SELECT *", at, beside, "ms").bar(Bar::AtMost(2.0 * alone)),
        ])
    }

    /// Kills the leader while clients write as fast as possible.
    async fn killed(&self, rows: u64, at: &str) -> Result<Vec<Figure>, CommandError> {
        self.bench.screen.line("killing the leader under full write load");
        let writers = self.wide.writers(CLIENTS, rows, 0.0);
        let record = writers.record.clone();
        evenkeel_host::sleep(FULL_LOAD_TIME).await;
        let per_s = record.acks().len() as f64 / FULL_LOAD_TIME.as_secs_f64();
        let victim = ProcessId::ShardNode(SHARD, self.leader().await?);
        let fault_ms = record.now_ms();
        self.cluster.kill(victim).map_err(CommandError::failed)?;
        self.until("writes after the leader's death", async || all_resumed(&record.acks(), CLIENTS, fault_ms, RESUMED))
            .await?;
        let pause = pause(&record.acks(), fault_ms);
        drop(writers);
        self.cluster.restart(victim).map_err(CommandError::failed)?;
        self.whole().await?;
        Ok(vec![
            Figure::new("updates/s at full load", at, per_s, "/s"),
            Figure::new("writes resume after kill -9", at, pause.gap_ms, "ms").bar(Bar::AtMost(1_000.0)),
            Figure::new("slowest write over kill -9", at, pause.slowest_ms, "ms"),
            Figure::new("statements failed over kill -9", at, record.failed() as f64, "").bar(Bar::AtMost(0.0)),
        ])
    }

    /// Wipes a follower while 10 MB/s are written, and kills it half-way through its re-seeding.
    async fn reseeded(&self, rows: u64, at: &str) -> Result<Vec<Figure>, CommandError> {
        self.bench.screen.line("wiping a follower while 10 MB/s are written, and killing it half-way");
        self.whole().await?;
        let writers = self.wide.writers(CLIENTS, rows, SEED_UPDATES_PER_S);
        let follower = self.follower().await?;
        let id = ProcessId::ShardNode(SHARD, follower);
        let folder = self.cluster.data_dir(id).map(|folder| folder.join("postgres")).unwrap_or_default();
        let full = folder_bytes(&folder);
        self.cluster.wipe(id).map_err(CommandError::failed)?;
        let begun = evenkeel_host::now();
        let serves = async || self.serves(follower).await;
        self.until("half of a copy", async || folder_bytes(&folder) * 2 > full || serves().await).await?;
        let half_s = evenkeel_host::elapsed(begun).as_secs_f64();
        self.cluster.restart(id).map_err(CommandError::failed)?;
        let again = evenkeel_host::now();
        self.until("a wiped replica to serve", async || self.serves(follower).await).await?;
        let rest_s = evenkeel_host::elapsed(again).as_secs_f64();
        let failed = writers.record.failed();
        drop(writers);
        let bytes = rows as f64 * BODY_BYTES as f64;
        Ok(vec![
            Figure::new("re-seed of a replica", at, bytes / 1e6 / (half_s + rest_s), "MB/s").bar(Bar::AtLeast(40.0)),
            Figure::new("re-seed: second half beside the first", at, rest_s / half_s.max(0.1), "x")
                .bar(Bar::AtMost(1.5)),
            Figure::new("statements failed meanwhile", at, failed as f64, "").bar(Bar::AtMost(0.0)),
        ])
    }

    /// Kills and starts a follower, and then all three replicas.
    async fn restarts(&self, at: &str) -> Result<Vec<Figure>, CommandError> {
        self.whole().await?;
        self.bench.screen.line("starting a replica again, and then the whole shard");
        let follower = self.follower().await?;
        let begun = evenkeel_host::now();
        self.cluster.restart(ProcessId::ShardNode(SHARD, follower)).map_err(CommandError::failed)?;
        self.until("a replica to serve again", async || self.serves(follower).await).await?;
        let one_s = evenkeel_host::elapsed(begun).as_secs_f64();
        self.whole().await?;
        for replica in 1..=REPLICAS {
            self.cluster.kill(ProcessId::ShardNode(SHARD, replica)).map_err(CommandError::failed)?;
        }
        let begun = evenkeel_host::now();
        for replica in 1..=REPLICAS {
            self.cluster.restart(ProcessId::ShardNode(SHARD, replica)).map_err(CommandError::failed)?;
        }
        let text = format!("UPDATE {} SET n = n + 1 WHERE id = $1", self.wide.table);
        self.until("the shard to take a write", async || {
            self.wide.client.execute(&text, &[Value::Int(0)]).await.is_ok()
        })
        .await?;
        let all_s = evenkeel_host::elapsed(begun).as_secs_f64();
        Ok(vec![
            Figure::new("restart of a replica", at, one_s, "s").bar(Bar::AtMost(10.0)),
            Figure::new(RESTART_OF_SHARD, at, all_s, "s").bar(Bar::AtMost(10.0)),
        ])
    }

    async fn follower(&self) -> Result<u64, CommandError> {
        let leader = self.leader().await?;
        Ok((1..=REPLICAS).find(|replica| *replica != leader).unwrap_or(1))
    }

    /// Whether the replica answers and is at most [`BEHIND`] positions behind the decided position.
    async fn serves(&self, replica: u64) -> bool {
        let seen = self.inspect().await;
        let decided = seen.values().filter(|i| i.leads).map(|i| i.decided).max();
        let applied = seen.get(&replica).map(|i| i.applied);
        decided.zip(applied).is_some_and(|(decided, applied)| applied + BEHIND >= decided)
    }

    /// Waits until all replicas serve.
    async fn whole(&self) -> Result<(), CommandError> {
        self.until("all replicas to serve", async || {
            for replica in 1..=REPLICAS {
                if !self.serves(replica).await {
                    return false;
                }
            }
            true
        })
        .await
        .map(drop)
    }
}

/// The bytes of all files below a folder. Files that disappear meanwhile count as zero.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
