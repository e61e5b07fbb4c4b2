//! Compaction: how far the log may be dropped (log rule 10).
//!
//! Each replica compacts by itself, up to the position that its application has durably applied
//! (R16), minus a retention, not past a position that the application retains, and not past a live
//! replica. A replica that has been silent for long does not delay compaction, and above half of
//! its cap a log waits for no other replica.

use evenkeel_host::Disk;

use crate::wal::Wal;

use super::config::CoreConfig;
use super::peers::Peers;

/// The permissions of the application.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// Everything up to here is durably applied.
    durably_applied: u64,
    retain_from: Option<u64>,
}

impl Compaction {
    /// The application has durably applied everything up to `position`.
    pub(super) fn allow(&mut self, position: u64) {
        self.durably_applied = self.durably_applied.max(position);
    }

    /// The application needs entries from this position on.
    pub(super) fn retain_from(&mut self, position: Option<u64>) {
        self.retain_from = position;
    }

    /// The position up to which to compact now, if that is worth it. `started_ms` is the start of
    /// this process.
    pub(super) fn point<D: Disk>(
        &self,
        config: &CoreConfig,
        wal: &Wal<D>,
        peers: &Peers,
        now_ms: u64,
        started_ms: u64,
    ) -> Option<u64> {
        let limits = &config.limits;
        if wal.log_bytes() <= limits.retention_bytes || self.durably_applied <= wal.compacted() {
            return None;
        }
        // The other half of the cap is for entries that arrive until compaction has its effect:
        // whole segments are dropped, and only entries that the application has made durable.
        let full = wal.log_bytes() > limits.log_cap_bytes / 2;
        let mut to = self.durably_applied.min(wal.decided()).min(wal.compaction_point(limits.retention_bytes));
        if let Some(retained) = self.retain_from {
            to = to.min(retained.saturating_sub(1));
        }
        if let Some(barrier) = wal.barrier() {
            // It names the members of the next configuration, and stays until that has begun.
            to = to.min(barrier - 1);
        }
        if !full {
            let forget_ms = config.timing.forget_peer_ms;
            for peer in peers.values() {
                let heard_ms = peer.last_heard_ms.unwrap_or(started_ms);
                if now_ms.saturating_sub(heard_ms) < forget_ms {
                    to = to.min(peer.decided());
                }
            }
        }
        // Each compaction costs one more sync, so it has a minimum size.
        let worth_bytes = (limits.segment_bytes / 4).max(1);
        (to > wal.compacted() && wal.bytes_before(to) >= worth_bytes).then_some(to)
    }
}
