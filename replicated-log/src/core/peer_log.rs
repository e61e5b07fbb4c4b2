//! Size of the logs that store an entry proposed now.
//!
//! The cap holds for followers' logs too, although a follower's application may allow compaction
//! later than the leader's (log rule 10). Each replica reports the size of its log. The bytes
//! written here since the report are on their way to it and are added, so that the sum is never too
//! small between two reports. A compaction not yet reported makes it too large.

/// Size of another member's log, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerLog {
    /// The reported size, with the bytes on their way at that time.
    pub(super) bytes: u64,
    /// Bytes that this replica had written at that time.
    pub(super) written_bytes: u64,
}

impl PeerLog {
    /// The size once this replica has written `written_bytes`.
    pub(super) fn bytes(&self, written_bytes: u64) -> u64 {
        self.bytes + written_bytes.saturating_sub(self.written_bytes)
    }
}

/// The smallest size that the logs of some majority do not exceed, this replica's among them;
/// `peers` are the connected ones. One replica that cannot compact does not stop a majority that
/// can.
pub(super) fn majority_bytes(own: u64, mut peers: Vec<u64>, majority: usize) -> u64 {
    peers.sort_unstable();
    let needed = peers.iter().take(majority.saturating_sub(1));
    needed.copied().max().unwrap_or(0).max(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_that_of_a_majority() {
        assert_eq!(majority_bytes(10, vec![], 1), 10, "alone");
        assert_eq!(majority_bytes(10, vec![30], 2), 30, "two of three are connected, and both are needed");
        assert_eq!(majority_bytes(10, vec![90, 30], 2), 30, "one that cannot compact stops nobody");
        assert_eq!(majority_bytes(50, vec![90, 30], 2), 50, "the own log is included");
        assert_eq!(majority_bytes(10, vec![40, 90, 20, 30], 3), 30);
        assert_eq!(majority_bytes(10, vec![], 2), 10, "nothing is decided; no size is known");
    }

    #[test]
    fn bytes_written_since_the_report_are_added() {
        let log = PeerLog { bytes: 100, written_bytes: 1_000 };
        assert_eq!(log.bytes(1_000), 100);
        assert_eq!(log.bytes(1_250), 350);
    }
}
