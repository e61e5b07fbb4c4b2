//! The other members of the current configuration.

use std::collections::BTreeMap;

use crate::ids::ReplicaId;
use crate::membership::Membership;
use crate::wire::Standing;

use super::peer_log::PeerLog;

/// The state of another member as far as this replica knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) session: Option<u64>,
    pub(super) last_heard_ms: Option<u64>,
    pub(super) standing: Option<Standing>,
    /// The size of its log, as of the standing.
    pub(super) log: PeerLog,
    /// The start of the log that this replica sent it, behind the items that it had. It needs a
    /// state transfer, whatever it reported before.
    pub(super) trimmed: Option<u64>,
    /// It has another disk than before in this configuration.
    pub(super) other_disk: bool,
    /// Its most recent disk.
    pub(super) disk: Option<u64>,
    /// The time since its promise is above the ballot of a leader that a majority follows (log rule
    /// 11).
    pub(super) stuck_since_ms: Option<u64>,
}

impl Peer {
    /// Whether it needs a state transfer, as far as is known.
    pub(super) fn needs_state(&self) -> bool {
        let unheard = |at: u64| self.standing.is_none_or(|standing| standing.accepted < at);
        self.trimmed.is_some_and(unheard) || self.standing.is_some_and(|standing| standing.needs_state)
    }

    /// Its decided position as of its standing.
    pub(super) fn decided(&self) -> u64 {
        self.standing.map_or(0, |standing| standing.decided)
    }
}

/// The peers by their numbers.
#[derive(Debug)]
pub(super) struct Peers(BTreeMap<u64, Peer>);

impl Peers {
    /// The other members of `membership`, of whom nothing is known.
    pub(super) fn of(membership: &Membership, me: u64) -> Peers {
        let others = membership.members.keys().filter(|ReplicaId(id)| *id != me);
        Peers(others.map(|id| (id.0, Peer::default())).collect())
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.0.contains_key(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Peer> {
        self.0.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Peer)> {
        self.0.iter().map(|(id, peer)| (*id, peer))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Peer> {
        self.0.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.0.values_mut()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.0.keys().copied()
    }

    /// The session with this peer, if one is open.
    pub(super) fn session(&self, id: u64) -> Option<u64> {
        self.0.get(&id)?.session
    }

    /// The peers with an open session.
    pub(super) fn connected(&self) -> impl Iterator<Item = &Peer> {
        self.0.values().filter(|peer| peer.session.is_some())
    }
}
