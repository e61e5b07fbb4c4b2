//! `/v1/tables`: the list of tables, and the creation of a table by the shard that it is placed on.

use super::failure::ApiFailure;
use super::leader_access::{propose, unexpected, with_leader};
use super::problem::{self, ApiProblem};
use super::request::parse_strictly;
use super::response::json_with;
use crate::operators::unadopted;
use crate::replica::ReplicaHandles;
use crate::state::{Command, Effect, PlacementState, Refusal, Shard, Status};
use evenkeel_protocol::api::CreateTableBody;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{ControlReply, ControlRequest};
use evenkeel_protocol::{OperatorId, ShardId, TableSchema};
use std::time::Duration;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the creation of its table, in milliseconds.
const TABLE_MS: u64 = 20_000;
/// How long a request waits for the report of a shard that its table can be placed on, in
/// milliseconds.
const REPORT_MS: u64 = 5_000;
/// The interval between two checks of the reports, in milliseconds.
const CHECK_AGAIN_MS: u64 = 50;
/// The time limit for one request to one replica of a shard, in milliseconds.
const CALL_MS: u64 = 2_000;
/// The maximum number of shards that are asked to check a definition.
const MAX_ASKED: usize = 3;
/// The reason for which no shard can take a table before any has reported.
const NONE_REPORTS: &str = "no shard has been heard of";

/// `GET /v1/tables`.
pub(super) fn list(handles: &ReplicaHandles) -> Response {
    let view = handles.view();
    let tables: Vec<_> = view.tables().map(|table| table.schema.clone()).collect();
    json_with(StatusCode::OK, &tables)
}

/// `POST /v1/tables`.
pub(super) async fn create(handles: &ReplicaHandles, body: &[u8]) -> Result<Response, ApiFailure> {
    let CreateTableBody { schema, shard, if_not_exists } = parse_strictly(body, &["schema", "shard", "if_not_exists"])?;
    let name = schema.name.clone();
    let shard = match shard {
        Some(shard) => Some(shard),
        None => place(handles, &name).await?,
    };
    let schema = checked(handles, schema, shard).await?;
    is_free(handles, &name)?;
    let mut changes = handles.changes();
    let operator = match propose(handles, Command::CreateTable { schema, shard, if_not_exists }).await? {
        Effect::TableReady(_) => return table_body(handles, &name, StatusCode::OK),
        Effect::Begun(operators) => operators.first().copied().unwrap_or_default(),
        other => return Err(unexpected(&other).into()),
    };
    let ended = async {
        loop {
            if let Some((status, detail)) = ended(handles, operator) {
                return Some((status, detail));
            }
            changes.changed().await.ok()?;
        }
    };
    match evenkeel_host::timeout(Duration::from_millis(TABLE_MS), ended).await {
        Ok(Some((Status::Done, _))) => table_body(handles, &name, StatusCode::CREATED),
        Ok(Some((_, detail))) => {
            let detail = detail.unwrap_or_default();
            Err(problem::NOT_CREATED.because(detail).into())
        }
        Ok(None) | Err(_) => {
            let detail = format!(
                "operator {operator} is still creating it; ask again with if_not_exists, \
                 or cancel the operator if its shard is not there"
            );
            Err(problem::STILL_CREATING.because(detail).into())
        }
    }
}

/// Rejects a name under which a shard has a table that the state lacks: it may be the same table,
/// and have rows (R30).
fn is_free(handles: &ReplicaHandles, name: &str) -> Result<(), ApiFailure> {
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
    let unadopted = unadopted(&handles.applied().state, &leading.balancer.load);
    match unadopted.into_iter().find(|(taken, _)| taken == name) {
        Some((_, why)) => Err(problem::TABLE_NOT_TAKEN_IN.because(why).into()),
        None => Ok(()),
    }
}

/// The table with its canonical definition. Shards run the text as superuser (R6), so it is never
/// the client's own. This crate parses no SQL: a shard's leader checks the definition, and checks
/// it again when it executes it.
///
/// The definition is checked before the log and not by the state machine: otherwise replicas of
/// different versions, and a later version that reads an old log, would have to parse every text
/// alike.
async fn checked(
    handles: &ReplicaHandles,
    schema: TableSchema,
    shard: Option<ShardId>,
) -> Result<TableSchema, ApiFailure> {
    let request = ControlRequest::CheckTable { schema };
    let mut trouble = NONE_REPORTS.to_string();
    for (info, leader) in shards_to_ask(handles, shard)? {
        match handles.calls.ask(&info, leader, &request, Duration::from_millis(CALL_MS)).await {
            Ok(ControlReply::Table(schema)) => return Ok(*schema),
            Ok(ControlReply::Refused { reason, .. }) => return Err(Refusal::InvalidTable(reason).into()),
            Ok(_) => trouble = format!("shard {} gave an answer of another kind", info.id),
            Err(error) => trouble = error,
        }
    }
    let ControlRequest::CheckTable { schema } = request else { return Err(no_shard(&trouble)) };
    let answered = is_answered_by_state(&handles.applied().state, &schema.name, shard);
    if answered { Ok(schema) } else { Err(no_shard(&trouble)) }
}

/// The shards that can check a definition: those that report, and the one that the table is placed
/// on. That shard comes first if it reports, and last if it does not.
fn shards_to_ask(
    handles: &ReplicaHandles,
    placed_on: Option<ShardId>,
) -> Result<Vec<(ShardInfo, Option<u64>)>, ApiFailure> {
    with_leader(handles, |state, leading| {
        let now_ms = leading.now_ms();
        let candidate = |shard: &Shard| {
            let id = shard.info.id;
            let last = leading.balancer.load.shards.get(&id);
            let age_ms = last.map(|view| now_ms.saturating_sub(view.last_ms));
            let reports = age_ms.is_some_and(|age_ms| age_ms <= handles.config.balancer.silent_after_ms);
            let placed = placed_on == Some(id);
            let rank = if reports { u8::from(!placed) } else { 2 };
            (reports || placed).then(|| (rank, (shard.info.clone(), last.map(|view| view.report.leader))))
        };
        let mut candidates: Vec<_> = state.shards.values().filter_map(candidate).collect();
        candidates.sort_by_key(|(rank, _)| *rank);
        candidates.into_iter().map(|(_, candidate)| candidate).take(MAX_ASKED).collect()
    })
}

fn no_shard(trouble: &str) -> ApiFailure {
    problem::NO_SHARD.because(format!("{trouble}; nothing was done, try again")).into()
}

/// Whether the state answers the creation of a table without placing it: a table of this name
/// exists, no shard is active, or the requested shard is not.
fn is_answered_by_state(state: &PlacementState, name: &str, placed_on: Option<ShardId>) -> bool {
    let inactive = |id| state.shards.get(&id).is_none_or(|shard| shard.draining || shard.lost);
    state.table_named(name).is_some()
        || state.shards.values().all(|shard| shard.draining)
        || placed_on.is_some_and(inactive)
}

/// Chooses the shard for a new table among those that report. A shard without reports may not
/// exist, and its table would occupy the name and never be created.
async fn place(handles: &ReplicaHandles, name: &str) -> Result<Option<ShardId>, ApiFailure> {
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(REPORT_MS);
    loop {
        {
            let leading = handles.leading();
            let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
            let applied = handles.applied();
            let state = &applied.state;
            let shard = leading.balancer.shard_for_new_range(state);
            if shard.is_some() || is_answered_by_state(state, name, None) {
                return Ok(shard);
            }
        }
        if evenkeel_host::tokio_now() >= deadline {
            return Err(no_shard(NONE_REPORTS));
        }
        evenkeel_host::sleep(Duration::from_millis(CHECK_AGAIN_MS)).await;
    }
}

fn ended(handles: &ReplicaHandles, operator: OperatorId) -> Option<(Status, Option<String>)> {
    let applied = handles.applied();
    let operator = applied.state.operators.get(&operator)?;
    operator.status.is_over().then(|| (operator.status, operator.detail.clone()))
}

fn table_body(handles: &ReplicaHandles, name: &str, status: StatusCode) -> Result<Response, ApiFailure> {
    let view = handles.view();
    let table = view.table(name).ok_or_else(|| ApiProblem::unknown_table(name))?;
    Ok(json_with(status, &*table.schema))
}
