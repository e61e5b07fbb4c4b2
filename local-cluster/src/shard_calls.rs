//! Requests to single replicas of a shard over RPC.
//!
//! Each call opens a connection of its own, so that the answer says what that replica can do now.
//! Nothing is retried.

use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, Inspection, ShardReply, ShardRequest};
use evenkeel_rpc::Connection;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How long one answer may take. A comparison reads up to 16 MiB of rows on each replica.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connecting to a replica may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The inspection of each replica of a shard that answers, by the replica's number.
pub async fn inspect_all(shard: &ShardInfo) -> BTreeMap<u64, Inspection> {
    let mut answers = BTreeMap::new();
    for (number, address) in &shard.replicas {
        if let Ok(ShardReply::Inspect(inspection)) = call(*address, &ShardRequest::Inspect).await {
            answers.insert(*number, *inspection);
        }
    }
    answers
}

/// Sends a control request to the replica that leads the shard by its own account.
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

/// Sends one request to one replica.
pub async fn call(address: SocketAddr, request: &ShardRequest) -> Result<ShardReply, String> {
    let connection = Connection::<ShardRequest, ShardReply>::connect(address, CONNECT_TIMEOUT).await;
    let connection = connection.map_err(|e| e.to_string())?;
    connection.call_within(request, CALL_TIMEOUT).await.map_err(|e| e.to_string())
}
