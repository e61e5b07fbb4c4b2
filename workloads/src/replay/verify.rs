//! Reading everything back.
//!
//! After a run every key in the ledger is read and judged. A read that fails is tried again until a deadline, since the
//! cluster may still be recovering from what was done to it; a key that cannot be read by then is reported as unread, never
//! as intact.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ledger::{Ledger, Verdict};
use super::scheduler::plain;
use super::{Answer, ReplayError, StatementKind, StoredRow, Target, value_matches};

/// Findings that are kept in words.
const MAX_FINDINGS: usize = 20;

/// How the rows are read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Reads under way at once.
    pub concurrency: usize,
    /// How long a key may be unreadable, in milliseconds, before it counts as unread.
    pub unreadable_ms: u64,
    /// Wait between attempts, in milliseconds.
    pub retry_after_ms: u64,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { concurrency: 32, unreadable_ms: 30_000, retry_after_ms: 100 }
    }
}

/// A key that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The key.
    pub key: i64,
    /// What is wrong.
    pub what: String,
}

/// What reading back has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Keys that were read and judged.
    pub verified_keys: u64,
    /// Keys whose acknowledged write is not there, or that hold what was never written.
    pub lost_writes: u64,
    /// Keys that could not be read.
    pub unread_keys: u64,
    /// The first of the keys that are lost or unread.
    pub findings: Vec<Finding>,
}

impl Verification {
    fn note(&mut self, key: i64, what: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { key, what });
        }
    }

    fn merge(&mut self, other: Verification) {
        self.verified_keys += other.verified_keys;
        self.lost_writes += other.lost_writes;
        self.unread_keys += other.unread_keys;
        for finding in other.findings {
            self.note(finding.key, finding.what);
        }
    }
}

/// Judges what was found at `key`; `None` if it is intact.
fn fault(ledger: &Ledger, key: i64, row: Option<&StoredRow>) -> Option<String> {
    let found = row.map(|row| row.version);
    match ledger.judge(key, found) {
        Verdict::Lost { acknowledged } => {
            Some(format!("version {acknowledged} was acknowledged, found is version {found:?}"))
        }
        Verdict::NeverIssued => Some(format!("version {found:?} is there and was never written")),
        Verdict::Intact => row
            .filter(|row| row.key != key || !value_matches(ledger.seed(), key, row.version, &row.value))
            .map(|row| format!("the value is not the one written as version {}", row.version)),
    }
}

/// Reads back every key of the ledger. `progress` is told the number of keys read so far.
pub async fn verify<T: Target>(
    target: &Arc<T>,
    ledger: Ledger,
    options: VerifyOptions,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Verification, ReplayError> {
    let keys: VecDeque<i64> = ledger.sorted_keys().into();
    let shared = Arc::new(Check { ledger, keys: Mutex::new(keys), progress: Box::new(progress) });
    let mut tasks = JoinSet::new();
    for _ in 0..options.concurrency.max(1) {
        tasks.spawn(read_back(target.clone(), shared.clone(), options));
    }
    let mut all = Verification::default();
    while let Some(joined) = tasks.join_next().await {
        all.merge(joined.map_err(|error| ReplayError::Task(error.to_string()))?);
    }
    all.findings.sort_by_key(|finding| finding.key);
    Ok(all)
}

struct Check {
    ledger: Ledger,
    keys: Mutex<VecDeque<i64>>,
    progress: Box<dyn Fn(u64) + Send + Sync>,
}

impl Check {
    fn next_key(&self) -> Option<i64> {
        let (key, left) = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            (keys.pop_front(), keys.len())
        };
        if left.is_multiple_of(256) {
            (self.progress)((self.ledger.len() - left) as u64);
        }
        key
    }
}

async fn read_back<T: Target>(target: Arc<T>, check: Arc<Check>, options: VerifyOptions) -> Verification {
    let mut found = Verification::default();
    while let Some(key) = check.next_key() {
        match read_row(&*target, key, &options).await {
            Err(problem) => {
                found.unread_keys += 1;
                found.note(key, format!("it could not be read: {problem}"));
            }
            Ok(row) => {
                found.verified_keys += 1;
                if let Some(what) = fault(&check.ledger, key, row.as_ref()) {
                    found.lost_writes += 1;
                    found.note(key, what);
                }
            }
        }
    }
    found
}

async fn read_row<T: Target>(target: &T, key: i64, options: &VerifyOptions) -> Result<Option<StoredRow>, String> {
    let deadline = Instant::now() + Duration::from_millis(options.unreadable_ms);
    loop {
        let problem = match target.execute(&plain(StatementKind::Read, key, 0)).await.result {
            Ok(Answer::Row(row)) => return Ok(row),
            Ok(other) => format!("answered with {other:?}"),
            Err(failure) => failure.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(problem);
        }
        tokio::time::sleep(Duration::from_millis(options.retry_after_ms)).await;
    }
}
