//! What is written: each becomes a command in the log, and is answered when it has come out of it.

use super::{Error, Failure, copies, json_with, lists, members, method_not_allowed, read, tables, take_back};
use crate::balancer::sketch;
use crate::server::Shared;
use crate::state::{Action, Command, Effect, Refusal, Work};
use evenkeel_protocol::api::{MoveBody, ShardBody, SplitBody};
use evenkeel_protocol::report::RangeLoad;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::value::key_from_json;
use evenkeel_protocol::{Key, OperatorId, RangeId, ShardId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json as value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use warp::http::{Method, StatusCode};
use warp::reply::Response;

/// How long a request waits for its command to come out of the log, in milliseconds.
const OUTCOME_MS: u64 = 10_000;
/// How long a move waits for its shards to be heard of, in milliseconds.
const SPEAKING_MS: u64 = 3_000;
/// Between two looks whether they are, in milliseconds.
const LOOK_AGAIN_MS: u64 = 50;
/// How long a shard may take to hand its leadership over, in milliseconds.
const TRANSFER_MS: u64 = 10_000;

/// Handles a request that is no GET.
pub(super) async fn write(shared: &Arc<Shared>, method: &Method, path: &str, body: &[u8]) -> Result<Response, Failure> {
    // A follower may not know yet what the client has just been told by another.
    if shared.leading().is_none() {
        return Err(Failure::NeedsLeader);
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (method, &parts[..]) {
        (&Method::POST, ["v1", "tables"]) => tables::create(shared, body).await,
        (&Method::POST, ["v1", "ranges", id, "split"]) => {
            let body = parse(if blank(body) { b"{}" } else { body })?;
            split(shared, RangeId(number(id, "range")?), body).await
        }
        (&Method::POST, ["v1", "ranges", id, "move"]) => {
            let MoveBody { to } = parse(body)?;
            let range = RangeId(number(id, "range")?);
            speaking(shared, range, to).await?;
            clock_is_right(shared, to)?;
            begin(shared, Action::Move { range, epoch: None, to }).await
        }
        (&Method::DELETE, ["v1", "operators", id]) => cancel(shared, OperatorId(number(id, "operator")?)).await,
        (&Method::DELETE, ["v1", "operators", id, "copy"]) => {
            copies::purge(shared, OperatorId(number(id, "operator")?)).await
        }
        (&Method::POST, ["v1", "operators", id, "take-back"]) => {
            let operator = OperatorId(number(id, "operator")?);
            take_back::confirmed(shared, operator, parse(body)?)?;
            propose(shared, Command::TakeBack(operator)).await?;
            accepted(shared, operator)
        }
        (&Method::POST, ["v1", "shards"]) => add_shard(shared, parse_shard(body)?).await,
        (&Method::DELETE, ["v1", "shards", id]) => drain(shared, shard_id(id)?).await,
        (&Method::POST, ["v1", "shards", id, "undrain"]) => undrain(shared, shard_id(id)?).await,
        (&Method::POST, ["v1", "shards", id, "transfer-leader"]) => {
            let body = parse(if blank(body) { b"{}" } else { body })?;
            transfer_leader(shared, shard_id(id)?, body).await
        }
        (&Method::POST, ["v1", "shards", id, "replicas"]) => {
            members::change_shard(shared, shard_id(id)?, parse(body)?).await
        }
        (&Method::POST, ["v1", "members"]) => members::change_driver(shared, parse(body)?).await,
        (&Method::POST, ["v1", "balancer"]) => {
            let Enabled { enabled } = parse(body)?;
            propose(shared, Command::SetBalancer { enabled }).await?;
            Ok(json_with(StatusCode::OK, &value!({ "enabled": enabled })))
        }
        _ => Err(method_not_allowed(method, path).into()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enabled {
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransferTo {
    #[serde(default)]
    to: Option<u64>,
}

/// A number in a path.
pub(super) fn number(text: &str, what: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| Error::bad_request(format!("{text:?} is not the number of a {what}")))
}

fn shard_id(text: &str) -> Result<ShardId, Error> {
    text.parse().map_err(|_| Error::bad_request(format!("{text:?} is not the number of a shard")))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::bad_request(format!("the body: {error}")))
}

fn blank(body: &[u8]) -> bool {
    body.iter().all(u8::is_ascii_whitespace)
}

/// Parses an object with these fields and no others: for types that other programs must be able to extend.
pub(super) fn parse_strictly<T: DeserializeOwned>(body: &[u8], fields: &[&str]) -> Result<T, Error> {
    let object: serde_json::Map<String, serde_json::Value> = parse(body)?;
    if let Some(unknown) = object.keys().find(|key| !fields.contains(&key.as_str())) {
        let list = fields.join(", ");
        return Err(Error::bad_request(format!("the body: unknown field {unknown:?}; accepted: {list}")));
    }
    serde_json::from_value(object.into()).map_err(|error| Error::bad_request(format!("the body: {error}")))
}

fn parse_shard(body: &[u8]) -> Result<ShardBody, Error> {
    let fields = [
        "id",
        "replicas",
        "status",
        "leader",
        "ranges",
        "statements_per_s",
        "capacity_per_s",
        "report_age_ms",
        "clock_off_ms",
        "replicas_seen",
        "scrub",
    ];
    let shard: ShardBody = parse_strictly(body, &fields)?;
    // With gaps: a machine that took another one's place has a number of its own.
    if shard.info.id.0 == 0 || !shard.info.replicas.keys().all(|replica| (1..=255).contains(replica)) {
        return Err(Error::bad_request("a shard has a number from 1, and its replicas have numbers from 1 to 255"));
    }
    Ok(shard)
}

/// Proposes and waits for the outcome, for a bounded time.
pub(super) async fn propose(shared: &Shared, command: Command) -> Result<Effect, Error> {
    match tokio::time::timeout(Duration::from_millis(OUTCOME_MS), shared.propose(command)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(crate::server::ProposeFailure::Unknown.into()),
    }
}

fn accepted(shared: &Shared, operator: OperatorId) -> Result<Response, Failure> {
    let body = read::operator_body(shared, operator).ok_or(Refusal::UnknownOperator(operator))?;
    Ok(json_with(StatusCode::ACCEPTED, &body))
}

async fn begin(shared: &Shared, action: Action) -> Result<Response, Failure> {
    match propose(shared, Command::Begin(action)).await? {
        Effect::Begun(operators) => accepted(shared, operators.first().copied().unwrap_or_default()),
        other => Err(unexpected(&other).into()),
    }
}

pub(super) fn unexpected(effect: &Effect) -> Error {
    Error::new(500, "internal", "Something that cannot be", format!("the command had the effect {effect:?}"))
}

/// Refuses a move that could not even begin: from or to a shard that does not report. A leader that has just begun has heard nobody yet, so
/// it waits for a moment.
async fn speaking(shared: &Shared, range: RangeId, to: ShardId) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_millis(SPEAKING_MS);
    loop {
        let Some(detail) = unheard(shared, range, to)? else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(Error::new(409, "shard-silent", "The shard does not report", detail).into());
        }
        tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
    }
}

/// Refuses a move to a shard whose clock is off: its writes may stand still for as long as the error is large.
fn clock_is_right(shared: &Shared, to: ShardId) -> Result<(), Failure> {
    let leading = shared.leading();
    let picture = &leading.as_ref().ok_or(Failure::NeedsLeader)?.picture;
    match picture.clock_off_ms(to).filter(|_| picture.clock_is_off(to)) {
        Some(off_ms) => {
            let detail =
                format!("the clock of shard {to}'s leader is {off_ms} ms ahead of the median; nothing was done");
            Err(Error::new(409, "shard-clock-off", "The shard's clock is off", detail).into())
        }
        None => Ok(()),
    }
}

/// Which of the two shards of a move does not report, in one sentence; `None` if both do.
fn unheard(shared: &Shared, range: RangeId, to: ShardId) -> Result<Option<String>, Failure> {
    let leading = shared.leading();
    let leading = leading.as_ref().ok_or(Failure::NeedsLeader)?;
    let applied = shared.applied();
    let state = &applied.state;
    let from = state.ranges.get(&range).map(|range| range.route.shard);
    // To what is not there, or is there already, the state has its own answer.
    let involved = [from, Some(to)].into_iter().flatten().filter(|shard| state.shards.contains_key(shard));
    let now_ms = leading.now_ms();
    for shard in involved.filter(|_| from.is_some_and(|from| from != to)) {
        let last_ms = leading.picture.shards.get(&shard).map(|view| view.last_ms);
        let ago_ms = last_ms.map(|last_ms| now_ms.saturating_sub(last_ms));
        if ago_ms.is_none_or(|ago_ms| ago_ms > shared.config.balancer.silent_after_ms) {
            let heard = ago_ms.map_or("not reported yet".to_string(), |ms| format!("last reported {ms} ms ago"));
            return Ok(Some(format!("shard {shard} has {heard}; nothing was done, try again when it does")));
        }
    }
    Ok(None)
}

async fn split(shared: &Shared, range: RangeId, body: SplitBody) -> Result<Response, Failure> {
    let at = if body.at.is_empty() { median(shared, range)? } else { split_keys(shared, range, &body)? };
    begin(shared, Action::Split { range, epoch: None, at }).await
}

fn split_keys(shared: &Shared, range: RangeId, body: &SplitBody) -> Result<Vec<Key>, Error> {
    let applied = shared.applied();
    let held = applied.state.ranges.get(&range).ok_or(Refusal::UnknownRange(range))?;
    let table = applied.state.tables.get(&held.route.table);
    let table = table.ok_or(Refusal::UnknownTable(held.route.table))?;
    let codec = table.schema.codec();
    let keys = body.at.iter().map(|columns| key_from_json(&codec, columns));
    keys.collect::<Result<_, _>>().map_err(|error| Error::bad_key(error.to_string()))
}

/// Where half of the range's load falls on either side.
fn median(shared: &Shared, range: RangeId) -> Result<Vec<Key>, Failure> {
    let leading = shared.leading();
    let leading = leading.as_ref().ok_or(Failure::NeedsLeader)?;
    let applied = shared.applied();
    let held = applied.state.ranges.get(&range).ok_or(Refusal::UnknownRange(range))?;
    let table = applied.state.tables.get(&held.route.table);
    let codec = table.ok_or(Refusal::UnknownTable(held.route.table))?.schema.codec();
    let report = leading.picture.shards.get(&held.route.shard).map(|view| &view.report);
    let load: Option<&RangeLoad> =
        report.and_then(|report| report.ranges.iter().find(|r| r.id == range)).map(|range| &range.load);
    let profile = load.map(|load| sketch::Profile { points: load.sketch.clone(), hot: load.hot.clone() });
    let segments = profile.map(|profile| profile.segments(&held.route.interval, &codec)).unwrap_or_default();
    match sketch::cut_off(&segments, &held.route.interval, 0.5) {
        Some((key, _)) => Ok(vec![key]),
        None => {
            let detail = "the range has too little load to find its median; name the keys to split at";
            Err(Error::new(409, "no-median", "The load has no median yet", detail).into())
        }
    }
}

async fn cancel(shared: &Shared, operator: OperatorId) -> Result<Response, Failure> {
    if let Some(shard) = answering(shared, operator) {
        let detail = format!("shard {shard} has been heard of: it will answer, and then operator {operator} is over");
        return Err(Error::new(409, "not-cancellable", "The operator cannot be cancelled", detail).into());
    }
    propose(shared, Command::Cancel(operator)).await?;
    accepted(shared, operator)
}

/// The shard that is creating a table for this operator, if it is one that speaks. It may have done so already.
fn answering(shared: &Shared, operator: OperatorId) -> Option<ShardId> {
    let leading = shared.leading();
    let applied = shared.applied();
    let operator = applied.state.operators.get(&operator).filter(|operator| !operator.status.is_over())?;
    let Work::CreateTable { shard, .. } = operator.work else { return None };
    leading.as_ref()?.picture.shards.contains_key(&shard).then_some(shard)
}

async fn add_shard(shared: &Shared, body: ShardBody) -> Result<Response, Failure> {
    let id = body.info.id;
    let known = shared.applied().state.shards.contains_key(&id);
    propose(shared, Command::AddShard(body.info)).await?;
    shard_body(shared, id, if known { StatusCode::OK } else { StatusCode::CREATED })
}

async fn drain(shared: &Shared, id: ShardId) -> Result<Response, Failure> {
    propose(shared, Command::DrainShard(id)).await?;
    shard_body(shared, id, StatusCode::ACCEPTED)
}

async fn undrain(shared: &Shared, id: ShardId) -> Result<Response, Failure> {
    propose(shared, Command::UndrainShard(id)).await?;
    shard_body(shared, id, StatusCode::OK)
}

fn shard_body(shared: &Shared, id: ShardId, status: StatusCode) -> Result<Response, Failure> {
    let leaders = shared.shard_leaders();
    let applied = shared.applied();
    let shard = applied.state.shards.get(&id).ok_or(Refusal::UnknownShard(id))?;
    let body = ShardBody {
        info: shard.info.clone(),
        status: lists::shard_status(shard).to_string(),
        leader: leaders.get(&id).copied(),
        ranges: shared.view().range_counts().get(&id).copied().unwrap_or(0),
        statements_per_s: 0.0,
        capacity_per_s: None,
        report_age_ms: None,
        clock_off_ms: None,
        replicas_seen: Vec::new(),
        scrub: None,
    };
    Ok(json_with(status, &body))
}

/// Asks the shard at once: nothing of it is in the placement driver's state.
async fn transfer_leader(shared: &Shared, id: ShardId, body: TransferTo) -> Result<Response, Failure> {
    let leader = shared.shard_leaders().get(&id).copied();
    if shared.leading().is_none() {
        return Err(Failure::NeedsLeader);
    }
    let info = shared.applied().state.shards.get(&id).map(|shard| shard.info.clone());
    let info = info.ok_or(Refusal::UnknownShard(id))?;
    let request = ControlRequest::TransferLeadership { to: body.to };
    match shared.calls.ask(&info, leader, &request, Duration::from_millis(TRANSFER_MS)).await {
        Ok(ControlReply::Done | ControlReply::Pending { .. }) => {
            Ok(json_with(StatusCode::OK, &value!({ "shard": id, "from": leader, "to": body.to })))
        }
        Ok(ControlReply::Refused { reason, .. }) => {
            Err(Error::new(409, "not-transferred", "The shard's leadership stays", reason).into())
        }
        Ok(_) => Err(Error::new(502, "shard-answer", "The shard answered something else", "").into()),
        Err(trouble) => Err(Error::new(503, "shard-unreachable", "The shard does not answer", trouble).into()),
    }
}
