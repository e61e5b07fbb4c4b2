//! Decisions: what the balancer decided, with its reasons, and the outcome.

use evenkeel_protocol::api::DecisionBody;
use evenkeel_protocol::{Epoch, Key, OperatorId, RangeId, ShardId};
use serde::{Deserialize, Serialize};

/// A split, merge or move that somebody asks for, before it is an operator with a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Split a range.
    Split {
        /// The range.
        range: RangeId,
        /// The epoch for which this was decided; absent for any.
        epoch: Option<Epoch>,
        /// The first keys of the further pieces, growing strictly.
        at: Vec<Key>,
    },
    /// Merge two neighbours on one shard.
    Merge {
        /// The range on the left and the epoch for which this was decided.
        left: (RangeId, Epoch),
        /// The range on the right and the epoch for which this was decided.
        right: (RangeId, Epoch),
    },
    /// Move a range.
    Move {
        /// The range.
        range: RangeId,
        /// The epoch for which this was decided; absent for any.
        epoch: Option<Epoch>,
        /// The destination.
        to: ShardId,
    },
}

/// A decision of the balancer, before it has a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewDecision {
    /// The reason, in one sentence with its figures.
    pub why: String,
    /// The imbalance before.
    pub imbalance_before: f64,
    /// The imbalance that is expected afterwards.
    pub imbalance_expected: f64,
    /// The alternatives, each with the reason against it.
    pub alternatives: Vec<String>,
    /// The splits, merges and moves.
    pub actions: Vec<Action>,
}

/// A decision of the balancer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Its number.
    pub id: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// When it was made, in milliseconds of the state machine's time.
    pub time_ms: u64,
    /// The decision itself.
    pub decided: NewDecision,
    /// The operators that carry it out.
    pub operators: Vec<OperatorId>,
    /// Its outcome, once all of its operators have ended.
    pub outcome: Option<String>,
}

impl Decision {
    /// The form in which REST shows it.
    pub fn body(&self) -> DecisionBody {
        DecisionBody {
            id: self.id,
            at_ms: self.at_ms,
            why: self.decided.why.clone(),
            imbalance_before: self.decided.imbalance_before,
            imbalance_expected: self.decided.imbalance_expected,
            alternatives: self.decided.alternatives.clone(),
            operators: self.operators.clone(),
            outcome: self.outcome.clone(),
        }
    }
}
