//! The replica that leads a shard, by the account of the replicas themselves, and actions within
//! one leadership.

use crate::failure::{ScenarioFailure, ScenarioResult};
use crate::replica::ReplicaName;
use crate::world::{PATIENCE, World};
use evenkeel_local_cluster::ProcessId;

/// The number of leaderships in which an action of a few seconds should find one that lasts.
const MOST_LEADERSHIPS: usize = 5;

/// Pauses all replicas of a shard but its leader. The leader is asked again afterwards, since
/// leadership may have moved meanwhile.
pub async fn alone(world: &World, shard: u32) -> Result<(ReplicaName, Vec<ProcessId>), ScenarioFailure> {
    world
        .until(&format!("a leader of shard {shard} that others leave alone"), PATIENCE, async || {
            let leader = serving(world, shard).await.map_err(|e| e.to_string())?;
            let numbers = (1..=world.cluster.options().replicas).filter(|number| *number != leader.number);
            let others: Vec<ProcessId> = numbers.map(|number| ProcessId::ShardNode(shard, number)).collect();
            others.iter().try_for_each(|id| world.cluster.pause(*id)).map_err(|e| e.to_string())?;
            if leader.inspect(world).await.is_ok_and(|inspection| inspection.leads) {
                return Ok((leader, others));
            }
            others.iter().try_for_each(|id| world.cluster.resume(*id)).map_err(|e| e.to_string())?;
            Err(format!("{leader:?} led"))
        })
        .await
}

/// The replica that leads a shard and serves, as the replicas themselves say.
pub async fn serving(world: &World, shard: u32) -> Result<ReplicaName, ScenarioFailure> {
    serving_other_than(world, shard, None).await
}

/// Waits until a replica other than `not` leads a shard and serves, and returns it.
pub async fn serving_other_than(
    world: &World,
    shard: u32,
    not: Option<ReplicaName>,
) -> Result<ReplicaName, ScenarioFailure> {
    world
        .until(&format!("another replica than {not:?} to serve shard {shard}"), PATIENCE, async || {
            let mut seen = Vec::new();
            for number in 1..=world.cluster.options().replicas {
                let replica = ReplicaName { shard, number };
                let found = replica.inspect(world).await;
                if found.as_ref().is_ok_and(|i| i.leads) && Some(replica) != not {
                    return Ok(replica);
                }
                seen.push(found.map(|i| (i.leads, i.applied, i.postgres_pid)));
            }
            Err(format!("{seen:?}"))
        })
        .await
}

/// The replica that leads a shard, and the term of its leadership.
pub async fn leadership(world: &World, shard: u32) -> Result<(ReplicaName, u64), ScenarioFailure> {
    world
        .until(&format!("shard {shard} to report"), PATIENCE, async || {
            let leader = serving(world, shard).await.map_err(|e| e.to_string())?;
            Ok((leader, leader.report(world).await?.term))
        })
        .await
}

/// Executes an action that fails if the leadership changes, which may happen at any time on a busy
/// machine. The action is repeated if it failed and the leadership has changed. A failure within
/// one leadership is final.
pub async fn within_one_leadership(
    world: &World,
    shard: u32,
    mut act: impl AsyncFnMut() -> ScenarioResult,
) -> ScenarioResult {
    let mut outcome = Ok(());
    for _ in 0..MOST_LEADERSHIPS {
        let before = leadership(world, shard).await?;
        outcome = act().await;
        if outcome.is_ok() || leadership(world, shard).await? == before {
            return outcome;
        }
        println!("    (leadership has changed: again)");
    }
    outcome
}

/// A replica of the shard that does not lead.
pub async fn follower(world: &World, shard: u32) -> Result<ReplicaName, ScenarioFailure> {
    let leader = serving(world, shard).await?;
    Ok(ReplicaName { shard, number: leader.number % world.cluster.options().replicas + 1 })
}

/// Waits until a replica's PostgreSQL runs, as a process other than `not`, and has all entries that
/// were decided at the first check.
pub async fn caught_up(world: &World, replica: ReplicaName, not: Option<u32>) -> ScenarioResult {
    let mut wanted = None;
    world
        .until(&format!("{} to catch up", replica.id()), PATIENCE, async || {
            let now = replica.inspect(world).await?;
            if now.postgres_pid.is_none() || now.postgres_pid == not {
                return Err(format!("{now:?}"));
            }
            let wanted = *wanted.get_or_insert(now.decided);
            if now.applied >= wanted { Ok(()) } else { Err(format!("{wanted} wanted: {now:?}")) }
        })
        .await
}
