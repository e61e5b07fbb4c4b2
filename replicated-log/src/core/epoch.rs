//! Epochs: the change of a group's membership (log rule 10).
//!
//! A barrier, an ordinary entry, names the members of the next epoch. From when it is in a leader's log nothing more is
//! appended there; with the barrier decided the epoch is over, and each replica goes over to the next one by itself:
//!
//! 1. It has everything up to the barrier. It ends its leadership, if it has one, and shows that its lease has ended before it
//!    tells anybody.
//! 2. It tells its peers how far it has come, and stays until those that are connected have come as far: else they would need
//!    a copy of the state. It does not wait for long.
//! 3. One record in the durable log makes the next epoch current, and a fresh OmniPaxos instance takes the place of the
//!    old one. Sessions are opened again, under the new epoch's tag (log rule 4).
//!
//! Who has missed that, and who joins with an empty disk, hears of the newer epoch from a peer. It goes over once the application has
//! the state at or after its beginning, and so does not count before.
//!
//! Why nothing is lost or said twice. *Whoever counts in an epoch holds, durably, everything before it*: so a majority of
//! the new members does before anything is decided in it, and each of its logs begins alike. *Nobody goes over before the
//! barrier is decided*: a leader of the old epoch that may still decide something has the barrier in its log and appends
//! nothing behind it. *No leader of the old epoch answers reads once somebody may have gone over*: it learns that the barrier
//! is decided before anybody else, or is deposed: then a majority has promised above its ballot, which no probe survives,
//! and no promise was given before its lease had ended (log rule 9).
//!
//! Until the new epoch has decided something, the disks of replicas that left are still needed.

use std::collections::BTreeMap;

use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};

use crate::item::{Item, Kind};
use crate::membership::Membership;
use crate::types::{LogIndex, ReplicaId};
use crate::wal::{Disk, SharedWal, WalStorage};

use super::{Core, CoreConfig, Fault, Peer};

/// A fresh instance over `wal`: log rule 6 wants its members numbered by their places.
pub(super) fn build<D: Disk>(
    config: &CoreConfig,
    membership: &Membership,
    wal: &SharedWal<D>,
) -> Result<OmniPaxos<Item, WalStorage<D>>, String> {
    let ticks = |ms: u64| (ms / config.timing.tick_ms.max(1)).max(1);
    OmniPaxosConfig {
        cluster_config: ClusterConfig {
            // The epoch is checked on every frame; within an instance one id does (log rule 4).
            configuration_id: 1,
            nodes: (1..=membership.members.len() as u64).collect(),
            flexible_quorum: None,
        },
        server_config: ServerConfig {
            pid: place(membership, config.me),
            election_tick_timeout: ticks(config.timing.election_timeout_ms),
            // log rule 5: resending early makes AcceptSyncs storm, batching in the library makes followers
            // withhold acknowledgements, and its default buffer takes 20 MB a group.
            resend_message_tick_timeout: ticks(config.timing.resend_ms),
            batch_size: 1,
            buffer_size: 64,
            ..ServerConfig::default()
        },
    }
    .build(WalStorage(wal.clone()))
    .map_err(|e| format!("{e:?}"))
}

/// The place of a replica among the members, from 1; 0 if it is none.
fn place(membership: &Membership, id: u64) -> u64 {
    membership.members.keys().position(|member| member.0 == id).map_or(0, |at| at as u64 + 1)
}

pub(super) fn peers_of(membership: &Membership, me: u64) -> impl Iterator<Item = (u64, Peer)> {
    membership.members.keys().filter(move |id| id.0 != me).map(|id| (id.0, Peer::default()))
}

impl<D: Disk> Core<D> {
    /// The number under which OmniPaxos knows a replica (log rule 6); 0 for strangers.
    pub(super) fn pid(&self, id: u64) -> u64 {
        place(&self.membership, id)
    }

    /// The replica that OmniPaxos knows as `pid`; 0 if there is none.
    pub(super) fn id(&self, pid: u64) -> u64 {
        let at = pid.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.membership.members.keys().nth(at)).map_or(0, |id| id.0)
    }

    /// The membership of the epoch that this replica takes part in.
    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The barrier that ends this epoch, once it is decided: nothing behind it counts.
    pub(super) fn barrier_decided(&self) -> Option<u64> {
        let wal = self.wal.borrow();
        let early = self.fault(Fault::LeaveEarly);
        wal.barrier().filter(|at| *at <= wal.decided() || early)
    }

    /// Where the newer epoch begins that this replica cannot enter without the state there.
    pub(super) fn awaited_state(&self) -> Option<u64> {
        // With another disk than it names this replica has taken part in it before, and forgotten that: it waits for one
        // more change.
        let (me, disk) = (ReplicaId(self.config.me), self.wal.borrow().store_id());
        let names_me = |newer: &&Membership| newer.has_disk(me, disk) || self.fault(Fault::LetAnyDiskIn);
        Some(self.newer.as_ref().filter(names_me)?.began.0)
    }

    /// A peer says that there is a newer epoch.
    pub(super) fn newer_epoch(&mut self, newer: Membership) {
        let known = self.newer.as_ref().map_or(self.membership.epoch, |known| known.epoch);
        if newer.epoch <= known || crate::membership::check(&newer.members).is_err() {
            return;
        }
        tracing::info!(epoch = newer.epoch, began = %newer.began, "there is a newer epoch");
        self.turn.membership = Some(newer.clone());
        self.newer = Some(newer);
        // Whatever it still leads has been decided without it.
        self.observe();
        if self.fault(Fault::CountWithoutState) && self.awaited_state().is_some() {
            let newer = self.newer.take();
            newer.into_iter().for_each(|newer| self.enter(newer, true));
        }
    }

    /// The application has the state at `index`, durably: with it this replica may count in the newer epoch.
    /// `false` if that is not what it waits for.
    pub(super) fn installed_for_epoch(&mut self, index: u64) -> bool {
        let Some(began) = self.awaited_state() else {
            return false;
        };
        if index < began {
            tracing::warn!(index, began, "the installed state is too old for the newer epoch");
        } else if let Some(newer) = self.newer.take() {
            self.permitted = self.permitted.max(index);
            self.enter(newer, true);
        }
        true
    }

    /// Ends the leadership as soon as the epoch is over, and lets the peers know.
    pub(super) fn notice_barrier(&mut self) {
        if self.left_since_ms.is_some() || self.barrier_decided().is_none() {
            return;
        }
        self.left_since_ms = Some(self.now_ms);
        self.observe();
        self.tell_standing();
    }

    /// At the end of a turn: goes over to the next epoch if it is time.
    pub(super) fn leave_epoch(&mut self) {
        let (Some(since_ms), Some(at)) = (self.left_since_ms, self.barrier_decided()) else {
            return;
        };
        let reached = |peer: &Peer| peer.standing.is_some_and(|s| s.decided >= at);
        let waits = self.peers.values().any(|peer| peer.session.is_some() && !reached(peer));
        let lingers = self.now_ms.saturating_sub(since_ms) < self.config.timing.linger_ms;
        if self.removed || (waits && lingers && self.newer.is_none()) {
            return;
        }
        let Some(next) = self.next_membership(at) else {
            return;
        };
        self.turn.membership = Some(next.clone());
        let disk = self.wal.borrow().store_id();
        if next.has_disk(ReplicaId(self.config.me), disk) {
            self.enter(next, false);
        } else {
            // It stays where it is, without a say: its disk may still be needed.
            tracing::info!(epoch = next.epoch, "this replica is no longer a member");
            self.removed = true;
        }
    }

    fn next_membership(&self, at: u64) -> Option<Membership> {
        let wal = self.wal.borrow();
        // Compaction stops in front of the barrier, so it is there to be read.
        let item = wal.read(at.checked_sub(1)?, at, usize::MAX).ok()?.pop()?;
        let began = if self.fault(Fault::PassBarrier) { wal.decided() } else { at };
        let next = match item.kind {
            Kind::ConfigChange => self.membership.next(LogIndex(began), wal.fence_at(at).term, &item.payload),
            _ => None,
        };
        if next.is_none() {
            tracing::error!(at, "the barrier names no group; this group cannot go on");
        }
        next
    }

    /// A fresh instance in the place of the old one, whose promises, messages and sessions mean nothing any more.
    fn enter(&mut self, next: Membership, transferred: bool) {
        tracing::info!(epoch = next.epoch, began = %next.began, transferred, "a new epoch begins here");
        self.wal.borrow_mut().begin_epoch(next.clone(), transferred);
        match build(&self.config, &next, &self.wal) {
            Ok(omni) => self.omni = omni,
            // What could be wrong with it was checked before it was proposed, and again when it was read.
            Err(what) => unreachable!("a checked membership: {what}"),
        }
        let clocks: BTreeMap<u64, _> = self.peers.iter().map(|(id, peer)| (*id, peer.clock)).collect();
        self.peers = peers_of(&next, self.config.me).collect();
        self.peers.iter_mut().for_each(|(id, peer)| peer.clock = clocks.get(id).copied().flatten());
        self.held.clear();
        if self.leadership.take().is_some() {
            self.fail_barriers();
        }
        self.forget_holdings();
        self.forget_ballots();
        self.leases = super::Leases::default();
        self.eager = self.led_until_barrier;
        self.led_until_barrier = false;
        self.left_since_ms = None;
        self.removed = false;
        self.applicants.clear();
        self.newer = self.newer.take().filter(|newer| newer.epoch > next.epoch);
        self.turn.entered = true;
        self.turn.membership = Some(self.newer.as_ref().unwrap_or(&next).clone());
        self.membership = next;
    }

    /// Log rule 15: who led until the barrier stands for the new epoch's first election at once, so that nobody has to
    /// wait for a timeout.
    pub(super) fn stand_eagerly(&mut self) {
        let connected = self.peers.values().filter(|p| p.session.is_some()).count();
        // Ballots of the first round are what everybody begins with; among them the highest number would win.
        const FIRST_ROUND: u32 = 1;
        if self.eager && connected + 1 >= self.majority() {
            self.eager = false;
            self.try_lead();
            if self.omni.get_promise().n <= FIRST_ROUND {
                self.omni.try_become_leader();
                self.observe();
            }
        }
    }
}
