//! Which position PostgreSQL may record, and when the state machine is stored with it.

use crate::state_machine::RETRY_WINDOW_MS;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often a recorded position is made durable and the log is compacted, in milliseconds.
const DURABLE_MS: u64 = 2_000;
/// How often the state machine is stored while it changes, in milliseconds; and not so often that
/// it takes more than this many bytes a second.
const STATE_MS: u64 = 500;
const STATE_BYTES_PER_S: u64 = 4 << 20;
/// What the record of transactions over several shards may take at most, in bytes per second:
/// positions are recorded more rarely then.
const TRANSACTION_BYTES_PER_S: u64 = 1 << 20;
/// After how many bytes of changes the sizes of ranges are stored again: a replica that stops loses
/// no more than that of them.
const SIZES_BYTES: u64 = 16 << 20;

/// The position that PostgreSQL records, and the state machine recorded with it.
pub(super) struct RecordedPosition {
    /// The last position recorded, and the term in force there.
    pub(super) position: u64,
    pub(super) term: u64,
    /// PostgreSQL may hold entries up to here.
    pub(super) reached: u64,
    /// The position whose state machine was recorded last, and when the next one is due.
    state_at: u64,
    state_due: Instant,
    /// When a position may be recorded again with the transactions over several shards.
    transactions_due: Instant,
    /// Bytes of changes since then.
    written_bytes: u64,
    /// The last position at which the state machine changed other than by rows.
    pub(super) state_changed_at: u64,
    /// When positions were recorded, oldest first: their answers are needed for the retry window.
    pub(super) history: VecDeque<(Instant, u64)>,
    pub(super) durable_at: Instant,
    pub(super) durable_position: u64,
}

impl RecordedPosition {
    pub(super) fn at(position: u64, term: u64, reached: u64) -> RecordedPosition {
        RecordedPosition {
            position,
            term,
            reached,
            state_at: position,
            state_due: evenkeel_host::now(),
            transactions_due: evenkeel_host::now(),
            written_bytes: 0,
            state_changed_at: position,
            history: VecDeque::new(),
            durable_at: evenkeel_host::now(),
            durable_position: 0,
        }
    }

    /// PostgreSQL will hold entries up to `reached`, and all up to `recordable`, where `term` is in
    /// force: records what of that can be. Gives whether the state machine, as it is now, is to be
    /// recorded with it.
    ///
    /// A position is recorded only if the state machine at that position is, too. There is only the
    /// present one: it may have changed behind the position while an entry is unfinished (R12), and
    /// then the last position that was recorded is recorded again. So it is, too, while the state
    /// machine has changed and need not be stored yet, unless the position is wanted `now`: the
    /// state machine is as large as what the shard owns, and may change with each entry.
    pub(super) fn record(&mut self, recordable: u64, term: u64, reached: u64, now: bool) -> bool {
        self.reached = self.reached.max(reached);
        if recordable < self.position || self.state_changed_at > recordable {
            return false;
        }
        if recordable > self.position && !now && evenkeel_host::now() < self.transactions_due {
            return false;
        }
        let changed = self.state_changed_at > self.state_at;
        if changed && !now && evenkeel_host::now() < self.state_due {
            return false;
        }
        (self.position, self.term) = (recordable, term);
        changed || (self.written_bytes >= SIZES_BYTES && evenkeel_host::now() >= self.state_due)
    }

    /// Rows have changed, by this many bytes.
    pub(super) fn written(&mut self, bytes: u64) {
        self.written_bytes += bytes;
    }

    /// The state machine, of this many bytes, is stored with the position recorded last.
    pub(super) fn state_stored(&mut self, bytes: usize) {
        self.state_at = self.position;
        self.written_bytes = 0;
        let ms = (bytes as u64 * 1000 / STATE_BYTES_PER_S).max(STATE_MS);
        self.state_due = evenkeel_host::now() + Duration::from_millis(ms);
    }

    /// The transactions over several shards, of this many bytes, are stored with the position
    /// recorded last.
    pub(super) fn transactions_stored(&mut self, bytes: usize) {
        let ms = bytes as u64 * 1000 / TRANSACTION_BYTES_PER_S;
        self.transactions_due = evenkeel_host::now() + Duration::from_millis(ms);
    }

    /// Whether the next batch should be durable. A log that is far towards its cap must be
    /// compacted sooner.
    pub(super) fn is_durable_due(&self, log_is_large: bool, reached: u64) -> bool {
        let due = log_is_large || evenkeel_host::elapsed(self.durable_at) >= Duration::from_millis(DURABLE_MS);
        due && reached > self.durable_position
    }

    /// A batch up to `reached` is about to be durable.
    pub(super) fn durable(&mut self, reached: u64) {
        self.durable_at = evenkeel_host::now();
        self.durable_position = reached;
    }

    /// The last recorded position whose answers the retry window no longer needs; 0 if there is
    /// none. It is forgotten here.
    pub(super) fn outlived(&mut self) -> u64 {
        let window = Duration::from_millis(RETRY_WINDOW_MS);
        let mut positions_below = 0;
        while self.history.len() > 1 && self.history.front().is_some_and(|(at, _)| evenkeel_host::elapsed(*at) > window)
        {
            if let Some((_, position)) = self.history.pop_front() {
                positions_below = position;
            }
        }
        positions_below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R12, invariant 3: a replica that starts again continues from a position and the state machine
    // that belongs to it.
    #[test]
    fn no_position_is_recorded_without_its_state_machine() {
        let mut kept = RecordedPosition::at(10, 1, 10);
        assert!(!kept.record(20, 1, 20, true), "nothing but rows");
        assert_eq!((kept.position, kept.term, kept.reached), (20, 1, 20));
        // An entry is unfinished from 45 on, and the state machine changes at 40 and at 50, behind
        // its first part.
        kept.state_changed_at = 50;
        assert!(!kept.record(44, 2, 60, true));
        assert_eq!((kept.position, kept.term, kept.reached), (20, 1, 60), "neither the state of 44 nor of 20 is there");
        assert!(kept.record(70, 2, 70, true), "the entry is whole");
        assert_eq!((kept.position, kept.term, kept.reached), (70, 2, 70));
        kept.state_stored(0);
        assert!(!kept.record(75, 2, 90, true));
        assert_eq!((kept.position, kept.term, kept.reached), (75, 2, 90), "rows behind a first part");
        assert!(!kept.record(75, 2, 75, true));
        assert_eq!(kept.reached, 90, "what PostgreSQL may hold grows");
    }
    // E8: a follower records a position every 20 ms, and during a move the state machine changes
    // each time.
    #[test]
    fn a_state_machine_that_changes_often_is_stored_now_and_then() {
        let mut kept = RecordedPosition::at(10, 1, 10);
        let mut stored = 0;
        for position in 11..1_000 {
            kept.state_changed_at = position;
            if kept.record(position, 1, position, false) {
                kept.state_stored(STATE_BYTES_PER_S as usize);
                stored += 1;
            }
            assert_eq!((kept.position, kept.reached), (11, position), "rows are there, the state machine is not");
        }
        assert_eq!(stored, 1);
        assert!(kept.state_due > evenkeel_host::now() + Duration::from_millis(STATE_MS), "a large one, more rarely");
        assert!(
            kept.record(1_000, 1, 1_000, true),
            "a durable batch, or the beginning of a leadership, needs its position"
        );
        assert_eq!(kept.position, 1_000);
        kept.state_stored(0);
        assert!(!kept.record(1_001, 1, 1_001, false));
        assert_eq!(kept.position, 1_001, "nothing but rows");
        kept.written(SIZES_BYTES);
        assert!(!kept.record(1_002, 1, 1_002, true), "it was stored just now");
        kept.state_due = evenkeel_host::now();
        assert!(kept.record(1_003, 1, 1_003, false), "the sizes of ranges have changed");
    }

    // R26: prepared changes are recorded with each position, so that there are fewer of these.
    #[test]
    fn large_transactions_are_recorded_with_fewer_positions() {
        let mut kept = RecordedPosition::at(10, 1, 10);
        kept.transactions_stored(TRANSACTION_BYTES_PER_S as usize);
        assert!(!kept.record(20, 1, 20, false));
        assert_eq!((kept.position, kept.reached), (10, 20));
        assert!(!kept.record(21, 1, 21, true));
        assert_eq!(kept.position, 21, "it is needed now");
        kept.transactions_stored(0);
        assert!(!kept.record(22, 1, 22, false));
        assert_eq!(kept.position, 22);
    }
}
