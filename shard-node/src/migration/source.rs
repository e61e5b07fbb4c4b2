//! The source's side of a copy: any replica can stream it; followers do, so that the leader does not pay for it.

use crate::apply::Request;
use crate::apply::tap::{TapItem, TapReader};
use crate::leader::Shared;
use crate::store::StoreError;
use bytes::Bytes;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{CopyItem, CopyRequest, ShardReply};
use evenkeel_protocol::{Failure, KeyInterval};
use evenkeel_rpc::Replier;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Rows and bytes of a chunk: small enough that applying one delays the destination's own statements by little.
const CHUNK_ROWS: usize = 1_000;
const CHUNK_BYTES: usize = 128 << 10;
/// How fast chunks are sent at most, in bytes per second: a copy must not starve the statements beside it.
const COPY_BYTES_PER_S: f64 = 32e6;
/// Bytes of one tail item.
const TAIL_BYTES: usize = 128 << 10;
/// How long a replica may lag behind its own log before it is no use as a source, in milliseconds.
const LAG_MS: u64 = 5_000;
/// Between two tail items that would be empty, in milliseconds: the destination learns from them that it has caught up.
const IDLE_MS: u64 = 20;

/// Why a copy ended early. The destination starts a new attempt.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the destination has gone")]
    Gone,
    #[error("this replica is behind its log")]
    Behind,
    #[error("the tap overflowed or was dropped")]
    TapLost,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Streams a copy and then the tail, until the fence, the move's cancellation, or the end of the connection.
pub async fn serve_copy(
    shared: Shared,
    requests: mpsc::Sender<Request>,
    request: CopyRequest,
    mut replier: Replier<ShardReply>,
) {
    let (reply, tap) = oneshot::channel();
    let asked = requests.send(Request::Tap(request.operator, reply)).await;
    let tap = match (asked, tap.await) {
        (Ok(()), Ok(Some(tap))) => tap,
        _ => {
            // Perhaps this replica has not come to the move's opening yet.
            let reason = format!("operator {} is not open on this replica", request.operator);
            return replier.reply(&ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 50 })).await;
        }
    };
    let mut sender = Sender { replier: &mut replier, started: Instant::now(), sent_bytes: 0.0 };
    match stream(&shared, tap, &mut sender).await {
        Ok(last) => replier.reply(&ShardReply::Copy(last)).await,
        Err(CopyError::Gone) => {}
        Err(error) => {
            tracing::info!(operator = %request.operator, %error, "a copy ended early");
            let failure = Failure::Busy { reason: error.to_string(), retry_after_ms: 50 };
            replier.reply(&ShardReply::Failed(failure)).await;
        }
    }
}

struct Sender<'a> {
    replier: &'a mut Replier<ShardReply>,
    started: Instant,
    sent_bytes: f64,
}

impl Sender<'_> {
    async fn send(&mut self, item: CopyItem) -> Result<(), CopyError> {
        if self.replier.item(&ShardReply::Copy(item)).await { Ok(()) } else { Err(CopyError::Gone) }
    }

    async fn pace(&mut self, bytes: usize) {
        self.sent_bytes += bytes as f64;
        let due = self.started + Duration::from_secs_f64(self.sent_bytes / COPY_BYTES_PER_S);
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Gives the last item.
async fn stream(shared: &Shared, mut tap: TapReader, sender: &mut Sender<'_>) -> Result<CopyItem, CopyError> {
    let bound = Duration::from_millis(LAG_MS);
    // From here on a snapshot holds all that the tap does not bring.
    tokio::time::timeout(bound, shared.progress.reached(tap.start)).await.map_err(|_| CopyError::Behind)?;
    let first = copy_chunks(shared, &tap, sender).await?;
    // The range's part of the retry window goes first, as a tail that changes nothing (R14).
    let window = std::mem::take(&mut tap.window);
    for piece in window.into_iter().filter(|_| !deliberate(Bug::AnswersStayBehind)) {
        sender.send(CopyItem::Changes { from: first, to: first, changes: vec![piece] }).await?;
    }
    tail(tap, first, sender).await
}

/// Sends every row of the range. Gives the first chunk's position, from which the tail must go on.
async fn copy_chunks(shared: &Shared, tap: &TapReader, sender: &mut Sender<'_>) -> Result<u64, CopyError> {
    let state = shared.state();
    let table = state.table(tap.movement.table).cloned().ok_or(CopyError::TapLost)?;
    let mut snapshot = shared.snapshots.take().await?;
    let mut rest: KeyInterval = tap.movement.interval.clone();
    let mut first = None;
    loop {
        // Noted before the snapshot is taken: the snapshot holds at least this.
        let position = shared.progress.watermark();
        snapshot.renew().await?;
        let chunk = snapshot.chunk(&table, &rest, CHUNK_ROWS, CHUNK_BYTES).await?;
        first.get_or_insert(position);
        let bytes = chunk.rows.data.len();
        let (interval, last) = (chunk.covered, chunk.last);
        if let Some(end) = &interval.end {
            rest.start = end.clone();
        }
        sender.send(CopyItem::Chunk { interval, position, rows: chunk.rows, last }).await?;
        if last {
            shared.snapshots.give_back(snapshot).await;
            return Ok(first.unwrap_or(position));
        }
        sender.pace(bytes).await;
    }
}

/// Sends what happens in the range from `from` on, until its end.
async fn tail(mut tap: TapReader, mut from: u64, sender: &mut Sender<'_>) -> Result<CopyItem, CopyError> {
    let mut changes: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    let mut reached = from;
    let mut sent_at = Instant::now();
    loop {
        let item = match tap.try_next() {
            Some(item) => Some(item),
            // Nothing waits: what is gathered goes out.
            None if !changes.is_empty() => None,
            None => match tokio::time::timeout(Duration::from_millis(IDLE_MS), tap.next()).await {
                Ok(Some(item)) => Some(item),
                Ok(None) => return Err(CopyError::TapLost),
                Err(_) => None,
            },
        };
        let mut end = None;
        match item {
            // One that the chunks include goes along too: its changes will be left out, but its answers must come (R14).
            Some(TapItem::Entry { position, entry }) => {
                bytes += entry.len();
                changes.push(entry);
                reached = reached.max(position);
            }
            Some(TapItem::Reached(position)) => reached = reached.max(position),
            Some(TapItem::Fenced { position, epoch, held_since_us }) => {
                reached = reached.max(position);
                end = Some(CopyItem::Fenced { position, epoch, held_since_us });
            }
            Some(TapItem::Cancelled) => return Ok(CopyItem::Cancelled),
            None => {}
        }
        let idle = sent_at.elapsed() >= Duration::from_millis(IDLE_MS);
        if end.is_some() || bytes >= TAIL_BYTES || (tap.is_empty() && (!changes.is_empty() || idle)) {
            let mut changes = std::mem::take(&mut changes);
            if deliberate(Bug::NoTail) {
                changes.clear();
            }
            let item = CopyItem::Changes { from, to: reached, changes };
            sender.send(item).await?;
            (from, bytes, sent_at) = (reached, 0, Instant::now());
        }
        if let Some(end) = end {
            return Ok(end);
        }
    }
}
