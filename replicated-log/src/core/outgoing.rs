//! What leaves the core: OmniPaxos's messages, patched where they reach below the trim point (log rule 10), in
//! the order and with the delay that the sync demands (log rule 1).

use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;
use omnipaxos::storage::SnapshotType;
use omnipaxos::util::LogSync;

use crate::item::{Item, Trimmed};
use crate::wal::Disk;
use crate::wire::Wire;

use super::{Core, Fault, Send, Turn};

impl<D: Disk> Core<D> {
    /// Takes what OmniPaxos has to send, and puts markers where it reached below the trim point.
    pub(super) fn take_outgoing(&mut self) {
        let mut taken = Vec::new();
        self.omni.take_outgoing_messages(&mut taken);
        for message in &mut taken {
            if let Message::SequencePaxos(paxos) = message {
                match &mut paxos.msg {
                    PaxosMsg::AcceptSync(m) => {
                        self.patch(&mut m.log_sync, None);
                        let trimmed = m.log_sync.decided_snapshot.is_some().then_some(m.log_sync.sync_idx as u64);
                        let peer = self.id(paxos.to);
                        if let Some(peer) = self.peers.get_mut(&peer).filter(|_| trimmed.is_some()) {
                            peer.trimmed = trimmed;
                        }
                    }
                    PaxosMsg::Promise(m) => {
                        if let Some(sync) = &mut m.log_sync {
                            self.patch(sync, Some(m.accepted_idx as u64));
                        }
                    }
                    _ => {}
                }
            }
        }
        self.held.append(&mut taken);
    }

    /// Log rule 10. A synchronisation that should begin below the trim point holds only what is retained (see
    /// `get_suffix`); it becomes a Complete marker at its first item, with the term fence there. The receiver
    /// then needs a state transfer. `end` is where the suffix ends; by default the log's end, which is right for
    /// messages just made. A Promise that is sent again says itself.
    fn patch(&self, sync: &mut LogSync<Item>, end: Option<u64>) {
        let wal = self.wal.borrow();
        if sync.sync_idx as u64 >= wal.compacted() {
            return;
        }
        let first = end.unwrap_or(wal.end()) - sync.suffix.len() as u64;
        // Compaction may have gone on since a cached Promise was made.
        let begin = first.max(wal.compacted());
        sync.suffix.drain(..(begin - first) as usize);
        sync.sync_idx = begin as usize;
        sync.decided_snapshot = Some(SnapshotType::Complete(Trimmed { transferred: Some(wal.fence_at(begin)) }));
    }

    pub(super) fn control(&mut self, peer: u64, wire: Wire) {
        if let Some(session) = self.peers.get(&peer).and_then(|p| p.session) {
            self.turn.sends.push(Send { peer, session, early: false, wire });
        }
    }

    /// As [`Core::control`], for what says nothing durable and promises nothing: it may go out before the sync.
    pub(super) fn early_control(&mut self, peer: u64, wire: Wire) {
        if let Some(session) = self.peers.get(&peer).and_then(|p| p.session) {
            self.turn.sends.push(Send { peer, session, early: true, wire });
        }
    }

    /// Ends the turn's input and says what it brings about.
    ///
    /// Sends marked `early` may go out before [`Core::sync`]: heartbeats, which say nothing durable; what leases, probes and proofs
    /// of freshness ask and answer, so that a slow disk ends no lease; and the leader's AcceptDecides and Decides. Log rule 1 keeps those behind the sync because the leader counts its
    /// own copy at once; but it counts in order to decide when an Accepted is fed, and an Accepted that answers
    /// this message can only be fed in a later turn, behind this turn's sync. So the leader's disk works while
    /// the followers' do. Whatever follows a message that must wait waits too: the order per peer is kept.
    pub(crate) fn finish(&mut self) -> Turn {
        self.start_probe();
        self.settle_holdings();
        self.take_outgoing();
        self.notice_barrier();
        let sends = self.sends();
        self.leave_epoch();
        self.show_role();
        let mut turn = std::mem::take(&mut self.turn);
        turn.lease = self.lease();
        turn.sends = sends;
        let durable = self.wal.borrow().durable_end();
        turn.early_barriers = turn
            .barriers
            .extract_if(.., |(_, answer)| match answer {
                Ok(index) => index.0 <= durable,
                Err(_) => true,
            })
            .collect();
        turn
    }

    fn sends(&mut self) -> Vec<Send> {
        let all_early = self.fault(Fault::SendBeforeSync);
        let control = std::mem::take(&mut self.turn.sends);
        let mut sends = Vec::with_capacity(self.held.len() + control.len());
        let mut waits: Vec<u64> = Vec::new();
        let mut held = std::mem::take(&mut self.held);
        for message in held.drain(..) {
            let peer = self.id(message.get_receiver());
            // Without a session the message is lost; `reconnected` makes up for it (log rule 3).
            let Some(session) = self.peers.get(&peer).and_then(|p| p.session) else {
                continue;
            };
            let early = all_early || (!waits.contains(&peer) && may_precede_sync(&message));
            if !early {
                waits.push(peer);
            }
            sends.push(Send { peer, session, early, wire: Wire::Paxos(message) });
        }
        // Its room serves the next turn.
        self.held = held;
        sends.extend(control);
        sends
    }
}

/// See [`Core::finish`].
fn may_precede_sync(message: &Message<Item>) -> bool {
    match message {
        Message::BLE(_) => true,
        Message::SequencePaxos(paxos) => {
            matches!(paxos.msg, PaxosMsg::AcceptDecide(_) | PaxosMsg::Decide(_))
        }
    }
}
