//! Requests to the leaders of shards. Every request is idempotent, so a request without an answer
//! is sent again to the next replica, until one answers or the tries are used up.
//!
//! Not done: replicas that joined a shard after its last report are not tried.

use evenkeel_protocol::Failure;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, ShardReply, ShardRequest};
use evenkeel_rpc::Connection;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The time limit for opening a connection, in milliseconds.
const CONNECT_MS: u64 = 500;
/// The maximum number of connections that are kept open. Further addresses connect for each
/// request.
const MAX_CONNECTIONS: usize = 4096;

type ShardConnection = Connection<ShardRequest, ShardReply>;

/// Connections to shards' replicas.
#[derive(Default)]
pub struct ShardCalls {
    connections: Mutex<HashMap<SocketAddr, ShardConnection>>,
}

/// The order in which replicas are asked: the supposed leader, then the others.
fn order(shard: &ShardInfo, leader: Option<u64>) -> Vec<u64> {
    let hint = leader.filter(|leader| shard.replicas.contains_key(leader));
    hint.into_iter().chain(shard.replicas.keys().copied().filter(|id| Some(*id) != hint)).collect()
}

impl ShardCalls {
    /// Asks the shard's leader. Tries each replica at most twice, each for at most `bound`.
    ///
    /// # Errors
    /// One sentence. It is then unknown whether the request was executed.
    pub async fn ask(
        &self,
        shard: &ShardInfo,
        leader: Option<u64>,
        request: &ControlRequest,
        bound: Duration,
    ) -> Result<ControlReply, String> {
        let request = ShardRequest::Control(request.clone());
        let mut queue = order(shard, leader);
        queue.reverse();
        let mut tries_left = 2 * shard.replicas.len();
        let mut trouble = format!("shard {} has no replicas", shard.id);
        while let Some(replica) = queue.pop() {
            let Some(address) = shard.replicas.get(&replica) else { continue };
            if tries_left == 0 {
                break;
            }
            tries_left -= 1;
            match self.call(*address, &request, bound).await {
                Ok(ShardReply::Control(reply)) => return Ok(reply),
                Ok(ShardReply::Failed(Failure::NotLeader { leader: Some(leader) })) if leader != replica => {
                    trouble = format!("shard {}: replica {replica} does not lead, {leader} does", shard.id);
                    queue.retain(|other| *other != leader);
                    queue.push(leader);
                }
                Ok(ShardReply::Failed(failure)) => {
                    trouble = format!("shard {}, replica {replica}: {failure}", shard.id)
                }
                Ok(_) => trouble = format!("shard {}, replica {replica} gave an answer of another kind", shard.id),
                Err(error) => trouble = format!("shard {}, replica {replica}: {error}", shard.id),
            }
        }
        Err(trouble)
    }

    async fn call(&self, address: SocketAddr, request: &ShardRequest, bound: Duration) -> Result<ShardReply, String> {
        let connection = match self.open(address) {
            Some(connection) => connection,
            None => {
                let connection = Connection::connect(address, Duration::from_millis(CONNECT_MS))
                    .await
                    .map_err(|error| error.to_string())?;
                let mut open = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
                open.retain(|_, connection| !connection.is_closed());
                if open.len() < MAX_CONNECTIONS {
                    open.insert(address, connection.clone());
                }
                connection
            }
        };
        connection.call_within(request, bound).await.map_err(|error| error.to_string())
    }

    fn open(&self, address: SocketAddr) -> Option<ShardConnection> {
        let open = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&address).filter(|connection| !connection.is_closed()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::ShardId;

    #[test]
    fn the_leader_is_asked_first_and_everyone_once() {
        let replicas = (1..=3).map(|n| (n, ([127, 0, 0, 1], n as u16).into())).collect();
        let shard = ShardInfo { id: ShardId(1), replicas };
        assert_eq!(order(&shard, Some(2)), [2, 1, 3]);
        assert_eq!(order(&shard, None), [1, 2, 3]);
        assert_eq!(order(&shard, Some(9)), [1, 2, 3]);
    }
}
