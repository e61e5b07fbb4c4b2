//! Deleting rows that must not stay, by logged, bounded entries (R24): what a source left behind, and what had come in of a
//! move that came to nothing.

use crate::entry::Control;
use crate::fold::ShardState;
use crate::leader::Leader;
use crate::leader::leadership::EntryOutcome;
use crate::store::StoreError;
use evenkeel_protocol::{KeyInterval, OperatorId, TableId};
use std::time::{Duration, Instant};

/// Rows of one piece, and bytes of what they take in PostgreSQL: applying it must not hold up what comes behind it.
const PIECE_ROWS: u64 = 2_000;
const PIECE_BYTES: u64 = 2 << 20;
/// Between pieces it rests for so many times what the last one took, and at least so many milliseconds: cleaning up is never urgent.
const REST: u32 = 3;
const LEAST_REST_MS: u64 = 5;

/// Which rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A source's copy after the move.
    Left,
    /// What came in of a move that came to nothing.
    Discarded,
}

impl What {
    fn entry(self, operator: OperatorId, interval: KeyInterval, last: bool) -> Control {
        match self {
            What::Left => Control::Purge { operator, interval, last },
            What::Discarded => Control::Discard { operator, interval, last },
        }
    }

    fn target(self, state: &ShardState, operator: OperatorId) -> Option<(TableId, KeyInterval)> {
        match self {
            What::Left => state.move_out(operator).map(|m| (m.table, m.interval.clone())),
            What::Discarded => state.move_in(operator).map(|m| (m.table, m.interval.clone())),
        }
    }
}

/// Deletes the rows. Whatever stops it, the next leader starts again: deleting what is gone does nothing.
pub async fn clean_up(leader: &Leader, operator: OperatorId, what: What) {
    let state = leader.shared().state();
    let Some((table, mut rest)) = what.target(&state, operator) else { return };
    let Some(schema) = state.table(table).cloned() else { return };
    loop {
        let begun = Instant::now();
        let piece = async {
            let mut snapshot = leader.shared().snapshots.take().await?;
            let piece = snapshot.extent(&schema, &rest, PIECE_ROWS, PIECE_BYTES).await?;
            leader.shared().snapshots.give_back(snapshot).await;
            Ok::<_, StoreError>(piece)
        };
        let piece = match piece.await {
            Ok(piece) => piece,
            Err(error) => return tracing::warn!(%operator, %error, "cannot look for rows to delete"),
        };
        let (interval, last) = (piece.covered, piece.last);
        if let Some(end) = &interval.end {
            rest.start = end.clone();
        }
        match leader.control(what.entry(operator, interval, last)).await {
            Ok(EntryOutcome::Effective(_)) => {}
            Ok(other) => return tracing::info!(%operator, ?other, "a clean-up ends"),
            Err(failure) => return tracing::info!(%operator, %failure, "a clean-up ends"),
        }
        if last {
            return;
        }
        tokio::time::sleep((begun.elapsed() * REST).max(Duration::from_millis(LEAST_REST_MS))).await;
    }
}
