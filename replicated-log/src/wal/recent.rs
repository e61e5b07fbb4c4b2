//! The newest items of the log, in memory and bounded by bytes.

use std::collections::VecDeque;

use crate::item::Item;

/// Consecutive items up to the end of the log. All items that are not durable yet are among them.
#[derive(Debug)]
pub(super) struct RecentItems {
    items: VecDeque<Item>,
    first: u64,
    size_bytes: usize,
}

impl RecentItems {
    /// No items, at the end `position` of the log.
    pub(super) fn none_at(position: u64) -> RecentItems {
        RecentItems { items: VecDeque::new(), first: position, size_bytes: 0 }
    }

    /// The position of the first item in memory.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn push(&mut self, item: Item) {
        self.size_bytes += item.encoded_bytes();
        self.items.push_back(item);
    }

    /// The item at `position`, which is in memory.
    pub(super) fn at(&self, position: u64) -> &Item {
        &self.items[(position - self.first) as usize]
    }

    /// The items `from..to`, which are in memory.
    pub(super) fn range(&self, from: u64, to: u64) -> impl ExactSizeIterator<Item = &Item> {
        self.items.range((from - self.first) as usize..(to - self.first) as usize)
    }

    /// Drops the items from `from` on.
    pub(super) fn cut(&mut self, from: u64) {
        let keep = from.saturating_sub(self.first) as usize;
        for item in self.items.drain(keep..) {
            self.size_bytes -= item.encoded_bytes();
        }
        self.first = self.first.min(from);
    }

    /// Drops the items before `to`.
    pub(super) fn forget_before(&mut self, to: u64) {
        while self.first < to && self.pop() {}
    }

    /// Drops the oldest items until the rest takes at most `limit_bytes`. All items are durable.
    pub(super) fn evict(&mut self, limit_bytes: usize) {
        while self.size_bytes > limit_bytes && self.pop() {}
    }

    fn pop(&mut self) -> bool {
        let oldest = self.items.pop_front();
        if let Some(item) = &oldest {
            self.size_bytes -= item.encoded_bytes();
            self.first += 1;
        }
        oldest.is_some()
    }
}
