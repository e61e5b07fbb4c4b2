//! Entries in a quorum's memory: durability level `memory` (R28).
//!
//! A proposal whose owner wants to know is *held* once so many replicas have it in memory, synced or not, that the crash of any one
//! of them cannot lose it. It goes beside OmniPaxos: the leader asks, in the message behind the entries, and a
//! replica answers as soon as it has them, before its sync. It is never an Accepted, and nothing is decided by it.
//!
//! **What counts.** A replica that has promised exactly ballot `b`, and accepted in it, has a prefix of the log of `b`'s
//! leader; so (ballot, length) says which entries it holds. The leader counts itself.
//!
//! **How many.** A majority is not enough. Say replicas 1 and 2 of three hold an entry; 1 crashes and comes back without
//! it, and is elected, or votes, together with 3 before 2 is heard: the entry is lost by a single crash. Therefore
//! `n - majority + 2` must hold it: then every majority has a holder that did not crash, and a new leader takes over the longest
//! log of the highest round among those who promise. With three replicas that is all three, with five it is four.
//! If fewer are up, or one is slow, the entry is held when it is decided: that is on a majority's disks and more.
//!
//! So what is held is lost only if two different replicas crash between its proposal and a majority's sync.

use std::collections::{BTreeMap, VecDeque};

use omnipaxos::ballot_leader_election::Ballot;

use crate::wal::Disk;
use crate::wire::Wire;

use super::{Core, Fault};

/// The leader's side: proposals that wait, and what the others hold. A follower's: what it was asked about.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Length of the log up to and including the entry, and its number; growing.
    waiting: VecDeque<(u64, u64)>,
    /// By peer, how much of this leadership's log it holds.
    held: BTreeMap<u64, u64>,
    /// The length that peers were last asked about.
    asked: u64,
    /// As a follower: who wants to know when this replica holds so much of that ballot's log.
    wanted: Option<(u64, Ballot, u64)>,
}

impl<D: Disk> Core<D> {
    /// The entry just appended is tracked under `id`.
    pub(super) fn track(&mut self, id: u64) {
        let length = self.omni.get_accepted_idx() as u64;
        self.holdings.waiting.push_back((length, id));
    }

    /// The ballot's leadership is over: whether what waits was held will not be known.
    pub(super) fn forget_holdings(&mut self) {
        let Holdings { waiting, .. } = std::mem::take(&mut self.holdings);
        self.turn.unheld.extend(waiting.into_iter().map(|(_, id)| id));
    }

    /// The peer's session has ended or begun: what it held may be gone with its process, and is asked for again.
    pub(super) fn doubt_holding(&mut self, peer: u64) {
        self.holdings.held.remove(&peer);
        self.holdings.asked = 0;
        self.holdings.wanted.take_if(|(asker, ..)| *asker == peer);
    }

    pub(super) fn hold_asked(&mut self, peer: u64, ballot: Ballot, length: u64) {
        self.holdings.wanted = Some((peer, ballot, length));
    }

    pub(super) fn hold_told(&mut self, peer: u64, ballot: Ballot, length: u64) {
        if self.leadership.is_some_and(|r| r.ballot == ballot) {
            let held = self.holdings.held.entry(peer).or_default();
            *held = length.max(*held);
        }
    }

    /// At the end of a turn's input: asks, answers, and says what is held.
    pub(super) fn settle_holdings(&mut self) {
        self.tell_holding();
        let Some(leadership) = self.leadership else { return };
        if let Some((last, _)) = self.holdings.waiting.back().copied()
            && last > self.holdings.asked
        {
            self.holdings.asked = last;
            let peers: Vec<u64> = self.peers.keys().copied().collect();
            for peer in peers {
                self.early_control(peer, Wire::HoldAsk { ballot: leadership.ballot, length: last });
            }
        }
        let held = self.held_length().max(self.omni.get_decided_idx() as u64);
        while let Some((length, id)) = self.holdings.waiting.front().copied()
            && length <= held
        {
            self.holdings.waiting.pop_front();
            self.turn.held.push(id);
        }
    }

    fn tell_holding(&mut self) {
        let Some((peer, ballot, length)) = self.holdings.wanted else { return };
        let holds = {
            let wal = self.wal.borrow();
            self.omni.get_promise() == ballot && wal.accepted_round() == Some(ballot) && wal.end() >= length
        };
        if holds {
            self.holdings.wanted = None;
            self.early_control(peer, Wire::HoldTold { ballot, length });
        }
    }

    /// How much of the log so many replicas have that a crash of one does not matter. See the module's page.
    fn held_length(&self) -> u64 {
        let members = self.membership.members.len();
        let needed = match self.fault(Fault::HeldByMajority) {
            true => self.majority(),
            false => (members - self.majority() + 2).min(members),
        };
        let mut held: Vec<u64> = self.holdings.held.values().copied().collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        // This replica is the first.
        match needed.checked_sub(2) {
            Some(at) => held.get(at).copied().unwrap_or(0),
            None => self.omni.get_accepted_idx() as u64,
        }
    }
}
