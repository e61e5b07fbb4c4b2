//! State transfer: how a replica whose log no longer reaches back far enough gets whole again (log rule 10).
//!
//! A peer exports its state machine, its retry window and a snapshot of its PostgreSQL, all at one place in the log; the replica drops
//! what it has, takes that in, and goes on from there. Until then it neither serves nor leads. If it is interrupted its position is 0,
//! and it starts again.

use crate::apply::{Export, Request, SavedState};
use crate::config::Config;
use crate::members;
use crate::migration::peers;
use crate::store::{ApplyBatch, Store, StoreError, StoreOperation};
use bytes::Bytes;
use evenkeel_protocol::rows::take_value;
use evenkeel_protocol::shard::{ShardReply, ShardRequest, StateItem};
use evenkeel_protocol::{Failure, KeyInterval, RowBatch};
use evenkeel_replicated_log::{LogHandle, LogIndex, Term};
use evenkeel_rpc::Replier;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Rows and bytes sent at a time.
const PIECE_ROWS: usize = 5_000;
const PIECE_BYTES: usize = 1 << 20;
/// How long a peer may send nothing, in milliseconds.
const SILENCE_MS: u64 = 15_000;

/// Why a transfer did not come about; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No peer answers, or none is ahead.
    #[error("no replica of this shard can give its state")]
    NoPeer,
    /// The stream ended early or made no sense.
    #[error("the transfer was lost: {0}")]
    Lost(String),
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Streams this replica's state to a peer.
pub async fn serve_state(requests: mpsc::Sender<Request>, mut replier: Replier<ShardReply>) {
    let (reply, export) = oneshot::channel();
    let asked = requests.send(Request::Export(reply)).await;
    let (Ok(()), Ok(export)) = (asked, export.await) else {
        let reason = "this replica is not ready itself".to_string();
        return replier.reply(&ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 200 })).await;
    };
    let Export { index, term, state, tables, mut snapshot } = export;
    if !replier.item(&ShardReply::State(StateItem::Start { index, term, state })).await {
        return;
    }
    for table in tables.tables() {
        let mut rest = KeyInterval::ALL;
        loop {
            let chunk = match snapshot.chunk(table, &rest, PIECE_ROWS, PIECE_BYTES).await {
                Ok(chunk) => chunk,
                Err(error) => {
                    let reason = error.to_string();
                    return replier.reply(&ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 200 })).await;
                }
            };
            let item = StateItem::Rows { table: table.id, rows: chunk.rows };
            if !replier.item(&ShardReply::State(item)).await {
                return;
            }
            match chunk.covered.end {
                Some(end) if !chunk.last => rest.start = end,
                _ => break,
            }
        }
    }
    replier.reply(&ShardReply::State(StateItem::End)).await;
}

/// Takes a peer's state in place of this replica's.
pub async fn take_state(
    config: &Config,
    log: &LogHandle,
    store: &mut Store,
    trimmed: LogIndex,
) -> Result<(), TransferError> {
    let mut streams = Vec::new();
    // Of the newest epoch that is known: it may be the one that this replica is about to enter.
    let replicas = members::addresses(&log.membership().borrow());
    for (_, address) in replicas.iter().filter(|(replica, _)| **replica != config.replica) {
        if let Ok(ShardReply::Inspect(peer)) =
            peers::ask(*address, &ShardRequest::Inspect, Duration::from_secs(2)).await
            && peer.applied >= trimmed.0
        {
            // A follower has more time than the leader.
            streams.push((peer.leads, *address));
        }
    }
    streams.sort();
    let (_, address) = streams.first().ok_or(TransferError::NoPeer)?;
    let lost = |error: evenkeel_rpc::RpcError| TransferError::Lost(error.to_string());
    let connection = peers::connect(*address).await.map_err(lost)?;
    let mut stream = connection.stream(&ShardRequest::State).await.map_err(lost)?;
    let mut start = None;
    loop {
        let item = tokio::time::timeout(Duration::from_millis(SILENCE_MS), stream.next()).await;
        let Ok(Some(ShardReply::State(item))) = item else {
            return Err(TransferError::Lost("the stream ended early".into()));
        };
        match (item, &start) {
            (StateItem::Start { index, term, state }, None) => {
                let saved: SavedState = postcard::from_bytes(&state)
                    .map_err(|error| TransferError::Lost(format!("the state cannot be decoded: {error}")))?;
                store.clear().await?;
                let tables = saved.state.tables().map(|table| StoreOperation::CreateTable(table.clone())).collect();
                store.apply(&ApplyBatch { operations: tables, ..ApplyBatch::default() }).await?;
                start = Some((index, term, saved));
            }
            (StateItem::Rows { table, rows }, Some((_, _, saved))) => {
                let table = saved.state.table(table).cloned();
                let table = table.ok_or_else(|| TransferError::Lost("rows of an unknown table".into()))?;
                let operation = StoreOperation::Rows { table, upserts: images(&rows), deletes: Vec::new() };
                store.apply(&ApplyBatch { operations: vec![operation], ..ApplyBatch::default() }).await?;
            }
            (StateItem::End, Some((index, term, saved))) => {
                let (index, term) = (*index, *term);
                let state = SavedState { state: saved.state.clone(), window: Bytes::new() };
                let state = postcard::to_stdvec(&state).map_err(|error| TransferError::Lost(error.to_string()))?;
                let batch = ApplyBatch {
                    position: index,
                    term,
                    state: Some(state.into()),
                    answers: saved.window.clone(),
                    sync: true,
                    ..ApplyBatch::default()
                };
                store.apply(&batch).await?;
                log.installed(LogIndex(index), Term(term)).map_err(|error| TransferError::Lost(error.to_string()))?;
                tracing::info!(shard = %config.shard, replica = config.replica, index, from = %address, "took a peer's state");
                return Ok(());
            }
            _ => return Err(TransferError::Lost("items in the wrong order".into())),
        }
    }
}

/// The rows of a batch, each a slice of it.
fn images(rows: &RowBatch) -> Vec<Bytes> {
    let mut images = Vec::with_capacity(rows.count as usize);
    let mut rest: &[u8] = &rows.data;
    for _ in 0..rows.count {
        let before = rest.len();
        for _ in 0..rows.width {
            if take_value(&mut rest).is_none() {
                return images;
            }
        }
        let start = rows.data.len() - before;
        images.push(rows.data.slice(start..rows.data.len() - rest.len()));
    }
    images
}
