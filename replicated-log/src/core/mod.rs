//! The replica as a pure state machine: OmniPaxos on the durable log, the leaderships, the read barrier, compaction.
//!
//! It does no I/O beyond its [`Disk`], reads no clock and draws no random numbers. A turn of the event loop is
//!
//! 1. [`Core::feed`] for every input that waits,
//! 2. [`Core::finish`], which says what to send, to answer and to show,
//! 3. the lease is shown to readers, before anything leaves,
//! 4. the sends marked `early`, and the newly decided entries that earlier turns have synced,
//! 5. [`Core::sync`], once,
//! 6. the other sends, the answers, the role, the rest of the newly decided entries.
//!
//! The runtime does that on a thread, the simulator in a loop; neither makes a choice. It is the only owner of its
//! group (log rule 1) and keeps the rules of `log rule 1` to `log rule 15`, each named where it is obeyed.

mod applied;
mod aside;
mod barrier;
mod catch_up;
mod clocks;
mod disks;
mod epoch;
mod fresh;
mod held;
mod lease;
mod outgoing;
mod reading;
mod room;
mod upkeep;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
#[cfg(not(test))]
use evenkeel_host::{Bug, deliberate};
use omnipaxos::OmniPaxos;
use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;

use crate::item::{Item, Kind};
use crate::membership::Membership;
use crate::types::{BarrierError, Fresh, Limits, LogIndex, ReplicaId, Role, Term, Timing};
use crate::wal::{Disk, SharedWal, Wal, WalError, WalStorage};
use crate::wire::{Standing, Wire};
use applied::Applied;
use aside::Aside;
use barrier::Barriers;
use catch_up::Refusing;
use clocks::PeerClock;
use fresh::Asker;
use held::Holdings;
pub(crate) use lease::Lease;
use lease::Leases;
use room::PeerLog;

/// What the core must know; times in milliseconds as in [`Timing`].
#[derive(Clone, Debug)]
pub(crate) struct CoreConfig {
    pub(crate) me: u64,
    /// What the wall clock shows when the clock passed in shows 0, in milliseconds since the Unix epoch.
    pub(crate) unix_at_boot_ms: u64,
    pub(crate) timing: Timing,
    pub(crate) limits: Limits,
    #[cfg(test)]
    pub(crate) faults: Vec<Fault>,
}

/// Rules that the simulator leaves out to show that it notices; one of them the simulation of the whole system too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "only tests construct them")]
pub(crate) enum Fault {
    /// Log rule 2: outgoing messages are not taken before a Promise is fed.
    PromiseWithoutTaking,
    /// Log rule 9, first half: reads are answered without asking a majority.
    ReadWithoutProbe,
    /// Log rule 9, second half (log rule 8): a new leader answers before its `LeaderStart` is decided.
    ReadBeforeStart,
    /// Log rule 8, invariant 1: entries are judged effective without looking at the term.
    NoFence,
    /// Log rule 1: everything is sent before the sync.
    SendBeforeSync,
    /// Log rule 9: a lease counts with a majority of holders, the leader included.
    LeaseOfMajority,
    /// Log rule 9: a restarted replica does not hold.
    NoRestartHold,
    /// Log rule 9: nobody's Prepare is kept waiting.
    NoHold,
    /// R17: the leader tells how fresh others are without making sure that it leads.
    FreshWithoutProof,
    /// R17: an answer about freshness counts from when it came.
    FreshWhenAnswered,
    /// R28: an entry counts as held in memory with a majority.
    HeldByMajority,
    /// Log rule 11: replicas stuck above the leader's ballot are left alone.
    LeaveStuck,
    /// Log rule 10: a replica goes over to the next epoch before the barrier is decided.
    LeaveEarly,
    /// Log rule 10: entries are appended behind the barrier, and count.
    PassBarrier,
    /// Log rule 10: a replica counts in a newer epoch before the application has its state.
    CountWithoutState,
    /// Log rule 10: a replica that has lost its disk is let into the epoch in which it made promises.
    LetAnyDiskIn,
    /// Log rule 10: nobody hears which disks the others know.
    KeepDisksToOneself,
    /// Who is brought near with decided entries forgets what it has accepted behind them.
    ForgetAccepted,
    /// Who is brought near with decided entries accepts them in its promise's round.
    AcceptPieces,
    /// R14: a replica goes by its own wall clock, whatever those of the others say.
    OwnClock,
}

/// One input.
#[derive(Debug)]
pub(crate) enum Input {
    /// A session with `peer`, whose disk is `store_id`, has been opened in `epoch`.
    SessionUp {
        peer: u64,
        session: u64,
        epoch: u32,
        store_id: u64,
    },
    SessionDown {
        peer: u64,
        session: u64,
    },
    Message {
        peer: u64,
        session: u64,
        wire: Wire,
    },
    Propose {
        kind: Kind,
        term: Term,
        payload: Bytes,
        /// To be told of, under this number, in some [`Turn::held`] or [`Turn::unheld`].
        tracked: Option<u64>,
    },
    NewLeadership {
        current: Term,
    },
    /// Answered in some [`Turn::barriers`] under the same id.
    Barrier {
        id: u64,
    },
    /// Answered in some [`Turn::fresh`], if a leader can be reached.
    AskFresh,
    Compact(LogIndex),
    /// What the application has applied.
    Applied(u64),
    RetainFrom(Option<LogIndex>),
    Installed {
        index: LogIndex,
        term: Term,
    },
    TryLead,
    YieldLeadership,
    /// A peer is in a newer epoch than this replica.
    NewerEpoch(Membership),
    /// A replica of an older epoch, or of none, has greeted.
    Seen {
        replica: u64,
        store_id: u64,
    },
    /// The application cannot serve, or can again.
    StandAside(bool),
    /// The clock has moved on by one tick.
    Tick,
    /// An entry of an ended leadership gets into the log, as it would through OmniPaxos's forwarding.
    #[cfg(test)]
    Rogue {
        term: Term,
        payload: Bytes,
    },
}

/// A message to send.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) peer: u64,
    /// The session it belongs to; lost with it.
    pub(crate) session: u64,
    /// May go out before the sync: see [`Core::finish`].
    pub(crate) early: bool,
    pub(crate) wire: Wire,
}

/// What a turn brings about.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// In order; per peer the order must be kept.
    pub(crate) sends: Vec<Send>,
    /// Sessions to close: the peer's disk is not the one it had in this epoch.
    pub(crate) refused: Vec<(u64, u64)>,
    /// Sessions to close: more came in than may wait (log rule 3).
    pub(crate) overflowed: Vec<(u64, u64)>,
    /// To be shown to readers before anything of this turn is sent (log rule 9).
    pub(crate) lease: Lease,
    pub(crate) barriers: Vec<(u64, Result<LogIndex, BarrierError>)>,
    /// The same; they need not wait for the sync.
    pub(crate) early_barriers: Vec<(u64, Result<LogIndex, BarrierError>)>,
    /// Tracked proposals that are held in a quorum's memory (R28).
    pub(crate) held: Vec<u64>,
    /// Tracked proposals of which it will not be known: not appended, or their ballot's leadership has ended.
    pub(crate) unheld: Vec<u64>,
    /// What became known about this replica's freshness (R17).
    pub(crate) fresh: Vec<Fresh>,
    pub(crate) role: Option<Role>,
    /// Entries appended to the log on this replica's initiative.
    pub(crate) proposed: u64,
    /// Proposals that came too late: their leadership was over.
    pub(crate) dropped: u64,
    /// Probes sent for reads that no lease could serve.
    pub(crate) probes: u64,
    /// Leaderships begun.
    pub(crate) leaderships: u64,
    /// Pieces of decided entries taken in.
    pub(crate) learned: u64,
    /// Candidates not promised since they are far behind.
    pub(crate) refusals: u64,
    /// The newest membership that is known, if that has changed.
    pub(crate) membership: Option<Membership>,
    /// Another epoch has begun here: every session is over, and new ones are opened under its tag.
    pub(crate) entered: bool,
}

/// This replica's leadership.
#[derive(Clone, Copy, Debug)]
struct Leadership {
    ballot: Ballot,
    term: Term,
    /// The number of items up to and including its `LeaderStart`.
    start: u64,
}

/// What is known of another member.
#[derive(Clone, Debug, Default)]
struct Peer {
    session: Option<u64>,
    last_heard_ms: Option<u64>,
    standing: Option<Standing>,
    /// The size of its log, as of the standing.
    log: PeerLog,
    clock: Option<PeerClock>,
    /// It was told that the log begins there, behind what it had: it needs a state transfer, whatever it said before it heard of that.
    trimmed: Option<u64>,
    /// Came with another disk than it had in this epoch.
    other_disk: bool,
    /// The disk that it came with last.
    disk: Option<u64>,
    /// Since when its promise has been above the ballot of a leader that a majority follows (log rule 11).
    stuck_since_ms: Option<u64>,
}

/// A replica of one group. See the module's page for the order of calls.
pub(crate) struct Core<D: Disk> {
    config: CoreConfig,
    /// Of the epoch that this replica takes part in.
    membership: Membership,
    /// A newer one, which it cannot enter yet.
    newer: Option<Membership>,
    /// Since when it has known that its epoch is over.
    left_since_ms: Option<u64>,
    led_until_barrier: bool,
    /// Stands for election as soon as a majority is there.
    eager: bool,
    /// The next epoch goes on without this replica.
    removed: bool,
    /// Who waits to be let in, and with which disk.
    applicants: BTreeMap<u64, u64>,
    wal: SharedWal<D>,
    omni: OmniPaxos<Item, WalStorage<D>>,
    peers: BTreeMap<u64, Peer>,
    /// Taken from OmniPaxos and not yet handed out.
    held: Vec<Message<Item>>,
    leadership: Option<Leadership>,
    role: Role,
    barriers: Barriers,
    leases: Leases,
    holdings: Holdings,
    aside: Aside,
    refusing: Option<Refusing>,
    clock_correction_ms: i64,
    applied: Applied,
    permitted: u64,
    retain_from: Option<u64>,
    /// Decided items handed out by [`Core::newly_decided`].
    published: u64,
    now_ms: u64,
    started_ms: u64,
    next_status_ms: u64,
    turn: Turn,
}

impl Peer {
    /// Whether it needs a state transfer, as far as is known.
    fn needs_state(&self) -> bool {
        let unheard = |at: u64| self.standing.is_none_or(|standing| standing.accepted < at);
        self.trimmed.is_some_and(unheard) || self.standing.is_some_and(|standing| standing.needs_state)
    }
}

impl<D: Disk> Core<D> {
    /// Builds the replica on an opened log.
    ///
    /// # Errors
    /// What OmniPaxos finds wrong with the membership.
    pub(crate) fn new(config: CoreConfig, wal: Wal<D>, now_ms: u64) -> Result<Core<D>, String> {
        let membership = wal.membership().clone();
        let wal = Rc::new(RefCell::new(wal));
        let omni = epoch::build(&config, &membership, &wal)?;
        let peers = epoch::peers_of(&membership, config.me).collect();
        let published = wal.borrow().compacted();
        let mut core = Core {
            config,
            membership,
            newer: None,
            left_since_ms: None,
            led_until_barrier: false,
            eager: false,
            removed: false,
            applicants: BTreeMap::new(),
            wal,
            omni,
            peers,
            held: Vec::new(),
            leadership: None,
            role: Role::Follower { leader: None },
            barriers: Barriers::default(),
            leases: Leases::default(),
            holdings: Holdings::default(),
            aside: Aside::default(),
            refusing: None,
            clock_correction_ms: 0,
            applied: Applied::default(),
            permitted: 0,
            retain_from: None,
            published,
            now_ms,
            started_ms: now_ms,
            next_status_ms: now_ms,
            turn: Turn::default(),
        };
        core.hold_after_restart();
        core.show_role();
        Ok(core)
    }

    fn fault(&self, fault: Fault) -> bool {
        #[cfg(test)]
        return self.config.faults.contains(&fault);
        #[cfg(not(test))]
        {
            fault == Fault::PassBarrier && deliberate(Bug::PassesBarrier)
        }
    }

    fn majority(&self) -> usize {
        self.membership.majority()
    }

    /// Takes in one input at `now_ms`, which never goes back and was read from the clock after the input had
    /// arrived (log rule 9: a hold must not begin before it was asked for).
    pub(crate) fn feed(&mut self, now_ms: u64, input: Input) {
        self.now_ms = now_ms;
        self.end_hold();
        match input {
            // log rule 4: of this epoch only; another one's may still have been on its way.
            Input::SessionUp { peer, session, epoch, store_id } if epoch == self.membership.epoch => {
                self.session_up(peer, session, store_id);
            }
            Input::SessionUp { .. } => {}
            Input::SessionDown { peer, session } => self.session_down(peer, session),
            Input::Message { peer, session, wire } => self.message(peer, session, wire),
            Input::Propose { kind, term, payload, tracked } => self.propose(Item { kind, term, payload }, tracked),
            Input::NewLeadership { current } => self.new_leadership(current),
            Input::Barrier { id } => self.barrier(id),
            Input::AskFresh => self.ask_fresh(),
            Input::Compact(index) => self.permitted = self.permitted.max(index.0),
            Input::Applied(length) => self.applied(length),
            Input::RetainFrom(index) => self.retain_from = index.map(|i| i.0),
            Input::Installed { index, term } => self.installed(index.0, term),
            Input::TryLead => self.try_lead(),
            Input::YieldLeadership => self.ask_other_to_lead(),
            Input::NewerEpoch(newer) => self.newer_epoch(newer),
            Input::Seen { replica, store_id } => self.seen(replica, store_id),
            Input::StandAside(stands) => self.stand_aside(stands),
            Input::Tick => self.tick(),
            #[cfg(test)]
            Input::Rogue { term, payload } => {
                if self.holds_ballot() {
                    self.append(Item { kind: Kind::Data, term, payload });
                }
            }
        }
    }

    fn session_up(&mut self, peer: u64, session: u64, store_id: u64) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        if !self.check_disk(peer, store_id) {
            tracing::error!(peer, "a peer came back with another disk; it cannot rejoin this epoch");
            self.turn.refused.push((peer, session));
            return;
        }
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        known.session = Some(session);
        known.stuck_since_ms = None;
        self.doubt_holding(peer);
        self.doubt_clock(peer);
        // log rule 3: what was meant for the old session goes down with it, as a whole, and both ends say
        // `reconnected` before anything of the new session is delivered or sent.
        self.take_outgoing();
        self.forget_waiting(peer);
        let pid = self.pid(peer);
        self.held.retain(|m| m.get_receiver() != pid);
        self.omni.reconnected(pid);
        self.observe();
        // A leader knows the clocks of those that promise it (R14).
        self.tell_standing_to(peer);
        self.tell_disks_to(peer);
        self.stand_eagerly();
    }

    fn session_down(&mut self, peer: u64, session: u64) {
        if let Some(known) = self.peers.get_mut(&peer)
            && known.session == Some(session)
        {
            known.session = None;
            self.doubt_holding(peer);
            self.forget_waiting(peer);
        }
    }

    fn message(&mut self, peer: u64, session: u64, wire: Wire) {
        let now_ms = self.now_ms;
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        // log rule 3: nothing of an earlier session after a new one has begun.
        if known.session != Some(session) {
            return;
        }
        known.last_heard_ms = Some(now_ms);
        match wire {
            Wire::Paxos(message) => {
                if let Some(message) = self.admit(peer, message) {
                    self.paxos(peer, message);
                }
            }
            Wire::Probe { id } => {
                // What has not been promised before now: no crash makes that untrue.
                let promise = self.omni.get_promise();
                self.early_control(peer, Wire::ProbeReply { id, promise });
            }
            Wire::ProbeReply { id, promise } => self.probe_reply(peer, id, promise),
            Wire::HoldAsk { ballot, length } => self.hold_asked(peer, ballot, length),
            Wire::HoldTold { ballot, length } => self.hold_told(peer, ballot, length),
            Wire::FreshAsk { asked_ms } => self.fresh_asked(Asker { from: Some((peer, session)), asked_ms }),
            Wire::FreshAnswer { asked_ms, index } => self.fresh_answered(asked_ms, index),
            Wire::Status(standing) => self.stands(peer, standing),
            Wire::TryLead => self.try_lead(),
            Wire::LeaseRequest { ballot, sent_ms } => self.lease_requested(peer, ballot, sent_ms),
            Wire::LeaseAck { ballot, sent_ms } => self.lease_acked(peer, ballot, sent_ms),
            Wire::LeaseRelease { ballot } => self.lease_released(peer, ballot),
            Wire::Decided { first, items } => self.learn(first, items),
            Wire::Disks(disks) => self.disks_told(disks),
        }
    }

    fn paxos(&mut self, peer: u64, message: Message<Item>) {
        if message.get_sender() != self.pid(peer) || message.get_receiver() != self.pid(self.config.me) {
            return;
        }
        let Some(message) = self.within_bounds(peer, message) else {
            return;
        };
        let syncs = match &message {
            Message::BLE(_) => false,
            Message::SequencePaxos(paxos) => match &paxos.msg {
                // log rules 7 and 10: nobody sends these here; whoever does must have no effect.
                PaxosMsg::ProposalForward(_)
                | PaxosMsg::ForwardStopSign(_)
                | PaxosMsg::AcceptStopSign(_)
                | PaxosMsg::Compaction(_) => return,
                PaxosMsg::Promise(_) => {
                    // log rule 2: else an AcceptSync leaves the pending AcceptDecide slot in place, and later
                    // entries are added to a message in front of it: a silent hole in the follower's log.
                    if !self.fault(Fault::PromiseWithoutTaking) {
                        self.take_outgoing();
                    }
                    true
                }
                PaxosMsg::Prepare(_) => true,
                _ => false,
            },
        };
        self.wal.borrow_mut().patching = syncs;
        self.omni.handle_incoming(message);
        self.wal.borrow_mut().patching = false;
        if syncs && !self.fault(Fault::PromiseWithoutTaking) {
            // While the log is as it was when the library read it, so that what is missing is known.
            self.take_outgoing();
        }
        self.observe();
    }

    /// Whether OmniPaxos holds this replica for the leader, ready to append (log rule 7).
    fn holds_ballot(&self) -> bool {
        self.omni.get_current_leader() == Some((self.pid(self.config.me), true))
    }

    /// Begins or ends this replica's leadership as OmniPaxos's leadership has changed.
    fn observe(&mut self) {
        let ballot = self.omni.get_promise();
        // log rule 10: with the epoch its leaderships are over.
        let over = self.newer.is_some() || self.barrier_decided().is_some();
        let holds = self.holds_ballot() && !over;
        if let Some(ended) = self.leadership.take_if(|r| !holds || r.ballot != ballot) {
            self.led_until_barrier = over && ended.ballot == ballot;
            self.release_lease(ended.ballot);
            self.forget_holdings();
            self.fail_barriers();
        }
        // log rule 10: who comes to lead with an undecided barrier in its log has nothing to do but to decide it.
        if holds && self.leadership.is_none() && !self.behind_barrier() {
            self.enter_office(ballot);
        }
    }

    /// Log rule 8: a leadership begins with its `LeaderStart`, whose place is remembered.
    fn begin_leadership(&mut self, ballot: Ballot, term: Term) {
        if self.append(Item::leader_start(term)) {
            let start = self.omni.get_accepted_idx() as u64;
            self.leadership = Some(Leadership { ballot, term, start });
            self.turn.leaderships += 1;
        }
    }

    /// The only place that appends, and only as the leader (log rule 7).
    fn append(&mut self, item: Item) -> bool {
        debug_assert!(self.holds_ballot(), "log rule 7");
        self.omni.append(item).is_ok()
    }

    /// Whether a barrier is in the log: nothing is appended behind it (log rule 10).
    fn behind_barrier(&self) -> bool {
        self.wal.borrow().barrier().is_some() && !self.fault(Fault::PassBarrier)
    }

    fn propose(&mut self, item: Item, tracked: Option<u64>) {
        // log rule 7, invariant 1: the term of the entry is the leadership's, or the entry is not appended at all.
        // Nothing is proposed behind the end of an epoch (log rule 10).
        let leads = self.leadership.is_some_and(|r| r.term == item.term);
        if leads && !self.behind_barrier() && self.append(item) {
            self.turn.proposed += 1;
            if let Some(id) = tracked {
                self.track(id);
            }
        } else {
            self.turn.dropped += 1;
            self.turn.unheld.extend(tracked);
        }
    }

    /// R1: the owner has to start over; what it proposed so far and what comes later must not mix.
    fn new_leadership(&mut self, current: Term) {
        let Some(leadership) = self.leadership.filter(|r| r.term == current) else {
            return;
        };
        match current.next_leadership() {
            Some(term) if !self.behind_barrier() => self.begin_leadership(leadership.ballot, term),
            // The epoch is ending, and the leadership with it.
            Some(_) => {}
            // Sixteen million leaderships under one ballot: take a new one.
            None => self.omni.try_become_leader(),
        }
        self.observe();
    }

    fn try_lead(&mut self) {
        // log rule 10: neither serves nor leads.
        if self.may_lead() && !self.holds_ballot() {
            self.omni.try_become_leader();
            self.observe();
        }
    }

    fn installed(&mut self, index: u64, term: Term) {
        if self.installed_for_epoch(index) {
            return;
        }
        let mut wal = self.wal.borrow_mut();
        let Some(trimmed) = wal.needs_state() else {
            return;
        };
        if index < trimmed {
            tracing::warn!(index, trimmed, "the installed state is too old; another one is needed");
            return;
        }
        // Invariant 3: the state must be one that this log leads to.
        if index <= wal.decided() && wal.fence_at(index).term != term {
            tracing::error!(index, %term, "the installed state is from another history; not taken");
            return;
        }
        wal.state_installed();
        drop(wal);
        self.permitted = self.permitted.max(index);
        self.observe();
    }

    fn tick(&mut self) {
        self.omni.tick();
        self.observe();
        self.expire_barriers();
        self.request_lease();
        if self.now_ms >= self.next_status_ms {
            self.next_status_ms = self.now_ms + self.config.timing.status_ms;
            self.upkeep();
        }
    }

    fn show_role(&mut self) {
        let leader = Some(self.id(self.omni.get_promise().pid))
            .filter(|id| *id != 0 && (*id != self.config.me || self.leadership.is_some()))
            .map(ReplicaId);
        let trimmed = self.awaited_state().or(self.wal.borrow().needs_state());
        let role = match (self.leadership, trimmed) {
            (Some(leadership), _) => Role::Leader { term: leadership.term, start: LogIndex(leadership.start) },
            (None, Some(trimmed)) => Role::Behind { trimmed: LogIndex(trimmed), leader },
            (None, None) => Role::Follower { leader },
        };
        if role != self.role {
            self.role = role.clone();
            self.turn.role = Some(role);
        }
    }

    /// The role as of the last finished turn.
    pub(crate) fn role(&self) -> &Role {
        &self.role
    }

    /// Makes the turn durable with at most one sync (log rule 1). Says whether the disk was needed.
    ///
    /// # Errors
    /// Any error is fatal to the process (log rule 13).
    pub(crate) fn sync(&mut self) -> Result<bool, WalError> {
        self.wal.borrow_mut().sync()
    }

    /// As [`Core::sync`] with everything there is; for an orderly end.
    pub(crate) fn sync_all(&mut self) -> Result<(), WalError> {
        self.wal.borrow_mut().sync_all()
    }
}

#[cfg(test)]
impl<D: Disk> Core<D> {
    /// What its application is told of the time.
    pub(crate) fn told_ms(&self) -> u64 {
        self.clock_ms().saturating_add_signed(self.clock_correction_ms)
    }

    pub(crate) fn tick_ms(&self) -> u64 {
        self.config.timing.tick_ms
    }

    /// The disk that `peer` must have, as far as this replica has that on disk itself.
    pub(crate) fn knows_disk(&self, peer: u64) -> Option<u64> {
        let wal = self.wal.borrow();
        if wal.needs_sync() { None } else { wal.known_peer_store(peer) }
    }

    /// Whether its epoch is about to end.
    pub(crate) fn has_barrier(&self) -> bool {
        self.wal.borrow().barrier().is_some() || self.newer.is_some()
    }

    /// Elected although it needs a state transfer.
    pub(crate) fn leads_behind(&self) -> bool {
        self.holds_ballot() && self.leadership.is_none()
    }

    /// Whether the log has been replaced by a trimmed one that the application has not caught up with.
    pub(crate) fn was_reset(&self) -> bool {
        self.wal.borrow().needs_state().is_some()
    }
}
