//! Waiting for conditions of a cluster, each with a deadline.
//!
//! A wait ends early if a process of the cluster dies. A missed deadline is an error that names the
//! condition, the last observation, and the end of the log of the process that the observation
//! names.

use crate::error::ClusterError;
use crate::process_id::ProcessId;
use crate::process_table::ProcessTable;
use evenkeel_client::admin::AdminClient;
use evenkeel_protocol::ShardId;
use evenkeel_protocol::api::ShardBody;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The interval between two checks of a condition, in milliseconds.
const POLL_MS: u64 = 50;
/// The oldest report that counts as current: shards report every 250 ms.
const RECENT: Duration = Duration::from_secs(2);

/// The message SSLRequest of PostgreSQL's protocol: its length, and its number.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// The pause between two checks of a condition.
pub async fn pause() {
    evenkeel_host::sleep(Duration::from_millis(POLL_MS)).await;
}

/// Waits until `look` returns a value; its error is the observation that is reported. Ends early if
/// a process dies.
pub async fn until<T>(
    processes: &ProcessTable,
    condition: &str,
    deadline: Instant,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, ClusterError> {
    let started = evenkeel_host::now();
    loop {
        let seen = match look().await {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if let Some(died) = processes.died() {
            return Err(died);
        }
        if evenkeel_host::now() >= deadline {
            let (condition, seconds) = (condition.to_string(), evenkeel_host::elapsed(started).as_secs_f64());
            return Err(ClusterError::Timeout { condition, seconds, blame: blame(processes, &seen), seen });
        }
        pause().await;
    }
}

/// Waits until every replica of the placement driver is ready by its own account.
pub async fn placement_drivers_ready(
    processes: &ProcessTable,
    admin: &AdminClient,
    deadline: Instant,
) -> Result<(), ClusterError> {
    until(processes, "the placement driver to be ready", deadline, async || {
        for (number, url) in (1u64..).zip(admin.urls()) {
            if let Err(error) = admin.is_ready(url).await {
                return Err(format!("{}: {error}", ProcessId::PlacementDriver(number)));
            }
        }
        Ok(())
    })
    .await
}

/// Waits until the gateway answers a PostgreSQL client's first message.
pub async fn gateway_ready(
    processes: &ProcessTable,
    address: SocketAddr,
    deadline: Instant,
) -> Result<(), ClusterError> {
    until(processes, "the gateway to answer", deadline, async || {
        match evenkeel_host::timeout(RECENT, asks_for_tls(address)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{}: {error}", ProcessId::Gateway)),
            Err(_) => Err(format!("{}: no answer", ProcessId::Gateway)),
        }
    })
    .await
}

/// Asks whether the connection may be encrypted, as most clients do first. Either answer will do.
async fn asks_for_tls(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&SSL_REQUEST).await?;
    match stream.read_u8().await? {
        b'N' | b'S' => Ok(()),
        other => Err(std::io::Error::other(format!("it answered {other}"))),
    }
}

/// Waits until every shard's leader has a report of the last two seconds that lists all of its
/// replicas as connected. The report may be older than this call: after a fault, use
/// [`shards_whole`].
pub async fn shards_ready(
    processes: &ProcessTable,
    admin: &AdminClient,
    deadline: Instant,
) -> Result<(), ClusterError> {
    until(processes, "every shard's leader to report, and to hear from all its replicas", deadline, async || {
        for (shard, replicas) in observe_shards(processes, admin).await?.shards {
            is_whole(&shard, replicas, RECENT)?;
        }
        Ok(())
    })
    .await
}

/// Waits until every shard's leader has all of its replicas connected, by a report made after this
/// call. A replica that was killed or wiped just before the call is therefore not mistaken for a
/// running one.
pub async fn shards_whole(
    processes: &ProcessTable,
    admin: &AdminClient,
    deadline: Instant,
) -> Result<(), ClusterError> {
    let called = evenkeel_host::now();
    let mut first: BTreeMap<ShardId, Instant> = BTreeMap::new();
    until(processes, "every shard's leader to hear from all its replicas, as of now", deadline, async || {
        let look = observe_shards(processes, admin).await?;
        for (shard, replicas) in look.shards {
            is_whole(&shard, replicas, RECENT)?;
            let age = Duration::from_millis(shard.report_age_ms.unwrap_or(u64::MAX));
            // The report arrived between these two times. The second report to arrive after the
            // call was made after the call.
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

/// The placement driver's view of the shards, each with the number of replicas that it should have.
struct ShardsObserved {
    shards: Vec<(ShardBody, usize)>,
    asked: Instant,
    answered: Instant,
}

async fn observe_shards(processes: &ProcessTable, admin: &AdminClient) -> Result<ShardsObserved, String> {
    let asked = evenkeel_host::now();
    let mut seen: Vec<ShardBody> = admin.get("/v1/shards").await.map_err(|e| e.to_string())?;
    let answered = evenkeel_host::now();
    let mut shards = Vec::new();
    for expected in processes.shards() {
        let Some(at) = seen.iter().position(|s| s.info.id == expected.id) else {
            return Err(format!("shard {} is not registered", expected.id));
        };
        shards.push((seen.swap_remove(at), expected.replicas.len()));
    }
    Ok(ShardsObserved { shards, asked, answered })
}

/// Checks that a shard's leader has reported within `fresh` and has all `replicas` connected. The
/// error is the missing part.
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

/// The end of the log of the process that `seen` names, or of the first replica of the shard that
/// it names.
fn blame(processes: &ProcessTable, seen: &str) -> String {
    let ids = processes.ids();
    let named = ids.iter().find(|id| seen.contains(&id.to_string()));
    let of_shard = ids.iter().find(|id| match id {
        ProcessId::ShardNode(shard, _) => seen.contains(&format!("shard {shard}")),
        ProcessId::PlacementDriver(_) | ProcessId::Gateway => false,
    });
    match named.or(of_shard) {
        Some(id) => format!("\nthe end of the log of {id}:\n{}", processes.log_tail(*id, 20)),
        None => String::new(),
    }
}
