//! Linearizable reads without a log entry (log rule 9), when no lease serves them ([`super::lease`]): while leases
//! are off, while too few followers hold one, and at a leadership's beginning.
//!
//! A read that arrives waits for a probe started after it. The probe remembers the decided position and asks all
//! peers for their promise. Once a majority, this replica included, has answered that its promise is not above
//! this leader's ballot, no later leader can have decided anything before the read arrived: it would have needed
//! a promise from one of them. Whatever earlier leaders decided lies before this leadership's `LeaderStart`, so the
//! position given is at least that one, and it is given only once it is decided (log rule 8).
//!
//! One probe serves every read that waits when it starts; reads that come meanwhile share the next one, which
//! starts in the turn that confirms the one before. A read so waits for two round trips at most. Overlapping probes
//! would save part of the second, but every probe wakes three processes, and under load that costs more reads than it
//! speeds up.

use std::collections::VecDeque;

use omnipaxos::ballot_leader_election::Ballot;

use crate::types::{BarrierError, LogIndex, ReplicaId};
use crate::wal::Disk;
use crate::wire::Wire;

use super::fresh::Asker;
use super::{Core, Fault};

/// Probes under way at one time.
const MAX_PROBES: usize = 1;

/// Peers that have not answered a probe for this many ticks are asked again: its messages may have gone down with a session. It is
/// the same probe, so that answers count that take longer than this.
const RESEND_TICKS: u64 = 5;

/// Who waits for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A read of the owner, by its number.
    Call(u64),
    /// A replica that wants to know how fresh it is.
    Fresh(Asker),
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    who: Who,
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
    loyal: Vec<u64>,
    waiters: Vec<Waiter>,
}

/// Reads that wait and the probes they wait for.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    waiting: Vec<Waiter>,
    probes: VecDeque<Probe>,
    next_probe: u64,
}

impl<D: Disk> Core<D> {
    pub(super) fn barrier(&mut self, id: u64) {
        if self.leadership.is_none() {
            self.turn.barriers.push((id, self.not_leader()));
            return;
        }
        self.wait_for_barrier(Who::Call(id));
    }

    pub(super) fn wait_for_barrier(&mut self, who: Who) {
        self.barriers.waiting.push(Waiter { who, arrived_ms: self.now_ms });
    }

    /// Questions about freshness that wait, also for a probe under way.
    pub(super) fn fresh_waiting(&self) -> impl Iterator<Item = &Who> {
        let probed = self.barriers.probes.iter().flat_map(|p| &p.waiters);
        self.barriers.waiting.iter().chain(probed).map(|w| &w.who)
    }

    /// Takes out the questions about freshness that no probe has been started for.
    pub(super) fn take_fresh_waiting(&mut self) -> Vec<Asker> {
        let taken = self.barriers.waiting.extract_if(.., |w| matches!(w.who, Who::Fresh(_)));
        taken.filter_map(|w| if let Who::Fresh(asker) = w.who { Some(asker) } else { None }).collect()
    }

    fn not_leader(&self) -> Result<LogIndex, BarrierError> {
        let id = self.id(self.omni.get_promise().pid);
        Err(BarrierError::NotLeader { leader: (id != 0 && id != self.config.me).then_some(ReplicaId(id)) })
    }

    /// The leadership is over: nothing can be confirmed any more.
    pub(super) fn fail_barriers(&mut self) {
        let answer = self.not_leader();
        let waiting = std::mem::take(&mut self.barriers.waiting);
        let probed = std::mem::take(&mut self.barriers.probes);
        let probed = probed.into_iter().flat_map(|p| p.waiters);
        for waiter in waiting.into_iter().chain(probed) {
            // Who asked about freshness asks the next leader.
            if let Who::Call(id) = waiter.who {
                self.turn.barriers.push((id, answer.clone()));
            }
        }
    }

    /// At the end of a turn's input: one probe for all reads that came since the last one started.
    pub(super) fn start_probe(&mut self) {
        self.settle_probes();
        self.answer_fresh_by_lease();
        if self.barriers.waiting.is_empty() || self.leadership.is_none() || self.barriers.probes.len() >= MAX_PROBES {
            return;
        }
        let id = self.barriers.next_probe;
        self.barriers.next_probe += 1;
        self.turn.probes += 1;
        self.barriers.probes.push_back(Probe {
            id,
            sent_ms: self.now_ms,
            decided: self.omni.get_decided_idx() as u64,
            loyal: Vec::new(),
            waiters: std::mem::take(&mut self.barriers.waiting),
        });
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        for peer in peers {
            self.early_control(peer, Wire::Probe { id });
        }
        if self.fault(Fault::ReadWithoutProbe) {
            self.settle_probes();
        }
    }

    pub(super) fn probe_reply(&mut self, peer: u64, id: u64, promise: Ballot) {
        let Some(leadership) = self.leadership else {
            return;
        };
        // log rule 9: an answer counts only if its promise is not above the ballot.
        if promise > leadership.ballot {
            return;
        }
        if let Some(probe) = self.barriers.probes.iter_mut().find(|p| p.id == id)
            && !probe.loyal.contains(&peer)
        {
            probe.loyal.push(peer);
        }
    }

    /// Answers the waiters of every probe that a majority has confirmed.
    fn settle_probes(&mut self) {
        let Some(leadership) = self.leadership else {
            return;
        };
        // This replica is one of the majority: `observe` has just made sure that its promise is the ballot.
        debug_assert!(self.omni.get_promise() <= leadership.ballot, "log rule 9");
        let decided = self.omni.get_decided_idx() as u64;
        let needed = self.majority() - 1;
        let free = self.fault(Fault::ReadWithoutProbe);
        let early = self.fault(Fault::ReadBeforeStart);
        // log rule 8: not before this leadership's LeaderStart is decided.
        if decided < leadership.start && !early {
            return;
        }
        let settled = |probe: &Probe| free || probe.loyal.len() >= needed;
        let (done, kept) = std::mem::take(&mut self.barriers.probes).into_iter().partition(settled);
        self.barriers.probes = kept;
        for probe in Vec::<Probe>::from(done) {
            let floor = if early { 0 } else { leadership.start };
            let index = LogIndex(probe.decided.max(floor));
            for waiter in probe.waiters {
                match waiter.who {
                    Who::Call(id) => self.turn.barriers.push((id, Ok(index))),
                    Who::Fresh(asker) => self.tell_fresh(asker, index),
                }
            }
        }
    }

    /// Gives up reads that have waited too long, and asks again whoever has not answered.
    pub(super) fn expire_barriers(&mut self) {
        let now_ms = self.now_ms;
        let timing = &self.config.timing;
        let (resend_ms, timeout_ms) = (timing.tick_ms * RESEND_TICKS, timing.barrier_timeout_ms);
        let expired = |w: &mut Waiter| now_ms.saturating_sub(w.arrived_ms) >= timeout_ms;
        let mut late: Vec<Waiter> = self.barriers.waiting.extract_if(.., expired).collect();
        let mut resend = Vec::new();
        for probe in &mut self.barriers.probes {
            late.extend(probe.waiters.extract_if(.., expired));
            if now_ms.saturating_sub(probe.sent_ms) >= resend_ms {
                probe.sent_ms = now_ms;
                let silent = self.peers.keys().filter(|peer| !probe.loyal.contains(peer));
                resend.extend(silent.map(|peer| (*peer, probe.id)));
            }
        }
        // What nobody waits for any more makes room for those who wait for the next.
        self.barriers.probes.retain(|probe| !probe.waiters.is_empty());
        for (peer, id) in resend {
            self.early_control(peer, Wire::Probe { id });
        }
        for waiter in late {
            if let Who::Call(id) = waiter.who {
                self.turn.barriers.push((id, Err(BarrierError::TimedOut)));
            }
        }
    }
}
