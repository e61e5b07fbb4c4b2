//! One write per key at a time.
//!
//! A write of a key starts, or is parked behind the write of that key that is under way. The end of
//! a write hands out the next parked one, so a hot key costs waiting time and no tasks. The number
//! of parked operations is limited; at the limit the caller keeps its operation and waits.

use std::collections::{HashMap, VecDeque};

/// Whether an operation may start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WriteStart<T> {
    /// It may start; call [`KeyOrder::leave`] at its end.
    Started(T),
    /// It waits behind another; [`KeyOrder::leave`] hands it out.
    Parked,
    /// Too many wait already; ask again after a `leave`.
    Full(T),
}

/// All keys that have a write under way, with the writes that wait for it.
#[derive(Debug)]
pub(super) struct KeyOrder<T> {
    busy: HashMap<i64, VecDeque<T>>,
    parked: usize,
    max_parked: usize,
}

impl<T> KeyOrder<T> {
    pub(super) fn new(max_parked: usize) -> Self {
        Self { busy: HashMap::new(), parked: 0, max_parked }
    }

    /// Asks to write `key`.
    pub(super) fn enter(&mut self, key: i64, operation: T) -> WriteStart<T> {
        match self.busy.get_mut(&key) {
            None => {
                self.busy.insert(key, VecDeque::new());
                WriteStart::Started(operation)
            }
            Some(_) if self.parked >= self.max_parked => WriteStart::Full(operation),
            Some(waiting) => {
                waiting.push_back(operation);
                self.parked += 1;
                WriteStart::Parked
            }
        }
    }

    /// Ends the write of `key`. If another was parked behind it, it is returned and must be
    /// started.
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
        let mut order = KeyOrder::new(10);
        assert_eq!(order.enter(1, 'a'), WriteStart::Started('a'));
        assert_eq!(order.enter(1, 'b'), WriteStart::Parked);
        assert_eq!(order.enter(1, 'c'), WriteStart::Parked);
        assert_eq!(order.enter(2, 'd'), WriteStart::Started('d'));
        assert_eq!(order.leave(1), Some('b'));
        assert_eq!(order.leave(1), Some('c'));
        assert_eq!(order.leave(1), None);
        assert_eq!(order.enter(1, 'e'), WriteStart::Started('e'));
        assert_eq!(order.parked(), 0);
    }

    #[test]
    fn waiting_is_limited() {
        let mut order = KeyOrder::new(1);
        assert_eq!(order.enter(1, 'a'), WriteStart::Started('a'));
        assert_eq!(order.enter(1, 'b'), WriteStart::Parked);
        assert_eq!(order.enter(1, 'c'), WriteStart::Full('c'));
        assert_eq!(order.enter(2, 'd'), WriteStart::Started('d'), "other keys go on");
        assert_eq!(order.leave(1), Some('b'));
        assert_eq!(order.enter(1, 'c'), WriteStart::Parked);
    }
}
