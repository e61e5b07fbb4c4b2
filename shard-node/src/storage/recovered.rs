//! The record of what PostgreSQL holds, as it is read when PostgreSQL is opened.

use super::StoreError;
use super::raw_values::Raw;
use bytes::Bytes;
use std::collections::VecDeque;
use tokio_postgres::Client;

/// A row of `evenkeel.position`, without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PositionRow {
    /// Counts the batches; the table's key, because batches of a state transfer share a position.
    pub(super) batch: i64,
    pub(super) index: u64,
    pub(super) has_state: bool,
}

/// What PostgreSQL says is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// All effective entries up to here are in; 0 if nothing was ever applied.
    pub position: u64,
    /// Rows may be those of entries up to here; at least the position.
    pub reached: u64,
    /// The term given with that position.
    pub term: u64,
    /// The latest state that a batch carried, and that batch's position.
    pub state: Option<(u64, Bytes)>,
    /// The leader's own entries that are in, in no order. Some may be at or before `position`.
    pub records: Vec<AppliedRecord>,
    /// What recent batches carried as answers, oldest first; empty ones are left out.
    pub answers: Vec<Bytes>,
    /// What the last batch said of rows that are missing.
    pub seeding: Option<Bytes>,
    /// What a batch of the position said of transactions over several shards.
    pub transactions: Option<Bytes>,
}

/// An entry that a leader's own transaction has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedRecord {
    /// The entry's term.
    pub term: u64,
    /// Its number in the term.
    pub serial: u64,
    /// What it carried as answers.
    pub answers: Bytes,
}

/// Reads the two tables.
pub(super) async fn recover(client: &Client) -> Result<(VecDeque<PositionRow>, Recovered), StoreError> {
    let mut recovered = Recovered::default();
    let mut positions = VecDeque::new();
    let sql = "SELECT batch, index, term, state IS NOT NULL, answers, reached, transactions IS NOT NULL
        FROM evenkeel.position ORDER BY batch";
    // Transactions come with one batch of each position.
    let mut with_transactions = None;
    for row in client.query(sql, &[]).await? {
        let index = row.try_get::<_, i64>(1)? as u64;
        positions.push_back(PositionRow { batch: row.try_get(0)?, index, has_state: row.try_get(3)? });
        (recovered.position, recovered.term) = (index, row.try_get::<_, i64>(2)? as u64);
        if row.try_get(6)? {
            with_transactions = Some((index, row.try_get::<_, i64>(0)?));
        }
        recovered.reached = row.try_get::<_, i64>(5)? as u64;
        let Raw(answers) = row.try_get(4)?;
        if !answers.is_empty() {
            recovered.answers.push(Bytes::copy_from_slice(answers));
        }
    }
    if let Some(latest) = positions.iter().rfind(|row| row.has_state) {
        let row = client.query_one("SELECT state FROM evenkeel.position WHERE batch = $1", &[&latest.batch]).await?;
        let Raw(state) = row.try_get(0)?;
        recovered.state = Some((latest.index, Bytes::copy_from_slice(state)));
    }
    if let Some(last) = positions.back() {
        let row = client.query_one("SELECT seeding FROM evenkeel.position WHERE batch = $1", &[&last.batch]).await?;
        recovered.seeding = row.try_get::<_, Option<Raw<'_>>>(0)?.map(|Raw(missing)| Bytes::copy_from_slice(missing));
    }
    if let Some((_, batch)) = with_transactions.filter(|(index, _)| *index == recovered.position) {
        let row = client.query_one("SELECT transactions FROM evenkeel.position WHERE batch = $1", &[&batch]).await?;
        let Raw(transactions) = row.try_get(0)?;
        recovered.transactions = Some(Bytes::copy_from_slice(transactions));
    }
    for row in client.query("SELECT term, serial, answers FROM evenkeel.applied", &[]).await? {
        let Raw(answers) = row.try_get(2)?;
        recovered.records.push(AppliedRecord {
            term: row.try_get::<_, i64>(0)? as u64,
            serial: row.try_get::<_, i64>(1)? as u64,
            answers: Bytes::copy_from_slice(answers),
        });
    }
    Ok((positions, recovered))
}
