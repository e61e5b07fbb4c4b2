//! The role of this replica as its owner sees it.

use crate::ids::{LogIndex, ReplicaId, Term};

/// The current role of this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// This replica won the ballot and appended its `LeaderStart`. The owner serves only once it
    /// has applied the entry at `start` (log rule 8, invariant 4).
    Leader {
        /// The leadership; every proposal carries it.
        term: Term,
        /// The position of this leadership's `LeaderStart`.
        start: LogIndex,
    },
    /// This replica follows `leader`, if one is known.
    Follower {
        /// The replica of the ballot that this one has promised.
        leader: Option<ReplicaId>,
    },
    /// The group has trimmed its log past the position that this replica's application has applied.
    /// The application needs a copy of the state at or after `trimmed`. Such a replica neither
    /// serves nor leads (log rule 10).
    Behind {
        /// The copy must cover at least this position.
        trimmed: LogIndex,
        /// The replica of the ballot that this one has promised. Any replica may give the copy.
        leader: Option<ReplicaId>,
    },
}

impl Role {
    /// The term if this replica leads.
    pub fn leading(&self) -> Option<Term> {
        match self {
            Role::Leader { term, .. } => Some(*term),
            _ => None,
        }
    }

    /// The leader, if one is known: this replica included.
    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        match self {
            Role::Leader { term, .. } => Some(term.replica()),
            Role::Follower { leader } | Role::Behind { leader, .. } => *leader,
        }
    }
}
