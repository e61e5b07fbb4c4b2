//! Running a statement in a transaction.

use super::data::{Commit, Row, Table, Tables};
use super::evaluate::{Scope, changed, eval, joined, matches, named, project, row_hash, single_key};
use super::server::{Committing, RowId, SimulatedPostgres};
use super::statement::{Condition, Expr, OnConflict, Statement, Wanted};
use super::values::{ARRAYS, BIGINT, BYTEA, Failed, Value, as_int, int, unpack};
use crate::process;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// While statements are cancelled, one in this many is.
const CANCELLED_IN: u64 = 8;

/// The result of a statement.
#[derive(Debug, Default)]
pub(super) struct StatementResult {
    pub rows: Vec<Vec<Value>>,
    pub affected: u64,
}

/// A session's transaction.
#[derive(Default)]
pub(super) struct Transaction {
    pub open: bool,
    pub failed: bool,
    repeatable: bool,
    read_only: bool,
    snapshot: Option<Tables>,
    commit: Commit,
    cursors: BTreeMap<String, Cursor>,
    /// Its writes at each savepoint. Locks stay, as PostgreSQL's may.
    savepoints: Vec<BTreeMap<RowId, Option<Row>>>,
}

/// A cursor that is open.
pub(super) struct Cursor {
    /// Names and types of its columns.
    pub columns: Vec<(String, u32)>,
    rows: std::vec::IntoIter<Vec<Value>>,
}

/// One session's way to run statements.
pub(super) struct Runner {
    pub server: SimulatedPostgres,
    pub session: u64,
    pub transaction: Transaction,
    pub lock_timeout_ms: u64,
    /// Whether its transactions write only if they say so.
    pub read_only: bool,
}

impl Runner {
    /// Runs a statement. `parameters` are in binary format.
    pub async fn run(&mut self, statement: &Statement, parameters: &[Value]) -> Result<StatementResult, Failed> {
        let ends = matches!(statement, Statement::Commit | Statement::Rollback | Statement::RollbackTo);
        if self.transaction.failed && !ends {
            return Err(Failed("25P02", "current transaction is aborted".into()));
        }
        let alone = !self.transaction.open;
        let result = match self.obstacle(statement) {
            Some(failed) => Err(failed),
            None => self.run_within(statement, parameters).await,
        };
        match &result {
            Err(_) if matches!(statement, Statement::Commit) => self.roll_back(),
            Err(_) if alone => self.roll_back(),
            Err(_) => self.transaction.failed = true,
            // A statement outside of a transaction is one.
            Ok(_) if alone && !self.transaction.open => self.commit().await,
            Ok(_) => {}
        }
        result
    }

    /// The fault that a statement hits, if any: it is cancelled, or the disk is full.
    fn obstacle(&self, statement: &Statement) -> Option<Failed> {
        let mut state = self.server.state();
        let is_user = state.sessions.get(&self.session).is_some_and(|session| session.is_user);
        let undoes = matches!(statement, Statement::Rollback | Statement::RollbackTo);
        if state.cancels && is_user && !undoes && process::once_in(CANCELLED_IN) {
            return Some(Failed("57014", "canceling statement due to user request".into()));
        }
        let writes = match statement {
            Statement::Insert { .. } | Statement::Update { .. } | Statement::Delete { .. } | Statement::Create(..) => {
                true
            }
            Statement::Commit => !self.transaction.commit.rows.is_empty(),
            _ => false,
        };
        let read_only = if self.transaction.open { self.transaction.read_only } else { self.read_only };
        if writes && read_only {
            return Some(Failed("25006", "cannot write in a read-only transaction".into()));
        }
        if !state.full || !writes {
            return None;
        }
        if matches!(statement, Statement::Commit) {
            // PostgreSQL ends when it cannot write its log.
            state.end_all();
            state.lose_commits();
            state.running = false;
            if let Some(down) = state.down.take() {
                down.send_replace(true);
            }
            self.server.released.notify_waiters();
        }
        Some(Failed("53100", "could not write: No space left on device".into()))
    }

    async fn run_within(&mut self, statement: &Statement, parameters: &[Value]) -> Result<StatementResult, Failed> {
        match statement {
            Statement::Begin { repeatable, writes } => {
                let read_only = writes.map_or(self.read_only, |writes| !writes);
                self.transaction =
                    Transaction { open: true, repeatable: *repeatable, read_only, ..Transaction::default() };
            }
            Statement::ReadOnly => self.read_only = true,
            Statement::Commit if self.transaction.failed => self.roll_back(),
            Statement::Commit => self.commit().await,
            Statement::Rollback => self.roll_back(),
            Statement::Savepoint if !self.transaction.open => {
                return Err(Failed("25P01", "SAVEPOINT can only be used in transaction blocks".into()));
            }
            Statement::Savepoint => self.transaction.savepoints.push(self.transaction.commit.rows.clone()),
            Statement::RollbackTo => {
                let kept = self.transaction.savepoints.last().cloned();
                self.transaction.commit.rows = kept.ok_or_else(|| Failed("3B001", "no savepoint".into()))?;
                self.transaction.failed = false;
            }
            Statement::SyncCommit => self.transaction.commit.sync = true,
            Statement::LockTimeout(ms) => self.lock_timeout_ms = *ms,
            Statement::Nothing => {}
            Statement::Pin => self.transaction.snapshot = Some(self.server.tables()),
            Statement::HasSchema => {
                let found = self.server.tables().get("evenkeel.position").is_some();
                let rows = if found { vec![vec![int(1)]] } else { Vec::new() };
                return Ok(StatementResult { affected: rows.len() as u64, rows });
            }
            Statement::RelationSize => return Ok(StatementResult { affected: 1, rows: vec![vec![int(0)]] }),
            Statement::MakeSchema => self.make_schema().await,
            Statement::Clear => self.clear().await,
            Statement::ArrayTypes => return array_types(parameters),
            Statement::EndSessions => return Ok(self.end_sessions()),
            Statement::Create(name, columns, key) => {
                if self.table(name).is_none() {
                    let mut table = Table { columns: columns.clone(), ..Table::default() };
                    table.key = key.iter().filter_map(|column| table.column(column)).collect();
                    self.transaction.commit.tables.push((name.as_str().into(), Some(table)));
                }
            }
            Statement::Insert { .. } => return self.insert(statement, parameters).await,
            Statement::Update { .. } => return self.update(statement, parameters).await,
            Statement::Delete { table, given, filter, returning } => {
                return self.delete(table, given, filter, returning, parameters).await;
            }
            Statement::Declare(name, select) => {
                let Statement::Select { table, wanted: Wanted::Rows(exprs), filter, .. } = &**select else {
                    return Err(Failed("42601", "a cursor over rows expected".into()));
                };
                let wanted = Wanted::Rows(exprs.clone());
                let rows = self.select(table, &wanted, filter, None, false, parameters).await?.rows;
                let columns = named(&*self.known(table)?, exprs);
                let cursor = Cursor { columns, rows: rows.into_iter() };
                if !self.transaction.open || self.transaction.cursors.insert(name.clone(), cursor).is_some() {
                    return Err(Failed("25P01", format!("cursor {name:?} cannot be declared here")));
                }
            }
            Statement::Fetch(rows, name) => {
                let Some(cursor) = self.transaction.cursors.get_mut(name) else { return Err(no_cursor(name)) };
                let rows: Vec<Vec<Value>> = cursor.rows.by_ref().take(*rows).collect();
                return Ok(StatementResult { affected: rows.len() as u64, rows });
            }
            Statement::Close(name) => {
                self.transaction.cursors.remove(name).ok_or_else(|| no_cursor(name))?;
            }
            Statement::Select { table, wanted, filter, limit, locks } => {
                return self.select(table, wanted, filter, limit.as_ref(), *locks, parameters).await;
            }
        }
        Ok(StatementResult::default())
    }

    async fn make_schema(&mut self) {
        let applied = Table::new(&[("term", BIGINT), ("serial", BIGINT), ("answers", BYTEA)], &[0, 1]);
        let columns = [
            ("batch", BIGINT),
            ("index", BIGINT),
            ("reached", BIGINT),
            ("term", BIGINT),
            ("state", BYTEA),
            ("answers", BYTEA),
            ("seeding", BYTEA),
            ("transactions", BYTEA),
        ];
        let position = Table::new(&columns, &[0]);
        let tables = vec![("evenkeel.applied".into(), Some(applied)), ("evenkeel.position".into(), Some(position))];
        self.transaction.commit = Commit { sync: true, tables, rows: BTreeMap::new() };
        self.commit().await;
    }

    async fn clear(&mut self) {
        let mut commit = Commit { sync: true, ..Commit::default() };
        for (name, table) in self.server.tables().iter() {
            let kept = name.starts_with("evenkeel.").then(|| Table { rows: BTreeMap::new(), ..(**table).clone() });
            commit.tables.push((name.clone(), kept));
        }
        self.transaction.commit = commit;
        self.commit().await;
    }

    fn end_sessions(&self) -> StatementResult {
        let mut state = self.server.state();
        let users: Vec<u64> = state.sessions.iter().filter(|(_, s)| s.is_user).map(|(id, _)| *id).collect();
        users.iter().for_each(|session| state.end(*session));
        drop(state);
        self.server.released.notify_waiters();
        StatementResult { affected: users.len() as u64, rows: users.iter().map(|_| vec![int(1)]).collect() }
    }

    /// The COMMIT is received now and done a little later, even if the session ends meanwhile.
    async fn commit(&mut self) {
        let commit = std::mem::take(&mut self.transaction).commit;
        let slow = match process::below(16) {
            0 => process::below(30),
            1..=4 => process::below(3),
            _ => 0,
        };
        let slow = if self.is_to_end() { 4 + process::below(30) } else { slow };
        let due_ms = process::now_ms() + slow;
        self.server.state().committing.insert(self.session, Committing { due_ms, commit });
        if slow > 0 {
            evenkeel_host::sleep(Duration::from_millis(slow / 2)).await;
            self.end_meanwhile();
            evenkeel_host::sleep(Duration::from_millis(slow - slow / 2)).await;
        }
        {
            let mut state = self.server.state();
            state.pass();
            // Gone if the session was ended meanwhile; then no client waits for this either.
            if let Some(committing) = state.committing.remove(&self.session) {
                state.commit(committing.commit);
            }
            let session = self.session;
            state.locks.retain(|_, holder| *holder != session);
        }
        self.server.released.notify_waiters();
    }

    /// Whether this session may be ended in its COMMIT: then that takes its time.
    fn is_to_end(&self) -> bool {
        let state = self.server.state();
        state.ends_committing && state.sessions.get(&self.session).is_some_and(|session| session.is_user)
    }

    /// Terminates this backend, if a fault asks for it and another session waits for its locks.
    fn end_meanwhile(&self) {
        let mut state = self.server.state();
        let is_user = state.sessions.get(&self.session).is_some_and(|session| session.is_user);
        if state.ends_committing && is_user && state.is_waited_for(self.session) {
            state.ends_committing = false;
            state.end(self.session);
            drop(state);
            self.server.released.notify_waiters();
        }
    }

    /// A cursor's columns.
    pub fn cursor_columns(&self, name: &str) -> Result<Vec<(String, u32)>, Failed> {
        let cursor = self.transaction.cursors.get(name).ok_or_else(|| no_cursor(name))?;
        Ok(cursor.columns.clone())
    }

    pub fn roll_back(&mut self) {
        self.transaction = Transaction::default();
        let session = self.session;
        self.server.state().locks.retain(|_, holder| *holder != session);
        self.server.released.notify_waiters();
    }

    /// A table as this transaction sees it, without its own rows.
    pub fn table(&self, name: &str) -> Option<Arc<Table>> {
        let made = self.transaction.commit.tables.iter().rev().find(|(made, _)| &**made == name);
        if let Some((_, table)) = made {
            return table.clone().map(Arc::new);
        }
        match &self.transaction.snapshot {
            Some(snapshot) => snapshot.get(name).cloned(),
            None => {
                let mut state = self.server.state();
                state.pass();
                state.tables.get(name).cloned()
            }
        }
    }

    fn known(&mut self, name: &str) -> Result<Arc<Table>, Failed> {
        if self.transaction.repeatable && self.transaction.snapshot.is_none() {
            self.transaction.snapshot = Some(self.server.tables());
        }
        self.table(name).ok_or_else(|| Failed("42P01", format!("relation {name:?} does not exist")))
    }

    fn row(&self, name: &str, table: &Table, key: &[u8]) -> Option<Row> {
        match self.transaction.commit.rows.get(&(Arc::from(name), key.to_vec())) {
            Some(own) => own.clone(),
            None => table.rows.get(key).cloned(),
        }
    }

    /// The keys of the rows that match, in order.
    fn matching(
        &self,
        name: &str,
        table: &Table,
        filter: &[Condition],
        scope: &Scope<'_>,
    ) -> Result<Vec<Vec<u8>>, Failed> {
        let mut keys: Vec<Vec<u8>> = match single_key(table, filter, scope)? {
            Some(key) => vec![key],
            None => {
                let own = self.transaction.commit.rows.keys().filter(|(t, _)| &**t == name).map(|(_, key)| key.clone());
                let mut all: Vec<Vec<u8>> = table.rows.keys().cloned().chain(own).collect();
                all.sort_unstable();
                all.dedup();
                all
            }
        };
        let mut found = Vec::new();
        for key in keys.drain(..) {
            if let Some(row) = self.row(name, table, &key)
                && matches(table, filter, &Scope { row: Some(&row), ..*scope })?
            {
                found.push(key);
            }
        }
        Ok(found)
    }

    async fn lock(&self, name: &str, key: &[u8]) -> Result<(), Failed> {
        let id: RowId = (Arc::from(name), key.to_vec());
        let deadline = evenkeel_host::tokio_now() + Duration::from_millis(self.lock_timeout_ms);
        loop {
            let released = self.server.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            {
                let mut state = self.server.state();
                state.pass();
                match state.locks.get(&id) {
                    Some(holder) if *holder != self.session => _ = state.waiting.insert(self.session, id.clone()),
                    _ => {
                        state.waiting.remove(&self.session);
                        state.locks.insert(id, self.session);
                        return Ok(());
                    }
                }
            }
            if self.lock_timeout_ms == 0 {
                released.await;
            } else if evenkeel_host::timeout_at(deadline, released).await.is_err() {
                self.server.state().waiting.remove(&self.session);
                return Err(Failed("55P03", "canceling statement due to lock timeout".into()));
            }
        }
    }

    fn put(&mut self, name: &str, key: Vec<u8>, row: Option<Row>) {
        self.transaction.commit.rows.insert((Arc::from(name), key), row);
    }

    async fn insert(&mut self, statement: &Statement, parameters: &[Value]) -> Result<StatementResult, Failed> {
        let Statement::Insert { table: name, columns, values, arrays, conflict, returning } = statement else {
            return Err(Failed("XX000", "no INSERT".into()));
        };
        let table = self.known(name)?;
        let scope = Scope { parameters, ..Scope::default() };
        let given: Vec<Vec<Value>> = if *arrays {
            let unpacked =
                values.iter().map(|value| unpack(eval(&table, value, &scope)?)).collect::<Result<Vec<_>, _>>()?;
            let count = unpacked.first().map_or(0, Vec::len);
            (0..count).map(|n| unpacked.iter().map(|column| column[n].clone()).collect()).collect()
        } else {
            vec![values.iter().map(|value| eval(&table, value, &scope)).collect::<Result<_, _>>()?]
        };
        let places: Option<Vec<usize>> = columns.iter().map(|column| table.column(column)).collect();
        let places = places.ok_or_else(|| Failed("42703", "an unknown column".into()))?;
        let mut outcome = StatementResult::default();
        for values in given {
            let mut row: Vec<Value> = vec![None; table.columns.len()];
            places.iter().zip(values).for_each(|(place, value)| row[*place] = value);
            let key = table.key_of(&row).ok_or_else(|| Failed("23502", "null in the key".into()))?;
            self.lock(name, &key).await?;
            let now = self.known(name)?;
            let found = self.row(name, &now, &key);
            let scope = Scope { locked: found.is_some(), parameters, ..Scope::default() };
            let new = match (found, conflict) {
                (None, _) => row,
                (Some(_), OnConflict::Fail) => return Err(Failed("23505", format!("duplicate key in {name}"))),
                (Some(_), OnConflict::Nothing) => continue,
                (Some(old), OnConflict::Update(set)) => {
                    let scope = Scope { row: Some(&old), excluded: Some(&row), ..scope };
                    changed(&table, &old, set, &scope)?
                }
            };
            let new: Row = new.into();
            outcome.rows.push(project(&table, returning, &Scope { row: Some(&new), ..scope })?);
            outcome.affected += 1;
            self.put(name, key, Some(new));
        }
        if returning.is_empty() {
            outcome.rows.clear();
        }
        Ok(outcome)
    }

    async fn update(&mut self, statement: &Statement, parameters: &[Value]) -> Result<StatementResult, Failed> {
        let Statement::Update { table: name, set, given, filter, returning } = statement else {
            return Err(Failed("XX000", "no UPDATE".into()));
        };
        let table = self.known(name)?;
        let mut outcome = StatementResult::default();
        for joined in joined(given, parameters)? {
            let scope = Scope { given: Some(&joined), parameters, ..Scope::default() };
            for key in self.matching(name, &table, filter, &scope)? {
                self.lock(name, &key).await?;
                // The holder of the lock before may have changed the row.
                let now = self.known(name)?;
                let Some(old) = self.row(name, &now, &key) else { continue };
                let scope = Scope { row: Some(&old), ..scope };
                if !matches(&table, filter, &scope)? {
                    continue;
                }
                let new: Row = changed(&table, &old, set, &scope)?.into();
                outcome.rows.push(project(&table, returning, &Scope { row: Some(&new), ..scope })?);
                outcome.affected += 1;
                self.put(name, key, Some(new));
            }
        }
        Ok(outcome)
    }

    async fn delete(
        &mut self,
        name: &str,
        given: &[(usize, String)],
        filter: &[Condition],
        returning: &[Expr],
        parameters: &[Value],
    ) -> Result<StatementResult, Failed> {
        let table = self.known(name)?;
        let mut keys = Vec::new();
        for joined in joined(given, parameters)? {
            let scope = Scope { given: Some(&joined), parameters, ..Scope::default() };
            keys.extend(self.matching(name, &table, filter, &scope)?);
        }
        let mut outcome = StatementResult::default();
        for key in keys {
            self.lock(name, &key).await?;
            let now = self.known(name)?;
            let Some(old) = self.row(name, &now, &key) else { continue };
            if !returning.is_empty() {
                outcome.rows.push(project(
                    &table,
                    returning,
                    &Scope { row: Some(&old), parameters, ..Scope::default() },
                )?);
            }
            outcome.affected += 1;
            self.put(name, key, None);
        }
        Ok(outcome)
    }

    async fn select(
        &mut self,
        name: &str,
        wanted: &Wanted,
        filter: &[Condition],
        limit: Option<&Expr>,
        locks: bool,
        parameters: &[Value],
    ) -> Result<StatementResult, Failed> {
        let mut table = self.known(name)?;
        let scope = Scope { parameters, ..Scope::default() };
        let keys = self.matching(name, &table, filter, &scope)?;
        if locks {
            for key in &keys {
                self.lock(name, key).await?;
            }
            table = self.known(name)?;
        }
        let rows: Vec<Row> = keys.iter().filter_map(|key| self.row(name, &table, key)).collect();
        let one = |values: Vec<Value>| StatementResult { rows: vec![values], affected: 1 };
        Ok(match wanted {
            Wanted::Checksum => {
                let sum: i128 = rows.iter().map(|row| i128::from(row_hash(row))).sum();
                one(vec![int(rows.len() as i64), Some(Bytes::from(sum.to_string()))])
            }
            Wanted::Sizes => {
                let bytes: usize =
                    rows.iter().flat_map(|row| row.iter()).map(|v| 4 + v.as_ref().map_or(0, Bytes::len)).sum();
                one(vec![int(rows.len() as i64), int(bytes as i64)])
            }
            Wanted::Rows(exprs) => {
                let limit = match limit {
                    Some(limit) => as_int(&eval(&table, limit, &scope)?)?.max(0) as usize,
                    None => usize::MAX,
                };
                let of = |row: &Row| project(&table, exprs, &Scope { row: Some(row), parameters, ..Scope::default() });
                let rows: Vec<Vec<Value>> = rows.iter().take(limit).map(of).collect::<Result<_, _>>()?;
                StatementResult { affected: rows.len() as u64, rows }
            }
        })
    }
}

fn no_cursor(name: &str) -> Failed {
    Failed("34000", format!("cursor {name:?} does not exist"))
}

fn array_types(parameters: &[Value]) -> Result<StatementResult, Failed> {
    let asked = unpack(parameters.first().cloned().flatten())?;
    let oid = |value: &Value| value.as_ref().and_then(|raw| raw[..].try_into().ok()).map(u32::from_be_bytes);
    let known = |oid: u32| ARRAYS.iter().find(|(element, _)| *element == oid).copied();
    let pack = |oid: u32| Some(Bytes::copy_from_slice(&oid.to_be_bytes()));
    let rows = asked.iter().filter_map(oid).filter_map(known).map(|(e, a)| vec![pack(e), pack(a)]).collect();
    Ok(StatementResult { rows, affected: 0 })
}
