//! The pieces of a scan that are still to be read.

use crate::core::ClientCore;
use crate::deliver::{Detour, no_route};
use crate::error::ClientError;
use crate::retry::Attempts;
use crate::routing::{self, Piece};
use evenkeel_protocol::{KeyInterval, TableId};
use evenkeel_sql::Touches;
use std::collections::VecDeque;

/// The keys of a scan and its direction.
#[derive(Clone, Copy)]
pub(crate) struct ScanKeys<'a> {
    pub touches: &'a Touches,
    pub table: Option<TableId>,
    /// Whether the scan reads from the last range to the first.
    pub descending: bool,
}

/// Cuts an interval into pieces by the current routes, and puts them in front of `pending`.
pub(crate) async fn cut(
    core: &ClientCore,
    keys: ScanKeys<'_>,
    interval: &KeyInterval,
    pending: &mut VecDeque<Piece>,
    attempts: &mut Attempts,
) -> Result<(), ClientError> {
    loop {
        let routes = core.routes();
        let pieces = keys.table.and_then(|table| routing::pieces(keys.touches, interval, table, &routes));
        drop(routes);
        if let Some(pieces) = pieces {
            // The piece to be read first is put in front last.
            let put_in_front = |piece| pending.push_front(piece);
            match keys.descending {
                true => pieces.into_iter().for_each(put_in_front),
                false => pieces.into_iter().rev().for_each(put_in_front),
            }
            return Ok(());
        }
        if let Detour::GiveUp(error) = no_route(core, attempts).await {
            return Err(error);
        }
    }
}
