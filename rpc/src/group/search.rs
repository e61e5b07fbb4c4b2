//! One search for the leader of a group, as a state machine: failures and elapsed time in, steps
//! out. Pure.

use super::order::Order;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// The replicas of a group and their addresses.
pub type Addresses = BTreeMap<u64, SocketAddr>;

/// How often one replica is asked in a search; more often only if it asks for patience.
const ASKS_PER_REPLICA: u32 = 2;
/// The shortest pause before a replica that asks for patience is asked again.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// Why an attempt brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// The replica does not lead; it may know the leader.
    NotLeader {
        /// The leader that it names.
        leader: Option<u64>,
    },
    /// The replica leads and cannot answer yet.
    TryAgain {
        /// The pause that it asks for.
        after: Duration,
    },
    /// No connection could be made, or no reply arrived in time.
    Unreachable,
    /// The connection ended before the reply.
    Lost,
}

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchStep {
    /// Ask a replica, after a pause.
    Ask {
        /// Its number.
        replica: u64,
        /// Its address.
        address: SocketAddr,
        /// The pause.
        after: Duration,
    },
    /// Ask a replica for the group's members, then call [`Search::learn`].
    AskMembers {
        /// Its address.
        address: SocketAddr,
    },
    /// Every replica has been asked, or the time is up.
    GiveUp,
}

/// One search for the leader.
#[derive(Debug, Clone)]
pub struct Search {
    members: Addresses,
    order: Order,
    asks: BTreeMap<u64, u32>,
    /// The replicas that have been asked for the members.
    asked_members: BTreeSet<u64>,
    /// A leader that is not a known member.
    stranger: Option<u64>,
    total: Duration,
}

impl Search {
    /// A search among `members` that begins with `leader` and asks for at most `total`.
    pub fn new(members: Addresses, leader: Option<u64>, total: Duration) -> Search {
        Search {
            members,
            order: Order::new(leader),
            asks: BTreeMap::new(),
            asked_members: BTreeSet::new(),
            stranger: None,
            total,
        }
    }

    /// The first step.
    pub fn begin(&mut self) -> SearchStep {
        self.ask(Duration::ZERO, false)
    }

    /// The step after a failed attempt, `elapsed` after the beginning of the search.
    pub fn failed(&mut self, failure: NoAnswer, elapsed: Duration) -> SearchStep {
        if elapsed >= self.total {
            return SearchStep::GiveUp;
        }
        match failure {
            NoAnswer::NotLeader { leader } => {
                if let Some(step) = leader.and_then(|leader| self.ask_about(leader)) {
                    return step;
                }
                self.order.ask_other(leader);
            }
            NoAnswer::TryAgain { after } => {
                let after = after.max(MIN_PAUSE);
                if elapsed.saturating_add(after) < self.total {
                    self.order.ask_same();
                    return self.ask(after, true);
                }
                self.order.ask_other(None);
            }
            NoAnswer::Unreachable => {
                self.order.unreachable();
                self.order.ask_other(None);
            }
            NoAnswer::Lost => self.order.ask_other(None),
        }
        self.ask(Duration::ZERO, false)
    }

    /// Asks the replica that was asked last for the members, if it names a leader that is not one.
    fn ask_about(&mut self, leader: u64) -> Option<SearchStep> {
        let by = self.order.last()?;
        if self.members.contains_key(&leader) || !self.asked_members.insert(by) {
            return None;
        }
        self.stranger = Some(leader);
        Some(SearchStep::AskMembers { address: *self.members.get(&by)? })
    }

    /// The step after [`SearchStep::AskMembers`]; `None` if the replica did not answer. Members are
    /// added and not removed: the replica may be behind.
    pub fn learn(&mut self, members: Option<Addresses>) -> SearchStep {
        for (replica, address) in members.into_iter().flatten() {
            self.members.entry(replica).or_insert(address);
        }
        self.order.ask_other(self.stranger.take());
        self.ask(Duration::ZERO, false)
    }

    /// The members, with those that the search has learnt.
    pub fn into_members(self) -> Addresses {
        self.members
    }

    fn ask(&mut self, after: Duration, again: bool) -> SearchStep {
        let asks = |replica: &u64| self.asks.get(replica).copied().unwrap_or(0);
        let named = self.order.named();
        let may_be_asked = |replica: &u64| match asks(replica) {
            0 => true,
            asks => Some(*replica) == named && (again || asks < ASKS_PER_REPLICA),
        };
        let left: Addresses =
            self.members.iter().filter(|(id, _)| may_be_asked(id)).map(|(id, at)| (*id, *at)).collect();
        let Some(replica) = self.order.next(&left) else { return SearchStep::GiveUp };
        let Some(address) = left.get(&replica).copied() else { return SearchStep::GiveUp };
        *self.asks.entry(replica).or_default() += 1;
        SearchStep::Ask { replica, address, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const TOTAL: Duration = Duration::from_secs(10);

    fn address(replica: u64) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], replica as u16))
    }

    fn members(numbers: &[u64]) -> Addresses {
        numbers.iter().map(|number| (*number, address(*number))).collect()
    }

    fn ask(replica: u64) -> SearchStep {
        SearchStep::Ask { replica, address: address(replica), after: Duration::ZERO }
    }

    fn search(leader: Option<u64>) -> Search {
        Search::new(members(&[1, 2, 3]), leader, TOTAL)
    }

    fn not_leader(leader: impl Into<Option<u64>>) -> NoAnswer {
        NoAnswer::NotLeader { leader: leader.into() }
    }

    #[test]
    fn the_leader_is_asked_first_and_everyone_once() {
        for (leader, order) in [(Some(2), [2, 3, 1]), (None, [1, 2, 3]), (Some(9), [1, 2, 3])] {
            let mut search = search(leader);
            assert_eq!(search.begin(), ask(order[0]));
            assert_eq!(search.failed(NoAnswer::Lost, SOON), ask(order[1]));
            assert_eq!(search.failed(not_leader(None), SOON), ask(order[2]));
            assert_eq!(search.failed(NoAnswer::Lost, SOON), SearchStep::GiveUp);
        }
    }

    #[test]
    fn a_named_leader_is_asked_next_and_at_most_twice() {
        let mut search = search(None);
        assert_eq!(search.begin(), ask(1));
        assert_eq!(search.failed(not_leader(3), SOON), ask(3));
        assert_eq!(search.failed(not_leader(1), SOON), ask(1), "it may lead by now");
        assert_eq!(search.failed(not_leader(3), SOON), ask(3));
        assert_eq!(search.failed(not_leader(1), SOON), ask(2), "replicas that name each other end the search");
        assert_eq!(search.failed(not_leader(1), SOON), SearchStep::GiveUp);
    }

    /// Breaks if a replica whose machine has failed costs a time limit for each of the others.
    #[test]
    fn an_unreachable_leader_is_not_asked_again_in_the_same_search() {
        let mut search = search(Some(1));
        assert_eq!(search.begin(), ask(1));
        assert_eq!(search.failed(NoAnswer::Unreachable, SOON), ask(2));
        assert_eq!(search.failed(not_leader(1), SOON), ask(3));
        assert_eq!(search.failed(not_leader(1), SOON), SearchStep::GiveUp);
    }

    #[test]
    fn a_lost_connection_may_be_made_again_when_another_names_the_replica() {
        let mut search = search(Some(1));
        assert_eq!(search.begin(), ask(1));
        assert_eq!(search.failed(NoAnswer::Lost, SOON), ask(2));
        assert_eq!(search.failed(not_leader(1), SOON), ask(1));
    }

    /// Breaks if the leader of a group all of whose other replicas were replaced cannot be found.
    #[test]
    fn a_leader_that_is_not_a_member_is_looked_up_where_it_was_named() {
        let mut search = search(None);
        assert_eq!(search.begin(), ask(1));
        assert_eq!(search.failed(not_leader(7), SOON), SearchStep::AskMembers { address: address(1) });
        assert_eq!(search.learn(None), ask(2), "a silent replica teaches nothing");
        assert_eq!(search.failed(not_leader(7), SOON), SearchStep::AskMembers { address: address(2) });
        assert_eq!(search.learn(Some(members(&[2, 7]))), ask(7));
        assert_eq!(search.into_members(), members(&[1, 2, 3, 7]));
    }

    #[test]
    fn a_leader_that_asks_for_patience_is_asked_again_until_the_time_is_up() {
        let mut search = search(Some(2));
        let pause = Duration::from_secs(4);
        let again = SearchStep::Ask { replica: 2, address: address(2), after: pause };
        search.begin();
        for seconds in [0, 2, 5] {
            assert_eq!(search.failed(NoAnswer::TryAgain { after: pause }, Duration::from_secs(seconds)), again);
        }
        assert_eq!(search.failed(NoAnswer::TryAgain { after: pause }, Duration::from_secs(7)), ask(3));
        assert_eq!(search.failed(not_leader(None), TOTAL), SearchStep::GiveUp);
    }

    #[test]
    fn a_group_without_members_is_given_up() {
        assert_eq!(Search::new(Addresses::new(), Some(1), TOTAL).begin(), SearchStep::GiveUp);
    }
}
