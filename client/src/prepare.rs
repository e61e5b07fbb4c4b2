//! Analysis of a statement's text, once for each text.

use crate::core::ClientCore;
use crate::deliver::pause;
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

/// The wait before the placement driver is asked again for an unknown table, in milliseconds.
const WAIT_MS: u64 = 50;

/// Analyses a text, unless its analysis is cached.
pub(crate) async fn prepare(core: &ClientCore, text: &str, deadline_ms: u64) -> Result<Prepared, ClientError> {
    let routes = core.routes();
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
    let schema = match &name {
        None => None,
        Some(name) => match routes.table(name) {
            Some(schema) => Some(schema.clone()),
            None => Some(look_up(core, name, deadline_ms).await?),
        },
    };
    let plan = parsed.bind(schema.as_deref())?;
    let table = name.zip(schema);
    let statement = Arc::new(Statement { sql: text.into(), plan, table });
    core.statements.put(statement.clone());
    Ok(Prepared::Statement(statement))
}

/// Asks the placement driver for a table that the routing table does not have. Any of its replicas
/// may be behind, one that was started just now above all, and one that has lost its disk knows
/// nothing: each is asked before the table is said not to exist, and who knows no shards does not
/// count.
async fn look_up(core: &ClientCore, name: &str, deadline_ms: u64) -> Result<Arc<TableSchema>, ClientError> {
    let mut without = 0;
    loop {
        let fetched = core.fetch_until(deadline_ms).await;
        if let Some(schema) = core.routes().table(name) {
            return Ok(schema.clone());
        }
        let known = fetched.and_then(|()| match core.routes().shards().next() {
            Some(_) => Ok(()),
            None => Err("the placement driver knows no shards".to_string()),
        });
        match known {
            Ok(()) => without += 1,
            Err(reason) if core.now_ms() + WAIT_MS >= deadline_ms => return Err(not_looked_up(name, &reason)),
            Err(_) => pause(WAIT_MS).await,
        }
        if without >= core.placement_driver.endpoints().len() {
            return Err(undefined_table(name));
        }
        core.placement_driver.pass_over();
    }
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

fn not_looked_up(name: &str, reason: &str) -> ClientError {
    let message = format!("table {} is not known, and {reason}", TableSchema::quote(name));
    let error = SqlError::new(codes::CANNOT_CONNECT_NOW, message);
    ClientError::Unavailable(error.hint("Nothing has taken effect; it is safe to try again."))
}

fn undefined_table(name: &str) -> ClientError {
    ClientError::Sql(SqlError::new(
        codes::UNDEFINED_TABLE,
        format!("table {} does not exist", TableSchema::quote(name)),
    ))
}
