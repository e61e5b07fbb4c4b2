//! Which disks count (log rule 10). A replica that comes back with another one has forgotten what it promised and accepted.
//!
//! A barrier names the disks of the epoch that it begins. In a group's founding epoch nobody has named them: the disk with which a
//! member is first heard of is its disk. Two replicas may hear of a third at different times, so each tells the others what
//! it knows, when it learns it and when a session begins; else one that has not met a member yet would take it for new after it
//! lost its disk, and count it, while it had already promised and accepted something for others.
//!
//! Two that know different disks of a member show that it has lost one: then neither counts, for anybody, until an epoch names
//! the one that it has now. What is known so only ever goes from nothing over one disk to [`DISPUTED`], in whatever order it is
//! told, and it is durable before anybody is told.
//!
//! Left: a replica that has never heard from anybody who met a member cannot know that the member has lost its disk. So nothing is
//! promised of disks that are lost before all replicas of a new group have been connected once.

use crate::types::ReplicaId;
use crate::wal::{DISPUTED, Disk};
use crate::wire::Wire;

use super::{Core, Fault};

impl<D: Disk> Core<D> {
    /// Whether the peer has the disk that it must have in this epoch. The first one that is heard of is.
    pub(super) fn check_disk(&mut self, peer: u64, store_id: u64) -> bool {
        let new = self.wal.borrow().known_peer_store(peer).is_none();
        let expected = self.wal.borrow_mut().peer_store(peer, store_id);
        let let_in = expected == store_id || self.fault(Fault::LetAnyDiskIn);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.other_disk = !let_in;
            known.disk = Some(store_id);
        }
        if new {
            self.tell_disks();
        }
        let_in
    }

    /// A replica of an older epoch, or of none: one that missed a change, lost its disk, or is new.
    pub(super) fn seen(&mut self, replica: u64, store_id: u64) {
        const MAX_APPLICANTS: usize = 16;
        let known = self.wal.borrow().known_peer_store(replica);
        if let Some(peer) = self.peers.get_mut(&replica) {
            if known.is_some_and(|known| known != store_id) {
                peer.other_disk = true;
                peer.disk = Some(store_id);
            }
        } else if self.applicants.contains_key(&replica) || self.applicants.len() < MAX_APPLICANTS {
            self.applicants.insert(replica, store_id);
        }
    }

    /// Tells every peer which disks have been learned in this epoch.
    fn tell_disks(&mut self) {
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.tell_disks_to(peer));
    }

    /// Tells a peer which disks have been learned in this epoch, if any have.
    pub(super) fn tell_disks_to(&mut self, peer: u64) {
        let disks = self.wal.borrow().learned_stores();
        if !disks.is_empty() && !self.fault(Fault::KeepDisksToOneself) {
            self.control(peer, Wire::Disks(disks));
        }
    }

    /// A peer tells which disks it has learned in this epoch.
    pub(super) fn disks_told(&mut self, disks: Vec<(u64, u64)>) {
        let mut news = false;
        for (member, disk) in disks {
            if member == self.config.me || !self.membership.has(ReplicaId(member)) {
                continue;
            }
            if !self.wal.borrow_mut().peer_store_told(member, disk) {
                continue;
            }
            news = true;
            let known = self.wal.borrow().known_peer_store(member);
            if known == Some(DISPUTED) {
                tracing::error!(member, "had another disk before in this epoch; it cannot rejoin it");
                self.shut_out(member);
            }
        }
        if news {
            self.tell_disks();
        }
    }

    /// Ends the session with a peer that has lost a disk, and lets none begin.
    fn shut_out(&mut self, peer: u64) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        match known.session {
            Some(session) => {
                known.other_disk = true;
                self.session_down(peer, session);
                self.turn.refused.push((peer, session));
            }
            // The disk that it had says nothing about the one that it will come with.
            None => known.disk = None,
        }
    }
}
