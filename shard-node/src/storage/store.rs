//! [`Store`]: the apply session of a replica.

use super::StoreError;
use super::apply_batch::{RecordStatements, run_batch};
use super::batch::{ApplyBatch, Differing};
use super::prepared::PreparedTables;
use super::recovered::{PositionRow, Recovered, recover};
use super::schema::{MAKE_SCHEMA, READ_ONLY, RECORD_SQL, SET_UP_SESSION};
use crate::postgres::{Connector, OWNER_PRIVILEGES, SessionRole};
use std::collections::VecDeque;
use tokio_postgres::{Client, Statement};

/// The most records that one statement deletes.
const MAX_PRUNE_ROWS: usize = 10_000;

/// The apply session. One per replica, used by one task; invariant 3 rests on that.
#[derive(Debug)]
pub struct Store {
    pub(super) client: Client,
    prepared: PreparedTables,
    insert_position: Statement,
    insert_record: Statement,
    /// The rows of `evenkeel.position` that are there, oldest first.
    pub(super) positions: VecDeque<PositionRow>,
    /// Set while a transaction is under way. If it is found set, an earlier call was dropped in the
    /// middle, and the state of the session is unknown.
    busy: bool,
}

impl Store {
    /// Opens the session, makes the schema if it is missing, and reads the record of applied
    /// entries (R2: after the server was started again).
    ///
    /// # Errors
    /// [`StoreError::SessionLost`] and [`StoreError::Refused`] can be tried again; after
    /// [`StoreError::Diverged`] the replica must stop.
    pub async fn open(connector: &Connector) -> Result<(Store, Recovered), StoreError> {
        let client = connector.connect(SessionRole::Admin).await?;
        client.batch_execute(SET_UP_SESSION).await?;
        let found = client.query_opt("SELECT 1 FROM pg_namespace WHERE nspname = 'evenkeel'", &[]).await?;
        if found.is_none() {
            client.batch_execute(MAKE_SCHEMA).await?;
        }
        let insert =
            "INSERT INTO evenkeel.position (batch, index, reached, term, state, answers, seeding, transactions)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let insert_position = client.prepare(insert).await?;
        let insert_record = client.prepare(RECORD_SQL).await?;
        let (positions, recovered) = recover(&client).await?;
        client.batch_execute(READ_ONLY).await?;
        let prepared = PreparedTables::default();
        Ok((Store { client, prepared, insert_position, insert_record, positions, busy: false }, recovered))
    }

    /// The position of the last batch that is in; 0 if there is none.
    pub fn position(&self) -> u64 {
        self.positions.back().map_or(0, |row| row.index)
    }

    /// Applies a batch in one transaction: all of it is in afterwards, or nothing. Gives the rows
    /// of copies that are not stored as they came. Not to be dropped before it is done; a session
    /// whose apply was dropped is given up at the next call.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`]: open the store again, which tells whether the batch is in.
    /// [`StoreError::Refused`]: it is not in; try again. [`StoreError::Diverged`]: the replica must
    /// stop (invariant 5).
    pub async fn apply(&mut self, batch: &ApplyBatch) -> Result<Vec<Differing>, StoreError> {
        if batch.records.is_empty() && batch.position < self.position() {
            let reason = format!("a batch for position {} after position {}", batch.position, self.position());
            return Err(StoreError::Diverged(reason));
        }
        self.begin_exclusive()?;
        let row = PositionRow {
            batch: self.positions.back().map_or(1, |row| row.batch + 1),
            index: batch.position,
            has_state: batch.state.is_some(),
        };
        let statements = RecordStatements { position: &self.insert_position, record: &self.insert_record };
        let result = run_batch(&self.client, &mut self.prepared, statements, batch, &row).await;
        self.end(&result, "ROLLBACK").await;
        match result {
            Ok(differing) => {
                if batch.records.is_empty() {
                    self.positions.push_back(row);
                }
                Ok(differing)
            }
            Err(error) => {
                // Statements prepared on a table that the rollback has unmade are of no use.
                self.prepared = PreparedTables::default();
                Err(error.while_applying())
            }
        }
    }

    /// Deletes records of the leader's own entries, given as (term, serial), and positions below
    /// `positions_below`. The latest position, and the latest that carries state, stay in any case.
    ///
    /// # Errors
    /// As for [`Store::apply`]; nothing was deleted then.
    pub async fn prune(&mut self, records: &[(u64, u64)], positions_below: u64) -> Result<(), StoreError> {
        let last_state = self.positions.iter().rposition(|row| row.has_state);
        let keep_from = last_state.unwrap_or(usize::MAX).min(self.positions.len().saturating_sub(1));
        // Nor do earlier batches of the latest position: one of them has its transactions.
        let below = positions_below.min(self.position());
        let old = self.positions.iter().take(keep_from).take_while(|row| row.index < below).count();
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
            // From the first that is left on: what was deleted before may still lie in the index,
            // and walking over it again would take longer each time.
            let sql = "DELETE FROM evenkeel.position WHERE batch >= $1 AND batch <= $2";
            self.client.execute(sql, &[&first.batch, &last.batch]).await?;
        }
        Ok(self.client.batch_execute("COMMIT").await?)
    }

    /// Drops everything that users have made, and all records: what a replica does before it takes
    /// another's state. Afterwards the position is 0.
    ///
    /// # Errors
    /// As for [`Store::apply`]; nothing was dropped then.
    pub async fn clear(&mut self) -> Result<(), StoreError> {
        self.begin_exclusive()?;
        // R17: no reading session may delay this. None of a user's sessions has a reason to be
        // left.
        let end_users = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename ^@ 'evenkeel_user';";
        let drop_all = "
            BEGIN READ WRITE;
            SET LOCAL synchronous_commit = on;
            TRUNCATE evenkeel.applied, evenkeel.position;
            DO $$ DECLARE name text; BEGIN
                FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
                    EXECUTE format('DROP TABLE public.%I CASCADE', name);
                END LOOP;
            END $$;
            ALTER SCHEMA public OWNER TO evenkeel;
            DROP OWNED BY evenkeel_owner CASCADE;";
        let drop_all = format!("{drop_all}{OWNER_PRIVILEGES}; COMMIT");
        let ended = self.client.batch_execute(end_users).await;
        let result = match ended {
            Ok(()) => self.client.batch_execute(&drop_all).await.map_err(StoreError::from),
            Err(error) => Err(StoreError::from(error)),
        };
        self.end(&result, "ROLLBACK").await;
        if result.is_ok() {
            self.positions.clear();
            self.prepared = PreparedTables::default();
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
