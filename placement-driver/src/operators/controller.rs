//! The operator controller: what to ask, what to propose, and when to repeat it.

use super::call::{CallName, Todo};
use super::schema_change::{self, Answered};
use super::{drain, kinds, leftovers};
use crate::load::LoadModel;
use crate::state::{Command, Operator, PlacementState, Step, Transition};
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{OperatorId, ShardId};
use std::collections::BTreeMap;

/// The first pause after a failed request, in milliseconds. It doubles up to [`MAX_PAUSE_MS`].
const FIRST_PAUSE_MS: u64 = 50;
/// The longest pause after a failed request, in milliseconds.
pub(super) const MAX_PAUSE_MS: u64 = 2_000;
/// The first pause after the answer "pending", in milliseconds. It grows by half each time, up to
/// [`MAX_PENDING_MS`].
const FIRST_PENDING_MS: u64 = 20;
/// The longest pause after the answer "pending", in milliseconds.
const MAX_PENDING_MS: u64 = 500;
/// The pause before a proposal without effect is repeated, in milliseconds. It doubles each time.
const PROPOSE_AGAIN_MS: u64 = 1_000;
/// How often that pause doubles, at most: up to 32 seconds.
const MAX_DOUBLINGS: u32 = 5;
/// An operator at one step for longer than this counts as stuck, in milliseconds.
pub const STUCK_AFTER_MS: u64 = 30_000;
/// The pause between two requests that delete the same leftovers, in milliseconds.
const SWEEP_EVERY_MS: u64 = 3_000;
/// Requests for deleting leftovers under way at once, at most.
const MAX_SWEEPS: usize = 8;
/// Attempts that are remembered before answered requests about leftovers are forgotten.
const MAX_ATTEMPTS: usize = 4096;

/// Stands for the delivery of schema changes in the name of a request: it belongs to no operator.
const DELIVERY: OperatorId = OperatorId(0);

#[derive(Debug, Clone, Copy)]
struct Attempt {
    under_way: bool,
    tries: u32,
    again_ms: u64,
    answered: bool,
}

/// The operator controller of one leadership.
#[derive(Debug, Default)]
pub struct OperatorController {
    attempts: BTreeMap<CallName, Attempt>,
    /// Transitions that answers have proved and that are not applied yet, by operator and the step
    /// that they leave.
    learnt: BTreeMap<(OperatorId, Step), Transition>,
    /// When each transition was last proposed, and how often before.
    proposed: BTreeMap<(OperatorId, Step), (u64, u32)>,
    /// Why the latest request of an operator failed, for people.
    troubles: BTreeMap<OperatorId, String>,
    /// The versions of the schema that shards have by their answers.
    schema_versions: Answered,
    /// The version of the schema that each shard was last given.
    delivering: BTreeMap<ShardId, u64>,
    /// When this leadership began, in milliseconds of the state machine's time.
    since_ms: Option<u64>,
}

impl OperatorController {
    /// The requests to send and the commands to propose now.
    pub fn next(&mut self, state: &PlacementState, load: &LoadModel, now_ms: u64) -> Vec<Todo> {
        self.forget_old(state);
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        let mut todo = Vec::new();
        for operator in state.running() {
            let at = (operator.id, operator.step);
            let seen = kinds::reports_prove(operator, state, load);
            let proven = seen.or_else(|| self.learnt.get(&at).cloned());
            let proven = proven.or_else(|| self.schema_proves(operator, state, load, now_ms));
            match proven.or_else(|| kinds::deadline(operator, load, since_ms, now_ms)) {
                Some(transition) => self.propose(at, transition, now_ms, &mut todo),
                None => {
                    let mut requests = kinds::requests(operator, state);
                    requests.extend(schema_change::requests(operator, state, load, since_ms, now_ms));
                    for (shard, request) in requests {
                        let name = CallName { operator: operator.id, step: operator.step, shard };
                        self.call(name, request, now_ms, &mut todo);
                    }
                }
            }
        }
        self.deliver_schema(state, load, now_ms, &mut todo);
        self.sweep(state, load, now_ms, &mut todo);
        todo.extend(drain::removals(state, load, since_ms, now_ms).into_iter().map(Todo::Propose));
        todo
    }

    /// Takes in an answer. `Err` says in one sentence why there is none: the request may have been
    /// carried out, and is repeated.
    pub fn answered(
        &mut self,
        name: CallName,
        answer: Result<ControlReply, String>,
        state: &PlacementState,
        now_ms: u64,
    ) {
        let Some(attempt) = self.attempts.get_mut(&name) else { return };
        attempt.under_way = false;
        // What keeps a delivery is shown with the operator that it belongs to.
        let shown = match (name.operator, state.schema_operator()) {
            (DELIVERY, Some(operator)) => operator.id,
            (id, _) => id,
        };
        let operator = state.operators.get(&name.operator).filter(|operator| operator.step == name.step);
        match answer {
            Err(trouble) => {
                attempt.tries += 1;
                attempt.again_ms = now_ms + (FIRST_PAUSE_MS << attempt.tries.min(6)).min(MAX_PAUSE_MS) / 2;
                self.troubles.insert(shown, trouble);
            }
            Ok(ControlReply::Pending { waiting_for }) => {
                attempt.tries += 1;
                let pause = FIRST_PENDING_MS as f64 * 1.5f64.powi(attempt.tries.min(12) as i32);
                attempt.again_ms = now_ms + (pause as u64).min(MAX_PENDING_MS);
                self.troubles.insert(shown, waiting_for);
            }
            Ok(reply) if name.step == Step::End => {
                attempt.answered = true;
                attempt.again_ms = now_ms + SWEEP_EVERY_MS;
                tracing::debug!(operator = %name.operator, shard = %name.shard, ?reply, "leftovers deleted");
            }
            Ok(reply) if name.operator == DELIVERY => {
                attempt.answered = true;
                self.delivered(name.shard, &reply, state, now_ms);
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

    /// Why an operator makes no progress, if its latest request failed or is pending.
    pub fn trouble(&self, operator: OperatorId) -> Option<&str> {
        self.troubles.get(&operator).map(String::as_str)
    }

    /// When the next request is due that no message triggers, in milliseconds of the state
    /// machine's time.
    pub fn wake_ms(&self) -> Option<u64> {
        self.attempts.values().filter(|attempt| !attempt.under_way && !attempt.answered).map(|a| a.again_ms).min()
    }

    /// Remembers the transition that an answer proves.
    fn learn(&mut self, operator: &Operator, name: CallName, reply: ControlReply) {
        match kinds::answer_proves(operator, name.shard, &reply) {
            Some(transition) => {
                self.learnt.insert((operator.id, operator.step), transition);
            }
            // `Done` to `IngestOpen` ends the request; reports prove the rest.
            None => tracing::trace!(operator = %operator.id, "nothing to propose yet"),
        }
    }

    /// Proposes a transition, unless it was proposed a short while ago.
    fn propose(&mut self, at: (OperatorId, Step), transition: Transition, now_ms: u64, todo: &mut Vec<Todo>) {
        let before = self.proposed.get(&at).copied();
        // The state would reject it again, and the log must not fill with it.
        if before.is_some_and(|(since, times)| since + (PROPOSE_AGAIN_MS << times.min(MAX_DOUBLINGS)) > now_ms) {
            return;
        }
        self.proposed.insert(at, (now_ms, before.map_or(0, |(_, times)| times + 1)));
        todo.push(Todo::Propose(Command::Advance { operator: at.0, from: at.1, transition }));
    }

    /// Sends a request, unless it is under way, answered, or not due.
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

    /// The transition of a schema change that all shards together prove.
    fn schema_proves(
        &self,
        operator: &Operator,
        state: &PlacementState,
        load: &LoadModel,
        now_ms: u64,
    ) -> Option<Transition> {
        let since_ms = self.since_ms.unwrap_or(now_ms);
        let requests = schema_change::requests(operator, state, load, since_ms, now_ms);
        let name = |shard| CallName { operator: operator.id, step: operator.step, shard };
        let prepared = |shard| self.attempts.get(&name(shard)).is_some_and(|attempt| attempt.answered);
        if !requests.is_empty() && requests.iter().all(|(shard, _)| prepared(*shard)) {
            return Some(Transition::Prepared);
        }
        schema_change::versions_prove(operator, state, load, &self.schema_versions, since_ms, now_ms).or_else(|| {
            let trouble = self.trouble(operator.id);
            schema_change::deadline(operator, (state, load), trouble, since_ms, now_ms)
        })
    }

    /// Gives each shard the next version of the schema that it lacks.
    fn deliver_schema(&mut self, state: &PlacementState, load: &LoadModel, now_ms: u64, todo: &mut Vec<Todo>) {
        for (shard, version, request) in schema_change::deliveries(state, load, &self.schema_versions) {
            let name = CallName { operator: DELIVERY, step: Step::Apply, shard };
            let waits = self.attempts.get(&name).is_some_and(|a| a.under_way || (!a.answered && a.again_ms > now_ms));
            if !waits {
                let tries = self.attempts.get(&name).filter(|a| !a.answered).map_or(0, |a| a.tries);
                self.attempts.insert(name, Attempt { under_way: true, tries, again_ms: now_ms, answered: false });
                self.delivering.insert(shard, version);
                todo.push(Todo::Call { name, request });
            }
        }
    }

    /// Takes in the answer to a delivery. A refusal is repeated: the change is decided.
    fn delivered(&mut self, shard: ShardId, reply: &ControlReply, state: &PlacementState, now_ms: u64) {
        let name = CallName { operator: DELIVERY, step: Step::Apply, shard };
        let Some(version) = self.delivering.get(&shard).copied() else { return };
        if *reply == ControlReply::Done {
            self.schema_versions.insert(shard, version);
            return;
        }
        if let Some(attempt) = self.attempts.get_mut(&name) {
            (attempt.answered, attempt.tries) = (false, attempt.tries + 1);
            attempt.again_ms = now_ms + MAX_PAUSE_MS;
        }
        let trouble = match reply {
            ControlReply::Refused { reason, .. } => format!("shard {shard}: {reason}"),
            other => format!("shard {shard} gave another answer: {other:?}"),
        };
        tracing::error!(%shard, version, trouble, "a shard does not make a decided schema change");
        if let Some(operator) = state.schema_operator() {
            self.troubles.insert(operator.id, trouble);
        }
    }

    /// Asks shards to delete what operators that have ended left there.
    fn sweep(&mut self, state: &PlacementState, load: &LoadModel, now_ms: u64, todo: &mut Vec<Todo>) {
        let mut under_way = self.attempts.iter().filter(|(name, a)| name.step == Step::End && a.under_way).count();
        for (name, request) in leftovers::of_operators(state, load) {
            if under_way < MAX_SWEEPS && self.may_sweep(name, now_ms) {
                under_way += 1;
                todo.push(Todo::Call { name, request });
            }
        }
        for (name, request) in leftovers::of_tables(state, load).into_iter().chain(leftovers::of_schemas(state, load)) {
            if self.may_sweep(name, now_ms) {
                todo.push(Todo::Call { name, request });
            }
        }
    }

    /// Whether a request about leftovers is due. It counts as under way then.
    fn may_sweep(&mut self, name: CallName, now_ms: u64) -> bool {
        let before = self.attempts.get(&name).copied();
        if before.is_some_and(|a| a.under_way || a.again_ms > now_ms) {
            return false;
        }
        self.attempts.insert(name, Attempt { under_way: true, tries: 0, again_ms: now_ms, answered: false });
        true
    }

    /// Forgets requests and transitions of past steps.
    fn forget_old(&mut self, state: &PlacementState) {
        let current = |id: &OperatorId, step: &Step| state.operators.get(id).is_some_and(|o| o.step == *step);
        let reported_late = |a: &Attempt| a.under_way;
        self.attempts.retain(|name, a| {
            name.step == Step::End
                || name.operator == DELIVERY
                || current(&name.operator, &name.step)
                || reported_late(a)
        });
        self.schema_versions.retain(|shard, _| state.shards.contains_key(shard));
        self.learnt.retain(|(id, step), _| current(id, step));
        self.proposed.retain(|(id, step), _| current(id, step));
        self.troubles.retain(|id, _| state.operators.get(id).is_some_and(|o| !o.status.is_over()));
        if self.attempts.len() > MAX_ATTEMPTS {
            self.attempts.retain(|name, a| name.step != Step::End || a.under_way);
        }
    }
}
