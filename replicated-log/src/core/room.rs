//! How large the logs are that an entry proposed now will be stored in: a cap must hold for a follower's log too, though its
//! application may let it be compacted later than the leader's (log rule 10).
//!
//! Each replica says in its standing how large its log is. What has been written here since is on its way to it, so that the sum is
//! never too small between two standings; a compaction that is not heard of yet only makes it too large.

use crate::wal::Disk;
use crate::wire::Standing;

use super::Core;

/// The size of another member's log, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerLog {
    /// What it said, with what was on its way to it then.
    bytes: u64,
    /// What this replica had written when it said so.
    written_bytes: u64,
}

impl PeerLog {
    fn bytes(&self, written_bytes: u64) -> u64 {
        self.bytes + written_bytes.saturating_sub(self.written_bytes)
    }
}

/// The size that the logs of some majority do not exceed, this replica's among them; `peers` are those of the connected ones. One
/// replica that cannot compact must not stop a majority that can.
fn majority_bytes(own: u64, mut peers: Vec<u64>, majority: usize) -> u64 {
    peers.sort_unstable();
    let needed = peers.iter().take(majority.saturating_sub(1));
    needed.copied().max().unwrap_or(0).max(own)
}

impl<D: Disk> Core<D> {
    /// What a standing says of its sender's log.
    pub(super) fn peer_log(&self, standing: &Standing) -> PeerLog {
        let wal = self.wal.borrow();
        PeerLog {
            bytes: standing.log_bytes + wal.bytes_between(standing.accepted, wal.end()),
            written_bytes: wal.written().disk_bytes,
        }
    }

    /// How large the logs of a majority are at most, in bytes: what is proposed goes into all of them.
    pub(crate) fn majority_log_bytes(&self) -> u64 {
        let wal = self.wal.borrow();
        let written_bytes = wal.written().disk_bytes;
        let connected = self.peers.values().filter(|peer| peer.session.is_some() && peer.standing.is_some());
        let peers = connected.map(|peer| peer.log.bytes(written_bytes)).collect();
        majority_bytes(wal.log_bytes(), peers, self.majority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_that_of_a_majority() {
        assert_eq!(majority_bytes(10, vec![], 1), 10, "alone");
        assert_eq!(majority_bytes(10, vec![30], 2), 30, "two of three are there, and both are needed");
        assert_eq!(majority_bytes(10, vec![90, 30], 2), 30, "one that cannot compact stops nobody");
        assert_eq!(majority_bytes(50, vec![90, 30], 2), 50, "the own log counts");
        assert_eq!(majority_bytes(10, vec![40, 90, 20, 30], 3), 30);
        assert_eq!(majority_bytes(10, vec![], 2), 10, "nothing is decided; nothing is known");
    }

    #[test]
    fn what_was_written_since_counts() {
        let log = PeerLog { bytes: 100, written_bytes: 1_000 };
        assert_eq!(log.bytes(1_000), 100);
        assert_eq!(log.bytes(1_250), 350);
    }
}
