//! State transfer: the state of another replica, when the log no longer reaches back to this
//! replica's position (log rule 10).

use super::handles::ReplicaHandles;
use super::message::LoopMessage;
use crate::snapshot::{self, Snapshot};
use evenkeel_protocol::placement::{PlacementReply, PlacementRequest};
use evenkeel_replicated_log::{LogIndex, Term};
use evenkeel_rpc::Connection;
use std::sync::Arc;
use std::time::Duration;

/// The time limit for opening a connection, in milliseconds.
const CONNECT_MS: u64 = 500;
/// The time limit for receiving the state, in milliseconds.
const FETCH_MS: u64 = 30_000;
/// The pause after a failed state transfer, in milliseconds.
const RETRY_MS: u64 = 500;

/// The state transfer of a replica; at most one is under way.
pub(super) struct StateTransfer {
    handles: Arc<ReplicaHandles>,
    under_way: bool,
}

impl StateTransfer {
    pub(super) fn new(handles: Arc<ReplicaHandles>) -> StateTransfer {
        StateTransfer { handles, under_way: false }
    }

    /// Whether a transfer is under way. No entries are applied meanwhile.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Begins to fetch a state at or after `trimmed`. The result comes as
    /// [`LoopMessage::StateFetched`].
    pub(super) fn begin(&mut self, trimmed: LogIndex, leader: Option<u64>) {
        tracing::info!(%trimmed, "fetching the state from another replica");
        self.under_way = true;
        let handles = self.handles.clone();
        tokio::spawn(async move {
            let fetched = fetch(handles.clone(), trimmed, leader).await;
            if let Err(reason) = &fetched {
                tracing::warn!(reason, "no state could be fetched");
                evenkeel_host::sleep(Duration::from_millis(RETRY_MS)).await;
            }
            // The event loop is gone only when the replica shuts down.
            handles.messages.send(LoopMessage::StateFetched(fetched)).await.ok();
        });
    }

    /// Replaces the applied state by a fetched one, unless this replica is as far already. The
    /// result is the position and the term of the new state.
    pub(super) fn ended(&mut self, fetched: Result<Box<Snapshot>, String>) -> Option<(LogIndex, Term)> {
        self.under_way = false;
        let Snapshot { index, term, state } = *fetched.ok()?;
        let mut applied = self.handles.applied_mut();
        if index <= applied.index {
            return None;
        }
        (applied.state, applied.index, applied.term) = (state, index, term);
        Some((index, term))
    }
}

/// Fetches a state at or after `trimmed` from any other replica, the leader first, and makes it
/// durable here.
async fn fetch(handles: Arc<ReplicaHandles>, trimmed: LogIndex, leader: Option<u64>) -> Result<Box<Snapshot>, String> {
    let me = handles.config.replica;
    let addresses = handles.rpc_addresses();
    let others = addresses.keys().copied().filter(|id| *id != me && Some(*id) != leader);
    let order: Vec<u64> = leader.into_iter().filter(|id| *id != me).chain(others).collect();
    let mut trouble = "there is no other replica".to_string();
    for replica in order {
        let Some(address) = addresses.get(&replica) else { continue };
        match ask(*address).await {
            Ok((index, term, body)) if index >= trimmed => {
                let state = snapshot::decode(&body)?;
                let file = handles.snapshots.clone();
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
        _ => Err("an answer of another kind".into()),
    }
}
