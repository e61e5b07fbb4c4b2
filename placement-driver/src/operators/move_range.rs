//! Move of a range from one shard to another.
//!
//! Steps of a move that succeeds: open, copy, switch, purge, forget, end. The destination drives
//! the move from `copy` on; the placement driver follows its reports. The source's fence is the
//! point of no return (R20): before it a move can be cancelled (cancel, discard, end), after it the
//! move goes forward or the source takes the range back (restore, end; R23). The route is published
//! at the adoption, and the range is unlocked then.
//!
//! Influence: the load counts at the destination as long as that shard reports, and after the fence
//! in any case (`load_moved_to`). The move takes a slot at both shards until it is adopted
//! ([`slots_of`]).
//!
//! Deadline: a move before its fence is given up, with the reason, when one of the two shards has
//! fallen silent, when it makes no progress, or when it has begun again too often (`give_up`).
//! Such a move holds its range, and slots of two shards. The source's log decides whether the fence
//! was first (R20). The range then rests, longer after each failure ([`crate::state::Failures`]).

use super::answer::{Verdict, because};
use super::reported_routes::owned_here;
use crate::load::{LoadModel, ShardView};
use crate::state::{Operator, PlacementState, Status, Step, Transition, Work};
use evenkeel_protocol::report::{OperatorPhase, RangeReport, RangeState};
use evenkeel_protocol::routing::Route;
use evenkeel_protocol::shard::ControlRequest;
use evenkeel_protocol::{Epoch, RangeId, ShardId};
use std::fmt;

/// Silence of the source or the destination after which a move is given up, in milliseconds. A
/// change of leaders takes a fifth of that.
pub const SILENT_MS: u64 = 5_000;
/// Time without progress after which a move is given up, in milliseconds: rows, bytes, cursor and
/// step are the same, and the lag has not become smaller.
pub const NO_PROGRESS_MS: u64 = 30_000;
/// Time from the last copied chunk after which a move without a fence is given up, in milliseconds.
pub const NEVER_FENCED_MS: u64 = 300_000;
/// Attempts to copy after which a move is given up.
pub const MAX_ATTEMPTS: u64 = 8;
/// Time from the opening after which a move that its source does not report is given up, in
/// milliseconds. Reports from before the opening have arrived by then.
pub const UNKNOWN_MS: u64 = 2_000;

/// The request of the present step.
pub(super) fn request(operator: &Operator, state: &PlacementState) -> Option<(ShardId, ControlRequest)> {
    let Work::Move { range, epoch, from, to } = operator.work else { return None };
    let id = operator.id;
    let (source, destination) = (state.shards.get(&from)?, state.shards.get(&to)?);
    match operator.step {
        Step::Open => {
            let to = destination.info.clone();
            Some((from, ControlRequest::MoveOpen { operator: id, range, epoch, to }))
        }
        Step::Copy => {
            let (known, table) = (state.ranges.get(&range)?, state.tables.get(&operator.table)?);
            let request = ControlRequest::IngestOpen {
                operator: id,
                schema: (*table.schema).clone(),
                range,
                interval: known.route.interval.clone(),
                epoch: known.route.epoch,
                from: source.info.clone(),
            };
            Some((to, request))
        }
        Step::Purge => Some((from, ControlRequest::Purge { operator: id })),
        Step::Forget => Some((to, ControlRequest::MoveForget { operator: id })),
        Step::Cancel => Some((from, ControlRequest::MoveCancel { operator: id, range })),
        Step::Discard => Some((to, ControlRequest::IngestCancel { operator: id })),
        Step::Restore if operator.destination_lost => Some((from, ControlRequest::TakeBack { operator: id })),
        Step::Apply | Step::Prepare | Step::Switch | Step::Restore | Step::End => None,
    }
}

/// The transition that a shard's answer proves.
pub(super) fn answer_proves(operator: &Operator, shard: ShardId, verdict: Verdict<'_>) -> Option<Transition> {
    let because = |reason: &str| because(shard, reason);
    Some(match (operator.step, verdict) {
        (Step::Open, Verdict::Done) => Transition::Opened,
        (Step::Open, Verdict::Refused { reason, .. }) => Transition::Refused { reason: because(reason) },
        // The destination drives from here on; its reports prove the rest.
        (Step::Copy, Verdict::Done) => return None,
        (Step::Copy, Verdict::Refused { reason, .. }) => Transition::GiveUp { reason: because(reason) },
        // R20: the fence came first. The move goes forward.
        (Step::Cancel, Verdict::Refused { code: "already-fenced", .. }) => Transition::TooLateToCancel,
        // Cancelled, or unknown to the source. Should its opening still be on the way, `leftovers`
        // cancels it.
        (Step::Cancel, _) => Transition::CancelledAtSource,
        (Step::Discard, _) => Transition::Discarded,
        // A refusal means that the copy is gone already.
        (Step::Purge, _) => Transition::Purged,
        (Step::Forget, _) => Transition::Forgotten,
        // R23: the destination has adopted the range. If the source has taken it back, its reports
        // say so.
        (Step::Restore, Verdict::Refused { reason, .. }) => Transition::NotTakenBack { reason: because(reason) },
        (Step::Apply | Step::Prepare | Step::Switch | Step::Restore | Step::End, _) => return None,
    })
}

/// The transition that the reports of the two shards prove.
pub(super) fn reports_prove(operator: &Operator, state: &PlacementState, load: &LoadModel) -> Option<Transition> {
    let Work::Move { range, epoch, from, to } = &operator.work else { return None };
    // The number alone proves nothing: a placement driver that was restored from an old copy may
    // have given it twice (R30).
    let reported = |shard: &ShardId| {
        let report = &load.shards.get(shard)?.report;
        report.operators.iter().find(|o| o.operator == operator.id && o.range == *range)
    };
    let phase = |shard: &ShardId| reported(shard).map(|o| &o.phase);
    let (source, destination) = (phase(from), phase(to));
    let differs = || reported(to)?.progress.as_ref()?.differs.clone();
    if matches!(operator.step, Step::Open | Step::Copy | Step::Switch | Step::Cancel)
        && let Some(OperatorPhase::Adopted { epoch, pause_us, rows, bytes }) = destination
    {
        return Some(Transition::Adopted { epoch: *epoch, pause_us: *pause_us, rows: *rows, bytes: *bytes });
    }
    match operator.step {
        Step::Copy | Step::Switch if destination == Some(&OperatorPhase::Discarding) => Some(Transition::Declined),
        // R24: a difference is found before the fence, so the range stays where it is.
        Step::Copy if source == Some(&OperatorPhase::Open) && differs().is_some() => {
            differs().map(|detail| Transition::Differs { detail })
        }
        Step::Copy if matches!(source, Some(OperatorPhase::Fenced | OperatorPhase::HandedOver)) => {
            Some(Transition::Fenced)
        }
        // R23: with the proof of a decline the source takes the range back at a higher epoch. Its
        // report is enough, even if the destination is silent.
        Step::Restore | Step::Switch | Step::Copy => {
            let back = taken_back(state, load, from, *range).filter(|found| found > epoch);
            match (back, operator.step) {
                (Some(epoch), Step::Restore) => Some(Transition::TakenBack { epoch }),
                (Some(_), _) => Some(Transition::Declined),
                // Before the fence the deadline cancels a move that its source does not know.
                (None, Step::Copy) => None,
                (None, _) => overtaken(operator, state, load),
            }
        }
        _ => None,
    }
}

/// Whether a move has ended without a transition in this state, because the state was restored from
/// a copy in which the move was under way (R30). Then both shards have reported and do not know the
/// move, and some of its keys have an owner at a later epoch. While a move is under way only its
/// own destination, or its source after taking the range back, has such an epoch; and the source
/// knows a move from its opening on.
fn overtaken(operator: &Operator, state: &PlacementState, load: &LoadModel) -> Option<Transition> {
    let Work::Move { range, epoch, from, to } = &operator.work else { return None };
    let knows = |view: &ShardView| view.report.operators.iter().any(|o| o.operator == operator.id && o.range == *range);
    let lost = |id: &ShardId| state.shards.get(id).is_some_and(|shard| shard.lost);
    let without = |id: &ShardId| lost(id) || load.shards.get(id).is_some_and(|view| !knows(view));
    if !without(from) || !without(to) {
        return None;
    }
    let of_its_keys = |route: &Route| match state.ranges.get(range) {
        Some(known) => route.table == operator.table && route.interval.overlaps(&known.route.interval),
        None => false,
    };
    let later = |route: Route| route.epoch > *epoch && of_its_keys(&route);
    // The range may have ended, or its later route may be known already.
    let gone_on = state.ranges.get(range).is_none_or(|known| known.route.epoch > *epoch);
    (gone_on || load.shards.values().flat_map(owned_here).any(later)).then_some(Transition::Overtaken)
}

/// The epoch at which the source owns the whole range again. If the range has other keys, it has
/// changed since the copy was taken from which this state was restored (R30), and this proves
/// nothing.
fn taken_back(state: &PlacementState, load: &LoadModel, from: &ShardId, range: RangeId) -> Option<Epoch> {
    let report = &load.shards.get(from)?.report;
    let known = &state.ranges.get(&range)?.route.interval;
    let back = |r: &&RangeReport| r.id == range && r.state == RangeState::Owned && r.interval == *known;
    report.ranges.iter().find(back).map(|r| r.epoch)
}

/// The shard at which the load of the moving range counts, if that is not its owner. Before the
/// fence that is the destination while it reports: the range is served by its source, and stays
/// there if the move is given up.
pub(super) fn load_moved_to(operator: &Operator, reports: impl Fn(&ShardId) -> bool) -> Option<ShardId> {
    let Work::Move { to, .. } = operator.work else { return None };
    match operator.step {
        Step::Switch => Some(to),
        Step::Open | Step::Copy => reports(&to).then_some(to),
        _ => None,
    }
}

/// The range, the source and the destination of a move that takes a slot at both shards. `None` for
/// other operators.
pub fn slots_of(operator: &Operator) -> Option<(RangeId, ShardId, ShardId)> {
    match operator.work {
        Work::Move { range, from, to, .. } if operator.step.copies() => Some((range, from, to)),
        _ => None,
    }
}

/// Why a move is given up. The text begins with a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stuck {
    /// A shard is silent.
    Silent { shard: ShardId, for_ms: u64 },
    /// The source does not know the move: the state was restored from a copy in which it was under
    /// way (R30).
    Unknown { shard: ShardId },
    /// The move makes no progress.
    NoProgress { step: &'static str, for_ms: u64 },
    /// The copy has begun again too often.
    TooManyAttempts { attempts: u64 },
    /// All rows are copied, and the source does not fence.
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

/// The transition that gives a move up after its deadline. `since_ms` is the beginning of this
/// leadership, before which no report could arrive.
pub(super) fn give_up(operator: &Operator, load: &LoadModel, since_ms: u64, now_ms: u64) -> Option<Transition> {
    let Work::Move { from, to, .. } = operator.work else { return None };
    if operator.status != Status::Running || !matches!(operator.step, Step::Open | Step::Copy) {
        return None;
    }
    let stuck = silent(from, load, since_ms, now_ms)
        .or_else(|| silent(to, load, since_ms, now_ms))
        .or_else(|| unknown(operator, from, load, now_ms))
        .or_else(|| no_further(operator, load, since_ms, now_ms))?;
    // Why its attempts failed, if the destination has reported that.
    let trouble = load.moves.get(&operator.id).and_then(|seen| seen.progress.trouble.clone());
    let because = trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
    Some(Transition::GiveUp { reason: format!("{stuck}{because}") })
}

fn silent(shard: ShardId, load: &LoadModel, since_ms: u64, now_ms: u64) -> Option<Stuck> {
    let last_ms = load.shards.get(&shard).map_or(since_ms, |view| view.last_ms);
    let for_ms = now_ms.saturating_sub(last_ms);
    (for_ms >= SILENT_MS).then_some(Stuck::Silent { shard, for_ms })
}

/// A move that its source does not report, though it was opened there. The source's log decides
/// about the cancellation in any case (R20).
fn unknown(operator: &Operator, from: ShardId, load: &LoadModel, now_ms: u64) -> Option<Stuck> {
    let view = load.shards.get(&from)?;
    let since_ms = operator.step_since_ms.max(view.first_ms);
    let known = view.report.operators.iter().any(|o| o.operator == operator.id);
    let opened = operator.step == Step::Copy;
    (opened && !known && since_ms + UNKNOWN_MS <= now_ms.min(view.last_ms)).then_some(Stuck::Unknown { shard: from })
}

fn no_further(operator: &Operator, load: &LoadModel, since_ms: u64, now_ms: u64) -> Option<Stuck> {
    let seen = load.moves.get(&operator.id);
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
