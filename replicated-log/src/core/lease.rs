//! Leader leases: linearizable reads that cost no message (log rule 9).
//!
//! A follower that answers a leader's [`Wire::LeaseRequest`] *holds*: for `lease_ms` of its own clock it promises
//! nothing to any other candidate. A `Prepare` that comes meanwhile waits, with everything behind it on that session
//! (log rule 3). Holds are only ever extended, not while a `Prepare` waits (so an election is delayed by one period at
//! most), and given only by a replica whose promise is exactly the leader's ballot. A restarted replica has
//! forgotten its hold, so it holds against everybody for one period.
//!
//! Why a leader may then answer by itself. Say it rules with ballot `b` among `n` replicas, and `a` followers hold. For
//! a write to be acknowledged elsewhere a candidate `c` needs promises of a ballot above `b` from a majority:
//!
//! - not from the leader: when it promises, its lease is shown as ended before any message of that turn leaves;
//! - not from a follower that holds, unless that is `c`: before its hold it had promised `b` and nothing above, and
//!   since then it promises only to the leader. A holder may stand for election itself;
//! - so at most from the `n - 1 - a` others and from `c`, which is less than a majority if `a > n - majority`.
//!
//! With three replicas both followers must hold, with five three of the four. One down among three: no lease, and the
//! probes of [`super::barrier`] serve. What earlier leaders acknowledged lies before this leadership's `LeaderStart`, which
//! must be decided before the lease counts (log rule 8).
//!
//! Clocks are compared with themselves only. The leader counts from the moment before it asked, a follower from a
//! moment after it was asked; the leader counts nine tenths of the period, which allows for 5 % of drift either way
//! (0.9 / 0.95 < 1 / 1.05), less a margin for whole milliseconds. A process that was frozen sees on waking that its
//! lease is over, for whoever reads looks at the clock after the lease.
//!
//! When a leadership ends its leader says so ([`Wire::LeaseRelease`]): it never rules with that ballot again, and nobody need
//! wait for the rest of the period. That keeps planned moves of the leadership (log rule 15) fast.

use std::collections::BTreeMap;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;

use crate::item::Item;
use crate::wal::Disk;
use crate::wire::{Wire, size_of_message};

use super::{Core, Fault, Leadership};

/// Both ends round their clocks down to whole milliseconds.
const MARGIN_MS: u64 = 2;

/// Requests per period: two may get lost or come late before reads have to probe.
const REQUESTS_PER_PERIOD: u64 = 3;

/// What may wait behind one candidate's `Prepare`. It gets no answer, so there is little more than the `Prepare`.
const WAITING_BYTES: usize = 1 << 20;

/// What the leader's readers may rely on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    /// On this replica's clock; 0 is none.
    pub(crate) until_ms: u64,
    /// What is decided, the leadership's `LeaderStart` included: no read is answered at a position before it. Others may hear
    /// of it from this turn's messages, before subscribers here do.
    pub(crate) floor: u64,
}

/// No promise to others until then.
#[derive(Clone, Copy, Debug)]
struct Hold {
    /// For whom; `None` if this replica has forgotten.
    leader: Option<Ballot>,
    until_ms: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: Vec<Message<Item>>,
    bytes: usize,
}

/// The follower's hold and what waits for its end; the leader's acknowledgements.
#[derive(Debug, Default)]
pub(super) struct Leases {
    hold: Option<Hold>,
    waiting: BTreeMap<u64, Waiting>,
    /// By peer, when the latest request that it has answered in this leadership was made.
    acked_ms: BTreeMap<u64, u64>,
    next_request_ms: u64,
}

impl<D: Disk> Core<D> {
    /// After a start: the hold that may have been forgotten. Who never promised anything never held.
    pub(super) fn hold_after_restart(&mut self) {
        let lease_ms = self.config.timing.lease_ms;
        let promised = self.omni.get_promise() != Ballot::default();
        if lease_ms > 0 && promised && !self.fault(Fault::NoRestartHold) {
            self.leases.hold = Some(Hold { leader: None, until_ms: self.now_ms + lease_ms });
        }
    }

    /// On each tick: the leader asks now and then.
    pub(super) fn request_lease(&mut self) {
        let lease_ms = self.config.timing.lease_ms;
        let Some(leadership) = self.leadership.filter(|_| lease_ms > 0 && self.now_ms >= self.leases.next_request_ms)
        else {
            return;
        };
        self.leases.next_request_ms = self.now_ms + lease_ms / REQUESTS_PER_PERIOD;
        // The ballot has been promised by a majority, this replica among them, in an earlier turn.
        let request = Wire::LeaseRequest { ballot: leadership.ballot, sent_ms: self.now_ms };
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        for peer in peers {
            self.early_control(peer, request.clone());
        }
    }

    pub(super) fn lease_requested(&mut self, peer: u64, ballot: Ballot, sent_ms: u64) {
        let lease_ms = self.config.timing.lease_ms;
        // Exactly: who has promised less has not synchronised with this leader, who has promised more must not hold.
        let follows = ballot.pid == self.pid(peer) && self.omni.get_promise() == ballot;
        // An election has begun: it is delayed until the end of the hold given, and no further.
        let election = !self.leases.waiting.is_empty();
        if lease_ms == 0 || !follows || election || self.held_against(peer) {
            return;
        }
        // Never shortened: the clock does not go back.
        self.leases.hold = Some(Hold { leader: Some(ballot), until_ms: self.now_ms + lease_ms });
        // A restart holds against everybody, so the hold itself need not be on disk. But one that had promised nothing does not:
        // a first promise must be.
        if self.wal.borrow().promise_is_durable() {
            self.early_control(peer, Wire::LeaseAck { ballot, sent_ms });
        } else {
            self.control(peer, Wire::LeaseAck { ballot, sent_ms });
        }
    }

    pub(super) fn lease_acked(&mut self, peer: u64, ballot: Ballot, sent_ms: u64) {
        if self.leadership.is_some_and(|r| r.ballot == ballot) && sent_ms <= self.now_ms {
            let acked_ms = self.leases.acked_ms.entry(peer).or_default();
            *acked_ms = sent_ms.max(*acked_ms);
        }
    }

    /// Only the leader that it was given to ends a hold early.
    pub(super) fn lease_released(&mut self, peer: u64, ballot: Ballot) {
        if ballot.pid == self.pid(peer) && self.leases.hold.is_some_and(|h| h.leader == Some(ballot)) {
            self.leases.hold = None;
            self.end_hold();
        }
    }

    /// The leadership with `ballot` is over, for good. The message goes out with the turn, hence after the lease's end
    /// has been shown to readers.
    pub(super) fn release_lease(&mut self, ballot: Ballot) {
        self.leases.acked_ms.clear();
        self.leases.next_request_ms = self.now_ms;
        if self.config.timing.lease_ms > 0 {
            self.tell_all(&Wire::LeaseRelease { ballot });
        }
    }

    fn tell_all(&mut self, wire: &Wire) {
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        for peer in peers {
            self.control(peer, wire.clone());
        }
    }

    /// What readers may rely on from now on. See the module's page for the number of holders.
    pub(super) fn lease(&self) -> Lease {
        let decided = self.omni.get_decided_idx() as u64;
        // log rule 8: what earlier leaders acknowledged is known once LeaderStart is decided.
        let valid = |r: Leadership| decided >= r.start && r.ballot == self.omni.get_promise();
        if !self.leadership.is_some_and(valid) {
            return Lease::default();
        }
        let needed = match self.fault(Fault::LeaseOfMajority) {
            true => self.majority() - 1,
            false => self.membership.members.len() - self.majority() + 1,
        };
        let mut acked_ms: Vec<u64> = self.leases.acked_ms.values().copied().collect();
        acked_ms.sort_unstable_by(|a, b| b.cmp(a));
        let Some(asked_ms) = acked_ms.get(needed - 1) else {
            return Lease::default();
        };
        let lasts_ms = (self.config.timing.lease_ms * 9 / 10).saturating_sub(MARGIN_MS);
        Lease { until_ms: asked_ms + lasts_ms, floor: decided }
    }

    /// Whether this replica may not promise anything to `peer` now.
    fn held_against(&self, peer: u64) -> bool {
        let holds = |h: Hold| self.now_ms < h.until_ms && h.leader.is_none_or(|b| b.pid != self.pid(peer));
        self.leases.hold.is_some_and(holds) && !self.fault(Fault::NoHold)
    }

    /// Passes a message on, or keeps it until the hold ends: a Prepare that would be promised, and whatever of
    /// Sequence Paxos comes behind it (log rule 3). Heartbeats and control messages know no order and pass.
    pub(super) fn admit(&mut self, peer: u64, message: Message<Item>) -> Option<Message<Item>> {
        let Message::SequencePaxos(paxos) = &message else {
            return Some(message);
        };
        let promising = matches!(&paxos.msg, PaxosMsg::Prepare(p) if p.n > self.omni.get_promise());
        let waits = self.leases.waiting.contains_key(&peer) || (promising && self.held_against(peer));
        if !waits {
            return Some(message);
        }
        let waiting = self.leases.waiting.entry(peer).or_default();
        waiting.bytes += size_of_message(&message);
        waiting.messages.push(message);
        if waiting.bytes > WAITING_BYTES {
            self.give_up_session(peer);
        }
        None
    }

    /// Log rule 3: a whole session or nothing.
    fn give_up_session(&mut self, peer: u64) {
        self.forget_waiting(peer);
        if let Some(session) = self.peers.get_mut(&peer).and_then(|p| p.session.take()) {
            self.turn.overflowed.push((peer, session));
        }
    }

    /// Its session is gone, and what came with it (log rule 3).
    pub(super) fn forget_waiting(&mut self, peer: u64) {
        self.leases.waiting.remove(&peer);
    }

    /// Whenever the clock has moved: what waited for the hold's end comes in, in its order.
    pub(super) fn end_hold(&mut self) {
        if self.leases.waiting.is_empty() || self.leases.hold.is_some_and(|h| self.now_ms < h.until_ms) {
            return;
        }
        for (peer, waiting) in std::mem::take(&mut self.leases.waiting) {
            for message in waiting.messages {
                self.paxos(peer, message);
            }
        }
    }
}
