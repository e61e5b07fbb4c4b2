//! The source's side of a copy. Any replica can stream a copy; followers do it, so that the leader
//! does not bear the cost.
//!
//! Chunks are sent in key order, and between them the changes of keys that are copied already
//! (R21). Before a chunk is read its position is noted. The change stream up to this position is
//! sent first; changes of keys that are not copied yet are dropped. So at any time everything sent
//! is as of one position.
//!
//! The destination reports the items that it has stored, and only a window of items is in flight.
//! Further changes are pending here, where only the last image of each key is kept
//! (`super::pending_changes`), and not in a queue between the two shards.
//!
//! Not done: resuming a copy. A copy that fails is followed by a new attempt from the beginning.

use super::pace::{CHUNK_BYTES, CopyPace, MOST_BYTES};
use super::pending_changes::PendingChanges;
use crate::apply::ApplierRequest;
use crate::apply::{ChangeStream, MAX_STREAM_BYTES, StreamItem, StreamLost};
use crate::replica::ReplicaHandles;
use crate::storage::StoreError;
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{CopyItem, CopyLeft, CopyRequest, ShardReply};
use evenkeel_protocol::{Failure, Key, KeyInterval};
use evenkeel_rpc::Replier;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Rows of a chunk.
const CHUNK_ROWS: usize = 4_096;
/// The highest rate at which chunks are sent, in bytes per second.
const COPY_BYTES_PER_S: f64 = 32e6;
/// Bytes of one item of changes.
const CHANGES_BYTES: usize = 256 << 10;
/// The window in bytes once only changes are sent. It is a part of the pause at the fence.
const CHANGES_WINDOW_BYTES: u64 = 256 << 10;
/// The most items in flight.
const WINDOW_ITEMS: usize = 16;
/// How long a replica may take to reach the start of the change stream, in milliseconds. A slower
/// one is no source.
const LAG_MS: u64 = 5_000;
/// A replica is behind if it has not applied an entry that was decided this long ago, in
/// milliseconds.
const BEHIND_MS: u64 = 10;
/// The interval of empty items, in milliseconds. The destination learns from them that it has
/// caught up.
const IDLE_MS: u64 = 20;
/// The interval at which an idle destination's connection is checked, in milliseconds.
const LOOK_MS: u64 = 100;

/// Why a copy ended early. The destination starts a new attempt.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the destination has gone")]
    Gone,
    #[error("this replica is behind its log")]
    Behind,
    #[error("changes of {0} bytes wait for the destination")]
    TooMuch(usize),
    #[error("the range's table is not known here")]
    NoTable,
    #[error(transparent)]
    StreamLost(#[from] StreamLost),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The copies that a replica streams, with the number of items that their destinations have stored.
#[derive(Debug, Default)]
pub struct Copies(Mutex<CopyTable>);

#[derive(Debug, Default)]
struct CopyTable {
    last: u64,
    taken: BTreeMap<u64, watch::Sender<u64>>,
}

impl Copies {
    fn table(&self) -> MutexGuard<'_, CopyTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> OpenCopy<'_> {
        let mut table = self.table();
        table.last += 1;
        let (sender, taken) = watch::channel(0);
        let number = table.last;
        table.taken.insert(number, sender);
        OpenCopy { copies: self, number, window: Window::new(taken) }
    }

    /// The destination has stored `items` items of a copy. Ignored for a copy that has ended.
    pub fn taken(&self, copy: u64, items: u64) {
        if let Some(taken) = self.table().taken.get(&copy) {
            taken.send_if_modified(|known| {
                let more = items > *known;
                *known = items.max(*known);
                more
            });
        }
    }
}

/// A copy that this replica streams.
struct OpenCopy<'a> {
    copies: &'a Copies,
    number: u64,
    window: Window,
}

impl Drop for OpenCopy<'_> {
    fn drop(&mut self) {
        self.copies.table().taken.remove(&self.number);
    }
}

/// The items in flight to the destination's storage.
struct Window {
    taken: watch::Receiver<u64>,
    /// The number of the oldest item in flight.
    first: u64,
    in_flight: VecDeque<SentItem>,
    bytes: u64,
    pace: CopyPace,
    /// No chunk is read before this time.
    rests_until: Instant,
}

/// An item in flight.
struct SentItem {
    bytes: u64,
    /// The time at which the reading of its rows began, if it is a chunk.
    begun: Option<Instant>,
}

impl Window {
    fn new(taken: watch::Receiver<u64>) -> Window {
        let rests_until = evenkeel_host::now();
        Window { taken, first: 0, in_flight: VecDeque::new(), bytes: 0, pace: CopyPace::default(), rests_until }
    }

    fn follow(&mut self) {
        let taken = *self.taken.borrow_and_update();
        while self.first < taken
            && let Some(item) = self.in_flight.pop_front()
        {
            self.first += 1;
            self.bytes -= item.bytes;
            if let Some(begun) = item.begun {
                self.pace.stored(item.bytes, evenkeel_host::elapsed(begun));
                self.rests_until = evenkeel_host::now() + self.pace.rest();
            }
        }
    }

    /// Whether another item may be sent. An item that is larger than the window is sent alone.
    fn has_room(&self, max_bytes: u64) -> bool {
        self.in_flight.is_empty() || (self.bytes < max_bytes && self.in_flight.len() < WINDOW_ITEMS)
    }

    fn sent(&mut self, bytes: usize, begun: Option<Instant>) {
        self.in_flight.push_back(SentItem { bytes: bytes as u64, begun });
        self.bytes += bytes as u64;
    }
}

/// Streams a copy and the changes of its range, until the fence, the move's cancellation, or the
/// end of the connection.
pub async fn serve_copy(
    shared: ReplicaHandles,
    requests: mpsc::Sender<ApplierRequest>,
    copies: &Copies,
    request: CopyRequest,
    mut replier: Replier<ShardReply>,
) {
    let (reply, stream) = oneshot::channel();
    let asked = requests.send(ApplierRequest::OpenStream(request.operator, reply)).await;
    let changes = match (asked, stream.await) {
        (Ok(()), Ok(Some(changes))) => changes,
        _ => {
            // This replica may not have applied the move's opening yet.
            let reason = format!("operator {} is not open on this replica", request.operator);
            return replier.reply(&ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 50 })).await;
        }
    };
    match stream_copy(&shared, changes, copies.open(), &mut replier).await {
        Ok(last) => replier.reply(&ShardReply::Copy(last)).await,
        Err(CopyError::Gone) => {}
        Err(error) => {
            tracing::info!(operator = %request.operator, %error, "a copy ended early");
            let failure = Failure::Busy { reason: error.to_string(), retry_after_ms: 50 };
            replier.reply(&ShardReply::Failed(failure)).await;
        }
    }
}

/// Streams a copy, and returns its last item.
async fn stream_copy(
    shared: &ReplicaHandles,
    mut stream: ChangeStream,
    copy: OpenCopy<'_>,
    replier: &mut Replier<ShardReply>,
) -> Result<CopyItem, CopyError> {
    let bound = Duration::from_millis(LAG_MS);
    // From here on a snapshot contains every change that precedes the change stream.
    evenkeel_host::timeout(bound, shared.progress.reached(stream.start)).await.map_err(|_| CopyError::Behind)?;
    let window = stream.window.take().map(|window| window.pieces(CHANGES_BYTES)).unwrap_or_default();
    let start = stream.start;
    let mut copying = Copying {
        shared,
        replier,
        next: Some(stream.movement.interval.start.clone()),
        stream,
        copy,
        pending: PendingChanges::default(),
        sent_to: start,
        sent_at: evenkeel_host::now(),
        end: None,
        decided: (evenkeel_host::now(), 0),
    };
    let opened = CopyItem::Opened { copy: copying.copy.number, position: start };
    copying.put(opened, 0, None).await?;
    // The range's part of the retry window is sent first, as changes without rows (R14).
    for piece in window.into_iter().filter(|_| !deliberate(Bug::AnswersStayBehind)) {
        copying.room(MOST_BYTES).await?;
        let (bytes, left) = (piece.len(), copying.left());
        copying.put(CopyItem::Changes { from: start, to: start, changes: vec![piece], left }, bytes, None).await?;
    }
    copying.chunks().await?;
    copying.changes().await
}

struct Copying<'a> {
    shared: &'a ReplicaHandles,
    replier: &'a mut Replier<ShardReply>,
    stream: ChangeStream,
    copy: OpenCopy<'a>,
    /// Changes of the stream that have not been sent.
    pending: PendingChanges,
    /// The cursor: the key at which the next chunk begins; `None` once all chunks are sent.
    next: Option<Key>,
    /// The position that the last item reached.
    sent_to: u64,
    sent_at: Instant,
    /// The fence or the cancellation, once the change stream has delivered it.
    end: Option<CopyItem>,
    /// A time at least [`BEHIND_MS`] ago, and the decided position at that time.
    decided: (Instant, u64),
}

impl Copying<'_> {
    /// Sends an item. It is in flight until the destination reports that it is stored.
    async fn put(&mut self, item: CopyItem, bytes: usize, begun: Option<Instant>) -> Result<(), CopyError> {
        self.copy.window.sent(bytes, begun);
        self.sent_at = evenkeel_host::now();
        if self.replier.item(&ShardReply::Copy(item)).await { Ok(()) } else { Err(CopyError::Gone) }
    }

    /// Waits until the window has room, and takes changes from the stream meanwhile.
    async fn room(&mut self, max_bytes: u64) -> Result<(), CopyError> {
        loop {
            self.copy.window.follow();
            if self.copy.window.has_room(max_bytes) {
                return Ok(());
            }
            self.wait(evenkeel_host::now() + Duration::from_millis(LOOK_MS)).await?;
        }
    }

    /// Waits until the next chunk may be read, and takes changes from the stream meanwhile. Once
    /// the range is fenced it waits only for room in the window, because no shard serves the range.
    async fn turn(&mut self, not_before: Instant) -> Result<(), CopyError> {
        loop {
            match self.end {
                Some(CopyItem::Cancelled) => return Ok(()),
                Some(_) => return self.room(MOST_BYTES).await,
                None => {}
            }
            self.copy.window.follow();
            let window = &self.copy.window;
            let (now, due) = (evenkeel_host::now(), not_before.max(window.rests_until));
            let has_room = window.has_room(window.pace.window_bytes());
            if has_room && now >= due {
                return Ok(());
            }
            let look = now + Duration::from_millis(LOOK_MS);
            self.wait(if has_room { due.min(look) } else { look }).await?;
        }
    }

    /// Waits for a report of stored items, for a change, or for `until`.
    async fn wait(&mut self, until: Instant) -> Result<(), CopyError> {
        let item = tokio::select! {
            biased;
            changed = self.copy.window.taken.changed() => changed.map(|()| None).map_err(|_| CopyError::Gone)?,
            item = self.stream.next() => Some(item?),
            () = evenkeel_host::sleep_until(until.into()) => None,
        };
        if let Some(item) = item {
            self.absorb(item)?;
        }
        if self.replier.is_closed() { Err(CopyError::Gone) } else { Ok(()) }
    }

    fn absorb(&mut self, item: StreamItem) -> Result<(), CopyError> {
        match item {
            StreamItem::Entry { position, changes } => self.pending.absorb(position, changes),
            StreamItem::Fenced { position, epoch, held_since_us } => {
                self.end = Some(CopyItem::Fenced { position, epoch, held_since_us });
            }
            StreamItem::Cancelled => self.end = Some(CopyItem::Cancelled),
        }
        let waiting = self.pending.size_bytes();
        if waiting > MAX_STREAM_BYTES {
            metrics::counter!("evenkeel_change_streams_overflowed_total").increment(1);
            return Err(CopyError::TooMuch(waiting));
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), CopyError> {
        while let Some(item) = self.stream.try_next()? {
            self.absorb(item)?;
        }
        Ok(())
    }

    /// What this replica knows and the destination has not stored.
    fn left(&mut self) -> CopyLeft {
        self.copy.window.follow();
        let behind = self.stream.reached() < self.decided.1;
        if evenkeel_host::elapsed(self.decided.0) >= Duration::from_millis(BEHIND_MS) {
            self.decided = (evenkeel_host::now(), self.shared.log.status().decided.0);
        }
        let window = &self.copy.window;
        let items = window.in_flight.len() as u64;
        CopyLeft { items, bytes: window.bytes + self.pending.size_bytes() as u64, behind }
    }

    /// Sends the first piece of the pending changes up to position `to`; `false` if there are none.
    async fn send_piece(&mut self, to: u64) -> Result<bool, CopyError> {
        let next = self.next.clone();
        let is_copied = |key: &Key| next.as_ref().is_none_or(|next| key < next);
        let Some(piece) = self.pending.take(to, is_copied, CHANGES_BYTES) else { return Ok(false) };
        let mut changes = piece.entries;
        if deliberate(Bug::NoTail) {
            changes.clear();
        }
        let left = self.left();
        self.put(CopyItem::Changes { from: self.sent_to, to: piece.to, changes, left }, piece.bytes, None).await?;
        self.sent_to = piece.to;
        Ok(true)
    }

    /// Sends every row of the range, and between chunks the changes of the rows that are sent.
    async fn chunks(&mut self) -> Result<(), CopyError> {
        let table = self.shared.state().table(self.stream.movement.table).cloned().ok_or(CopyError::NoTable)?;
        let end = self.stream.movement.interval.end.clone();
        let mut due = evenkeel_host::now();
        while let Some(start) = self.next.clone()
            && self.end != Some(CopyItem::Cancelled)
        {
            self.turn(due).await?;
            // Noted before the snapshot is taken, so the snapshot contains at least this position.
            // The change stream has delivered everything up to it.
            let position = self.shared.progress.watermark().max(self.sent_to);
            self.drain()?;
            while self.send_piece(position).await? {
                self.room(MOST_BYTES).await?;
            }
            let begun = evenkeel_host::now();
            // The snapshot is released at once: an open snapshot keeps PostgreSQL from removing
            // dead rows.
            let mut snapshot = self.shared.snapshots.take().await?;
            let rest = KeyInterval::new(start, end.clone());
            let chunk = snapshot.chunk(&table, &rest, CHUNK_ROWS, CHUNK_BYTES).await?;
            self.shared.snapshots.give_back(snapshot).await;
            let bytes = chunk.rows.data.len();
            self.next = if chunk.last { None } else { chunk.covered.end.clone() };
            let item = CopyItem::Chunk {
                interval: chunk.covered,
                from: self.sent_to,
                position,
                rows: chunk.rows,
                checksum: chunk.checksum,
                last: chunk.last,
            };
            self.put(item, bytes, Some(begun)).await?;
            self.sent_to = position;
            // A delay is not compensated by a burst.
            due = due.max(evenkeel_host::now()) + Duration::from_secs_f64(bytes as f64 / COPY_BYTES_PER_S);
        }
        Ok(())
    }

    /// Sends the changes of the range until the end of the copy.
    async fn changes(&mut self) -> Result<CopyItem, CopyError> {
        loop {
            // Read before the change stream is drained: everything up to this position comes out of
            // it.
            let reached = self.stream.reached();
            self.drain()?;
            let reached = reached.max(self.sent_to).max(self.pending.last().unwrap_or(0));
            match self.end.take() {
                Some(CopyItem::Cancelled) => return Ok(CopyItem::Cancelled),
                Some(fenced) => return self.finish(reached, fenced).await,
                None => {}
            }
            if self.pending.last().is_some() {
                self.room(CHANGES_WINDOW_BYTES).await?;
                // More changes may have arrived while there was no room.
                let reached = reached.max(self.pending.last().unwrap_or(0));
                self.send_piece(reached).await?;
                continue;
            }
            let idle = self.sent_at + Duration::from_millis(IDLE_MS);
            if evenkeel_host::now() >= idle {
                self.room(CHANGES_WINDOW_BYTES).await?;
                if self.pending.last().is_none() {
                    let left = self.left();
                    self.put(CopyItem::Changes { from: self.sent_to, to: reached, changes: vec![], left }, 0, None)
                        .await?;
                    self.sent_to = reached;
                }
                continue;
            }
            if let Ok(item) = evenkeel_host::timeout_at(idle.into(), self.stream.next()).await {
                self.absorb(item?)?;
            }
        }
    }

    /// The fence has been applied, so the range does not change any more. Sends everything that is
    /// left.
    async fn finish(&mut self, reached: u64, fenced: CopyItem) -> Result<CopyItem, CopyError> {
        let position = match &fenced {
            CopyItem::Fenced { position, .. } => *position,
            _ => 0,
        };
        let to = reached.max(position);
        while self.send_piece(to).await? {}
        if self.sent_to < to {
            let left = self.left();
            self.put(CopyItem::Changes { from: self.sent_to, to, changes: vec![], left }, 0, None).await?;
            self.sent_to = to;
        }
        Ok(fenced)
    }
}
