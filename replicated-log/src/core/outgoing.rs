//! The output of the current turn while it is collected.
//!
//! Every part of the core adds to [`Outgoing`]; the end of the turn makes a [`Ready`] of it.

use crate::membership::Membership;
use crate::role::Role;
use crate::status::StalenessBound;
use crate::wire::Wire;

use super::lease::Lease;
use super::peers::Peers;
use super::ready::{AfterSync, BarrierAnswer, BeforeSync, Ready, Send, TurnCounts};

/// Output of a turn that has not ended. Messages of OmniPaxos are added last, see
/// [`super::paxos::Paxos::take_sends`].
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    before_sync: Vec<Send>,
    after_sync: Vec<Send>,
    pub(super) refused: Vec<(u64, u64)>,
    pub(super) overflowed: Vec<(u64, u64)>,
    pub(super) barriers: Vec<BarrierAnswer>,
    pub(super) acknowledged: Vec<u64>,
    pub(super) unacknowledged: Vec<u64>,
    pub(super) staleness_bounds: Vec<StalenessBound>,
    pub(super) role: Option<Role>,
    pub(super) membership: Option<Membership>,
    pub(super) entered: bool,
    pub(super) counts: TurnCounts,
}

/// The messages of a turn by phase.
#[derive(Debug, Default)]
pub(super) struct Sends {
    pub(super) before_sync: Vec<Send>,
    pub(super) after_sync: Vec<Send>,
}

impl Outgoing {
    /// Sends to a peer after the sync. Without a session the message is lost.
    pub(super) fn send(&mut self, peers: &Peers, peer: u64, wire: Wire) {
        if let Some(session) = peers.session(peer) {
            self.after_sync.push(Send { peer, session, wire });
        }
    }

    /// As [`Outgoing::send`], to every peer.
    pub(super) fn send_to_all(&mut self, peers: &Peers, wire: &Wire) {
        peers.ids().for_each(|peer| self.send(peers, peer, wire.clone()));
    }

    /// As [`Outgoing::send`], before the sync: for messages that promise nothing and report nothing
    /// durable of this turn.
    pub(super) fn send_before_sync(&mut self, peers: &Peers, peer: u64, wire: Wire) {
        if let Some(session) = peers.session(peer) {
            self.before_sync.push(Send { peer, session, wire });
        }
    }

    /// As [`Outgoing::send_before_sync`], to every peer.
    pub(super) fn send_to_all_before_sync(&mut self, peers: &Peers, wire: &Wire) {
        peers.ids().for_each(|peer| self.send_before_sync(peers, peer, wire.clone()));
    }

    /// Takes the messages of the turn; those of OmniPaxos come first.
    pub(super) fn take_sends(&mut self, mut of_paxos: Sends) -> Sends {
        of_paxos.before_sync.append(&mut self.before_sync);
        of_paxos.after_sync.append(&mut self.after_sync);
        of_paxos
    }

    /// Ends the turn. `durable` is the position that earlier turns have synced: a read barrier at
    /// or before it is answered before the sync.
    pub(super) fn finish(&mut self, sends: Sends, lease: Lease, durable: u64) -> Ready {
        let mut out = std::mem::take(self);
        let is_durable = |(_, answer): &mut BarrierAnswer| match answer {
            Ok(index) => index.0 <= durable,
            Err(_) => true,
        };
        let barriers = out.barriers.extract_if(.., is_durable).collect();
        let (lost, gained) = match out.role {
            Some(role) if role.leading().is_none() => (Some(role), None),
            role => (None, role),
        };
        let before_sync = BeforeSync {
            lease,
            sends: sends.before_sync,
            acknowledged: out.acknowledged,
            unacknowledged: out.unacknowledged,
            role: lost,
            barriers,
        };
        let after_sync = AfterSync {
            sends: sends.after_sync,
            refused: out.refused,
            overflowed: out.overflowed,
            role: gained,
            barriers: out.barriers,
            membership: out.membership,
            entered: out.entered,
            staleness_bounds: out.staleness_bounds,
            counts: out.counts,
        };
        Ready::new(before_sync, after_sync)
    }
}
