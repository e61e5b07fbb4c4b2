//! `GET /v1/checksums`: whether the replicas of each shard have the same rows, and whether every
//! key has exactly one owner according to the shards' own logs.
//!
//! Not done: a shard that is too large for the time limit is compared only in part. Its leader
//! compares all of it in the background, and `GET /v1/shards` has the result.

use super::failure::ApiFailure;
use super::response::json_with;
use crate::replica::ReplicaHandles;
use evenkeel_protocol::api::DifferenceBody;
use evenkeel_protocol::report::{RangeState, ShardReport};
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::scrub::Compared;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::value::key_text;
use evenkeel_protocol::{KeyInterval, ShardId, TableId, TableSchema};
use futures::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// The time limit for all comparisons of a shard, in milliseconds.
const COMPARE_MS: u64 = 60_000;
/// The time limit for one request to one replica of a shard, in milliseconds.
const CALL_MS: u64 = 30_000;

/// The result for one shard, and the reason if not all of its ranges were compared.
type Found = (ShardId, Compared, Result<(), String>);

/// `GET /v1/checksums`: asks every shard's leader to compare its replicas.
pub(super) async fn get(handles: &ReplicaHandles) -> Result<Response, ApiFailure> {
    if handles.leading().is_none() {
        return Err(ApiFailure::NeedsLeader);
    }
    let leaders = handles.shard_leaders();
    let (shards, tables) = {
        let applied = handles.applied();
        let shards: Vec<ShardInfo> = applied.state.shards.values().map(|shard| shard.info.clone()).collect();
        let ready = applied.state.tables.iter().filter(|(_, table)| table.creating.is_none());
        let tables: BTreeMap<TableId, Arc<TableSchema>> =
            ready.map(|(id, table)| (*id, table.schema.clone())).collect();
        (shards, tables)
    };
    let found = join_all(shards.iter().map(|shard| compare(handles, shard, leaders.get(&shard.id).copied()))).await;
    let reports = join_all(shards.iter().map(|shard| {
        let leader = leaders.get(&shard.id).copied();
        let bound = Duration::from_millis(CALL_MS);
        async move { handles.calls.ask(shard, leader, &ControlRequest::Report, bound).await }
    }));
    let reports: Vec<ShardReport> = reports
        .await
        .into_iter()
        .filter_map(|answer| match answer {
            Ok(ControlReply::Report(report)) => Some(*report),
            _ => None,
        })
        .collect();
    let names = tables.iter().map(|(id, schema)| (*id, schema.name.clone())).collect();
    let mut owners_wrong = owners_wrong(&names, &reports);
    if reports.len() < shards.len() {
        owners_wrong.push("not every shard answered".into());
    }
    let mut body = body(&found, &tables);
    body["owners_wrong"] = json!(owners_wrong);
    Ok(json_with(StatusCode::OK, &body))
}

/// Asks a shard's leader to compare its replicas, piece by piece, until all are compared or the
/// time limit has passed.
async fn compare(handles: &ReplicaHandles, shard: &ShardInfo, leader: Option<u64>) -> Found {
    let deadline = evenkeel_host::now() + Duration::from_millis(COMPARE_MS);
    let mut compared = Compared::default();
    let mut left_behind = true;
    loop {
        let request = ControlRequest::Compare { from: compared.next.clone(), left_behind };
        match handles.calls.ask(shard, leader, &request, Duration::from_millis(CALL_MS)).await {
            Ok(ControlReply::Compared(found)) => compared.add(*found),
            Ok(other) => return (shard.id, compared, Err(format!("{other:?}"))),
            Err(trouble) => return (shard.id, compared, Err(trouble)),
        }
        // Once is enough: it covers all tables of the shard.
        left_behind = false;
        if compared.next.is_none() {
            return (shard.id, compared, Ok(()));
        }
        if evenkeel_host::now() >= deadline {
            let reason = format!("not all of it was compared within {COMPARE_MS} ms");
            return (shard.id, compared, Err(reason));
        }
    }
}

fn body(found: &[Found], tables: &BTreeMap<TableId, Arc<TableSchema>>) -> Value {
    let shards: Vec<Value> = found.iter().map(shard_body).collect();
    let mut differing = Vec::new();
    let mut left_behind = Vec::new();
    for (shard, compared, _) in found {
        for difference in &compared.differences {
            let mut body = json!(DifferenceBody::new(difference, tables.get(&difference.table).map(|t| &**t)));
            body["shard"] = json!(shard);
            differing.push(body);
        }
        for (replica, table, key) in &compared.left_behind {
            let schema = tables.get(table);
            let name = schema.map_or_else(|| table.to_string(), |schema| schema.name.clone());
            let key = schema.map_or_else(|| key.to_hex(), |schema| key_text(&schema.codec(), key));
            left_behind.push(json!({ "shard": shard, "replica": replica, "table": name, "key": key }));
        }
    }
    json!({ "shards": shards, "differing": differing, "left_behind": left_behind })
}

fn shard_body((shard, compared, complete): &Found) -> Value {
    let ranges: Vec<Value> = compared
        .ranges
        .iter()
        .map(|(id, sum)| json!({ "range": id, "rows": sum.rows, "sum": format!("{:016x}", sum.sum) }))
        .collect();
    let silent: Vec<Value> =
        compared.silent.iter().map(|(replica, reason)| json!({ "replica": replica, "reason": reason })).collect();
    let mut body = json!({ "shard": shard, "complete": complete.is_ok(), "ranges": ranges, "not_compared": silent });
    if let Err(trouble) = complete {
        body["error"] = json!(trouble);
    }
    body
}

/// The tables in which some key does not have exactly one owner (invariant 6). A range between its
/// fence and its adoption has none.
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
    use evenkeel_protocol::RangeId;
    use evenkeel_protocol::scrub::{Comparison, Difference, Place, RangeChecksum};

    // Finding F5: the shard's leader names the replica that differs, with the keys.
    #[test]
    fn a_replica_with_other_rows_is_named() {
        let table = TableId(1);
        let interval = KeyInterval::new(key(1), Some(key(2)));
        let difference = |replicas| Difference {
            range: RangeId(1),
            table,
            interval: interval.clone(),
            replicas,
            detail: "replica 1 holds 1 row".into(),
        };
        let mut compared = Compared::default();
        let sums = vec![(RangeId(1), RangeChecksum { rows: 2, sum: 1 })];
        let next = Some(Place { table, key: key(9) });
        let silent = vec![(3, "it is down".into())];
        compared.add(Comparison {
            compared: sums.clone(),
            differences: vec![difference(vec![1])],
            next,
            ..Default::default()
        });
        compared.add(Comparison {
            compared: sums,
            silent,
            left_behind: vec![(2, table, key(7))],
            ..Default::default()
        });
        let schema = Arc::new(crate::balancer::testing::schema("t"));
        let body = body(&[(ShardId(3), compared, Err("late".into()))], &BTreeMap::from([(table, schema)]));
        let expected = json!([{
            "shard": 3, "replicas": [1], "range": 1, "table": "t", "start": [1], "end": [2], "detail": "replica 1 holds 1 row"
        }]);
        assert_eq!(body["differing"], expected);
        assert_eq!(body["left_behind"], json!([{ "shard": 3, "replica": 2, "table": "t", "key": "7" }]));
        let shard = json!([{
            "shard": 3, "complete": false, "error": "late", "not_compared": [{ "replica": 3, "reason": "it is down" }],
            "ranges": [{ "range": 1, "rows": 4, "sum": "0000000000000002" }]
        }]);
        assert_eq!(body["shards"], shard);
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
