//! The numbers that are given next. They only grow, so that no number is given twice (R20).

use super::found::{SKIPPED_NUMBERS, SKIPPED_TABLES};
use evenkeel_protocol::report::HighestNumbers;
use evenkeel_protocol::{OperatorId, RangeId, TableId};
use serde::{Deserialize, Serialize};

/// The next number of each kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Numbers {
    table: TableId,
    range: RangeId,
    operator: OperatorId,
    decision: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        Numbers { table: TableId(1), range: RangeId(1), operator: OperatorId(1), decision: 1 }
    }
}

impl Numbers {
    /// Gives the number of a table.
    pub(super) fn give_table(&mut self) -> TableId {
        let next = TableId(self.table.0 + 1);
        std::mem::replace(&mut self.table, next)
    }

    /// Gives the number of a range.
    pub(super) fn give_range(&mut self) -> RangeId {
        let next = RangeId(self.range.0 + 1);
        std::mem::replace(&mut self.range, next)
    }

    /// Gives the number of an operator.
    pub(super) fn give_operator(&mut self) -> OperatorId {
        let next = OperatorId(self.operator.0 + 1);
        std::mem::replace(&mut self.operator, next)
    }

    /// The number that the next decision gets, should any of it be possible.
    pub(super) fn next_decision(&self) -> u64 {
        self.decision
    }

    /// Gives the number of a decision.
    pub(super) fn give_decision(&mut self) -> u64 {
        self.decision += 1;
        self.decision - 1
    }

    /// The number that the next operator gets.
    pub(super) fn next_operator(&self) -> OperatorId {
        self.operator
    }

    /// The number that the next range gets.
    pub(super) fn next_range(&self) -> RangeId {
        self.range
    }

    /// Whether any of these numbers was never given here.
    pub(super) fn has_not_given(&self, seen: HighestNumbers) -> bool {
        seen.operator >= self.operator || seen.range >= self.range || seen.table >= self.table
    }

    /// Continues above the `seen` numbers. If `skip`, a gap is left for numbers that nobody could
    /// report.
    pub(super) fn raise_above(&mut self, seen: HighestNumbers, skip: bool) {
        let (skipped, skipped_tables) = if skip { (SKIPPED_NUMBERS, SKIPPED_TABLES) } else { (0, 0) };
        let after = |next: u64, highest: u64| next.max(highest.saturating_add(1)).saturating_add(skipped);
        self.operator = OperatorId(after(self.operator.0, seen.operator.0));
        self.range = RangeId(after(self.range.0, seen.range.0));
        let table = self.table.0.max(seen.table.0.saturating_add(1));
        self.table = TableId(table.saturating_add(skipped_tables));
    }
}
