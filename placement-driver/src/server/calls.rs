//! Asking shards' leaders. Every request sent here is idempotent, so it is simply sent again, to the next replica, until one answers or
//! the time is up.

use evenkeel_protocol::Failure;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, ShardReply, ShardRequest};
use evenkeel_rpc::Connection;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a connection may take, in milliseconds.
const CONNECT_MS: u64 = 500;
/// Connections kept open; addresses beyond that connect again each time.
const MAX_CONNECTIONS: usize = 4096;

type ShardConnection = Connection<ShardRequest, ShardReply>;

/// Connections to shards' replicas.
#[derive(Default)]
pub struct ShardCalls {
    connections: Mutex<HashMap<SocketAddr, ShardConnection>>,
}

/// The order in which replicas are asked: the one thought to lead, then the others.
fn first_to_ask(shard: &ShardInfo, leader: Option<u64>) -> Vec<u64> {
    let hint = leader.filter(|leader| shard.replicas.contains_key(leader));
    hint.into_iter().chain(shard.replicas.keys().copied().filter(|id| Some(*id) != hint)).collect()
}

impl ShardCalls {
    /// Asks the shard's leader, trying each replica at most twice, each for at most `bound`. An error is one sentence; whether the request
    /// was executed is then unknown.
    pub async fn ask(
        &self,
        shard: &ShardInfo,
        leader: Option<u64>,
        request: &ControlRequest,
        bound: Duration,
    ) -> Result<ControlReply, String> {
        let request = ShardRequest::Control(request.clone());
        let mut queue = first_to_ask(shard, leader);
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
                Ok(_) => trouble = format!("shard {}, replica {replica} gave an answer to another question", shard.id),
                Err(error) => trouble = format!("shard {}, replica {replica}: {error}", shard.id),
            }
        }
        Err(trouble)
    }

    async fn call(&self, address: SocketAddr, request: &ShardRequest, bound: Duration) -> Result<ShardReply, String> {
        let connection = match self.held(address) {
            Some(connection) => connection,
            None => {
                let connection = Connection::connect(address, Duration::from_millis(CONNECT_MS))
                    .await
                    .map_err(|error| error.to_string())?;
                let mut held = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
                held.retain(|_, connection| !connection.is_closed());
                if held.len() < MAX_CONNECTIONS {
                    held.insert(address, connection.clone());
                }
                connection
            }
        };
        connection.call_within(request, bound).await.map_err(|error| error.to_string())
    }

    fn held(&self, address: SocketAddr) -> Option<ShardConnection> {
        let held = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&address).filter(|connection| !connection.is_closed()).cloned()
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
        assert_eq!(first_to_ask(&shard, Some(2)), [2, 1, 3]);
        assert_eq!(first_to_ask(&shard, None), [1, 2, 3]);
        assert_eq!(first_to_ask(&shard, Some(9)), [1, 2, 3]);
    }
}
