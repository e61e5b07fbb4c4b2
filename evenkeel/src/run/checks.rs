//! Checks after a run, asked of the shards themselves: the placement driver's table is only a hint, the shards' logs are the
//! authority (invariant 6).
//!
//! - Each piece of each range must be the same on all replicas of its shard, at one place in the log (R31).
//! - No replica may hold rows that its shard neither owns nor is moving: they were left behind.
//! - Every key of every table must be owned by exactly one shard, and by the one that the routing table names.
//!
//! A replica that was killed may still be coming back, so what does not answer is asked again until a deadline. What answers
//! wrongly is wrong at once: waiting does not make a replica more equal.

use crate::rest::Rest;
use evenkeel_protocol::api::{RouteBody, RoutesBody, ShardBody};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::scrub::Compared;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, Inspection, ShardReply, ShardRequest};
use evenkeel_protocol::{Epoch, Key, KeyInterval, RangeId, ShardId, TableId};
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
/// How long one answer may take; a comparison reads up to 16 MiB of rows on each replica.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long reaching a replica may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A pause before what did not answer is asked again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What the checks found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Replicas that hold something else than most do, or that were not compared in time.
    pub differing_replicas: u64,
    /// Places in the key spaces of all tables with no owner or several, and ranges that the routing table gives to another
    /// shard than their owner.
    pub owners_wrong: u64,
    /// Intervals of keys in which a replica holds rows, and neither owns them nor is moving them.
    pub left_behind: u64,
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
    /// Its epoch there.
    pub epoch: Epoch,
    /// Its keys.
    pub interval: KeyInterval,
}

/// Checks the cluster. Nothing should be moving. An error means that the check could not be made.
pub async fn check(rest: &Rest) -> Result<Checked, String> {
    let shards: Vec<ShardBody> = rest.get("/v1/shards").await.map_err(|e| e.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(TIMEOUT_S);
    let mut checked = Checked::default();
    for shard in &shards {
        let compared = compared(&shard.info, deadline).await?;
        checked.ranges += compared.ranges.len() as u64;
        checked.differing_replicas += differing_replicas(&compared);
        checked.findings.extend(differing(shard.info.id, &compared));
        let left = left_behind(shard.info.id, &compared);
        checked.left_behind += left.len() as u64;
        checked.findings.extend(left);
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

/// The rows that replicas hold without a reason, in words. Pure.
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

/// How many replicas are wrong, or not known to be right. Where no majority says which, one at least is. Pure.
pub fn differing_replicas(compared: &Compared) -> u64 {
    let mut replicas = compared.blamed();
    replicas.extend(compared.silent.keys());
    let unknown = compared.differences.iter().any(|difference| difference.replicas.is_empty());
    (replicas.len() as u64).max(u64::from(unknown))
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
    wrong.extend(routes.routes.iter().filter_map(|route| wrong_route(route, owned)));
    wrong
}

/// What is wrong with a route: it must be exactly what its shard owns. Ranges are named by id, but an id alone proves nothing.
fn wrong_route(route: &RouteBody, owned: &[Owned]) -> Option<String> {
    let Some(known) = route.to_route() else {
        return Some(format!("the route of range {} has a bound that is not hexadecimal", route.range));
    };
    let same = |o: &&Owned| o.table == known.table && o.interval == known.interval;
    let says = format!("the routing table says shard {}, epoch {}", known.shard, known.epoch);
    match owned.iter().find(same) {
        Some(owner) if owner.shard != known.shard || owner.epoch != known.epoch || owner.range != known.range => {
            Some(format!("range {} is on shard {} with epoch {}, but {says}", owner.range, owner.shard, owner.epoch))
        }
        Some(_) => None,
        None => Some(format!("no shard owns a range with the keys of range {}; {says}", known.range)),
    }
}

/// Has the shard's leader compare its replicas, piece by piece; what cannot be compared is tried again until the deadline.
async fn compared(shard: &ShardInfo, deadline: Instant) -> Result<Compared, String> {
    let mut compared = Compared::default();
    let mut begun = false;
    loop {
        let request = ControlRequest::Compare { from: compared.next.clone(), left_behind: !begun };
        let trouble = match ask_leader(shard, request).await {
            Ok(ControlReply::Compared(found)) if found.silent.is_empty() || Instant::now() >= deadline => {
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
        if Instant::now() >= deadline
            && let Some(trouble) = trouble
        {
            return Err(format!("the replicas of shard {} are not compared: {trouble}", shard.id));
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// What the shard's leader owns.
async fn owned_by(shard: &ShardInfo, deadline: Instant) -> Result<Vec<Owned>, String> {
    loop {
        if let Some(leader) = inspect_all(shard).await.into_values().find(|i| i.leads) {
            let owned = |(range, epoch, table, interval, owned): (_, _, _, _, bool)| {
                owned.then_some(Owned { shard: shard.id, range, table, epoch, interval })
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
    use evenkeel_protocol::scrub::Difference;

    fn owned(shard: u32, range: u64, start: &[u8], end: Option<&[u8]>) -> Owned {
        let key = |bytes: &[u8]| Key(bytes.to_vec().into());
        let interval = KeyInterval::new(key(start), end.map(key));
        Owned { shard: ShardId(shard), range: RangeId(range), table: TableId(1), epoch: Epoch(1), interval }
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
        // Breaks if ids alone are compared: the id is another one, the epoch is not the owner's, or nobody owns just these keys.
        let mut other = whole.clone();
        other[1].range = RangeId(9);
        assert_eq!(wrong_owners(&routes(2), &other).len(), 1);
        let mut later = whole.clone();
        later[1].epoch = Epoch(2);
        assert!(
            wrong_owners(&routes(2), &later)[0].contains("with epoch 2, but the routing table says shard 2, epoch 1")
        );
        let cut = [owned(1, 1, b"", Some(b"\x06")), owned(2, 2, b"\x06", None)];
        assert!(wrong_owners(&routes(2), &cut)[0].starts_with("no shard owns a range with the keys of range 2"));
        let gap = [owned(1, 1, b"", Some(b"\x04")), owned(2, 2, b"\x05", None)];
        assert!(wrong_owners(&routes(2), &gap)[0].contains("nobody owns the keys between range 1"));
        let twice = [owned(1, 1, b"", Some(b"\x06")), owned(2, 2, b"\x05", None)];
        assert!(wrong_owners(&routes(2), &twice)[0].contains("both own keys"));
        assert_eq!(wrong_owners(&routes(2), &whole[1..]), ["table 1: nobody owns its first keys"]);
        assert_eq!(wrong_owners(&routes(1), &whole[..1])[0], "table 1: nobody owns its last keys");
    }

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
