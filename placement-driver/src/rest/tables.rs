//! `POST /v1/tables`: a table is read, placed, and created by its shard.

use super::write::{parse_strictly, propose, unexpected};
use super::{Error, Failure, json_with};
use crate::balancer::shard_for_new_range;
use crate::operators::unadopted;
use crate::server::Shared;
use crate::state::{Command, Effect, Refusal, Status};
use evenkeel_protocol::api::CreateTableBody;
use evenkeel_protocol::{OperatorId, ShardId, TableSchema};
use evenkeel_sql as sql;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use warp::http::StatusCode;
use warp::reply::Response;

/// How long a request waits for its table to be created, in milliseconds.
const TABLE_MS: u64 = 20_000;
/// How long a request waits for a shard to speak on which its table can be, in milliseconds.
const SPEAKING_MS: u64 = 5_000;
/// Between two looks whether one does, in milliseconds.
const LOOK_AGAIN_MS: u64 = 50;

/// Creates a table.
pub(super) async fn create(shared: &Arc<Shared>, body: &[u8]) -> Result<Response, Failure> {
    let CreateTableBody { schema, shard, if_not_exists } = parse_strictly(body, &["schema", "shard", "if_not_exists"])?;
    let schema = understood(schema)?;
    let name = schema.name.clone();
    let shard = match shard {
        Some(shard) => Some(shard),
        None => place(shared, &name).await?,
    };
    is_free(shared, &name)?;
    let mut changes = shared.changes();
    let operator = match propose(shared, Command::CreateTable { schema, shard, if_not_exists }).await? {
        Effect::TableReady(_) => return table_body(shared, &name, StatusCode::OK),
        Effect::Begun(operators) => operators.first().copied().unwrap_or_default(),
        other => return Err(unexpected(&other).into()),
    };
    let ended = async {
        loop {
            if let Some((status, detail)) = ended(shared, operator) {
                return Some((status, detail));
            }
            changes.changed().await.ok()?;
        }
    };
    match tokio::time::timeout(Duration::from_millis(TABLE_MS), ended).await {
        Ok(Some((Status::Done, _))) => table_body(shared, &name, StatusCode::CREATED),
        Ok(Some((_, detail))) => {
            let detail = detail.unwrap_or_default();
            Err(Error::new(409, "not-created", "The table could not be created", detail).into())
        }
        Ok(None) | Err(_) => {
            let detail = format!(
                "operator {operator} is still creating it; ask again with if_not_exists, \
                 or cancel the operator if its shard is not there"
            );
            Err(Error::new(504, "still-creating", "The table is not ready yet", detail).into())
        }
    }
}

/// Refuses a name under which a shard has a table that is not known here: it may be the same table, and have rows (R30).
fn is_free(shared: &Shared, name: &str) -> Result<(), Failure> {
    let leading = shared.leading();
    let leading = leading.as_ref().ok_or(Failure::NeedsLeader)?;
    let unadopted = unadopted(&shared.applied().state, &leading.picture);
    match unadopted.into_iter().find(|(taken, _)| taken == name) {
        Some((_, why)) => Err(Error::new(409, "table-not-taken-in", "A shard has a table of this name", why).into()),
        None => Ok(()),
    }
}

/// The table as its definition says, in the store's own words; refused unless that is the table described. Shards run the text as
/// superuser (R6), so it is never the caller's own.
///
/// This is looked at before the log and not by the state machine: replicas of different versions, and a log that is read again by a later
/// one, would have to understand every text alike.
fn understood(schema: TableSchema) -> Result<TableSchema, Error> {
    let bad = |reason: String| Error::from(Refusal::InvalidTable(format!("table {:?}: {reason}", schema.name)));
    let found = match sql::parse(&schema.create_sql) {
        Ok(sql::Command::CreateTable { schema, .. }) => schema,
        Ok(_) => return Err(bad("create_sql is no CREATE TABLE".into())),
        Err(error) => return Err(bad(format!("create_sql: {error}"))),
    };
    let same = found.name == schema.name && found.columns == schema.columns && found.key == schema.key;
    if same { Ok(found) } else { Err(bad("create_sql defines another table than name, columns and key do".into())) }
}

/// The shard for a new table: one that speaks. One that nobody has heard may not be there, and its table would take the name and never
/// come about.
async fn place(shared: &Shared, name: &str) -> Result<Option<ShardId>, Failure> {
    let deadline = Instant::now() + Duration::from_millis(SPEAKING_MS);
    loop {
        {
            let leading = shared.leading();
            let leading = leading.as_ref().ok_or(Failure::NeedsLeader)?;
            let applied = shared.applied();
            let state = &applied.state;
            let shard = shard_for_new_range(state, &leading.picture);
            // To a table that exists, and where there is no shard at all, the state has its own answer.
            let settled = state.table_named(name).is_some() || state.shards.values().all(|shard| shard.draining);
            if shard.is_some() || settled {
                return Ok(shard);
            }
        }
        if Instant::now() >= deadline {
            let detail = "no shard has been heard of; nothing was done, try again";
            return Err(Error::new(503, "no-shard", "No shard can take the table", detail).into());
        }
        tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
    }
}

fn ended(shared: &Shared, operator: OperatorId) -> Option<(Status, Option<String>)> {
    let applied = shared.applied();
    let operator = applied.state.operators.get(&operator)?;
    operator.status.is_over().then(|| (operator.status, operator.detail.clone()))
}

fn table_body(shared: &Shared, name: &str, status: StatusCode) -> Result<Response, Failure> {
    let view = shared.view();
    let table = view.table(name).ok_or_else(|| Error::unknown_table(name))?;
    Ok(json_with(status, &*table.schema))
}
