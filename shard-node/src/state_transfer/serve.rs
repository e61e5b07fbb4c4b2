//! The peer that gives its state: the state beside the rows, and rows, a piece at a time.

use super::pacer::Pacer;
use super::sizes::{MESSAGE_BYTES, PIECE_BYTES, PIECE_ROWS, SIMULATED_PIECE_ROWS};
use crate::apply::{ApplierRequest, Export};
use crate::replica::ReplicaHandles;
use crate::storage::{PinnedSnapshot, RowsOf, StoreError};
use bytes::Bytes;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::shard::{SeedItem, SeedRequest, ShardReply, StateItem};
use evenkeel_protocol::{Failure, Key, TableSchema};
use evenkeel_rpc::Replier;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a request for rows waits until this replica has applied what it must, in milliseconds.
const REACH_MS: u64 = 5_000;

/// How long a leader waits for the transactions of a table without a key, while others wait for it,
/// in milliseconds.
const DRAIN_MS: u64 = 200;

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("this replica is behind its log")]
    Behind,
    #[error("this replica does not know the table yet")]
    NoTable,
    #[error("the schema has changed meanwhile")]
    Schema,
    #[error("this replica's PostgreSQL is ahead of its state machine")]
    Ahead,
    #[error("the table is being changed, and has no key")]
    Inexact,
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn busy(reason: impl ToString) -> ShardReply {
    ShardReply::Failed(Failure::Busy { reason: reason.to_string(), retry_after_ms: 200 })
}

/// Streams what this replica has beside its rows.
pub async fn serve_state(requests: mpsc::Sender<ApplierRequest>, mut replier: Replier<ShardReply>) {
    let (reply, export) = oneshot::channel();
    let asked = requests.send(ApplierRequest::Export(reply)).await;
    let (Ok(()), Ok(export)) = (asked, export.await) else {
        return replier.reply(&busy("this replica is not ready itself")).await;
    };
    let Export { index, term, machine, window } = export;
    let start = std::iter::once(StateItem::Start { index, term });
    let machine = pieces(machine).map(StateItem::Machine);
    let window = pieces(window).map(StateItem::Window);
    for item in start.chain(machine).chain(window) {
        if !replier.item(&ShardReply::State(item)).await {
            return;
        }
    }
    replier.reply(&ShardReply::State(StateItem::End)).await;
}

/// Streams the first rows of an interval, about a piece of them.
pub async fn serve_rows(shared: ReplicaHandles, pacer: &Pacer, request: SeedRequest, mut replier: Replier<ShardReply>) {
    let (rows, position, holds_to, schema) = match read(&shared, pacer, &request).await {
        Ok(read) => read,
        Err(error) => return replier.reply(&busy(error)).await,
    };
    let RowsOf { covered, rows, last } = rows;
    for piece in pieces(rows.data) {
        if !replier.item(&ShardReply::Seed(SeedItem::Piece(piece))).await {
            return;
        }
    }
    let end = SeedItem::End { covered, width: rows.width, count: rows.count, last, position, holds_to, schema };
    replier.reply(&ShardReply::Seed(end)).await;
}

/// A piece of rows, the position up to which it holds everything, and the one behind which it holds
/// nothing.
async fn read(
    shared: &ReplicaHandles,
    pacer: &Pacer,
    request: &SeedRequest,
) -> Result<(RowsOf, u64, u64, u64), ServeError> {
    let asked = evenkeel_host::now();
    let bound = Duration::from_millis(REACH_MS);
    let reached = shared.progress.reached(request.at_least);
    evenkeel_host::timeout(bound, reached).await.map_err(|_| ServeError::Behind)?;
    let _turn = pacer.turn(|| shared.log.status().decided.0, &shared.progress).await;
    metrics::histogram!("evenkeel_seed_wait_seconds").record(evenkeel_host::elapsed(asked).as_secs_f64());
    let began = evenkeel_host::now();
    if shared.owned_changed.load(Ordering::SeqCst) == u64::MAX {
        // PostgreSQL holds entries that are not applied yet, up to an unknown position.
        return Err(ServeError::Ahead);
    }
    // The rows are of one version of the schema if it is the same before and afterwards.
    let schema = shared.schema_version();
    let table = shared.state().table(request.table).cloned().ok_or(ServeError::NoTable)?;
    let most_rows = if evenkeel_host::simulation().is_some() { SIMULATED_PIECE_ROWS } else { PIECE_ROWS };
    // Noted before the snapshot is taken: the snapshot holds at least this.
    let position = shared.progress.watermark();
    let exact = table.kind == RelationKind::Table && table.key.is_empty();
    let (mut snapshot, position, holds_to) = if exact {
        snapshot_at_exactly(shared, &table, position).await?
    } else {
        let snapshot = shared.snapshots.take().await?;
        // Every entry in PostgreSQL was applied before, so that no later one is in the snapshot.
        (snapshot, position, shared.progress.applied())
    };
    let rows = snapshot.piece(&table, &request.interval, most_rows, PIECE_BYTES).await?;
    shared.snapshots.give_back(snapshot).await;
    if shared.schema_version() != schema || shared.state().schema_version() != schema {
        return Err(ServeError::Schema);
    }
    metrics::histogram!("evenkeel_seed_read_seconds").record(evenkeel_host::elapsed(began).as_secs_f64());
    metrics::counter!("evenkeel_seed_sent_bytes_total").increment(rows.rows.data.len() as u64);
    Ok((rows, position, holds_to, schema))
}

/// A snapshot of a table without a key, and the one position up to which it holds just everything
/// of the table: its changes must not be applied twice (R18).
async fn snapshot_at_exactly(
    shared: &ReplicaHandles,
    table: &TableSchema,
    watermark: u64,
) -> Result<(PinnedSnapshot, u64, u64), ServeError> {
    if shared.log.role().borrow().leading().is_none() {
        // Batches are applied whole, each with its position.
        let snapshot = shared.snapshots.take().await?;
        return match snapshot.reached().await? {
            Some(reached) if reached >= watermark => Ok((snapshot, reached, reached)),
            // It led until now, and has recorded no position since.
            _ => Err(ServeError::Inexact),
        };
    }
    // A leader's transactions commit in any order: none that uses the table is open at the moment
    // of the snapshot.
    let range = shared.state().owner(table.id, &Key::MIN).map(|range| range.id).ok_or(ServeError::NoTable)?;
    let block = shared.latches.block(range).ok_or(ServeError::Inexact)?;
    if !block.drained(Duration::from_millis(DRAIN_MS)).await {
        return Err(ServeError::Inexact);
    }
    let position = shared.progress.applied();
    let snapshot = shared.snapshots.take().await?;
    Ok((snapshot, position, position))
}

/// Slices of at most [`MESSAGE_BYTES`]: a frame has a limit.
fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = bytes.len().min(MESSAGE_BYTES);
        (length > 0).then(|| bytes.split_to(length))
    })
}
