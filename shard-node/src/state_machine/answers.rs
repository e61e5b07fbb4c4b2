//! Answers of a retry window that belong to one range, as one moment had them.

use crate::log_entry::{Answered, Changes, TailEntry};
use bytes::Bytes;
use evenkeel_protocol::{KeyInterval, TableId};
use std::sync::Arc;

/// The memory of an answer beside its key and its reply, in bytes.
pub(super) const ANSWER_BYTES: usize = 192;

/// An answer and when and where it was given.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) stamp_ms: u64,
    pub(super) position: u64,
    pub(super) answered: Answered,
}

impl Kept {
    pub(super) fn size_bytes(&self) -> usize {
        ANSWER_BYTES + self.answered.key.0.len()
    }
}

/// A range's part of a retry window, as it was when it was asked for.
#[derive(Debug)]
pub struct RangeAnswers {
    pub(super) segments: Vec<Arc<Vec<Kept>>>,
    pub(super) skipped: usize,
    pub(super) table: TableId,
    pub(super) interval: KeyInterval,
    pub(super) oldest_ms: u64,
    pub(super) forgotten_ms: u64,
}

impl RangeAnswers {
    /// The answers that are not too old.
    pub fn iter(&self) -> impl Iterator<Item = &Answered> {
        self.of_range().filter(|kept| kept.stamp_ms >= self.oldest_ms).map(|kept| &kept.answered)
    }

    /// All that the window had of the range.
    fn of_range(&self) -> impl Iterator<Item = &Kept> {
        let within = |kept: &&Kept| {
            let (of, key) = (kept.answered.table, &kept.answered.key);
            of == self.table && self.interval.contains(key)
        };
        let kept = self.segments.iter().enumerate().flat_map(|(at, segment)| {
            let from = if at == 0 { self.skipped.min(segment.len()) } else { 0 };
            segment[from..].iter()
        });
        kept.filter(within)
    }

    /// The latest time of a first sending among all answers of the range that the source has
    /// forgotten, or that are too old and stay behind.
    fn forgotten_ms(&self) -> u64 {
        let old = self.of_range().filter(|kept| kept.stamp_ms < self.oldest_ms);
        old.map(|kept| kept.answered.id.first_sent_ms).max().unwrap_or(0).max(self.forgotten_ms)
    }

    /// As encoded [`TailEntry`]s without changes, at position 0, of at most about `max_bytes` each;
    /// at least one. The stamp of each says up to when ids have been forgotten.
    pub fn pieces(&self, max_bytes: usize) -> Vec<Bytes> {
        let forgotten_ms = self.forgotten_ms();
        let piece = |answered: Vec<Answered>| {
            let changes = Changes { stamp_ms: forgotten_ms, answered, changes: Vec::new() };
            TailEntry { position: 0, changes }.encode()
        };
        let (mut pieces, mut collected, mut bytes) = (Vec::new(), Vec::new(), 0);
        for answered in self.iter() {
            if bytes > 0 && bytes + answered.size_bytes() > max_bytes {
                pieces.push(piece(std::mem::take(&mut collected)));
                bytes = 0;
            }
            bytes += answered.size_bytes();
            collected.push(answered.clone());
        }
        pieces.push(piece(collected));
        pieces
    }
}
