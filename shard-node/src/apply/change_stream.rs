//! Change streams: the changes of a moving range, for the copy at its destination.
//!
//! A stream delivers entries as they are applied to the state machine, before PostgreSQL holds
//! them: the tail of a move is as recent as the log. The copy reads its stream continuously
//! (`migration::tail`). A stream holds at most [`MAX_STREAM_BYTES`]; one that would hold more is
//! dropped, and its copy starts again (R21).

use crate::log_entry::{Answered, Change, Changes, KeptReply};
use crate::state_machine::{MoveOut, OutPhase, RangeAnswers, RetryWindow, ShardState};
use bytes::Bytes;
use evenkeel_protocol::{Epoch, Key, KeyInterval, OperatorId, TableId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// The most that a stream holds, in bytes.
pub const MAX_STREAM_BYTES: usize = 64 << 20;

/// An item of a change stream.
#[derive(Debug)]
pub enum StreamItem {
    /// An entry that changed the range.
    Entry {
        /// Its position.
        position: u64,
        /// Its changes there, copied: they keep no other bytes of the log in memory.
        changes: Changes,
    },
    /// The fence.
    Fenced {
        /// Its position.
        position: u64,
        /// The range's epoch from there on.
        epoch: Epoch,
        /// When the source began to hold statements, in microseconds since the Unix epoch.
        held_since_us: u64,
    },
    /// The move was cancelled.
    Cancelled,
}

/// The stream was dropped: it overflowed, or its replica stopped following the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the change stream overflowed or was dropped")]
pub struct StreamLost;

/// The reading end of a change stream.
#[derive(Debug)]
pub struct ChangeStream {
    /// The move, as it was when the stream was opened.
    pub movement: MoveOut,
    /// The stream delivers every change after this position.
    pub start: u64,
    /// The range's part of the retry window at `start`.
    pub window: Option<RangeAnswers>,
    items: mpsc::UnboundedReceiver<StreamItem>,
    bytes: Arc<AtomicUsize>,
    reached: Arc<AtomicU64>,
}

impl ChangeStream {
    /// The next item.
    ///
    /// # Errors
    /// [`StreamLost`].
    pub async fn next(&mut self) -> Result<StreamItem, StreamLost> {
        let item = self.items.recv().await.ok_or(StreamLost)?;
        self.taken(&item);
        Ok(item)
    }

    /// The next item if it is there already.
    ///
    /// # Errors
    /// [`StreamLost`].
    pub fn try_next(&mut self) -> Result<Option<StreamItem>, StreamLost> {
        match self.items.try_recv() {
            Ok(item) => {
                self.taken(&item);
                Ok(Some(item))
            }
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(StreamLost),
        }
    }

    /// The position up to which every change is in the stream or was taken from it. To learn that
    /// all changes up to a position were taken, read this first and then take until the stream is
    /// empty.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }

    fn taken(&self, item: &StreamItem) {
        self.bytes.fetch_sub(size_bytes(item), Ordering::AcqRel);
    }
}

fn size_bytes(item: &StreamItem) -> usize {
    match item {
        StreamItem::Entry { changes, .. } => 64 + changes.size_bytes(),
        _ => 64,
    }
}

fn copied(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn copied_key(key: &Key) -> Key {
    Key(copied(&key.0))
}

fn copied_answer(answered: &Answered) -> Answered {
    let reply = match &answered.reply {
        KeptReply::Rows(rows) => KeptReply::Rows(copied(rows)),
        other => other.clone(),
    };
    Answered { key: copied_key(&answered.key), reply, ..answered.clone() }
}

fn copied_change(change: &Change) -> Change {
    Change { table: change.table, key: copied_key(&change.key), image: change.image.copied() }
}

struct OpenStream {
    operator: OperatorId,
    table: TableId,
    interval: KeyInterval,
    items: mpsc::UnboundedSender<StreamItem>,
    bytes: Arc<AtomicUsize>,
    reached: Arc<AtomicU64>,
}

impl OpenStream {
    /// `false` if the stream must be dropped.
    fn send(&self, item: StreamItem) -> bool {
        let size = size_bytes(&item);
        if self.bytes.fetch_add(size, Ordering::AcqRel) + size > MAX_STREAM_BYTES {
            tracing::warn!(operator = %self.operator, "a copy reads the change stream of its range too slowly");
            metrics::counter!("evenkeel_change_streams_overflowed_total").increment(1);
            return false;
        }
        self.items.send(item).is_ok()
    }
}

/// All change streams of a replica.
#[derive(Default)]
pub struct ChangeStreams {
    streams: Vec<OpenStream>,
}

impl ChangeStreams {
    /// Opens a stream of a move out, at the last applied position and the time of the log's stamps.
    /// `None` if no such move is open here.
    pub fn open(
        &mut self,
        operator: OperatorId,
        state: &ShardState,
        window: &RetryWindow,
        (applied, now_ms): (u64, u64),
    ) -> Option<ChangeStream> {
        let movement = state.move_out(operator)?.clone();
        let (sender, items) = mpsc::unbounded_channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let (table, interval) = (movement.table, movement.interval.clone());
        let window = Some(window.of_range(table, &interval, now_ms));
        let reached = Arc::new(AtomicU64::new(applied));
        let stream =
            OpenStream { operator, table, interval, items: sender, bytes: bytes.clone(), reached: reached.clone() };
        if let OutPhase::Fenced { position, held_since_us } = movement.phase {
            stream.send(StreamItem::Fenced { position, epoch: movement.epoch.next(), held_since_us });
        }
        self.streams.push(stream);
        Some(ChangeStream { movement, start: applied, window, items, bytes, reached })
    }

    /// An effective entry of changes.
    pub fn changes(&mut self, position: u64, changes: &Changes) {
        self.streams.retain(|stream| {
            let touched = |table: TableId, key| table == stream.table && stream.interval.contains(key);
            let within: Vec<_> =
                changes.changes.iter().filter(|c| touched(c.table, &c.key)).map(copied_change).collect();
            let answered: Vec<_> =
                changes.answered.iter().filter(|a| touched(a.table, &a.key)).map(copied_answer).collect();
            if within.is_empty() && answered.is_empty() {
                return !stream.items.is_closed();
            }
            let changes = Changes { stamp_ms: changes.stamp_ms, answered, changes: within };
            stream.send(StreamItem::Entry { position, changes })
        });
    }

    /// A move's fence or cancellation.
    pub fn resolved(&mut self, operator: OperatorId, item: impl Fn() -> StreamItem) {
        self.streams.retain(|stream| stream.operator != operator || stream.send(item()));
    }

    /// Everything up to here has been applied.
    pub fn reached(&mut self, position: u64) {
        self.streams.retain(|stream| {
            stream.reached.store(position, Ordering::Release);
            !stream.items.is_closed()
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_entry::Control;
    use crate::log_entry::image::Image;
    use crate::state_machine::test_support::{key, schema, shard};
    use evenkeel_protocol::RangeId;

    const OP: OperatorId = OperatorId(7);

    fn open_move() -> ShardState {
        let mut state = ShardState::default();
        state.control(1, &Control::CreateTable { schema: schema(), range: RangeId(1) }).unwrap();
        let to = shard(2);
        state.control(2, &Control::MoveOpen { operator: OP, range: RangeId(1), epoch: Epoch(1), to }).unwrap();
        state
    }

    /// Breaks if a copy goes on with a hole in its changes: a stream that overflows says so once
    /// what it holds has come out.
    #[test]
    fn a_stream_that_overflows_is_lost_and_says_so() {
        let (mut streams, state) = (ChangeStreams::default(), open_move());
        let mut reader = streams.open(OP, &state, &RetryWindow::default(), (2, 0)).unwrap();
        let image = Image::Whole(Bytes::from(vec![7; 1 << 20]));
        let changes = vec![Change { table: TableId(1), key: key(1), image }];
        let changes = Changes { changes, ..Changes::default() };
        for position in 3..50 {
            streams.changes(position, &changes);
            assert!(matches!(reader.try_next(), Ok(Some(StreamItem::Entry { .. }))), "taking an item makes room");
        }
        streams.reached(50);
        assert_eq!(reader.reached(), 50);
        for position in 51..120 {
            streams.changes(position, &changes);
        }
        let mut taken = 0;
        while let Ok(Some(_)) = reader.try_next() {
            taken += 1;
        }
        assert!((60..64).contains(&taken), "{taken}");
        assert!(matches!(reader.try_next(), Err(StreamLost)));
    }
}
