//! What is done now and then: telling peers where this replica stands, freeing stuck replicas, finding another
//! leader when this one may not lead, and compaction.

use crate::wal::Disk;
use crate::wire::{Standing, Wire};

use super::{Core, Fault};

/// Steps towards a ballot above a stuck peer's, at most, each time round (log rule 11). The distance is the number
/// of elections that the peer attempted alone, which is small.
const MAX_BALLOT_STEPS: u32 = 1000;

impl<D: Disk> Core<D> {
    pub(super) fn upkeep(&mut self) {
        self.tell_standing();
        self.free_stuck_peers();
        if self.holds_ballot() && !self.may_lead() {
            // log rule 10: elected while behind (or aside); the group must not wait for the state transfer.
            self.ask_other_to_lead();
        }
        self.compact();
    }

    pub(super) fn tell_standing(&mut self) {
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.tell_standing_to(peer));
    }

    pub(super) fn tell_standing_to(&mut self, peer: u64) {
        self.see_applied();
        let wal = self.wal.borrow();
        let standing = Standing {
            promise: self.omni.get_promise(),
            decided: wal.decided(),
            accepted: wal.end(),
            log_bytes: wal.log_bytes(),
            applied: self.applied.length,
            lag: self.lag(),
            needs_state: wal.needs_state().is_some(),
            aside: self.stands_aside(),
            clock_ms: self.clock_ms(),
        };
        drop(wal);
        self.control(peer, Wire::Status(standing));
    }

    pub(super) fn stands(&mut self, peer: u64, standing: Standing) {
        let log = self.peer_log(&standing);
        if let Some(known) = self.peers.get_mut(&peer) {
            (known.standing, known.log) = (Some(standing), log);
        }
        self.hear_clock(peer, standing.clock_ms);
    }

    /// Log rule 11: a replica that crashed after raising its ballot ignores a leader below it, and nobody else
    /// sees a reason for an election. A leader that a majority follows raises its ballot above that replica's.
    fn free_stuck_peers(&mut self) {
        if !self.holds_ballot() || self.fault(Fault::LeaveStuck) {
            return;
        }
        let ballot = self.omni.get_promise();
        let now_ms = self.now_ms;
        let connected = |peer: &super::Peer| peer.session.is_some();
        // Without a majority at hand the higher promise is somebody else's leadership: then this one is deposed.
        let loyal =
            self.peers.values().filter(|p| connected(p) && p.standing.is_some_and(|s| s.promise <= ballot)).count();
        let followed = loyal + 1 >= self.majority();
        let patience_ms = self.config.timing.election_timeout_ms * 2;
        let mut highest = None;
        for peer in self.peers.values_mut() {
            let above = peer.standing.map(|s| s.promise).filter(|p| *p > ballot);
            match above {
                Some(promise) if followed && connected(peer) => {
                    let since_ms = *peer.stuck_since_ms.get_or_insert(now_ms);
                    // An election under way looks the same for a moment.
                    if now_ms.saturating_sub(since_ms) >= patience_ms {
                        highest = highest.max(Some(promise));
                    }
                }
                _ => peer.stuck_since_ms = None,
            }
        }
        let Some(highest) = highest else {
            return;
        };
        tracing::info!(?highest, ?ballot, "a peer is stuck above this leader's ballot; raising it");
        for _ in 0..MAX_BALLOT_STEPS {
            if self.omni.get_promise() > highest {
                break;
            }
            self.omni.try_become_leader();
        }
        self.peers.values_mut().for_each(|p| p.stuck_since_ms = None);
        self.observe();
    }

    /// Log rule 15: leadership moves when the target tries to become the leader. The one that has applied most is asked, since it
    /// serves once it has applied everything; among equals the one with the longest log, which has least to catch up.
    pub(super) fn ask_other_to_lead(&mut self) {
        let able = self.peers.iter().filter_map(|(id, peer)| {
            let standing = peer.standing.filter(|s| !s.needs_state && !s.aside)?;
            peer.session?;
            Some((standing.applied, standing.accepted, *id))
        });
        if let Some((.., peer)) = able.max() {
            self.control(peer, Wire::TryLead);
        }
    }

    /// Log rule 10: each replica compacts by itself, up to what its application has durably applied (R16), minus
    /// a retention, not past a lease of the application, and not past a live replica. One that has been silent
    /// for long, or a log at its cap, does not wait for anybody else.
    fn compact(&mut self) {
        let limits = &self.config.limits;
        let wal = self.wal.borrow();
        if wal.log_bytes() <= limits.retention_bytes || self.permitted <= wal.compacted() {
            return;
        }
        // Half of the cap is for what comes in until compaction has had its effect: whole segments go, and only what the
        // application has meanwhile made durable.
        let full = wal.log_bytes() > limits.log_cap_bytes / 2;
        let mut to = self.permitted.min(wal.decided()).min(wal.compaction_point(limits.retention_bytes));
        if let Some(leased) = self.retain_from {
            to = to.min(leased.saturating_sub(1));
        }
        if let Some(barrier) = wal.barrier() {
            // It names the members of the next epoch, and stays until that has begun.
            to = to.min(barrier - 1);
        }
        if !full {
            let forget_ms = self.config.timing.forget_peer_ms;
            for peer in self.peers.values() {
                let heard_ms = peer.last_heard_ms.unwrap_or(self.started_ms);
                if self.now_ms.saturating_sub(heard_ms) < forget_ms {
                    to = to.min(peer.standing.map_or(0, |s| s.decided));
                }
            }
        }
        // Each compaction is one more sync; let it be worth one.
        let worth_bytes = (limits.segment_bytes / 4).max(1);
        if to <= wal.compacted() || wal.bytes_before(to) < worth_bytes {
            return;
        }
        drop(wal);
        self.wal.borrow_mut().compacting = true;
        // log rule 10: local only; the positions are checked by the library once more.
        let done = self.omni.snapshot(Some(to as usize), true);
        self.wal.borrow_mut().compacting = false;
        if let Err(refused) = done {
            tracing::warn!(to, %refused, "compaction was refused");
        }
    }
}
