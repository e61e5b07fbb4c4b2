//! The operators that have come to this shard: open moves, the last operator of each range,
//! operators that ended.

use super::finished_operators::{FinishedOperators, FinishedWork};
use super::movement::{InPhase, MoveIn, MoveOut, OutPhase};
use super::refusal::{EntryRefusal, refuse};
use super::shared_map::SharedMap;
use evenkeel_protocol::{OperatorId, RangeId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// See the module. The order of the fields is the format on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Operators {
    pub(super) moves_out: SharedMap<OperatorId, MoveOut>,
    pub(super) moves_in: SharedMap<OperatorId, MoveIn>,
    /// The last operator that changed a range's bounds or began to move it.
    pub(super) last_operator: SharedMap<RangeId, OperatorId>,
    finished: Arc<FinishedOperators>,
}

impl Operators {
    /// The work of an operator that has ended here.
    pub(super) fn finished(&self, operator: OperatorId) -> Option<&FinishedWork> {
        self.finished.get(operator)
    }

    /// Whether the operator has ended here.
    pub(super) fn is_finished(&self, operator: OperatorId) -> bool {
        self.finished(operator).is_some()
    }

    /// A number is given once. A placement driver that was restored from a backup may give it again
    /// (R30).
    pub(super) fn expect_unused(&self, operator: OperatorId) -> Result<(), EntryRefusal> {
        let moving = self.moves_out.contains_key(&operator) || self.moves_in.contains_key(&operator);
        match moving || self.is_finished(operator) {
            true => refuse("stale-operator", format!("operator {operator} has come here already")),
            false => Ok(()),
        }
    }

    /// Operator numbers only grow per range (R20), and none is used for two moves: its other side
    /// is asked by the number (R23).
    pub(super) fn expect_later(&self, operator: OperatorId, range: RangeId) -> Result<(), EntryRefusal> {
        self.expect_unused(operator)?;
        match self.last_operator.get(&range) {
            Some(last) if *last >= operator => {
                refuse("stale-operator", format!("operator {last} has come to range {range} already"))
            }
            _ => Ok(()),
        }
    }

    /// While a move is open its range stays as it is (R20).
    pub(super) fn expect_no_move(&self, id: RangeId) -> Result<(), EntryRefusal> {
        match self.moves_out.values().find(|m| m.range == id && m.phase == OutPhase::Open) {
            Some(open) => refuse("move-open", format!("operator {} is moving range {id}", open.operator)),
            None => Ok(()),
        }
    }

    pub(super) fn finish(&mut self, operator: OperatorId, work: FinishedWork) {
        Arc::make_mut(&mut self.finished).push(operator, work);
    }

    /// Destination: the outcome of a move, as far as this log knows it (R23): whether its range was
    /// adopted. The log knows that a move was declined for as long as it remembers ended operators,
    /// also when what came in has been deleted: the source may hear of it late.
    pub(super) fn resolved(&self, operator: OperatorId) -> Option<bool> {
        match self.moves_in.get(&operator).map(|m| m.phase) {
            Some(InPhase::Adopted) => Some(true),
            Some(InPhase::Discarding) => Some(false),
            Some(InPhase::Copying) => None,
            None => match self.finished(operator)? {
                FinishedWork::Declined { .. } | FinishedWork::Cancelled => Some(false),
                // An adoption is forgotten only after the source has purged, so never while the
                // source asks.
                FinishedWork::Split { .. }
                | FinishedWork::Merge { .. }
                | FinishedWork::MoveOut { .. }
                | FinishedWork::MoveIn { .. } => None,
            },
        }
    }

    pub(super) fn copying(&mut self, operator: OperatorId) -> Result<&mut MoveIn, EntryRefusal> {
        match self.moves_in.get_mut(&operator) {
            None => no_such(operator),
            Some(m) if m.phase != InPhase::Copying => {
                refuse("settled", format!("operator {operator} takes nothing more in"))
            }
            Some(m) => Ok(m),
        }
    }

    pub(super) fn attempting(&mut self, operator: OperatorId, attempt: u64) -> Result<&mut MoveIn, EntryRefusal> {
        let movement = self.copying(operator)?;
        if movement.attempt != attempt {
            return refuse("stale-attempt", format!("attempt {} has begun", movement.attempt));
        }
        Ok(movement)
    }
}

pub(super) fn no_such<T>(operator: OperatorId) -> Result<T, EntryRefusal> {
    refuse("no-such-operator", format!("operator {operator} is not open here"))
}
