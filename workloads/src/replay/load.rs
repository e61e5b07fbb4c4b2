//! Loading the rows that a workload starts with.
//!
//! Rows go in by batches, several at once. A batch that fails part way, or whose outcome is
//! unknown, is finished row by row: a row that may be there is read first. So loading survives
//! failovers, and the ledger is exact when the run starts.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::error::ReplayError;
use super::ledger::{Ledger, LedgerFull, WriteEffect};
use super::scheduler::{plain, write};
use super::target::{Statement, Target, TargetAnswer, TargetFailure, TargetStatementKind};

/// How rows are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Rows per batch.
    pub batch_rows: usize,
    /// Bytes of values per batch, after which it is sent even if it holds fewer rows.
    pub batch_bytes: usize,
    /// Batches under way at once.
    pub concurrency: usize,
    /// Attempts per row before loading gives up.
    pub max_attempts: u32,
    /// Wait between attempts, in milliseconds.
    pub retry_after_ms: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { batch_rows: 500, batch_bytes: 256 * 1024, concurrency: 4, max_attempts: 20, retry_after_ms: 250 }
    }
}

/// Loads `rows` (key, value size in bytes; each key once) and enters them into the ledger.
/// `progress` receives the number of rows stored so far. Returns the number of rows.
pub async fn load<T: Target>(
    target: &Arc<T>,
    ledger: &mut Ledger,
    rows: impl IntoIterator<Item = (i64, u32)>,
    options: LoadOptions,
    mut progress: impl FnMut(u64),
) -> Result<u64, ReplayError> {
    let mut rows = rows.into_iter().peekable();
    let mut tasks: JoinSet<Result<Vec<Statement>, ReplayError>> = JoinSet::new();
    let mut stored = 0;
    loop {
        while tasks.len() < options.concurrency.max(1) && rows.peek().is_some() {
            let batch = next_batch(&mut rows, ledger, &options)?;
            tasks.spawn(store(target.clone(), batch, options));
        }
        match tasks.join_next().await {
            None => return Ok(stored),
            Some(Err(error)) => return Err(ReplayError::Task(error.to_string())),
            Some(Ok(batch)) => {
                for row in batch? {
                    ledger.acknowledge(row.key);
                    stored += 1;
                }
                progress(stored);
            }
        }
    }
}

fn next_batch(
    rows: &mut impl Iterator<Item = (i64, u32)>,
    ledger: &mut Ledger,
    options: &LoadOptions,
) -> Result<Vec<Statement>, LedgerFull> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < options.batch_rows.max(1) && (batch.is_empty() || bytes < options.batch_bytes) {
        let Some((key, value_bytes)) = rows.next() else { break };
        let issued = ledger.issue(key, WriteEffect::Inserted)?;
        batch.push(write(ledger.seed(), TargetStatementKind::Insert, key, issued, value_bytes));
        bytes += value_bytes as usize;
    }
    Ok(batch)
}

async fn store<T: Target>(
    target: Arc<T>,
    batch: Vec<Statement>,
    options: LoadOptions,
) -> Result<Vec<Statement>, ReplayError> {
    if let Err((first, _)) = target.load(&batch).await {
        for row in batch.iter().skip(first) {
            store_row(&*target, row, &options).await?;
        }
    }
    Ok(batch)
}

/// Stores one row that may be stored already.
async fn store_row<T: Target>(target: &T, row: &Statement, options: &LoadOptions) -> Result<(), ReplayError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let failure = match target.execute(&plain(TargetStatementKind::Read, row.key, 0)).await.result {
            Ok(TargetAnswer::Row(Some(stored))) if stored.version == row.version => return Ok(()),
            Ok(TargetAnswer::Row(None)) => match target.execute(row).await.result {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            },
            Ok(other) => TargetFailure::NotApplied(format!("the table already holds {other:?}")),
            Err(failure) => failure,
        };
        if attempts >= options.max_attempts {
            return Err(ReplayError::Load { key: row.key, attempts, failure });
        }
        evenkeel_host::sleep(Duration::from_millis(options.retry_after_ms)).await;
    }
}
