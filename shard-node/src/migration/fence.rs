//! The switch, at the source: hold, drain, fence.

use crate::checks::now_us;
use crate::entry::Control;
use crate::fold::OutPhase;
use crate::leader::Leader;
use crate::leader::reign::Outcome;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Failure, OperatorId};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long statements under way may take to end while new ones are held, in milliseconds (R22).
const HOLD_MS: u64 = 25;
/// Tries after which transactions that wait for their clients are ended (40001).
const PATIENT_TRIES: u32 = 8;

/// How often each move's fence has been tried in vain.
#[derive(Debug, Default)]
pub struct FenceTries(Mutex<HashMap<OperatorId, u32>>);

impl FenceTries {
    fn count(&self, operator: OperatorId) -> u32 {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = tries.entry(operator).or_default();
        *count += 1;
        *count
    }
}

/// Logs the fence of an open move, if the statements under way on its range end in time. Idempotent.
pub async fn fence(leader: &Leader, tries: &FenceTries, operator: OperatorId) -> ShardReply {
    let state = leader.shared().state();
    let Some(movement) = state.move_out(operator) else {
        let reason = format!("operator {operator} is not open here");
        return ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 100 });
    };
    if movement.phase != OutPhase::Open {
        return ShardReply::Done;
    }
    let range = movement.range;
    let held_since_us = now_us();
    let Some(hold) = leader.shared().admission.hold(range) else {
        return ShardReply::Failed(Failure::Busy { reason: "the range is held already".into(), retry_after_ms: 20 });
    };
    if !hold.drained(Duration::from_millis(HOLD_MS)).await {
        // R22: let go and try later. Statements that were held go on.
        drop(hold);
        if tries.count(operator) >= PATIENT_TRIES {
            leader.doom_transactions_on(range).await;
        }
        let reason = "statements on the range are still under way".to_string();
        return ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 50 });
    }
    // The hold stands until the fence's outcome is known: what was held is then redirected, because the range has gone.
    match leader.control(Control::Fence { operator, held_since_us }).await {
        Ok(Outcome::Effective(_)) => ShardReply::Done,
        Ok(Outcome::Refused(refusal)) => {
            ShardReply::Failed(Failure::Busy { reason: refusal.reason, retry_after_ms: 100 })
        }
        Ok(Outcome::Deposed) => ShardReply::Failed(Failure::NotLeader { leader: None }),
        Err(failure) => ShardReply::Failed(failure),
    }
}
