//! The status of the log for display.

use std::collections::BTreeMap;

use evenkeel_host::Disk;

use crate::ids::{LogIndex, ReplicaId};
use crate::status::{Lag, LogStatus, PeerStatus};
use crate::wal::Wal;

use super::applied::AppliedPosition;
use super::peers::{Peer, Peers};

/// The status at `now_ms`. `applicants` are replicas that ask to join, with their disks.
pub(super) fn status<D: Disk>(
    wal: &Wal<D>,
    applied: &AppliedPosition,
    (peers, applicants): (&Peers, &BTreeMap<u64, u64>),
    leader: Option<ReplicaId>,
    now_ms: u64,
) -> LogStatus {
    let status_of = |(id, peer): (u64, &Peer)| (ReplicaId(id), peer_status(peer, wal.peer_store(id), now_ms));
    LogStatus {
        decided: LogIndex(wal.decided()),
        accepted: LogIndex(wal.end()),
        applied: LogIndex(applied.length()),
        lag: applied.lag(now_ms, wal),
        compacted: LogIndex(wal.compacted()),
        first_retained: LogIndex(wal.compacted() + 1),
        log_bytes: wal.log_bytes(),
        leader,
        term: wal.fence_at(wal.decided()).term,
        peers: peers.iter().map(status_of).collect(),
        applicants: applicants.iter().map(|(id, disk)| (ReplicaId(*id), *disk)).collect(),
    }
}

/// `disk` is the one that the peer must have, if known.
fn peer_status(peer: &Peer, disk: Option<u64>, now_ms: u64) -> PeerStatus {
    PeerStatus {
        connected: peer.session.is_some(),
        decided: LogIndex(peer.decided()),
        applied: LogIndex(peer.standing.map_or(0, |s| s.applied)),
        lag: peer.standing.map_or_else(Lag::default, |s| s.lag),
        ineligible: peer.standing.is_some_and(|s| s.ineligible),
        behind: peer.needs_state(),
        other_disk: peer.other_disk,
        disk: peer.disk.or(disk),
        last_heard_ms: peer.last_heard_ms.map(|t| now_ms.saturating_sub(t)),
    }
}
