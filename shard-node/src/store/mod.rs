//! What a replica keeps in its PostgreSQL, and how the decided changes get in.
//!
//! Users' tables lie in schema `public`. Beside them the schema `evenkeel` holds the record of what is in them, so that
//! invariant 3 can be kept: whatever was applied is recorded in the same transaction.
//!
//! | table | a row says | written by |
//! |---|---|---|
//! | `evenkeel.applied` | the entry (term, serial) is in | the leader, in the user's own transaction, before it is proposed (R5) |
//! | `evenkeel.position` | all effective entries up to `index` are in | [`Store::apply`], in the batch's transaction |
//!
//! The leader's transactions commit concurrently and so out of order, which is why they need a record each; applied
//! batches come one after another, and a position says all. Both tables are insert-only and pruned behind (R5: a
//! snapshot that is held open makes updated rows slow and leaves inserts fast). A position's row can carry the
//! replica's other state, as bytes that mean nothing here, answers to be remembered (R14), and which rows are still missing (R32).
//!
//! **Applying.** [`Store::apply`] runs a batch as one transaction whose statements are all sent before the first answer
//! is read. The changes of one table are one multi-row statement; the caller has coalesced them per key (R15), since
//! one statement cannot touch a row twice. The session is a replica session (no triggers, no foreign keys). Tables with
//! further unique constraints are not made (SQL refuses them), so that rows can be upserted in any order.
//!
//! **Failing.** An error that the data causes would come again on every try: that is [`StoreError::Diverged`], and the
//! replica stops (invariant 5). Everything else leaves the transaction undone, and the batch can be given again.
//!
//! | module | what it holds |
//! |---|---|
//! | `apply` | batches |
//! | [`snapshot`] | reading a range as of one moment: chunks, checksums |
//! | `sample` | how large ranges are, and where one can be split by size, from a sample of pages |
//! | [`snapshots`] | sessions for that, kept ready |
//! | `statements` | SQL text made from schemas (pure) |
//! | [`raw`] | values in binary format, in and out, undecoded |
//! | `keys` | encoded keys as column values |
//! | [`bind`] | users' parameters |

mod apply;
pub mod bind;
mod errors;
mod keys;
mod own_tables;
pub mod raw;
mod sample;
pub mod snapshot;
pub mod snapshots;
mod statements;

pub use bind::{Parameter, parameter};
pub use errors::StoreError;
pub use own_tables::keep_clean;
pub use raw::{Raw, RawParameter};
pub use sample::Sample;
pub use snapshot::{Chunk, Extent, PinnedSnapshot, RowsOf};
pub use snapshots::Snapshots;

use crate::fold::CopiedRows;
use crate::image::Columns;
use crate::postgres::{Connector, Role};
use apply::Tables;
use bytes::Bytes;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, RowBatch, TableSchema};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio_postgres::{Client, Statement};

/// The statement with which the leader records its own entry in the user's transaction (R5). Parameters: term and
/// serial as `bigint` (an `u64`'s bits), answers as `bytea`.
pub const RECORD_SQL: &str = "INSERT INTO evenkeel.applied (term, serial, answers) VALUES ($1, $2, $3)";
/// The most records that one statement deletes.
const MAX_PRUNE_ROWS: usize = 10_000;

/// The apply session. One per replica, used by one task; invariant 3 rests on that.
#[derive(Debug)]
pub struct Store {
    client: Client,
    tables: Tables,
    insert_position: Statement,
    insert_record: Statement,
    /// The rows of `evenkeel.position` that are there, oldest first.
    positions: VecDeque<PositionRow>,
    /// Set while a transaction is under way. If it is found set, an earlier call was dropped in the middle, and nobody
    /// knows what the session is doing.
    busy: bool,
}

/// A row of `evenkeel.position`, without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PositionRow {
    /// Counts the batches; the table's key, because batches of a state transfer share a position.
    batch: i64,
    index: u64,
    has_state: bool,
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

/// Changes that go in together.
#[derive(Debug, Clone, Default)]
pub struct ApplyBatch {
    /// The changes, in order.
    pub operations: Vec<StoreOperation>,
    /// With them, all effective entries up to here are in. Never less than the batch's before.
    pub position: u64,
    /// The batch has rows of entries up to here, if that is more than the position: then entries behind the position come again after a
    /// restart (R12).
    pub reached: u64,
    /// Kept with the position.
    pub term: u64,
    /// The replica's state as of the position, if it is to be kept now.
    pub state: Option<Bytes>,
    /// Answers to be remembered; may be empty.
    pub answers: Bytes,
    /// Which rows are missing after this batch, if any are; bytes that mean nothing here.
    pub seeding: Option<Bytes>,
    /// R16: wait until this batch, and with it all before, is on the disk.
    pub sync: bool,
    /// Entries, by (term, serial), that a *leader* applies by this batch. Its own transactions commit in any order, so
    /// it records what it applies entry by entry too (invariant 3): with records the batch carries no position.
    pub records: Vec<(u64, u64)>,
}

/// Rows of a copy that are not stored as the copy brought them. The batch is in all the same: what becomes of the copy is not for one
/// replica to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Differing {
    /// The copy, and what its source says of the rows.
    pub copied: CopiedRows,
    /// Where they lie.
    pub interval: KeyInterval,
    /// What this PostgreSQL says of them.
    pub stored: RangeChecksum,
}

/// One step of a batch.
#[derive(Debug, Clone)]
pub enum StoreOperation {
    /// Makes a table by its `create_sql`.
    CreateTable(Arc<TableSchema>),
    /// Drops a table, if it is there.
    DropTable(Arc<TableSchema>),
    /// Changes rows of a table. A key is in at most one of the two lists, once (R15).
    Rows {
        /// The table.
        table: Arc<TableSchema>,
        /// New row images: all columns, packed (see `protocol::rows`).
        upserts: Vec<Bytes>,
        /// Keys of rows to delete; rows that are not there are fine.
        deletes: Vec<Key>,
    },
    /// Sets columns of rows that are there; of a row that is not, nothing. A key is in one of the lists of a run of such operations
    /// and of `Rows`, once (R15).
    Update {
        /// The table.
        table: Arc<TableSchema>,
        /// Which columns; none of the key.
        columns: Columns,
        /// Keys, and the new values, packed.
        rows: Vec<(Key, Bytes)>,
    },
    /// Makes `rows` all that is in an interval. The rows must lie in it.
    ReplaceInterval {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
        /// The rows: all columns.
        rows: RowBatch,
        /// What the copy that brought them says of them: compared, in the transaction that stores them, with what is stored then.
        copied: Option<CopiedRows>,
    },
    /// Deletes all rows in an interval.
    DeleteInterval {
        /// The table.
        table: Arc<TableSchema>,
        /// The interval.
        interval: KeyInterval,
    },
}

/// Of this replica only. Blobs are stored as they are: compressing them costs more than it saves on rows that soon go.
/// What is inserted is deleted again soon, so that vacuum goes by counts, not by shares.
const MAKE_SCHEMA: &str = "
BEGIN;
SET LOCAL synchronous_commit = on;
CREATE SCHEMA evenkeel;
CREATE TABLE evenkeel.applied (term bigint NOT NULL, serial bigint NOT NULL, answers bytea NOT NULL, PRIMARY KEY (term, serial))
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
ALTER TABLE evenkeel.applied ALTER answers SET STORAGE EXTERNAL;
CREATE TABLE evenkeel.position (batch bigint PRIMARY KEY, index bigint NOT NULL, reached bigint NOT NULL, term bigint NOT NULL,
    state bytea, answers bytea NOT NULL, seeding bytea)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
ALTER TABLE evenkeel.position ALTER state SET STORAGE EXTERNAL, ALTER answers SET STORAGE EXTERNAL;
GRANT USAGE ON SCHEMA evenkeel TO evenkeel_user;
GRANT INSERT ON evenkeel.applied TO evenkeel_user;
COMMIT";

/// The plans of the few statements are known in advance: one probe of the key's index per row. Statistics, which a bulk
/// load outruns, must not turn them into scans. Nothing that applies may wait for ever for a lock.
const SET_UP_SESSION: &str = "
SET session_replication_role = replica;
SET synchronous_commit = off;
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET lock_timeout = '10s'";

/// Statements are sent before it is known that BEGIN has come about: what follows a BEGIN that failed must not commit by itself.
const READ_ONLY: &str = "SET default_transaction_read_only = on";
/// Before what is tried: nothing that serves waits long for it.
const BEGIN_TRIAL: &str = "BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'";

/// Tries whether a table can be made here, as an apply would make it, and unmakes it.
///
/// # Errors
/// [`StoreError::Refused`] with what PostgreSQL has against it, unless the error is one of the moment (`StoreError::passes`).
pub async fn try_table(connector: &Connector, schema: &Arc<TableSchema>) -> Result<(), StoreError> {
    let client = connector.connect(Role::Admin).await?;
    client.batch_execute(SET_UP_SESSION).await?;
    client.batch_execute(BEGIN_TRIAL).await?;
    let tried = apply::try_table(&client, schema).await;
    client.batch_execute("ROLLBACK").await?;
    tried
}

impl Store {
    /// Opens the session, makes the schema if it is missing, and reads what is in (R2: after the server was started
    /// again).
    ///
    /// # Errors
    /// [`StoreError::SessionLost`] and [`StoreError::Refused`] can be tried again; after [`StoreError::Diverged`] the
    /// replica must stop.
    pub async fn open(connector: &Connector) -> Result<(Store, Recovered), StoreError> {
        let client = connector.connect(Role::Admin).await?;
        client.batch_execute(SET_UP_SESSION).await?;
        let found = client.query_opt("SELECT 1 FROM pg_namespace WHERE nspname = 'evenkeel'", &[]).await?;
        if found.is_none() {
            client.batch_execute(MAKE_SCHEMA).await?;
        }
        let insert = "INSERT INTO evenkeel.position (batch, index, reached, term, state, answers, seeding)
            VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let insert_position = client.prepare(insert).await?;
        let insert_record = client.prepare(RECORD_SQL).await?;
        let (positions, recovered) = recover(&client).await?;
        client.batch_execute(READ_ONLY).await?;
        let tables = Tables::default();
        Ok((Store { client, tables, insert_position, insert_record, positions, busy: false }, recovered))
    }

    /// The position of the last batch that is in; 0 if there is none.
    pub fn position(&self) -> u64 {
        self.positions.back().map_or(0, |row| row.index)
    }

    /// Deletes records of the leader's own entries, given as (term, serial), and positions below `positions_below`. The
    /// latest position, and the latest that carries state, stay in any case.
    ///
    /// # Errors
    /// As for [`Store::apply`]; nothing was deleted then.
    pub async fn prune(&mut self, records: &[(u64, u64)], positions_below: u64) -> Result<(), StoreError> {
        let last_state = self.positions.iter().rposition(|row| row.has_state);
        let keep_from = last_state.unwrap_or(usize::MAX).min(self.positions.len().saturating_sub(1));
        let old = self.positions.iter().take(keep_from).take_while(|row| row.index < positions_below).count();
        if records.is_empty() && old == 0 {
            return Ok(());
        }
        self.begin_exclusive()?;
        let result = self.delete_records(records, old).await;
        self.end(&result, "ROLLBACK").await;
        if result.is_ok() {
            self.positions.drain(..old);
        }
        result.map_err(StoreError::while_applying)
    }

    async fn delete_records(&self, records: &[(u64, u64)], positions: usize) -> Result<(), StoreError> {
        self.client.batch_execute("BEGIN READ WRITE").await?;
        for piece in records.chunks(MAX_PRUNE_ROWS) {
            let (terms, serials): (Vec<i64>, Vec<i64>) = piece.iter().map(|&(t, s)| (t as i64, s as i64)).unzip();
            let sql =
                "DELETE FROM evenkeel.applied AS a USING unnest($1::bigint[], $2::bigint[]) AS given(term, serial)
                       WHERE a.term = given.term AND a.serial = given.serial";
            self.client.execute(sql, &[&terms, &serials]).await?;
        }
        if let (Some(first), Some(last)) = (self.positions.front(), self.positions.range(..positions).last()) {
            // From the first that is left on: what was deleted before may still lie in the index, and walking over it
            // again would take longer each time.
            let sql = "DELETE FROM evenkeel.position WHERE batch >= $1 AND batch <= $2";
            self.client.execute(sql, &[&first.batch, &last.batch]).await?;
        }
        Ok(self.client.batch_execute("COMMIT").await?)
    }

    /// Drops all users' tables and all records: what a replica does before it takes another's state. Afterwards the
    /// position is 0.
    ///
    /// # Errors
    /// As for [`Store::apply`]; nothing was dropped then.
    pub async fn clear(&mut self) -> Result<(), StoreError> {
        self.begin_exclusive()?;
        // R17: nobody who reads here may hold this up. None of a user's sessions has a reason to be left.
        let end_users = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'evenkeel_user';";
        let drop_all = "
            BEGIN READ WRITE;
            SET LOCAL synchronous_commit = on;
            TRUNCATE evenkeel.applied, evenkeel.position;
            DO $$ DECLARE name text; BEGIN
                FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
                    EXECUTE format('DROP TABLE public.%I CASCADE', name);
                END LOOP;
            END $$;
            COMMIT";
        let ended = self.client.batch_execute(end_users).await;
        let result = match ended {
            Ok(()) => self.client.batch_execute(drop_all).await.map_err(StoreError::from),
            Err(error) => Err(StoreError::from(error)),
        };
        self.end(&result, "ROLLBACK").await;
        if result.is_ok() {
            self.positions.clear();
            self.tables = Tables::default();
        }
        result.map_err(StoreError::while_applying)
    }

    /// Marks the session as in use.
    fn begin_exclusive(&mut self) -> Result<(), StoreError> {
        if std::mem::replace(&mut self.busy, true) {
            tracing::warn!("an apply was dropped before it was done; its session is given up");
            return Err(StoreError::SessionLost);
        }
        Ok(())
    }

    /// Marks the session as free again, after making sure that a failed transaction is over.
    async fn end<T>(&mut self, result: &Result<T, StoreError>, rollback: &str) {
        self.busy = match result {
            Ok(_) => false,
            Err(_) => self.client.batch_execute(rollback).await.is_err(),
        };
    }
}

/// Reads the two tables.
async fn recover(client: &Client) -> Result<(VecDeque<PositionRow>, Recovered), StoreError> {
    let mut recovered = Recovered::default();
    let mut positions = VecDeque::new();
    let sql = "SELECT batch, index, term, state IS NOT NULL, answers, reached FROM evenkeel.position ORDER BY batch";
    for row in client.query(sql, &[]).await? {
        let index = row.try_get::<_, i64>(1)? as u64;
        positions.push_back(PositionRow { batch: row.try_get(0)?, index, has_state: row.try_get(3)? });
        (recovered.position, recovered.term) = (index, row.try_get::<_, i64>(2)? as u64);
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

#[cfg(test)]
mod tests;
