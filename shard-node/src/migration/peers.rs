//! Requests to the replicas of other shards, and to their leaders.

use evenkeel_protocol::Failure;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{Inspection, ShardReply, ShardRequest};
use evenkeel_rpc::group::{Addresses, Group, GroupProtocol, Patience, ReplyMeaning};
use evenkeel_rpc::{Connection, Pool, RpcError};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
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

/// What the replicas of a shard that answer are and know: those of `shard`, and those that these
/// know of.
pub async fn inspect(shard: &ShardInfo) -> Vec<(SocketAddr, Inspection)> {
    let mut answers = inspect_each(shard.replicas.values().copied()).await;
    let told: BTreeSet<SocketAddr> = answers.iter().flat_map(|(_, answer)| answer.replicas.values().copied()).collect();
    let known: BTreeSet<SocketAddr> = shard.replicas.values().copied().collect();
    answers.extend(inspect_each(told.difference(&known).copied()).await);
    answers
}

async fn inspect_each(addresses: impl Iterator<Item = SocketAddr>) -> Vec<(SocketAddr, Inspection)> {
    let asked = addresses.map(|address| async move { Some((address, inspect_one(address).await?)) });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// What one replica is and knows; `None` if it does not say.
pub async fn inspect_one(address: SocketAddr) -> Option<Inspection> {
    match ask(address, &ShardRequest::Inspect, Duration::from_millis(ASK_MS)).await {
        Ok(ShardReply::Inspect(inspection)) => Some(*inspection),
        _ => None,
    }
}

/// The messages between shards: every reply but [`Failure::NotLeader`] is the leader's.
struct BetweenShards;

impl GroupProtocol for BetweenShards {
    type Request = ShardRequest;
    type Reply = ShardReply;

    fn verdict(reply: &ShardReply) -> ReplyMeaning {
        match reply {
            ShardReply::Failed(Failure::NotLeader { leader }) => ReplyMeaning::NotLeader { leader: *leader },
            _ => ReplyMeaning::Answered,
        }
    }

    fn members_request() -> ShardRequest {
        ShardRequest::Inspect
    }

    fn members(reply: ShardReply) -> Option<Addresses> {
        match reply {
            ShardReply::Inspect(inspection) => Some(inspection.replicas),
            _ => None,
        }
    }
}

/// Connections to the replicas of other shards, for repeated requests to their leaders.
#[derive(Clone)]
pub struct PeerPool(Arc<Pool<ShardRequest, ShardReply>>);

impl Default for PeerPool {
    fn default() -> PeerPool {
        PeerPool(Arc::new(Pool::new(1, Duration::from_millis(ASK_MS))))
    }
}

impl PeerPool {
    /// Has a shard's leader answer an idempotent request; `None` if no replica answers as leader. A
    /// leader that is not in `shard` has replaced another replica and is found through those that
    /// name it. Each replica is asked at most twice, for at most `bound` each time.
    pub async fn ask_leader(&self, shard: &ShardInfo, request: &ShardRequest, bound: Duration) -> Option<ShardReply> {
        let total = bound.saturating_mul(2 * shard.replicas.len() as u32);
        let mut group = Group::<BetweenShards>::new(shard.replicas.clone(), None, self.0.clone());
        group.call(request, Patience { attempt: bound, total }).await.ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::{OperatorId, ShardId};
    use evenkeel_rpc::{Replier, Service};
    use std::collections::BTreeMap;

    /// Replica 4 leads; the others say so. All of them know who the replicas are.
    struct Replica {
        number: u64,
        replicas: BTreeMap<u64, SocketAddr>,
    }

    impl Service for Replica {
        type Request = ShardRequest;
        type Reply = ShardReply;
        type Session = ();

        fn opened(&self, _: SocketAddr) {}

        async fn call(self: Arc<Self>, _: Arc<()>, request: ShardRequest, replier: Replier<ShardReply>) {
            let reply = match request {
                ShardRequest::Inspect => ShardReply::Inspect(Box::new(Inspection {
                    shard: ShardId(1),
                    replica: self.number,
                    replicas: self.replicas.clone(),
                    leads: self.number == 4,
                    leader: Some(4),
                    applied: 0,
                    seeding: false,
                    seeded_bytes: 0,
                    decided: 0,
                    first: 0,
                    postgres_pid: None,
                    ranges: vec![],
                })),
                _ if self.number == 4 => ShardReply::Done,
                _ => ShardReply::Failed(Failure::NotLeader { leader: Some(4) }),
            };
            replier.reply(&reply).await;
        }
    }

    /// Replicas 1 and 2 have been replaced by 4 and 5 since the list was written.
    #[tokio::test]
    async fn a_leader_that_has_taken_somebody_s_place_is_found() {
        let mut listeners = BTreeMap::new();
        for number in 3..=5 {
            listeners.insert(number, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let replicas: BTreeMap<u64, SocketAddr> =
            listeners.iter().map(|(number, listener)| (*number, listener.local_addr().unwrap())).collect();
        for (number, listener) in listeners {
            let service = Arc::new(Replica { number, replicas: replicas.clone() });
            tokio::spawn(evenkeel_rpc::serve(listener, service, std::future::pending()));
        }
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        let old = [(1, nobody), (2, nobody), (3, replicas[&3])].into();
        let shard = ShardInfo { id: ShardId(1), replicas: old };
        let request = ShardRequest::AskResolved { operator: OperatorId(1) };
        let answer = PeerPool::default().ask_leader(&shard, &request, Duration::from_secs(2)).await;
        assert_eq!(answer, Some(ShardReply::Done));
        let answered: BTreeSet<u64> = inspect(&shard).await.iter().map(|(_, answer)| answer.replica).collect();
        assert_eq!(answered, BTreeSet::from([3, 4, 5]));
    }
}
