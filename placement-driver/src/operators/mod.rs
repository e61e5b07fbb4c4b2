//! Driving operators: from the replicated state and what shards say to the next request or the next transition.
//!
//! [`Driver`] is synchronous and deterministic; time comes in with every call. It belongs to one leadership of the placement driver's leader and
//! remembers only what may be forgotten: which requests are under way and when to try again. Everything else is in the log, so that a
//! successor goes on from the last transition by sending the same request once more; every request carries the operator's number and is
//! idempotent.
//!
//! A transition is proposed only after a shard's answer or report that proves it, because the shards' logs are the authority
//! (invariant 6). The exception gives a move up: it asks the source, whose log decides (`watchdog`).
//!
//! | step | request | what takes it further |
//! |---|---|---|
//! | apply | `CreateTable`, `Split`, `Merge` to the owner | its answer |
//! | open | `MoveOpen` to the source | its answer |
//! | copy | `IngestOpen` to the destination, which then drives the move by itself | reports: fenced, adopted, differs |
//! | switch | none (R23) | reports: adopted, declined |
//! | purge | `Purge` to the source (R24) | its answer |
//! | forget | `MoveForget` to the destination | its answer |
//! | cancel | `MoveCancel` to the source, whose log decides (R20) | its answer |
//! | discard | `IngestCancel` to the destination | its answer |
//! | restore | none (R23); `TakeBack` to the source if the destination is lost | the source's report: owned again at a higher epoch |

mod reports;
mod requests;
mod restoration;
#[cfg(test)]
mod restoration_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watchdog;

pub use reports::take_members;
pub use restoration::{GRACE_MS, may_number, missing, take_in, unadopted};

use crate::balancer::Picture;
use crate::state::{Command, Operator, State, Step, Transition};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{OperatorId, ShardId};
use std::collections::BTreeMap;

/// The first pause after a failed request, in milliseconds; it doubles up to [`MAX_PAUSE_MS`].
const FIRST_PAUSE_MS: u64 = 50;
/// The longest pause between two tries, in milliseconds.
const MAX_PAUSE_MS: u64 = 2_000;
/// The pause before asking again after "pending", in milliseconds; it grows by half each time, up to [`MAX_PENDING_MS`].
const FIRST_PENDING_MS: u64 = 20;
/// The longest such pause, in milliseconds.
const MAX_PENDING_MS: u64 = 500;
/// A proposal that has not come out of the log with an effect by then is made again, in milliseconds; the pause doubles each time.
const PROPOSE_AGAIN_MS: u64 = 1_000;
/// How often it doubles at most: up to 32 seconds.
const MAX_DOUBLINGS: u32 = 5;
/// An operator that stays at one step for longer counts as stuck, in milliseconds.
pub const STUCK_AFTER_MS: u64 = 30_000;
/// What an ended operator left at a shard is asked to go at most this often, in milliseconds.
const SWEEP_EVERY_MS: u64 = 3_000;
/// A shard that has not spoken for so long since a leadership began is taken for one that is not there, in milliseconds: one that is reports
/// several times a second.
const UNHEARD_MS: u64 = 10_000;
/// The most sweeping requests under way at once.
const MAX_SWEEPS: usize = 8;

/// Which request this is: of two with equal names only one is under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallName {
    /// The operator.
    pub operator: OperatorId,
    /// The step it serves; [`Step::End`] for sweeping up.
    pub step: Step,
    /// To whom it goes.
    pub shard: ShardId,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Todo {
    /// Ask this shard's leader and bring the answer to [`Driver::answered`].
    Call {
        /// Its name.
        name: CallName,
        /// What to ask.
        request: ControlRequest,
    },
    /// Propose this.
    Propose(Command),
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    under_way: bool,
    tries: u32,
    again_ms: u64,
    answered: bool,
}

/// Drives what is under way.
#[derive(Debug, Default)]
pub struct Driver {
    attempts: BTreeMap<CallName, Attempt>,
    /// Transitions learnt from answers, to be proposed, by operator and the step they start from.
    learnt: BTreeMap<(OperatorId, Step), Transition>,
    /// When each was last proposed, and how often before that.
    proposed: BTreeMap<(OperatorId, Step), (u64, u32)>,
    /// Why the latest request of an operator failed, for people.
    troubles: BTreeMap<OperatorId, String>,
    /// When it began, in milliseconds of the state machine's time.
    since_ms: Option<u64>,
}

impl Driver {
    /// What to do now.
    pub fn next(&mut self, state: &State, picture: &Picture, now_ms: u64) -> Vec<Todo> {
        self.forget_old(state);
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        let mut todo = Vec::new();
        for operator in state.running() {
            let at = (operator.id, operator.step);
            let seen = reports::transition(operator, state, picture);
            let proven = seen.or_else(|| self.learnt.get(&at).cloned());
            match proven.or_else(|| watchdog::give_up(operator, picture, since_ms, now_ms)) {
                Some(transition) => self.propose(at, transition, now_ms, &mut todo),
                None => {
                    for (shard, request) in requests::of(operator, state) {
                        let name = CallName { operator: operator.id, step: operator.step, shard };
                        self.call(name, request, now_ms, &mut todo);
                    }
                }
            }
        }
        self.sweep(state, picture, now_ms, &mut todo);
        self.drop_tables(state, picture, now_ms, &mut todo);
        remove_empty_shards(state, picture, since_ms + UNHEARD_MS <= now_ms, &mut todo);
        todo
    }

    /// An answer has come. `Err` says in one sentence why there is none: it may or may not have happened, and is asked again.
    pub fn answered(&mut self, name: CallName, answer: Result<ControlReply, String>, state: &State, now_ms: u64) {
        let Some(attempt) = self.attempts.get_mut(&name) else { return };
        attempt.under_way = false;
        let operator = state.operators.get(&name.operator).filter(|operator| operator.step == name.step);
        match answer {
            Err(trouble) => {
                attempt.tries += 1;
                attempt.again_ms = now_ms + (FIRST_PAUSE_MS << attempt.tries.min(6)).min(MAX_PAUSE_MS) / 2;
                self.troubles.insert(name.operator, trouble);
            }
            Ok(ControlReply::Pending { waiting_for }) => {
                attempt.tries += 1;
                let pause = FIRST_PENDING_MS as f64 * 1.5f64.powi(attempt.tries.min(12) as i32);
                attempt.again_ms = now_ms + (pause as u64).min(MAX_PENDING_MS);
                self.troubles.insert(name.operator, waiting_for);
            }
            Ok(reply) if name.step == Step::End => {
                attempt.answered = true;
                attempt.again_ms = now_ms + SWEEP_EVERY_MS;
                tracing::debug!(operator = %name.operator, shard = %name.shard, ?reply, "swept up");
            }
            Ok(reply) => {
                attempt.answered = true;
                self.troubles.remove(&name.operator);
                if let Some(operator) = operator {
                    self.learn(operator, name, reply);
                }
            }
        }
    }

    /// Why an operator is not getting further, if its latest request failed or is pending.
    pub fn trouble(&self, operator: OperatorId) -> Option<&str> {
        self.troubles.get(&operator).map(String::as_str)
    }

    /// When something is to be tried again that no message will trigger, in milliseconds of the state machine's time.
    pub fn wake_ms(&self) -> Option<u64> {
        self.attempts.values().filter(|attempt| !attempt.under_way && !attempt.answered).map(|a| a.again_ms).min()
    }

    fn learn(&mut self, operator: &Operator, name: CallName, reply: ControlReply) {
        match requests::outcome(operator, name.shard, &reply) {
            Some(transition) => {
                self.learnt.insert((operator.id, operator.step), transition);
            }
            // `Done` to `IngestOpen` ends the asking; reports say the rest.
            None => tracing::trace!(operator = %operator.id, "nothing to propose yet"),
        }
    }

    fn propose(&mut self, at: (OperatorId, Step), transition: Transition, now_ms: u64, todo: &mut Vec<Todo>) {
        let before = self.proposed.get(&at).copied();
        // What the state refuses is refused again; it must not fill the log.
        if before.is_some_and(|(since, times)| since + (PROPOSE_AGAIN_MS << times.min(MAX_DOUBLINGS)) > now_ms) {
            return;
        }
        self.proposed.insert(at, (now_ms, before.map_or(0, |(_, times)| times + 1)));
        todo.push(Todo::Propose(Command::Advance { operator: at.0, from: at.1, transition }));
    }

    fn call(&mut self, name: CallName, request: ControlRequest, now_ms: u64, todo: &mut Vec<Todo>) {
        let attempt = self.attempts.entry(name).or_insert(Attempt {
            under_way: false,
            tries: 0,
            again_ms: now_ms,
            answered: false,
        });
        if attempt.under_way || attempt.answered || attempt.again_ms > now_ms {
            return;
        }
        attempt.under_way = true;
        todo.push(Todo::Call { name, request });
    }

    /// Asks shards to clear away what operators that are over have left in their logs: a request that was overtaken by a cancellation,
    /// or the memory of a move that ended without the regular last step.
    fn sweep(&mut self, state: &State, picture: &Picture, now_ms: u64, todo: &mut Vec<Todo>) {
        if state.restoring {
            return;
        }
        let mut under_way = self.attempts.iter().filter(|(name, a)| name.step == Step::End && a.under_way).count();
        let all_heard = state.shards.iter().all(|(id, shard)| shard.lost || picture.shards.contains_key(id));
        for (shard, view) in &picture.shards {
            for report in &view.report.operators {
                let over = match state.operators.get(&report.operator) {
                    Some(operator) => operator.status.is_over(),
                    None => report.operator < state.next_operator(),
                };
                let forgotten = !state.operators.contains_key(&report.operator);
                let Some(request) = requests::sweeping(report, forgotten).filter(|_| over) else { continue };
                // R20: the source's log decides whether a move is cancelled. Until it has, the range may be fenced, and wait for this.
                let takes_in = matches!(request, ControlRequest::IngestCancel { .. });
                let undecided = reports::has_source(report, picture) || (forgotten && !all_heard);
                if takes_in && undecided {
                    continue;
                }
                let name = CallName { operator: report.operator, step: Step::End, shard: *shard };
                if under_way < MAX_SWEEPS && self.may_sweep(name, now_ms) {
                    under_way += 1;
                    todo.push(Todo::Call { name, request });
                }
            }
        }
    }

    /// Asks shards to drop tables whose creation was given up, and which they have made all the same: the names would stay taken there.
    fn drop_tables(&mut self, state: &State, picture: &Picture, now_ms: u64, todo: &mut Vec<Todo>) {
        if state.restoring || state.given_up.is_empty() {
            return;
        }
        for (shard, view) in &picture.shards {
            for table in view.unknown_tables.iter().map(|table| table.id) {
                let Some(operator) = state.given_up.get(&table) else { continue };
                let name = CallName { operator: *operator, step: Step::End, shard: *shard };
                if self.may_sweep(name, now_ms) {
                    todo.push(Todo::Call { name, request: ControlRequest::DropTable { table } });
                }
            }
        }
    }

    /// Whether what an ended operator left is to be asked to go now; then it is under way.
    fn may_sweep(&mut self, name: CallName, now_ms: u64) -> bool {
        let before = self.attempts.get(&name).copied();
        if before.is_some_and(|a| a.under_way || a.again_ms > now_ms) {
            return false;
        }
        self.attempts.insert(name, Attempt { under_way: true, tries: 0, again_ms: now_ms, answered: false });
        true
    }

    /// Forgets what belongs to steps that are past.
    fn forget_old(&mut self, state: &State) {
        let current = |id: &OperatorId, step: &Step| state.operators.get(id).is_some_and(|o| o.step == *step);
        let reported_late = |a: &Attempt| a.under_way;
        self.attempts
            .retain(|name, a| name.step == Step::End || current(&name.operator, &name.step) || reported_late(a));
        self.learnt.retain(|(id, step), _| current(id, step));
        self.proposed.retain(|(id, step), _| current(id, step));
        self.troubles.retain(|id, _| state.operators.get(id).is_some_and(|o| !o.status.is_over()));
        // Sweeps are few; what has been answered long ago need not be remembered.
        if self.attempts.len() > 4096 {
            self.attempts.retain(|name, a| name.step != Step::End || a.under_way);
        }
    }
}

/// A draining shard that owns nothing any more, by its own report too, is removed. So is one that all had `time` to hear of and nobody has: its
/// addresses may be mistyped. What the state says of its ranges is then all there is, which holds unless the state was restored (R30).
fn remove_empty_shards(state: &State, picture: &Picture, time: bool, todo: &mut Vec<Todo>) {
    for (id, shard) in state.shards.iter().filter(|(_, shard)| shard.draining) {
        let said_so = match picture.shards.get(id) {
            Some(view) => reports::owned(&view.report).next().is_none(),
            None => time && !state.restoring,
        };
        if state.is_empty(*id) && (said_so || deliberate(Bug::RemovedTooSoon)) {
            tracing::info!(shard = %shard.info.id, "drained: removing the shard");
            todo.push(Todo::Propose(Command::RemoveShard(*id)));
        }
    }
}
