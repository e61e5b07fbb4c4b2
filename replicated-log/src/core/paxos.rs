//! The OmniPaxos instance of the current configuration, over the durable log.
//!
//! [`Paxos`] owns the library's instance, translates replica numbers (log rule 6), is the only
//! place that appends (log rule 7), and takes the outgoing messages. It replaces synchronisation
//! messages that reach below the trim point (log rule 10), and decides which messages may precede
//! the sync (log rule 1). A new configuration gets a new instance.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;
use omnipaxos::storage::SnapshotType;
use omnipaxos::util::LogSync;
use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};

use crate::ids::ReplicaId;
use crate::item::{Item, Trimmed};
use crate::membership::Membership;
use crate::wal::{Disk, SharedWal, Wal, WalStorage};
use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::outgoing::Sends;
use super::peers::Peers;
use super::ready::Send;

/// The largest number of steps towards a higher ballot at a time. The distance is the number of
/// elections that another replica attempted alone, which is small.
const MAX_BALLOT_STEPS: u32 = 1000;

/// OmniPaxos in one configuration.
pub(super) struct Paxos<D: Disk> {
    me: u64,
    membership: Membership,
    wal: SharedWal<D>,
    instance: OmniPaxos<Item, WalStorage<D>>,
    /// Messages taken from the instance and not sent yet.
    pending: Vec<Message<Item>>,
}

/// A new instance over `wal`. Log rule 6: members are numbered by their places.
fn instance_of<D: Disk>(
    config: &CoreConfig,
    membership: &Membership,
    wal: &SharedWal<D>,
) -> Result<OmniPaxos<Item, WalStorage<D>>, String> {
    let ticks = |ms: u64| (ms / config.timing.tick_ms.max(1)).max(1);
    OmniPaxosConfig {
        cluster_config: ClusterConfig {
            // Every frame carries the configuration; within an instance one id is enough (log rule
            // 4).
            configuration_id: 1,
            nodes: (1..=membership.members.len() as u64).collect(),
            flexible_quorum: None,
        },
        server_config: ServerConfig {
            pid: place(membership, config.me),
            election_tick_timeout: ticks(config.timing.election_timeout_ms),
            // log rule 5: early resends multiply AcceptSyncs, batching in the library makes
            // followers withhold acknowledgements, and its default buffer takes 20 MB a group.
            resend_message_tick_timeout: ticks(config.timing.resend_ms),
            batch_size: 1,
            buffer_size: 64,
            ..ServerConfig::default()
        },
    }
    .build(WalStorage(wal.clone()))
    .map_err(|e| format!("{e:?}"))
}

/// The place of a replica among the members, from 1; 0 if it is not a member.
fn place(membership: &Membership, id: u64) -> u64 {
    membership.members.keys().position(|member| member.0 == id).map_or(0, |at| at as u64 + 1)
}

impl<D: Disk> Paxos<D> {
    /// An instance on an opened log.
    ///
    /// # Errors
    /// OmniPaxos refuses the membership.
    pub(super) fn new(config: &CoreConfig, wal: Wal<D>) -> Result<Paxos<D>, String> {
        let membership = wal.membership().clone();
        let wal = Rc::new(RefCell::new(wal));
        let instance = instance_of(config, &membership, &wal)?;
        Ok(Paxos { me: config.me, membership, wal, instance, pending: Vec::new() })
    }

    pub(super) fn wal(&self) -> Ref<'_, Wal<D>> {
        self.wal.borrow()
    }

    pub(super) fn wal_mut(&self) -> RefMut<'_, Wal<D>> {
        self.wal.borrow_mut()
    }

    pub(super) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(super) fn majority(&self) -> usize {
        self.membership.majority()
    }

    /// The number under which OmniPaxos knows a replica (log rule 6); 0 for strangers.
    pub(super) fn pid(&self, id: u64) -> u64 {
        place(&self.membership, id)
    }

    /// The number under which OmniPaxos knows this replica.
    pub(super) fn my_pid(&self) -> u64 {
        self.pid(self.me)
    }

    /// The replica that OmniPaxos knows as `pid`; 0 if there is none.
    pub(super) fn id(&self, pid: u64) -> u64 {
        let at = pid.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.membership.members.keys().nth(at)).map_or(0, |id| id.0)
    }

    pub(super) fn promise(&self) -> Ballot {
        self.instance.get_promise()
    }

    /// The replica of the promised ballot; 0 if none is promised.
    pub(super) fn promised_replica(&self) -> u64 {
        self.id(self.promise().pid)
    }

    pub(super) fn decided(&self) -> u64 {
        self.instance.get_decided_idx() as u64
    }

    pub(super) fn accepted(&self) -> u64 {
        self.instance.get_accepted_idx() as u64
    }

    /// Whether OmniPaxos has made this replica the leader, ready to append (log rule 7).
    pub(super) fn holds_ballot(&self) -> bool {
        self.instance.get_current_leader() == Some((self.my_pid(), true))
    }

    /// Whether this replica follows another one and waits to be synchronised with it.
    pub(super) fn awaits_synchronisation(&self) -> bool {
        matches!(self.instance.get_current_leader(), Some((leader, false)) if leader != self.my_pid())
    }

    /// The barrier that ends this configuration, once it is decided.
    pub(super) fn barrier_decided(&self, config: &CoreConfig) -> Option<u64> {
        let wal = self.wal();
        let early = config.fault(Fault::ChangeBeforeDecided);
        wal.barrier().filter(|at| *at <= wal.decided() || early)
    }

    /// Whether a barrier is in the log: nothing is appended behind it (log rule 10).
    pub(super) fn behind_barrier(&self, config: &CoreConfig) -> bool {
        self.wal().barrier().is_some() && !config.fault(Fault::PassBarrier)
    }

    /// Appends as the leader. Returns whether the item is in the log.
    pub(super) fn append(&mut self, item: Item) -> bool {
        debug_assert!(self.holds_ballot(), "log rule 7");
        self.instance.append(item).is_ok()
    }

    /// Stands for election with a higher ballot.
    pub(super) fn stand_for_election(&mut self) {
        self.instance.try_become_leader();
    }

    /// Stands for election with a ballot above `ballot`.
    pub(super) fn outbid(&mut self, ballot: Ballot) {
        for _ in 0..MAX_BALLOT_STEPS {
            if self.promise() > ballot {
                break;
            }
            self.instance.try_become_leader();
        }
    }

    pub(super) fn tick(&mut self) {
        self.instance.tick();
    }

    /// Feeds a message. `synchronises`: it may make the library read from below the trim point.
    pub(super) fn handle(&mut self, message: Message<Item>, synchronises: bool) {
        self.wal_mut().patching = synchronises;
        self.instance.handle_incoming(message);
        self.wal_mut().patching = false;
    }

    /// Drops messages to a peer whose session has been replaced, and makes up for them (log rule
    /// 3).
    pub(super) fn reconnected(&mut self, peer: u64) {
        let pid = self.pid(peer);
        self.pending.retain(|m| m.get_receiver() != pid);
        self.instance.reconnected(pid);
    }

    /// Compacts the log up to `to`. Local only; the library checks the position once more (log
    /// rule 10).
    pub(super) fn compact(&mut self, to: u64) {
        self.wal_mut().compacting = true;
        let done = self.instance.snapshot(Some(to as usize), true);
        self.wal_mut().compacting = false;
        if let Err(refused) = done {
            tracing::warn!(to, %refused, "compaction was refused");
        }
    }

    /// Replaces the instance by a new one on the log as it is now, as after a restart.
    pub(super) fn restart(&mut self, config: &CoreConfig) {
        match instance_of(config, &self.membership, &self.wal) {
            Ok(instance) => self.instance = instance,
            // The membership was checked before it was proposed, and again when it was read.
            Err(what) => unreachable!("a checked membership: {what}"),
        }
    }

    /// Begins the configuration `next` in the durable log and with a new instance. The promises,
    /// messages and sessions of the old one have no meaning in it.
    pub(super) fn begin_configuration(&mut self, config: &CoreConfig, next: Membership, transferred: bool) {
        self.wal_mut().begin_configuration(next.clone(), transferred);
        self.membership = next;
        self.restart(config);
        self.pending.clear();
    }

    /// Takes the instance's messages, and puts markers where they reach below the trim point.
    pub(super) fn take_outgoing(&mut self, peers: &mut Peers) {
        let mut taken = Vec::new();
        self.instance.take_outgoing_messages(&mut taken);
        for message in &mut taken {
            if let Message::SequencePaxos(paxos) = message {
                match &mut paxos.msg {
                    PaxosMsg::AcceptSync(m) => {
                        self.patch(&mut m.log_sync, None);
                        let trimmed = m.log_sync.decided_snapshot.is_some().then_some(m.log_sync.sync_idx as u64);
                        let peer = self.id(paxos.to);
                        if let Some(peer) = peers.get_mut(peer).filter(|_| trimmed.is_some()) {
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
        self.pending.append(&mut taken);
    }

    /// Log rule 10. A synchronisation that should begin below the trim point holds only the
    /// retained items (see `get_suffix`). It becomes a Complete marker at its first item, with the
    /// term fence there. The receiver then needs a state transfer. `end` is the end of the suffix;
    /// by default the log's end, which is right for new messages. A repeated Promise states its
    /// own.
    fn patch(&self, sync: &mut LogSync<Item>, end: Option<u64>) {
        let wal = self.wal();
        if sync.sync_idx as u64 >= wal.compacted() {
            return;
        }
        let first = end.unwrap_or(wal.end()) - sync.suffix.len() as u64;
        // Compaction may have advanced since a cached Promise was made.
        let begin = first.max(wal.compacted());
        sync.suffix.drain(..(begin - first) as usize);
        sync.sync_idx = begin as usize;
        sync.decided_snapshot = Some(SnapshotType::Complete(Trimmed { transferred: Some(wal.fence_at(begin)) }));
    }

    /// The messages taken so far, by phase.
    ///
    /// Heartbeats, and the leader's AcceptDecides and Decides, may precede the sync. Log rule 1
    /// keeps the latter behind the sync because the leader counts its own copy at once. But it
    /// counts in order to decide when an Accepted is fed, and an Accepted that answers this message
    /// is fed in a later turn at the earliest, behind this turn's sync. The leader's disk therefore
    /// works while the followers' do. A message behind one that must wait waits too: the order per
    /// peer is kept.
    pub(super) fn take_sends(&mut self, config: &CoreConfig, peers: &Peers) -> Sends {
        let all_early = config.fault(Fault::SendBeforeSync);
        let mut sends = Sends::default();
        let mut waits: Vec<u64> = Vec::new();
        let mut pending = std::mem::take(&mut self.pending);
        for message in pending.drain(..) {
            let peer = self.id(message.get_receiver());
            // Without a session the message is lost; `reconnected` makes up for it (log rule 3).
            let Some(session) = peers.session(peer) else { continue };
            let early = all_early || (!waits.contains(&peer) && may_precede_sync(&message));
            let send = Send { peer, session, wire: Wire::Paxos(message) };
            if early {
                sends.before_sync.push(send);
            } else {
                waits.push(peer);
                sends.after_sync.push(send);
            }
        }
        // Its memory serves the next turn.
        self.pending = pending;
        sends
    }

    /// Whether the disk of this replica is the one that `membership` names for it.
    pub(super) fn is_named_by(&self, membership: &Membership) -> bool {
        membership.has_disk(ReplicaId(self.me), self.wal().store_id())
    }
}

/// See [`Paxos::take_sends`].
fn may_precede_sync(message: &Message<Item>) -> bool {
    match message {
        Message::BLE(_) => true,
        Message::SequencePaxos(paxos) => {
            matches!(paxos.msg, PaxosMsg::AcceptDecide(_) | PaxosMsg::Decide(_))
        }
    }
}
