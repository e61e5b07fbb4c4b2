//! Control entries by what they require of PostgreSQL.

use crate::log_entry::Control;
use crate::state_machine::ShardState;
use evenkeel_protocol::RangeId;

/// The ranges that an entry brings under this shard's ownership with rows or a table that must be
/// stored first.
pub(super) fn hidden_ranges(control: &Control, state: &ShardState) -> Vec<RangeId> {
    match control {
        Control::CreateTable { range, .. } => vec![*range],
        Control::Adopt { operator, .. } => state.move_in(*operator).map(|m| m.range).into_iter().collect(),
        Control::SchemaChange { ranges, .. } => ranges.iter().map(|(_, range)| *range).collect(),
        _ => Vec::new(),
    }
}

/// Whether the entry moves rows, or changes which rows are there.
pub(super) fn moves_rows(control: &Control) -> bool {
    matches!(
        control,
        Control::IngestOpen { .. }
            | Control::IngestChunk { .. }
            | Control::IngestTail { .. }
            | Control::Adopt { .. }
            | Control::Purge { .. }
            | Control::Discard { .. }
            | Control::SchemaChange { .. }
    )
}
