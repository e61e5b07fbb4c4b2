//! Operators: their steps, their statuses, and the transitions between them.
//!
//! An operator goes through a sequence of [`Step`]s. It changes its step only by a [`Transition`]
//! that is applied from the log, so that the next leader of the placement driver continues at the
//! same step. Everything between two transitions is idempotent and is repeated.
//!
//! [`Transition::sources`] and [`Transition::target`] are the table of legal transitions;
//! [`Status::may_become`] is the table of legal statuses. The requests and proofs of each kind of
//! operator are in [`crate::operators`].

use super::moment::Moment;
use super::work::Work;
use evenkeel_protocol::api::OperatorBody;
use evenkeel_protocol::{Epoch, OperatorId, TableId};
use serde::{Deserialize, Serialize};

/// Steps that an operator's history remembers, at most.
pub const MAX_HISTORY: usize = 16;

/// The step of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Creation, split or merge: one request to the owner. Schema change: decided; every shard
    /// makes it.
    Apply,
    /// Move: the source records the move in its log.
    Open,
    /// Move: the destination copies rows and catches up.
    Copy,
    /// Move: fenced at the source. It can only go forward (R20), without the placement driver
    /// (R23).
    Switch,
    /// Move: adopted and published. The source deletes its copy (R24).
    Purge,
    /// Move: the destination forgets the move.
    Forget,
    /// Move: the source is asked to cancel. Its log decides (R20).
    Cancel,
    /// Move: cancelled at the source. The destination deletes its copy.
    Discard,
    /// Move: the destination declined or is lost. The source takes the range back at a higher epoch
    /// (R23).
    Restore,
    /// Over.
    End,
    /// Schema change: every shard tries it, and holds the tables that it changes.
    Prepare,
}

impl Step {
    /// Every step.
    pub const ALL: [Step; 11] = [
        Step::Apply,
        Step::Open,
        Step::Copy,
        Step::Switch,
        Step::Purge,
        Step::Forget,
        Step::Cancel,
        Step::Discard,
        Step::Restore,
        Step::End,
        Step::Prepare,
    ];

    /// The step with which an operator begins.
    pub fn first_of(work: &Work) -> Step {
        match work {
            Work::Move { .. } => Step::Open,
            Work::SchemaChange { .. } => Step::Prepare,
            Work::CreateTable { .. } | Work::Split { .. } | Work::Merge { .. } => Step::Apply,
        }
    }

    /// Its name in REST and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Step::Apply => "apply",
            Step::Open => "open",
            Step::Copy => "copy",
            Step::Switch => "switch",
            Step::Purge => "purge",
            Step::Forget => "forget",
            Step::Cancel => "cancel",
            Step::Discard => "discard",
            Step::Restore => "restore",
            Step::End => "end",
            Step::Prepare => "prepare",
        }
    }

    /// Whether a move at this step counts against the limits on concurrent moves. A move that is
    /// being cancelled does not: it may wait for a shard that is gone.
    pub fn copies(self) -> bool {
        matches!(self, Step::Open | Step::Copy | Step::Switch)
    }
}

/// The status of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Under way.
    Running,
    /// Being cancelled. The move still goes forward if the fence came first.
    Cancelling,
    /// Done.
    Done,
    /// Cancelled before the fence. Nothing remains of it.
    Cancelled,
    /// Failed. The range is where it was, unless `detail` says otherwise.
    Failed,
    /// Failed because the destination stored other rows than the source sent (R24). The range is
    /// where it was, and an alarm is raised.
    Differs,
}

impl Status {
    /// Its name in REST and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Cancelling => "cancelling",
            Status::Done => "done",
            Status::Cancelled => "cancelled",
            Status::Failed => "failed",
            Status::Differs => "differs",
        }
    }

    /// Whether the operator has ended.
    pub fn is_over(self) -> bool {
        !matches!(self, Status::Running | Status::Cancelling)
    }

    /// Whether `next` may follow: the table of legal statuses.
    pub fn may_become(self, next: Status) -> bool {
        use Status::*;
        match self {
            Running => matches!(next, Running | Cancelling | Cancelled | Done | Failed),
            Cancelling => matches!(next, Cancelling | Running | Cancelled | Failed | Differs),
            Done | Cancelled | Failed | Differs => false,
        }
    }
}

/// A change of an operator's step. Each is proposed only after a shard's answer or report has
/// proved it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transition {
    /// The owner has created, split or merged.
    Applied,
    /// The shard has refused the request for good. Nothing has changed.
    Refused {
        /// Why, in one sentence.
        reason: String,
    },
    /// The source has opened the move.
    Opened,
    /// The source has fenced.
    Fenced,
    /// The destination has adopted: the new route is published with this transition.
    Adopted {
        /// The epoch from here on.
        epoch: Epoch,
        /// How long writes were blocked, in microseconds.
        pause_us: u64,
        /// Rows copied.
        rows: u64,
        /// Bytes copied.
        bytes: u64,
    },
    /// The destination has declined after the fence.
    Declined,
    /// The source has taken the range back.
    TakenBack {
        /// The epoch from here on.
        epoch: Epoch,
    },
    /// The source cannot take the range back, because the destination has adopted it.
    NotTakenBack {
        /// Why, in one sentence.
        reason: String,
    },
    /// The destination refuses the move, or the move makes no progress. It is cancelled and counts
    /// as failed.
    GiveUp {
        /// Why, in one sentence.
        reason: String,
    },
    /// The destination repeatedly stores other rows than the source sends (R24). The move is
    /// cancelled.
    Differs {
        /// The difference, in one sentence.
        detail: String,
    },
    /// The cancellation came after the fence. The move goes forward.
    TooLateToCancel,
    /// The cancellation is in the source's log (R20).
    CancelledAtSource,
    /// The destination has deleted its copy.
    Discarded,
    /// The source has deleted its copy.
    Purged,
    /// The destination has forgotten the move.
    Forgotten,
    /// The range has a later epoch and neither shard knows the operator: it ended after the copy
    /// was taken from which the state was restored (R30).
    Overtaken,
    /// Every shard has prepared the schema change: it is decided with this transition.
    Prepared,
}

impl Transition {
    /// The steps that it may leave.
    pub fn sources(&self) -> &'static [Step] {
        use Step::*;
        match self {
            Transition::Applied => &[Apply],
            Transition::Refused { .. } => &[Apply, Open, Prepare],
            Transition::Opened => &[Open],
            Transition::Fenced => &[Copy],
            // A report may be ahead of the transitions that are applied here.
            Transition::Adopted { .. } => &[Open, Copy, Switch, Cancel],
            Transition::Declined => &[Copy, Switch, Cancel],
            Transition::TakenBack { .. } | Transition::NotTakenBack { .. } => &[Restore],
            Transition::GiveUp { .. } => &[Open, Copy],
            Transition::Differs { .. } => &[Copy],
            Transition::TooLateToCancel | Transition::CancelledAtSource => &[Cancel],
            Transition::Discarded => &[Discard],
            Transition::Purged => &[Purge],
            Transition::Forgotten => &[Forget],
            Transition::Overtaken => &[Switch, Restore],
            Transition::Prepared => &[Prepare],
        }
    }

    /// The step that it enters.
    pub fn target(&self) -> Step {
        match self {
            Transition::Opened => Step::Copy,
            Transition::Prepared => Step::Apply,
            Transition::Fenced | Transition::TooLateToCancel | Transition::NotTakenBack { .. } => Step::Switch,
            Transition::Adopted { .. } => Step::Purge,
            Transition::Declined => Step::Restore,
            Transition::GiveUp { .. } | Transition::Differs { .. } => Step::Cancel,
            Transition::CancelledAtSource => Step::Discard,
            Transition::Purged => Step::Forget,
            Transition::Applied
            | Transition::Refused { .. }
            | Transition::TakenBack { .. }
            | Transition::Discarded
            | Transition::Forgotten
            | Transition::Overtaken => Step::End,
        }
    }

    /// Whether it unlocks the range, so that the next operator may begin. The remaining steps
    /// concern a copy that serves nobody.
    pub fn releases(&self) -> bool {
        matches!(self, Transition::CancelledAtSource | Transition::Adopted { .. })
    }

    /// The status that it leads to from the present one of `operator`.
    pub fn status(&self, operator: &Operator) -> Status {
        match self {
            Transition::Applied | Transition::Forgotten => Status::Done,
            Transition::Refused { .. } | Transition::TakenBack { .. } | Transition::Overtaken => Status::Failed,
            Transition::GiveUp { .. } | Transition::Differs { .. } => Status::Cancelling,
            Transition::Discarded if operator.differs => Status::Differs,
            Transition::TooLateToCancel
            | Transition::Adopted { .. }
            | Transition::Declined
            | Transition::NotTakenBack { .. } => Status::Running,
            Transition::Discarded if operator.given_up => Status::Failed,
            Transition::Discarded => Status::Cancelled,
            Transition::Opened
            | Transition::Fenced
            | Transition::CancelledAtSource
            | Transition::Purged
            | Transition::Prepared => operator.status,
        }
    }
}

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Its number; numbers only grow (R20).
    pub id: OperatorId,
    /// Its work.
    pub work: Work,
    /// The table of its ranges.
    pub table: TableId,
    /// Its step.
    pub step: Step,
    /// Its status.
    pub status: Status,
    /// The reason for its end, or an anomaly.
    pub detail: Option<String>,
    /// Whether it is cancelled because it failed, not because an administrator asked.
    pub given_up: bool,
    /// Whether its destination was declared lost after the fence: the source takes the range back
    /// (R23).
    pub destination_lost: bool,
    /// Whether it failed because the destination stored other rows than the source sent (R24).
    pub differs: bool,
    /// The decision that made it.
    pub decision: Option<u64>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When it began, in milliseconds of the state machine's time.
    pub began_ms: u64,
    /// When it entered its step, in milliseconds of the state machine's time.
    pub step_since_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Rows moved.
    pub rows: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How long writes were blocked by the switch, in microseconds.
    pub pause_us: Option<u64>,
    /// The steps that it has entered, each with the time in milliseconds since the Unix epoch: the
    /// first and the latest, at most [`MAX_HISTORY`].
    pub history: Vec<(u64, Step)>,
}

impl Operator {
    /// A new operator at its first step.
    pub(super) fn new(id: OperatorId, work: Work, table: TableId, decision: Option<u64>, now: Moment) -> Operator {
        let step = Step::first_of(&work);
        Operator {
            id,
            work,
            table,
            step,
            status: Status::Running,
            detail: None,
            given_up: false,
            differs: false,
            destination_lost: false,
            decision,
            created_ms: now.at_ms,
            began_ms: now.time_ms,
            step_since_ms: now.time_ms,
            ended_ms: None,
            rows: 0,
            bytes: 0,
            pause_us: None,
            history: vec![(now.at_ms, step)],
        }
    }

    /// Whether it is a move that can still be cancelled, as far as the placement driver knows
    /// (R20).
    pub fn cancellable(&self) -> bool {
        matches!(self.step, Step::Open | Step::Copy) && self.status == Status::Running
    }

    /// Whether it has ended, or is ending, without success.
    pub fn is_in_vain(&self) -> bool {
        matches!(self.status, Status::Failed | Status::Cancelling | Status::Cancelled | Status::Differs)
    }

    /// Its step as REST shows it; after its end, its status.
    pub fn shown_step(&self) -> &'static str {
        if self.status.is_over() { self.status.name() } else { self.step.name() }
    }

    /// Enters a step.
    pub(super) fn enter(&mut self, step: Step, status: Status, now: Moment) {
        debug_assert!(self.status.may_become(status), "{:?} -> {status:?}", self.status);
        self.step = step;
        self.status = status;
        self.step_since_ms = now.time_ms;
        if step == Step::End {
            self.ended_ms = Some(now.at_ms);
        }
        if self.history.len() >= MAX_HISTORY {
            self.history.remove(1);
        }
        self.history.push((now.at_ms, step));
    }

    /// The form in which REST shows it.
    pub fn body(&self) -> OperatorBody {
        OperatorBody {
            id: self.id,
            kind: self.work.kind(),
            step: self.shown_step().to_string(),
            status: self.status.name().to_string(),
            detail: self.detail.clone(),
            decision: self.decision,
            created_ms: self.created_ms,
            ended_ms: self.ended_ms,
            bytes: self.bytes,
            rows: self.rows,
            pause_us: self.pause_us,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_protocol::{RangeId, ShardId};

    fn every_transition() -> Vec<Transition> {
        let reason = String::new;
        vec![
            Transition::Applied,
            Transition::Refused { reason: reason() },
            Transition::Opened,
            Transition::Fenced,
            Transition::Adopted { epoch: Epoch(2), pause_us: 0, rows: 0, bytes: 0 },
            Transition::Declined,
            Transition::TakenBack { epoch: Epoch(3) },
            Transition::NotTakenBack { reason: reason() },
            Transition::GiveUp { reason: reason() },
            Transition::TooLateToCancel,
            Transition::CancelledAtSource,
            Transition::Discarded,
            Transition::Differs { detail: reason() },
            Transition::Purged,
            Transition::Forgotten,
            Transition::Overtaken,
            Transition::Prepared,
        ]
    }

    fn operator(step: Step, status: Status) -> Operator {
        let work = Work::Move { range: RangeId(1), epoch: Epoch(1), from: ShardId(1), to: ShardId(2) };
        Operator {
            step,
            status,
            ..Operator::new(OperatorId(1), work, TableId(1), None, Moment { at_ms: 0, time_ms: 0 })
        }
    }

    #[test]
    fn every_step_but_the_end_can_be_left_and_the_end_cannot() {
        for step in Step::ALL {
            let leaves = every_transition().iter().any(|t| t.sources().contains(&step));
            assert_eq!(leaves, step != Step::End, "{step:?}");
        }
    }

    /// R20: after the fence only forward. No path leads from `Switch` or later to a cancellation.
    #[test]
    fn nothing_is_cancelled_after_the_fence() {
        let mut reached = vec![Step::Switch];
        let mut at = 0;
        while at < reached.len() {
            for transition in every_transition() {
                if transition.sources().contains(&reached[at]) && !reached.contains(&transition.target()) {
                    reached.push(transition.target());
                }
            }
            at += 1;
        }
        assert!(!reached.contains(&Step::Cancel) && !reached.contains(&Step::Discard), "{reached:?}");
    }

    #[test]
    fn every_transition_keeps_to_the_table_of_statuses() {
        for transition in every_transition() {
            for step in transition.sources() {
                let statuses: &[Status] = match step {
                    Step::Cancel | Step::Discard => &[Status::Cancelling],
                    _ => &[Status::Running],
                };
                for status in statuses {
                    let next = transition.status(&operator(*step, *status));
                    assert!(status.may_become(next), "{transition:?} from {step:?}: {status:?} -> {next:?}");
                    assert_eq!(next.is_over(), transition.target() == Step::End, "{transition:?}");
                }
            }
        }
    }

    #[test]
    fn a_long_history_keeps_its_first_and_its_latest_steps() {
        let mut operator = operator(Step::Open, Status::Running);
        for at in 1..100 {
            operator.enter(Step::Copy, Status::Running, Moment { at_ms: at, time_ms: 0 });
        }
        assert_eq!(operator.history.len(), MAX_HISTORY);
        assert_eq!(operator.history.first(), Some(&(0, Step::Open)));
        assert_eq!(operator.history.last(), Some(&(99, Step::Copy)));
    }
}
