//! One write per key at a time.
//!
//! A write enters its key's gate or is parked behind it. Whoever finishes a write takes the next parked one with it, so
//! a hot key costs waiting and not tasks. The number of parked operations is limited; at the limit the caller keeps
//! its operation and waits.

use std::collections::{HashMap, VecDeque};

/// What became of an operation at its key's gate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry<T> {
    /// The gate is its own now: start it, and call [`Gates::leave`] at its end.
    Entered(T),
    /// It waits behind another; [`Gates::leave`] will hand it out.
    Parked,
    /// Too many wait already; ask again after a `leave`.
    Full(T),
}

/// The gates of all keys that have a write under way.
#[derive(Debug)]
pub(super) struct Gates<T> {
    busy: HashMap<i64, VecDeque<T>>,
    parked: usize,
    max_parked: usize,
}

impl<T> Gates<T> {
    pub(super) fn new(max_parked: usize) -> Self {
        Self { busy: HashMap::new(), parked: 0, max_parked }
    }

    /// Asks to write `key`.
    pub(super) fn enter(&mut self, key: i64, operation: T) -> Entry<T> {
        match self.busy.get_mut(&key) {
            None => {
                self.busy.insert(key, VecDeque::new());
                Entry::Entered(operation)
            }
            Some(_) if self.parked >= self.max_parked => Entry::Full(operation),
            Some(waiting) => {
                waiting.push_back(operation);
                self.parked += 1;
                Entry::Parked
            }
        }
    }

    /// Ends the write of `key`. If another was parked behind it, that one owns the gate now and must be started.
    pub(super) fn leave(&mut self, key: i64) -> Option<T> {
        let next = self.busy.get_mut(&key).and_then(VecDeque::pop_front);
        match next {
            Some(_) => self.parked -= 1,
            None => {
                self.busy.remove(&key);
            }
        }
        next
    }

    /// Operations that are parked.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_a_key_go_one_by_one_in_order() {
        let mut gates = Gates::new(10);
        assert_eq!(gates.enter(1, 'a'), Entry::Entered('a'));
        assert_eq!(gates.enter(1, 'b'), Entry::Parked);
        assert_eq!(gates.enter(1, 'c'), Entry::Parked);
        assert_eq!(gates.enter(2, 'd'), Entry::Entered('d'));
        assert_eq!(gates.leave(1), Some('b'));
        assert_eq!(gates.leave(1), Some('c'));
        assert_eq!(gates.leave(1), None);
        assert_eq!(gates.enter(1, 'e'), Entry::Entered('e'));
        assert_eq!(gates.parked(), 0);
    }

    #[test]
    fn waiting_is_limited() {
        let mut gates = Gates::new(1);
        assert_eq!(gates.enter(1, 'a'), Entry::Entered('a'));
        assert_eq!(gates.enter(1, 'b'), Entry::Parked);
        assert_eq!(gates.enter(1, 'c'), Entry::Full('c'));
        assert_eq!(gates.enter(2, 'd'), Entry::Entered('d'), "other keys go on");
        assert_eq!(gates.leave(1), Some('b'));
        assert_eq!(gates.enter(1, 'c'), Entry::Parked);
    }
}
