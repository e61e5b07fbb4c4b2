//! Read barriers: linearizable reads without a log entry (log rule 9), when no lease serves them
//! ([`super::leader_lease`]). That is while leases are off, while too few followers hold, and at
//! the beginning of a leadership.
//!
//! A read that arrives waits for a probe started after it. The probe remembers the decided position
//! and asks all peers for their promise. Once a majority, this replica included, has answered that
//! its promise is not above this leader's ballot, no later leader can have decided anything before
//! the read arrived: it would have needed a promise from one of them. Everything that earlier
//! leaders decided lies before this leadership's `LeaderStart`, so the position given is at least
//! that one, and it is given only once it is decided (log rule 8).
//!
//! One probe serves every read that waits when it starts. Later reads share the next probe, which
//! starts in the turn that confirms the previous one. A read thus waits for two round trips at
//! most. Overlapping probes would save part of the second round trip, but every probe wakes three
//! processes, and under load that costs more reads than it speeds up.

use std::collections::VecDeque;

use crate::error::BarrierError;
use crate::ids::LogIndex;
use crate::wire::Wire;

use super::config::CoreConfig;
use super::fault::Fault;
use super::outgoing::Outgoing;
use super::peers::Peers;
use super::staleness_bound::StalenessQuestion;

/// Probes under way at one time.
const MAX_PROBES: usize = 1;

/// Peers that have not answered a probe for this many ticks are asked again: its messages may have
/// been lost with a session. It stays the same probe, so that slower answers count.
const RESEND_TICKS: u64 = 5;

/// Staleness questions of one peer that may wait for a probe; further ones are not answered. One at
/// a time is usual.
const MAX_QUESTIONS_PER_PEER: usize = 16;

/// The call that waits for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// A read of the owner, by its number.
    Read(u64),
    Staleness(StalenessQuestion),
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    caller: Caller,
    arrived_ms: u64,
}

#[derive(Debug)]
struct Probe {
    id: u64,
    /// When it was last sent.
    sent_ms: u64,
    /// The decided position when it started.
    decided: u64,
    /// Peers whose promise does not exceed the ballot.
    confirmed: Vec<u64>,
    waiters: Vec<Waiter>,
}

/// The leader's position in its log, as read barriers need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaderPosition {
    /// The position of the leadership's `LeaderStart`.
    pub(super) start: u64,
    pub(super) decided: u64,
    pub(super) majority: usize,
    pub(super) now_ms: u64,
}

/// Waiting reads of one leadership, and the probes for which they wait.
#[derive(Debug, Default)]
pub(super) struct ReadBarriers {
    waiting: Vec<Waiter>,
    probes: VecDeque<Probe>,
}

impl ReadBarriers {
    /// A read of the owner waits.
    pub(super) fn read(&mut self, id: u64, now_ms: u64) {
        self.waiting.push(Waiter { caller: Caller::Read(id), arrived_ms: now_ms });
    }

    /// A staleness question waits.
    pub(super) fn question(&mut self, question: StalenessQuestion, now_ms: u64) {
        let same = |w: &&Waiter| matches!(w.caller, Caller::Staleness(other) if other.from == question.from);
        let probed = self.probes.iter().flat_map(|p| &p.waiters);
        if self.waiting.iter().chain(probed).filter(same).count() < MAX_QUESTIONS_PER_PEER {
            self.waiting.push(Waiter { caller: Caller::Staleness(question), arrived_ms: now_ms });
        }
    }

    /// At the end of a turn's input: one probe for all reads that came since the last one started.
    /// `lease_until_ms` is the end of the lease, `next_probe` the number of the next probe.
    pub(super) fn end_turn(
        &mut self,
        config: &CoreConfig,
        at: LeaderPosition,
        lease_until_ms: u64,
        next_probe: &mut u64,
        peers: &Peers,
        out: &mut Outgoing,
    ) {
        self.confirm(config, at, peers, out);
        self.answer_questions_by_lease(config, at, lease_until_ms, peers, out);
        if self.waiting.is_empty() || self.probes.len() >= MAX_PROBES {
            return;
        }
        let id = *next_probe;
        *next_probe += 1;
        out.counts.probes += 1;
        self.probes.push_back(Probe {
            id,
            sent_ms: at.now_ms,
            decided: at.decided,
            confirmed: Vec::new(),
            waiters: std::mem::take(&mut self.waiting),
        });
        out.send_to_all_before_sync(peers, &Wire::Probe { id });
        if config.fault(Fault::ReadWithoutProbe) {
            self.confirm(config, at, peers, out);
        }
    }

    /// If the lease held when the clock was last read, which was after every question came, no
    /// other leader can have decided anything by then.
    fn answer_questions_by_lease(
        &mut self,
        config: &CoreConfig,
        at: LeaderPosition,
        lease_until_ms: u64,
        peers: &Peers,
        out: &mut Outgoing,
    ) {
        if at.now_ms >= lease_until_ms && !config.fault(Fault::StalenessBoundWithoutProof) {
            return;
        }
        for waiter in self.waiting.extract_if(.., |w| matches!(w.caller, Caller::Staleness(_))) {
            if let Caller::Staleness(question) = waiter.caller {
                question.answer(LogIndex(at.decided), peers, out);
            }
        }
    }

    /// A peer has answered that its promise is not above this leader's ballot.
    pub(super) fn confirmed_by(&mut self, peer: u64, id: u64) {
        if let Some(probe) = self.probes.iter_mut().find(|p| p.id == id)
            && !probe.confirmed.contains(&peer)
        {
            probe.confirmed.push(peer);
        }
    }

    /// Answers the waiters of every probe that a majority has confirmed.
    fn confirm(&mut self, config: &CoreConfig, at: LeaderPosition, peers: &Peers, out: &mut Outgoing) {
        let needed = at.majority - 1;
        let free = config.fault(Fault::ReadWithoutProbe);
        let early = config.fault(Fault::ReadBeforeStart);
        // log rule 8: not before this leadership's LeaderStart is decided.
        if at.decided < at.start && !early {
            return;
        }
        let confirmed = |probe: &Probe| free || probe.confirmed.len() >= needed;
        let (done, kept) = std::mem::take(&mut self.probes).into_iter().partition(confirmed);
        self.probes = kept;
        for probe in Vec::<Probe>::from(done) {
            let floor = if early { 0 } else { at.start };
            let index = LogIndex(probe.decided.max(floor));
            for waiter in probe.waiters {
                match waiter.caller {
                    Caller::Read(id) => out.barriers.push((id, Ok(index))),
                    Caller::Staleness(question) => question.answer(index, peers, out),
                }
            }
        }
    }

    /// On each tick: fails reads that have waited too long, and asks silent peers again.
    pub(super) fn tick(&mut self, config: &CoreConfig, now_ms: u64, peers: &Peers, out: &mut Outgoing) {
        let timing = &config.timing;
        let (resend_ms, timeout_ms) = (timing.tick_ms * RESEND_TICKS, timing.barrier_timeout_ms);
        let expired = |w: &mut Waiter| now_ms.saturating_sub(w.arrived_ms) >= timeout_ms;
        let mut late: Vec<Waiter> = self.waiting.extract_if(.., expired).collect();
        let mut resend = Vec::new();
        for probe in &mut self.probes {
            late.extend(probe.waiters.extract_if(.., expired));
            if now_ms.saturating_sub(probe.sent_ms) >= resend_ms {
                probe.sent_ms = now_ms;
                let silent = peers.ids().filter(|peer| !probe.confirmed.contains(peer));
                resend.extend(silent.map(|peer| (peer, probe.id)));
            }
        }
        // A probe without waiters makes way for the next one.
        self.probes.retain(|probe| !probe.waiters.is_empty());
        for (peer, id) in resend {
            out.send_before_sync(peers, peer, Wire::Probe { id });
        }
        for waiter in late {
            if let Caller::Read(id) = waiter.caller {
                out.barriers.push((id, Err(BarrierError::TimedOut)));
            }
        }
    }

    /// Ends the leadership: nothing can be confirmed any more. Staleness questions go to the next
    /// leader.
    pub(super) fn fail(self, error: &BarrierError, out: &mut Outgoing) {
        let probed = self.probes.into_iter().flat_map(|p| p.waiters);
        for waiter in self.waiting.into_iter().chain(probed) {
            if let Caller::Read(id) = waiter.caller {
                out.barriers.push((id, Err(error.clone())));
            }
        }
    }
}
