//! Memory acknowledgement: a quorum has an entry in memory, for durability level `memory` (R28).
//!
//! A tracked proposal is *acknowledged in memory* once enough replicas have it in memory, synced or
//! not, that the crash of any one of them cannot lose it. This runs beside OmniPaxos: the leader
//! asks in the message behind the entries, and a replica answers as soon as it has them, before its
//! sync. The answer is never an Accepted, and nothing is decided by it.
//!
//! **Which entries.** A replica that has promised exactly ballot `b`, and accepted in it, has a
//! prefix of the log of `b`'s leader; so (ballot, length) says which entries it has. The leader
//! counts itself.
//!
//! **How many replicas.** A majority is not enough. Say replicas 1 and 2 of three have an entry; 1
//! crashes and restarts without it, and is elected, or votes, together with 3 before 2 is heard:
//! the entry is lost by a single crash. Therefore `n - majority + 2` must have it. Then every
//! majority includes one of them that did not crash, and a new leader takes over the longest log of
//! the highest round among those who promise. With three replicas that is all three, with five it
//! is four. If fewer are up, or one is slow, the entry is acknowledged when it is decided: then it
//! is on a majority's disks.
//!
//! An acknowledged entry is lost only if two different replicas crash between its proposal and a
//! majority's sync.

use std::collections::{BTreeMap, VecDeque};

use omnipaxos::ballot_leader_election::Ballot;

use crate::wal::Disk;
use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::outgoing::Outgoing;
use super::paxos::Paxos;
use super::peers::Peers;

/// The leader's side: tracked proposals, and how much of the log each peer has in memory.
#[derive(Debug, Default)]
pub(super) struct MemoryAcknowledgement {
    /// Length of the log up to and including the entry, and its number; growing.
    waiting: VecDeque<(u64, u64)>,
    /// By peer, how much of this leadership's log it has.
    lengths: BTreeMap<u64, u64>,
    /// The length of the last question to the peers.
    asked: u64,
}

impl MemoryAcknowledgement {
    /// Tracks the entry just appended, at the end `length` of the log, under `id`.
    pub(super) fn track(&mut self, id: u64, length: u64) {
        self.waiting.push_back((length, id));
    }

    /// The ballot's leadership has ended: there will be no more acknowledgements.
    pub(super) fn fail(self, out: &mut Outgoing) {
        out.unacknowledged.extend(self.waiting.into_iter().map(|(_, id)| id));
    }

    /// The peer's session has ended or begun: its memory may be lost with its process, and it is
    /// asked again.
    pub(super) fn doubt(&mut self, peer: u64) {
        self.lengths.remove(&peer);
        self.asked = 0;
    }

    /// A peer has `length` items of this leadership's log.
    pub(super) fn answered(&mut self, peer: u64, length: u64) {
        let known = self.lengths.entry(peer).or_default();
        *known = length.max(*known);
    }

    /// At the end of a turn's input: asks the peers, and acknowledges.
    pub(super) fn end_turn<D: Disk>(
        &mut self,
        config: &CoreConfig,
        ballot: Ballot,
        paxos: &Paxos<D>,
        peers: &Peers,
        out: &mut Outgoing,
    ) {
        if let Some((last, _)) = self.waiting.back().copied()
            && last > self.asked
        {
            self.asked = last;
            out.send_to_all_before_sync(peers, &Wire::MemoryAsk { ballot, length: last });
        }
        let acknowledged = self.length(config, paxos).max(paxos.decided());
        while let Some((length, id)) = self.waiting.front().copied()
            && length <= acknowledged
        {
            self.waiting.pop_front();
            out.acknowledged.push(id);
        }
    }

    /// How much of the log enough replicas have in memory. See the module's page.
    fn length<D: Disk>(&self, config: &CoreConfig, paxos: &Paxos<D>) -> u64 {
        let members = paxos.membership().members.len();
        let needed = match config.fault(Fault::MemoryOfMajority) {
            true => paxos.majority(),
            false => (members - paxos.majority() + 2).min(members),
        };
        let mut lengths: Vec<u64> = self.lengths.values().copied().collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        // This replica is the first.
        match needed.checked_sub(2) {
            Some(at) => lengths.get(at).copied().unwrap_or(0),
            None => paxos.accepted(),
        }
    }
}

/// The follower's side: the last question of a leader.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryQuestion {
    pub(super) peer: u64,
    pub(super) ballot: Ballot,
    pub(super) length: u64,
}

impl MemoryQuestion {
    /// Answers if this replica has the entries. Returns whether it does.
    pub(super) fn answer<D: Disk>(&self, paxos: &Paxos<D>, peers: &Peers, out: &mut Outgoing) -> bool {
        let MemoryQuestion { peer, ballot, length } = *self;
        let has_entries = {
            let wal = paxos.wal();
            paxos.promise() == ballot && wal.accepted_round() == Some(ballot) && wal.end() >= length
        };
        if has_entries {
            out.send_before_sync(peers, peer, Wire::MemoryAnswer { ballot, length });
        }
        has_entries
    }
}
