//! The membership of a group, configuration by configuration.
//!
//! A configuration is a numbered set of voters. It changes by an ordinary log entry, the *barrier*,
//! which names the members of the next configuration (log rule 10). Once the barrier is decided,
//! the configuration has ended, and the next one begins directly behind it: in a new OmniPaxos
//! instance, at the same place of the same log. Positions and terms therefore keep growing (log
//! rule 12).
//!
//! A barrier also names the *disks* of its members, by identities drawn when their logs were
//! created. A replica that lost its disk has forgotten its promises and accepted entries. It must
//! not vote again in that configuration, however recent its copy of the state is. The founding
//! configuration has no barrier; there the first disk seen counts (see `core::disks`).
//!
//! A replica keeps its number for life ([`ReplicaId`], 1 to 255, with gaps); a new machine gets a
//! new number. OmniPaxos numbers replicas 1..=n without gaps (log rule 6): these are places in the
//! ordered list of a configuration's members.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::ChangeError;
use crate::ids::{LogIndex, ReplicaId, Term};
use crate::status::{LogStatus, PeerStatus};

/// The number of replicas in a group: at least two (log rule 15), and at most as many as the eight
/// bits for the replica in a term allow.
pub(crate) const MEMBERS: std::ops::RangeInclusive<usize> = 2..=255;

/// One replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The address on which it listens for its peers.
    pub log: SocketAddr,
    /// The application's own addresses, in an order of its choice; the log only stores them.
    pub contacts: Vec<SocketAddr>,
    /// The identity of its disk, filled in by the log when the change is proposed. 0 in the
    /// founding configuration: not known yet.
    pub disk: u64,
}

impl From<SocketAddr> for Member {
    fn from(log: SocketAddr) -> Member {
        Member { log, contacts: Vec::new(), disk: 0 }
    }
}

/// Replicas by their numbers.
pub type Members = BTreeMap<ReplicaId, Member>;

/// The members of one configuration, and the position at which it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The number of the configuration, from 1. A replica in configuration 0 belongs to no group
    /// yet: it waits until a membership change adds it.
    pub configuration: u32,
    /// The barrier that ended the previous configuration; this configuration's entries follow it.
    /// Every voter of this configuration has all entries up to here.
    pub began: LogIndex,
    /// The term in force at the barrier. This configuration's terms are above it.
    pub term: Term,
    /// Its members.
    pub members: Members,
}

impl Membership {
    /// Whether `id` belongs to it.
    pub fn has(&self, id: ReplicaId) -> bool {
        self.configuration > 0 && self.members.contains_key(&id)
    }

    /// Whether the replica with this disk belongs to it.
    pub(crate) fn has_disk(&self, id: ReplicaId, disk: u64) -> bool {
        self.has(id) && self.members.get(&id).is_some_and(|member| member.disk == disk || member.disk == 0)
    }

    /// The payload of the barrier that proposes `members`.
    pub(crate) fn barrier(members: &Members) -> Bytes {
        // Maps of numbers and addresses always encode; an empty barrier is rejected when it is
        // read.
        postcard::to_stdvec(members).map(Bytes::from).unwrap_or_default()
    }

    /// The configuration that begins behind the barrier at `began`, or `None` if the barrier names
    /// no valid group.
    pub(crate) fn next(&self, began: LogIndex, term: Term, barrier: &[u8]) -> Option<Membership> {
        let members: Members = postcard::from_bytes(barrier).ok()?;
        check(&members).ok()?;
        Some(Membership { configuration: self.configuration.checked_add(1)?, began, term, members })
    }

    pub(crate) fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }
}

/// Checks the size of the group and the numbers of its replicas (log rule 6).
pub(crate) fn check(members: &Members) -> Result<(), String> {
    if !MEMBERS.contains(&members.len()) {
        return Err(format!("a group has 2 to 255 members, not {}", members.len()));
    }
    match members.keys().find(|id| !(1..=255).contains(&id.0)) {
        Some(id) => Err(format!("replicas are numbered 1 to 255, not {id}")),
        None => Ok(()),
    }
}

/// Completes `next` with the identities of the disks, if the group can change to these members and
/// continue to serve.
///
/// A majority of `next` must have the state. A replica has it if it is connected in the current
/// configuration, does not wait for a state transfer, and is not in `lacking`. The others fetch the
/// state before they vote.
pub(crate) fn complete(
    now: &Membership,
    me: (ReplicaId, u64),
    next: &Members,
    lacking: &BTreeSet<ReplicaId>,
    status: &LogStatus,
) -> Result<Members, ChangeError> {
    check(next).map_err(ChangeError::Impossible)?;
    let majority = next.len() / 2 + 1;
    let known = next.keys().filter(|id| now.has(**id)).count();
    if known < majority {
        let reason = format!("{known} of the {} members are replicas now, and {majority} must be", next.len());
        return Err(ChangeError::Impossible(format!("{reason}: change fewer at a time")));
    }
    let has_state = |peer: &PeerStatus| peer.connected && !peer.behind;
    let peer_has_state = |id: &ReplicaId| status.peers.get(id).is_some_and(has_state);
    let complete = |id: &ReplicaId| *id == me.0 || (peer_has_state(id) && !lacking.contains(id));
    let staying = next.keys().filter(|id| now.has(**id) && complete(id)).count();
    if staying < majority {
        return Err(ChangeError::Refused(format!(
            "{staying} of the {} members would have the state, and {majority} are needed: start the others, or change fewer at a time",
            next.len()
        )));
    }
    let with_disk = |(id, member): (&ReplicaId, &Member)| {
        let known = status.peers.get(id).and_then(|peer| peer.disk).or(status.applicants.get(id).copied());
        let disk = if *id == me.0 { Some(me.1) } else { known };
        let unknown = || ChangeError::Refused(format!("replica {id} has not been heard of: start it first"));
        Ok((*id, Member { disk: disk.ok_or_else(unknown)?, ..member.clone() }))
    };
    next.iter().map(with_disk).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn members(ids: &[u64]) -> Members {
        ids.iter().map(|id| (ReplicaId(*id), SocketAddr::from(([127, 0, 0, 1], 7000 + *id as u16)).into())).collect()
    }

    /// Replica 1 leads 2 and 3, which are connected or not; 4 and 5 ask to join.
    fn change(connected: [bool; 2], next: &[u64]) -> Result<Members, ChangeError> {
        change_without(&[], connected, next)
    }

    fn change_without(lacking: &[u64], connected: [bool; 2], next: &[u64]) -> Result<Members, ChangeError> {
        let now = Membership { configuration: 1, members: members(&[1, 2, 3]), ..Membership::default() };
        let peer = |connected, disk| PeerStatus { connected, disk: Some(disk), ..PeerStatus::default() };
        let status = LogStatus {
            peers: [(ReplicaId(2), peer(connected[0], 22)), (ReplicaId(3), peer(connected[1], 33))].into(),
            applicants: [(ReplicaId(4), 44), (ReplicaId(5), 55)].into(),
            ..LogStatus::default()
        };
        let lacking = lacking.iter().copied().map(ReplicaId).collect();
        complete(&now, (ReplicaId(1), 11), &members(next), &lacking, &status)
    }

    #[test]
    fn the_next_configuration_has_the_barriers_members() {
        let now = Membership { configuration: 3, members: members(&[1, 2, 3]), ..Membership::default() };
        let next = now.next(LogIndex(9), Term(5), &Membership::barrier(&members(&[1, 3, 7]))).unwrap();
        assert_eq!((next.configuration, next.began, next.term), (4, LogIndex(9), Term(5)));
        assert!(next.has(ReplicaId(7)) && !next.has(ReplicaId(2)));
        assert_eq!(now.next(LogIndex(9), Term(5), b""), None);
        assert_eq!(now.next(LogIndex(9), Term(5), &Membership::barrier(&members(&[1]))), None);
    }

    #[test]
    fn a_change_names_every_disk() {
        let next = change([true, false], &[1, 2, 3, 4, 5]).map(|next| next.len());
        assert!(next.is_err(), "two of five have the state");
        let next = change([true, false], &[1, 2, 3]).unwrap();
        assert_eq!(next.values().map(|m| m.disk).collect::<Vec<_>>(), [11, 22, 33]);
        let next = change([true, true], &[1, 2, 3, 4, 5]).unwrap();
        assert_eq!(next.values().map(|m| m.disk).collect::<Vec<_>>(), [11, 22, 33, 44, 55]);
        assert!(change([true, true], &[1, 2, 6]).unwrap_err().to_string().contains("replica 6"));
    }

    // The only replica with the state would be removed, and the others could not fetch it.
    #[test]
    fn members_that_wait_for_the_state_do_not_have_it() {
        let now = Membership { configuration: 1, members: members(&[1, 2, 3]), ..Membership::default() };
        let status = |behind| {
            let peer = PeerStatus { connected: true, disk: Some(22), behind, ..PeerStatus::default() };
            let peers = [(ReplicaId(2), peer.clone()), (ReplicaId(3), peer)].into();
            LogStatus { peers, applicants: [(ReplicaId(4), 44)].into(), ..LogStatus::default() }
        };
        let change = |behind| {
            let lacking = BTreeSet::new();
            complete(&now, (ReplicaId(1), 11), &members(&[2, 3, 4]), &lacking, &status(behind))
        };
        change(false).unwrap();
        assert!(matches!(change(true), Err(ChangeError::Refused(_))));
    }

    #[test]
    fn a_change_that_could_not_serve_is_refused() {
        change([true, false], &[1, 2, 4]).unwrap();
        assert!(matches!(change_without(&[2], [true, true], &[1, 2, 4]), Err(ChangeError::Refused(_))), "2 lacks rows");
        change_without(&[2], [true, true], &[1, 3, 4]).unwrap();
        let refused = |connected, next: &[u64]| change(connected, next).unwrap_err();
        assert!(matches!(refused([false, false], &[1, 2, 3]), ChangeError::Refused(_)), "no follower is connected");
        assert!(matches!(refused([true, true], &[1, 2, 6]), ChangeError::Refused(_)), "6 has not been heard of yet");
        // No waiting would help.
        assert!(matches!(refused([true, true], &[1, 4, 5]), ChangeError::Impossible(_)), "one of three has the state");
        for next in [&[][..], &[1], &[1, 2, 300]] {
            assert!(matches!(refused([true, true], next), ChangeError::Impossible(_)), "{next:?}");
        }
    }
}
