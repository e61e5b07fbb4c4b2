//! Analysis of a statement's text, once for each text.

use crate::core::ClientCore;
use crate::error::ClientError;
use crate::routing::Statement;
use evenkeel_protocol::api::CreateTableBody;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{SqlError, TableSchema};
use evenkeel_sql::{self as sql, Command};
use std::sync::Arc;

/// The meaning of a text that can be executed on its own.
pub(crate) enum Prepared {
    /// A statement on rows.
    Statement(Arc<Statement>),
    /// A table to be created.
    CreateTable(CreateTableBody),
}

/// Analyses a text, unless its analysis is cached. If the table is unknown, the routing table is
/// fetched once.
pub(crate) async fn prepare(core: &ClientCore, text: &str, deadline_ms: u64) -> Result<Prepared, ClientError> {
    let mut routes = core.routes();
    if let Some(statement) = core.statements.get(text, &routes) {
        return Ok(Prepared::Statement(statement));
    }
    let parsed = match sql::parse(text)? {
        Command::Statement(parsed) => parsed,
        Command::CreateTable { schema, if_not_exists } => {
            return Ok(Prepared::CreateTable(CreateTableBody { schema, shard: None, if_not_exists }));
        }
        Command::Begin(_) => return Err(transaction_command("BEGIN", "begin()")),
        Command::Commit => return Err(transaction_command("COMMIT", "commit() of the transaction")),
        Command::Rollback => return Err(transaction_command("ROLLBACK", "rollback() of the transaction")),
        Command::Setting(_) => return Err(setting_command()),
    };
    let name = parsed.table_name().map(str::to_string);
    if let Some(name) = &name
        && routes.table(name).is_none()
    {
        core.refresh_until(deadline_ms).await;
        routes = core.routes();
    }
    let schema: Option<Arc<TableSchema>> = match &name {
        None => None,
        Some(name) => Some(routes.table(name).cloned().ok_or_else(|| undefined_table(name))?),
    };
    let plan = parsed.bind(schema.as_deref())?;
    let table = name.zip(schema);
    let statement = Arc::new(Statement { sql: text.into(), plan, table });
    core.statements.put(statement.clone());
    Ok(Prepared::Statement(statement))
}

fn transaction_command(command: &str, instead: &str) -> ClientError {
    ClientError::Sql(SqlError::unsupported(
        format!("{command} cannot be sent as a statement of its own"),
        format!("Call {instead}: a transaction belongs to one handle, not to the client that all share."),
    ))
}

fn setting_command() -> ClientError {
    ClientError::Sql(SqlError::unsupported(
        "settings belong to a session, and the client is shared by all",
        "Call begin_session() and execute it there, or give the levels with the statement.",
    ))
}

fn undefined_table(name: &str) -> ClientError {
    ClientError::Sql(SqlError::new(
        codes::UNDEFINED_TABLE,
        format!("table {} does not exist", TableSchema::quote(name)),
    ))
}
