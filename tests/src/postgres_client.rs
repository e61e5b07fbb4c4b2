//! A PostgreSQL driver at a cluster's gateway, and what its statements answer.

use crate::failure::{ScenarioFailure, ScenarioResult};
use crate::world::World;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// An error of the driver as a failure.
pub fn failed(error: &tokio_postgres::Error) -> ScenarioFailure {
    ScenarioFailure::new(error.as_db_error().map_or_else(|| error.to_string(), |error| format!("{error:?}")))
}

/// The gateway's port.
pub fn port(world: &World) -> Result<u16, ScenarioFailure> {
    world.cluster.gateway().map(|at| at.port()).ok_or_else(|| ScenarioFailure::new("there is no gateway"))
}

/// A connection.
pub async fn connect(world: &World) -> Result<Client, ScenarioFailure> {
    let config = format!("host=127.0.0.1 port={} user=app dbname=postgres", port(world)?);
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    Ok(client)
}

/// Executes statements.
pub async fn done(client: &Client, sql: &str) -> ScenarioResult {
    client.batch_execute(sql).await.map_err(|error| ScenarioFailure::new(format!("{sql}: {}", failed(&error))))
}

/// The rows as texts, the values of a row separated by `|`.
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, ScenarioFailure> {
    let messages = client.simple_query(sql).await;
    let messages = messages.map_err(|error| ScenarioFailure::new(format!("{sql}: {}", failed(&error))))?;
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let values = (0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_string());
            Some(values.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    Ok(messages.iter().filter_map(row).collect())
}

/// Expects these rows.
pub async fn has(client: &Client, sql: &str, expected: &[&str]) -> ScenarioResult {
    let found = rows(client, sql).await?;
    match found == expected {
        true => Ok(()),
        false => Err(ScenarioFailure::new(format!("{sql}: {found:?} instead of {expected:?}"))),
    }
}

/// Expects an error with this code.
pub async fn refused(client: &Client, sql: &str, code: &str) -> ScenarioResult {
    match client.batch_execute(sql).await {
        Ok(()) => Err(ScenarioFailure::new(format!("{sql} was executed"))),
        Err(error) if error.code().is_some_and(|found| found.code() == code) => Ok(()),
        Err(error) => Err(ScenarioFailure::new(format!("{sql}: {} instead of {code}", failed(&error)))),
    }
}
