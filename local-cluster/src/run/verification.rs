//! Verification after a run: replicas compared and owners checked, by asking the shards.
//!
//! The placement driver's table is only a hint; the shards' logs are the authority (invariant 6).
//! These rules are checked:
//!
//! - Each piece of each range is the same on all replicas of its shard, at one position of the log
//!   (R31).
//! - No replica has rows that its shard neither owns nor is moving.
//! - Every key of every table is owned by exactly one shard, and the routing table names that
//!   shard.
//!
//! A replica that was killed may still be starting, so requests that get no answer are repeated
//! until a deadline. A wrong answer of a replica is reported at once: waiting does not make
//! replicas more equal.
//!
//! Not done: rows are not compared with what clients wrote. `evenkeel_workloads::replay::verify`
//! does that.

use crate::run::owners::{Owned, wrong_owners};
use crate::shard_calls::{ask_leader, inspect_all};
use evenkeel_client::admin::AdminClient;
use evenkeel_protocol::api::{RoutesBody, ShardBody};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::scrub::Compared;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{Key, ShardId, TableId};
use std::time::{Duration, Instant};

/// How long violations of ownership are checked again, in seconds. A true violation persists.
const OWNERS_S: u64 = 10;
/// The interval between two such checks, in milliseconds.
const OWNERS_AGAIN_MS: u64 = 100;
/// How long replicas may take to start again, in seconds.
const TIMEOUT_S: u64 = 60;
/// The pause before a request without an answer is repeated.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Replicas that differ from the majority, or that were not compared in time.
    pub differing_replicas: u64,
    /// Places in the key spaces of all tables with no owner or several, and ranges whose route does
    /// not name their owner.
    pub owners_wrong: u64,
    /// Intervals of keys in which a replica has rows that its shard neither owns nor is moving.
    pub left_behind: u64,
    /// Ranges compared.
    pub ranges: u64,
    /// The violations in words.
    pub findings: Vec<String>,
}

/// Verifies the cluster. No operator should be running. An error means that the verification could
/// not be made.
pub async fn verify_cluster(admin: &AdminClient) -> Result<Verified, String> {
    let shards: Vec<ShardBody> = admin.get("/v1/shards").await.map_err(|e| e.to_string())?;
    let deadline = evenkeel_host::now() + Duration::from_secs(TIMEOUT_S);
    let mut verified = Verified::default();
    for shard in &shards {
        let compared = compared(&shard.info, deadline).await?;
        verified.ranges += compared.ranges.len() as u64;
        verified.differing_replicas += differing_replicas(&compared);
        verified.findings.extend(differing(shard.info.id, &compared));
        let left = left_behind(shard.info.id, &compared);
        verified.left_behind += left.len() as u64;
        verified.findings.extend(left);
    }
    let wrong = persistent_owner_violations(admin, &shards, deadline).await?;
    verified.owners_wrong = wrong.len() as u64;
    verified.findings.extend(wrong);
    Ok(verified)
}

/// The violations of ownership that persist. A single check can show a state that never existed:
/// shards are asked one after another while a cold range may still be merged or moved, and a
/// replica that is behind may answer for the routes.
async fn persistent_owner_violations(
    admin: &AdminClient,
    shards: &[ShardBody],
    deadline: Instant,
) -> Result<Vec<String>, String> {
    let patience = evenkeel_host::now() + Duration::from_secs(OWNERS_S);
    loop {
        let mut owned = Vec::new();
        for shard in shards {
            owned.extend(owned_by(&shard.info, deadline).await?);
        }
        let routes: RoutesBody = admin.get("/v1/routes").await.map_err(|e| e.to_string())?;
        let wrong = wrong_owners(&routes, &owned);
        if wrong.is_empty() || evenkeel_host::now() >= patience {
            return Ok(wrong);
        }
        admin.pass_over();
        evenkeel_host::sleep(Duration::from_millis(OWNERS_AGAIN_MS)).await;
    }
}

/// The rows that replicas have without owning them, in words. Pure.
pub fn left_behind(shard: ShardId, compared: &Compared) -> Vec<String> {
    let say = |(replica, table, key): &(u64, TableId, Key)| {
        format!(
            "shard {shard}: replica {replica} holds rows of table {table} from {key:?} on, which are not the shard's"
        )
    };
    compared.left_behind.iter().map(say).collect()
}

/// The replicas that differ, and those that were not compared, in words. Pure.
pub fn differing(shard: ShardId, compared: &Compared) -> Vec<String> {
    let differ = compared.differences.iter().map(|difference| {
        let (range, detail) = (difference.range, &difference.detail);
        match &difference.replicas[..] {
            [] => format!("shard {shard}: replicas differ in range {range}, none of them with a majority: {detail}"),
            replicas => {
                let numbers: Vec<String> = replicas.iter().map(u64::to_string).collect();
                format!("shard {shard}: replica {} differs in range {range}: {detail}", numbers.join(", "))
            }
        }
    });
    let silent = compared
        .silent
        .iter()
        .map(|(replica, reason)| format!("shard {shard}: replica {replica} was not compared: {reason}"));
    differ.chain(silent).collect()
}

/// The number of replicas that differ or were not compared. Without a majority, at least one
/// differs. Pure.
pub fn differing_replicas(compared: &Compared) -> u64 {
    let mut replicas = compared.blamed();
    replicas.extend(compared.silent.keys());
    let unknown = compared.differences.iter().any(|difference| difference.replicas.is_empty());
    (replicas.len() as u64).max(u64::from(unknown))
}

/// Makes the shard's leader compare its replicas, piece by piece. A piece that fails is repeated
/// until the deadline.
async fn compared(shard: &ShardInfo, deadline: Instant) -> Result<Compared, String> {
    let mut compared = Compared::default();
    let mut begun = false;
    loop {
        let request = ControlRequest::Compare { from: compared.next.clone(), left_behind: !begun };
        let trouble = match ask_leader(shard, request).await {
            Ok(ControlReply::Compared(found)) if found.silent.is_empty() || evenkeel_host::now() >= deadline => {
                compared.add(*found);
                begun = true;
                if compared.next.is_none() {
                    return Ok(compared);
                }
                continue;
            }
            Ok(ControlReply::Compared(_)) => None,
            Ok(other) => Some(format!("{other:?}")),
            Err(error) => Some(error),
        };
        if evenkeel_host::now() >= deadline
            && let Some(trouble) = trouble
        {
            return Err(format!("the replicas of shard {} are not compared: {trouble}", shard.id));
        }
        evenkeel_host::sleep(RETRY_AFTER).await;
    }
}

/// The ranges that the shard owns by its leader's account.
async fn owned_by(shard: &ShardInfo, deadline: Instant) -> Result<Vec<Owned>, String> {
    loop {
        if let Some(leader) = inspect_all(shard).await.into_values().find(|i| i.leads) {
            let owned = |(range, epoch, table, interval, owned): (_, _, _, _, bool)| {
                owned.then_some(Owned { shard: shard.id, range, table, epoch, interval })
            };
            return Ok(leader.ranges.into_iter().filter_map(owned).collect());
        }
        if evenkeel_host::now() >= deadline {
            return Err(format!("shard {} has no leader to say what it owns", shard.id));
        }
        evenkeel_host::sleep(RETRY_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::KeyInterval;
    use evenkeel_protocol::RangeId;
    use evenkeel_protocol::scrub::Difference;

    #[test]
    fn a_replica_that_differs_or_is_silent_is_counted() {
        let difference = |replicas: &[u64]| Difference {
            range: RangeId(1),
            table: TableId(4),
            interval: KeyInterval::ALL,
            replicas: replicas.to_vec(),
            detail: "they do".into(),
        };
        let mut compared = Compared::default();
        assert_eq!((differing(ShardId(1), &compared).len(), differing_replicas(&compared)), (0, 0));
        compared.differences = vec![difference(&[2]), difference(&[2])];
        assert_eq!(differing(ShardId(1), &compared)[0], "shard 1: replica 2 differs in range 1: they do");
        assert_eq!(differing_replicas(&compared), 1, "in two places");
        compared.silent.insert(3, "down".into());
        assert_eq!((differing(ShardId(1), &compared).len(), differing_replicas(&compared)), (3, 2));
        let unknown = Compared { differences: vec![difference(&[])], ..Compared::default() };
        assert_eq!(differing_replicas(&unknown), 1);
        assert!(differing(ShardId(1), &unknown)[0].contains("none of them with a majority"));
        let stray = Compared { left_behind: vec![(3, TableId(4), Key(vec![7].into()))], ..Compared::default() };
        let said = left_behind(ShardId(1), &stray);
        assert_eq!(said, ["shard 1: replica 3 holds rows of table 4 from Key(07) on, which are not the shard's"]);
    }
}
