//! Numbers of the log: replicas, positions and terms.
//!
//! The types are `Copy`, ordered, and serialised as plain integers. This module owns no state and
//! decides nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A replica of a group: a number from 1 to 255, unique for the life of the group. A new machine
/// gets a new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The position of an entry in the group's log. The first entry is 1; `LogIndex(0)` means "nothing
/// yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The position after this one.
    pub fn next(self) -> LogIndex {
        LogIndex(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of one leadership. Later leaderships have higher terms.
///
/// The three parts are packed so that one integer comparison orders terms: the ballot's number in
/// the high 32 bits, the leader's id in the next 8, and in the low 24 the counter of leaderships
/// under that ballot. A leader that starts over keeps its ballot and increments the counter (R1).
/// `Term(0)` means "no leadership yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// No leadership: the term in force before the first `LeaderStart`.
    pub const NONE: Term = Term(0);
    const COUNTER_BITS: u32 = 24;
    const COUNTER_MASK: u64 = (1 << Self::COUNTER_BITS) - 1;

    /// The first leadership of replica `pid` under ballot number `ballot`.
    pub(crate) fn first_of(ballot: u32, pid: u64) -> Term {
        debug_assert!(pid <= 0xff, "replica ids fit in eight bits");
        Term((u64::from(ballot) << 32) | ((pid & 0xff) << Self::COUNTER_BITS))
    }

    /// The leadership after this one under the same ballot, or `None` once the 24-bit counter is
    /// used up.
    pub(crate) fn next_leadership(self) -> Option<Term> {
        (self.counter() < Self::COUNTER_MASK).then_some(Term(self.0 + 1))
    }

    /// The leader of this term (`ReplicaId(0)` for [`Term::NONE`]).
    pub fn replica(&self) -> ReplicaId {
        ReplicaId((self.0 >> Self::COUNTER_BITS) & 0xff)
    }

    /// The number of the OmniPaxos ballot of the leader.
    pub fn ballot(&self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The number of this leadership under its ballot, counted from 0.
    pub fn counter(&self) -> u64 {
        self.0 & Self::COUNTER_MASK
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.ballot(), self.replica(), self.counter())
    }
}
