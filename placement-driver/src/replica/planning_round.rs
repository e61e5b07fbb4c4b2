//! One round of the leader: the load model is updated, operator controller and balancer decide, and
//! their decisions are proposed or sent to shards.

use super::disk_repair::DiskRepair;
use super::handles::ReplicaHandles;
use super::leader_state::LeaderState;
use super::message::LoopMessage;
use super::proposals::Proposer;
use crate::balancer::{SizeQuestion, explanation};
use crate::config::BalancerConfig;
use crate::metrics;
use crate::operators::schema_change::lacked;
use crate::operators::{Todo, missing, take_in, take_members};
use crate::state::{Command, NewDecision, PlacementState};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use std::sync::Arc;
use std::time::Duration;

/// The time limit for one request to one replica of a shard, in milliseconds.
const CALL_MS: u64 = 2_000;
/// The minimum time between two proposals that are no operator's step, in milliseconds.
const MAINTENANCE_MS: u64 = 500;
/// The number of times that this time doubles at most, while such proposals are rejected: up to 32
/// seconds.
const MAX_DOUBLINGS: u32 = 6;

/// What a round has decided.
struct RoundPlan {
    todo: Vec<Todo>,
    decisions: Vec<NewDecision>,
    questions: Vec<SizeQuestion>,
    /// A shard that knows later versions of the schema than the state has, and the state's version.
    schema: Option<(ShardId, u64)>,
}

/// Runs one round, if this replica leads.
pub(super) fn run_round(handles: &Arc<ReplicaHandles>, proposer: &mut Proposer, repair: &mut DiskRepair) {
    let now_ms = proposer.time_ms();
    let (plan, term) = {
        let mut leading = handles.leading();
        let Some(leading) = leading.as_mut() else { return };
        let applied = handles.applied();
        let plan = plan(leading, &applied.state, &handles.config.balancer, now_ms, proposer.clock_ms());
        (plan, leading.term)
    };
    repair.check(&handles.log, term, proposer.clock_ms());
    propose_decisions(handles, proposer, plan.decisions, now_ms);
    for question in plan.questions {
        let (range, epoch) = (question.range, question.epoch);
        let message = move |answer| LoopMessage::SplitKeys(range, epoch, answer);
        ask_shard(handles, question.shard, question.request(), message);
    }
    if let Some((shard, version)) = plan.schema {
        ask_shard(handles, shard, ControlRequest::SchemaAfter { version }, LoopMessage::SchemaFound);
    }
    for todo in plan.todo {
        match todo {
            Todo::Call { name, request } => {
                ask_shard(handles, name.shard, request, move |answer| LoopMessage::Answered(name, answer));
            }
            Todo::Propose(command) => propose_command(handles, proposer, command),
        }
    }
}

/// Lets the deciding modules decide.
fn plan(
    leading: &mut LeaderState,
    state: &PlacementState,
    config: &BalancerConfig,
    now_ms: u64,
    clock_ms: u64,
) -> RoundPlan {
    leading.round = (now_ms, evenkeel_host::now());
    leading.balancer.load.set_clock(Some(clock_ms), now_ms);
    leading.balancer.update(state, config, now_ms);
    let todo = plan_operators(leading, state, now_ms);
    let decisions = plan_balancing(leading, state, config, now_ms);
    let missing = missing(state, &leading.balancer.load);
    if missing != leading.missing {
        missing.iter().for_each(|what| tracing::warn!(what, "shards report something that the state lacks"));
        leading.missing = missing;
    }
    leading.clocks_off = metrics::clocks(&leading.balancer.load, &leading.clocks_off);
    metrics::round(state, &leading.balancer.imbalance, &leading.balancer.load, leading.missing.len(), now_ms);
    let questions = leading.balancer.size_questions(state, config, now_ms);
    let schema = lacked_schema(leading, state, now_ms);
    RoundPlan { todo, decisions, questions, schema }
}

/// The shard to ask for schema changes that the state lacks (R30), unless one was asked a short
/// while ago.
fn lacked_schema(leading: &mut LeaderState, state: &PlacementState, now_ms: u64) -> Option<(ShardId, u64)> {
    let lacked = lacked(state, &leading.balancer.load)?;
    let waits = leading.schema_asked_ms.is_some_and(|asked_ms| asked_ms + MAINTENANCE_MS > now_ms);
    (!waits).then(|| {
        leading.schema_asked_ms = Some(now_ms);
        lacked
    })
}

/// The pause between two proposals that are no operator's step, in milliseconds. A rejected
/// proposal is rejected again as long as the state does not change: it must not fill the log.
fn pause_ms(leading: &LeaderState) -> u64 {
    MAINTENANCE_MS << leading.rejected_in_a_row.min(MAX_DOUBLINGS)
}

/// What the operator controller and the takeover of unknown tables, ranges and members want.
fn plan_operators(leading: &mut LeaderState, state: &PlacementState, now_ms: u64) -> Vec<Todo> {
    let mut todo = leading.controller.next(state, &leading.balancer.load, now_ms);
    todo.extend(take_in(state, &leading.balancer.load, now_ms).map(Todo::Propose));
    todo.extend(take_members(state, &leading.balancer.load).map(Todo::Propose));
    // A proposal that is no operator's step follows from the state alone. It is proposed once, and
    // not again before it is applied.
    let maintenance = |todo: &Todo| !matches!(todo, Todo::Propose(Command::Advance { .. }) | Todo::Call { .. });
    let too_early = now_ms < leading.maintained_ms + pause_ms(leading);
    if !leading.pending.is_empty() || too_early {
        todo.retain(|todo| !maintenance(todo));
    } else if todo.iter().any(maintenance) {
        leading.maintained_ms = now_ms;
    }
    todo
}

/// What the balancer wants.
fn plan_balancing(
    leading: &mut LeaderState,
    state: &PlacementState,
    config: &BalancerConfig,
    now_ms: u64,
) -> Vec<NewDecision> {
    let waited = leading.rejected_in_a_row == 0 || now_ms >= leading.maintained_ms + pause_ms(leading);
    if !leading.pending.is_empty() || !waited {
        return Vec::new();
    }
    let plan = leading.balancer.plan(state, config, now_ms);
    if plan.exhausted {
        leading.balancer.rebalancing.rest();
    }
    leading.rejections = explanation(&leading.rejections, &plan);
    plan.decisions
}

fn propose_decisions(handles: &ReplicaHandles, proposer: &mut Proposer, decisions: Vec<NewDecision>, now_ms: u64) {
    for decision in decisions {
        tracing::info!(why = %decision.why, "decided");
        if let Ok(nonce) = proposer.propose(Command::Decide(Box::new(decision)), None)
            && let Some(leading) = handles.leading().as_mut()
        {
            leading.maintained_ms = if leading.rejected_in_a_row > 0 { now_ms } else { leading.maintained_ms };
            leading.pending.push(nonce);
        }
    }
}

fn propose_command(handles: &ReplicaHandles, proposer: &mut Proposer, command: Command) {
    let step = matches!(command, Command::Advance { .. });
    match (proposer.propose(command, None), handles.leading().as_mut()) {
        (Ok(nonce), Some(leading)) if !step => leading.pending.push(nonce),
        (Err(failure), _) => tracing::debug!(%failure, "not proposed"),
        _ => {}
    }
}

/// Asks a shard's leader. The answer comes as a message.
fn ask_shard(
    handles: &Arc<ReplicaHandles>,
    id: ShardId,
    request: ControlRequest,
    message: impl FnOnce(Result<ControlReply, String>) -> LoopMessage + Send + 'static,
) {
    let handles = handles.clone();
    let shard = handles.applied().state.shards.get(&id).map(|shard| shard.info.clone());
    let leader = handles.view().leaders.get(id);
    tokio::spawn(async move {
        let answer = match shard {
            Some(shard) => handles.calls.ask(&shard, leader, &request, Duration::from_millis(CALL_MS)).await,
            None => Err(format!("there is no shard {id}")),
        };
        // The event loop is gone only when the replica shuts down.
        handles.messages.send(message(answer)).await.ok();
    });
}
