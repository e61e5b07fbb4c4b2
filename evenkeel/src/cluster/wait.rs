//! Waiting for conditions, never for time.

use super::{Cluster, ClusterError, ProcessId};
use evenkeel_protocol::rest::ShardBody;
use std::time::{Duration, Instant};

/// How often a condition is looked at, in milliseconds.
const POLL_MS: u64 = 50;
/// The oldest report that counts as current, in milliseconds: shards report every 250 ms.
const FRESH_MS: u64 = 2_000;

/// A short wait between two looks at a condition.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
}

/// Waits until `look` gives a value; its error says what it saw instead. Ends early if a process of the cluster dies.
pub async fn until<T>(
    cluster: &Cluster,
    condition: &str,
    deadline: Instant,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, ClusterError> {
    let started = Instant::now();
    loop {
        let seen = match look().await {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if let Some(died) = cluster.died() {
            return Err(died);
        }
        if Instant::now() >= deadline {
            let (condition, seconds) = (condition.to_string(), started.elapsed().as_secs_f64());
            return Err(ClusterError::Timeout { condition, seconds, blame: blame(cluster, &seen), seen });
        }
        pause().await;
    }
}

/// Waits until every replica of the placement driver says that it is ready.
pub async fn placement_drivers_ready(cluster: &Cluster, deadline: Instant) -> Result<(), ClusterError> {
    until(cluster, "the placement driver to be ready", deadline, async || {
        for (number, url) in (1u64..).zip(cluster.rest().urls()) {
            if let Err(error) = cluster.rest().is_ready(url).await {
                return Err(format!("{}: {error}", ProcessId::PlacementDriver(number)));
            }
        }
        Ok(())
    })
    .await
}

/// Waits until every shard's leader has reported lately and hears from all of its replicas.
pub async fn shards_ready(cluster: &Cluster, deadline: Instant) -> Result<(), ClusterError> {
    until(cluster, "every shard's leader to report, and to hear from all its replicas", deadline, async || {
        let shards: Vec<ShardBody> = cluster.rest().get("/v1/shards").await.map_err(|e| e.to_string())?;
        for expected in cluster.shards() {
            let Some(shard) = shards.iter().find(|s| s.info.id == expected.id) else {
                return Err(format!("shard {} is not registered", expected.id));
            };
            is_whole(shard, expected.replicas.len())?;
        }
        Ok(())
    })
    .await
}

/// Whether a shard's leader has reported lately and hears from all `replicas`; what is missing otherwise.
pub fn is_whole(shard: &ShardBody, replicas: usize) -> Result<(), String> {
    let id = shard.info.id;
    let Some(leader) = shard.leader else {
        return Err(format!("shard {id} has no leader"));
    };
    match shard.report_age_ms {
        None => return Err(format!("shard {id} has not reported")),
        Some(age) if age > FRESH_MS => return Err(format!("shard {id} reported last {age} ms ago")),
        Some(_) => {}
    }
    let connected = shard.replicas_seen.iter().filter(|r| r.connected || r.id == leader).count();
    if connected < replicas {
        return Err(format!("shard {id}'s leader hears from {connected} of {replicas} replicas"));
    }
    Ok(())
}

/// The end of the log of the process that `seen` names, or of the first shard's first replica.
fn blame(cluster: &Cluster, seen: &str) -> String {
    let ids = cluster.process_ids();
    let named = ids.iter().find(|id| seen.contains(&id.to_string()));
    let of_shard = ids.iter().find(|id| match id {
        ProcessId::ShardNode(shard, _) => seen.contains(&format!("shard {shard}")),
        ProcessId::PlacementDriver(_) => false,
    });
    match named.or(of_shard) {
        Some(id) => format!("\nthe end of the log of {id}:\n{}", cluster.log_tail(*id, 20)),
        None => String::new(),
    }
}
