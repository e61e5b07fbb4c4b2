//! [`Core`]: the parts of the core, wired together.

use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;

use crate::entry::Entry;
use crate::ids::{LogIndex, ReplicaId, Term};
use crate::item::Item;
use crate::membership::Membership;
use crate::old_entries::OldEntries;
use crate::role::Role;
use crate::status::LogStatus;
use crate::wal::{Disk, Synced, Wal, WalError, Written};
use crate::wire::{Standing, Wire};

use super::applied::AppliedPosition;
use super::catch_up::{self, CatchUp};
use super::compaction::Compaction;
use super::config::CoreConfig;
use super::configuration::{self, ConfigurationChange};
use super::disks::{self, Disks};
use super::fault::Fault;
use super::group_clock::GroupClock;
use super::input::Input;
use super::lease_hold::{HoldOverflow, LeaseHold};
use super::log_status;
use super::log_view::{self, LogView, Shown};
use super::memory_acknowledgement::MemoryQuestion;
use super::outgoing::Outgoing;
use super::paxos::Paxos;
use super::peer_log::{self, PeerLog};
use super::peers::Peers;
use super::ready::Ready;
use super::role_machine::{self, PeerAnswer, RoleMachine};
use super::staleness_bound::{self, StalenessQuestion};
use super::stuck_peers;
use super::turn_context::TurnContext;

/// A replica of one group. See the module's page for the order of calls.
pub(crate) struct Core<D: Disk> {
    ctx: TurnContext<D>,
    role: RoleMachine,
    /// The role as of the last finished turn.
    shown_role: Role,
    lease_hold: LeaseHold,
    change: ConfigurationChange,
    disks: Disks,
    catch_up: CatchUp,
    clock: GroupClock,
    applied: AppliedPosition,
    compaction: Compaction,
    view: LogView,
    started_ms: u64,
    next_status_ms: u64,
}

impl<D: Disk> Core<D> {
    /// Builds the replica on an opened log.
    ///
    /// # Errors
    /// OmniPaxos refuses the membership.
    pub(crate) fn new(config: CoreConfig, wal: Wal<D>, now_ms: u64) -> Result<Core<D>, String> {
        let compacted = wal.compacted();
        let paxos = Paxos::new(&config, wal)?;
        let mut core = Core {
            role: RoleMachine::new(),
            shown_role: Role::Follower { leader: None },
            lease_hold: LeaseHold::after_restart(&config, paxos.promise(), now_ms),
            change: ConfigurationChange::default(),
            disks: Disks::default(),
            catch_up: CatchUp::default(),
            clock: GroupClock::default(),
            applied: AppliedPosition::default(),
            compaction: Compaction::default(),
            view: LogView::new(compacted),
            started_ms: now_ms,
            next_status_ms: now_ms,
            ctx: TurnContext {
                peers: Peers::of(paxos.membership(), config.me),
                config,
                paxos,
                out: Outgoing::default(),
                now_ms,
            },
        };
        core.show_role();
        Ok(core)
    }

    /// Takes in one input at `now_ms`, which never goes back and was read from the clock after the
    /// input had arrived (log rule 9: a hold must not begin before it was asked for).
    pub(crate) fn feed(&mut self, now_ms: u64, input: Input) {
        self.ctx.now_ms = now_ms;
        self.process_due();
        match input {
            // log rule 4: of this configuration only; events of another one may still have been
            // queued.
            Input::SessionUp { peer, session, configuration, store_id } => {
                if configuration == self.membership().configuration {
                    self.session_up(peer, session, store_id);
                }
            }
            Input::SessionDown { peer, session } => self.session_down(peer, session),
            Input::Message { peer, session, wire } => self.message(peer, session, wire),
            Input::Propose { kind, term, payload, tracked } => {
                self.role.propose(&mut self.ctx, Item { kind, term, payload }, tracked);
            }
            Input::NewLeadership { current } => self.role.new_leadership(&mut self.ctx, &mut self.change, current),
            Input::Barrier { id } => self.role.barrier(&mut self.ctx, id),
            Input::AskStalenessBound => self.role.ask_staleness_bound(&mut self.ctx),
            Input::Compact(index) => self.compaction.allow(index.0),
            Input::Applied(length) => self.applied.advance(length),
            Input::RetainFrom(index) => self.compaction.retain_from(index.map(|i| i.0)),
            Input::Installed { index, term } => self.installed(index.0, term),
            Input::TryLead => self.role.try_lead(&mut self.ctx, &mut self.change),
            Input::YieldLeadership => role_machine::ask_other_to_lead(&mut self.ctx),
            Input::NewerConfiguration(newer) => self.newer_configuration(newer),
            Input::Seen { replica, store_id } => {
                self.disks.seen(replica, store_id, &self.ctx.paxos, &mut self.ctx.peers)
            }
            Input::SetIneligible(ineligible) => self.set_ineligible(ineligible),
            Input::Tick => self.tick(),
            #[cfg(test)]
            Input::Rogue { term, payload } => {
                if self.ctx.paxos.holds_ballot() {
                    self.ctx.paxos.append(Item { kind: crate::item::Kind::Data, term, payload });
                }
            }
        }
    }

    /// Processes the messages that waited for the end of this replica's hold.
    fn process_due(&mut self) {
        for (peer, messages) in self.lease_hold.take_due(self.ctx.now_ms) {
            for message in messages {
                self.feed_paxos(peer, message);
            }
        }
    }

    /// Begins or ends this replica's leadership after a change of OmniPaxos's leader.
    fn observe(&mut self) {
        self.role.observe(&mut self.ctx, &mut self.change);
    }

    fn set_ineligible(&mut self, ineligible: bool) {
        if self.role.set_ineligible(&mut self.ctx, ineligible) {
            // A replica that looks for a successor needs this now, not with the next status
            // message.
            self.send_standing();
            self.observe();
        }
    }

    fn session_up(&mut self, peer: u64, session: u64, store_id: u64) {
        if !self.ctx.peers.contains(peer) {
            return;
        }
        if !disks::check(&self.ctx.config, (peer, store_id), &self.ctx.paxos, &mut self.ctx.peers, &mut self.ctx.out) {
            tracing::error!(peer, "a peer came back with another disk; it cannot rejoin this configuration");
            self.ctx.out.refused.push((peer, session));
            return;
        }
        if let Some(known) = self.ctx.peers.get_mut(peer) {
            known.session = Some(session);
            known.stuck_since_ms = None;
        }
        self.role.doubt_memory(peer);
        self.clock.doubt(peer);
        // log rule 3: messages of the old session are lost with it, as a whole, and both ends call
        // `reconnected` before anything of the new session is delivered or sent.
        self.ctx.paxos.take_outgoing(&mut self.ctx.peers);
        self.lease_hold.forget(peer);
        self.ctx.paxos.reconnected(peer);
        self.observe();
        // A leader knows the clocks of those that promise it (R14).
        let standing = self.standing();
        self.ctx.out.send(&self.ctx.peers, peer, Wire::Status(standing));
        disks::report_to(peer, &self.ctx.config, &self.ctx.paxos, &self.ctx.peers, &mut self.ctx.out);
        self.stand_eagerly();
    }

    fn session_down(&mut self, peer: u64, session: u64) {
        if let Some(known) = self.ctx.peers.get_mut(peer)
            && known.session == Some(session)
        {
            known.session = None;
            self.role.doubt_memory(peer);
            self.lease_hold.forget(peer);
        }
    }

    fn message(&mut self, peer: u64, session: u64, wire: Wire) {
        let now_ms = self.ctx.now_ms;
        // log rule 3: nothing of an earlier session after a new one has begun.
        let Some(known) = self.ctx.peers.get_mut(peer).filter(|known| known.session == Some(session)) else {
            return;
        };
        known.last_heard_ms = Some(now_ms);
        match wire {
            Wire::Paxos(message) => self.paxos_message(peer, message),
            Wire::Probe { id } => {
                // The promise up to now: no crash makes the answer wrong.
                let promise = self.ctx.paxos.promise();
                self.ctx.out.send_before_sync(&self.ctx.peers, peer, Wire::ProbeReply { id, promise });
            }
            Wire::ProbeReply { id, promise } => {
                self.role.answered(now_ms, peer, PeerAnswer::Probe { id, promise });
            }
            Wire::MemoryAsk { ballot, length } => {
                self.role.memory_question(MemoryQuestion { peer, ballot, length });
            }
            Wire::MemoryAnswer { ballot, length } => {
                self.role.answered(now_ms, peer, PeerAnswer::Memory { ballot, length });
            }
            Wire::StalenessAsk { asked_ms } => {
                let question = StalenessQuestion { from: Some((peer, session)), asked_ms };
                self.role.staleness_question(now_ms, question);
            }
            Wire::StalenessAnswer { asked_ms, index } => {
                staleness_bound::answered(&self.ctx.config, asked_ms, index, now_ms, &mut self.ctx.out);
            }
            Wire::Status(standing) => self.status_of(peer, standing),
            Wire::TryLead => self.role.try_lead(&mut self.ctx, &mut self.change),
            Wire::LeaseRequest { ballot, sent_ms } => {
                let (pid, promise) = (self.ctx.paxos.pid(peer), self.ctx.paxos.promise());
                if self.lease_hold.request(&self.ctx.config, pid, ballot, promise, now_ms) {
                    self.acknowledge_lease(peer, Wire::LeaseAck { ballot, sent_ms });
                }
            }
            Wire::LeaseAck { ballot, sent_ms } => {
                self.role.answered(now_ms, peer, PeerAnswer::Lease { ballot, sent_ms });
            }
            Wire::LeaseRelease { ballot } => {
                if self.lease_hold.release(self.ctx.paxos.pid(peer), ballot) {
                    self.process_due();
                }
            }
            Wire::Decided { first, items } => {
                if catch_up::learn(&self.ctx.config, first, items, &mut self.ctx.paxos, &mut self.ctx.peers) {
                    self.ctx.out.counts.learned += 1;
                    self.observe();
                }
            }
            Wire::Disks(disks) => self.disks_reported(disks),
        }
    }

    /// A restarted replica holds against every candidate, so the hold itself need not be durable.
    /// But a replica that had promised nothing does not hold after a restart: a first promise must
    /// be durable.
    fn acknowledge_lease(&mut self, peer: u64, ack: Wire) {
        if self.ctx.paxos.wal().promise_is_durable() {
            self.ctx.out.send_before_sync(&self.ctx.peers, peer, ack);
        } else {
            self.ctx.out.send(&self.ctx.peers, peer, ack);
        }
    }

    fn paxos_message(&mut self, peer: u64, message: Message<Item>) {
        let (pid, promise) = (self.ctx.paxos.pid(peer), self.ctx.paxos.promise());
        match self.lease_hold.filter(&self.ctx.config, (peer, pid), message, promise, self.ctx.now_ms) {
            Ok(Some(message)) => self.feed_paxos(peer, message),
            Ok(None) => {}
            // log rule 3: a whole session or nothing.
            Err(HoldOverflow) => {
                if let Some(session) = self.ctx.peers.get_mut(peer).and_then(|p| p.session.take()) {
                    self.ctx.out.overflowed.push((peer, session));
                }
            }
        }
    }

    fn feed_paxos(&mut self, peer: u64, message: Message<Item>) {
        if message.get_sender() != self.ctx.paxos.pid(peer) || message.get_receiver() != self.ctx.paxos.my_pid() {
            return;
        }
        let Some(message) = self.within_bounds(peer, message) else {
            return;
        };
        let syncs = match &message {
            Message::BLE(_) => false,
            Message::SequencePaxos(paxos) => match &paxos.msg {
                // log rules 7 and 10: no replica of this crate sends these; they must have no
                // effect.
                PaxosMsg::ProposalForward(_)
                | PaxosMsg::ForwardStopSign(_)
                | PaxosMsg::AcceptStopSign(_)
                | PaxosMsg::Compaction(_) => return,
                PaxosMsg::Promise(_) => {
                    // log rule 2: otherwise an AcceptSync leaves the pending AcceptDecide slot in
                    // place, and later entries are added to a message in front of it: a silent hole
                    // in the follower's log.
                    if !self.ctx.config.fault(Fault::PromiseWithoutTaking) {
                        self.ctx.paxos.take_outgoing(&mut self.ctx.peers);
                    }
                    true
                }
                PaxosMsg::Prepare(_) => true,
                _ => false,
            },
        };
        self.ctx.paxos.handle(message, syncs);
        if syncs && !self.ctx.config.fault(Fault::PromiseWithoutTaking) {
            // The log is as it was when the library read it, so the missing part is known.
            self.ctx.paxos.take_outgoing(&mut self.ctx.peers);
        }
        self.observe();
    }

    /// The message as OmniPaxos may have it, if it may: see [`super::catch_up`].
    fn within_bounds(&mut self, peer: u64, mut message: Message<Item>) -> Option<Message<Item>> {
        let Message::SequencePaxos(paxos) = &mut message else {
            return Some(message);
        };
        let feed = match &mut paxos.msg {
            PaxosMsg::Prepare(prepare) => {
                let refused = self.catch_up.refuses(
                    &self.ctx.config,
                    *prepare,
                    &mut self.ctx.paxos,
                    self.ctx.now_ms,
                    &mut self.ctx.out,
                );
                if refused {
                    self.observe();
                }
                !refused
            }
            PaxosMsg::Promise(promise) => !catch_up::sends_piece(
                &self.ctx.config,
                peer,
                promise,
                &self.ctx.paxos,
                &self.ctx.peers,
                &mut self.ctx.out,
            ),
            PaxosMsg::AcceptSync(sync) => catch_up::skip_decided(sync, self.ctx.paxos.decided()),
            _ => true,
        };
        feed.then_some(message)
    }

    fn disks_reported(&mut self, disks: Vec<(u64, u64)>) {
        let report = disks::reported(self.ctx.config.me, disks, &self.ctx.paxos);
        for member in report.disputed {
            self.refuse_disk(member);
        }
        if report.news {
            disks::report(&self.ctx.config, &self.ctx.paxos, &self.ctx.peers, &mut self.ctx.out);
        }
    }

    /// Ends the session with a peer that has lost a disk, and accepts no other one.
    fn refuse_disk(&mut self, peer: u64) {
        let Some(known) = self.ctx.peers.get_mut(peer) else {
            return;
        };
        match known.session {
            Some(session) => {
                known.other_disk = true;
                self.session_down(peer, session);
                self.ctx.out.refused.push((peer, session));
            }
            // Its earlier disk tells nothing about its next one.
            None => known.disk = None,
        }
    }

    fn installed(&mut self, index: u64, term: Term) {
        if let Some(began) = self.change.awaited_state(&self.ctx.config, &self.ctx.paxos) {
            self.installed_for_configuration(index, began);
            return;
        }
        let mut wal = self.ctx.paxos.wal_mut();
        let Some(trimmed) = wal.needs_state() else {
            return;
        };
        if index < trimmed {
            tracing::warn!(index, trimmed, "the installed state is too old; another one is needed");
            return;
        }
        // Invariant 3: the state must be a result of this log.
        if index <= wal.decided() && wal.fence_at(index).term != term {
            tracing::error!(index, %term, "the installed state is from another history; not taken");
            return;
        }
        wal.state_installed();
        drop(wal);
        self.compaction.allow(index);
        self.observe();
    }

    /// The application durably has the state at `index`, so this replica may vote in the newer
    /// configuration, which began at `began`.
    fn installed_for_configuration(&mut self, index: u64, began: u64) {
        if index < began {
            tracing::warn!(index, began, "the installed state is too old for the newer configuration");
        } else if let Some(newer) = self.change.take_newer() {
            self.compaction.allow(index);
            self.enter(newer, true);
        }
    }

    fn newer_configuration(&mut self, newer: Membership) {
        if !self.change.announce(newer.clone(), self.ctx.paxos.membership()) {
            return;
        }
        self.ctx.out.membership = Some(newer);
        // Its leadership, if any, has been superseded without it.
        self.observe();
        if self.ctx.config.fault(Fault::VoteWithoutState)
            && self.change.awaited_state(&self.ctx.config, &self.ctx.paxos).is_some()
            && let Some(newer) = self.change.take_newer()
        {
            self.enter(newer, true);
        }
    }

    /// Ends the leadership as soon as the configuration has ended, and reports to the peers.
    fn notice_barrier(&mut self) {
        if self.ctx.paxos.barrier_decided(&self.ctx.config).is_some() && self.change.notice_end(self.ctx.now_ms) {
            self.observe();
            self.send_standing();
        }
    }

    /// At the end of a turn: enters the next configuration if it is time.
    fn leave_configuration(&mut self) {
        let Some(at) = self.ctx.paxos.barrier_decided(&self.ctx.config) else {
            return;
        };
        if !self.change.is_due(&self.ctx.config, at, &self.ctx.peers, self.ctx.now_ms) {
            return;
        }
        let Some(next) = configuration::next_membership(&self.ctx.config, &self.ctx.paxos, at) else {
            return;
        };
        self.ctx.out.membership = Some(next.clone());
        if self.ctx.paxos.is_named_by(&next) {
            self.enter(next, false);
        } else {
            tracing::info!(configuration = next.configuration, "this replica is no longer a member");
            self.change.set_removed();
        }
    }

    fn enter(&mut self, next: Membership, transferred: bool) {
        tracing::info!(
            configuration = next.configuration, began = %next.began, transferred, "a new configuration begins here"
        );
        self.change.entered(&next);
        self.ctx.out.entered = true;
        self.ctx.out.membership = Some(self.change.newer().unwrap_or(&next).clone());
        self.ctx.peers = Peers::of(&next, self.ctx.config.me);
        self.clock.retain(&self.ctx.peers);
        self.ctx.paxos.begin_configuration(&self.ctx.config, next, transferred);
        self.role.enter_configuration(&mut self.ctx);
        self.lease_hold = LeaseHold::default();
        self.disks.forget_applicants();
    }

    fn stand_eagerly(&mut self) {
        // Every replica begins with a ballot of the first round; among them the highest number
        // would win.
        const FIRST_ROUND: u32 = 1;
        let has_majority = self.ctx.peers.connected().count() + 1 >= self.ctx.paxos.majority();
        if self.change.take_eager_election(has_majority) {
            self.role.try_lead(&mut self.ctx, &mut self.change);
            if self.ctx.paxos.promise().n <= FIRST_ROUND {
                self.ctx.paxos.stand_for_election();
                self.observe();
            }
        }
    }

    fn tick(&mut self) {
        self.ctx.paxos.tick();
        self.observe();
        self.role.tick(&mut self.ctx);
        if self.ctx.now_ms >= self.next_status_ms {
            self.next_status_ms = self.ctx.now_ms + self.ctx.config.timing.status_ms;
            self.maintain();
        }
    }

    /// Periodic work: status messages, stuck peers, a successor if this replica may not lead,
    /// compaction.
    fn maintain(&mut self) {
        self.send_standing();
        self.free_stuck_peers();
        if self.ctx.paxos.holds_ballot() && !self.role.may_lead(&self.ctx) {
            // log rule 10: the group must not wait for the state transfer, or for the application.
            role_machine::ask_other_to_lead(&mut self.ctx);
        }
        let point = self.compaction.point(
            &self.ctx.config,
            &self.ctx.paxos.wal(),
            &self.ctx.peers,
            self.ctx.now_ms,
            self.started_ms,
        );
        if let Some(to) = point {
            self.ctx.paxos.compact(to);
        }
    }

    fn free_stuck_peers(&mut self) {
        if !self.ctx.paxos.holds_ballot() || self.ctx.config.fault(Fault::LeaveStuck) {
            return;
        }
        let (ballot, majority) = (self.ctx.paxos.promise(), self.ctx.paxos.majority());
        let highest = stuck_peers::highest_stuck_promise(
            &self.ctx.config,
            &mut self.ctx.peers,
            ballot,
            majority,
            self.ctx.now_ms,
        );
        if let Some(highest) = highest {
            tracing::info!(?highest, ?ballot, "a peer is stuck above this leader's ballot; raising it");
            self.ctx.paxos.outbid(highest);
            stuck_peers::freed(&mut self.ctx.peers);
            self.observe();
        }
    }

    /// This replica's wall clock, in milliseconds since the Unix epoch.
    fn clock_ms(&self) -> u64 {
        self.ctx.config.unix_at_boot_ms + self.ctx.now_ms
    }

    fn send_standing(&mut self) {
        let standing = self.standing();
        self.ctx.out.send_to_all(&self.ctx.peers, &Wire::Status(standing));
    }

    fn standing(&mut self) -> Standing {
        let wal = self.ctx.paxos.wal();
        self.applied.observe(self.ctx.now_ms, wal.decided());
        Standing {
            promise: self.ctx.paxos.promise(),
            decided: wal.decided(),
            accepted: wal.end(),
            log_bytes: wal.log_bytes(),
            applied: self.applied.length(),
            lag: self.applied.lag(self.ctx.now_ms, &wal),
            needs_state: wal.needs_state().is_some(),
            ineligible: self.role.is_ineligible(),
            clock_ms: self.clock_ms(),
        }
    }

    fn status_of(&mut self, peer: u64, standing: Standing) {
        let wal = self.ctx.paxos.wal();
        let on_their_way_bytes = wal.bytes_between(standing.accepted, wal.end());
        let log = PeerLog { bytes: standing.log_bytes + on_their_way_bytes, written_bytes: wal.written().disk_bytes };
        drop(wal);
        if let Some(known) = self.ctx.peers.get_mut(peer) {
            (known.standing, known.log) = (Some(standing), log);
        }
        let clock = (peer, standing.clock_ms);
        self.clock.hear(&self.ctx.config, clock, self.clock_ms(), self.ctx.now_ms, self.ctx.paxos.majority());
    }

    fn show_role(&mut self) {
        let leads = self.role.leadership();
        let leader = Some(self.ctx.paxos.promised_replica())
            .filter(|id| *id != 0 && (*id != self.ctx.config.me || leads.is_some()))
            .map(ReplicaId);
        let awaited = self.change.awaited_state(&self.ctx.config, &self.ctx.paxos);
        let role = match (leads, awaited.or(self.ctx.paxos.wal().needs_state())) {
            (Some(leadership), _) => Role::Leader { term: leadership.term, start: LogIndex(leadership.start) },
            (None, Some(trimmed)) => Role::Behind { trimmed: LogIndex(trimmed), leader },
            (None, None) => Role::Follower { leader },
        };
        if role != self.shown_role {
            self.shown_role = role.clone();
            self.ctx.out.role = Some(role);
        }
    }

    /// Ends the turn's input and returns its output.
    pub(crate) fn finish(&mut self) -> Ready {
        self.role.end_turn(&mut self.ctx);
        self.ctx.paxos.take_outgoing(&mut self.ctx.peers);
        self.notice_barrier();
        let of_paxos = self.ctx.paxos.take_sends(&self.ctx.config, &self.ctx.peers);
        let sends = self.ctx.out.take_sends(of_paxos);
        self.leave_configuration();
        self.show_role();
        let (lease, durable) = (self.role.lease(&self.ctx), self.ctx.paxos.wal().durable_end());
        self.ctx.out.finish(sends, lease, durable)
    }

    /// Makes the turn durable with at most one sync (log rule 1).
    ///
    /// # Errors
    /// Any error is fatal to the process (log rule 13).
    pub(crate) fn sync(&mut self) -> Result<Synced, WalError> {
        self.ctx.paxos.wal_mut().sync()
    }

    /// As [`Core::sync`] with everything there is; for an orderly end.
    ///
    /// # Errors
    /// As [`Core::sync`].
    pub(crate) fn sync_all(&mut self) -> Result<(), WalError> {
        self.ctx.paxos.wal_mut().sync_all()
    }

    /// The role as of the last finished turn.
    pub(crate) fn role(&self) -> &Role {
        &self.shown_role
    }

    /// The membership of the current configuration.
    pub(crate) fn membership(&self) -> &Membership {
        self.ctx.paxos.membership()
    }

    fn shown(&self) -> Shown {
        let decided =
            self.ctx.paxos.barrier_decided(&self.ctx.config).unwrap_or_else(|| self.ctx.paxos.wal().decided());
        Shown { decided, awaited_state: self.change.awaited_state(&self.ctx.config, &self.ctx.paxos) }
    }

    /// See [`LogView::newly_decided`].
    pub(crate) fn newly_decided(&mut self) -> (Vec<Entry>, LogIndex) {
        let shown = self.shown();
        self.view.newly_decided(&self.ctx.config, &self.ctx.paxos.wal(), shown)
    }

    /// Decided entries from `from` on, or where they are.
    ///
    /// # Errors
    /// A failing or damaged disk: fatal.
    pub(crate) fn old_entries(&self, from: LogIndex, max_bytes: usize) -> Result<OldEntries, WalError> {
        log_view::old_entries(&self.ctx.config, &self.ctx.paxos.wal(), self.shown(), from, max_bytes)
    }

    /// Bytes written to disk since the log was opened.
    pub(crate) fn written(&self) -> Written {
        self.ctx.paxos.wal().written()
    }

    /// The largest size of the logs of a majority, in bytes: a proposal goes into all of them.
    pub(crate) fn majority_log_bytes(&self) -> u64 {
        let wal = self.ctx.paxos.wal();
        let written_bytes = wal.written().disk_bytes;
        let known = self.ctx.peers.connected().filter(|peer| peer.standing.is_some());
        let peers = known.map(|peer| peer.log.bytes(written_bytes)).collect();
        peer_log::majority_bytes(wal.log_bytes(), peers, self.ctx.paxos.majority())
    }

    /// The value to add to this replica's wall clock, in milliseconds: 0 unless that is off.
    pub(crate) fn clock_correction_ms(&self) -> i64 {
        self.clock.correction_ms()
    }

    /// Positions, sizes and peers, for display.
    pub(crate) fn status(&self) -> LogStatus {
        let peers = (&self.ctx.peers, self.disks.applicants());
        let leader = self.shown_role.leader();
        log_status::status(&self.ctx.paxos.wal(), &self.applied, peers, leader, self.ctx.now_ms)
    }
}

#[cfg(test)]
impl<D: Disk> Core<D> {
    /// Whether this replica's application cannot serve.
    pub(crate) fn is_ineligible(&self) -> bool {
        self.role.is_ineligible()
    }

    /// The wall clock that its application sees.
    pub(crate) fn corrected_clock_ms(&self) -> u64 {
        self.clock_ms().saturating_add_signed(self.clock.correction_ms())
    }

    pub(crate) fn tick_ms(&self) -> u64 {
        self.ctx.config.timing.tick_ms
    }

    /// The disk that `peer` must have, as far as this replica knows it durably.
    pub(crate) fn knows_disk(&self, peer: u64) -> Option<u64> {
        let wal = self.ctx.paxos.wal();
        if wal.needs_sync() { None } else { wal.peer_store(peer) }
    }

    /// Whether its configuration is about to end.
    pub(crate) fn has_barrier(&self) -> bool {
        self.ctx.paxos.wal().barrier().is_some() || self.change.newer().is_some()
    }

    /// Elected although it needs a state transfer.
    pub(crate) fn leads_behind(&self) -> bool {
        self.ctx.paxos.holds_ballot() && self.role.leadership().is_none()
    }

    /// Whether the log has been replaced by a trimmed one that the application has not caught up
    /// with.
    pub(crate) fn was_reset(&self) -> bool {
        self.ctx.paxos.wal().needs_state().is_some()
    }
}
