//! `CREATE TABLE`: asked of the placement driver, which has a shard create it, and waited for until routes to it are known.
//!
//! It promises the same as for rows: a creation whose answer was lost is found out about, not repeated blindly.

use crate::cache;
use crate::error::ClientError;
use crate::exchange::pause;
use crate::execute::Answer;
use crate::rest::RestError;
use crate::session::Session;
use evenkeel_protocol::api::{CreateTableBody, Problem};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::RoutingTable;
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::{ShardId, SqlError, TableSchema};
use std::time::Duration;

/// The wait between two tries, in milliseconds: a new leader of the placement driver is there within about a second.
const WAIT_MS: u64 = 50;

impl Session {
    /// Creates a table.
    pub(crate) async fn create_table(&self, body: CreateTableBody, started_ms: u64) -> Result<Answer, ClientError> {
        let deadline_ms = started_ms + self.config.statement_timeout_ms;
        let mut maybe_done = false;
        let mut retries = 0;
        loop {
            let left = Duration::from_millis(deadline_ms.saturating_sub(self.now_ms()));
            match self.rest.create_table(&body, left).await {
                Ok(()) => break,
                // Our own first try may be what exists now.
                Err(RestError::Refused(problem)) if maybe_done && exists(&problem) => {
                    let _ = self.refresh().await;
                    if !same_table(&self.routes.current(), &body.schema) {
                        return Err(refused(problem, &body.schema.name));
                    }
                    break;
                }
                Err(RestError::Refused(problem)) => return Err(refused(problem, &body.schema.name)),
                Err(RestError::Unreachable { reason, maybe_done: maybe }) => {
                    maybe_done |= maybe;
                    // A try with hardly any time left would only make the outcome unknown.
                    if self.now_ms() + 2 * WAIT_MS >= deadline_ms {
                        return Err(expired(reason, maybe_done));
                    }
                    retries += 1;
                    pause(WAIT_MS).await;
                }
            }
        }
        let shard = self.served(&body.schema.name, deadline_ms).await?;
        Ok(Answer::new(StatementReply::default(), shard, retries))
    }

    /// Waits until routes for all keys of the table are known.
    async fn served(&self, name: &str, deadline_ms: u64) -> Result<ShardId, ClientError> {
        loop {
            let _ = self.refresh().await;
            let routes = self.routes.current();
            if let Some(schema) = routes.table(name)
                && cache::is_served(&routes, schema.id)
                && let Some(route) = routes.routes().find(|route| route.table == schema.id)
            {
                return Ok(route.shard);
            }
            if self.now_ms() + WAIT_MS >= deadline_ms {
                let message = format!("table {} is created, and no shard serves it yet", TableSchema::quote(name));
                return Err(ClientError::Unavailable(SqlError::new(codes::CANNOT_CONNECT_NOW, message)));
            }
            pause(WAIT_MS).await;
        }
    }
}

fn exists(problem: &Problem) -> bool {
    problem.status == 409 && told_by_shard(problem).is_none()
}

/// What the shard's PostgreSQL has against the table, if that is why there is none.
fn told_by_shard(problem: &Problem) -> Option<SqlError> {
    SqlError::from_sentence(&problem.detail).filter(|_| problem.code == "not-created")
}

fn same_table(routes: &RoutingTable, schema: &TableSchema) -> bool {
    routes.table(&schema.name).is_some_and(|known| known.create_sql == schema.create_sql)
}

fn refused(problem: Problem, name: &str) -> ClientError {
    if let Some(mut error) = told_by_shard(&problem) {
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
