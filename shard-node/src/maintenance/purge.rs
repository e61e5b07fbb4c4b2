//! Requests to delete the source's copy of a range that has moved.

use crate::leader::Leader;
use crate::log_entry::Control;
use crate::state_machine::OutPhase;
use evenkeel_protocol::shard::ControlReply;
use evenkeel_protocol::{Failure, KeyInterval, OperatorId};
use std::sync::Arc;

/// Begins a purge. R24: only a copy that was handed over is deleted.
pub async fn purge(leader: &Arc<Leader>, operator: OperatorId) -> Result<ControlReply, Failure> {
    let state = leader.shared().state();
    let movement = state.move_out(operator);
    match movement.map(|m| m.phase) {
        None => {
            leader.barrier().await?;
            Ok(ControlReply::Done)
        }
        Some(OutPhase::HandedOver) => {
            // An empty piece allows the deletion in the log; the leader of that time carries it out
            // (see `move_driver`).
            let start = movement.map(|m| m.interval.start.clone()).unwrap_or_default();
            let interval = KeyInterval::new(start.clone(), Some(start));
            leader.control(Control::Purge { operator, interval, last: false }).await?;
            Ok(ControlReply::Pending { waiting_for: "the rows to be deleted".into() })
        }
        Some(OutPhase::Purging) => Ok(ControlReply::Pending { waiting_for: "the rows to be deleted".into() }),
        Some(OutPhase::Open | OutPhase::Fenced { .. }) => {
            Ok(ControlReply::Pending { waiting_for: "the destination to say that it has adopted the range".into() })
        }
    }
}
