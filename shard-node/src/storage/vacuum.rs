//! Vacuum of the tables in which the replica records applied entries.
//!
//! A record is inserted with each statement or batch and deleted soon after, so these tables need
//! vacuum every few seconds, while they are small. Users' tables need it as rarely as PostgreSQL
//! does it by default: a pass over a table of gigabytes takes a processor core for seconds on each
//! replica. Autovacuum has one pace for a whole server; it is set for users' tables, and this task
//! vacuums the others.

use super::StoreError;
use crate::postgres::{Connector, SessionRole};
use crate::progress::Progress;
use std::sync::Arc;
use std::time::Duration;

/// How often, in milliseconds, if at least this many positions have been applied since the last
/// time.
const EVERY_MS: u64 = 10_000;
const MIN_POSITIONS: u64 = 1_000;
/// Without truncation, which would lock out inserting sessions.
const VACUUM: &str = "VACUUM (TRUNCATE false) evenkeel.applied, evenkeel.position";

/// Vacuums the tables of schema `evenkeel` while positions are applied. A failure is tried again
/// the next time: others find out that PostgreSQL is gone. Never returns.
pub async fn keep_vacuumed(connector: &Connector, progress: &Arc<Progress>) {
    let mut cleaned_at = progress.watermark();
    loop {
        evenkeel_host::sleep(Duration::from_millis(EVERY_MS)).await;
        let position = progress.watermark();
        if position.saturating_sub(cleaned_at) < MIN_POSITIONS {
            continue;
        }
        match clean(connector).await {
            Ok(()) => cleaned_at = position,
            Err(error) => tracing::debug!(%error, "the replica's own tables are not vacuumed yet"),
        }
    }
}

async fn clean(connector: &Connector) -> Result<(), StoreError> {
    let client = connector.connect(SessionRole::Admin).await?;
    Ok(client.batch_execute(VACUUM).await?)
}
