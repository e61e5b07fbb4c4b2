//! The balancer on a real cluster: it follows a moving hotspot, fills new shards, empties drained
//! shards, and moves nothing in a balanced cluster.

use evenkeel_local_cluster::ClusterOptions;
use evenkeel_local_cluster::run::balancer::BalancerSwitch;
use evenkeel_local_cluster::run::workload::Workload;
use evenkeel_local_cluster::run::{RunEnvironment, RunOptions, Silent, run};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::{OperatorBody, OperatorKind, ShardBody};
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use evenkeel_workloads::Scenario;
use evenkeel_workloads::report::{LEVEL_FACTOR, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

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

/// Runs a workload with its verification. A lost write, a failed statement, a differing replica or
/// a wrong owner is a failure.
async fn checked_run(world: &World, workload: &str, duration: f64) -> Result<Report, ScenarioFailure> {
    let scenario: Scenario = workload.parse().map_err(|e| ScenarioFailure::new(format!("{e}")))?;
    let options =
        RunOptions { seed: 1, duration_s: duration, rate: Some(800.0), workers: 0, is_trace: false, table: None };
    let workload = Workload::generated(&scenario, 5_000, options.seed)?;
    let admin = world.admin().clone();
    let balancer = BalancerSwitch::read(&admin).await.map_err(|e| ScenarioFailure::new(format!("{e:?}")))?;
    let (cluster, progress) = (Some(&world.cluster), Arc::new(Silent));
    let environment = RunEnvironment { admin, balancer, cluster, chaos: false, progress };
    let finished = run(&options, workload, &environment).await.map_err(|e| ScenarioFailure::new(format!("{e:?}")))?;
    let report = finished.report;
    let good = report.statements.failed == 0
        && report.lost_writes == 0
        && report.unread_keys == 0
        && report.wrong_answers == 0
        && report.differing_replicas == Some(0)
        && report.owners_wrong == Some(0);
    ensure!(good && finished.findings.is_empty(), "{}\n{:?}", report.to_string(), finished.findings);
    Ok(report)
}

/// The second from which the load is balanced, by means of five seconds, since single seconds of a
/// busy machine vary. On a quiet machine, `make demo` shows the imbalance second by second.
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

/// The time within which the load must be balanced, in seconds.
const LEVEL_WITHIN_S: usize = 30;

async fn skewed_load_on_one_shard_becomes_level_and_then_nothing_moves(world: &World) -> ScenarioResult {
    let began_ms = evenkeel_host::wall_ms();
    let report = checked_run(world, "mixgraph", 45.0).await?;
    ensure!(level_from(&report).is_some_and(|s| s <= LEVEL_WITHIN_S), "not level in time:\n{}", report.to_string());
    // The load starts within two seconds of the run. The workload does not change, so no range has
    // a reason to move later.
    let operators: Vec<OperatorBody> = world.admin().get("/v1/operators").await?;
    let rest_ms = began_ms + (LEVEL_WITHIN_S as u64 + 5) * 1_000;
    let late = |o: &&OperatorBody| matches!(o.kind, OperatorKind::Move { .. }) && o.created_ms > rest_ms;
    let late: Vec<&OperatorBody> = operators.iter().filter(late).collect();
    ensure!(late.is_empty(), "it did not come to rest:\n{}\n{late:?}", report.to_string());
    Ok(())
}

async fn load_follows_a_jumping_hotspot(world: &World) -> ScenarioResult {
    let report = checked_run(world, "hotspot-jump:20", 40.0).await?;
    // Two hotspots, one after another: the load is balanced at the end of each.
    let bound = LEVEL_FACTOR * report.imbalance_floor * 1.1;
    for end in [20, 40] {
        let last: Vec<f64> = report.imbalance[end - 4..end].iter().flatten().copied().collect();
        let mean = last.iter().sum::<f64>() / last.len().max(1) as f64;
        ensure!(mean <= bound, "imbalance {mean:.2} before second {end}:\n{}", report.to_string());
    }
    Ok(())
}

async fn a_fourth_shard_is_added_and_fills(world: &World) -> ScenarioResult {
    let added = world.cluster.add_shard().await?;
    let report = checked_run(world, "zipf:0.8", 40.0).await?;
    ensure!(report.shards == 4, "{} shards", report.shards);
    ensure!(level_from(&report).is_some_and(|s| s <= LEVEL_WITHIN_S), "not level in time:\n{}", report.to_string());
    let shard = shard(world, added).await?.ok_or_else(|| ScenarioFailure::new("the added shard is gone"))?;
    ensure!(shard.ranges > 0, "nothing came to the added shard: {shard:?}");
    Ok(())
}

async fn a_shard_is_drained_and_removed(world: &World) -> ScenarioResult {
    let drained = ShardId(2);
    let _: serde_json::Value = world.admin().delete(&format!("/v1/shards/{drained}")).await?;
    world
        .until("the drained shard to be removed", Duration::from_secs(120), async || {
            let shards: Vec<ShardBody> = world.admin().get("/v1/shards").await.map_err(|e| e.to_string())?;
            let left = shards.into_iter().find(|s| s.info.id == drained);
            left.map_or(Ok(()), |s| Err(format!("{s:?}")))
        })
        .await?;
    world.cluster.remove_shard(drained)?;
    checked_run(world, "uniform", 10.0).await?;
    world.nothing_is_wrong().await
}

async fn shard(world: &World, id: ShardId) -> Result<Option<ShardBody>, ScenarioFailure> {
    Ok(world.shards().await?.into_iter().find(|s| s.info.id == id))
}
