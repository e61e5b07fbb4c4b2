//! Waiting for conditions, never for time.

use super::{Cluster, ClusterError, ProcessId};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::ShardBody;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often a condition is looked at, in milliseconds.
const POLL_MS: u64 = 50;
/// The oldest report that counts as current: shards report every 250 ms.
const FRESH: Duration = Duration::from_secs(2);

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

/// Waits until every shard's leader has reported lately and hears from all of its replicas. A report may be older than this call:
/// after a fault, ask [`shards_whole`].
pub async fn shards_ready(cluster: &Cluster, deadline: Instant) -> Result<(), ClusterError> {
    until(cluster, "every shard's leader to report, and to hear from all its replicas", deadline, async || {
        for (shard, replicas) in look_at_shards(cluster).await?.shards {
            is_whole(&shard, replicas, FRESH)?;
        }
        Ok(())
    })
    .await
}

/// Waits until every shard's leader hears from all of its replicas, as of after this call. A replica that was killed, or lost its
/// disk, just before is not taken for one that is there because nobody has reported since.
pub async fn shards_whole(cluster: &Cluster, deadline: Instant) -> Result<(), ClusterError> {
    let called = Instant::now();
    let mut first: BTreeMap<ShardId, Instant> = BTreeMap::new();
    until(cluster, "every shard's leader to hear from all its replicas, as of now", deadline, async || {
        let look = look_at_shards(cluster).await?;
        for (shard, replicas) in look.shards {
            is_whole(&shard, replicas, FRESH)?;
            let age = Duration::from_millis(shard.report_age_ms.unwrap_or(u64::MAX));
            // It came between these two. Reports follow one another: one that came after another that came after the call
            // was put together after the call.
            let (earliest, latest) = (look.asked.checked_sub(age), look.answered.checked_sub(age));
            let (Some(earliest), Some(latest)) = (earliest, latest) else {
                return Err(format!("shard {} reported last {} ms ago", shard.info.id, age.as_millis()));
            };
            if earliest <= called {
                return Err(format!("shard {} has not reported since", shard.info.id));
            }
            if earliest <= *first.entry(shard.info.id).or_insert(latest) {
                return Err(format!("shard {} has reported only once since", shard.info.id));
            }
        }
        Ok(())
    })
    .await
}

/// What the placement driver knows of the shards, with how many replicas each should have.
struct Look {
    shards: Vec<(ShardBody, usize)>,
    asked: Instant,
    answered: Instant,
}

async fn look_at_shards(cluster: &Cluster) -> Result<Look, String> {
    let asked = Instant::now();
    let mut seen: Vec<ShardBody> = cluster.rest().get("/v1/shards").await.map_err(|e| e.to_string())?;
    let answered = Instant::now();
    let mut shards = Vec::new();
    for expected in cluster.shards() {
        let Some(at) = seen.iter().position(|s| s.info.id == expected.id) else {
            return Err(format!("shard {} is not registered", expected.id));
        };
        shards.push((seen.swap_remove(at), expected.replicas.len()));
    }
    Ok(Look { shards, asked, answered })
}

/// Whether a shard's leader has reported within `fresh` and hears from all `replicas`; what is missing otherwise.
pub fn is_whole(shard: &ShardBody, replicas: usize, fresh: Duration) -> Result<(), String> {
    let id = shard.info.id;
    let Some(leader) = shard.leader else {
        return Err(format!("shard {id} has no leader"));
    };
    match shard.report_age_ms {
        None => return Err(format!("shard {id} has not reported")),
        Some(age) if u128::from(age) > fresh.as_millis() => {
            return Err(format!("shard {id} reported last {age} ms ago"));
        }
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
