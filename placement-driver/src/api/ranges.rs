//! `/v1/ranges`: the list of ranges, splits and moves.

use super::cluster_lists::ClusterLists;
use super::failure::ApiFailure;
use super::leader_access::{propose, unexpected};
use super::operators::accepted;
use super::problem::{self, ApiProblem};
use super::request::{parse, parse_or_empty};
use super::response::json_with;
use crate::load::load_profile;
use crate::replica::ReplicaHandles;
use crate::state::{Action, Command, Effect, Refusal};
use evenkeel_protocol::api::{MoveBody, SplitBody};
use evenkeel_protocol::report::RangeLoad;
use evenkeel_protocol::value::key_from_json;
use evenkeel_protocol::{Key, RangeId, ShardId};
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a move waits for the reports of its shards, in milliseconds.
const REPORT_MS: u64 = 3_000;
/// The interval between two checks of the reports, in milliseconds.
const CHECK_AGAIN_MS: u64 = 50;

/// `GET /v1/ranges`.
pub(super) fn list(handles: &ReplicaHandles) -> Result<Response, ApiFailure> {
    Ok(json_with(StatusCode::OK, &ClusterLists::of(handles)?.ranges()))
}

/// `POST /v1/ranges/{id}/split`.
pub(super) async fn split(handles: &ReplicaHandles, range: RangeId, body: &[u8]) -> Result<Response, ApiFailure> {
    let body: SplitBody = parse_or_empty(body)?;
    let at = if body.at.is_empty() { median(handles, range)? } else { split_keys(handles, range, &body)? };
    begin(handles, Action::Split { range, epoch: None, at }).await
}

/// `POST /v1/ranges/{id}/move`.
pub(super) async fn move_to(handles: &ReplicaHandles, range: RangeId, body: &[u8]) -> Result<Response, ApiFailure> {
    let MoveBody { to } = parse(body)?;
    shards_report(handles, range, to).await?;
    clock_is_right(handles, to)?;
    begin(handles, Action::Move { range, epoch: None, to }).await
}

async fn begin(handles: &ReplicaHandles, action: Action) -> Result<Response, ApiFailure> {
    match propose(handles, Command::Begin(action)).await? {
        Effect::Begun(operators) => accepted(handles, operators.first().copied().unwrap_or_default()),
        other => Err(unexpected(&other).into()),
    }
}

/// Rejects a move that could not begin: from or to a shard that does not report. A new leader has
/// no reports yet, so the request waits for a moment.
async fn shards_report(handles: &ReplicaHandles, range: RangeId, to: ShardId) -> Result<(), ApiFailure> {
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(REPORT_MS);
    loop {
        let Some(detail) = silent_shard(handles, range, to)? else { return Ok(()) };
        if evenkeel_host::tokio_now() >= deadline {
            return Err(problem::SHARD_SILENT.because(detail).into());
        }
        evenkeel_host::sleep(Duration::from_millis(CHECK_AGAIN_MS)).await;
    }
}

/// The shard of a move that does not report, in one sentence; `None` if both report.
fn silent_shard(handles: &ReplicaHandles, range: RangeId, to: ShardId) -> Result<Option<String>, ApiFailure> {
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
    let applied = handles.applied();
    let state = &applied.state;
    let from = state.ranges.get(&range).map(|range| range.route.shard);
    // Unknown ranges and shards, and a range that is there already, have answers of the state.
    let involved = [from, Some(to)].into_iter().flatten().filter(|shard| state.shards.contains_key(shard));
    let now_ms = leading.now_ms();
    for shard in involved.filter(|_| from.is_some_and(|from| from != to)) {
        let last_ms = leading.balancer.load.shards.get(&shard).map(|view| view.last_ms);
        let ago_ms = last_ms.map(|last_ms| now_ms.saturating_sub(last_ms));
        if ago_ms.is_none_or(|ago_ms| ago_ms > handles.config.balancer.silent_after_ms) {
            let heard = ago_ms.map_or("not reported yet".to_string(), |ms| format!("last reported {ms} ms ago"));
            return Ok(Some(format!("shard {shard} has {heard}; nothing was done, try again when it does")));
        }
    }
    Ok(None)
}

/// Rejects a move to a shard whose clock is off: writes to the range could stop for as long as the
/// error.
fn clock_is_right(handles: &ReplicaHandles, to: ShardId) -> Result<(), ApiFailure> {
    let leading = handles.leading();
    let load_model = &leading.as_ref().ok_or(ApiFailure::NeedsLeader)?.balancer.load;
    match load_model.clock_off_ms(to).filter(|_| load_model.clock_is_off(to)) {
        Some(off_ms) => {
            let detail =
                format!("the clock of shard {to}'s leader is {off_ms} ms ahead of the median; nothing was done");
            Err(problem::SHARD_CLOCK_OFF.because(detail).into())
        }
        None => Ok(()),
    }
}

/// The keys of a split, as the request names them.
fn split_keys(handles: &ReplicaHandles, range: RangeId, body: &SplitBody) -> Result<Vec<Key>, ApiProblem> {
    let applied = handles.applied();
    let owned = applied.state.ranges.get(&range).ok_or(Refusal::UnknownRange(range))?;
    let table = applied.state.tables.get(&owned.route.table);
    let table = table.ok_or(Refusal::UnknownTable(owned.route.table))?;
    let codec = table.schema.codec();
    let keys = body.at.iter().map(|columns| key_from_json(&codec, columns));
    keys.collect::<Result<_, _>>().map_err(|error| ApiProblem::bad_key(error.to_string()))
}

/// The key with about half of the range's load on either side.
fn median(handles: &ReplicaHandles, range: RangeId) -> Result<Vec<Key>, ApiFailure> {
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
    let applied = handles.applied();
    let owned = applied.state.ranges.get(&range).ok_or(Refusal::UnknownRange(range))?;
    let table = applied.state.tables.get(&owned.route.table);
    let codec = table.ok_or(Refusal::UnknownTable(owned.route.table))?.schema.codec();
    let report = leading.balancer.load.shards.get(&owned.route.shard).map(|view| &view.report);
    let load: Option<&RangeLoad> =
        report.and_then(|report| report.ranges.iter().find(|r| r.id == range)).map(|range| &range.load);
    let profile = load.map(|load| load_profile::LoadProfile { points: load.sketch.clone(), hot: load.hot.clone() });
    let segments = profile.map(|profile| profile.segments(&owned.route.interval, &codec)).unwrap_or_default();
    match load_profile::cut_off(&segments, &owned.route.interval, 0.5) {
        Some((key, _)) => Ok(vec![key]),
        None => {
            let detail = "the range has too little load to find its median; name the keys to split at";
            Err(problem::NO_MEDIAN.because(detail).into())
        }
    }
}
