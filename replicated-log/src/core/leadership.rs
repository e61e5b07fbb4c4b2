//! The role of the core, with the state that exists only in that role.

use omnipaxos::ballot_leader_election::Ballot;

use crate::error::BarrierError;
use crate::ids::Term;

use super::leader_lease::LeaderLease;
use super::memory_acknowledgement::{MemoryAcknowledgement, MemoryQuestion};
use super::outgoing::Outgoing;
use super::read_barriers::ReadBarriers;

/// A leadership of this replica.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leadership {
    pub(super) ballot: Ballot,
    pub(super) term: Term,
    /// The number of items up to and including its `LeaderStart`.
    pub(super) start: u64,
}

/// The state of a leader. It lasts as long as the leader's ballot: further leaderships under the
/// same ballot (R1) only replace `leadership`.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) leadership: Leadership,
    pub(super) lease: LeaderLease,
    pub(super) barriers: ReadBarriers,
    pub(super) memory: MemoryAcknowledgement,
}

impl Leader {
    /// Fails everything that waits for this leadership.
    pub(super) fn fail(self, error: &BarrierError, out: &mut Outgoing) {
        self.memory.fail(out);
        self.barriers.fail(error, out);
    }
}

/// The state of a replica that does not lead.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The last question of the leader about this replica's memory (R28), until it is answered.
    pub(super) memory_question: Option<MemoryQuestion>,
}

/// The role of the core. It follows OmniPaxos's leader, but a leadership begins only with a
/// `LeaderStart`, and ends with the configuration.
#[derive(Debug)]
pub(super) enum CoreRole {
    Follower(Follower),
    Leader(Box<Leader>),
}

impl CoreRole {
    pub(super) fn leader(&self) -> Option<&Leader> {
        match self {
            CoreRole::Leader(leader) => Some(leader),
            CoreRole::Follower(_) => None,
        }
    }

    pub(super) fn leader_mut(&mut self) -> Option<&mut Leader> {
        match self {
            CoreRole::Leader(leader) => Some(leader),
            CoreRole::Follower(_) => None,
        }
    }

    pub(super) fn follower_mut(&mut self) -> Option<&mut Follower> {
        match self {
            CoreRole::Follower(follower) => Some(follower),
            CoreRole::Leader(_) => None,
        }
    }

    pub(super) fn leadership(&self) -> Option<Leadership> {
        self.leader().map(|leader| leader.leadership)
    }

    /// Begins `leadership`, as the first one of its ballot or as a further one.
    pub(super) fn lead(&mut self, leadership: Leadership) {
        match self {
            CoreRole::Leader(leader) => leader.leadership = leadership,
            CoreRole::Follower(_) => {
                *self = CoreRole::Leader(Box::new(Leader {
                    leadership,
                    lease: LeaderLease::default(),
                    barriers: ReadBarriers::default(),
                    memory: MemoryAcknowledgement::default(),
                }));
            }
        }
    }

    /// Becomes a follower. Returns the leader that this replica was.
    pub(super) fn follow(&mut self) -> Option<Leader> {
        match std::mem::replace(self, CoreRole::Follower(Follower::default())) {
            CoreRole::Leader(leader) => Some(*leader),
            CoreRole::Follower(_) => None,
        }
    }
}
