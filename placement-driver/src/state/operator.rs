//! Operators: what is being done to a range, how far it is, and which steps may follow which.
//!
//! An operator is a line of [`Step`]s. Steps change only by [`Transition`]s that come out of the log, so that a placement driver that
//! takes over knows what its predecessor was doing; everything between two transitions is idempotent and is simply done again.
//! [`Transition::sources`] and [`Transition::target`] are the whole table of what may follow what; [`Status::may_become`] is the one of statuses.

use super::Moment;
use evenkeel_protocol::api::{OperatorBody, OperatorKind};
use evenkeel_protocol::{Epoch, Key, OperatorId, RangeId, ShardId, TableId};
use serde::{Deserialize, Serialize};

/// The most steps an operator's history remembers.
pub const MAX_HISTORY: usize = 16;

/// What an operator does, with everything its requests need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Creates a table whose first range is all of its keys.
    CreateTable {
        /// The table.
        table: TableId,
        /// Its first range.
        range: RangeId,
        /// The shard that gets it.
        shard: ShardId,
    },
    /// Splits a range. The left piece keeps its id.
    Split {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// The shard that owns it.
        shard: ShardId,
        /// The first keys of the further pieces, growing strictly, and their ids.
        at: Vec<(Key, RangeId)>,
    },
    /// Merges two neighbours. The left one stays.
    Merge {
        /// The range on the left and its epoch before.
        left: (RangeId, Epoch),
        /// The range on the right and its epoch before.
        right: (RangeId, Epoch),
        /// The shard that owns both.
        shard: ShardId,
    },
    /// Moves a range.
    Move {
        /// The range.
        range: RangeId,
        /// Its epoch before.
        epoch: Epoch,
        /// From this shard.
        from: ShardId,
        /// To this shard.
        to: ShardId,
    },
}

impl Work {
    /// The existing ranges it locks.
    pub fn ranges(&self) -> Vec<RangeId> {
        match self {
            Work::CreateTable { .. } => Vec::new(),
            Work::Split { range, .. } | Work::Move { range, .. } => vec![*range],
            Work::Merge { left, right, .. } => vec![left.0, right.0],
        }
    }

    /// The existing ranges it locks, and the epochs that they had when it began.
    pub fn epochs(&self) -> Vec<(RangeId, Epoch)> {
        match self {
            Work::CreateTable { .. } => Vec::new(),
            Work::Split { range, epoch, .. } | Work::Move { range, epoch, .. } => vec![(*range, *epoch)],
            Work::Merge { left, right, .. } => vec![*left, *right],
        }
    }

    /// The step it begins with.
    pub fn first_step(&self) -> Step {
        if matches!(self, Work::Move { .. }) { Step::Open } else { Step::Apply }
    }

    /// Whether a shard takes part in it.
    pub fn involves(&self, id: ShardId) -> bool {
        match self {
            Work::CreateTable { shard, .. } | Work::Split { shard, .. } | Work::Merge { shard, .. } => *shard == id,
            Work::Move { from, to, .. } => *from == id || *to == id,
        }
    }

    /// The form in which REST shows it.
    pub fn kind(&self) -> OperatorKind {
        match self {
            Work::CreateTable { table, shard, .. } => OperatorKind::CreateTable { table: *table, shard: *shard },
            Work::Split { range, shard, at, .. } => {
                let into = std::iter::once(*range).chain(at.iter().map(|(_, id)| *id)).collect();
                OperatorKind::Split { range: *range, shard: *shard, into }
            }
            Work::Merge { left, right, shard } => OperatorKind::Merge { left: left.0, right: right.0, shard: *shard },
            Work::Move { range, from, to, .. } => OperatorKind::Move { range: *range, from: *from, to: *to },
        }
    }
}

/// Where an operator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Creating, splitting, merging: one request to the owner.
    Apply,
    /// Moving: the move is being opened in the source's log.
    Open,
    /// Moving: the destination takes rows in and catches up.
    Copy,
    /// Moving: fenced at the source; it can only go forward (R20), and does so without the placement driver (R23).
    Switch,
    /// Moving: adopted and published; the source deletes its copy (R24).
    Purge,
    /// Moving: the destination forgets the move.
    Forget,
    /// Moving: the source is asked to cancel; its log decides (R20).
    Cancel,
    /// Moving: cancelled at the source; the destination deletes what came in.
    Discard,
    /// Moving: the destination declined, or is lost; the source takes the range back at a higher epoch (R23).
    Restore,
    /// Over.
    End,
}

impl Step {
    /// Every step.
    pub const ALL: [Step; 10] = [
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
    ];

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
        }
    }

    /// Whether rows are still being copied: such moves count against the limits on concurrent moves. One that is being cancelled may wait
    /// for a shard that is gone.
    pub fn copies(self) -> bool {
        matches!(self, Step::Open | Step::Copy | Step::Switch)
    }
}

/// How an operator stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Going on.
    Running,
    /// Being cancelled, unless the fence came first.
    Cancelling,
    /// Done.
    Done,
    /// Cancelled before the fence, without trace.
    Cancelled,
    /// Could not be done; the range is where it was, or where it went if `detail` says so.
    Failed,
    /// What the destination stored differed from what the source sent: the range is where it was, an alarm is raised (R24).
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

    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        !matches!(self, Status::Running | Status::Cancelling)
    }

    /// The table of legal changes.
    pub fn may_become(self, next: Status) -> bool {
        use Status::*;
        match self {
            Running => matches!(next, Running | Cancelling | Cancelled | Done | Failed),
            Cancelling => matches!(next, Cancelling | Running | Cancelled | Failed | Differs),
            Done | Cancelled | Failed | Differs => false,
        }
    }
}

/// What takes an operator from one step to another; each was seen in a shard's answer or report before it was proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transition {
    /// The owner has created, split or merged.
    Applied,
    /// The shard will never do it, and nothing has happened.
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
        /// How long writes waited, in microseconds.
        pause_us: u64,
        /// Rows that came in.
        rows: u64,
        /// Bytes that came in.
        bytes: u64,
    },
    /// The destination declined after the fence.
    Declined,
    /// The source has taken the range back.
    TakenBack {
        /// The epoch from here on.
        epoch: Epoch,
    },
    /// The source cannot take the range back: the destination has adopted it, lost or not.
    NotTakenBack {
        /// Why, in one sentence.
        reason: String,
    },
    /// The destination cannot take it in, or it gets no further: the move is to be cancelled, and has failed.
    GiveUp {
        /// Why, in one sentence.
        reason: String,
    },
    /// What the destination stores differs from what the source sends, again and again: the move is to be cancelled (R24).
    Differs {
        /// What was found, in one sentence.
        detail: String,
    },
    /// A cancellation came after the fence: the move goes forward.
    TooLateToCancel,
    /// The cancellation is in the source's log (R20).
    CancelledAtSource,
    /// The destination has dropped what came in.
    Discarded,
    /// The source has deleted its copy.
    Purged,
    /// The destination has forgotten the move.
    Forgotten,
    /// Its range has gone on without it, and neither shard knows it any more: the state was restored from a copy that was taken while it was
    /// under way (R30).
    Overtaken,
}

impl Transition {
    /// The steps it may be taken from.
    pub fn sources(&self) -> &'static [Step] {
        use Step::*;
        match self {
            Transition::Applied => &[Apply],
            Transition::Refused { .. } => &[Apply, Open],
            Transition::Opened => &[Open],
            Transition::Fenced => &[Copy],
            // A report can be the first to tell that the move is further than this machine knows.
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
        }
    }

    /// The step it leads to.
    pub fn target(&self) -> Step {
        match self {
            Transition::Opened => Step::Copy,
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

    /// Whether the range is where it is to be from here on, so that the next operator may begin on it: what is left to do concerns a copy that
    /// nobody is served from.
    pub fn releases(&self) -> bool {
        matches!(self, Transition::CancelledAtSource | Transition::Adopted { .. })
    }

    /// The status it leads to, from `operator`'s present one.
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
            Transition::Opened | Transition::Fenced | Transition::CancelledAtSource | Transition::Purged => {
                operator.status
            }
        }
    }
}

/// One operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Its number; numbers only grow (R20).
    pub id: OperatorId,
    /// What it does.
    pub work: Work,
    /// The table it works on.
    pub table: TableId,
    /// Where it is.
    pub step: Step,
    /// How it stands.
    pub status: Status,
    /// Why it ended as it did, or what is odd.
    pub detail: Option<String>,
    /// Whether it is being cancelled because it cannot be done, not because someone asked.
    pub given_up: bool,
    /// Whether its destination was declared lost for good after the fence: the source is asked to take the range back (R23).
    pub destination_lost: bool,
    /// Whether that is because what the destination stored differed from what the source sent.
    pub differs: bool,
    /// The decision that made it.
    pub decision: Option<u64>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When it began, in milliseconds of [`State::time_ms`](super::State::time_ms).
    pub began_ms: u64,
    /// When it entered its step, in milliseconds of [`State::time_ms`](super::State::time_ms).
    pub step_since_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Rows moved.
    pub rows: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How long writes waited at the switch, in microseconds.
    pub pause_us: Option<u64>,
    /// The steps it has entered and when; the first and the latest, at most [`MAX_HISTORY`].
    pub history: Vec<(u64, Step)>,
}

impl Operator {
    /// A new one.
    pub(super) fn new(id: OperatorId, work: Work, table: TableId, decision: Option<u64>, now: Moment) -> Operator {
        let step = work.first_step();
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

    /// Whether a move can still be cancelled, as far as is known here.
    pub fn cancellable(&self) -> bool {
        matches!(self.step, Step::Open | Step::Copy) && self.status == Status::Running
    }

    /// Whether it ends, or has ended, without having done what it was for.
    pub fn is_in_vain(&self) -> bool {
        matches!(self.status, Status::Failed | Status::Cancelling | Status::Cancelled | Status::Differs)
    }

    /// Where it is, in the words that REST uses: once it is over, how it ended.
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
