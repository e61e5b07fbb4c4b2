//! Replacement of replicas while clients write and read: a replica with a lost disk, a replica with
//! a lost machine, and the placement driver's replicas, from three to five and to three others. No
//! write may be lost or applied twice, no read may be stale, and in the end all replicas are equal.
//! A log stays within its cap although a replica never returns.

use evenkeel_local_cluster::{ClusterOptions, ProcessId};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::ShardBody;
use evenkeel_tests::counters::Counters;
use evenkeel_tests::world::PATIENCE;
use evenkeel_tests::{ScenarioFailure, ScenarioResult, World, ensure, scenarios};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The cap of a shard's log, in bytes.
const LOG_CAP_BYTES: u64 = 16 << 20;

fn main() -> ExitCode {
    evenkeel_tests::run(
        options,
        scenarios![
            a_shard_s_replica_loses_its_disk,
            a_shard_s_replica_is_replaced,
            the_leader_of_a_shard_is_replaced,
            a_placement_driver_s_replica_loses_its_disk,
            the_placement_driver_grows_and_shrinks,
            a_log_keeps_its_cap_though_a_replica_is_gone,
        ],
    )
}

fn options(executable: PathBuf) -> ClusterOptions {
    let mut options = ClusterOptions { shards: 1, ..ClusterOptions::new(executable) };
    options.balancer.insert("enabled".into(), false.into());
    options.shard_node.insert("log_cap_bytes".into(), (LOG_CAP_BYTES as i64).into());
    options
}

async fn counting(world: &World, table: &str) -> Result<Counters, ScenarioFailure> {
    let mut counters = Counters::make(world, table, 1, 200, 200).await?;
    counters.start(world, 4, 20).await?;
    Ok(counters)
}

async fn shard(world: &World) -> Result<ShardBody, ScenarioFailure> {
    world.shards().await?.pop().ok_or_else(|| ScenarioFailure::new("there is no shard"))
}

/// A replica that does not lead.
async fn follower(world: &World) -> Result<u64, ScenarioFailure> {
    let leader = world.leader(1).await?;
    let shard = shard(world).await?;
    let other = shard.info.replicas.keys().copied().find(|replica| *replica != leader);
    other.ok_or_else(|| ScenarioFailure::new(format!("{shard:?}")))
}

// Log rule 10: a wiped replica must not rejoin its configuration. Its shard adds it again by
// itself, and sends it the state.
async fn a_shard_s_replica_loses_its_disk(world: &World) -> ScenarioResult {
    let counters = counting(world, "wiped").await?;
    let replica = follower(world).await?;
    world.cluster.wipe(ProcessId::ShardNode(1, replica))?;
    counters.wait_for_answers(200).await?;
    world.whole().await?;
    // The replica is a voter: with it, another one can fail.
    let leader = world.leader(1).await?;
    world.kill(ProcessId::ShardNode(1, leader))?;
    counters.wait_for_answers(200).await?;
    world.cluster.restart(ProcessId::ShardNode(1, leader))?;
    world.whole().await?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn a_shard_s_replica_is_replaced(world: &World) -> ScenarioResult {
    let replica = follower(world).await?;
    replace(world, "replaced", replica).await
}

async fn the_leader_of_a_shard_is_replaced(world: &World) -> ScenarioResult {
    let leader = world.leader(1).await?;
    replace(world, "replaced_leader", leader).await
}

async fn replace(world: &World, table: &str, gone: u64) -> ScenarioResult {
    let counters = counting(world, table).await?;
    world.cluster.lose(ProcessId::ShardNode(1, gone))?;
    counters.wait_for_answers(100).await?;
    let new = world.cluster.start_replica(ShardId(1))?;
    world
        .until("the new replica to be admitted", PATIENCE, async || {
            let body = json!({ "remove": gone, "add": new });
            let answer = world.admin().post::<_, Value>("/v1/shards/1/replicas", &body).await;
            answer.map_err(|e| e.to_string())
        })
        .await?;
    world
        .until("the table to name the new replica", PATIENCE, async || {
            let shard = shard(world).await.map_err(|e| e.to_string())?;
            let named = shard.info.replicas.contains_key(&new.replica) && !shard.info.replicas.contains_key(&gone);
            named.then_some(()).ok_or_else(|| format!("{shard:?}"))
        })
        .await?;
    world.whole().await?;
    counters.wait_for_answers(200).await?;
    // The new replica is a voter, and can lead.
    let id = ProcessId::ShardNode(1, new.replica);
    world.transfer_leadership(1, new.replica).await?;
    counters.wait_for_answers(200).await?;
    world.kill(id)?;
    counters.wait_for_answers(100).await?;
    world.cluster.restart(id)?;
    world.whole().await?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

async fn members(world: &World) -> Result<Vec<u64>, String> {
    let body: Value = world.admin().get("/v1/members").await.map_err(|e| e.to_string())?;
    Ok(body["members"].as_array().into_iter().flatten().filter_map(|m| m["replica"].as_u64()).collect())
}

/// Repeats the request until the placement driver has these replicas.
async fn change_members(world: &World, body: &Value, wanted: &[u64]) -> ScenarioResult {
    world
        .until(&format!("the placement driver to have the replicas {wanted:?}"), PATIENCE, async || {
            // The leadership may end during the request. Then the request is repeated.
            let answer = world.admin().post::<_, Value>("/v1/members", body).await;
            let found = members(world).await?;
            if answer.is_ok() && found == wanted { Ok(()) } else { Err(format!("{found:?}, {answer:?}")) }
        })
        .await
}

/// Waits until every replica is ready, that is, has the state.
async fn drivers_ready(world: &World, addresses: &[String]) -> ScenarioResult {
    world
        .until("every replica of the placement driver to be ready", PATIENCE, async || {
            for address in addresses {
                world.admin().is_ready(&format!("http://{address}")).await?;
            }
            Ok(())
        })
        .await
}

async fn the_placement_driver_grows_and_shrinks(world: &World) -> ScenarioResult {
    let counters = counting(world, "drivers").await?;
    let before = world.ranges("drivers").await?;
    let (fourth, fifth) = (world.cluster.start_placement_driver()?, world.cluster.start_placement_driver()?);
    let began = evenkeel_host::now();
    change_members(world, &json!({ "add": [fourth, fifth] }), &[1, 2, 3, 4, 5]).await?;
    eprintln!("three became five in {} ms", evenkeel_host::elapsed(began).as_millis());
    drivers_ready(world, &[fourth.rest.to_string(), fifth.rest.to_string()]).await?;
    counters.wait_for_answers(100).await?;
    // Five replicas tolerate the loss of two.
    for gone in [1, 2] {
        world.kill(ProcessId::PlacementDriver(gone))?;
    }
    world.placement_driver_leader().await?;
    change_members(world, &json!({ "remove": [1, 2] }), &[3, 4, 5]).await?;
    for gone in [1, 2] {
        world.cluster.lose(ProcessId::PlacementDriver(gone))?;
    }
    // Three replicas tolerate the loss of one. Shards report to replicas that their configuration
    // does not name.
    world.kill(ProcessId::PlacementDriver(4))?;
    world.placement_driver_leader().await?;
    world.whole().await?;
    world.cluster.restart(ProcessId::PlacementDriver(4))?;
    drivers_ready(world, &[fourth.rest.to_string(), fifth.rest.to_string()]).await?;
    // A client that was created with the first three replicas finds the others after all three have
    // been replaced.
    world
        .until("the client to learn of the new replicas", PATIENCE, async || {
            let known = world.client.endpoints();
            let new = [fourth.rest, fifth.rest].map(|address| format!("http://{address}"));
            if new.iter().all(|url| known.contains(url)) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await?;
    world.kill(ProcessId::PlacementDriver(3))?;
    world.client.refresh().await?;
    world.cluster.restart(ProcessId::PlacementDriver(3))?;
    world.placement_driver_leader().await?;
    let after = world.ranges("drivers").await?;
    ensure!(before.len() == after.len(), "{before:?} became {after:?}");
    ensure!(before[0].route == after[0].route, "{before:?} became {after:?}");
    world.client.refresh().await?;
    counters.wait_for_answers(100).await?;
    counters.finish().await?;
    world.nothing_is_wrong().await
}

// Log rule 10, for the placement driver.
async fn a_placement_driver_s_replica_loses_its_disk(world: &World) -> ScenarioResult {
    let leader = world.placement_driver_leader().await?;
    let found = members(world).await?;
    let other = found.iter().copied().find(|replica| *replica != leader);
    let lost = other.ok_or_else(|| ScenarioFailure::new(format!("{found:?}")))?;
    let epoch = async || -> Result<u64, ScenarioFailure> {
        let body: Value = world.admin().get("/v1/members").await?;
        body["epoch"].as_u64().ok_or_else(|| ScenarioFailure::new(body.to_string()))
    };
    let before = epoch().await?;
    world.cluster.wipe(ProcessId::PlacementDriver(lost))?;
    world
        .until("a new epoch that lets it in", PATIENCE, async || {
            let now = epoch().await.map_err(|e| e.to_string())?;
            if now > before { Ok(()) } else { Err(format!("epoch {now}")) }
        })
        .await?;
    // The replica is a voter: with it, the leader can fail.
    let leader = world.placement_driver_leader().await?;
    world
        .until("it to be heard of", PATIENCE, async || {
            let status: Value = world.admin().get("/v1/status").await.map_err(|e| e.to_string())?;
            let peers = status["log"]["peers"].as_array().cloned().unwrap_or_default();
            let whole = peers.len() == 2 && peers.iter().all(|peer| peer["connected"] == true);
            if whole { Ok(()) } else { Err(status.to_string()) }
        })
        .await?;
    if leader != lost {
        world.kill(ProcessId::PlacementDriver(leader))?;
        world.placement_driver_leader().await?;
        world.whole().await?;
        world.cluster.restart(ProcessId::PlacementDriver(leader))?;
    }
    // A replica that is behind would send an older table to the next scenario's clients.
    let urls = world.admin().urls().iter().map(|url| url.trim_start_matches("http://").to_string());
    drivers_ready(world, &urls.collect::<Vec<_>>()).await?;
    world.nothing_is_wrong().await
}

/// Bytes of the files of a shard's replica's log.
fn log_bytes(world: &World, replica: u64) -> Result<u64, ScenarioFailure> {
    let folder = world.cluster.data_dir(ProcessId::ShardNode(1, replica)).unwrap_or_default().join("log");
    let files = std::fs::read_dir(&folder).map_err(|e| ScenarioFailure::new(format!("{}: {e}", folder.display())))?;
    // A segment may be deleted meanwhile.
    let of_log = |file: &std::fs::DirEntry| file.file_name().to_string_lossy().ends_with(".log");
    Ok(files.flatten().filter(of_log).filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum())
}

// Log rule 10: a log does not grow without bound after a replica is lost for good, and compaction
// does not wait for its removal.
async fn a_log_keeps_its_cap_though_a_replica_is_gone(world: &World) -> ScenarioResult {
    let gone = follower(world).await?;
    let living: Vec<u64> = shard(world).await?.info.replicas.keys().copied().filter(|r| *r != gone).collect();
    world.create_table("CREATE TABLE bulk (id bigint PRIMARY KEY, filling text NOT NULL)", 1).await?;
    world.kill(ProcessId::ShardNode(1, gone))?;
    let filling = "f".repeat(4_000);
    let began = evenkeel_host::now();
    let mut most = 0;
    let mut written = 0;
    // Twice the cap, in less time than a silent replica is waited for.
    for from in (0..).step_by(50) {
        let rows: Vec<String> = (from..from + 50).map(|id| format!("({id}, '{filling}')")).collect();
        world.client.execute(&format!("INSERT INTO bulk (id, filling) VALUES {}", rows.join(", ")), &[]).await?;
        written += rows.iter().map(|row| row.len() as u64).sum::<u64>();
        for replica in &living {
            most = most.max(log_bytes(world, *replica)?);
        }
        ensure!(
            most <= LOG_CAP_BYTES,
            "a log of {most} bytes, the cap is {LOG_CAP_BYTES}; {written} bytes were written"
        );
        if written > 2 * LOG_CAP_BYTES {
            break;
        }
    }
    eprintln!("{written} bytes in {} ms, the largest log had {most} bytes", evenkeel_host::elapsed(began).as_millis());
    ensure!(evenkeel_host::elapsed(began) < Duration::from_secs(30), "so slow that the silent replica was forgotten");
    // The missed entries are in no log any more: the replica recovers by a copy of the state.
    world.cluster.restart(ProcessId::ShardNode(1, gone))?;
    world.whole().await?;
    world.nothing_is_wrong().await
}
