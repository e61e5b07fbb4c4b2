//! The switch, at the source: hold, drain, fence.
//!
//! Nothing is admitted to the range from the hold until it is certain what became of the fence, however long that takes: a fence that
//! is decided and not folded here yet lets the destination acknowledge writes, which a statement admitted here would not see.

use crate::checks::now_us;
use crate::entry::Control;
use crate::fold::{OutPhase, ShardState};
use crate::leader::Leader;
use crate::leader::latches::WriteBlock;
use crate::leader::leadership::EntryOutcome;
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Failure, OperatorId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long statements under way may take to end while new ones are held, in milliseconds, at the first try (R22). It doubles with every
/// try: what takes too long for one is given more time by the next.
const HOLD_MS: u64 = 25;
/// The longest hold, in milliseconds: the longest pause that a move may cause.
const MAX_HOLD_MS: u64 = 100;
/// How long statements go on undisturbed after a hold in vain, in milliseconds. It doubles, too.
const PAUSE_MS: u64 = 60;
/// The longest of these pauses, in milliseconds.
const MAX_PAUSE_MS: u64 = 1_000;
/// Tries after which transactions in the way are ended (40001).
const PATIENT_TRIES: u32 = 5;
/// How long the fence's outcome is waited for, in milliseconds; the asker asks again, and the hold stands.
const OUTCOME_MS: u64 = 5_000;

/// How often each open move's fence has been tried in vain.
#[derive(Debug, Default)]
pub struct FenceTries(Mutex<HashMap<OperatorId, Tries>>);

#[derive(Debug, Clone, Copy)]
struct Tries {
    in_vain: u32,
    not_before: Instant,
}

impl FenceTries {
    /// How often it was tried in vain; or for how long it is not to be tried again.
    fn get(&self, operator: OperatorId, now: Instant) -> Result<u32, Duration> {
        let tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match tries.get(&operator) {
            None => Ok(0),
            Some(tries) if tries.not_before <= now => Ok(tries.in_vain),
            Some(tries) => Err(tries.not_before - now),
        }
    }

    /// One more in vain; gives their number. What is no longer open in `state` is forgotten.
    fn count(&self, operator: OperatorId, state: &ShardState, now: Instant) -> u32 {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tries.retain(|operator, _| state.move_out(*operator).is_some_and(|m| m.phase == OutPhase::Open));
        let of = tries.entry(operator).or_insert(Tries { in_vain: 0, not_before: now });
        of.in_vain += 1;
        of.not_before = now + pause(of.in_vain);
        of.in_vain
    }
}

/// The hold of a try after so many in vain.
fn hold_time(in_vain: u32) -> Duration {
    Duration::from_millis((HOLD_MS << in_vain.min(10)).min(MAX_HOLD_MS))
}

/// The pause after so many in vain.
fn pause(in_vain: u32) -> Duration {
    Duration::from_millis((PAUSE_MS << in_vain.saturating_sub(1).min(10)).min(MAX_PAUSE_MS))
}

fn busy(reason: &str, retry_after: Duration) -> ShardReply {
    ShardReply::Failed(Failure::Busy { reason: reason.to_string(), retry_after_ms: retry_after.as_millis() as u32 })
}

/// Logs the fence of an open move, if the statements under way on its range end in time. Idempotent.
pub async fn fence(leader: &Arc<Leader>, tries: &FenceTries, operator: OperatorId) -> ShardReply {
    let state = leader.shared().state();
    let Some(movement) = state.move_out(operator) else {
        let reason = format!("operator {operator} is not open here");
        return ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 100 });
    };
    if movement.phase != OutPhase::Open {
        return ShardReply::Done;
    }
    let in_vain = match tries.get(operator, Instant::now()) {
        Ok(in_vain) => in_vain,
        Err(left) => return busy("statements on the range were still under way just now", left),
    };
    let held_since_us = now_us();
    let Some(hold) = leader.shared().latches.block(movement.range) else {
        return busy("the range is held already", Duration::from_millis(20));
    };
    if !hold.drained(hold_time(in_vain)).await {
        // R22: let go and try later. Statements that were held go on.
        let slot = hold.latch().clone();
        drop(hold);
        let in_vain = tries.count(operator, &state, Instant::now());
        if in_vain >= PATIENT_TRIES {
            leader.doom_transactions_on(&slot).await;
        }
        return busy("statements on the range are still under way", pause(in_vain));
    }
    let proposed = leader.propose_control(Control::Fence { operator, held_since_us }).await;
    let outcome = match proposed {
        Ok(outcome) => keep_until_known(hold, outcome),
        Err(failure) => return ShardReply::Failed(failure),
    };
    match tokio::time::timeout(Duration::from_millis(OUTCOME_MS), outcome).await {
        Ok(Ok(EntryOutcome::Effective(_))) => ShardReply::Done,
        Ok(Ok(EntryOutcome::Rejected(refusal))) => {
            ShardReply::Failed(Failure::Busy { reason: refusal.reason, retry_after_ms: 100 })
        }
        Ok(Ok(EntryOutcome::Deposed) | Err(_)) => ShardReply::Failed(Failure::NotLeader { leader: None }),
        Err(_) => ShardReply::Failed(Failure::OutcomeUnknown { reason: "the log takes too long".into() }),
    }
}

/// Holds the range until it is known what became of its fence, whoever waits for it here. What was held is then redirected, because
/// the range has gone; or goes on, because the fence is void, or because nobody will learn it here: then the leadership is over.
fn keep_until_known(hold: WriteBlock, outcome: oneshot::Receiver<EntryOutcome>) -> oneshot::Receiver<EntryOutcome> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = outcome.await;
        drop(hold);
        if let Ok(outcome) = outcome {
            // Whoever has asked may have given up.
            let _ = tell.send(outcome);
        }
    });
    told
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fold::ShardState;
    use crate::leader::latches::{ChangedKeys, LatchManager};
    use evenkeel_protocol::routing::ShardInfo;
    use evenkeel_protocol::schema::ColumnSchema;
    use evenkeel_protocol::{Epoch, KeyInterval, RangeId, ShardId, TableId, TableSchema};
    use evenkeel_sql::Touches;
    use futures::FutureExt;
    use std::collections::HashSet;

    const OPERATOR: OperatorId = OperatorId(7);

    fn open() -> ShardState {
        let schema = TableSchema {
            id: TableId(1),
            name: "t".into(),
            columns: vec![ColumnSchema { name: "id".into(), type_name: "bigint".into(), type_oid: 20 }],
            key: vec![0],
            create_sql: String::new(),
        };
        let mut state = ShardState::default();
        state.control(1, &Control::CreateTable { schema, range: RangeId(1) }).unwrap();
        let to = ShardInfo { id: ShardId(2), replicas: Default::default() };
        let (operator, range) = (OPERATOR, RangeId(1));
        state.control(2, &Control::MoveOpen { operator, range, epoch: Epoch(1), to }).unwrap();
        state
    }

    /// Breaks if the hold ends before the fence's outcome is known: the destination may have adopted the range and acknowledged a write
    /// that a statement admitted here would not see (A5).
    #[tokio::test]
    async fn the_hold_outlives_whoever_asked_for_the_fence() {
        let admission: Arc<LatchManager> = Arc::default();
        admission.follow(&open(), &HashSet::new(), ChangedKeys::All);
        let everything = Touches::Intervals(vec![KeyInterval::ALL]);
        let hold = admission.block(RangeId(1)).unwrap();
        let (log, outcome) = oneshot::channel();
        let told = keep_until_known(hold, outcome);
        // The applier is stalled for longer than anybody waits.
        drop(told);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let admitted = admission.acquire_read(TableId(1), &everything).now_or_never();
        assert!(admitted.is_none(), "the fence may be decided: {admitted:?}");
        log.send(EntryOutcome::Effective(9)).unwrap();
        assert!(admission.acquire_read(TableId(1), &everything).await.is_ok(), "what waits goes on");
    }

    #[tokio::test]
    async fn a_leadership_that_ends_without_an_answer_lets_go() {
        let admission: Arc<LatchManager> = Arc::default();
        admission.follow(&open(), &HashSet::new(), ChangedKeys::All);
        let (log, outcome) = oneshot::channel();
        let told = keep_until_known(admission.block(RangeId(1)).unwrap(), outcome);
        drop(log);
        assert!(told.await.is_err());
        assert!(admission.block(RangeId(1)).is_some());
    }

    /// Breaks if every try is as short as the first, so that a statement of 30 ms keeps its range here for ever; or if tries follow so
    /// closely that statements are held half of the time.
    #[test]
    fn holds_grow_to_the_pause_that_is_promised_and_tries_grow_rare() {
        let holds: Vec<u64> = (0..5).map(|n| hold_time(n).as_millis() as u64).collect();
        assert_eq!(holds, [25, 50, 100, 100, 100]);
        let pauses: Vec<u64> = (1..8).map(|n| pause(n).as_millis() as u64).collect();
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1_000, 1_000]);
        assert_eq!((hold_time(u32::MAX).as_millis(), pause(u32::MAX).as_millis()), (100, 1_000));
    }

    #[test]
    fn tries_of_moves_that_are_over_are_forgotten() {
        let (tries, mut state, now) = (FenceTries::default(), open(), Instant::now());
        assert_eq!((tries.count(OPERATOR, &state, now), tries.count(OPERATOR, &state, now)), (1, 2));
        assert_eq!(tries.get(OPERATOR, now), Err(Duration::from_millis(120)));
        assert_eq!(tries.get(OPERATOR, now + Duration::from_millis(120)), Ok(2));
        state.control(3, &Control::Fence { operator: OPERATOR, held_since_us: 0 }).unwrap();
        tries.count(OperatorId(8), &state, now);
        assert_eq!(tries.get(OPERATOR, now), Ok(0));
    }
}
