//! The retry window (R14): what was answered recently, so that a statement sent again is answered again and not executed
//! again.
//!
//! It is kept for [`RETRY_WINDOW_MS`] by the leaders' stamps in the log, on every replica, and travels with the range that
//! holds the statement's key. It is rebuilt after a restart from what is stored beside the applied record.

use crate::entry::{Answered, Malformed};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel_protocol::{KeyInterval, TableId, TxnId};
use std::collections::{HashMap, VecDeque};

/// How long answers are kept, in milliseconds. Clients give a statement up well before; ids older than
/// [`MAX_ID_AGE_MS`] are refused.
pub const RETRY_WINDOW_MS: u64 = 30_000;
/// How old an id may be when it arrives, in milliseconds: so much less than the window that clocks may differ by the rest.
pub const MAX_ID_AGE_MS: u64 = 20_000;
/// Answers kept at most; beyond it the oldest go early. At the most a shard executes in a window's time, with room.
const MAX_ANSWERS: usize = 1_000_000;

/// An answer and when and where it was given.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    stamp_ms: u64,
    position: u64,
    answered: Answered,
}

/// What was answered recently.
#[derive(Debug, Default)]
pub struct RetryWindow {
    /// Oldest first.
    kept: VecDeque<Kept>,
    /// The key is the session and its counter; the value is a position in `kept`, counted from the first ever.
    by_id: HashMap<(u64, u64), u64>,
    /// How many have gone from the front of `kept`.
    gone: u64,
    newest_ms: u64,
}

impl RetryWindow {
    /// The latest stamp: the log's time.
    pub fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// Whether an id that was first sent then can be told from all others at `now_ms` by a leader's clock: everything that has
    /// gone from the window must be too old, by the log's time as well, in case an earlier leader's clock was ahead of this one's. An id
    /// from the future would never grow too old.
    pub fn can_tell(&self, first_sent_ms: u64, now_ms: u64) -> bool {
        let now_ms = now_ms.max(self.newest_ms);
        let oldest_ms = now_ms.saturating_sub(MAX_ID_AGE_MS);
        let latest_ms = now_ms.saturating_add(RETRY_WINDOW_MS - MAX_ID_AGE_MS);
        (oldest_ms..=latest_ms).contains(&first_sent_ms)
    }

    /// Takes answers in. `position` is the log's, for [`RetryWindow::since`]. The log's time does not go back: a leader whose clock
    /// is behind stamps what it answers as if it were already too old to be kept.
    pub fn extend(&mut self, stamp_ms: u64, position: u64, answered: impl IntoIterator<Item = Answered>) {
        self.newest_ms = self.newest_ms.max(stamp_ms);
        let stamp_ms = self.newest_ms;
        for answered in answered {
            let id = (answered.id.client, answered.id.sequence);
            if self.by_id.contains_key(&id) {
                continue;
            }
            self.by_id.insert(id, self.gone + self.kept.len() as u64);
            self.kept.push_back(Kept { stamp_ms, position, answered });
        }
        let oldest_ms = self.newest_ms.saturating_sub(RETRY_WINDOW_MS);
        while self.kept.front().is_some_and(|k| k.stamp_ms < oldest_ms) || self.kept.len() > MAX_ANSWERS {
            if let Some(kept) = self.kept.pop_front() {
                self.by_id.remove(&(kept.answered.id.client, kept.answered.id.sequence));
                self.gone += 1;
            }
        }
    }

    /// The answer given under this id.
    pub fn get(&self, id: TxnId) -> Option<&Answered> {
        let at = self.by_id.get(&(id.client, id.sequence))?;
        self.kept.get((at - self.gone) as usize).map(|kept| &kept.answered)
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The answers of entries after position `after` up to `to`, encoded, to be stored beside the applied record.
    pub fn since(&self, after: u64, to: u64) -> Bytes {
        // Positions grow but for answers that came in with a range; those carry the position of their ingest.
        let chosen = self.kept.iter().rev().take_while(|k| k.position > after).filter(|k| k.position <= to);
        let mut chosen: Vec<&Kept> = chosen.collect();
        chosen.reverse();
        encode(chosen)
    }

    /// All answers, encoded: for a state transfer.
    pub fn all(&self) -> Bytes {
        encode(self.kept.iter().collect())
    }

    /// Takes encoded answers in, as stored by [`RetryWindow::since`].
    pub fn restore(&mut self, mut encoded: Bytes) -> Result<(), Malformed> {
        while encoded.has_remaining() {
            if encoded.remaining() < 16 {
                return Err(Malformed("stored answers end early".into()));
            }
            let (stamp_ms, position) = (encoded.get_u64(), encoded.get_u64());
            let answered = Answered::decode(&mut encoded)?;
            self.extend(stamp_ms, position, [answered]);
        }
        Ok(())
    }

    /// The answers of statements that wrote in this range, with their stamps: they travel with it.
    pub fn of_range<'a>(
        &'a self,
        table: TableId,
        interval: &'a KeyInterval,
    ) -> impl Iterator<Item = (u64, &'a Answered)> {
        let within = move |a: &Answered| a.table == table && interval.contains(&a.key);
        self.kept.iter().filter(move |k| within(&k.answered)).map(|k| (k.stamp_ms, &k.answered))
    }
}

fn encode(kept: Vec<&Kept>) -> Bytes {
    let mut out = BytesMut::with_capacity(kept.iter().map(|k| 16 + k.answered.size_bytes()).sum());
    for kept in kept {
        out.put_u64(kept.stamp_ms);
        out.put_u64(kept.position);
        kept.answered.encode_into(&mut out);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use evenkeel_protocol::Key;

    fn answered(client: u64, sequence: u64, key: u8) -> Answered {
        let id = TxnId { client, sequence, first_sent_ms: 0 };
        Answered { id, table: TableId(1), key: Key(vec![key].into()), affected: sequence, reply: Bytes::new() }
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

    /// Breaks if the answers of a leader whose clock is behind are forgotten at once: sent again, their statements would be executed again
    /// (invariant 7).
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

    /// Breaks if an id is judged by the leader's clock alone: an earlier leader, whose clock was ahead, has made the window forget what
    /// this one takes for recent (R14).
    #[test]
    fn an_id_is_refused_if_its_answer_may_be_forgotten() {
        let mut window = RetryWindow::default();
        let now_ms = 1_000_000;
        window.extend(now_ms - 5_000, 1, [answered(1, 1, 5)]);
        assert!(window.can_tell(now_ms - MAX_ID_AGE_MS, now_ms) && window.can_tell(now_ms, now_ms));
        assert!(!window.can_tell(now_ms - MAX_ID_AGE_MS - 1, now_ms));
        window.extend(now_ms + 40_000, 2, [answered(1, 2, 5)]);
        assert!(window.get(answered(1, 1, 0).id).is_none(), "forgotten, although five seconds old");
        assert!(!window.can_tell(now_ms - 5_000, now_ms), "and so it must be refused");
        assert!(window.can_tell(now_ms + 20_000, now_ms + 20_000));
        // What would still be young when its answer is forgotten.
        assert!(!RetryWindow::default().can_tell(now_ms + 10_001, now_ms));
    }

    #[test]
    fn what_is_stored_restores_the_window_even_if_it_overlaps() {
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
        let keys: Vec<u8> = window.of_range(TableId(1), &interval).map(|(_, a)| a.key.0[0]).collect();
        assert_eq!(keys, [3, 4, 5]);
        assert_eq!(window.of_range(TableId(2), &interval).count(), 0);
    }
}
