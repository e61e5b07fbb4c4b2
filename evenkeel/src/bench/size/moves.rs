//! Moves of large data: a range of a gigabyte under a thousand updates per second, and a row of a
//! megabyte that is updated in a loop.

use super::bench_cluster::{SizeBench, memory};
use super::figures::{Bar, Figure};
use super::usage::{Peak, flush};
use super::wide::{BODY_BYTES, Wide};
use crate::error::CommandError;
use evenkeel_client::Value;
use evenkeel_local_cluster::Cluster;
use evenkeel_local_cluster::failover::acknowledgements::percentile;
use evenkeel_local_cluster::operator_text::is_running;
use evenkeel_local_cluster::run::ProgressListener;
use evenkeel_local_cluster::wait;
use evenkeel_protocol::api::{MoveBody, OperatorBody, RangeBody};
use evenkeel_protocol::{RangeId, ShardId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Updates a second while the large range moves.
const UPDATES_PER_S: f64 = 1_000.0;
/// Clients that send the updates.
const CLIENTS: usize = 32;
/// How long a move may take.
const MOVE_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of the large row.
const ROW_BYTES: usize = 1_000_000;
/// The number of moves of the large row.
const ROW_MOVES: usize = 6;

/// Measures both moves.
pub async fn measure(bench: &SizeBench<'_>) -> Result<Vec<Figure>, CommandError> {
    let cluster = bench.cluster(2, false).await?;
    let peak = Peak::default();
    let work = async |cluster: &Cluster| {
        let mut figures = large_range(bench, cluster).await?;
        figures.extend(large_row(bench, cluster).await?);
        Ok(figures)
    };
    let mut figures = bench.on(cluster, &peak, work).await?;
    figures.push(memory(&peak, "moves"));
    Ok(figures)
}

async fn large_range(bench: &SizeBench<'_>, cluster: &Cluster) -> Result<Vec<Figure>, CommandError> {
    let rows = bench.bytes() / BODY_BYTES;
    let wide = Wide::create(cluster, "wide", 1).await?;
    bench.screen.line(&format!("loading {rows} rows of {BODY_BYTES} bytes into one range"));
    let begun = evenkeel_host::now();
    wide.load(0, rows).await?;
    let load_s = evenkeel_host::elapsed(begun).as_secs_f64();
    flush();
    let writers = wide.writers(CLIENTS, rows, UPDATES_PER_S);
    bench.screen.line(&format!("moving it under {UPDATES_PER_S:.0} updates/s"));
    let range = wide.range(cluster).await?;
    let begun = evenkeel_host::now();
    let operator = move_to(cluster, range.route.range, 2).await?;
    let took_s = evenkeel_host::elapsed(begun).as_secs_f64();
    let at = format!("{} GB in one range, {UPDATES_PER_S:.0} updates/s", bench.config.gigabytes);
    let ended = f64::from(u8::from(operator.status == "done"));
    let pause_ms = operator.pause_us.map_or(f64::NAN, |us| us as f64 / 1e3);
    if let Some(detail) = &operator.detail {
        bench.screen.line(&format!("the move: {} {detail}", operator.status));
    }
    Ok(vec![
        Figure::new("loading", &at, bench.config.gigabytes * 1e3 / load_s, "MB/s"),
        Figure::new("move ends", &at, ended, "").bar(Bar::AtLeast(1.0)),
        Figure::new("move takes", &at, took_s, "s"),
        Figure::new("move copies", &at, operator.bytes as f64 / 1e6 / took_s, "MB/s"),
        Figure::new("pause of writes", &at, pause_ms, "ms").bar(Bar::AtMost(100.0)),
        Figure::new("statements failed", &at, writers.record.failed() as f64, "").bar(Bar::AtMost(0.0)),
    ])
}

async fn large_row(bench: &SizeBench<'_>, cluster: &Cluster) -> Result<Vec<Figure>, CommandError> {
    let row = Wide::create(cluster, "large_row", 1).await?;
    let value: Vec<u8> = (0..ROW_BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let insert = "INSERT INTO large_row (id, n, body) VALUES (1, 0, $1)";
    row.client.execute(insert, &[Value::Bytes(value.clone().into())]).await.map_err(CommandError::failed)?;
    bench.screen.line(&format!("moving a row of {ROW_BYTES} bytes that is updated in a loop, {ROW_MOVES} times"));
    let stop = Arc::new(AtomicBool::new(false));
    let (client, told) = (row.client.clone(), stop.clone());
    let writer = tokio::spawn(async move {
        let (mut done, mut failed) = (0_u64, 0_u64);
        while !told.load(Ordering::Relaxed) {
            let text = "UPDATE large_row SET n = n + 1, body = $1 WHERE id = 1";
            match client.execute(text, &[Value::Bytes(value.clone().into())]).await {
                Ok(_) => done += 1,
                Err(_) => failed += 1,
            }
        }
        (done, failed)
    });
    let mut pauses = Vec::new();
    for _ in 0..ROW_MOVES {
        let range: RangeBody = row.range(cluster).await?;
        let to = if range.route.shard == ShardId(1) { 2 } else { 1 };
        let operator = move_to(cluster, range.route.range, to).await?;
        pauses
            .push(operator.pause_us.filter(|_| operator.status == "done").map_or(f64::INFINITY, |us| us as f64 / 1e3));
    }
    stop.store(true, Ordering::Relaxed);
    let (done, failed) = writer.await.map_err(CommandError::failed)?;
    let found = row.client.execute("SELECT n FROM large_row WHERE id = 1", &[]).await.map_err(CommandError::failed)?;
    let n = found.rows.rows().next().and_then(|mut row| Some(i64::from_be_bytes(row.next()??.try_into().ok()?)));
    let at = "1 MB row in a loop";
    Ok(vec![
        Figure::new("pause of writes p50", at, percentile(&pauses, 0.5), "ms"),
        Figure::new("pause of writes max", at, percentile(&pauses, 1.0), "ms").bar(Bar::AtMost(250.0)),
        Figure::new("updates failed", at, failed as f64, "").bar(Bar::AtMost(0.0)),
        Figure::new("updates lost or twice", at, (n.unwrap_or(-1) - done as i64).unsigned_abs() as f64, "")
            .bar(Bar::AtMost(failed as f64)),
    ])
}

/// Moves a range and waits for the operator's end.
async fn move_to(cluster: &Cluster, range: RangeId, to: u32) -> Result<OperatorBody, CommandError> {
    let path = format!("/v1/ranges/{range}/move");
    let deadline = evenkeel_host::now() + MOVE_TIMEOUT;
    let made: OperatorBody = loop {
        match cluster.admin().post(&path, &MoveBody { to: ShardId(to) }).await {
            Ok(made) => break made,
            // The rows that the last move left are still being deleted.
            Err(error) if evenkeel_host::now() < deadline && error.code() == "range-busy" => wait::pause().await,
            Err(error) => return Err(CommandError::failed(error)),
        }
    };
    loop {
        let now: OperatorBody =
            cluster.admin().get(&format!("/v1/operators/{}", made.id)).await.map_err(CommandError::failed)?;
        if !is_running(&now) || evenkeel_host::now() >= deadline {
            return Ok(now);
        }
        wait::pause().await;
    }
}
