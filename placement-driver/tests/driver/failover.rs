//! Crashes and restarts of placement-driver replicas while operators are under way.

use crate::cluster::{Cluster, bigint_table, eventually};
use reqwest::StatusCode;
use serde_json::json;

/// The leader dies while a move is at the given step. Its successor completes the move, and nothing
/// is done twice.
async fn leader_dies(step: &str) {
    let mut cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    cluster.shards.world().hold_copies = step == "copy";
    cluster.shards.world().hold_switches = step == "switch";
    let (status, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    cluster.at_step(&operator, step).await;
    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    assert_ne!(cluster.leader().await, leader);
    cluster.shards.world().hold_copies = false;
    cluster.shards.world().hold_switches = false;
    assert_eq!(cluster.ended(&operator).await["status"], "done");
    assert_eq!(cluster.shards.world().owner(1), Some(2));
    // The old leader restarts and catches up.
    cluster.revive(leader);
    let url = format!("{}/v1/operators/{}", cluster.url(leader), operator["id"]);
    eventually("the returned replica to know", || async {
        let body: serde_json::Value = cluster.http.get(&url).send().await.ok()?.json().await.ok()?;
        (body["status"] == "done").then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_finishes_a_move_that_was_copying() {
    leader_dies("copy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_finishes_a_move_that_was_switching() {
    leader_dies("switch").await;
}

/// A replica restarts from its snapshot, after which the log need not reach back to the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_replicas_restart_from_their_snapshots() {
    let mut cluster = Cluster::start_with(2, |config| config.snapshot_every_entries = 5).await;
    cluster.create_table(&bigint_table("t")).await;
    for at in 1..=10 {
        let last = if at == 1 { 1 } else { at };
        let (status, operator) = cluster.post(&format!("/v1/ranges/{last}/split"), &json!({ "at": [[at * 10]] })).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{operator}");
        assert_eq!(cluster.ended(&operator).await["status"], "done");
    }
    let before = cluster.get("/v1/routes").await.1;
    for replica in cluster.alive() {
        let dir = &cluster.config(replica).data_dir;
        eventually("a snapshot", || async { dir.join("state.snapshot").exists().then_some(()) }).await;
        cluster.kill(replica).await;
    }
    for replica in 1..=3 {
        cluster.revive(replica);
    }
    eventually("the leader to serve the routes of before", || async {
        let (_, routes) = cluster.get_at(cluster.leader().await, "/v1/routes").await?;
        (routes == before).then_some(())
    })
    .await;
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    assert_eq!(cluster.ended(&operator).await["status"], "done");
    cluster.stop().await;
}

/// A shard that does not answer delays an operator; it does not end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_away_delays_a_move() {
    let cluster = Cluster::start(2).await;
    cluster.create_table(&bigint_table("t")).await;
    cluster.shards.world().deaf.insert(evenkeel_protocol::ShardId(2));
    let (_, operator) = cluster.post("/v1/ranges/1/move", &json!({ "to": 2 })).await;
    cluster.at_step(&operator, "copy").await;
    eventually("the reason", || async {
        // Only the leader knows what an operator waits for.
        let url = format!("{}/v1/operators/{}", cluster.url(cluster.leader().await), operator["id"]);
        let body: serde_json::Value = cluster.http.get(url).send().await.ok()?.json().await.ok()?;
        body["detail"].as_str()?.contains("shard 2").then_some(())
    })
    .await;
    cluster.shards.world().deaf.clear();
    assert_eq!(cluster.ended(&operator).await["status"], "done");
    cluster.stop().await;
}

/// A replica that was away until the log no longer reaches back to it fetches the state from
/// another (log rule 10).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_too_long_fetches_the_state() {
    let mut cluster = Cluster::start_with(2, |config| {
        config.snapshot_every_entries = 1;
        config.log_retention_bytes = 0;
        // Half of this is less than the test writes: the log then waits for no replica.
        config.log_cap_bytes = 1 << 20;
    })
    .await;
    let away = cluster.follower().await;
    cluster.kill(away).await;
    for n in 0..8 {
        let mut schema = bigint_table(&format!("t{n}"));
        let default = "x".repeat(100 << 10);
        schema.create_sql = format!("CREATE TABLE t{n} (id bigint PRIMARY KEY, v text DEFAULT '{default}')");
        cluster.create_table(&schema).await;
    }
    let leader = cluster.leader().await;
    eventually("the log to be compacted", || async {
        let body: serde_json::Value =
            cluster.http.get(format!("{}/v1/status", cluster.url(leader))).send().await.ok()?.json().await.ok()?;
        (body["log"]["first"].as_u64()? > 5).then_some(())
    })
    .await;
    cluster.revive(away);
    eventually("the returned replica to know all tables", || async {
        // Compare with the leader: another follower may still be behind.
        let (_, expected) = cluster.get_at(cluster.leader().await, "/v1/routes").await?;
        let (_, returned) = cluster.get_at(away, "/v1/routes").await?;
        (returned == expected && returned["tables"].as_array()?.len() == 8).then_some(())
    })
    .await;
    // It continues from there: the next entries reach it through the log.
    cluster.create_table(&bigint_table("last")).await;
    eventually("the returned replica to follow", || async {
        let url = format!("{}/v1/routes/last?key=1", cluster.url(away));
        cluster.http.get(&url).send().await.ok()?.status().is_success().then_some(())
    })
    .await;
    cluster.stop().await;
}
