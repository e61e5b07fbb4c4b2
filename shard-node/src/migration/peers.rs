//! Finding and asking the replicas of another shard.

use evenkeel_protocol::Failure;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{Inspection, ShardReply, ShardRequest};
use evenkeel_rpc::{Connection, RpcError};
use std::net::SocketAddr;
use std::time::Duration;

/// A connection to a replica.
pub type PeerConnection = Connection<ShardRequest, ShardReply>;

/// How long connecting and short requests may take, in milliseconds.
const ASK_MS: u64 = 2_000;

/// Connects to a replica.
pub async fn connect(address: SocketAddr) -> Result<PeerConnection, RpcError> {
    Connection::connect(address, Duration::from_millis(ASK_MS)).await
}

/// One short request to one replica.
pub async fn ask(address: SocketAddr, request: &ShardRequest, bound: Duration) -> Result<ShardReply, RpcError> {
    connect(address).await?.call_within(request, bound).await
}

/// What the replicas of a shard that answer are and know.
pub async fn inspect(shard: &ShardInfo) -> Vec<(SocketAddr, Inspection)> {
    let asked = shard.replicas.values().map(|address| async move {
        let bound = Duration::from_millis(ASK_MS);
        match ask(*address, &ShardRequest::Inspect, bound).await {
            Ok(ShardReply::Inspect(inspection)) => Some((*address, *inspection)),
            _ => None,
        }
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// Asks a shard's leader, whoever that is: follows `NotLeader` and tries every replica once.
pub async fn ask_leader(shard: &ShardInfo, request: &ShardRequest, bound: Duration) -> Option<ShardReply> {
    let mut left: Vec<u64> = shard.replicas.keys().copied().collect();
    let mut next = left.first().copied();
    while let Some(replica) = next {
        left.retain(|other| *other != replica);
        let address = shard.replicas.get(&replica)?;
        next = left.first().copied();
        match ask(*address, request, bound).await {
            Ok(ShardReply::Failed(Failure::NotLeader { leader })) => {
                if let Some(leader) = leader.filter(|leader| left.contains(leader)) {
                    next = Some(leader);
                }
            }
            Ok(reply) => return Some(reply),
            Err(error) => tracing::debug!(%address, %error, "a replica does not answer"),
        }
    }
    None
}
