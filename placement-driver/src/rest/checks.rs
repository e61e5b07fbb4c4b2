//! `GET /v1/checksums`: whether the replicas of each shard agree, and whether every key has exactly one owner, by the shards' own logs.

use super::{Failure, json_with};
use crate::server::Shared;
use evenkeel_protocol::report::{RangeState, ShardReport};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, RangeChecksum, ReplicaChecksums};
use evenkeel_protocol::{KeyInterval, RangeId, ShardId, TableId};
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a shard may take to sum up all of its rows, in milliseconds.
const CHECKSUMS_MS: u64 = 60_000;

/// Asks every shard's leader.
pub(super) async fn checksums(shared: &Arc<Shared>) -> Result<Response, Failure> {
    if shared.leading().is_none() {
        return Err(Failure::NeedsLeader);
    }
    let leaders = shared.shard_leaders();
    let (shards, tables) = {
        let applied = shared.applied();
        let shards: Vec<ShardInfo> = applied.state.shards.values().map(|shard| shard.info.clone()).collect();
        let ready = applied.state.tables.iter().filter(|(_, table)| table.creating.is_none());
        let tables: BTreeMap<TableId, String> = ready.map(|(id, table)| (*id, table.schema.name.clone())).collect();
        (shards, tables)
    };
    let ask = |request: ControlRequest| {
        let answers = shards.iter().map(|shard| {
            let (leader, request) = (leaders.get(&shard.id).copied(), request.clone());
            async move {
                let bound = Duration::from_millis(CHECKSUMS_MS);
                (shard.id, shared.calls.ask(shard, leader, &request, bound).await)
            }
        });
        join_all(answers)
    };
    let sums = ask(ControlRequest::Checksums).await;
    let reports = ask(ControlRequest::Report).await;
    let reports: Vec<ShardReport> = reports
        .into_iter()
        .filter_map(|(_, answer)| match answer {
            Ok(ControlReply::Report(report)) => Some(*report),
            _ => None,
        })
        .collect();
    let mut owners_wrong = owners_wrong(&tables, &reports);
    if reports.len() < shards.len() {
        owners_wrong.push("not every shard answered".into());
    }
    let bodies: Vec<Value> = sums.iter().map(|(shard, answer)| shard_body(*shard, answer)).collect();
    let differing: Vec<Value> = sums
        .iter()
        .filter_map(|(shard, answer)| match answer {
            Ok(ControlReply::Checksums(replicas)) => Some((shard, differing(replicas))),
            _ => None,
        })
        .flat_map(|(shard, found)| {
            found.into_iter().map(move |(replica, range)| json!({ "shard": shard, "replica": replica, "range": range }))
        })
        .collect();
    let body = json!({ "shards": bodies, "differing": differing, "owners_wrong": owners_wrong });
    Ok(json_with(StatusCode::OK, &body))
}

fn shard_body(shard: ShardId, answer: &Result<ControlReply, String>) -> Value {
    match answer {
        Ok(ControlReply::Checksums(replicas)) => {
            let replicas: Vec<Value> = replicas.iter().map(replica_body).collect();
            json!({ "shard": shard, "replicas": replicas })
        }
        Ok(other) => json!({ "shard": shard, "replicas": [], "error": format!("{other:?}") }),
        Err(trouble) => json!({ "shard": shard, "replicas": [], "error": trouble }),
    }
}

fn replica_body(replica: &ReplicaChecksums) -> Value {
    match &replica.ranges {
        Ok(ranges) => {
            let ranges: Vec<Value> = ranges
                .iter()
                .map(|(id, sum)| json!({ "range": id, "rows": sum.rows, "sum": format!("{:016x}", sum.sum) }))
                .collect();
            json!({ "replica": replica.replica, "index": replica.index, "ranges": ranges })
        }
        Err(reason) => json!({ "replica": replica.replica, "index": replica.index, "error": reason }),
    }
}

/// Replicas and ranges whose sums differ from the first replica that answered, at the same place in the log (R31).
fn differing(replicas: &[ReplicaChecksums]) -> Vec<(u64, RangeId)> {
    let mut answered = replicas.iter().filter_map(|r| Some((r.replica, r.index, r.ranges.as_ref().ok()?)));
    let Some((_, index, first)) = answered.next() else { return Vec::new() };
    let expected: BTreeMap<RangeId, RangeChecksum> = first.iter().copied().collect();
    let mut found = Vec::new();
    for (replica, _, ranges) in answered.filter(|(_, at, _)| *at == index) {
        let ranges: BTreeMap<RangeId, RangeChecksum> = ranges.iter().copied().collect();
        let ids: BTreeSet<RangeId> = expected.keys().chain(ranges.keys()).copied().collect();
        found.extend(ids.into_iter().filter(|id| expected.get(id) != ranges.get(id)).map(|id| (replica, id)));
    }
    found
}

/// Tables whose keys do not each have exactly one owner (invariant 6). While a range is between its fence and its adoption it has none.
fn owners_wrong(tables: &BTreeMap<TableId, String>, reports: &[ShardReport]) -> Vec<String> {
    let mut owned: BTreeMap<TableId, Vec<&KeyInterval>> = tables.keys().map(|id| (*id, Vec::new())).collect();
    for range in reports.iter().flat_map(|report| &report.ranges) {
        if matches!(range.state, RangeState::Owned | RangeState::MovingOut { .. }) {
            owned.entry(range.table).or_default().push(&range.interval);
        }
    }
    let wrong = owned.into_iter().filter(|(_, parts)| !KeyInterval::ALL.is_partitioned_by(parts.iter().copied()));
    wrong
        .map(|(id, parts)| {
            let name = tables.get(&id).map_or("(unknown)", String::as_str);
            format!("table {name}: {} owned ranges do not cover every key exactly once", parts.len())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::testing::key;

    #[test]
    fn a_replica_with_other_rows_is_named() {
        let sum = |sum| RangeChecksum { rows: 1, sum };
        let replica = |replica, index, ranges| ReplicaChecksums { replica, index, ranges };
        let one = (RangeId(1), sum(5));
        let replicas = [
            replica(1, 9, Ok(vec![one, (RangeId(2), sum(6))])),
            replica(2, 9, Ok(vec![one, (RangeId(2), sum(7))])),
            replica(3, 9, Ok(vec![one])),
            replica(4, 8, Ok(vec![])),
            replica(5, 9, Err("asleep".into())),
        ];
        assert_eq!(differing(&replicas), [(2, RangeId(2)), (3, RangeId(2))]);
    }

    #[test]
    fn a_gap_and_a_double_owner_are_seen() {
        let tables = BTreeMap::from([(TableId(1), "t".to_string())]);
        let report = |start: Option<i64>, end: Option<i64>| {
            let interval = KeyInterval::new(start.map_or_else(Default::default, key), end.map(key));
            crate::operators::testing::owned_report(1, 1, RangeId(1), 1, interval)
        };
        assert!(owners_wrong(&tables, &[report(None, Some(5)), report(Some(5), None)]).is_empty());
        assert_eq!(owners_wrong(&tables, &[report(None, Some(5)), report(Some(6), None)]).len(), 1);
        assert_eq!(owners_wrong(&tables, &[report(None, Some(6)), report(Some(5), None)]).len(), 1);
        assert_eq!(owners_wrong(&tables, &[]).len(), 1);
    }
}
