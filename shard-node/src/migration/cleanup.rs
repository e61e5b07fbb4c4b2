//! Deletion of rows that must not stay, by logged entries of bounded size (R24): the source's copy
//! after a move, and the destination's rows of a move that was cancelled or declined.

use crate::leader::Leader;
use crate::leader::leadership::EntryOutcome;
use crate::log_entry::Control;
use crate::state_machine::ShardState;
use crate::storage::StoreError;
use evenkeel_protocol::{KeyInterval, OperatorId, TableId};
use std::time::Duration;

/// Rows of one piece. Applying a piece must not delay later entries.
const PIECE_ROWS: u64 = 2_000;
/// Bytes of one piece in PostgreSQL.
const PIECE_BYTES: u64 = 2 << 20;
/// The rest between pieces, as a multiple of the time of the last piece. Cleaning up is never
/// urgent.
const REST: u32 = 3;
/// The shortest rest, in milliseconds.
const LEAST_REST_MS: u64 = 5;

/// The rows to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoomedRows {
    /// A source's copy after the move.
    SourceCopy,
    /// The rows of a move that was cancelled or declined.
    Discarded,
}

impl DoomedRows {
    fn entry(self, operator: OperatorId, interval: KeyInterval, last: bool) -> Control {
        match self {
            DoomedRows::SourceCopy => Control::Purge { operator, interval, last },
            DoomedRows::Discarded => Control::Discard { operator, interval, last },
        }
    }

    fn target(self, state: &ShardState, operator: OperatorId) -> Option<(TableId, KeyInterval)> {
        match self {
            DoomedRows::SourceCopy => state.move_out(operator).map(|m| (m.table, m.interval.clone())),
            DoomedRows::Discarded => state.move_in(operator).map(|m| (m.table, m.interval.clone())),
        }
    }
}

/// Deletes the rows. After any interruption the next leader starts again: deleting rows that are
/// gone has no effect.
pub async fn clean_up(leader: &Leader, operator: OperatorId, rows: DoomedRows) {
    let state = leader.shared().state();
    let Some((table, mut rest)) = rows.target(&state, operator) else { return };
    let Some(schema) = state.table(table).cloned() else { return };
    loop {
        let begun = evenkeel_host::now();
        let piece = async {
            let mut snapshot = leader.shared().snapshots.take().await?;
            let piece = snapshot.extent(&schema, &rest, PIECE_ROWS, PIECE_BYTES).await?;
            leader.shared().snapshots.give_back(snapshot).await;
            Ok::<_, StoreError>(piece)
        };
        let piece = match piece.await {
            Ok(piece) => piece,
            Err(error) => return tracing::warn!(%operator, %error, "cannot read the rows to delete"),
        };
        let (interval, last) = (piece.covered, piece.last);
        if let Some(end) = &interval.end {
            rest.start = end.clone();
        }
        match leader.control(rows.entry(operator, interval, last)).await {
            Ok(EntryOutcome::Effective(_)) => {}
            Ok(other) => return tracing::info!(%operator, ?other, "a clean-up has ended"),
            Err(failure) => return tracing::info!(%operator, %failure, "a clean-up has ended"),
        }
        if last {
            return;
        }
        evenkeel_host::sleep((evenkeel_host::elapsed(begun) * REST).max(Duration::from_millis(LEAST_REST_MS))).await;
    }
}
