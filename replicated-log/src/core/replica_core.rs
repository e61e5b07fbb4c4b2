//! [`Core`]: the parts of the core, wired together.

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;

use crate::entry::Entry;
use crate::error::BarrierError;
use crate::ids::{LogIndex, ReplicaId, Term};
use crate::item::Item;
use crate::membership::Membership;
use crate::old_entries::OldEntries;
use crate::role::Role;
use crate::status::{Lag, LogStatus, PeerStatus};
use crate::wal::{Disk, Synced, Wal, WalError, Written};
use crate::wire::{Standing, Wire};

use super::applied::AppliedPosition;
use super::catch_up::{self, CatchUp};
use super::compaction::Compaction;
use super::config::CoreConfig;
use super::configuration::{self, ConfigurationChange};
use super::disks::{self, Disks};
use super::eligibility::{BallotUse, Eligibility};
use super::fault::Fault;
use super::group_clock::GroupClock;
use super::input::Input;
use super::leadership::{CoreRole, Follower, Leadership};
use super::lease::Lease;
use super::lease_hold::{HoldVerdict, LeaseHold};
use super::log_view::{self, LogView, Shown};
use super::memory_acknowledgement::MemoryQuestion;
use super::outgoing::Outgoing;
use super::paxos::Paxos;
use super::peer_log::{self, PeerLog};
use super::peers::{Peer, Peers};
use super::read_barriers::LeaderPosition;
use super::ready::Ready;
use super::staleness_bound::{self, StalenessQuestion};
use super::stuck_peers;

/// A replica of one group. See the module's page for the order of calls.
pub(crate) struct Core<D: Disk> {
    config: CoreConfig,
    paxos: Paxos<D>,
    peers: Peers,
    role: CoreRole,
    /// The role as of the last finished turn.
    shown_role: Role,
    lease_hold: LeaseHold,
    /// Probe numbers are unique across leaderships, so that a late answer confirms no later probe.
    next_probe: u64,
    eligibility: Eligibility,
    change: ConfigurationChange,
    disks: Disks,
    catch_up: CatchUp,
    clock: GroupClock,
    applied: AppliedPosition,
    compaction: Compaction,
    view: LogView,
    now_ms: u64,
    started_ms: u64,
    next_status_ms: u64,
    out: Outgoing,
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
            peers: Peers::of(paxos.membership(), config.me),
            role: CoreRole::Follower(Follower::default()),
            shown_role: Role::Follower { leader: None },
            lease_hold: LeaseHold::after_restart(&config, paxos.promise(), now_ms),
            next_probe: 0,
            eligibility: Eligibility::default(),
            change: ConfigurationChange::default(),
            disks: Disks::default(),
            catch_up: CatchUp::default(),
            clock: GroupClock::default(),
            applied: AppliedPosition::default(),
            compaction: Compaction::default(),
            view: LogView::new(compacted),
            now_ms,
            started_ms: now_ms,
            next_status_ms: now_ms,
            out: Outgoing::default(),
            config,
            paxos,
        };
        core.show_role();
        Ok(core)
    }

    /// Takes in one input at `now_ms`, which never goes back and was read from the clock after the
    /// input had arrived (log rule 9: a hold must not begin before it was asked for).
    pub(crate) fn feed(&mut self, now_ms: u64, input: Input) {
        self.now_ms = now_ms;
        self.process_due();
        match input {
            // log rule 4: of this configuration only; events of another one may still have been queued.
            Input::SessionUp { peer, session, configuration, store_id } => {
                if configuration == self.membership().configuration {
                    self.session_up(peer, session, store_id);
                }
            }
            Input::SessionDown { peer, session } => self.session_down(peer, session),
            Input::Message { peer, session, wire } => self.message(peer, session, wire),
            Input::Propose { kind, term, payload, tracked } => self.propose(Item { kind, term, payload }, tracked),
            Input::NewLeadership { current } => self.new_leadership(current),
            Input::Barrier { id } => self.barrier(id),
            Input::AskStalenessBound => self.ask_staleness_bound(),
            Input::Compact(index) => self.compaction.allow(index.0),
            Input::Applied(length) => self.applied.advance(length),
            Input::RetainFrom(index) => self.compaction.retain_from(index.map(|i| i.0)),
            Input::Installed { index, term } => self.installed(index.0, term),
            Input::TryLead => self.try_lead(),
            Input::YieldLeadership => self.ask_other_to_lead(),
            Input::NewerConfiguration(newer) => self.newer_configuration(newer),
            Input::Seen { replica, store_id } => self.disks.seen(replica, store_id, &self.paxos, &mut self.peers),
            Input::SetIneligible(ineligible) => self.set_ineligible(ineligible),
            Input::Tick => self.tick(),
            #[cfg(test)]
            Input::Rogue { term, payload } => {
                if self.paxos.holds_ballot() {
                    self.paxos.append(Item { kind: crate::item::Kind::Data, term, payload });
                }
            }
        }
    }

    /// Processes the messages that waited for the end of this replica's hold.
    fn process_due(&mut self) {
        for (peer, messages) in self.lease_hold.take_due(self.now_ms) {
            for message in messages {
                self.feed_paxos(peer, message);
            }
        }
    }

    fn session_up(&mut self, peer: u64, session: u64, store_id: u64) {
        if !self.peers.contains(peer) {
            return;
        }
        if !disks::check(&self.config, (peer, store_id), &self.paxos, &mut self.peers, &mut self.out) {
            tracing::error!(peer, "a peer came back with another disk; it cannot rejoin this configuration");
            self.out.refused.push((peer, session));
            return;
        }
        if let Some(known) = self.peers.get_mut(peer) {
            known.session = Some(session);
            known.stuck_since_ms = None;
        }
        self.doubt_memory(peer);
        self.clock.doubt(peer);
        // log rule 3: messages of the old session are lost with it, as a whole, and both ends call
        // `reconnected` before anything of the new session is delivered or sent.
        self.paxos.take_outgoing(&mut self.peers);
        self.lease_hold.forget(peer);
        self.paxos.reconnected(peer);
        self.observe();
        // A leader knows the clocks of those that promise it (R14).
        let standing = self.standing();
        self.out.send(&self.peers, peer, Wire::Status(standing));
        disks::report_to(peer, &self.config, &self.paxos, &self.peers, &mut self.out);
        self.stand_eagerly();
    }

    fn session_down(&mut self, peer: u64, session: u64) {
        if let Some(known) = self.peers.get_mut(peer)
            && known.session == Some(session)
        {
            known.session = None;
            self.doubt_memory(peer);
            self.lease_hold.forget(peer);
        }
    }

    /// The entries in the peer's memory may be lost with its process.
    fn doubt_memory(&mut self, peer: u64) {
        match &mut self.role {
            CoreRole::Leader(leader) => leader.memory.doubt(peer),
            CoreRole::Follower(follower) => {
                follower.memory_question.take_if(|question| question.peer == peer);
            }
        }
    }

    fn message(&mut self, peer: u64, session: u64, wire: Wire) {
        let now_ms = self.now_ms;
        // log rule 3: nothing of an earlier session after a new one has begun.
        let Some(known) = self.peers.get_mut(peer).filter(|known| known.session == Some(session)) else {
            return;
        };
        known.last_heard_ms = Some(now_ms);
        match wire {
            Wire::Paxos(message) => self.paxos_message(peer, message),
            Wire::Probe { id } => {
                // The promise up to now: no crash makes the answer wrong.
                let promise = self.paxos.promise();
                self.out.send_before_sync(&self.peers, peer, Wire::ProbeReply { id, promise });
            }
            Wire::ProbeReply { id, promise } => {
                // log rule 9: an answer counts only if its promise is not above the ballot.
                if let Some(leader) = self.role.leader_mut().filter(|l| promise <= l.leadership.ballot) {
                    leader.barriers.confirmed_by(peer, id);
                }
            }
            Wire::MemoryAsk { ballot, length } => {
                if let Some(follower) = self.role.follower_mut() {
                    follower.memory_question = Some(MemoryQuestion { peer, ballot, length });
                }
            }
            Wire::MemoryAnswer { ballot, length } => {
                if let Some(leader) = self.role.leader_mut().filter(|l| l.leadership.ballot == ballot) {
                    leader.memory.answered(peer, length);
                }
            }
            Wire::StalenessAsk { asked_ms } => {
                self.staleness_question(StalenessQuestion { from: Some((peer, session)), asked_ms });
            }
            Wire::StalenessAnswer { asked_ms, index } => {
                staleness_bound::answered(&self.config, asked_ms, index, now_ms, &mut self.out);
            }
            Wire::Status(standing) => self.status_of(peer, standing),
            Wire::TryLead => self.try_lead(),
            Wire::LeaseRequest { ballot, sent_ms } => {
                let (pid, promise) = (self.paxos.pid(peer), self.paxos.promise());
                if self.lease_hold.request(&self.config, pid, ballot, promise, now_ms) {
                    self.acknowledge_lease(peer, Wire::LeaseAck { ballot, sent_ms });
                }
            }
            Wire::LeaseAck { ballot, sent_ms } => {
                if let Some(leader) = self.role.leader_mut().filter(|l| l.leadership.ballot == ballot) {
                    leader.lease.acknowledged(peer, sent_ms, now_ms);
                }
            }
            Wire::LeaseRelease { ballot } => {
                if self.lease_hold.release(self.paxos.pid(peer), ballot) {
                    self.process_due();
                }
            }
            Wire::Decided { first, items } => {
                if catch_up::learn(&self.config, first, items, &mut self.paxos, &mut self.peers) {
                    self.out.counts.learned += 1;
                    self.observe();
                }
            }
            Wire::Disks(disks) => self.disks_reported(disks),
        }
    }

    /// A restarted replica holds against every candidate, so the hold itself need not be durable. But a
    /// replica that had promised nothing does not hold after a restart: a first promise must be durable.
    fn acknowledge_lease(&mut self, peer: u64, ack: Wire) {
        if self.paxos.wal().promise_is_durable() {
            self.out.send_before_sync(&self.peers, peer, ack);
        } else {
            self.out.send(&self.peers, peer, ack);
        }
    }

    fn paxos_message(&mut self, peer: u64, message: Message<Item>) {
        let (pid, promise) = (self.paxos.pid(peer), self.paxos.promise());
        match self.lease_hold.filter(&self.config, (peer, pid), message, promise, self.now_ms) {
            HoldVerdict::Pass(message) => self.feed_paxos(peer, message),
            HoldVerdict::Waits => {}
            // log rule 3: a whole session or nothing.
            HoldVerdict::Overflow => {
                if let Some(session) = self.peers.get_mut(peer).and_then(|p| p.session.take()) {
                    self.out.overflowed.push((peer, session));
                }
            }
        }
    }

    fn feed_paxos(&mut self, peer: u64, message: Message<Item>) {
        if message.get_sender() != self.paxos.pid(peer) || message.get_receiver() != self.paxos.my_pid() {
            return;
        }
        let Some(message) = self.within_bounds(peer, message) else {
            return;
        };
        let syncs = match &message {
            Message::BLE(_) => false,
            Message::SequencePaxos(paxos) => match &paxos.msg {
                // log rules 7 and 10: no replica of this crate sends these; they must have no effect.
                PaxosMsg::ProposalForward(_)
                | PaxosMsg::ForwardStopSign(_)
                | PaxosMsg::AcceptStopSign(_)
                | PaxosMsg::Compaction(_) => return,
                PaxosMsg::Promise(_) => {
                    // log rule 2: otherwise an AcceptSync leaves the pending AcceptDecide slot in place,
                    // and later entries are added to a message in front of it: a silent hole in the
                    // follower's log.
                    if !self.config.fault(Fault::PromiseWithoutTaking) {
                        self.paxos.take_outgoing(&mut self.peers);
                    }
                    true
                }
                PaxosMsg::Prepare(_) => true,
                _ => false,
            },
        };
        self.paxos.handle(message, syncs);
        if syncs && !self.config.fault(Fault::PromiseWithoutTaking) {
            // The log is as it was when the library read it, so the missing part is known.
            self.paxos.take_outgoing(&mut self.peers);
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
                let refused =
                    self.catch_up.refuses(&self.config, *prepare, &mut self.paxos, self.now_ms, &mut self.out);
                if refused {
                    self.observe();
                }
                !refused
            }
            PaxosMsg::Promise(promise) => {
                !catch_up::sends_piece(&self.config, peer, promise, &self.paxos, &self.peers, &mut self.out)
            }
            PaxosMsg::AcceptSync(sync) => catch_up::skip_decided(sync, self.paxos.decided()),
            _ => true,
        };
        feed.then_some(message)
    }

    /// Begins or ends this replica's leadership after a change of OmniPaxos's leader.
    fn observe(&mut self) {
        let ballot = self.paxos.promise();
        // log rule 10: the leaderships of a configuration end with it.
        let over = self.change.newer().is_some() || self.paxos.barrier_decided(&self.config).is_some();
        let holds = self.paxos.holds_ballot() && !over;
        if let Some(ended) = self.role.leadership().filter(|l| !holds || l.ballot != ballot) {
            self.change.leadership_ended(over && ended.ballot == ballot);
            self.end_leadership(ended);
        }
        // log rule 10: a leader with an undecided barrier in its log only decides it.
        if holds && self.role.leadership().is_none() && !self.paxos.behind_barrier(&self.config) {
            self.use_ballot(ballot);
        }
    }

    /// Ends the leadership for good. The release of the lease is sent after the sync, hence after the
    /// end of the lease has been published to readers.
    fn end_leadership(&mut self, ended: Leadership) {
        if self.config.timing.lease_ms > 0 {
            self.out.send_to_all(&self.peers, &Wire::LeaseRelease { ballot: ended.ballot });
        }
        self.follow();
    }

    fn follow(&mut self) {
        let error = self.not_leader();
        if let Some(leader) = self.role.follow() {
            leader.fail(&error, &mut self.out);
        }
    }

    fn not_leader(&self) -> BarrierError {
        let id = self.paxos.promised_replica();
        BarrierError::NotLeader { leader: (id != 0 && id != self.config.me).then_some(ReplicaId(id)) }
    }

    /// This replica holds `ballot`, and no leadership has begun in it.
    fn use_ballot(&mut self, ballot: Ballot) {
        let needs_state = self.paxos.wal().needs_state().is_some();
        match self.eligibility.use_of(ballot, needs_state) {
            BallotUse::Lead => {
                // log rule 12: a configuration's terms are above those of earlier configurations,
                // although its ballots start over.
                let number = self.membership().term.ballot().saturating_add(ballot.n);
                self.begin_leadership(ballot, Term::first_of(number, self.config.me));
            }
            BallotUse::Renew => self.paxos.stand_for_election(),
            BallotUse::PassOn => self.ask_other_to_lead(),
            BallotUse::Wait => {}
        }
    }

    /// Log rule 8: a leadership begins with its `LeaderStart`, whose position is remembered.
    fn begin_leadership(&mut self, ballot: Ballot, term: Term) {
        if self.paxos.append(Item::leader_start(term)) {
            let start = self.paxos.accepted();
            self.role.lead(Leadership { ballot, term, start });
            self.out.counts.leaderships += 1;
        }
    }

    fn propose(&mut self, item: Item, tracked: Option<u64>) {
        // log rule 7, invariant 1: an item is appended only in the leadership of its term. Nothing is
        // appended behind a barrier (log rule 10).
        let leads = self.role.leadership().is_some_and(|l| l.term == item.term);
        if leads && !self.paxos.behind_barrier(&self.config) && self.paxos.append(item) {
            self.out.counts.proposed += 1;
            if let (Some(id), Some(leader)) = (tracked, self.role.leader_mut()) {
                leader.memory.track(id, self.paxos.accepted());
            }
        } else {
            self.out.counts.dropped += 1;
            self.out.unacknowledged.extend(tracked);
        }
    }

    /// R1: the owner starts over. Its earlier proposals and its later ones must not mix.
    fn new_leadership(&mut self, current: Term) {
        let Some(leadership) = self.role.leadership().filter(|l| l.term == current) else {
            return;
        };
        match current.next_leadership() {
            Some(term) if !self.paxos.behind_barrier(&self.config) => self.begin_leadership(leadership.ballot, term),
            // The configuration is ending, and the leadership with it.
            Some(_) => {}
            // The 24-bit counter of leaderships under this ballot is used up: take a new ballot.
            None => self.paxos.stand_for_election(),
        }
        self.observe();
    }

    /// Whether a leadership of this replica could serve. Log rule 10 forbids it during a state transfer.
    fn may_lead(&self) -> bool {
        !self.eligibility.is_ineligible() && self.paxos.wal().needs_state().is_none()
    }

    fn try_lead(&mut self) {
        if self.may_lead() && !self.paxos.holds_ballot() {
            self.paxos.stand_for_election();
            self.observe();
        }
    }

    fn ask_other_to_lead(&mut self) {
        if let Some(peer) = stuck_peers::best_successor(&self.peers) {
            self.out.send(&self.peers, peer, Wire::TryLead);
        }
    }

    fn set_ineligible(&mut self, ineligible: bool) {
        if !self.eligibility.set_ineligible(ineligible) {
            return;
        }
        if ineligible && let Some(ended) = self.role.leadership() {
            self.eligibility.give_up(ended.ballot);
            self.end_leadership(ended);
        }
        // A replica that looks for a successor needs this now, not with the next status message.
        self.send_standing();
        self.observe();
    }

    fn barrier(&mut self, id: u64) {
        match &mut self.role {
            CoreRole::Leader(leader) => leader.barriers.read(id, self.now_ms),
            CoreRole::Follower(_) => {
                let error = self.not_leader();
                self.out.barriers.push((id, Err(error)));
            }
        }
    }

    fn ask_staleness_bound(&mut self) {
        let asked_ms = self.now_ms;
        if self.role.leader().is_some() {
            self.staleness_question(StalenessQuestion { from: None, asked_ms });
        } else {
            let leader = self.paxos.promised_replica();
            self.out.send_before_sync(&self.peers, leader, Wire::StalenessAsk { asked_ms });
        }
    }

    /// Only a leader answers.
    fn staleness_question(&mut self, question: StalenessQuestion) {
        if let Some(leader) = self.role.leader_mut() {
            leader.barriers.question(question, self.now_ms);
        }
    }

    fn disks_reported(&mut self, disks: Vec<(u64, u64)>) {
        let report = disks::reported(self.config.me, disks, &self.paxos);
        for member in report.disputed {
            self.refuse_disk(member);
        }
        if report.news {
            disks::report(&self.config, &self.paxos, &self.peers, &mut self.out);
        }
    }

    /// Ends the session with a peer that has lost a disk, and accepts no other one.
    fn refuse_disk(&mut self, peer: u64) {
        let Some(known) = self.peers.get_mut(peer) else {
            return;
        };
        match known.session {
            Some(session) => {
                known.other_disk = true;
                self.session_down(peer, session);
                self.out.refused.push((peer, session));
            }
            // Its earlier disk tells nothing about its next one.
            None => known.disk = None,
        }
    }

    fn installed(&mut self, index: u64, term: Term) {
        if let Some(began) = self.change.awaited_state(&self.config, &self.paxos) {
            self.installed_for_configuration(index, began);
            return;
        }
        let mut wal = self.paxos.wal_mut();
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
        if !self.change.announce(newer.clone(), self.paxos.membership()) {
            return;
        }
        self.out.membership = Some(newer);
        // Its leadership, if any, has been superseded without it.
        self.observe();
        if self.config.fault(Fault::VoteWithoutState)
            && self.change.awaited_state(&self.config, &self.paxos).is_some()
            && let Some(newer) = self.change.take_newer()
        {
            self.enter(newer, true);
        }
    }

    /// Ends the leadership as soon as the configuration has ended, and reports to the peers.
    fn notice_barrier(&mut self) {
        if self.paxos.barrier_decided(&self.config).is_some() && self.change.notice_end(self.now_ms) {
            self.observe();
            self.send_standing();
        }
    }

    /// At the end of a turn: enters the next configuration if it is time.
    fn leave_configuration(&mut self) {
        let Some(at) = self.paxos.barrier_decided(&self.config) else {
            return;
        };
        if !self.change.is_due(&self.config, at, &self.peers, self.now_ms) {
            return;
        }
        let Some(next) = configuration::next_membership(&self.config, &self.paxos, at) else {
            return;
        };
        self.out.membership = Some(next.clone());
        if self.paxos.is_named_by(&next) {
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
        self.out.entered = true;
        self.out.membership = Some(self.change.newer().unwrap_or(&next).clone());
        self.peers = Peers::of(&next, self.config.me);
        self.clock.retain(&self.peers);
        self.paxos.begin_configuration(&self.config, next, transferred);
        self.follow();
        self.eligibility.forget_ballots();
        self.lease_hold = LeaseHold::default();
        self.disks.forget_applicants();
    }

    fn stand_eagerly(&mut self) {
        // Every replica begins with a ballot of the first round; among them the highest number would win.
        const FIRST_ROUND: u32 = 1;
        let has_majority = self.peers.connected().count() + 1 >= self.paxos.majority();
        if self.change.take_eager_election(has_majority) {
            self.try_lead();
            if self.paxos.promise().n <= FIRST_ROUND {
                self.paxos.stand_for_election();
                self.observe();
            }
        }
    }

    fn tick(&mut self) {
        self.paxos.tick();
        self.observe();
        if let Some(leader) = self.role.leader_mut() {
            let (ballot, now_ms) = (leader.leadership.ballot, self.now_ms);
            leader.barriers.tick(&self.config, now_ms, &self.peers, &mut self.out);
            leader.lease.request(&self.config, ballot, now_ms, &self.peers, &mut self.out);
        }
        if self.now_ms >= self.next_status_ms {
            self.next_status_ms = self.now_ms + self.config.timing.status_ms;
            self.maintain();
        }
    }

    /// Periodic work: status messages, stuck peers, a successor if this replica may not lead, compaction.
    fn maintain(&mut self) {
        self.send_standing();
        self.free_stuck_peers();
        if self.paxos.holds_ballot() && !self.may_lead() {
            // log rule 10: the group must not wait for the state transfer, or for the application.
            self.ask_other_to_lead();
        }
        let point = self.compaction.point(&self.config, &self.paxos.wal(), &self.peers, self.now_ms, self.started_ms);
        if let Some(to) = point {
            self.paxos.compact(to);
        }
    }

    fn free_stuck_peers(&mut self) {
        if !self.paxos.holds_ballot() || self.config.fault(Fault::LeaveStuck) {
            return;
        }
        let (ballot, majority) = (self.paxos.promise(), self.paxos.majority());
        let highest = stuck_peers::highest_stuck_promise(&self.config, &mut self.peers, ballot, majority, self.now_ms);
        if let Some(highest) = highest {
            tracing::info!(?highest, ?ballot, "a peer is stuck above this leader's ballot; raising it");
            self.paxos.outbid(highest);
            stuck_peers::freed(&mut self.peers);
            self.observe();
        }
    }

    /// This replica's wall clock, in milliseconds since the Unix epoch.
    fn clock_ms(&self) -> u64 {
        self.config.unix_at_boot_ms + self.now_ms
    }

    fn send_standing(&mut self) {
        let standing = self.standing();
        self.out.send_to_all(&self.peers, &Wire::Status(standing));
    }

    fn standing(&mut self) -> Standing {
        let wal = self.paxos.wal();
        self.applied.observe(self.now_ms, wal.decided());
        Standing {
            promise: self.paxos.promise(),
            decided: wal.decided(),
            accepted: wal.end(),
            log_bytes: wal.log_bytes(),
            applied: self.applied.length(),
            lag: self.applied.lag(self.now_ms, &wal),
            needs_state: wal.needs_state().is_some(),
            ineligible: self.eligibility.is_ineligible(),
            clock_ms: self.clock_ms(),
        }
    }

    fn status_of(&mut self, peer: u64, standing: Standing) {
        let wal = self.paxos.wal();
        let on_their_way_bytes = wal.bytes_between(standing.accepted, wal.end());
        let log = PeerLog { bytes: standing.log_bytes + on_their_way_bytes, written_bytes: wal.written().disk_bytes };
        drop(wal);
        if let Some(known) = self.peers.get_mut(peer) {
            (known.standing, known.log) = (Some(standing), log);
        }
        let clock = (peer, standing.clock_ms);
        self.clock.hear(&self.config, clock, self.clock_ms(), self.now_ms, self.paxos.majority());
    }

    fn show_role(&mut self) {
        let leads = self.role.leadership();
        let leader = Some(self.paxos.promised_replica())
            .filter(|id| *id != 0 && (*id != self.config.me || leads.is_some()))
            .map(ReplicaId);
        let awaited = self.change.awaited_state(&self.config, &self.paxos);
        let role = match (leads, awaited.or(self.paxos.wal().needs_state())) {
            (Some(leadership), _) => Role::Leader { term: leadership.term, start: LogIndex(leadership.start) },
            (None, Some(trimmed)) => Role::Behind { trimmed: LogIndex(trimmed), leader },
            (None, None) => Role::Follower { leader },
        };
        if role != self.shown_role {
            self.shown_role = role.clone();
            self.out.role = Some(role);
        }
    }

    /// The lease as of now.
    fn lease(&self) -> Lease {
        let decided = self.paxos.decided();
        // log rule 8: the writes acknowledged by earlier leaders are known once LeaderStart is decided.
        let valid = |l: Leadership| decided >= l.start && l.ballot == self.paxos.promise();
        match self.role.leader().filter(|leader| valid(leader.leadership)) {
            Some(leader) => {
                let members = self.membership().members.len();
                leader.lease.lease(&self.config, members, self.paxos.majority(), decided)
            }
            None => Lease::default(),
        }
    }

    /// Ends the turn's input and returns its output.
    pub(crate) fn finish(&mut self) -> Ready {
        self.finish_role();
        self.paxos.take_outgoing(&mut self.peers);
        self.notice_barrier();
        let of_paxos = self.paxos.take_sends(&self.config, &self.peers);
        let sends = self.out.take_sends(of_paxos);
        self.leave_configuration();
        self.show_role();
        let (lease, durable) = (self.lease(), self.paxos.wal().durable_end());
        self.out.finish(sends, lease, durable)
    }

    /// At the end of a turn's input: read barriers and memory acknowledgements.
    fn finish_role(&mut self) {
        let lease_until_ms = self.lease().until_ms;
        let Core { config, paxos, peers, out, next_probe, .. } = self;
        match &mut self.role {
            CoreRole::Leader(leader) => {
                // This replica is one of the majority: `observe` has just checked its promise.
                debug_assert!(paxos.promise() <= leader.leadership.ballot, "log rule 9");
                let at = LeaderPosition {
                    start: leader.leadership.start,
                    decided: paxos.decided(),
                    majority: paxos.majority(),
                    now_ms: self.now_ms,
                };
                leader.barriers.end_turn(config, at, lease_until_ms, next_probe, peers, out);
                leader.memory.end_turn(config, leader.leadership.ballot, paxos, peers, out);
            }
            CoreRole::Follower(follower) => {
                follower.memory_question.take_if(|question| question.answer(paxos, peers, out));
            }
        }
    }

    /// Makes the turn durable with at most one sync (log rule 1).
    ///
    /// # Errors
    /// Any error is fatal to the process (log rule 13).
    pub(crate) fn sync(&mut self) -> Result<Synced, WalError> {
        self.paxos.wal_mut().sync()
    }

    /// As [`Core::sync`] with everything there is; for an orderly end.
    ///
    /// # Errors
    /// As [`Core::sync`].
    pub(crate) fn sync_all(&mut self) -> Result<(), WalError> {
        self.paxos.wal_mut().sync_all()
    }

    /// The role as of the last finished turn.
    pub(crate) fn role(&self) -> &Role {
        &self.shown_role
    }

    /// The membership of the current configuration.
    pub(crate) fn membership(&self) -> &Membership {
        self.paxos.membership()
    }

    fn shown(&self) -> Shown {
        let decided = self.paxos.barrier_decided(&self.config).unwrap_or_else(|| self.paxos.wal().decided());
        Shown { decided, awaited_state: self.change.awaited_state(&self.config, &self.paxos) }
    }

    /// See [`LogView::newly_decided`].
    pub(crate) fn newly_decided(&mut self) -> (Vec<Entry>, LogIndex) {
        let shown = self.shown();
        self.view.newly_decided(&self.config, &self.paxos.wal(), shown)
    }

    /// Decided entries from `from` on, or where they are.
    ///
    /// # Errors
    /// A failing or damaged disk: fatal.
    pub(crate) fn old_entries(&self, from: LogIndex, max_bytes: usize) -> Result<OldEntries, WalError> {
        log_view::old_entries(&self.config, &self.paxos.wal(), self.shown(), from, max_bytes)
    }

    /// Bytes written to disk since the log was opened.
    pub(crate) fn written(&self) -> Written {
        self.paxos.wal().written()
    }

    /// The largest size of the logs of a majority, in bytes: a proposal goes into all of them.
    pub(crate) fn majority_log_bytes(&self) -> u64 {
        let wal = self.paxos.wal();
        let written_bytes = wal.written().disk_bytes;
        let known = self.peers.connected().filter(|peer| peer.standing.is_some());
        let peers = known.map(|peer| peer.log.bytes(written_bytes)).collect();
        peer_log::majority_bytes(wal.log_bytes(), peers, self.paxos.majority())
    }

    /// The value to add to this replica's wall clock, in milliseconds: 0 unless that is off.
    pub(crate) fn clock_correction_ms(&self) -> i64 {
        self.clock.correction_ms()
    }

    /// Positions, sizes and peers, for display.
    pub(crate) fn status(&self) -> LogStatus {
        let wal = self.paxos.wal();
        let status_of = |(id, peer): (u64, &Peer)| (ReplicaId(id), peer_status(peer, wal.peer_store(id), self.now_ms));
        let applicants = self.disks.applicants().iter();
        LogStatus {
            decided: LogIndex(wal.decided()),
            accepted: LogIndex(wal.end()),
            applied: LogIndex(self.applied.length()),
            lag: self.applied.lag(self.now_ms, &wal),
            compacted: LogIndex(wal.compacted()),
            first_retained: LogIndex(wal.compacted() + 1),
            log_bytes: wal.log_bytes(),
            leader: self.shown_role.leader(),
            term: wal.fence_at(wal.decided()).term,
            peers: self.peers.iter().map(status_of).collect(),
            applicants: applicants.map(|(id, disk)| (ReplicaId(*id), *disk)).collect(),
        }
    }
}

/// `disk` is the one that the peer must have, if known.
fn peer_status(peer: &Peer, disk: Option<u64>, now_ms: u64) -> PeerStatus {
    PeerStatus {
        connected: peer.session.is_some(),
        decided: LogIndex(peer.decided()),
        applied: LogIndex(peer.standing.map_or(0, |s| s.applied)),
        lag: peer.standing.map_or_else(Lag::default, |s| s.lag),
        ineligible: peer.standing.is_some_and(|s| s.ineligible),
        behind: peer.needs_state(),
        other_disk: peer.other_disk,
        disk: peer.disk.or(disk),
        last_heard_ms: peer.last_heard_ms.map(|t| now_ms.saturating_sub(t)),
    }
}

#[cfg(test)]
impl<D: Disk> Core<D> {
    /// Whether this replica's application cannot serve.
    pub(crate) fn is_ineligible(&self) -> bool {
        self.eligibility.is_ineligible()
    }

    /// The wall clock that its application sees.
    pub(crate) fn corrected_clock_ms(&self) -> u64 {
        self.clock_ms().saturating_add_signed(self.clock.correction_ms())
    }

    pub(crate) fn tick_ms(&self) -> u64 {
        self.config.timing.tick_ms
    }

    /// The disk that `peer` must have, as far as this replica knows it durably.
    pub(crate) fn knows_disk(&self, peer: u64) -> Option<u64> {
        let wal = self.paxos.wal();
        if wal.needs_sync() { None } else { wal.peer_store(peer) }
    }

    /// Whether its configuration is about to end.
    pub(crate) fn has_barrier(&self) -> bool {
        self.paxos.wal().barrier().is_some() || self.change.newer().is_some()
    }

    /// Elected although it needs a state transfer.
    pub(crate) fn leads_behind(&self) -> bool {
        self.paxos.holds_ballot() && self.role.leadership().is_none()
    }

    /// Whether the log has been replaced by a trimmed one that the application has not caught up with.
    pub(crate) fn was_reset(&self) -> bool {
        self.paxos.wal().needs_state().is_some()
    }
}
