//! Configurations: the change of a group's membership (log rule 10).
//!
//! A barrier, an ordinary entry, names the members of the next configuration. Once it is in a
//! leader's log, the leader appends nothing more. With the barrier decided the configuration has
//! ended, and each replica begins the next one by itself:
//!
//! 1. It has everything up to the barrier. It ends its leadership, if it has one, and publishes the
//!    end of its lease before it sends any message.
//! 2. It reports its position to its peers, and waits until the connected ones have come as far;
//!    otherwise they would need a copy of the state. It waits for a limited time.
//! 3. One record in the durable log makes the next configuration current, and a new OmniPaxos
//!    instance replaces the old one. Sessions are opened again, under the new configuration (log
//!    rule 4).
//!
//! A replica that missed the change, or joins with an empty disk, learns the newer configuration
//! from a peer. It enters once the application has the state at or after the configuration's
//! beginning, and does not vote before.
//!
//! # Why nothing is lost or contradicted
//!
//! *Every voter of a configuration has all entries of earlier configurations, durably.* So a
//! majority of the new members has them before anything is decided in it, and each of its logs
//! begins alike. *No replica enters before the barrier is decided.* A leader of the old
//! configuration that may still decide entries has the barrier in its log and appends nothing
//! behind it. *No leader of the old configuration answers reads once a replica may have entered the
//! new one.* It learns that the barrier is decided before any other replica, or is deposed. In the
//! latter case a majority has promised above its ballot, which no probe survives, and no promise
//! was given before its lease had ended (log rule 9).
//!
//! Not done: until the new configuration has decided an entry, the disks of removed replicas are
//! still needed.

use crate::ids::{LogIndex, ReplicaId};
use crate::item::Kind;
use crate::membership::{self, Membership};
use crate::wal::Disk;

use super::config::CoreConfig;
use super::fault::Fault;
use super::paxos::Paxos;
use super::peers::{Peer, Peers};

/// The progress of this replica towards the next configuration.
#[derive(Debug, Default)]
pub(super) struct ConfigurationChange {
    /// A newer configuration than the current one, which this replica cannot enter yet.
    newer: Option<Membership>,
    /// The time since this replica knows that its configuration has ended.
    ended_since_ms: Option<u64>,
    /// Whether this replica led when its configuration ended.
    led_until_barrier: bool,
    /// Whether this replica stands for election as soon as a majority is connected.
    stands_eagerly: bool,
    /// The next configuration does not include this replica.
    removed: bool,
}

impl ConfigurationChange {
    /// The newer configuration that this replica knows.
    pub(super) fn newer(&self) -> Option<&Membership> {
        self.newer.as_ref()
    }

    /// The beginning of the newer configuration that this replica cannot enter without the state
    /// there.
    pub(super) fn awaited_state<D: Disk>(&self, config: &CoreConfig, paxos: &Paxos<D>) -> Option<u64> {
        // If the newer configuration names another disk of this replica, this replica took part in
        // it and has forgotten that: it waits for one more change.
        let (me, disk) = (ReplicaId(config.me), paxos.wal().store_id());
        let names_me = |newer: &&Membership| newer.has_disk(me, disk) || config.fault(Fault::AcceptAnyDisk);
        Some(self.newer.as_ref().filter(names_me)?.began.0)
    }

    /// A peer announces a configuration. Returns whether it is newer than all known ones, and
    /// valid.
    pub(super) fn announce(&mut self, newer: Membership, current: &Membership) -> bool {
        let known = self.newer.as_ref().map_or(current.configuration, |known| known.configuration);
        if newer.configuration <= known || membership::check(&newer.members).is_err() {
            return false;
        }
        tracing::info!(
            configuration = newer.configuration, began = %newer.began, "there is a newer configuration"
        );
        self.newer = Some(newer);
        true
    }

    /// Takes the newer configuration, to enter it.
    pub(super) fn take_newer(&mut self) -> Option<Membership> {
        self.newer.take()
    }

    /// The leadership has ended; `by_barrier`: with its configuration.
    pub(super) fn leadership_ended(&mut self, by_barrier: bool) {
        self.led_until_barrier = by_barrier;
    }

    /// Notices the end of the configuration. Returns whether it is news.
    pub(super) fn notice_end(&mut self, now_ms: u64) -> bool {
        let news = self.ended_since_ms.is_none();
        self.ended_since_ms.get_or_insert(now_ms);
        news
    }

    /// Whether it is time to leave the configuration that the barrier at `at` ends.
    pub(super) fn is_due(&self, config: &CoreConfig, at: u64, peers: &Peers, now_ms: u64) -> bool {
        let Some(since_ms) = self.ended_since_ms else {
            return false;
        };
        let reached = |peer: &Peer| peer.standing.is_some_and(|s| s.decided >= at);
        let waits = peers.connected().any(|peer| !reached(peer));
        let lingers = now_ms.saturating_sub(since_ms) < config.timing.linger_ms;
        !(self.removed || (waits && lingers && self.newer.is_none()))
    }

    /// The next configuration does not include this replica. It stays in its configuration without
    /// a vote: its disk may still be needed.
    pub(super) fn set_removed(&mut self) {
        self.removed = true;
    }

    /// This replica enters `next`.
    pub(super) fn entered(&mut self, next: &Membership) {
        let newer = self.newer.take().filter(|newer| newer.configuration > next.configuration);
        *self = ConfigurationChange { newer, stands_eagerly: self.led_until_barrier, ..ConfigurationChange::default() };
    }

    /// Whether this replica stands for election now, with a connected majority. The leader until
    /// the barrier stands for the first election at once, so that the group need not wait for a
    /// timeout (log rule 15).
    pub(super) fn take_eager_election(&mut self, has_majority: bool) -> bool {
        let stands = self.stands_eagerly && has_majority;
        self.stands_eagerly &= !stands;
        stands
    }
}

/// The membership that the barrier at `at` names.
pub(super) fn next_membership<D: Disk>(config: &CoreConfig, paxos: &Paxos<D>, at: u64) -> Option<Membership> {
    let wal = paxos.wal();
    // Compaction stops in front of the barrier, so it can be read.
    let item = wal.read(at.checked_sub(1)?, at, usize::MAX).ok()?.pop()?;
    let began = if config.fault(Fault::PassBarrier) { wal.decided() } else { at };
    let next = match item.kind {
        Kind::ConfigChange => paxos.membership().next(LogIndex(began), wal.fence_at(at).term, &item.payload),
        _ => None,
    };
    if next.is_none() {
        tracing::error!(at, "the barrier names no group; this group cannot go on");
    }
    next
}
