//! `/v1/tables`: the list of tables, and the creation of a table by the shard that it is placed on.

use super::failure::ApiFailure;
use super::leader_access::{propose, unexpected};
use super::problem::{self, ApiProblem};
use super::request::parse_strictly;
use super::response::json_with;
use crate::balancer::shard_for_new_range;
use crate::operators::unadopted;
use crate::replica::ReplicaHandles;
use crate::state::{Command, Effect, Refusal, Status};
use evenkeel_protocol::rest::CreateTableBody;
use evenkeel_protocol::{OperatorId, ShardId, TableSchema};
use evenkeel_sql as sql;
use std::time::Duration;
use tokio::time::Instant;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for the creation of its table, in milliseconds.
const TABLE_MS: u64 = 20_000;
/// How long a request waits for the report of a shard that its table can be placed on, in
/// milliseconds.
const REPORT_MS: u64 = 5_000;
/// The interval between two checks of the reports, in milliseconds.
const CHECK_AGAIN_MS: u64 = 50;

/// `GET /v1/tables`.
pub(super) fn list(handles: &ReplicaHandles) -> Response {
    let view = handles.view();
    let tables: Vec<_> = view.tables().map(|table| table.schema.clone()).collect();
    json_with(StatusCode::OK, &tables)
}

/// `POST /v1/tables`.
pub(super) async fn create(handles: &ReplicaHandles, body: &[u8]) -> Result<Response, ApiFailure> {
    let CreateTableBody { schema, shard, if_not_exists } = parse_strictly(body, &["schema", "shard", "if_not_exists"])?;
    let schema = understood(schema)?;
    let name = schema.name.clone();
    let shard = match shard {
        Some(shard) => Some(shard),
        None => place(handles, &name).await?,
    };
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
    match tokio::time::timeout(Duration::from_millis(TABLE_MS), ended).await {
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

/// Rejects a name under which a shard has a table that the state lacks: it may be the same table, and
/// have rows (R30).
fn is_free(handles: &ReplicaHandles, name: &str) -> Result<(), ApiFailure> {
    let leading = handles.leading();
    let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
    let unadopted = unadopted(&handles.applied().state, &leading.load_model);
    match unadopted.into_iter().find(|(taken, _)| taken == name) {
        Some((_, why)) => Err(problem::TABLE_NOT_TAKEN_IN.because(why).into()),
        None => Ok(()),
    }
}

/// The table as its definition says, in the store's own words; refused unless that is the table described. Shards run the text as
/// superuser (R6), so it is never the caller's own.
///
/// This is looked at before the log and not by the state machine: replicas of different versions, and a log that is read again by a later
/// one, would have to understand every text alike.
fn understood(schema: TableSchema) -> Result<TableSchema, ApiProblem> {
    let bad = |reason: String| ApiProblem::from(Refusal::InvalidTable(format!("table {:?}: {reason}", schema.name)));
    let found = match sql::parse(&schema.create_sql) {
        Ok(sql::Command::CreateTable { schema, .. }) => schema,
        Ok(_) => return Err(bad("create_sql is no CREATE TABLE".into())),
        Err(error) => return Err(bad(format!("create_sql: {error}"))),
    };
    let same = found.name == schema.name && found.columns == schema.columns && found.key == schema.key;
    if same { Ok(found) } else { Err(bad("create_sql defines another table than name, columns and key do".into())) }
}

/// Chooses the shard for a new table among those that report. A shard without reports may not exist,
/// and its table would occupy the name and never be created.
async fn place(handles: &ReplicaHandles, name: &str) -> Result<Option<ShardId>, ApiFailure> {
    let deadline = Instant::now() + Duration::from_millis(REPORT_MS);
    loop {
        {
            let leading = handles.leading();
            let leading = leading.as_ref().ok_or(ApiFailure::NeedsLeader)?;
            let applied = handles.applied();
            let state = &applied.state;
            let shard = shard_for_new_range(state, &leading.load_model);
            // A table that exists, and a cluster without shards, have answers of the state.
            let answered = state.table_named(name).is_some() || state.shards.values().all(|shard| shard.draining);
            if shard.is_some() || answered {
                return Ok(shard);
            }
        }
        if Instant::now() >= deadline {
            let detail = "no shard has been heard of; nothing was done, try again";
            return Err(problem::NO_SHARD.because(detail).into());
        }
        tokio::time::sleep(Duration::from_millis(CHECK_AGAIN_MS)).await;
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
