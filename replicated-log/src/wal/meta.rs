//! Durable state of the log other than its items: identity, configuration, promise and positions.
//!
//! [`Meta`] is stored in every record, as postcard: the order of its fields is the format.

use std::collections::BTreeMap;

use omnipaxos::ballot_leader_election::Ballot;
use serde::{Deserialize, Serialize};

use crate::ids::ReplicaId;
use crate::item::Fence;
use crate::membership::Membership;

/// In the place of a disk's identity: the member has had two disks in one configuration. No disk
/// has this identity.
pub(crate) const DISPUTED: u64 = 0;

/// The owner of a log. A log of another owner is refused (part of log rule 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) group: u64,
    pub(crate) me: u64,
}

/// Everything durable that is not an item. Positions count items from the start of the log:
/// `decided == 5` says that items 0 to 4 are decided, which the owner knows as `LogIndex` 1 to 5.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) identity: Identity,
    /// The current configuration. `peer_stores`, `promise`, `accepted_round` and `decided` belong
    /// to it.
    pub(crate) membership: Membership,
    /// The identity of this disk, drawn when the log was created. Peers remember it and so detect a
    /// replica that lost its disk (log rule 10).
    pub(crate) store_id: u64,
    pub(crate) peer_stores: BTreeMap<u64, u64>,
    pub(crate) promise: Option<Ballot>,
    pub(crate) accepted_round: Option<Ballot>,
    pub(crate) decided: u64,
    /// Items before this one are gone.
    pub(crate) compacted: u64,
    /// The term fence at `compacted`.
    pub(crate) fence: Fence,
    /// The end of the log. It is stored because an emptied suffix leaves no item that would show
    /// it.
    pub(crate) end: u64,
    /// The application's state must be replaced by one at or after this position (log rule 10).
    pub(crate) needs_state: Option<u64>,
}

impl Meta {
    /// The disk that `peer` must have in this configuration, if known; [`DISPUTED`] if no disk of
    /// it is accepted.
    pub(super) fn peer_store(&self, peer: u64) -> Option<u64> {
        let named = self.membership.members.get(&ReplicaId(peer)).map(|member| member.disk);
        named.filter(|disk| *disk != 0).or(self.peer_stores.get(&peer).copied())
    }

    /// Records a report that `peer` has the disk `reported`. Returns whether it was news. Two
    /// different disks are [`DISPUTED`].
    pub(super) fn report_peer_store(&mut self, peer: u64, reported: u64) -> bool {
        let named = self.membership.members.get(&ReplicaId(peer)).is_none_or(|member| member.disk != 0);
        let known = self.peer_stores.get(&peer).copied();
        if named || known == Some(reported) || known == Some(DISPUTED) {
            return false;
        }
        self.peer_stores.insert(peer, if known.is_some() { DISPUTED } else { reported });
        true
    }
}
