//! Repair of the placement driver's own replicas that have lost their disks.

use evenkeel_replicated_log::{LogHandle, ReplicaId, Term};
use std::collections::BTreeMap;

/// The interval between two checks of a leader, in milliseconds.
const CHECK_MS: u64 = 500;

/// Brings replicas back that have lost their disks: by a change to a configuration of the same
/// members with their present disks.
#[derive(Debug, Default)]
pub(super) struct DiskRepair {
    lost: BTreeMap<ReplicaId, Option<u64>>,
    checked_ms: u64,
}

impl DiskRepair {
    /// Checks at most every [`CHECK_MS`]. Acts when two successive checks find the same.
    pub(super) fn check(&mut self, log: &LogHandle, term: Term, now_ms: u64) {
        if now_ms < self.checked_ms + CHECK_MS {
            return;
        }
        self.checked_ms = now_ms;
        let lost = log.lost_disks();
        if !lost.is_empty() && lost == self.lost {
            let members = log.membership().borrow().members.clone();
            let asked = log.change_members(term, &members);
            tracing::warn!(replicas = ?lost.keys(), ?asked, "replicas have new disks; a new configuration admits them");
        }
        self.lost = lost;
    }
}
