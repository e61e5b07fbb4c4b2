//! The switch at the source: block the range, drain its statements, log the fence.
//!
//! The write block stands until the outcome of the fence is known, however long that takes. A fence
//! that is decided but not applied here yet lets the destination acknowledge writes, and a
//! statement that was admitted here would not see them.
//!
//! Each attempt that does not drain in time releases the block, so that waiting statements continue
//! (R22). The next attempt waits longer; after `PATIENT_TRIES` attempts, transactions that delay
//! the fence are ended.

use crate::clock::now_us;
use crate::leader::Leader;
use crate::leader::latches::WriteBlock;
use crate::leader::leadership::EntryOutcome;
use crate::log_entry::Control;
use crate::state_machine::{OutPhase, ShardState};
use evenkeel_protocol::shard::ShardReply;
use evenkeel_protocol::{Failure, OperatorId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long statements in flight may take to end at the first attempt while new ones wait, in
/// milliseconds (R22). It doubles with every attempt.
const BLOCK_MS: u64 = 25;
/// The longest block of an attempt, in milliseconds: the longest pause that an attempt in vain may
/// cause.
const MAX_BLOCK_MS: u64 = 100;
/// How long statements continue undisturbed after an attempt in vain, in milliseconds. It doubles,
/// too.
const PAUSE_MS: u64 = 60;
/// The longest of these pauses, in milliseconds.
const MAX_PAUSE_MS: u64 = 1_000;
/// Attempts after which transactions that delay the fence are ended (40001).
const PATIENT_TRIES: u32 = 5;
/// How long to wait for the outcome of the fence, in milliseconds. The destination asks again, and
/// the block stands.
const OUTCOME_MS: u64 = 5_000;

/// The attempts in vain to fence each open move.
#[derive(Debug, Default)]
pub struct FenceTries(Mutex<HashMap<OperatorId, Tries>>);

#[derive(Debug, Clone, Copy)]
struct Tries {
    in_vain: u32,
    not_before: Instant,
}

impl FenceTries {
    /// The number of attempts in vain, or the time until the next attempt is allowed.
    fn get(&self, operator: OperatorId, now: Instant) -> Result<u32, Duration> {
        let tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match tries.get(&operator) {
            None => Ok(0),
            Some(tries) if tries.not_before <= now => Ok(tries.in_vain),
            Some(tries) => Err(tries.not_before - now),
        }
    }

    /// Counts an attempt in vain, and returns their number. Forgets moves that are not open in
    /// `state`.
    fn count(&self, operator: OperatorId, state: &ShardState, now: Instant) -> u32 {
        let mut tries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tries.retain(|operator, _| state.move_out(*operator).is_some_and(|m| m.phase == OutPhase::Open));
        let of = tries.entry(operator).or_insert(Tries { in_vain: 0, not_before: now });
        of.in_vain += 1;
        of.not_before = now + pause(of.in_vain);
        of.in_vain
    }
}

/// The longest block of the attempt after `in_vain` attempts in vain.
fn block_time(in_vain: u32) -> Duration {
    Duration::from_millis((BLOCK_MS << in_vain.min(10)).min(MAX_BLOCK_MS))
}

/// The pause after `in_vain` attempts in vain.
fn pause(in_vain: u32) -> Duration {
    Duration::from_millis((PAUSE_MS << in_vain.saturating_sub(1).min(10)).min(MAX_PAUSE_MS))
}

fn busy(reason: &str, retry_after: Duration) -> ShardReply {
    ShardReply::Failed(Failure::Busy { reason: reason.to_string(), retry_after_ms: retry_after.as_millis() as u32 })
}

/// Logs the fence of an open move, if the statements in flight on its range end in time.
/// Idempotent.
pub async fn fence(leader: &Arc<Leader>, tries: &FenceTries, operator: OperatorId) -> ShardReply {
    let state = leader.shared().state();
    let Some(movement) = state.move_out(operator) else {
        let reason = format!("operator {operator} is not open here");
        return ShardReply::Failed(Failure::Busy { reason, retry_after_ms: 100 });
    };
    if movement.phase != OutPhase::Open {
        return ShardReply::Done;
    }
    let in_vain = match tries.get(operator, evenkeel_host::tokio_now()) {
        Ok(in_vain) => in_vain,
        Err(left) => return busy("statements on the range were still under way just now", left),
    };
    let held_since_us = now_us();
    let Some(block) = leader.shared().latches.block(movement.range) else {
        return busy("the range is blocked already", Duration::from_millis(20));
    };
    if !block.drained(block_time(in_vain)).await {
        // R22: release the block and try later. Waiting statements continue.
        let latch = block.latch().clone();
        drop(block);
        let in_vain = tries.count(operator, &state, evenkeel_host::tokio_now());
        if in_vain >= PATIENT_TRIES {
            leader.doom_transactions_on(&latch).await;
        }
        return busy("statements on the range are still under way", pause(in_vain));
    }
    let proposed = leader.propose_control(Control::Fence { operator, held_since_us }).await;
    let outcome = match proposed {
        Ok(outcome) => keep_until_known(block, outcome),
        Err(failure) => return ShardReply::Failed(failure),
    };
    match evenkeel_host::timeout(Duration::from_millis(OUTCOME_MS), outcome).await {
        Ok(Ok(EntryOutcome::Effective(_))) => ShardReply::Done,
        Ok(Ok(EntryOutcome::Rejected(refusal))) => {
            ShardReply::Failed(Failure::Busy { reason: refusal.reason, retry_after_ms: 100 })
        }
        Ok(Ok(EntryOutcome::Deposed) | Err(_)) => ShardReply::Failed(Failure::NotLeader { leader: None }),
        Err(_) => ShardReply::Failed(Failure::OutcomeUnknown { reason: "the log takes too long".into() }),
    }
}

/// Keeps the range blocked until the outcome of its fence is known, also when nobody waits for it
/// any more. Then waiting statements are redirected, because the range has left. Or they continue,
/// because the fence was rejected, or because the leadership has ended and the outcome will not be
/// known here.
fn keep_until_known(block: WriteBlock, outcome: oneshot::Receiver<EntryOutcome>) -> oneshot::Receiver<EntryOutcome> {
    let (forward, forwarded) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = outcome.await;
        drop(block);
        if let Ok(outcome) = outcome {
            // The asker may have given up.
            let _ = forward.send(outcome);
        }
    });
    forwarded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::leader::latches::{ChangedKeys, LatchManager};
    use crate::state_machine::ShardState;
    use crate::state_machine::test_support::{schema, shard};
    use evenkeel_protocol::{Epoch, KeyInterval, RangeId, TableId};
    use evenkeel_sql::Touches;
    use futures::FutureExt;
    use std::collections::HashSet;

    const OPERATOR: OperatorId = OperatorId(7);

    fn open() -> ShardState {
        let mut state = ShardState::default();
        state.control(1, &Control::CreateTable { schema: schema(), range: RangeId(1) }).unwrap();
        let to = shard(2);
        let (operator, range) = (OPERATOR, RangeId(1));
        state.control(2, &Control::MoveOpen { operator, range, epoch: Epoch(1), to }).unwrap();
        state
    }

    /// Breaks if the block ends before the fence's outcome is known: the destination may have
    /// adopted the range and acknowledged a write that a statement admitted here would not see
    /// (A5).
    #[tokio::test]
    async fn the_block_outlives_the_request_for_the_fence() {
        let latches: Arc<LatchManager> = Arc::default();
        latches.follow(&open(), &HashSet::new(), ChangedKeys::All);
        let everything = Touches::Intervals(vec![KeyInterval::ALL]);
        let block = latches.block(RangeId(1)).unwrap();
        let (log, outcome) = oneshot::channel();
        let forwarded = keep_until_known(block, outcome);
        // The applier is stalled for longer than the asker waits.
        drop(forwarded);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let admitted = latches.acquire_read(TableId(1), &everything).now_or_never();
        assert!(admitted.is_none(), "the fence may be decided: {admitted:?}");
        log.send(EntryOutcome::Effective(9)).unwrap();
        assert!(latches.acquire_read(TableId(1), &everything).await.is_ok(), "waiting statements continue");
    }

    #[tokio::test]
    async fn a_leadership_that_ends_without_an_outcome_releases_the_block() {
        let latches: Arc<LatchManager> = Arc::default();
        latches.follow(&open(), &HashSet::new(), ChangedKeys::All);
        let (log, outcome) = oneshot::channel();
        let forwarded = keep_until_known(latches.block(RangeId(1)).unwrap(), outcome);
        drop(log);
        assert!(forwarded.await.is_err());
        assert!(latches.block(RangeId(1)).is_some());
    }

    /// Breaks if every attempt is as short as the first, so that statements of 30 ms keep their
    /// range here for ever. Breaks also if attempts follow so closely that statements are blocked
    /// half of the time.
    #[test]
    fn blocks_grow_to_the_promised_pause_and_attempts_become_rare() {
        let blocks: Vec<u64> = (0..5).map(|n| block_time(n).as_millis() as u64).collect();
        assert_eq!(blocks, [25, 50, 100, 100, 100]);
        let pauses: Vec<u64> = (1..8).map(|n| pause(n).as_millis() as u64).collect();
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1_000, 1_000]);
        assert_eq!((block_time(u32::MAX).as_millis(), pause(u32::MAX).as_millis()), (100, 1_000));
    }

    #[test]
    fn attempts_of_finished_moves_are_forgotten() {
        let (tries, mut state, now) = (FenceTries::default(), open(), evenkeel_host::tokio_now());
        assert_eq!((tries.count(OPERATOR, &state, now), tries.count(OPERATOR, &state, now)), (1, 2));
        assert_eq!(tries.get(OPERATOR, now), Err(Duration::from_millis(120)));
        assert_eq!(tries.get(OPERATOR, now + Duration::from_millis(120)), Ok(2));
        state.control(3, &Control::Fence { operator: OPERATOR, held_since_us: 0 }).unwrap();
        tries.count(OperatorId(8), &state, now);
        assert_eq!(tries.get(OPERATOR, now), Ok(0));
    }
}
