//! Change of the schema, on every shard (R34).
//!
//! Steps: prepare, apply, end. First every shard tries the change in a transaction that it rolls
//! back, and from then on holds the tables that the change touches, so that what succeeded once
//! will succeed again. When all have, the change is decided, with the transition to the second
//! step. Then each shard makes it, and it is published. A refusal, a cancellation by an
//! administrator or the deadline before the decision ends the operator; shards that still hold
//! tables are then told to release them (`leftovers`).
//!
//! **Delivery.** Shards make the versions of the schema one after the other. Whatever version a
//! shard reports, it is given the next one (`deliveries`): so a shard that joins, or was away, is
//! brought up to date, whether or not an operator is under way.
//!
//! Every registered shard takes part, except one that was declared lost, or that does not report
//! and owns nothing: its addresses may be mistyped. A decided change does not wait for a shard that
//! has not reported for [`ABSENT_MS`]; it gets the change when it returns.
//!
//! Influence: none; while it is under way its tables neither split nor move. Deadline: a change
//! that is not prepared after [`PREPARE_MS`] is given up, and at once if a shard that owns ranges
//! does not report: its tables must not be held at the others meanwhile.

use super::answer::because;
use crate::load::LoadModel;
use crate::state::{Operator, PlacementState, SchemaPlan, Step, Transition};
use evenkeel_protocol::ShardId;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long the shards may take to prepare a change, in milliseconds: the trial may build an index.
/// Its tables are held from when the first of them has.
pub const PREPARE_MS: u64 = 120_000;
/// A shard that has not reported for this long holds up no decided change, and no other is begun,
/// in milliseconds.
pub const ABSENT_MS: u64 = 10_000;

/// The versions that shards have by their own answers, where no report has shown it yet.
pub(super) type Answered = BTreeMap<ShardId, u64>;

/// The requests of the first step: to every shard that takes part. None as long as another operator
/// works on a range of a table that the change touches.
pub(super) fn requests(
    operator: &Operator,
    state: &PlacementState,
    load: &LoadModel,
    since_ms: u64,
    now_ms: u64,
) -> Vec<(ShardId, ControlRequest)> {
    let Some(plan) = operator.work.schema_plan().filter(|_| operator.step == Step::Prepare) else {
        return Vec::new();
    };
    let touched = plan.touched();
    if state.ranges.values().any(|range| range.operator.is_some() && touched.contains(&range.route.table)) {
        return Vec::new();
    }
    let request = || ControlRequest::PrepareSchema { operator: operator.id, delta: plan.delta.clone() };
    taking_part(state, load, since_ms, now_ms).map(|shard| (shard, request())).collect()
}

/// The shards that take part.
fn taking_part<'a>(
    state: &'a PlacementState,
    load: &'a LoadModel,
    since_ms: u64,
    now_ms: u64,
) -> impl Iterator<Item = ShardId> + 'a {
    let owns = |id: &ShardId| state.ranges.values().any(|range| range.route.shard == *id);
    let absent = move |id: &ShardId| is_absent(*id, load, since_ms, now_ms);
    let shards = state.shards.iter().filter(move |(id, shard)| !shard.lost && (owns(id) || !absent(id)));
    shards.map(|(id, _)| *id)
}

/// The transition that an answer to the first step proves by itself.
pub(super) fn answer_proves(operator: &Operator, shard: ShardId, reply: &ControlReply) -> Option<Transition> {
    match reply {
        ControlReply::Refused { reason, .. } if operator.step == Step::Prepare => {
            Some(Transition::Refused { reason: because(shard, reason) })
        }
        _ => None,
    }
}

/// The transition that the shards' versions prove: all that can be reached have made the change.
pub(super) fn versions_prove(
    operator: &Operator,
    state: &PlacementState,
    load: &LoadModel,
    answered: &Answered,
    since_ms: u64,
    now_ms: u64,
) -> Option<Transition> {
    let plan = operator.work.schema_plan().filter(|_| operator.step == Step::Apply)?;
    let absent = |id: &ShardId| is_absent(*id, load, since_ms, now_ms);
    let has_it = |id: &ShardId| version_of(*id, load, answered).is_some_and(|version| version >= plan.version());
    let mut waited_for = taking_part(state, load, since_ms, now_ms).filter(|id| !absent(id));
    waited_for.all(|id| has_it(&id)).then_some(Transition::Applied)
}

/// Whether a shard has not reported for long. A new leadership waits for its first report as long.
fn is_absent(shard: ShardId, load: &LoadModel, since_ms: u64, now_ms: u64) -> bool {
    let last_ms = load.shards.get(&shard).map_or(since_ms, |view| view.last_ms);
    last_ms + ABSENT_MS <= now_ms
}

/// The transition that gives a change up that is not prepared.
pub(super) fn deadline(
    operator: &Operator,
    (state, load): (&PlacementState, &LoadModel),
    trouble: Option<&str>,
    since_ms: u64,
    now_ms: u64,
) -> Option<Transition> {
    if operator.step != Step::Prepare || operator.work.schema_plan().is_none() {
        return None;
    }
    let refused = |reason: String| Some(Transition::Refused { reason });
    if let Some(shard) = taking_part(state, load, since_ms, now_ms).find(|id| is_absent(*id, load, since_ms, now_ms)) {
        return refused(format!("shard {shard} does not report"));
    }
    if operator.step_since_ms + PREPARE_MS > now_ms {
        return None;
    }
    let trouble = trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
    refused(format!("not every shard could prepare it in time{trouble}"))
}

/// The version of the schema that a shard has, as far as known.
fn version_of(shard: ShardId, load: &LoadModel, answered: &Answered) -> Option<u64> {
    let reported = load.shards.get(&shard).map(|view| view.report.schema.version);
    reported.max(answered.get(&shard).copied())
}

/// For each shard that reports and lacks a decided change, the next one, by its version.
pub(super) fn deliveries(
    state: &PlacementState,
    load: &LoadModel,
    answered: &Answered,
) -> Vec<(ShardId, u64, ControlRequest)> {
    let decided = state.schema_operator().filter(|operator| operator.step == Step::Apply);
    let decided = decided.and_then(|operator| operator.work.schema_plan());
    let next_after = |version: u64| -> Option<&Arc<SchemaPlan>> {
        let next = version.checked_add(1)?;
        state.schema.changes.get(&next).or_else(|| decided.filter(|plan| plan.version() == next))
    };
    let reporting = state.shards.iter().filter(|(id, shard)| !shard.lost && load.shards.contains_key(id));
    let delivery = |(id, _): (&ShardId, _)| {
        let plan = next_after(version_of(*id, load, answered)?)?;
        let request = ControlRequest::ApplySchema { delta: plan.delta.clone(), ranges: plan.ranges_of(*id) };
        Some((*id, plan.version(), request))
    };
    reporting.filter_map(delivery).collect()
}

/// The version from which on a restored state lacks changes, and a shard that has more (R30).
pub fn lacked(state: &PlacementState, load: &LoadModel) -> Option<(ShardId, u64)> {
    let decided = state.schema_operator().filter(|operator| operator.step == Step::Apply);
    let known = decided.and_then(|operator| operator.work.schema_plan()).map_or(state.schema.version, |p| p.version());
    let ahead = load.shards.iter().filter(|(_, view)| view.report.schema.version > known);
    ahead.map(|(id, view)| (view.report.schema.version, *id)).max().map(|(_, id)| (id, state.schema.version))
}
