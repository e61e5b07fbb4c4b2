//! Trial of a table's definition before its creation is logged.

use super::StoreError;
use super::apply_batch::prepare_all;
use super::schema::{BEGIN_TRIAL, SET_UP_SESSION};
use crate::postgres::{Connector, SessionRole};
use evenkeel_protocol::TableSchema;
use std::sync::Arc;

/// Tries whether a table can be made here, as an apply would make it, and unmakes it.
///
/// # Errors
/// [`StoreError::Refused`] with what PostgreSQL has against it, unless the error is one of the
/// moment (`StoreError::passes`).
pub async fn try_table(connector: &Connector, schema: &Arc<TableSchema>) -> Result<(), StoreError> {
    let client = connector.connect(SessionRole::Admin).await?;
    client.batch_execute(SET_UP_SESSION).await?;
    client.batch_execute(BEGIN_TRIAL).await?;
    let tried = prepare_all(&client, schema).await;
    client.batch_execute("ROLLBACK").await?;
    tried
}
