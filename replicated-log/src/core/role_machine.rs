//! Elections and leaderships of this replica.
//!
//! [`RoleMachine`] begins a leadership when OmniPaxos makes this replica the leader, and ends it
//! when that is over, when the configuration ends, or when the application cannot serve. It routes
//! questions and answers to the state of the current role.

use omnipaxos::ballot_leader_election::Ballot;

use crate::error::BarrierError;
use crate::ids::{ReplicaId, Term};
use crate::item::Item;
use crate::wal::Disk;
use crate::wire::Wire;

use super::configuration::ConfigurationChange;
use super::eligibility::{BallotUse, Eligibility};
use super::leadership::{CoreRole, Follower, Leadership};
use super::lease::Lease;
use super::memory_acknowledgement::MemoryQuestion;
use super::read_barriers::LeaderPosition;
use super::staleness_bound::StalenessQuestion;
use super::stuck_peers;
use super::turn_context::TurnContext;

/// An answer of a peer to a question of this leader.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerAnswer {
    /// The peer's promise when the probe `id` reached it.
    Probe { id: u64, promise: Ballot },
    /// The peer has `length` items of the ballot's log in memory.
    Memory { ballot: Ballot, length: u64 },
    /// The peer holds for the ballot since a moment after `sent_ms`.
    Lease { ballot: Ballot, sent_ms: u64 },
}

/// The role of this replica, and the conditions for leading.
#[derive(Debug)]
pub(super) struct RoleMachine {
    role: CoreRole,
    eligibility: Eligibility,
    /// Probe numbers are unique across leaderships, so that a late answer confirms no later probe.
    next_probe: u64,
}

impl RoleMachine {
    /// A follower that is eligible to lead.
    pub(super) fn new() -> RoleMachine {
        let role = CoreRole::Follower(Follower::default());
        RoleMachine { role, eligibility: Eligibility::default(), next_probe: 0 }
    }

    /// Begins or ends this replica's leadership after a change of OmniPaxos's leader.
    pub(super) fn observe<D: Disk>(&mut self, ctx: &mut TurnContext<D>, change: &mut ConfigurationChange) {
        let ballot = ctx.paxos.promise();
        // log rule 10: the leaderships of a configuration end with it.
        let over = change.newer().is_some() || ctx.paxos.barrier_decided(&ctx.config).is_some();
        let holds = ctx.paxos.holds_ballot() && !over;
        if let Some(ended) = self.role.leadership().filter(|l| !holds || l.ballot != ballot) {
            change.leadership_ended(over && ended.ballot == ballot);
            self.end_leadership(ctx, ended);
        }
        // log rule 10: a leader with an undecided barrier in its log only decides it.
        if holds && self.role.leadership().is_none() && !ctx.paxos.behind_barrier(&ctx.config) {
            self.use_ballot(ctx, ballot);
        }
    }

    /// Ends the leadership for good. The release of the lease is sent after the sync, hence after
    /// the end of the lease has been published to readers.
    fn end_leadership<D: Disk>(&mut self, ctx: &mut TurnContext<D>, ended: Leadership) {
        if ctx.config.timing.lease_ms > 0 {
            ctx.out.send_to_all(&ctx.peers, &Wire::LeaseRelease { ballot: ended.ballot });
        }
        self.follow(ctx);
    }

    /// Becomes a follower and fails everything that waits for the leadership.
    pub(super) fn follow<D: Disk>(&mut self, ctx: &mut TurnContext<D>) {
        let error = not_leader(ctx);
        if let Some(leader) = self.role.follow() {
            leader.fail(&error, &mut ctx.out);
        }
    }

    /// This replica holds `ballot`, and no leadership has begun in it.
    fn use_ballot<D: Disk>(&mut self, ctx: &mut TurnContext<D>, ballot: Ballot) {
        let needs_state = ctx.paxos.wal().needs_state().is_some();
        match self.eligibility.use_of(ballot, needs_state) {
            BallotUse::Lead => {
                // log rule 12: a configuration's terms are above those of earlier configurations,
                // although its ballots start over.
                let number = ctx.paxos.membership().term.ballot().saturating_add(ballot.n);
                self.begin_leadership(ctx, ballot, Term::first_of(number, ctx.config.me));
            }
            BallotUse::Renew => ctx.paxos.stand_for_election(),
            BallotUse::PassOn => ask_other_to_lead(ctx),
            BallotUse::Wait => {}
        }
    }

    /// Log rule 8: a leadership begins with its `LeaderStart`, whose position is remembered.
    fn begin_leadership<D: Disk>(&mut self, ctx: &mut TurnContext<D>, ballot: Ballot, term: Term) {
        if ctx.paxos.append(Item::leader_start(term)) {
            let start = ctx.paxos.accepted();
            self.role.lead(Leadership { ballot, term, start });
            ctx.out.counts.leaderships += 1;
        }
    }

    /// Appends `item` if this replica leads in its term.
    pub(super) fn propose<D: Disk>(&mut self, ctx: &mut TurnContext<D>, item: Item, tracked: Option<u64>) {
        // log rule 7, invariant 1: an item is appended only in the leadership of its term. Nothing
        // is appended behind a barrier (log rule 10).
        let leads = self.role.leadership().is_some_and(|l| l.term == item.term);
        if leads && !ctx.paxos.behind_barrier(&ctx.config) && ctx.paxos.append(item) {
            ctx.out.counts.proposed += 1;
            if let (Some(id), Some(leader)) = (tracked, self.role.leader_mut()) {
                leader.memory.track(id, ctx.paxos.accepted());
            }
        } else {
            ctx.out.counts.dropped += 1;
            ctx.out.unacknowledged.extend(tracked);
        }
    }

    /// R1: the owner starts over. Its earlier proposals and its later ones must not mix.
    pub(super) fn new_leadership<D: Disk>(
        &mut self,
        ctx: &mut TurnContext<D>,
        change: &mut ConfigurationChange,
        current: Term,
    ) {
        let Some(leadership) = self.role.leadership().filter(|l| l.term == current) else {
            return;
        };
        match current.next_leadership() {
            Some(term) if !ctx.paxos.behind_barrier(&ctx.config) => self.begin_leadership(ctx, leadership.ballot, term),
            // The configuration is ending, and the leadership with it.
            Some(_) => {}
            // The 24-bit counter of leaderships under this ballot is used up: take a new ballot.
            None => ctx.paxos.stand_for_election(),
        }
        self.observe(ctx, change);
    }

    /// Whether a leadership of this replica could serve. Log rule 10 forbids it during a state
    /// transfer.
    pub(super) fn may_lead<D: Disk>(&self, ctx: &TurnContext<D>) -> bool {
        !self.eligibility.is_ineligible() && ctx.paxos.wal().needs_state().is_none()
    }

    /// Stands for election, if this replica may lead and does not yet (log rule 10).
    pub(super) fn try_lead<D: Disk>(&mut self, ctx: &mut TurnContext<D>, change: &mut ConfigurationChange) {
        if self.may_lead(ctx) && !ctx.paxos.holds_ballot() {
            ctx.paxos.stand_for_election();
            self.observe(ctx, change);
        }
    }

    /// A read of the owner needs a read barrier.
    pub(super) fn barrier<D: Disk>(&mut self, ctx: &mut TurnContext<D>, id: u64) {
        match &mut self.role {
            CoreRole::Leader(leader) => leader.barriers.read(id, ctx.now_ms),
            CoreRole::Follower(_) => {
                let error = not_leader(ctx);
                ctx.out.barriers.push((id, Err(error)));
            }
        }
    }

    /// The owner asks for a staleness bound.
    pub(super) fn ask_staleness_bound<D: Disk>(&mut self, ctx: &mut TurnContext<D>) {
        let asked_ms = ctx.now_ms;
        if self.role.leader().is_some() {
            self.staleness_question(ctx.now_ms, StalenessQuestion { from: None, asked_ms });
        } else {
            let leader = ctx.paxos.promised_replica();
            ctx.out.send_before_sync(&ctx.peers, leader, Wire::StalenessAsk { asked_ms });
        }
    }

    /// Only a leader answers.
    pub(super) fn staleness_question(&mut self, now_ms: u64, question: StalenessQuestion) {
        if let Some(leader) = self.role.leader_mut() {
            leader.barriers.question(question, now_ms);
        }
    }

    /// The entries in the peer's memory may be lost with its process.
    pub(super) fn doubt_memory(&mut self, peer: u64) {
        match &mut self.role {
            CoreRole::Leader(leader) => leader.memory.doubt(peer),
            CoreRole::Follower(follower) => {
                follower.memory_question.take_if(|question| question.peer == peer);
            }
        }
    }

    /// The lease as of now.
    pub(super) fn lease<D: Disk>(&self, ctx: &TurnContext<D>) -> Lease {
        let decided = ctx.paxos.decided();
        // log rule 8: the writes acknowledged by earlier leaders are known once LeaderStart is
        // decided.
        let valid = |l: Leadership| decided >= l.start && l.ballot == ctx.paxos.promise();
        match self.role.leader().filter(|leader| valid(leader.leadership)) {
            Some(leader) => {
                let members = ctx.paxos.membership().members.len();
                leader.lease.lease(&ctx.config, members, ctx.paxos.majority(), decided)
            }
            None => Lease::default(),
        }
    }

    /// At the end of a turn's input: read barriers and memory acknowledgements.
    pub(super) fn end_turn<D: Disk>(&mut self, ctx: &mut TurnContext<D>) {
        let lease_until_ms = self.lease(ctx).until_ms;
        let TurnContext { config, paxos, peers, out, now_ms } = ctx;
        match &mut self.role {
            CoreRole::Leader(leader) => {
                // This replica is one of the majority: `observe` has just checked its promise.
                debug_assert!(paxos.promise() <= leader.leadership.ballot, "log rule 9");
                let at = LeaderPosition {
                    start: leader.leadership.start,
                    decided: paxos.decided(),
                    majority: paxos.majority(),
                    now_ms: *now_ms,
                };
                leader.barriers.end_turn(config, at, lease_until_ms, &mut self.next_probe, peers, out);
                leader.memory.end_turn(config, leader.leadership.ballot, paxos, peers, out);
            }
            CoreRole::Follower(follower) => {
                follower.memory_question.take_if(|question| question.answer(paxos, peers, out));
            }
        }
    }

    /// The owner's application cannot serve, or can again. Returns whether that has changed.
    pub(super) fn set_ineligible<D: Disk>(&mut self, ctx: &mut TurnContext<D>, ineligible: bool) -> bool {
        if !self.eligibility.set_ineligible(ineligible) {
            return false;
        }
        if ineligible && let Some(ended) = self.role.leadership() {
            self.eligibility.give_up(ended.ballot);
            self.end_leadership(ctx, ended);
        }
        true
    }

    /// A new configuration begins, with a new instance.
    pub(super) fn enter_configuration<D: Disk>(&mut self, ctx: &mut TurnContext<D>) {
        self.follow(ctx);
        self.eligibility.forget_ballots();
    }

    /// On each tick: read barriers and lease requests.
    pub(super) fn tick<D: Disk>(&mut self, ctx: &mut TurnContext<D>) {
        if let Some(leader) = self.role.leader_mut() {
            let ballot = leader.leadership.ballot;
            leader.barriers.tick(&ctx.config, ctx.now_ms, &ctx.peers, &mut ctx.out);
            leader.lease.request(&ctx.config, ballot, ctx.now_ms, &ctx.peers, &mut ctx.out);
        }
    }

    /// Handles the answer of a peer to this leader.
    pub(super) fn answered(&mut self, now_ms: u64, peer: u64, answer: PeerAnswer) {
        let Some(leader) = self.role.leader_mut() else {
            return;
        };
        let ballot = leader.leadership.ballot;
        match answer {
            // log rule 9: an answer counts only if its promise is not above the ballot.
            PeerAnswer::Probe { id, promise } if promise <= ballot => leader.barriers.confirmed_by(peer, id),
            PeerAnswer::Memory { ballot: of, length } if of == ballot => leader.memory.answered(peer, length),
            PeerAnswer::Lease { ballot: of, sent_ms } if of == ballot => {
                leader.lease.acknowledged(peer, sent_ms, now_ms);
            }
            _ => {}
        }
    }

    /// A leader asks for a memory acknowledgement. A leader of its own has no use for it.
    pub(super) fn memory_question(&mut self, question: MemoryQuestion) {
        if let Some(follower) = self.role.follower_mut() {
            follower.memory_question = Some(question);
        }
    }

    /// Whether this replica's application cannot serve.
    pub(super) fn is_ineligible(&self) -> bool {
        self.eligibility.is_ineligible()
    }

    /// The leadership of this replica, if there is one.
    pub(super) fn leadership(&self) -> Option<Leadership> {
        self.role.leadership()
    }
}

fn not_leader<D: Disk>(ctx: &TurnContext<D>) -> BarrierError {
    let id = ctx.paxos.promised_replica();
    BarrierError::NotLeader { leader: (id != 0 && id != ctx.config.me).then_some(ReplicaId(id)) }
}

/// Asks the best successor to lead (log rule 15).
pub(super) fn ask_other_to_lead<D: Disk>(ctx: &mut TurnContext<D>) {
    if let Some(peer) = stuck_peers::best_successor(&ctx.peers) {
        ctx.out.send(&ctx.peers, peer, Wire::TryLead);
    }
}
