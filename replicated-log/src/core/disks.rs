//! Identity of the members' disks (log rule 10). A replica with another disk has forgotten its
//! promises and accepted entries.
//!
//! A barrier names the disks of the configuration that it begins. In a group's founding
//! configuration no disk is named: the first disk with which a member is seen is its disk. Two
//! replicas may first see a third at different times, so each reports what it knows, when it learns
//! it and when a session begins. Otherwise a replica that has not met a member would accept it as
//! new after the member lost its disk, and count its vote, although the member had already promised
//! and accepted for others.
//!
//! Two replicas that know different disks of a member prove that the member lost one. Then neither
//! disk is accepted, by any replica, until a configuration names the member's current disk.
//! Knowledge about a disk goes only from none over one disk to [`DISPUTED`], in whatever order
//! reports arrive, and it is durable before it is reported.
//!
//! Not done: a replica without contact to any replica that met a member cannot know that the member
//! lost its disk. So nothing is promised for disks lost before all replicas of a new group have
//! been connected once.

use std::collections::BTreeMap;

use crate::ids::ReplicaId;
use crate::wal::{DISPUTED, Disk};
use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::outgoing::Outgoing;
use super::paxos::Paxos;
use super::peers::Peers;

/// Replicas outside of the configuration that may ask to join at one time.
const MAX_APPLICANTS: usize = 16;

/// The replicas that ask to join, with their disks. The disks of members are in the durable log.
#[derive(Debug, Default)]
pub(super) struct Disks {
    applicants: BTreeMap<u64, u64>,
}

impl Disks {
    /// The applicants and their disks.
    pub(super) fn applicants(&self) -> &BTreeMap<u64, u64> {
        &self.applicants
    }

    /// A new configuration begins.
    pub(super) fn forget_applicants(&mut self) {
        self.applicants.clear();
    }

    /// A replica of an older configuration, or of none: it missed a change, lost its disk, or is
    /// new.
    pub(super) fn seen<D: Disk>(&mut self, replica: u64, store_id: u64, paxos: &Paxos<D>, peers: &mut Peers) {
        let known = paxos.wal().peer_store(replica);
        if let Some(peer) = peers.get_mut(replica) {
            if known.is_some_and(|known| known != store_id) {
                peer.other_disk = true;
                peer.disk = Some(store_id);
            }
        } else if self.applicants.contains_key(&replica) || self.applicants.len() < MAX_APPLICANTS {
            self.applicants.insert(replica, store_id);
        }
    }
}

/// Whether a peer has the disk that it must have in this configuration. The first one seen is.
pub(super) fn check<D: Disk>(
    config: &CoreConfig,
    (peer, store_id): (u64, u64),
    paxos: &Paxos<D>,
    peers: &mut Peers,
    out: &mut Outgoing,
) -> bool {
    let new = paxos.wal().peer_store(peer).is_none();
    let expected = paxos.wal_mut().peer_store_or_insert(peer, store_id);
    let accepted = expected == store_id || config.fault(Fault::AcceptAnyDisk);
    if let Some(known) = peers.get_mut(peer) {
        known.other_disk = !accepted;
        known.disk = Some(store_id);
    }
    if new {
        report(config, paxos, peers, out);
    }
    accepted
}

/// Reports to every peer the disks learned in this configuration.
pub(super) fn report<D: Disk>(config: &CoreConfig, paxos: &Paxos<D>, peers: &Peers, out: &mut Outgoing) {
    peers.ids().for_each(|peer| report_to(peer, config, paxos, peers, out));
}

/// Reports to a peer the disks learned in this configuration, if there are any.
pub(super) fn report_to<D: Disk>(peer: u64, config: &CoreConfig, paxos: &Paxos<D>, peers: &Peers, out: &mut Outgoing) {
    let disks = paxos.wal().learned_stores();
    if !disks.is_empty() && !config.fault(Fault::WithholdDisks) {
        out.send(peers, peer, Wire::Disks(disks));
    }
}

/// The effect of a peer's report.
#[derive(Debug, Default)]
pub(super) struct DiskReport {
    /// It was news, which other peers need too.
    pub(super) news: bool,
    /// Members that turned out to have lost a disk.
    pub(super) disputed: Vec<u64>,
}

/// A peer reports the disks that it has learned in this configuration.
pub(super) fn reported<D: Disk>(me: u64, disks: Vec<(u64, u64)>, paxos: &Paxos<D>) -> DiskReport {
    let mut report = DiskReport::default();
    for (member, disk) in disks {
        if member == me || !paxos.membership().has(ReplicaId(member)) {
            continue;
        }
        if !paxos.wal_mut().report_peer_store(member, disk) {
            continue;
        }
        report.news = true;
        if paxos.wal().peer_store(member) == Some(DISPUTED) {
            tracing::error!(member, "had another disk before in this configuration; it cannot rejoin it");
            report.disputed.push(member);
        }
    }
    report
}
