//! State transfer: how a replica whose log no longer reaches back far enough is re-seeded by its peers (log rule 10).
//!
//! 1. **Beginning** ([`begin`]). The replica drops what it has and takes a peer's state machine and retry window, at one position P of
//!    the log. In the same transaction it records P, empty tables, and that all rows are missing ([`Missing`]).
//! 2. **Following.** From then on it is an ordinary follower: it applies its log from P + 1 on. Changes of rows that are still
//!    missing are left out. So its log is compacted as ever, and nobody has to keep a log for the length of the transfer.
//! 3. **Rows** (`fetch`). Beside that it asks peers for the missing rows, a piece of about 2 MiB at a time. Each piece is read from a short
//!    snapshot of its own and carries the position that it holds everything up to. It replaces its interval and is taken off
//!    what is missing in one transaction. What is missing is written with every position, so a replica that dies goes on from there,
//!    with any peer.
//! 4. **Whole.** The replica is whole when nothing is missing and it has applied everything that any piece may hold. Until then it
//!    votes, and neither serves nor leads, nor gives anybody its state.
//!
//! Several parts are fetched at once, cut at keys that a sample of the leader's rows gives, and the next piece of a part is asked for while the last
//! is stored. A peer that lags behind its log gives less ([`Pacer`]).
//!
//! **A piece must not be older than what is applied** (R32). Let F be the last position applied when a piece of position Q
//! comes. Changes up to F in the piece's interval have been left out; those behind F will be applied. So the piece must
//! hold everything up to F: Q ≥ F. It may hold more, since an image that is applied again ends at the same row. A piece with Q < F is thrown away and
//! asked for again. So that this is rare, a piece is asked for with a position that it must reach at least, and the replica applies nothing
//! behind that while the request is under way ([`Limit`]).
//!
//! Nothing grows with the size of the shard: a snapshot lives for one piece, at most [`MAX_PIECES`] pieces are in memory.

mod fetch;
mod limit;
mod missing;
mod pacer;
mod serve;

pub use fetch::{Piece, fetch};
pub use limit::{Held, Limit};
pub use missing::Missing;
pub use pacer::Pacer;
pub use serve::{serve_rows, serve_state};

use crate::apply::SavedState;
use crate::config::Config;
use crate::members;
use crate::migration::peers;
use crate::store::{ApplyBatch, Store, StoreError, StoreOperation};
use bytes::{Bytes, BytesMut};
use evenkeel_protocol::shard::{ShardReply, ShardRequest, StateItem};
use evenkeel_replicated_log::{LogHandle, LogIndex, Term};
use std::net::SocketAddr;
use std::time::Duration;

/// Rows of one piece, and its bytes as packed rows. One row may be larger. Each piece costs requests, a snapshot, a transaction: that is little
/// beside megabytes, and much beside kilobytes.
const PIECE_ROWS: usize = 16_384;
const PIECE_BYTES: usize = 2 << 20;
/// Bytes of one message of a stream.
const MESSAGE_BYTES: usize = 1 << 20;
/// The same in a simulation, where tables are small: they must come in pieces all the same.
const SIMULATED_PIECE_ROWS: usize = 3;
/// Pieces that a replica holds in memory at most: asked for, or waiting to be stored.
pub const MAX_PIECES: usize = 8;
/// How long a peer may send nothing, in milliseconds.
const SILENCE_MS: u64 = 15_000;
/// How long a peer may take to say how far it is, in milliseconds.
const ASK_MS: u64 = 2_000;

/// Why a transfer did not come about, or a piece did not; it is tried again.
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

fn lost(error: impl std::fmt::Display) -> TransferError {
    TransferError::Lost(error.to_string())
}

/// Peers that hold everything up to `position`, those that do not lead first: a follower has more time than the leader.
async fn peers_at(config: &Config, log: &LogHandle, position: u64) -> Vec<SocketAddr> {
    // Of the newest epoch that is known: it may be the one that this replica is about to enter.
    let replicas = members::addresses(&log.membership().borrow());
    let others = replicas.into_iter().filter(|(replica, _)| *replica != config.replica);
    let asked = others.map(|(_, address)| async move {
        match peers::ask(address, &ShardRequest::Inspect, Duration::from_millis(ASK_MS)).await {
            Ok(ShardReply::Inspect(peer)) if !peer.seeding && peer.applied >= position => Some((peer.leads, address)),
            _ => None,
        }
    });
    let mut found: Vec<_> = futures::future::join_all(asked).await.into_iter().flatten().collect();
    found.sort();
    found.into_iter().map(|(_, address)| address).collect()
}

/// What a peer has beside its rows, at one position of the log.
struct Beginning {
    index: u64,
    term: u64,
    machine: Bytes,
    window: Bytes,
}

/// Drops what this replica has, and puts a peer's state machine and retry window in its place. All rows are missing then.
///
/// # Errors
/// See [`TransferError`]. Nothing was changed, or everything was dropped: then the position is 0, and this is done again.
pub async fn begin(
    config: &Config,
    log: &LogHandle,
    store: &mut Store,
    trimmed: LogIndex,
) -> Result<(), TransferError> {
    let peers = peers_at(config, log, trimmed.0).await;
    let address = *peers.first().ok_or(TransferError::NoPeer)?;
    let Beginning { index, term, machine, window } = ask_for_beginning(address).await?;
    let saved: SavedState = postcard::from_bytes(&machine).map_err(lost)?;
    let missing = Missing::all(saved.state.tables().map(|table| table.id));
    store.clear().await?;
    let batch = ApplyBatch {
        operations: saved.state.tables().map(|table| StoreOperation::CreateTable(table.clone())).collect(),
        position: index,
        term,
        state: Some(machine),
        seeding: Some(missing.encode()),
        answers: window,
        sync: true,
        ..ApplyBatch::default()
    };
    store.apply(&batch).await?;
    log.installed(LogIndex(index), Term(term)).map_err(lost)?;
    metrics::counter!("evenkeel_seedings_total").increment(1);
    tracing::info!(shard = %config.shard, replica = config.replica, index, from = %address, "is being re-seeded");
    Ok(())
}

async fn ask_for_beginning(address: SocketAddr) -> Result<Beginning, TransferError> {
    let connection = peers::connect(address).await.map_err(lost)?;
    let mut stream = connection.stream(&ShardRequest::State).await.map_err(lost)?;
    let (mut start, mut machine, mut window) = (None, BytesMut::new(), BytesMut::new());
    loop {
        let item = tokio::time::timeout(Duration::from_millis(SILENCE_MS), stream.next()).await;
        let Ok(Some(ShardReply::State(item))) = item else {
            return Err(TransferError::Lost("the stream ended early".into()));
        };
        match (item, start) {
            (StateItem::Start { index, term }, None) => start = Some((index, term)),
            (StateItem::Machine(piece), Some(_)) => machine.extend_from_slice(&piece),
            (StateItem::Window(piece), Some(_)) => window.extend_from_slice(&piece),
            (StateItem::End, Some((index, term))) => {
                return Ok(Beginning { index, term, machine: machine.freeze(), window: window.freeze() });
            }
            _ => return Err(TransferError::Lost("items in the wrong order".into())),
        }
    }
}
