//! The balancer at work on a real cluster: load follows where it goes, new shards fill, drained shards empty, and a level
//! cluster is left alone.

use evenkeel::cluster::ClusterOptions;
use evenkeel::run::balancer::Balancer;
use evenkeel::run::screen::Screen;
use evenkeel::run::{RunConfig, Stage, run};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{OperatorBody, OperatorKind, ShardBody};
use evenkeel_tests::{Failure, Outcome, World, ensure, scenarios};
use evenkeel_workloads::report::{LEVEL_FACTOR, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            skewed_load_on_one_shard_becomes_level_and_then_nothing_moves,
            load_follows_a_jumping_hotspot,
            a_fourth_shard_is_added_and_fills,
            a_shard_is_drained_and_removed,
        ],
    )
}

fn options(executable: PathBuf) -> ClusterOptions {
    ClusterOptions::new(executable)
}

/// Runs a workload with all of its checks; whatever is lost, failed, different or owned wrongly is a failure.
async fn checked_run(world: &World, workload: &str, duration: f64) -> Result<Report, Failure> {
    let config = RunConfig {
        workload: workload.into(),
        duration: Some(duration),
        rows: 5_000,
        rate: Some(800.0),
        ..RunConfig::default()
    };
    let rest = world.rest().clone();
    let balancer = Balancer::found(&rest).await.map_err(|e| Failure::new(format!("{e:?}")))?;
    let stage = Stage { rest, balancer, cluster: Some(&world.cluster), chaos: false, screen: Screen::silent() };
    let finished = run(&config, &stage).await.map_err(|e| Failure::new(format!("{e:?}")))?;
    let report = finished.report;
    let good = report.statements.failed == 0
        && report.lost_writes == 0
        && report.unread_keys == 0
        && report.wrong_answers == 0
        && report.differing_replicas == Some(0)
        && report.owners_wrong == Some(0);
    ensure!(good && finished.findings.is_empty(), "{}\n{:?}", report, finished.findings);
    Ok(report)
}

/// The second from which on the load is level, by means of five seconds: one second of a busy machine says little. That it is level sooner,
/// second by second, is seen where the machine is quiet (`make demo`).
fn level_from(report: &Report) -> Option<usize> {
    let bound = LEVEL_FACTOR * report.imbalance_floor;
    let means = report.imbalance.windows(5).map(|window| {
        let known: Vec<f64> = window.iter().flatten().copied().collect();
        known.iter().sum::<f64>() / known.len().max(1) as f64
    });
    let uneven = means.collect::<Vec<_>>().iter().rposition(|mean| *mean > bound);
    let from = uneven.map_or(0, |last| last + 1);
    (from + 5 <= report.imbalance.len()).then_some(from)
}

/// What of a run is given to becoming level, in seconds.
const LEVEL_WITHIN_S: usize = 30;

async fn skewed_load_on_one_shard_becomes_level_and_then_nothing_moves(world: &World) -> Outcome {
    let began_ms = unix_ms();
    let report = checked_run(world, "mixgraph", 45.0).await?;
    ensure!(level_from(&report).is_some_and(|s| s <= LEVEL_WITHIN_S), "not level in time:\n{}", report);
    // The load began within two seconds of the run; the workload stays the same, so nothing has a reason to move any more.
    let operators: Vec<OperatorBody> = world.rest().get("/v1/operators").await?;
    let rest_ms = began_ms + (LEVEL_WITHIN_S as u64 + 5) * 1_000;
    let late = |o: &&OperatorBody| matches!(o.kind, OperatorKind::Move { .. }) && o.created_ms > rest_ms;
    let late: Vec<&OperatorBody> = operators.iter().filter(late).collect();
    ensure!(late.is_empty(), "it did not come to rest:\n{}\n{late:?}", report);
    Ok(())
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

async fn load_follows_a_jumping_hotspot(world: &World) -> Outcome {
    let report = checked_run(world, "hotspot-jump:20", 40.0).await?;
    // Two hotspots, one after the other: the load is level at the end of each, not only once.
    let bound = LEVEL_FACTOR * report.imbalance_floor * 1.1;
    for end in [20, 40] {
        let last: Vec<f64> = report.imbalance[end - 4..end].iter().flatten().copied().collect();
        let mean = last.iter().sum::<f64>() / last.len().max(1) as f64;
        ensure!(mean <= bound, "imbalance {mean:.2} before second {end}:\n{}", report);
    }
    Ok(())
}

async fn a_fourth_shard_is_added_and_fills(world: &World) -> Outcome {
    let added = world.cluster.add_shard().await?;
    let report = checked_run(world, "zipf:0.8", 40.0).await?;
    ensure!(report.shards == 4, "{} shards", report.shards);
    ensure!(level_from(&report).is_some_and(|s| s <= LEVEL_WITHIN_S), "not level in time:\n{}", report);
    let shard = shard(world, added).await?.ok_or_else(|| Failure::new("the added shard is gone"))?;
    ensure!(shard.ranges > 0, "nothing came to the added shard: {shard:?}");
    Ok(())
}

async fn a_shard_is_drained_and_removed(world: &World) -> Outcome {
    let drained = ShardId(2);
    let _: serde_json::Value = world.rest().delete(&format!("/v1/shards/{drained}")).await?;
    world
        .until("the drained shard to be removed", Duration::from_secs(120), async || {
            let shards: Vec<ShardBody> = world.rest().get("/v1/shards").await.map_err(|e| e.to_string())?;
            let left = shards.into_iter().find(|s| s.info.id == drained);
            left.map_or(Ok(()), |s| Err(format!("{s:?}")))
        })
        .await?;
    world.cluster.remove_shard(drained)?;
    checked_run(world, "uniform", 10.0).await?;
    world.nothing_is_wrong().await
}

async fn shard(world: &World, id: ShardId) -> Result<Option<ShardBody>, Failure> {
    Ok(world.shards().await?.into_iter().find(|s| s.info.id == id))
}
