//! Checks after a run, asked of the shards themselves: the placement driver's table is only a hint, the shards' logs are the
//! authority (invariant 6).
//!
//! - Each range's checksum must be the same on all replicas of its shard, taken at one place in the log (R31).
//! - Every key of every table must be owned by exactly one shard, and by the one that the routing table names.
//!
//! A replica that was killed may still be coming back, so what does not answer is asked again until a deadline. What answers
//! wrongly is wrong at once: waiting does not make a replica more equal.

use crate::rest::Rest;
use evenkeel_protocol::rest::{RoutesBody, ShardBody};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, Inspection, ReplicaChecksums, ShardReply, ShardRequest};
use evenkeel_protocol::{KeyInterval, RangeId, ShardId, TableId};
use evenkeel_rpc::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long it is looked again at owners that seem wrong, in seconds: what is wrong stays wrong.
const OWNERS_S: u64 = 10;
/// How soon, in milliseconds.
const OWNERS_AGAIN_MS: u64 = 100;
/// How long replicas may take to come back, in seconds.
const TIMEOUT_S: u64 = 60;
/// How long one answer may take; a checksum reads every row.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long reaching a replica may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A pause before what did not answer is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What the checks found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Replicas whose contents differ from their leader's, or that did not answer in time.
    pub differing_replicas: u64,
    /// Places in the key spaces of all tables with no owner or several, and ranges that the routing table gives to another
    /// shard than their owner.
    pub owners_wrong: u64,
    /// Ranges compared.
    pub ranges: u64,
    /// What is wrong, in words.
    pub findings: Vec<String>,
}

/// One range that a shard says it owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Who says so.
    pub shard: ShardId,
    /// The range.
    pub range: RangeId,
    /// Its table.
    pub table: TableId,
    /// Its keys.
    pub interval: KeyInterval,
}

/// Checks the cluster. Nothing should be moving. An error means that the check could not be made.
pub async fn check(rest: &Rest) -> Result<Checked, String> {
    let shards: Vec<ShardBody> = rest.get("/v1/shards").await.map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(TIMEOUT_S);
    let mut checked = Checked::default();
    for shard in &shards {
        let checksums = shard_checksums(&shard.info, deadline).await?;
        checked.ranges += checksums.iter().find_map(|r| r.ranges.as_ref().ok()).map_or(0, |r| r.len() as u64);
        let differing = differing(&shard.info, &checksums);
        checked.differing_replicas += differing.len() as u64;
        checked.findings.extend(differing);
    }
    let wrong = wrong_in_the_end(rest, &shards, deadline).await?;
    checked.owners_wrong = wrong.len() as u64;
    checked.findings.extend(wrong);
    Ok(checked)
}

/// What is wrong with who owns what, however often one looks. A single look can show what never was: shards are asked one after the
/// other while a cold range may yet be merged or moved, and any replica answers for the routes, also one that is behind.
async fn wrong_in_the_end(rest: &Rest, shards: &[ShardBody], deadline: Instant) -> Result<Vec<String>, String> {
    let patience = Instant::now() + Duration::from_secs(OWNERS_S);
    loop {
        let mut owned = Vec::new();
        for shard in shards {
            owned.extend(owned_by(&shard.info, deadline).await?);
        }
        let routes: RoutesBody = rest.get("/v1/routes").await.map_err(|e| e.to_string())?;
        let wrong = wrong_owners(&routes, &owned);
        if wrong.is_empty() || Instant::now() >= patience {
            return Ok(wrong);
        }
        rest.pass_over();
        tokio::time::sleep(Duration::from_millis(OWNERS_AGAIN_MS)).await;
    }
}

/// The replicas whose checksums differ from the first that answered, in words. Pure.
pub fn differing(shard: &ShardInfo, replicas: &[ReplicaChecksums]) -> Vec<String> {
    let reference = replicas.iter().find_map(|r| Some((r, sorted(r)?)));
    let Some((first, expected)) = reference else {
        return shard.replicas.keys().map(|r| format!("shard {}: replica {r} gave no checksums", shard.id)).collect();
    };
    let judge = |number: &u64| {
        let who = format!("shard {}: replica {number}", shard.id);
        match replicas.iter().find(|r| r.replica == *number) {
            None => Some(format!("{who} gave no checksums")),
            Some(ReplicaChecksums { ranges: Err(reason), .. }) => Some(format!("{who} gave no checksums: {reason}")),
            Some(found) if found.index != first.index => {
                Some(format!("{who} was summed at {}, replica {} at {}", found.index, first.replica, first.index))
            }
            Some(found) if sorted(found).as_ref() != Some(&expected) => {
                let all = sorted(found).unwrap_or_default();
                let range = expected
                    .iter()
                    .find(|pair| !all.contains(pair))
                    .or_else(|| all.iter().find(|p| !expected.contains(p)));
                let range = range.map_or_else(String::new, |(range, _)| format!(" in range {range}"));
                Some(format!("{who} differs from replica {}{range}", first.replica))
            }
            Some(_) => None,
        }
    };
    shard.replicas.keys().filter_map(judge).collect()
}

fn sorted(replica: &ReplicaChecksums) -> Option<Vec<(RangeId, evenkeel_protocol::shard::RangeChecksum)>> {
    let mut ranges = replica.ranges.clone().ok()?;
    ranges.sort_by_key(|(range, _)| *range);
    Some(ranges)
}

/// What is wrong with who owns what, in words. Pure.
pub fn wrong_owners(routes: &RoutesBody, owned: &[Owned]) -> Vec<String> {
    let mut wrong = Vec::new();
    let tables: BTreeSet<TableId> = routes.tables.iter().map(|t| t.id).chain(owned.iter().map(|o| o.table)).collect();
    for table in tables {
        let mut here: Vec<&Owned> = owned.iter().filter(|o| o.table == table).collect();
        here.sort_by(|a, b| a.interval.start.cmp(&b.interval.start));
        if here.first().is_none_or(|first| first.interval.start != KeyInterval::ALL.start) {
            wrong.push(format!("table {table}: nobody owns its first keys"));
        }
        for pair in here.windows(2) {
            let (left, right) = (pair[0], pair[1]);
            if left.interval.end.as_ref() != Some(&right.interval.start) {
                let what =
                    if left.interval.overlaps(&right.interval) { "both own keys" } else { "nobody owns the keys" };
                wrong.push(format!(
                    "table {table}: {what} between range {} on shard {} and range {} on shard {}",
                    left.range, left.shard, right.range, right.shard
                ));
            }
        }
        if here.last().is_some_and(|last| last.interval.end.is_some()) {
            wrong.push(format!("table {table}: nobody owns its last keys"));
        }
    }
    for route in &routes.routes {
        if let Some(owner) = owned.iter().find(|o| o.range == route.range && o.shard != route.shard) {
            wrong.push(format!(
                "range {} is on shard {}, but the routing table says {}",
                route.range, owner.shard, route.shard
            ));
        }
    }
    wrong
}

/// The shard's checksums, asked for until all replicas have answered, or the deadline.
async fn shard_checksums(shard: &ShardInfo, deadline: Instant) -> Result<Vec<ReplicaChecksums>, String> {
    loop {
        let last = match ask_leader(shard, ControlRequest::Checksums).await {
            Ok(ControlReply::Checksums(replicas)) => {
                let whole = replicas.len() == shard.replicas.len() && replicas.iter().all(|r| r.ranges.is_ok());
                if whole || Instant::now() >= deadline {
                    return Ok(replicas);
                }
                None
            }
            Ok(other) => Some(format!("{other:?}")),
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            return Err(format!("shard {} gives no checksums: {}", shard.id, last.unwrap_or_default()));
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// What the shard's leader owns.
async fn owned_by(shard: &ShardInfo, deadline: Instant) -> Result<Vec<Owned>, String> {
    loop {
        if let Some(leader) = inspect_all(shard).await.into_values().find(|i| i.leads) {
            let owned = |(range, _, table, interval, owned): (_, _, _, _, bool)| {
                owned.then_some(Owned { shard: shard.id, range, table, interval })
            };
            return Ok(leader.ranges.into_iter().filter_map(owned).collect());
        }
        if Instant::now() >= deadline {
            return Err(format!("shard {} has no leader to say what it owns", shard.id));
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// What each replica of a shard that answers is and knows, by its number.
pub async fn inspect_all(shard: &ShardInfo) -> BTreeMap<u64, Inspection> {
    let mut answers = BTreeMap::new();
    for (number, address) in &shard.replicas {
        if let Ok(ShardReply::Inspect(inspection)) = call(*address, &ShardRequest::Inspect).await {
            answers.insert(*number, *inspection);
        }
    }
    answers
}

/// Asks the shard's leader, whichever replica that is.
pub async fn ask_leader(shard: &ShardInfo, request: ControlRequest) -> Result<ControlReply, String> {
    let inspections = inspect_all(shard).await;
    let leader = inspections.values().find(|i| i.leads).map(|i| i.replica);
    let leader = leader.ok_or_else(|| format!("shard {} has no leader", shard.id))?;
    let address = *shard.replicas.get(&leader).ok_or_else(|| format!("shard {} has no replica {leader}", shard.id))?;
    match call(address, &ShardRequest::Control(request)).await? {
        ShardReply::Control(reply) => Ok(reply),
        other => Err(format!("shard {}: {other:?}", shard.id)),
    }
}

/// One request to one replica.
pub async fn call(address: SocketAddr, request: &ShardRequest) -> Result<ShardReply, String> {
    let connection = Connection::<ShardRequest, ShardReply>::connect(address, CONNECT_TIMEOUT).await;
    let connection = connection.map_err(|e| e.to_string())?;
    connection.call_within(request, CALL_TIMEOUT).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::rest::RouteBody;
    use evenkeel_protocol::shard::RangeChecksum;
    use evenkeel_protocol::{Epoch, Key};

    fn owned(shard: u32, range: u64, start: &[u8], end: Option<&[u8]>) -> Owned {
        let key = |bytes: &[u8]| Key(bytes.to_vec().into());
        let interval = KeyInterval::new(key(start), end.map(key));
        Owned { shard: ShardId(shard), range: RangeId(range), table: TableId(1), interval }
    }

    fn routes(shard_of_range_2: u32) -> RoutesBody {
        let route = RouteBody {
            range: RangeId(2),
            epoch: Epoch(1),
            table: TableId(1),
            table_name: "t".into(),
            start: None,
            end: None,
            start_hex: "05".into(),
            end_hex: None,
            shard: ShardId(shard_of_range_2),
        };
        RoutesBody {
            version: "1.1".into(),
            complete: true,
            tables: vec![],
            shards: vec![],
            removed_shards: vec![],
            routes: vec![route],
        }
    }

    #[test]
    fn every_key_has_exactly_one_owner_and_a_gap_an_overlap_or_a_wrong_route_is_seen() {
        let whole = [owned(1, 1, b"", Some(b"\x05")), owned(2, 2, b"\x05", None)];
        assert_eq!(wrong_owners(&routes(2), &whole), Vec::<String>::new());
        assert_eq!(wrong_owners(&routes(1), &whole).len(), 1);
        let gap = [owned(1, 1, b"", Some(b"\x04")), owned(2, 2, b"\x05", None)];
        assert!(wrong_owners(&routes(2), &gap)[0].contains("nobody owns the keys between range 1"));
        let twice = [owned(1, 1, b"", Some(b"\x06")), owned(2, 2, b"\x05", None)];
        assert!(wrong_owners(&routes(2), &twice)[0].contains("both own keys"));
        assert_eq!(wrong_owners(&routes(2), &whole[1..]), ["table 1: nobody owns its first keys"]);
        assert_eq!(wrong_owners(&routes(1), &whole[..1]), ["table 1: nobody owns its last keys"]);
    }

    #[test]
    fn a_replica_that_differs_or_is_silent_is_counted() {
        let address = |n| (n, SocketAddr::from(([127, 0, 0, 1], n as u16)));
        let shard = ShardInfo { id: ShardId(1), replicas: (1..=3).map(address).collect() };
        let replica = |replica, sum| ReplicaChecksums {
            replica,
            index: 9,
            ranges: Ok(vec![(RangeId(1), RangeChecksum { rows: 2, sum })]),
        };
        assert!(differing(&shard, &[replica(1, 5), replica(2, 5), replica(3, 5)]).is_empty());
        assert_eq!(
            differing(&shard, &[replica(1, 5), replica(2, 6), replica(3, 5)]),
            ["shard 1: replica 2 differs from replica 1 in range 1"]
        );
        let silent = ReplicaChecksums { replica: 2, index: 0, ranges: Err("down".into()) };
        assert_eq!(differing(&shard, &[replica(1, 5), silent]).len(), 2);
        assert_eq!(differing(&shard, &[]).len(), 3);
        let elsewhere = ReplicaChecksums { index: 10, ..replica(3, 5) };
        assert_eq!(differing(&shard, &[replica(1, 5), replica(2, 5), elsewhere]).len(), 1);
    }
}
