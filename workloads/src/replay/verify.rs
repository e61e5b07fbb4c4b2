//! Run verification: reads everything back after a run.
//!
//! After a run every key in the ledger is read and judged. A read that fails is tried again until a
//! deadline, since the cluster may still be recovering from faults; a key that cannot be read by
//! then is reported as unread, never as intact.
//!
//! Then the keys of the whole table are listed once, a page at a time and without the values: rows
//! that nobody wrote are found only so, and a listing that leaves rows out, or gives them out of
//! order, is wrong although each row can be read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;

use super::error::ReplayError;
use super::ledger::{Ledger, RowVerdict};
use super::scheduler::{check_keys, plain};
use super::target::{Statement, StoredRow, Target, TargetAnswer, TargetStatementKind};
use super::value::value_matches;

/// Findings that are kept in words.
const MAX_FINDINGS: usize = 20;

/// Keys of one page of the listing.
const PAGE_ROWS: u32 = 10_000;

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
    /// The error.
    pub what: String,
}

/// The result of run verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Keys that were read and judged.
    pub verified_keys: u64,
    /// Keys whose acknowledged write is not there, or that hold what was never written.
    pub lost_writes: u64,
    /// Keys that could not be read.
    pub unread_keys: u64,
    /// Rows whose count of writes is not what was acknowledged: a write was applied twice, or one
    /// that a later one covers not at all.
    pub miscounted: u64,
    /// Rows in the listing of the whole table.
    pub listed_rows: u64,
    /// Rows of the listing that nobody wrote.
    pub unwritten_rows: u64,
    /// Pages of the listing that could not be read, left a row out, or were out of order.
    pub wrong_pages: u64,
    /// The first errors.
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
        self.miscounted += other.miscounted;
        self.listed_rows += other.listed_rows;
        self.unwritten_rows += other.unwritten_rows;
        self.wrong_pages += other.wrong_pages;
        for finding in other.findings {
            self.note(finding.key, finding.what);
        }
    }
}

/// Judges what was found at `key`; `None` if it is intact.
fn fault(ledger: &Ledger, key: i64, row: Option<&StoredRow>) -> Option<(RowVerdict, String)> {
    let found = row.map(StoredRow::found);
    let verdict = ledger.judge(key, found);
    let what = match verdict {
        RowVerdict::Lost { acknowledged } => format!("version {acknowledged} was acknowledged, found is {found:?}"),
        RowVerdict::NeverIssued => format!("{found:?} is there and was never written"),
        RowVerdict::Miscounted { least, most } => {
            format!("{least} to {most} writes can have made the row, and it counts otherwise: {found:?}")
        }
        RowVerdict::Intact => {
            let row =
                row.filter(|row| row.key != key || !value_matches(ledger.seed(), key, row.version, &row.value))?;
            format!("the value is not the one written as version {}", row.version)
        }
    };
    Some((verdict, what))
}

/// Reads back every key of the ledger, then lists the table. `progress` receives the number of keys
/// read so far.
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
    all.merge(list(&**target, &shared.ledger, &options).await);
    all.findings.sort_by_key(|finding| finding.key);
    Ok(all)
}

/// Lists the keys of the whole table.
async fn list<T: Target>(target: &T, ledger: &Ledger, options: &VerifyOptions) -> Verification {
    let mut found = Verification::default();
    let mut from = i64::MIN;
    loop {
        let page = plain(TargetStatementKind::Keys, from, PAGE_ROWS);
        let keys = match retried(target, &page, options).await {
            Ok(TargetAnswer::Keys(keys)) => keys,
            Ok(other) => {
                found.wrong_pages += 1;
                found.note(from, format!("the listing from here was answered with {other:?}"));
                return found;
            }
            Err(problem) => {
                found.wrong_pages += 1;
                found.note(from, format!("the keys from here could not be listed: {problem}"));
                return found;
            }
        };
        found.listed_rows += keys.len() as u64;
        if let Err(what) = check_keys(ledger, ledger.time(), from, PAGE_ROWS, &mut keys.iter().copied()) {
            found.wrong_pages += 1;
            found.note(from, what);
        }
        for key in keys.iter().filter(|key| !ledger.may_be_present(**key)) {
            found.unwritten_rows += 1;
            found.note(*key, "it is there and was never written".to_owned());
        }
        // The listing cannot continue after a page out of order: smaller keys than its last were
        // seen, or were left out.
        let last = keys.iter().max().copied().filter(|_| keys.len() >= PAGE_ROWS as usize);
        match last.and_then(|last| last.checked_add(1)).filter(|next| *next > from) {
            Some(next) => from = next,
            None => return found,
        }
    }
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
                if let Some((verdict, what)) = fault(&check.ledger, key, row.as_ref()) {
                    match verdict {
                        RowVerdict::Miscounted { .. } => found.miscounted += 1,
                        _ => found.lost_writes += 1,
                    }
                    found.note(key, what);
                }
            }
        }
    }
    found
}

async fn read_row<T: Target>(target: &T, key: i64, options: &VerifyOptions) -> Result<Option<StoredRow>, String> {
    match retried(target, &plain(TargetStatementKind::Read, key, 0), options).await? {
        TargetAnswer::Row(row) => Ok(row),
        other => Err(format!("answered with {other:?}")),
    }
}

/// The answer to a read, asked for again until the time for that is over.
async fn retried<T: Target>(target: &T, read: &Statement, options: &VerifyOptions) -> Result<TargetAnswer, String> {
    let deadline = evenkeel_host::tokio_now() + Duration::from_millis(options.unreadable_ms);
    loop {
        let problem = match target.execute(read).await.result {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure.to_string(),
        };
        if evenkeel_host::tokio_now() >= deadline {
            return Err(problem);
        }
        evenkeel_host::sleep(Duration::from_millis(options.retry_after_ms)).await;
    }
}
