//! `CREATE TABLE`: the placement driver has a shard create the table; the client waits until it
//! knows routes to it.
//!
//! It promises the same as for rows: if the answer to a creation is lost, the client finds out
//! whether the table exists and does not repeat the creation blindly.

use crate::answer::Answer;
use crate::core::ClientCore;
use crate::deliver::pause;
use crate::error::ClientError;
use crate::placement_driver::ApiError;
use crate::routing::is_served;
use evenkeel_protocol::api::{CreateTableBody, Problem};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{ShardId, SqlError, TableSchema};
use std::time::Duration;

/// The wait between two attempts, in milliseconds: the placement driver elects a new leader within
/// about a second.
const WAIT_MS: u64 = 50;

/// Creates a table.
pub(crate) async fn create_table(
    core: &ClientCore,
    body: CreateTableBody,
    started_ms: u64,
) -> Result<Answer, ClientError> {
    let deadline_ms = started_ms + core.config.statement_timeout_ms;
    let mut maybe_done = false;
    let mut retries = 0;
    loop {
        let left = Duration::from_millis(deadline_ms.saturating_sub(core.now_ms()));
        match core.placement_driver.create_table(&body, left).await {
            Ok(()) => break,
            // The table that exists may be the one that the first attempt created.
            Err(ApiError::Refused(problem)) if maybe_done && exists(&problem) => {
                let _ = core.routing.refresh().await;
                if !same_table(&core.routes(), &body.schema) {
                    return Err(refused(problem, &body.schema.name));
                }
                break;
            }
            Err(ApiError::Refused(problem)) => return Err(refused(problem, &body.schema.name)),
            Err(ApiError::Unreachable { reason, maybe_done: maybe }) => {
                maybe_done |= maybe;
                // An attempt with hardly any time left would only make the outcome unknown.
                if core.now_ms() + 2 * WAIT_MS >= deadline_ms {
                    return Err(expired(reason, maybe_done));
                }
                retries += 1;
                pause(WAIT_MS).await;
            }
        }
    }
    let shard = served(core, &body.schema.name, deadline_ms).await?;
    Ok(Answer::new(StatementReply::default(), shard, retries))
}

/// Waits until routes for all keys of the table are known.
async fn served(core: &ClientCore, name: &str, deadline_ms: u64) -> Result<ShardId, ClientError> {
    loop {
        let _ = core.routing.refresh().await;
        let routes = core.routes();
        if let Some(schema) = routes.table(name)
            && is_served(&routes, schema.id)
            && let Some(route) = routes.routes().find(|route| route.table == schema.id)
        {
            return Ok(route.shard);
        }
        if core.now_ms() + WAIT_MS >= deadline_ms {
            let message = format!("table {} is created, and no shard serves it yet", TableSchema::quote(name));
            return Err(ClientError::Unavailable(SqlError::new(codes::CANNOT_CONNECT_NOW, message)));
        }
        pause(WAIT_MS).await;
    }
}

fn exists(problem: &Problem) -> bool {
    problem.status == 409 && error_of_shard(problem).is_none()
}

/// The error of the shard's PostgreSQL, if that is why the table was not created.
fn error_of_shard(problem: &Problem) -> Option<SqlError> {
    SqlError::from_sentence(&problem.detail).filter(|_| problem.code == "not-created")
}

fn same_table(routes: &RoutingTable, schema: &TableSchema) -> bool {
    routes.table(&schema.name).is_some_and(|known| known.create_sql == schema.create_sql)
}

fn refused(problem: Problem, name: &str) -> ClientError {
    if let Some(mut error) = error_of_shard(&problem) {
        error.message = format!("table {} cannot be created: {}", TableSchema::quote(name), error.message);
        return ClientError::Sql(error);
    }
    let code = match problem.status {
        409 => codes::DUPLICATE_TABLE,
        413 => codes::PROGRAM_LIMIT,
        400..500 => codes::INVALID_TABLE,
        _ => codes::INTERNAL,
    };
    let message = format!("table {} cannot be created: {}", TableSchema::quote(name), problem.detail);
    let error = SqlError::new(code, message);
    ClientError::Sql(if exists(&problem) {
        error.hint("CREATE TABLE IF NOT EXISTS accepts one that is there.")
    } else {
        error
    })
}

fn expired(reason: String, maybe_done: bool) -> ClientError {
    if maybe_done {
        let error = SqlError::new(codes::OUTCOME_UNKNOWN, format!("{reason}; the table may have been created"));
        return ClientError::OutcomeUnknown(error.hint("CREATE TABLE IF NOT EXISTS is safe to send again."));
    }
    ClientError::Unavailable(SqlError::new(codes::CONNECTION_FAILURE, reason).hint("Nothing has taken effect."))
}
