//! The retry window (R14): recent answers, so that a repeated statement is answered again and not
//! executed again.
//!
//! Every replica keeps answers for [`RETRY_WINDOW_MS`] by the leaders' stamps in the log. Answers
//! travel with the range that holds the statement's key. After a restart the window is rebuilt from
//! the answers stored beside the applied record.
//!
//! Its memory is bounded. It refers to no memory of the entries that brought the answers: a key of
//! eight bytes must not keep a frame of megabytes. When there is too much, rows of replies are
//! dropped first, then the oldest answers.
//!
//! An id whose answer may be gone is refused and never executed again. Clocks give the age of an
//! id, and clocks can be wrong: a leader's clock that is ahead makes a window forget ids that the
//! next leader takes for recent, and a destination whose clock is behind does not know what its
//! source has left behind. The window therefore remembers, by the ids' own times, the latest
//! forgotten id. This time travels and is stored with the window.

use super::answers::{Kept, RangeAnswers};
use crate::log_entry::{Answered, KeptReply, Malformed, TailEntry};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_protocol::{Key, KeyInterval, TableId, TxnId};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How long answers are kept, in milliseconds. Clients give a statement up well before; ids older
/// than [`MAX_ID_AGE_MS`] are refused.
pub const RETRY_WINDOW_MS: u64 = 30_000;
/// How old an id may be when it arrives, in milliseconds: so much less than the window that clocks
/// may differ by the rest.
pub const MAX_ID_AGE_MS: u64 = 20_000;
/// How far the clocks of clients and shards may differ, in milliseconds.
const CLOCKS_DIFFER_MS: u64 = RETRY_WINDOW_MS - MAX_ID_AGE_MS;
/// Answers per segment.
const SEGMENT: u64 = 512;
/// In a stored window, in the place of a stamp: what follows is the time up to which ids have been
/// forgotten.
const FORGOTTEN: u64 = u64::MAX;

/// The limits of a window.
#[derive(Debug, Clone, Copy)]
struct Limits {
    answers: usize,
    /// Of ids and keys.
    bytes: usize,
    /// Of replies.
    reply_bytes: usize,
}

const LIMITS: Limits = Limits { answers: 600_000, bytes: 128 << 20, reply_bytes: 32 << 20 };

/// What was answered recently.
#[derive(Debug)]
pub struct RetryWindow {
    /// Oldest first, in pieces of [`SEGMENT`] that copies of a range can share.
    segments: VecDeque<Arc<Vec<Kept>>>,
    /// The key is the session and its counter; the value is the answer's number, counted from the
    /// first ever.
    by_id: HashMap<(u64, u64), u64>,
    /// The number of the oldest answer kept.
    first: u64,
    /// The number of the next answer.
    next: u64,
    /// The number of the oldest answer whose reply may be kept.
    first_reply: u64,
    bytes: usize,
    reply_bytes: usize,
    newest_ms: u64,
    /// Of all ids that have gone from here, or were left behind by whom this came from, the latest
    /// time of a first sending.
    forgotten_ms: u64,
    limits: Limits,
}

impl Default for RetryWindow {
    fn default() -> RetryWindow {
        RetryWindow::limited(LIMITS)
    }
}

impl RetryWindow {
    fn limited(limits: Limits) -> RetryWindow {
        RetryWindow {
            segments: VecDeque::new(),
            by_id: HashMap::new(),
            first: 0,
            next: 0,
            first_reply: 0,
            bytes: 0,
            reply_bytes: 0,
            newest_ms: 0,
            forgotten_ms: 0,
            limits,
        }
    }

    /// The latest stamp: the log's time.
    pub fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// Whether an id that was first sent then can be distinguished from all others at `now_ms` by a
    /// leader's clock: it was first sent later than all that have gone from the window, and is not
    /// too old, by the log's time as well. An id from the future would never grow too old.
    pub fn can_tell(&self, first_sent_ms: u64, now_ms: u64) -> bool {
        let now_ms = now_ms.max(self.newest_ms);
        let oldest_ms = now_ms.saturating_sub(MAX_ID_AGE_MS);
        let latest_ms = now_ms.saturating_add(CLOCKS_DIFFER_MS);
        (oldest_ms..=latest_ms).contains(&first_sent_ms) && first_sent_ms > self.forgotten_ms
    }

    /// Takes answers in. `position` is the log's, for [`RetryWindow::since`]. The log's time does
    /// not go back: a leader whose clock is behind stamps what it answers as if it were already too
    /// old to be kept.
    pub fn extend(&mut self, stamp_ms: u64, position: u64, answered: impl IntoIterator<Item = Answered>) {
        self.newest_ms = self.newest_ms.max(stamp_ms);
        let stamp_ms = self.newest_ms;
        for answered in detached(answered.into_iter().collect()) {
            let id = (answered.id.client, answered.id.sequence);
            if self.by_id.contains_key(&id) {
                continue;
            }
            self.by_id.insert(id, self.next);
            self.push(Kept { stamp_ms, position, answered });
        }
        let oldest_ms = self.newest_ms.saturating_sub(RETRY_WINDOW_MS);
        while self.oldest().is_some_and(|kept| kept.stamp_ms < oldest_ms) {
            self.pop();
        }
        while self.reply_bytes > self.limits.reply_bytes {
            self.drop_oldest_reply();
        }
        while self.len() > self.limits.answers || self.bytes > self.limits.bytes {
            self.pop();
        }
    }

    /// Takes a piece of a range's tail in, at `stamp_ms` by this log's leader: the source's stamps
    /// are by other clocks, and must neither move this log's time nor have its answers forgotten.
    pub fn extend_by_tail(&mut self, stamp_ms: u64, position: u64, tail: &TailEntry) {
        let stamp_ms = stamp_ms.max(self.newest_ms);
        if tail.position == 0 {
            // A piece of the source's window: its stamp is what the source has forgotten or left
            // behind.
            self.forgotten_ms = self.forgotten_ms.max(tail.changes.stamp_ms);
        }
        self.extend(stamp_ms, position, tail.changes.answered.iter().cloned());
    }

    fn push(&mut self, kept: Kept) {
        self.bytes += kept.size_bytes();
        self.reply_bytes += kept.answered.reply.len();
        if self.next.is_multiple_of(SEGMENT) {
            self.segments.push_back(Arc::new(Vec::with_capacity(SEGMENT as usize)));
        }
        if let Some(last) = self.segments.back_mut() {
            Arc::make_mut(last).push(kept);
        }
        self.next += 1;
    }

    fn pop(&mut self) {
        let Some(kept) = self.oldest() else { return };
        let id = (kept.answered.id.client, kept.answered.id.sequence);
        let (bytes, reply_bytes) = (kept.size_bytes(), kept.answered.reply.len());
        let first_sent_ms = kept.answered.id.first_sent_ms;
        self.forgotten_ms = self.forgotten_ms.max(first_sent_ms);
        self.by_id.remove(&id);
        self.bytes -= bytes;
        self.reply_bytes -= reply_bytes;
        self.first += 1;
        if self.first.is_multiple_of(SEGMENT) {
            self.segments.pop_front();
        }
    }

    /// The id stays, so that its statement is not executed again.
    fn drop_oldest_reply(&mut self) {
        self.first_reply = self.first_reply.max(self.first);
        let number = self.first_reply;
        self.first_reply += 1;
        let Some(length) = self.at(number).map(|kept| kept.answered.reply.len()) else {
            // None is left.
            self.reply_bytes = 0;
            return;
        };
        if length == 0 {
            return;
        }
        let (segment, offset) = self.place(number);
        if let Some(kept) = self.segments.get_mut(segment).and_then(|s| Arc::make_mut(s).get_mut(offset)) {
            kept.answered.reply = KeptReply::Omitted;
            self.reply_bytes -= length;
        }
    }

    fn place(&self, number: u64) -> (usize, usize) {
        ((number / SEGMENT - self.first / SEGMENT) as usize, (number % SEGMENT) as usize)
    }

    fn at(&self, number: u64) -> Option<&Kept> {
        if number < self.first {
            return None;
        }
        let (segment, offset) = self.place(number);
        self.segments.get(segment)?.get(offset)
    }

    fn oldest(&self) -> Option<&Kept> {
        self.at(self.first)
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = &Kept> {
        let skipped = (self.first % SEGMENT) as usize;
        self.segments.iter().enumerate().flat_map(move |(at, segment)| {
            let from = if at == 0 { skipped.min(segment.len()) } else { 0 };
            segment[from..].iter()
        })
    }

    /// The answer given under this id.
    pub fn get(&self, id: TxnId) -> Option<&Answered> {
        self.at(*self.by_id.get(&(id.client, id.sequence))?).map(|kept| &kept.answered)
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        (self.next - self.first) as usize
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The answers of entries after position `after` up to `to`, encoded, to be stored beside the
    /// applied record.
    pub fn since(&self, after: u64, to: u64) -> Bytes {
        // Positions grow but for answers that came in with a range; those carry the position of
        // their ingest.
        let chosen = self.iter().rev().take_while(|k| k.position > after).filter(|k| k.position <= to);
        let mut chosen: Vec<&Kept> = chosen.collect();
        chosen.reverse();
        self.encode(chosen)
    }

    /// All answers, encoded: for a state transfer.
    pub fn all(&self) -> Bytes {
        self.encode(self.iter().collect())
    }

    /// Takes encoded answers in, as stored by [`RetryWindow::since`].
    pub fn restore(&mut self, mut encoded: Bytes) -> Result<(), Malformed> {
        while encoded.has_remaining() {
            if encoded.remaining() < 16 {
                return Err(Malformed("stored answers end early".into()));
            }
            let (stamp_ms, position) = (encoded.get_u64(), encoded.get_u64());
            if stamp_ms == FORGOTTEN {
                self.forgotten_ms = self.forgotten_ms.max(position);
                continue;
            }
            let answered = Answered::decode(&mut encoded)?;
            self.extend(stamp_ms, position, [answered]);
        }
        Ok(())
    }

    /// The answers of statements that wrote in this range: they travel with it. Takes as little
    /// time as there are segments, so that it can be asked for where nothing may wait; looking
    /// through them is left to whoever has it. `now_ms` is this replica's clock: what it says is
    /// too old stays behind, since a log that rests forgets nothing.
    pub fn of_range(&self, table: TableId, interval: &KeyInterval, now_ms: u64) -> RangeAnswers {
        let oldest_ms = now_ms.max(self.newest_ms).saturating_sub(RETRY_WINDOW_MS);
        RangeAnswers {
            segments: self.segments.iter().cloned().collect(),
            skipped: (self.first % SEGMENT) as usize,
            table,
            interval: interval.clone(),
            oldest_ms,
            forgotten_ms: self.forgotten_ms,
        }
    }

    fn encode(&self, kept: Vec<&Kept>) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + kept.iter().map(|k| 16 + k.answered.size_bytes()).sum::<usize>());
        if self.forgotten_ms > 0 {
            out.put_u64(FORGOTTEN);
            out.put_u64(self.forgotten_ms);
        }
        for kept in kept {
            out.put_u64(kept.stamp_ms);
            out.put_u64(kept.position);
            kept.answered.encode_into(&mut out);
        }
        out.freeze()
    }
}

/// With memory of their own: what comes in are slices of the entry that brought them, and that of
/// the frame that brought the entry. All keys of an entry share one allocation, and all rows
/// another: one of a few bytes for each, kept for half a minute among buffers that come and go,
/// would keep a page of memory each from being used again.
fn detached(mut answered: Vec<Answered>) -> Vec<Answered> {
    let rows = |answered: &Answered| match &answered.reply {
        KeptReply::Rows(rows) => rows.len(),
        KeptReply::Nothing | KeptReply::Omitted => 0,
    };
    let mut all_keys = BytesMut::with_capacity(answered.iter().map(|a| a.key.0.len()).sum());
    let mut all_rows = BytesMut::with_capacity(answered.iter().map(rows).sum());
    for answered in &mut answered {
        all_keys.extend_from_slice(&answered.key.0);
        answered.key = Key(all_keys.split().freeze());
        if let KeptReply::Rows(rows) = &mut answered.reply {
            all_rows.extend_from_slice(rows);
            *rows = all_rows.split().freeze();
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::answers::ANSWER_BYTES;
    use super::*;
    use crate::log_entry::Changes;
    use evenkeel_protocol::Key;

    fn answered(client: u64, sequence: u64, key: u8) -> Answered {
        sent(client, sequence, key, 0)
    }

    fn sent(client: u64, sequence: u64, key: u8, first_sent_ms: u64) -> Answered {
        let id = TxnId { client, sequence, first_sent_ms };
        Answered { id, table: TableId(1), key: Key(vec![key].into()), affected: sequence, reply: KeptReply::Nothing }
    }

    #[test]
    fn answers_are_found_until_they_are_older_than_the_window() {
        let mut window = RetryWindow::default();
        window.extend(1000, 1, [answered(1, 1, 5), answered(1, 2, 6)]);
        window.extend(2000, 2, [answered(2, 1, 7)]);
        assert_eq!(window.get(answered(1, 2, 0).id).unwrap().affected, 2);
        window.extend(1001 + RETRY_WINDOW_MS, 3, [answered(3, 1, 8)]);
        assert!(window.get(answered(1, 2, 0).id).is_none());
        assert!(window.get(answered(2, 1, 0).id).is_some());
        assert!(window.get(answered(3, 1, 0).id).is_some());
        assert_eq!(window.len(), 2);
    }

    /// Breaks if the answers of a leader whose clock is behind are forgotten at once: sent again,
    /// their statements would be executed again (invariant 7).
    #[test]
    fn a_leader_whose_clock_is_behind_forgets_nothing_early() {
        let mut window = RetryWindow::default();
        window.extend(3_600_000, 1, [answered(1, 1, 5)]);
        window.extend(10, 2, [answered(1, 2, 6)]);
        assert!(window.get(answered(1, 1, 0).id).is_some() && window.get(answered(1, 2, 0).id).is_some());
        window.extend(3_600_000 + RETRY_WINDOW_MS - 1, 3, [answered(1, 3, 7)]);
        assert_eq!(window.len(), 3);
        assert_eq!(window.newest_ms(), 3_600_000 + RETRY_WINDOW_MS - 1);
    }

    /// Breaks if an id is judged by the leader's clock alone: an earlier leader, whose clock was
    /// ahead, has made the window forget what this one takes for recent (R14).
    #[test]
    fn an_id_is_refused_if_its_answer_may_be_forgotten() {
        let mut window = RetryWindow::default();
        let now_ms = 1_000_000;
        window.extend(now_ms - 5_000, 1, [sent(1, 1, 5, now_ms - 5_001)]);
        assert!(window.can_tell(now_ms - MAX_ID_AGE_MS, now_ms) && window.can_tell(now_ms, now_ms));
        assert!(!window.can_tell(now_ms - MAX_ID_AGE_MS - 1, now_ms));
        window.extend(now_ms + 40_000, 2, [sent(1, 2, 5, now_ms)]);
        assert!(window.get(answered(1, 1, 0).id).is_none(), "forgotten, although five seconds old");
        assert!(!window.can_tell(now_ms - 5_001, now_ms), "and so it must be refused");
        assert!(window.can_tell(now_ms + 20_000, now_ms + 20_000));
        // What would still be young when its answer is forgotten.
        assert!(!RetryWindow::default().can_tell(now_ms + 10_001, now_ms));
    }

    #[test]
    fn stored_answers_restore_the_window_even_if_they_overlap() {
        let mut window = RetryWindow::default();
        for n in 1..=10 {
            window.extend(n * 100, n, [answered(1, n, n as u8)]);
        }
        let mut restored = RetryWindow::default();
        restored.restore(window.since(0, 4)).unwrap();
        restored.restore(window.since(2, 7)).unwrap();
        assert_eq!(restored.len(), 7);
        restored.restore(window.all()).unwrap();
        assert_eq!(restored.all(), window.all());
        assert!(restored.restore(Bytes::from_static(&[1, 2])).is_err());
    }

    #[test]
    fn a_range_takes_its_own_answers_along() {
        let mut window = RetryWindow::default();
        window.extend(1, 1, (0..10).map(|n| answered(1, u64::from(n) + 1, n)));
        let interval = KeyInterval::new(Key(vec![3].into()), Some(Key(vec![6].into())));
        let keys: Vec<u8> = window.of_range(TableId(1), &interval, 1).iter().map(|a| a.key.0[0]).collect();
        assert_eq!(keys, [3, 4, 5]);
        assert_eq!(window.of_range(TableId(2), &interval, 1).iter().count(), 0);
    }

    /// Breaks if the window keeps the frames alive that its answers came in: thirty seconds of the
    /// whole log would stay in memory.
    #[test]
    fn the_window_keeps_no_frame_alive() {
        let from_frame = |frame: &Bytes, sequence: u64| Answered {
            key: Key(frame.slice(8..16)),
            reply: KeptReply::Rows(frame.slice(100..200)),
            ..answered(1, sequence, 0)
        };
        let frame = Bytes::from(vec![7u8; 1 << 20]);
        let mut window = RetryWindow::default();
        window.extend(100, 1, [from_frame(&frame, 1)]);
        assert!(frame.is_unique(), "an answer that came in");
        let tail = Changes { stamp_ms: 0, answered: vec![from_frame(&frame, 2)], changes: Vec::new() };
        window.extend_by_tail(100, 2, &TailEntry { position: 0, changes: tail });
        assert!(frame.is_unique(), "an answer that came with a range");
        let stored = window.all();
        let mut restored = RetryWindow::default();
        restored.restore(stored.clone()).unwrap();
        assert!(stored.is_unique(), "answers that were stored");
        assert_eq!(restored.len(), 2);
    }

    /// Breaks if answers that are dropped for room are forgotten silently: its statement, sent
    /// again, would be executed again (R14).
    #[test]
    fn what_went_for_want_of_room_is_refused_and_not_executed_again() {
        let mut window = RetryWindow::limited(Limits { answers: 10, ..LIMITS });
        let begun_ms = 1_000_000;
        for n in 0..30 {
            window.extend(begun_ms + n, n, [sent(1, n, 0, begun_ms + n)]);
        }
        assert_eq!(window.len(), 10);
        let (dropped, kept) = (answered(1, 19, 0).id, answered(1, 20, 0).id);
        assert!(window.get(dropped).is_none() && window.get(kept).is_some());
        let now_ms = begun_ms + 15_000;
        assert!(!window.can_tell(begun_ms + 19, now_ms), "first sent when what has gone was");
        assert!(window.can_tell(begun_ms + 20, now_ms));
        // A replica that takes this one's state refuses them, too; and so does a shard that takes
        // the range.
        let mut restored = RetryWindow::default();
        restored.restore(window.all()).unwrap();
        assert!(!restored.can_tell(begun_ms + 19, now_ms));
        let mut other = RetryWindow::default();
        for piece in window.of_range(TableId(1), &KeyInterval::ALL, begun_ms + 30).pieces(1 << 20) {
            other.extend_by_tail(begun_ms + 40, 1, &TailEntry::decode(piece).unwrap());
        }
        assert_eq!(other.len(), 10);
        assert!(!other.can_tell(begun_ms + 19, now_ms) && other.can_tell(begun_ms + 20, now_ms));
    }

    #[test]
    fn ids_and_keys_have_a_limit_in_bytes() {
        let mut window = RetryWindow::limited(Limits { bytes: 10 * (ANSWER_BYTES + 1000), ..LIMITS });
        for n in 0..1_000 {
            window.extend(n, n, [Answered { key: Key(vec![0; 1000].into()), ..answered(1, n, 0) }]);
        }
        assert_eq!(window.len(), 10);
        assert_eq!(
            window.iter().map(|kept| kept.answered.id.sequence).collect::<Vec<_>>(),
            (990..1_000).collect::<Vec<_>>()
        );
    }

    /// Breaks if large replies push ids out: a few thousand large rows a second would have every
    /// retry refused.
    #[test]
    fn rows_go_before_ids_do() {
        let mut window = RetryWindow::limited(Limits { reply_bytes: 5_000, ..LIMITS });
        for n in 0..2_000 {
            let reply = KeptReply::Rows(vec![1; 1_000].into());
            window.extend(n, n, [Answered { reply, ..answered(1, n, 0) }]);
        }
        assert_eq!(window.len(), 2_000);
        let reply = |n| &window.get(answered(1, n, 0).id).unwrap().reply;
        assert_eq!(*reply(0), KeptReply::Omitted);
        assert_eq!(*reply(1_994), KeptReply::Omitted);
        assert_eq!(reply(1_995).len(), 1_000);
        assert_eq!(window.reply_bytes, 5_000);
        // Forgotten by age they take nothing any more.
        window.extend(1_000_000, 3_000, [answered(2, 1, 0)]);
        assert_eq!((window.len(), window.reply_bytes, window.bytes), (1, 0, ANSWER_BYTES + 1));
    }

    /// Breaks if the source's clock moves the destination's log: one that is an hour ahead would
    /// have every write refused for an hour.
    #[test]
    fn a_range_does_not_bring_its_shards_clock_along() {
        let (here_ms, there_ms) = (1_000_000, 4_600_000);
        let mut source = RetryWindow::default();
        source.extend(there_ms, 1, [answered(1, 1, 5)]);
        let mut window = RetryWindow::default();
        window.extend(here_ms, 1, [answered(2, 1, 5)]);
        for piece in source.of_range(TableId(1), &KeyInterval::ALL, there_ms).pieces(1 << 20) {
            window.extend_by_tail(here_ms + 10, 2, &TailEntry::decode(piece).unwrap());
        }
        assert_eq!((window.len(), window.newest_ms()), (2, here_ms + 10));
        assert!(window.can_tell(here_ms, here_ms + 10), "the source has forgotten nothing");
        // And an idle shard whose time rests does not forget at once what came.
        window.extend(here_ms + 20_000, 3, [answered(3, 1, 5)]);
        assert!(window.get(answered(1, 1, 5).id).is_some());
    }

    /// Breaks if what a source leaves behind is judged by the destination's clock: one that is
    /// behind takes a statement for a new one that the source has executed, and executes it again
    /// once its clock is right (found by the simulation, seed 174).
    #[test]
    fn what_a_source_leaves_behind_is_refused_whatever_the_clocks_say() {
        let true_ms = 10_000_000;
        let mut source = RetryWindow::default();
        source.extend(true_ms, 1, [sent(1, 1, 5, true_ms - 1)]);
        // The replica that gives the copy has a clock an hour ahead, the destination's leader one
        // that is an hour behind.
        let left = source.of_range(TableId(1), &KeyInterval::ALL, true_ms + 3_600_000);
        assert_eq!(left.iter().count(), 0);
        let mut window = RetryWindow::default();
        for piece in left.pieces(1 << 20) {
            window.extend_by_tail(true_ms - 3_600_000, 1, &TailEntry::decode(piece).unwrap());
        }
        assert!(!window.can_tell(true_ms - 1, true_ms + 5) && window.can_tell(true_ms, true_ms + 5));
        let mut restored = RetryWindow::default();
        restored.restore(window.all()).unwrap();
        assert!(!restored.can_tell(true_ms - 1, true_ms + 5));
    }

    /// Breaks if an idle shard's answers go along for ever, however old.
    #[test]
    fn answers_that_are_too_old_by_the_clock_stay_behind() {
        let mut window = RetryWindow::default();
        window.extend(1_000_000, 1, [answered(1, 1, 5)]);
        let of = |now_ms| window.of_range(TableId(1), &KeyInterval::ALL, now_ms).iter().count();
        assert_eq!((of(1_000_000), of(1_000_000 + RETRY_WINDOW_MS), of(1_000_001 + RETRY_WINDOW_MS)), (1, 1, 0));
    }

    /// Breaks if an entry of the log is too small for what a range takes along, so that the range
    /// could never be moved.
    #[test]
    fn a_ranges_answers_are_cut_by_their_bytes() {
        let mut window = RetryWindow::default();
        let reply = KeptReply::Rows(vec![1; 4_000].into());
        window.extend(1, 1, (0..1_500).map(|n| Answered { reply: reply.clone(), ..answered(1, n, 5) }));
        let answers = window.of_range(TableId(1), &KeyInterval::ALL, 1);
        let pieces = answers.pieces(100_000);
        assert!(pieces.iter().all(|piece| piece.len() < 100_100));
        let count = |piece: &Bytes| TailEntry::decode(piece.clone()).unwrap().changes.answered.len();
        assert_eq!(pieces.iter().map(count).sum::<usize>(), 1_500);
    }
}
