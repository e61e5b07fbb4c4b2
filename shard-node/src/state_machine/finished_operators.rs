//! Operators that ended here, and the highest numbers that have come here.
//!
//! A repeated request is answered "done" only if it asks for the work that was done under its
//! number: a placement driver that was restored from a backup gives numbers a second time (R30).

use crate::log_entry::Control;
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::{Epoch, OperatorId, RangeId};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How many finished operators are remembered, so that a repeated request is answered "done".
const REMEMBERED_OPERATORS: usize = 512;

/// What an operator that has run its course here did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishedWork {
    /// It split a range of this epoch; the new pieces have these ids.
    Split {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// The pieces that it made, without the one that kept the range's id.
        pieces: Vec<RangeId>,
    },
    /// It merged two ranges.
    Merge {
        /// The range on the left and its epoch before.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch before.
        right: (RangeId, Epoch),
    },
    /// It moved a range out, or was to.
    MoveOut {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
    },
    /// It moved a range in, which was adopted.
    MoveIn {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
    },
    /// It was cancelled before it was opened here.
    Cancelled,
    /// It should have moved a range in and was declined or cancelled: the range was not adopted,
    /// and never will be under this number.
    Declined {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
    },
}

/// The operators that have run their course here lately.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FinishedOperators(VecDeque<(OperatorId, FinishedWork)>);

impl FinishedOperators {
    pub(super) fn push(&mut self, operator: OperatorId, work: FinishedWork) {
        if self.0.len() == REMEMBERED_OPERATORS {
            self.0.pop_front();
        }
        self.0.push_back((operator, work));
    }

    pub(super) fn get(&self, operator: OperatorId) -> Option<&FinishedWork> {
        // The latest are asked about.
        self.0.iter().rev().find(|(finished, _)| *finished == operator).map(|(_, work)| work)
    }
}

/// The numbers that an entry names, whether it takes effect or not.
pub(super) fn numbers(control: &Control) -> HighestNumbers {
    let mut numbers = HighestNumbers::default();
    match control {
        Control::CreateTable { schema, range } => (numbers.table, numbers.range) = (schema.id, *range),
        Control::DropTable { table } => numbers.table = *table,
        Control::Split { operator, range, at, .. } => {
            numbers.operator = *operator;
            numbers.range = at.iter().map(|(_, id)| *id).fold(*range, RangeId::max);
        }
        Control::Merge { operator, left, right } => {
            (numbers.operator, numbers.range) = (*operator, left.0.max(right.0));
        }
        Control::MoveOpen { operator, range, .. } => (numbers.operator, numbers.range) = (*operator, *range),
        Control::IngestOpen { operator, schema, range, .. } => {
            numbers = HighestNumbers { operator: *operator, range: *range, table: schema.id };
        }
        Control::MoveCancel { operator } | Control::IngestCancel { operator } => numbers.operator = *operator,
        Control::SchemaPrepare { operator, .. } | Control::SchemaAbort { operator } => numbers.operator = *operator,
        Control::SchemaChange { delta, ranges } => {
            numbers.table = delta.relations.iter().map(|table| table.id).max().unwrap_or_default();
            numbers.range = ranges.iter().map(|(_, range)| *range).max().unwrap_or_default();
        }
        // They belong to operators that one of those above has opened here.
        Control::Fence { .. }
        | Control::HandedOver { .. }
        | Control::TakeBack { .. }
        | Control::Purge { .. }
        | Control::IngestAttempt { .. }
        | Control::IngestChunk { .. }
        | Control::IngestTail { .. }
        | Control::Adopt { .. }
        | Control::Decline { .. }
        | Control::Discard { .. }
        | Control::Forget { .. }
        | Control::Checkpoint { .. } => {}
    }
    numbers
}
