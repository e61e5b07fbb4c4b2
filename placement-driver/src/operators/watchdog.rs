//! When a move is given up before its fence.
//!
//! A move that gets no further holds its range, and a share of what two shards can do. It is given up, by name, when one of the two shards has
//! fallen silent, when nothing of it has changed for long, or when it has begun again too often. The source's log decides whether the
//! fence was first (R20); the range is then left alone for longer after each failure ([`crate::state::Failures`]).

use crate::balancer::Picture;
use crate::state::{Operator, Status, Step, Transition, Work};
use evenkeel_protocol::ShardId;
use std::fmt;

/// A source or destination that has not reported for so long makes a move give up, in milliseconds. Changes of leaders take a fifth of that.
pub const SILENT_MS: u64 = 5_000;
/// A move of which neither rows, bytes, the cursor nor the step has changed and the lag has not shrunk for so long is given up, in milliseconds.
pub const NO_PROGRESS_MS: u64 = 30_000;
/// A move all of whose rows have been at its destination for so long without a fence is given up, in milliseconds.
pub const NEVER_FENCED_MS: u64 = 300_000;
/// A move that has begun its copy so many times is given up.
pub const MAX_ATTEMPTS: u64 = 8;

/// A move that its source does not report is given up so long after it has been opened, in milliseconds: a report that was made before that is
/// here by then.
pub const UNKNOWN_MS: u64 = 2_000;

/// Why a move is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stuck {
    /// A shard does not report.
    Silent { shard: ShardId, for_ms: u64 },
    /// The source does not know it: the state was restored from a copy in which it was under way (R30).
    Unknown { shard: ShardId },
    /// Nothing changes.
    NoProgress { step: &'static str, for_ms: u64 },
    /// The copy has begun again too often.
    TooManyAttempts { attempts: u64 },
    /// All rows are there, and the source is never fenced.
    NeverFenced { for_ms: u64 },
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stuck::Silent { shard, for_ms } => {
                write!(f, "shard-silent: shard {shard} has not reported for {for_ms} ms")
            }
            Stuck::Unknown { shard } => write!(f, "unknown-at-source: shard {shard} has no such move"),
            Stuck::NoProgress { step, for_ms } => {
                write!(f, "no-progress: nothing has changed at step {step} for {for_ms} ms")
            }
            Stuck::TooManyAttempts { attempts } => {
                write!(f, "too-many-attempts: the copy has begun {attempts} times and was never completed")
            }
            Stuck::NeverFenced { for_ms } => {
                write!(f, "never-fenced: all rows have been at the destination for {for_ms} ms")
            }
        }
    }
}

/// The transition that gives a move up, if it is stuck. `since_ms` is when this leadership began: before that nobody could be heard.
pub(super) fn give_up(operator: &Operator, picture: &Picture, since_ms: u64, now_ms: u64) -> Option<Transition> {
    let Work::Move { from, to, .. } = operator.work else { return None };
    if operator.status != Status::Running || !matches!(operator.step, Step::Open | Step::Copy) {
        return None;
    }
    let stuck = silent(from, picture, since_ms, now_ms)
        .or_else(|| silent(to, picture, since_ms, now_ms))
        .or_else(|| unknown(operator, from, picture, now_ms))
        .or_else(|| no_further(operator, picture, since_ms, now_ms))?;
    // Why its attempts failed, if anybody knows.
    let trouble = picture.moves.get(&operator.id).and_then(|seen| seen.progress.trouble.clone());
    let because = trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
    Some(Transition::GiveUp { reason: format!("{stuck}{because}") })
}

fn silent(shard: ShardId, picture: &Picture, since_ms: u64, now_ms: u64) -> Option<Stuck> {
    let last_ms = picture.shards.get(&shard).map_or(since_ms, |view| view.last_ms);
    let for_ms = now_ms.saturating_sub(last_ms);
    (for_ms >= SILENT_MS).then_some(Stuck::Silent { shard, for_ms })
}

/// A move that the source opened is open there until it is cancelled or over; whatever a report says, the source's log decides about the
/// cancellation (R20).
fn unknown(operator: &Operator, from: ShardId, picture: &Picture, now_ms: u64) -> Option<Stuck> {
    let view = picture.shards.get(&from)?;
    let since_ms = operator.step_since_ms.max(view.first_ms);
    let known = view.report.operators.iter().any(|o| o.operator == operator.id);
    let opened = operator.step == Step::Copy;
    (opened && !known && since_ms + UNKNOWN_MS <= now_ms.min(view.last_ms)).then_some(Stuck::Unknown { shard: from })
}

fn no_further(operator: &Operator, picture: &Picture, since_ms: u64, now_ms: u64) -> Option<Stuck> {
    let seen = picture.moves.get(&operator.id);
    let attempts = seen.map_or(0, |seen| seen.progress.attempts);
    if attempts > MAX_ATTEMPTS {
        return Some(Stuck::TooManyAttempts { attempts: attempts - 1 });
    }
    let copied_ms = seen.and_then(|seen| seen.copied_ms).unwrap_or(now_ms);
    if copied_ms + NEVER_FENCED_MS <= now_ms {
        return Some(Stuck::NeverFenced { for_ms: now_ms - copied_ms });
    }
    let further_ms = seen.map_or(0, |seen| seen.further_ms).max(operator.step_since_ms).max(since_ms);
    let for_ms = now_ms.saturating_sub(further_ms);
    (for_ms >= NO_PROGRESS_MS).then_some(Stuck::NoProgress { step: operator.step.name(), for_ms })
}
