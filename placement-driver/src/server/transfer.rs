//! Fetching another replica's state when the log no longer reaches back to this one's (log rule 10).

use super::shared::Shared;
use crate::snapshot::{self, Snapshot};
use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_replicated_log::{LogIndex, Term};
use evenkeel_rpc::Connection;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take, in milliseconds.
const CONNECT_MS: u64 = 500;
/// How long the state may take to come, in milliseconds.
const FETCH_MS: u64 = 30_000;

/// Fetches a state at or after `trimmed` from any other replica, the leader first, and makes it durable here.
pub(super) async fn fetch(
    shared: Arc<Shared>,
    trimmed: LogIndex,
    leader: Option<u64>,
) -> Result<Box<Snapshot>, String> {
    let me = shared.config.replica;
    let addresses = shared.rpc_addresses();
    let others = addresses.keys().copied().filter(|id| *id != me && Some(*id) != leader);
    let order: Vec<u64> = leader.into_iter().filter(|id| *id != me).chain(others).collect();
    let mut trouble = "there is no other replica".to_string();
    for replica in order {
        let Some(address) = addresses.get(&replica) else { continue };
        match ask(*address).await {
            Ok((index, term, body)) if index >= trimmed => {
                let state = snapshot::decode(&body)?;
                let file = shared.snapshots.clone();
                let written = evenkeel_host::blocking(move || file.write(index, term, &body)).await?;
                written.map_err(|e| e.to_string())?.ok_or("the replica has ended")?;
                return Ok(Box::new(Snapshot { index, term, state }));
            }
            Ok((index, ..)) => trouble = format!("replica {replica} is at {index}, before {trimmed}"),
            Err(error) => trouble = format!("replica {replica}: {error}"),
        }
    }
    Err(trouble)
}

async fn ask(address: std::net::SocketAddr) -> Result<(LogIndex, Term, bytes::Bytes), String> {
    let connection: Connection<PlacementRequest, PlacementReply> =
        Connection::connect(address, Duration::from_millis(CONNECT_MS)).await.map_err(|e| e.to_string())?;
    let reply = connection.call_within(&PlacementRequest::State, Duration::from_millis(FETCH_MS)).await;
    match reply.map_err(|e| e.to_string())? {
        PlacementReply::State { index, term, state } => Ok((LogIndex(index), Term(term), state)),
        _ => Err("an answer to another question".into()),
    }
}
