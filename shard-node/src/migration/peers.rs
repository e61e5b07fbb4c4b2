//! Finding and asking the replicas of another shard.

use evenkeel_protocol::Failure;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{Inspection, ShardReply, ShardRequest};
use evenkeel_rpc::{Connection, RpcError};
use std::collections::BTreeSet;
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

/// What the replicas of a shard that answer are and know: those of `shard`, and those that these know of.
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

/// Asks a shard's leader, whoever that is: follows `NotLeader` and tries every replica once. A leader that is not in `shard` has taken
/// somebody's place since that was written down: who names it says where it is.
pub async fn ask_leader(shard: &ShardInfo, request: &ShardRequest, bound: Duration) -> Option<ShardReply> {
    let mut replicas = shard.replicas.clone();
    let mut left: Vec<u64> = replicas.keys().copied().collect();
    let mut next = left.first().copied();
    while let Some(replica) = next {
        left.retain(|other| *other != replica);
        let address = *replicas.get(&replica)?;
        match ask(address, request, bound).await {
            Ok(ShardReply::Failed(Failure::NotLeader { leader })) => {
                if leader.is_some_and(|leader| !replicas.contains_key(&leader))
                    && let Some(inspection) = inspect_one(address).await
                {
                    let more = inspection.replicas.into_iter().filter(|(id, _)| !replicas.contains_key(id));
                    let more: Vec<_> = more.collect();
                    left.extend(more.iter().map(|(id, _)| *id));
                    replicas.extend(more);
                }
                next = leader.filter(|leader| left.contains(leader)).or(left.first().copied());
            }
            Ok(reply) => return Some(reply),
            Err(error) => {
                tracing::debug!(%address, %error, "a replica does not answer");
                next = left.first().copied();
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::{OperatorId, ShardId};
    use evenkeel_rpc::{Replier, Service};
    use std::collections::BTreeMap;
    use std::sync::Arc;

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
        assert_eq!(ask_leader(&shard, &request, Duration::from_secs(2)).await, Some(ShardReply::Done));
        let answered: BTreeSet<u64> = inspect(&shard).await.iter().map(|(_, answer)| answer.replica).collect();
        assert_eq!(answered, BTreeSet::from([3, 4, 5]));
    }
}
