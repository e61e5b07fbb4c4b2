//! Taps: the changes of a moving range, handed to the copies that are being made of it.
//!
//! A tap gets what is folded, not what PostgreSQL has applied: the tail of a move is as fresh as the log. A tap that is not emptied
//! in time is dropped, and its copy starts afresh (R21).

use crate::entry::{Answered, Changes, TailEntry};
use crate::fold::{MoveOut, OutPhase, RetryWindow, ShardState};
use bytes::Bytes;
use evenkeel_protocol::{Epoch, KeyInterval, OperatorId, TableId};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// What a tap may hold that was not taken yet, in bytes.
const MAX_TAP_BYTES: usize = 64 << 20;
/// Answers of the retry window per piece.
const ANSWERS_PER_PIECE: usize = 1000;

/// What comes out of a tap.
#[derive(Debug)]
pub enum TapItem {
    /// An entry that did something in the range, encoded.
    Entry {
        /// Its position.
        position: u64,
        /// An encoded [`TailEntry`].
        entry: Bytes,
    },
    /// Everything up to this position has come out.
    Reached(u64),
    /// The fence.
    Fenced {
        /// Its position.
        position: u64,
        /// The range's epoch from there on.
        epoch: Epoch,
        /// When statements began to be held, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// The move was cancelled.
    Cancelled,
}

/// The taker's end of a tap.
#[derive(Debug)]
pub struct TapReader {
    /// The move, as it was when the tap was set.
    pub movement: MoveOut,
    /// The tap gives everything after this position.
    pub start: u64,
    /// Encoded [`TailEntry`]s without changes: the range's part of the retry window at `start`.
    pub window: Vec<Bytes>,
    items: mpsc::UnboundedReceiver<TapItem>,
    bytes: Arc<AtomicUsize>,
}

impl TapReader {
    /// The next item; `None` once the tap has been dropped.
    pub async fn next(&mut self) -> Option<TapItem> {
        let item = self.items.recv().await?;
        self.taken(&item);
        Some(item)
    }

    /// The next item if it is there already.
    pub fn try_next(&mut self) -> Option<TapItem> {
        let item = self.items.try_recv().ok()?;
        self.taken(&item);
        Some(item)
    }

    /// Whether nothing waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn taken(&self, item: &TapItem) {
        self.bytes.fetch_sub(size_bytes(item), Ordering::AcqRel);
    }
}

fn size_bytes(item: &TapItem) -> usize {
    match item {
        TapItem::Entry { entry, .. } => 64 + entry.len(),
        _ => 64,
    }
}

struct Tap {
    operator: OperatorId,
    table: TableId,
    interval: KeyInterval,
    items: mpsc::UnboundedSender<TapItem>,
    bytes: Arc<AtomicUsize>,
}

impl Tap {
    /// `false` if the tap must be dropped.
    fn send(&self, item: TapItem) -> bool {
        let size = size_bytes(&item);
        self.bytes.fetch_add(size, Ordering::AcqRel) + size <= MAX_TAP_BYTES && self.items.send(item).is_ok()
    }
}

/// All taps of a replica; the applier's.
#[derive(Default)]
pub struct Taps {
    taps: Vec<Tap>,
}

impl Taps {
    /// Sets a tap on a move out. `None` if there is no such move here (yet).
    pub fn set(
        &mut self,
        operator: OperatorId,
        state: &ShardState,
        window: &RetryWindow,
        folded: u64,
    ) -> Option<TapReader> {
        let movement = state.move_out(operator)?.clone();
        let (sender, items) = mpsc::unbounded_channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let (table, interval) = (movement.table, movement.interval.clone());
        let answers: Vec<(u64, Answered)> =
            window.of_range(table, &interval).map(|(stamp, answered)| (stamp, answered.clone())).collect();
        let window = answers
            .chunks(ANSWERS_PER_PIECE)
            .map(|piece| {
                let stamp_ms = piece.iter().map(|(stamp, _)| *stamp).max().unwrap_or(0);
                let answered = piece.iter().map(|(_, answered)| answered.clone()).collect();
                TailEntry { position: 0, changes: Changes { stamp_ms, answered, changes: Vec::new() } }.encode()
            })
            .collect();
        let tap = Tap { operator, table, interval, items: sender, bytes: bytes.clone() };
        if let OutPhase::Fenced { position, held_since_us } = movement.phase {
            tap.send(TapItem::Fenced { position, epoch: movement.epoch.next(), held_since_us });
        }
        self.taps.push(tap);
        Some(TapReader { movement, start: folded, window, items, bytes })
    }

    /// An effective entry of changes.
    pub fn changes(&mut self, position: u64, changes: &Changes) {
        self.taps.retain(|tap| {
            let touched = |table: TableId, key| table == tap.table && tap.interval.contains(key);
            let within: Vec<_> = changes.changes.iter().filter(|c| touched(c.table, &c.key)).cloned().collect();
            let answered: Vec<_> = changes.answered.iter().filter(|a| touched(a.table, &a.key)).cloned().collect();
            if within.is_empty() && answered.is_empty() {
                return !tap.items.is_closed();
            }
            let changes = Changes { stamp_ms: changes.stamp_ms, answered, changes: within };
            tap.send(TapItem::Entry { position, entry: TailEntry { position, changes }.encode() })
        });
    }

    /// A move's fence or cancellation.
    pub fn settled(&mut self, operator: OperatorId, item: impl Fn() -> TapItem) {
        self.taps.retain(|tap| tap.operator != operator || tap.send(item()));
    }

    /// Everything up to here has been folded.
    pub fn reached(&mut self, position: u64) {
        self.taps.retain(|tap| tap.send(TapItem::Reached(position)));
    }
}
