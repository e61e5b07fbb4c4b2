//! Leader leases, the follower's side: the *hold*, a promise to promise nothing to other candidates
//! (log rule 9; [`super::leader_lease`] says why this is enough).
//!
//! A `Prepare` that arrives during a hold waits, with every later message of Sequence Paxos on that
//! session (log rule 3). A hold is only ever extended, never while a `Prepare` waits, so it delays
//! an election by one period at most. Only a replica whose promise is exactly the leader's ballot
//! holds. A restarted replica has forgotten its hold, so it holds against every candidate for one
//! period.

use std::collections::BTreeMap;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;

use crate::item::Item;
use crate::wire::size_of_message;

use super::config::CoreConfig;
use super::fault::Fault;

/// The most that waits behind one candidate's `Prepare`, in bytes. The candidate gets no answer, so
/// there is little more than the `Prepare`.
const WAITING_BYTES: usize = 1 << 20;

/// No promise to other candidates until then.
#[derive(Clone, Copy, Debug)]
struct Hold {
    /// The leader's ballot; `None` if this replica has forgotten it.
    leader: Option<Ballot>,
    until_ms: u64,
}

#[derive(Debug, Default)]
struct WaitingMessages {
    messages: Vec<Message<Item>>,
    bytes: usize,
}

/// Too many bytes wait behind a `Prepare`: the session must be closed (log rule 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HoldOverflow;

/// The hold of this replica, and the messages that wait for its end.
#[derive(Debug, Default)]
pub(super) struct LeaseHold {
    hold: Option<Hold>,
    waiting: BTreeMap<u64, WaitingMessages>,
}

impl LeaseHold {
    /// The hold after a start, since the previous process may have given one. A replica that never
    /// promised anything never held.
    pub(super) fn after_restart(config: &CoreConfig, promise: Ballot, now_ms: u64) -> LeaseHold {
        let lease_ms = config.timing.lease_ms;
        let promised = promise != Ballot::default();
        let holds = lease_ms > 0 && promised && !config.fault(Fault::NoRestartHold);
        let hold = holds.then(|| Hold { leader: None, until_ms: now_ms + lease_ms });
        LeaseHold { hold, waiting: BTreeMap::new() }
    }

    /// The leader `pid` asks for a hold for `ballot`. Returns whether it is given.
    pub(super) fn request(
        &mut self,
        config: &CoreConfig,
        pid: u64,
        ballot: Ballot,
        promise: Ballot,
        now_ms: u64,
    ) -> bool {
        let lease_ms = config.timing.lease_ms;
        // Exactly the ballot: a replica with a lower promise has not synchronised with this leader,
        // one with a higher promise must not hold.
        let follows = ballot.pid == pid && promise == ballot;
        // A waiting Prepare is an election. The current hold delays it, and no later one.
        let election = !self.waiting.is_empty();
        if lease_ms == 0 || !follows || election || self.is_against(config, pid, now_ms) {
            return false;
        }
        // Never shortened: the clock does not go back.
        self.hold = Some(Hold { leader: Some(ballot), until_ms: now_ms + lease_ms });
        true
    }

    /// The leadership of `pid` with `ballot` has ended. Only that leader ends its hold early.
    /// Returns whether there was such a hold.
    pub(super) fn release(&mut self, pid: u64, ballot: Ballot) -> bool {
        let released = ballot.pid == pid && self.hold.is_some_and(|h| h.leader == Some(ballot));
        if released {
            self.hold = None;
        }
        released
    }

    /// Whether this replica may not promise anything to `pid` now.
    fn is_against(&self, config: &CoreConfig, pid: u64, now_ms: u64) -> bool {
        let holds = |h: Hold| now_ms < h.until_ms && h.leader.is_none_or(|b| b.pid != pid);
        self.hold.is_some_and(holds) && !config.fault(Fault::NoHold)
    }

    /// Passes a message, or keeps it (`None`) until the hold ends: a Prepare that would be
    /// promised, and every later message of Sequence Paxos (log rule 3). Heartbeats and control
    /// messages need no order and pass.
    ///
    /// # Errors
    /// Too many bytes wait. The waiting messages of the session are dropped.
    pub(super) fn filter(
        &mut self,
        config: &CoreConfig,
        (peer, pid): (u64, u64),
        message: Message<Item>,
        promise: Ballot,
        now_ms: u64,
    ) -> Result<Option<Message<Item>>, HoldOverflow> {
        let Message::SequencePaxos(paxos) = &message else {
            return Ok(Some(message));
        };
        let promising = matches!(&paxos.msg, PaxosMsg::Prepare(p) if p.n > promise);
        let waits = self.waiting.contains_key(&peer) || (promising && self.is_against(config, pid, now_ms));
        if !waits {
            return Ok(Some(message));
        }
        let waiting = self.waiting.entry(peer).or_default();
        waiting.bytes += size_of_message(&message);
        waiting.messages.push(message);
        if waiting.bytes <= WAITING_BYTES {
            return Ok(None);
        }
        self.forget(peer);
        Err(HoldOverflow)
    }

    /// Drops the messages of a session that has ended (log rule 3).
    pub(super) fn forget(&mut self, peer: u64) {
        self.waiting.remove(&peer);
    }

    /// The messages whose waiting ends, by peer and in their order, if the hold has ended.
    pub(super) fn take_due(&mut self, now_ms: u64) -> Vec<(u64, Vec<Message<Item>>)> {
        if self.waiting.is_empty() || self.hold.is_some_and(|h| now_ms < h.until_ms) {
            return Vec::new();
        }
        std::mem::take(&mut self.waiting).into_iter().map(|(peer, waiting)| (peer, waiting.messages)).collect()
    }
}
