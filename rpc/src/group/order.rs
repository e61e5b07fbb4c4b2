//! The order in which the replicas of a group are asked. Pure.

use std::collections::BTreeMap;

/// The order in which the replicas of a group are asked: a named replica first, otherwise the one
/// after the last, in the order of their numbers, around. A hint that is wrong costs one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    named: Option<u64>,
    last: Option<u64>,
    /// The last replica that could not be reached. The others may name it as leader until they have
    /// elected another one; asking it each time would double the time until that one is found.
    unreachable: Option<u64>,
}

impl Order {
    /// An order that begins with the replica that led last, if one is known.
    pub fn new(leader: Option<u64>) -> Order {
        Order { named: leader, ..Order::default() }
    }

    /// The replica to ask next: the named one if it is a member, else the member after the last
    /// one, else the first. `None` if there are no members.
    pub fn next<T>(&mut self, members: &BTreeMap<u64, T>) -> Option<u64> {
        let named = self.named.take().filter(|named| members.contains_key(named));
        let after = || self.last.and_then(|last| members.range(last.saturating_add(1)..).next());
        let in_turn = || after().or_else(|| members.first_key_value()).map(|(replica, _)| *replica);
        let chosen = named.or_else(in_turn)?;
        self.last = Some(chosen);
        Some(chosen)
    }

    /// The replica that was asked last.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// The replica that is asked next if it is a member.
    pub(super) fn named(&self) -> Option<u64> {
        self.named
    }

    /// Asks the same replica again.
    pub fn ask_same(&mut self) {
        self.named = self.last;
    }

    /// Asks another replica: `leader` if the last one names it, unless it is the last one itself or
    /// could not be reached.
    pub fn ask_other(&mut self, leader: Option<u64>) {
        self.named = leader.filter(|leader| Some(*leader) != self.last && Some(*leader) != self.unreachable);
    }

    /// Records that the last replica could not be reached.
    pub fn unreachable(&mut self) {
        self.unreachable = self.last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(numbers: &[u64]) -> BTreeMap<u64, ()> {
        numbers.iter().map(|number| (*number, ())).collect()
    }

    #[test]
    fn every_replica_gets_its_turn_and_a_hint_goes_first() {
        let of = members(&[1, 2, 5]);
        let next = |named, last| Order { named, last, unreachable: None }.next(&of);
        assert_eq!(next(None, None), Some(1));
        assert_eq!(next(None, Some(1)), Some(2));
        assert_eq!(next(None, Some(2)), Some(5));
        assert_eq!(next(None, Some(5)), Some(1));
        assert_eq!(next(Some(5), Some(1)), Some(5));
        assert_eq!(next(Some(9), Some(2)), Some(5), "a replica that is not a member is no hint");
        assert_eq!(Order::new(Some(1)).next(&members(&[])), None);
    }

    #[test]
    fn the_leader_that_answered_last_is_asked_first() {
        let of = members(&[1, 2, 3]);
        let mut order = Order::new(Some(2));
        assert_eq!(order.next(&of), Some(2));
        order.ask_other(None);
        assert_eq!(order.next(&of), Some(3));
        order.ask_other(None);
        assert_eq!(order.next(&of), Some(1));
        order.ask_same();
        assert_eq!(order.next(&of), Some(1));
    }

    /// Breaks if a replica that is gone is asked again each time that another one names it.
    #[test]
    fn a_replica_that_cannot_be_reached_is_no_hint() {
        let of = members(&[1, 2, 3]);
        let mut order = Order::new(Some(1));
        assert_eq!(order.next(&of), Some(1));
        order.unreachable();
        order.ask_other(None);
        assert_eq!(order.next(&of), Some(2));
        order.ask_other(Some(1));
        assert_eq!(order.next(&of), Some(3));
        order.ask_other(Some(3));
        assert_eq!(order.next(&of), Some(1), "a replica that names itself is no hint either");
    }
}
