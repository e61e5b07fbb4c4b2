//! The source's side of a copy: any replica can stream it; followers do, so that the leader does not pay for it.
//!
//! Chunks go in key order, and between them what has happened to the keys of the chunks before (R21). Before a chunk is read its position
//! is noted; what the tap holds up to there goes out first, and what concerns keys that are not copied yet is dropped. So everything
//! that was sent is as of one position at any time, and what waits here is what the log brings while one chunk is read and sent.
//!
//! The destination says what it has stored, and only a window of items is under way. What happens meanwhile waits here, where only the last
//! image of each key is kept (`super::tail`), and not in a queue between the two.

use super::pace::{CHUNK_BYTES, MOST_BYTES, Pace};
use super::tail::Pending;
use crate::apply::Request;
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
/// How fast chunks are sent at most, in bytes per second.
const COPY_BYTES_PER_S: f64 = 32e6;
/// Bytes of one tail item.
const TAIL_BYTES: usize = 256 << 10;
/// What may be under way to the destination's storage, in bytes, once only changes go: it is part of the pause when the fence comes.
const TAIL_WINDOW_BYTES: u64 = 256 << 10;
/// Items under way at most.
const WINDOW_ITEMS: usize = 16;
/// How long a replica may lag behind its own log before it is no use as a source, in milliseconds.
const LAG_MS: u64 = 5_000;
/// A replica that has not folded what was decided so long ago is behind, in milliseconds.
const BEHIND_MS: u64 = 10;
/// Between two tail items that would be empty, in milliseconds: the destination learns from them that it has caught up.
const IDLE_MS: u64 = 20;
/// How often it is looked whether a destination that stores nothing is still there, in milliseconds.
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

/// The copies that a replica streams: how many items of each the destination has stored.
#[derive(Debug, Default)]
pub struct Copies(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    taken: BTreeMap<u64, watch::Sender<u64>>,
}

impl Copies {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> OpenCopy<'_> {
        let mut inner = self.inner();
        inner.last += 1;
        let (sender, taken) = watch::channel(0);
        let number = inner.last;
        inner.taken.insert(number, sender);
        OpenCopy { copies: self, number, window: Window::new(taken) }
    }

    /// The destination has stored so many items of a copy. One that has ended needs no word of it.
    pub fn taken(&self, copy: u64, items: u64) {
        if let Some(taken) = self.inner().taken.get(&copy) {
            taken.send_if_modified(|known| {
                let more = items > *known;
                *known = items.max(*known);
                more
            });
        }
    }
}

/// One of the copies that a replica streams.
struct OpenCopy<'a> {
    copies: &'a Copies,
    number: u64,
    window: Window,
}

impl Drop for OpenCopy<'_> {
    fn drop(&mut self) {
        self.copies.inner().taken.remove(&self.number);
    }
}

/// What is under way to the destination's storage.
struct Window {
    taken: watch::Receiver<u64>,
    /// The number of the oldest item that is under way.
    first: u64,
    under_way: VecDeque<UnderWay>,
    bytes: u64,
    pace: Pace,
    /// No chunk is read before.
    rests_until: Instant,
}

/// An item that is under way.
struct UnderWay {
    bytes: u64,
    /// When its rows began to be read, if it is a chunk.
    begun: Option<Instant>,
}

impl Window {
    fn new(taken: watch::Receiver<u64>) -> Window {
        let rests_until = Instant::now();
        Window { taken, first: 0, under_way: VecDeque::new(), bytes: 0, pace: Pace::default(), rests_until }
    }

    fn follow(&mut self) {
        let taken = *self.taken.borrow_and_update();
        while self.first < taken
            && let Some(item) = self.under_way.pop_front()
        {
            self.first += 1;
            self.bytes -= item.bytes;
            if let Some(begun) = item.begun {
                self.pace.stored(item.bytes, begun.elapsed());
                self.rests_until = Instant::now() + self.pace.rest();
            }
        }
    }

    /// An item that is longer than the window goes alone.
    fn has_room(&self, max_bytes: u64) -> bool {
        self.under_way.is_empty() || (self.bytes < max_bytes && self.under_way.len() < WINDOW_ITEMS)
    }

    fn sent(&mut self, bytes: usize, begun: Option<Instant>) {
        self.under_way.push_back(UnderWay { bytes: bytes as u64, begun });
        self.bytes += bytes as u64;
    }
}

/// Streams a copy and what happens meanwhile, until the fence, the move's cancellation, or the end of the connection.
pub async fn serve_copy(
    shared: ReplicaHandles,
    requests: mpsc::Sender<Request>,
    copies: &Copies,
    request: CopyRequest,
    mut replier: Replier<ShardReply>,
) {
    let (reply, tap) = oneshot::channel();
    let asked = requests.send(Request::OpenStream(request.operator, reply)).await;
    let tap = match (asked, tap.await) {
        (Ok(()), Ok(Some(tap))) => tap,
        _ => {
            // Perhaps this replica has not come to the move's opening yet.
            let reason = format!("operator {} is not open on this replica", request.operator);
            return replier.reply(&ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 50 })).await;
        }
    };
    match stream(&shared, tap, copies.open(), &mut replier).await {
        Ok(last) => replier.reply(&ShardReply::Copy(last)).await,
        Err(CopyError::Gone) => {}
        Err(error) => {
            tracing::info!(operator = %request.operator, %error, "a copy ended early");
            let failure = Failure::Busy { reason: error.to_string(), retry_after_ms: 50 };
            replier.reply(&ShardReply::Failed(failure)).await;
        }
    }
}

/// Gives the last item.
async fn stream(
    shared: &ReplicaHandles,
    mut tap: ChangeStream,
    copy: OpenCopy<'_>,
    replier: &mut Replier<ShardReply>,
) -> Result<CopyItem, CopyError> {
    let bound = Duration::from_millis(LAG_MS);
    // From here on a snapshot holds all that the tap does not bring.
    tokio::time::timeout(bound, shared.progress.reached(tap.start)).await.map_err(|_| CopyError::Behind)?;
    let window = tap.window.take().map(|window| window.pieces(TAIL_BYTES)).unwrap_or_default();
    let start = tap.start;
    let mut copying = Copying {
        shared,
        replier,
        next: Some(tap.movement.interval.start.clone()),
        tap,
        copy,
        pending: Pending::default(),
        sent_to: start,
        sent_at: Instant::now(),
        end: None,
        decided: (Instant::now(), 0),
    };
    let opened = CopyItem::Opened { copy: copying.copy.number, position: start };
    copying.put(opened, 0, None).await?;
    // The range's part of the retry window goes first, as changes of no rows (R14).
    for piece in window.into_iter().filter(|_| !deliberate(Bug::AnswersStayBehind)) {
        copying.room(MOST_BYTES).await?;
        let (bytes, left) = (piece.len(), copying.left());
        copying.put(CopyItem::Changes { from: start, to: start, changes: vec![piece], left }, bytes, None).await?;
    }
    copying.chunks().await?;
    copying.tail().await
}

struct Copying<'a> {
    shared: &'a ReplicaHandles,
    replier: &'a mut Replier<ShardReply>,
    tap: ChangeStream,
    copy: OpenCopy<'a>,
    /// What has come out of the tap and has not been sent.
    pending: Pending,
    /// The cursor: where the next chunk begins; `None` once all are sent.
    next: Option<Key>,
    /// The position that the last item reached.
    sent_to: u64,
    sent_at: Instant,
    /// The fence or the cancellation, once it has come out of the tap.
    end: Option<CopyItem>,
    /// A moment at least [`BEHIND_MS`] ago, and what was decided then.
    decided: (Instant, u64),
}

impl Copying<'_> {
    /// Sends an item. It counts as under way until the destination says that it is stored.
    async fn put(&mut self, item: CopyItem, bytes: usize, begun: Option<Instant>) -> Result<(), CopyError> {
        self.copy.window.sent(bytes, begun);
        self.sent_at = Instant::now();
        if self.replier.item(&ShardReply::Copy(item)).await { Ok(()) } else { Err(CopyError::Gone) }
    }

    /// Waits until the window has room, and empties the tap meanwhile.
    async fn room(&mut self, max_bytes: u64) -> Result<(), CopyError> {
        loop {
            self.copy.window.follow();
            if self.copy.window.has_room(max_bytes) {
                return Ok(());
            }
            self.wait(Instant::now() + Duration::from_millis(LOOK_MS)).await?;
        }
    }

    /// Waits until the next chunk may be read, and empties the tap meanwhile. Once the range is fenced it waits for nothing but room: nobody
    /// serves the range.
    async fn turn(&mut self, not_before: Instant) -> Result<(), CopyError> {
        loop {
            match self.end {
                Some(CopyItem::Cancelled) => return Ok(()),
                Some(_) => return self.room(MOST_BYTES).await,
                None => {}
            }
            self.copy.window.follow();
            let window = &self.copy.window;
            let (now, due) = (Instant::now(), not_before.max(window.rests_until));
            let has_room = window.has_room(window.pace.window_bytes());
            if has_room && now >= due {
                return Ok(());
            }
            let look = now + Duration::from_millis(LOOK_MS);
            self.wait(if has_room { due.min(look) } else { look }).await?;
        }
    }

    /// Waits for word of what is stored, for the tap, or for `until`.
    async fn wait(&mut self, until: Instant) -> Result<(), CopyError> {
        let item = tokio::select! {
            biased;
            changed = self.copy.window.taken.changed() => changed.map(|()| None).map_err(|_| CopyError::Gone)?,
            item = self.tap.next() => Some(item?),
            () = tokio::time::sleep_until(until.into()) => None,
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
            metrics::counter!("evenkeel_taps_overflowed_total").increment(1);
            return Err(CopyError::TooMuch(waiting));
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), CopyError> {
        while let Some(item) = self.tap.try_next()? {
            self.absorb(item)?;
        }
        Ok(())
    }

    /// What the destination lacks of what is known here.
    fn left(&mut self) -> CopyLeft {
        self.copy.window.follow();
        let behind = self.tap.reached() < self.decided.1;
        if self.decided.0.elapsed() >= Duration::from_millis(BEHIND_MS) {
            self.decided = (Instant::now(), self.shared.log.status().decided.0);
        }
        let window = &self.copy.window;
        let items = window.under_way.len() as u64;
        CopyLeft { items, bytes: window.bytes + self.pending.size_bytes() as u64, behind }
    }

    /// Sends the first piece of what waits up to position `to`; `false` if nothing does.
    async fn send_piece(&mut self, to: u64) -> Result<bool, CopyError> {
        let next = self.next.clone();
        let is_copied = |key: &Key| next.as_ref().is_none_or(|next| key < next);
        let Some(piece) = self.pending.take(to, is_copied, TAIL_BYTES) else { return Ok(false) };
        let mut changes = piece.entries;
        if deliberate(Bug::NoTail) {
            changes.clear();
        }
        let left = self.left();
        self.put(CopyItem::Changes { from: self.sent_to, to: piece.to, changes, left }, piece.bytes, None).await?;
        self.sent_to = piece.to;
        Ok(true)
    }

    /// Sends every row of the range, and what happens to those that are sent.
    async fn chunks(&mut self) -> Result<(), CopyError> {
        let table = self.shared.state().table(self.tap.movement.table).cloned().ok_or(CopyError::NoTable)?;
        let end = self.tap.movement.interval.end.clone();
        let mut due = Instant::now();
        while let Some(start) = self.next.clone()
            && self.end != Some(CopyItem::Cancelled)
        {
            self.turn(due).await?;
            // Noted before the snapshot is taken: the snapshot holds at least this. And the tap has brought all of it.
            let position = self.shared.progress.watermark().max(self.sent_to);
            self.drain()?;
            while self.send_piece(position).await? {
                self.room(MOST_BYTES).await?;
            }
            let begun = Instant::now();
            // Given back before the chunk's turn is over: a snapshot that lies open while nothing is read keeps dead rows alive.
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
            // What could not be sent in time is not made up for by a burst.
            due = due.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / COPY_BYTES_PER_S);
        }
        Ok(())
    }

    /// Sends what happens in the range until its end.
    async fn tail(&mut self) -> Result<CopyItem, CopyError> {
        loop {
            // Read before the tap is emptied: everything up to here comes out.
            let reached = self.tap.reached();
            self.drain()?;
            let reached = reached.max(self.sent_to).max(self.pending.last().unwrap_or(0));
            match self.end.take() {
                Some(CopyItem::Cancelled) => return Ok(CopyItem::Cancelled),
                Some(fenced) => return self.finish(reached, fenced).await,
                None => {}
            }
            if self.pending.last().is_some() {
                self.room(TAIL_WINDOW_BYTES).await?;
                // More may have come while there was no room.
                let reached = reached.max(self.pending.last().unwrap_or(0));
                self.send_piece(reached).await?;
                continue;
            }
            let idle = self.sent_at + Duration::from_millis(IDLE_MS);
            if Instant::now() >= idle {
                self.room(TAIL_WINDOW_BYTES).await?;
                if self.pending.last().is_none() {
                    let left = self.left();
                    self.put(CopyItem::Changes { from: self.sent_to, to: reached, changes: vec![], left }, 0, None)
                        .await?;
                    self.sent_to = reached;
                }
                continue;
            }
            if let Ok(item) = tokio::time::timeout_at(idle.into(), self.tap.next()).await {
                self.absorb(item?)?;
            }
        }
    }

    /// The fence has been folded: nothing more will happen in the range. What is left goes at once.
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
