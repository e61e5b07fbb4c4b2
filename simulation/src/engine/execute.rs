//! Running a statement in a transaction.

use super::data::{Commit, Row, Table, Tables};
use super::sql::{Condition, Expr, OnConflict, Statement, Wanted};
use super::{Committing, Engine, RowId};
use crate::process;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// While statements are cancelled, one of so many is.
const CANCELLED_IN: u64 = 8;

/// The types of the replica's own tables.
const BIGINT: u32 = 20;
const BYTEA: u32 = 17;
const TEXT: u32 = 25;
/// Array types by their elements' types.
pub(super) const ARRAYS: [(u32, u32); 3] = [(BIGINT, 1016), (TEXT, 1009), (BYTEA, 1001)];

/// Why a statement failed: SQLSTATE and message.
#[derive(Debug, Clone)]
pub(super) struct Failed(pub &'static str, pub String);

/// A value.
pub(super) type Value = Option<Bytes>;

/// What a statement gave.
#[derive(Debug, Default)]
pub(super) struct Outcome {
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
    /// What it had written at each savepoint. Locks stay, as PostgreSQL's may.
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
    pub engine: Engine,
    pub session: u64,
    pub transaction: Transaction,
    pub lock_timeout_ms: u64,
    /// Whether its transactions write only if they say so.
    pub read_only: bool,
}

impl Runner {
    /// Runs a statement. `parameters` are in binary format.
    pub async fn run(&mut self, statement: &Statement, parameters: &[Value]) -> Result<Outcome, Failed> {
        let ends = matches!(statement, Statement::Commit | Statement::Rollback | Statement::RollbackTo);
        if self.transaction.failed && !ends {
            return Err(Failed("25P02", "current transaction is aborted".into()));
        }
        let alone = !self.transaction.open;
        let result = match self.hindered(statement) {
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

    /// What is in a statement's way: somebody cancels it, or the disk is full.
    fn hindered(&self, statement: &Statement) -> Option<Failed> {
        let mut state = self.engine.state();
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
            self.engine.released.notify_waiters();
        }
        Some(Failed("53100", "could not write: No space left on device".into()))
    }

    async fn run_within(&mut self, statement: &Statement, parameters: &[Value]) -> Result<Outcome, Failed> {
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
            Statement::Pin => self.transaction.snapshot = Some(self.engine.tables()),
            Statement::HasSchema => {
                let found = self.engine.tables().get("evenkeel.position").is_some();
                let rows = if found { vec![vec![int(1)]] } else { Vec::new() };
                return Ok(Outcome { affected: rows.len() as u64, rows });
            }
            Statement::RelationSize => return Ok(Outcome { affected: 1, rows: vec![vec![int(0)]] }),
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
                let columns = super::wire::named(&*self.known(table)?, exprs);
                let cursor = Cursor { columns, rows: rows.into_iter() };
                if !self.transaction.open || self.transaction.cursors.insert(name.clone(), cursor).is_some() {
                    return Err(Failed("25P01", format!("cursor {name:?} cannot be declared here")));
                }
            }
            Statement::Fetch(rows, name) => {
                let Some(cursor) = self.transaction.cursors.get_mut(name) else { return Err(no_cursor(name)) };
                let rows: Vec<Vec<Value>> = cursor.rows.by_ref().take(*rows).collect();
                return Ok(Outcome { affected: rows.len() as u64, rows });
            }
            Statement::Close(name) => {
                self.transaction.cursors.remove(name).ok_or_else(|| no_cursor(name))?;
            }
            Statement::Select { table, wanted, filter, limit, locks } => {
                return self.select(table, wanted, filter, limit.as_ref(), *locks, parameters).await;
            }
        }
        Ok(Outcome::default())
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
        ];
        let position = Table::new(&columns, &[0]);
        let tables = vec![("evenkeel.applied".into(), Some(applied)), ("evenkeel.position".into(), Some(position))];
        self.transaction.commit = Commit { sync: true, tables, rows: BTreeMap::new() };
        self.commit().await;
    }

    async fn clear(&mut self) {
        let mut commit = Commit { sync: true, ..Commit::default() };
        for (name, table) in self.engine.tables().iter() {
            let kept = name.starts_with("evenkeel.").then(|| Table { rows: BTreeMap::new(), ..(**table).clone() });
            commit.tables.push((name.clone(), kept));
        }
        self.transaction.commit = commit;
        self.commit().await;
    }

    fn end_sessions(&self) -> Outcome {
        let mut state = self.engine.state();
        let users: Vec<u64> = state.sessions.iter().filter(|(_, s)| s.is_user).map(|(id, _)| *id).collect();
        users.iter().for_each(|session| state.end(*session));
        drop(state);
        self.engine.released.notify_waiters();
        Outcome { affected: users.len() as u64, rows: users.iter().map(|_| vec![int(1)]).collect() }
    }

    /// The COMMIT is received now and done a little later, whatever becomes of the session meanwhile.
    async fn commit(&mut self) {
        let commit = std::mem::take(&mut self.transaction).commit;
        let slow = match process::below(16) {
            0 => process::below(30),
            1..=4 => process::below(3),
            _ => 0,
        };
        let slow = if self.is_to_end() { 4 + process::below(30) } else { slow };
        let due_ms = process::now_ms() + slow;
        self.engine.state().committing.insert(self.session, Committing { due_ms, commit });
        if slow > 0 {
            tokio::time::sleep(Duration::from_millis(slow / 2)).await;
            self.end_meanwhile();
            tokio::time::sleep(Duration::from_millis(slow - slow / 2)).await;
        }
        {
            let mut state = self.engine.state();
            state.pass();
            // Gone if the session was ended meanwhile; then nobody waits for this either.
            if let Some(committing) = state.committing.remove(&self.session) {
                state.commit(committing.commit);
            }
            let session = self.session;
            state.locks.retain(|_, holder| *holder != session);
        }
        self.engine.released.notify_waiters();
    }

    /// Whether this session may be ended in its COMMIT: then that takes its time.
    fn is_to_end(&self) -> bool {
        let state = self.engine.state();
        state.ends_committing && state.sessions.get(&self.session).is_some_and(|session| session.is_user)
    }

    /// Somebody terminates this backend, if that was ordered and it matters to anybody.
    fn end_meanwhile(&self) {
        let mut state = self.engine.state();
        let is_user = state.sessions.get(&self.session).is_some_and(|session| session.is_user);
        if state.ends_committing && is_user && state.is_waited_for(self.session) {
            state.ends_committing = false;
            state.end(self.session);
            drop(state);
            self.engine.released.notify_waiters();
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
        self.engine.state().locks.retain(|_, holder| *holder != session);
        self.engine.released.notify_waiters();
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
                let mut state = self.engine.state();
                state.pass();
                state.tables.get(name).cloned()
            }
        }
    }

    fn known(&mut self, name: &str) -> Result<Arc<Table>, Failed> {
        if self.transaction.repeatable && self.transaction.snapshot.is_none() {
            self.transaction.snapshot = Some(self.engine.tables());
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
        let deadline = tokio::time::Instant::now() + Duration::from_millis(self.lock_timeout_ms);
        loop {
            let released = self.engine.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            {
                let mut state = self.engine.state();
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
            } else if tokio::time::timeout_at(deadline, released).await.is_err() {
                self.engine.state().waiting.remove(&self.session);
                return Err(Failed("55P03", "canceling statement due to lock timeout".into()));
            }
        }
    }

    fn put(&mut self, name: &str, key: Vec<u8>, row: Option<Row>) {
        self.transaction.commit.rows.insert((Arc::from(name), key), row);
    }

    async fn insert(&mut self, statement: &Statement, parameters: &[Value]) -> Result<Outcome, Failed> {
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
        let mut outcome = Outcome::default();
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

    async fn update(&mut self, statement: &Statement, parameters: &[Value]) -> Result<Outcome, Failed> {
        let Statement::Update { table: name, set, given, filter, returning } = statement else {
            return Err(Failed("XX000", "no UPDATE".into()));
        };
        let table = self.known(name)?;
        let mut outcome = Outcome::default();
        for joined in joined(given, parameters)? {
            let scope = Scope { given: Some(&joined), parameters, ..Scope::default() };
            for key in self.matching(name, &table, filter, &scope)? {
                self.lock(name, &key).await?;
                // Whoever held the lock may have changed the row.
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
    ) -> Result<Outcome, Failed> {
        let table = self.known(name)?;
        let mut keys = Vec::new();
        for joined in joined(given, parameters)? {
            let scope = Scope { given: Some(&joined), parameters, ..Scope::default() };
            keys.extend(self.matching(name, &table, filter, &scope)?);
        }
        let mut outcome = Outcome::default();
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
    ) -> Result<Outcome, Failed> {
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
        let one = |values: Vec<Value>| Outcome { rows: vec![values], affected: 1 };
        Ok(match wanted {
            Wanted::Checksum => {
                let sum: i128 = rows.iter().map(|row| i128::from(hash(row))).sum();
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
                Outcome { affected: rows.len() as u64, rows }
            }
        })
    }
}

/// The rows of joined arrays; one without columns if there are none.
fn joined<'a>(given: &'a [(usize, String)], parameters: &[Value]) -> Result<Vec<BTreeMap<&'a str, Value>>, Failed> {
    if given.is_empty() {
        return Ok(vec![BTreeMap::new()]);
    }
    let arrays = given.iter().map(|(n, _)| unpack(parameters[*n].clone())).collect::<Result<Vec<_>, _>>()?;
    let row = |n: usize| given.iter().zip(&arrays).map(move |((_, name), array)| (name.as_str(), array[n].clone()));
    Ok((0..arrays.first().map_or(0, Vec::len)).map(|n| row(n).collect()).collect())
}

/// What an expression can see.
#[derive(Clone, Copy, Default)]
struct Scope<'a> {
    row: Option<&'a Row>,
    excluded: Option<&'a [Value]>,
    given: Option<&'a BTreeMap<&'a str, Value>>,
    /// Whether the row was there, and so has been locked before it was written.
    locked: bool,
    parameters: &'a [Value],
}

fn no_cursor(name: &str) -> Failed {
    Failed("34000", format!("cursor {name:?} does not exist"))
}

fn int(value: i64) -> Value {
    Some(Bytes::copy_from_slice(&value.to_be_bytes()))
}

fn as_int(value: &Value) -> Result<i64, Failed> {
    let raw: Option<[u8; 8]> = value.as_ref().and_then(|raw| raw[..].try_into().ok());
    raw.map(i64::from_be_bytes).ok_or_else(|| Failed("42804", "no bigint".into()))
}

fn eval(table: &Table, expr: &Expr, scope: &Scope<'_>) -> Result<Value, Failed> {
    let column = |row: Option<&[Value]>, name: &str| match (row, table.column(name)) {
        (Some(row), Some(at)) => Ok(row[at].clone()),
        _ => Err(Failed("42703", format!("column {name:?} does not exist here"))),
    };
    Ok(match expr {
        Expr::Column(name) if name == "xmax" => Some(Bytes::copy_from_slice(&u32::from(scope.locked).to_be_bytes())),
        Expr::Column(name) => column(scope.row.map(|row| &**row), name)?,
        Expr::Excluded(name) => column(scope.excluded, name)?,
        Expr::Given(name) => scope.given.and_then(|given| given.get(name.as_str()).cloned()).flatten(),
        Expr::Parameter(n) => match scope.parameters.get(*n) {
            Some(value) => value.clone(),
            None => return Err(Failed("42P02", format!("there is no parameter ${}", n + 1))),
        },
        Expr::Int(value) => int(*value),
        Expr::Text(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        Expr::Add(a, b) => match (eval(table, a, scope)?, eval(table, b, scope)?) {
            (None, _) | (_, None) => None,
            (a, b) => int(as_int(&a)?.wrapping_add(as_int(&b)?)),
        },
        Expr::Subtract(a, b) => match (eval(table, a, scope)?, eval(table, b, scope)?) {
            (None, _) | (_, None) => None,
            (a, b) => int(as_int(&a)?.wrapping_sub(as_int(&b)?)),
        },
        Expr::RowHash => match scope.row {
            Some(row) => int(hash(row)),
            None => return Err(Failed("42703", "no row to be hashed".into())),
        },
        Expr::RowSize => match scope.row {
            Some(row) => int(row.iter().flatten().map(|value| value.len() as i64).sum()),
            None => return Err(Failed("42703", "no row to be measured".into())),
        },
        Expr::Size(inner) => {
            let size = eval(table, inner, scope)?.map(|raw| 1 + raw.len() as i32);
            size.map(|size| Bytes::copy_from_slice(&size.to_be_bytes()))
        }
        Expr::IsNotNull(inner) => Some(Bytes::copy_from_slice(&[u8::from(eval(table, inner, scope)?.is_some())])),
    })
}

fn project(table: &Table, exprs: &[Expr], scope: &Scope<'_>) -> Result<Vec<Value>, Failed> {
    exprs.iter().map(|expr| eval(table, expr, scope)).collect()
}

fn changed(table: &Table, old: &Row, set: &[(String, Expr)], scope: &Scope<'_>) -> Result<Vec<Value>, Failed> {
    let mut new = old.to_vec();
    for (column, expr) in set {
        let at = table.column(column).ok_or_else(|| Failed("42703", format!("column {column:?} does not exist")))?;
        new[at] = eval(table, expr, scope)?;
    }
    Ok(new)
}

fn compare(a: &[u8], b: &[u8], oid: u32) -> std::cmp::Ordering {
    match (<[u8; 8]>::try_from(a), <[u8; 8]>::try_from(b)) {
        (Ok(a), Ok(b)) if oid == BIGINT => i64::from_be_bytes(a).cmp(&i64::from_be_bytes(b)),
        _ => a.cmp(b),
    }
}

fn matches(table: &Table, filter: &[Condition], scope: &Scope<'_>) -> Result<bool, Failed> {
    for condition in filter {
        let mut order = std::cmp::Ordering::Equal;
        for (left, right) in condition.left.iter().zip(&condition.right) {
            let (Some(a), Some(b)) = (eval(table, left, scope)?, eval(table, right, scope)?) else { return Ok(false) };
            order = order.then_with(|| compare(&a, &b, type_of(table, left)));
        }
        let holds = match condition.operator.as_str() {
            "=" => order.is_eq(),
            "<" => order.is_lt(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            _ => order.is_ge(),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The key, if the conditions name all of its columns.
fn single_key(table: &Table, filter: &[Condition], scope: &Scope<'_>) -> Result<Option<Vec<u8>>, Failed> {
    let mut row: Vec<Value> = vec![None; table.columns.len()];
    for condition in filter.iter().filter(|condition| condition.operator == "=") {
        for (left, right) in condition.left.iter().zip(&condition.right) {
            if let Expr::Column(name) = left
                && let Some(at) = table.column(name)
            {
                row[at] = eval(table, right, scope)?;
            }
        }
    }
    Ok(if table.key.is_empty() { None } else { table.key_of(&row) })
}

/// An expression's type.
pub(super) fn type_of(table: &Table, expr: &Expr) -> u32 {
    match expr {
        Expr::Column(name) | Expr::Excluded(name) => table.column(name).map_or(BIGINT, |at| table.columns[at].1),
        Expr::Text(_) => TEXT,
        Expr::IsNotNull(_) => 16,
        Expr::Size(_) => 23,
        _ => BIGINT,
    }
}

fn hash(row: &Row) -> i64 {
    let values = row.iter().flat_map(|value| match value {
        Some(raw) => [&[1][..], &raw[..]],
        None => [&[0][..], &[]],
    });
    let hash = values
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    hash as i64
}

/// The elements of an array in binary format.
fn unpack(array: Value) -> Result<Vec<Value>, Failed> {
    let malformed = || Failed("22P03", "a malformed array".into());
    let raw = array.ok_or_else(malformed)?;
    let number = |at: usize| raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_be_bytes);
    if number(0) == Some(0) {
        return Ok(Vec::new());
    }
    let count = number(12).ok_or_else(malformed)?;
    let mut at = 20;
    let mut values = Vec::with_capacity(count.max(0) as usize);
    for _ in 0..count {
        let length = number(at).ok_or_else(malformed)?;
        at += 4;
        if length < 0 {
            values.push(None);
            continue;
        }
        let end = at + length as usize;
        if end > raw.len() {
            return Err(malformed());
        }
        values.push(Some(raw.slice(at..end)));
        at = end;
    }
    Ok(values)
}

fn array_types(parameters: &[Value]) -> Result<Outcome, Failed> {
    let asked = unpack(parameters.first().cloned().flatten())?;
    let oid = |value: &Value| value.as_ref().and_then(|raw| raw[..].try_into().ok()).map(u32::from_be_bytes);
    let known = |oid: u32| ARRAYS.iter().find(|(element, _)| *element == oid).copied();
    let pack = |oid: u32| Some(Bytes::copy_from_slice(&oid.to_be_bytes()));
    let rows = asked.iter().filter_map(oid).filter_map(known).map(|(e, a)| vec![pack(e), pack(a)]).collect();
    Ok(Outcome { rows, affected: 0 })
}
