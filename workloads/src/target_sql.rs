//! The store as a target: each statement as SQL through the routing client.
//!
//! The table has [`COLUMNS`]. Updates and deletes name the versions that they may find
//! ([`Statement::over`] up to their own): a write of unknown outcome that arrives late must not
//! undo a later one, and one that finds an older version than was acknowledged finds that it is
//! lost. The store knows none of this, and a write costs no read: the version is in the row that is
//! written anyway. An update that is executed twice finds its own version, takes effect again, and
//! leaves a count of writes that is one too high.
//!
//! Retries: the client follows redirects and repeats under one id by itself. An answer of class 40
//! says that nothing happened and that the statement may be sent again; that is done here, a
//! bounded number of times. Everything else is the statement's end.

use std::time::Duration;

use bytes::Bytes;
use evenkeel_client::{Client, ClientError, Value};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::{RowBatch, TableSchema};

use crate::replay::{Statement, StatementOutcome, StoredRow, Target, TargetAnswer, TargetFailure, TargetStatementKind};

/// How often a statement that was rolled back is sent again.
const MAX_RERUNS: u32 = 20;

/// Wait before the first time a statement is sent again, in milliseconds; it doubles up to
/// [`MAX_RERUN_WAIT_MS`].
const MIN_RERUN_WAIT_MS: u64 = 1;

/// The longest wait before a statement is sent again, in milliseconds.
const MAX_RERUN_WAIT_MS: u64 = 100;

/// Names that [`SqlTarget::create_new`] tries.
const MAX_NAMES: u32 = 10_000;

/// The table's columns, as in CREATE TABLE.
pub const COLUMNS: &str =
    "(id bigint PRIMARY KEY, version bigint NOT NULL, writes bigint NOT NULL, value bytea NOT NULL)";

/// The texts of one table's statements. They are always the same, so the client analyses each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    create: String,
    read: String,
    update: String,
    insert: String,
    delete: String,
    scan: String,
    keys: String,
    load: String,
}

impl Texts {
    /// Those of `table`.
    pub fn new(table: &str) -> Self {
        let table = TableSchema::quote(table);
        Self {
            create: format!("CREATE TABLE {table} {COLUMNS}"),
            read: format!("SELECT id, version, writes, value FROM {table} WHERE id = $1"),
            update: format!(
                "UPDATE {table} SET version = $2, writes = writes + 1, value = $3 \
                 WHERE id = $1 AND version >= $4 AND version <= $2"
            ),
            insert: format!("INSERT INTO {table} (id, version, writes, value) VALUES ($1, $2, 1, $3)"),
            delete: format!("DELETE FROM {table} WHERE id = $1 AND version >= $3 AND version <= $2"),
            scan: format!("SELECT id, version, writes, value FROM {table} WHERE id >= $1 ORDER BY id LIMIT $2"),
            keys: format!("SELECT id FROM {table} WHERE id >= $1 ORDER BY id LIMIT $2"),
            load: format!("INSERT INTO {table} (id, version, writes, value) VALUES "),
        }
    }

    /// What creates the table.
    pub fn create(&self) -> &str {
        &self.create
    }

    /// A statement of this kind.
    pub fn of(&self, kind: TargetStatementKind) -> &str {
        match kind {
            TargetStatementKind::Read => &self.read,
            TargetStatementKind::Update => &self.update,
            TargetStatementKind::Insert => &self.insert,
            TargetStatementKind::Delete => &self.delete,
            TargetStatementKind::Scan => &self.scan,
            TargetStatementKind::Keys => &self.keys,
        }
    }

    /// An insert of `rows` rows at once.
    pub fn load(&self, rows: usize) -> String {
        let mut text = self.load.clone();
        for row in 0..rows {
            let comma = if row > 0 { ", " } else { "" };
            let first = 3 * row + 1;
            text.push_str(&format!("{comma}(${first}, ${}, 1, ${})", first + 1, first + 2));
        }
        text
    }
}

/// A statement's parameters.
pub fn parameters(statement: &Statement) -> Vec<Value> {
    let mut parameters = vec![Value::Int(statement.key)];
    match statement.kind {
        TargetStatementKind::Read => {}
        TargetStatementKind::Scan | TargetStatementKind::Keys => {
            parameters.push(Value::Int(statement.limit_rows.into()))
        }
        TargetStatementKind::Delete => parameters.extend([statement.version, statement.over].map(Value::Int)),
        TargetStatementKind::Insert | TargetStatementKind::Update => {
            parameters.push(Value::Int(statement.version));
            parameters.push(Value::Bytes(statement.value.clone().unwrap_or_default()));
            if statement.kind == TargetStatementKind::Update {
                parameters.push(Value::Int(statement.over));
            }
        }
    }
    parameters
}

/// A table of the store.
pub struct SqlTarget {
    client: Client,
    table: String,
    texts: Texts,
}

impl SqlTarget {
    /// A table that exists.
    pub fn new(client: Client, table: &str) -> Self {
        Self { client, table: table.to_owned(), texts: Texts::new(table) }
    }

    /// Creates the table `table`. Fails with [`ClientError::Sql`] (42P07) if it exists.
    pub async fn create(client: Client, table: &str) -> Result<Self, ClientError> {
        let target = Self::new(client, table);
        target.client.execute(&target.texts.create, &[]).await?;
        Ok(target)
    }

    /// Creates a table that did not exist: `base`, or `base_2`, `base_3` and so on if that is
    /// taken. A replay wants an empty table, and a kept cluster has those of earlier runs.
    pub async fn create_new(client: Client, base: &str) -> Result<Self, ClientError> {
        let mut number = 1;
        loop {
            let name = if number == 1 { base.to_owned() } else { format!("{base}_{number}") };
            let taken = client.routes().table(&name).is_some();
            if !taken {
                match Self::create(client.clone(), &name).await {
                    Err(error) if error.code() == codes::DUPLICATE_TABLE && number < MAX_NAMES => {}
                    ended => return ended,
                }
            } else if number >= MAX_NAMES {
                return Self::create(client, &name).await;
            }
            number += 1;
        }
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a statement, and again after an answer of class 40.
    async fn send(&self, text: &str, parameters: &[Value]) -> (Result<evenkeel_client::Answer, ClientError>, u32) {
        let mut reruns = 0;
        let mut wait_ms = MIN_RERUN_WAIT_MS;
        loop {
            match self.client.execute(text, parameters).await {
                Err(ClientError::Rerun(_)) if reruns < MAX_RERUNS => {
                    reruns += 1;
                    evenkeel_host::sleep(Duration::from_millis(wait_ms)).await;
                    wait_ms = (wait_ms * 2).min(MAX_RERUN_WAIT_MS);
                }
                ended => return (ended, reruns),
            }
        }
    }
}

impl Target for SqlTarget {
    async fn execute(&self, statement: &Statement) -> StatementOutcome {
        let (ended, reruns) = self.send(self.texts.of(statement.kind), &parameters(statement)).await;
        match ended {
            Err(error) => StatementOutcome { result: Err(failure(&error)), shard: None, retries: reruns },
            Ok(answer) => StatementOutcome {
                result: decode(statement.kind, &answer.rows, answer.affected),
                shard: Some(answer.shard.0),
                retries: reruns + answer.retries,
            },
        }
    }

    async fn load(&self, rows: &[Statement]) -> Result<(), (usize, TargetFailure)> {
        // Rows of several shards cannot go in as one statement: halve until they can. A stack
        // instead of recursion, in key order, so that the stored rows are always a prefix.
        let mut parts = vec![(0, rows)];
        while let Some((first, part)) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let values: Vec<Value> = part.iter().flat_map(parameters).collect();
            match self.send(&self.texts.load(part.len()), &values).await.0 {
                Ok(answer) if answer.affected == part.len() as u64 => {}
                Ok(answer) => {
                    let stored = format!("{} of {} rows were stored", answer.affected, part.len());
                    return Err((first, TargetFailure::Unknown(stored)));
                }
                Err(ClientError::Sql(error)) if error.code == codes::FEATURE_NOT_SUPPORTED && part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.push((first + left.len(), right));
                    parts.push((first, left));
                }
                Err(error) => return Err((first, failure(&error))),
            }
        }
        Ok(())
    }
}

/// What the client's error says about the row: only one of them leaves the outcome open (invariant
/// 7).
fn failure(error: &ClientError) -> TargetFailure {
    match error {
        ClientError::OutcomeUnknown(_) => TargetFailure::Unknown(error.to_string()),
        _ => TargetFailure::NotApplied(error.to_string()),
    }
}

/// An answer in the engine's words. What cannot be read is a failure of unknown outcome: it was
/// executed.
fn decode(kind: TargetStatementKind, rows: &RowBatch, affected: u64) -> Result<TargetAnswer, TargetFailure> {
    match kind {
        TargetStatementKind::Insert | TargetStatementKind::Update | TargetStatementKind::Delete => {
            Ok(TargetAnswer::Written { affected_rows: affected })
        }
        TargetStatementKind::Scan => stored_rows(rows).map(TargetAnswer::Rows),
        TargetStatementKind::Keys => stored_keys(rows).map(TargetAnswer::Keys),
        TargetStatementKind::Read => {
            let mut found = stored_rows(rows)?;
            match found.len() {
                0 | 1 => Ok(TargetAnswer::Row(found.pop())),
                count => Err(TargetFailure::Unknown(format!("a read by primary key returned {count} rows"))),
            }
        }
    }
}

fn integer(value: Option<&[u8]>) -> Option<i64> {
    Some(i64::from_be_bytes(value?.try_into().ok()?))
}

fn stored_keys(batch: &RowBatch) -> Result<Vec<i64>, TargetFailure> {
    let keys: Vec<i64> = batch.rows().map_while(|mut row| integer(row.next()?)).collect();
    if keys.len() == batch.count as usize {
        Ok(keys)
    } else {
        Err(TargetFailure::Unknown(format!("row {} of the answer is no key", keys.len() + 1)))
    }
}

fn stored_rows(batch: &RowBatch) -> Result<Vec<StoredRow>, TargetFailure> {
    let bytes = |value: Option<&[u8]>| -> Option<Bytes> { Some(batch.data.slice_ref(value?)) };
    let rows: Vec<StoredRow> = batch
        .rows()
        .map_while(|mut row| {
            let (key, version, count, value) = (row.next()?, row.next()?, row.next()?, row.next()?);
            Some(StoredRow {
                key: integer(key)?,
                version: integer(version)?,
                count: integer(count)?,
                value: bytes(value)?,
            })
        })
        .collect();
    if rows.len() == batch.count as usize {
        Ok(rows)
    } else {
        Err(TargetFailure::Unknown(format!("row {} of the answer is not (id, version, writes, value)", rows.len() + 1)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use evenkeel_protocol::SqlError;
    use evenkeel_protocol::rows::RowBuilder;
    use evenkeel_sql::{self as sql, Command, LimitExpr, Scan, Touches};

    use super::*;

    fn batch(rows: &[(i64, i64, &[u8])]) -> RowBatch {
        let mut builder = RowBuilder::new(4);
        for (key, version, value) in rows {
            let integers = [*key, *version, 1].map(i64::to_be_bytes);
            let [key, version, count] = integers.each_ref().map(|integer| Some(&integer[..]));
            builder.push([key, version, count, Some(value)]);
        }
        builder.finish()
    }

    #[test]
    fn answers_are_read_without_copying_values() {
        let rows = batch(&[(-5, 3, b"abc"), (7, 1, b"")]);
        let Ok(TargetAnswer::Rows(found)) = decode(TargetStatementKind::Scan, &rows, 2) else { panic!() };
        assert_eq!(found[0], StoredRow { key: -5, version: 3, count: 1, value: Bytes::from_static(b"abc") });
        assert_eq!((found[1].key, found[1].value.len()), (7, 0));
        assert!(rows.data.as_ptr_range().contains(&found[0].value.as_ptr()), "the value is a slice of the answer");
        assert_eq!(decode(TargetStatementKind::Read, &batch(&[]), 0), Ok(TargetAnswer::Row(None)));
        assert_eq!(decode(TargetStatementKind::Update, &batch(&[]), 1), Ok(TargetAnswer::Written { affected_rows: 1 }));
    }

    #[test]
    fn malformed_answers_are_not_taken_for_rows() {
        assert!(matches!(
            decode(TargetStatementKind::Read, &batch(&[(1, 1, b""), (2, 1, b"")]), 2),
            Err(TargetFailure::Unknown(_))
        ));
        let mut builder = RowBuilder::new(4);
        builder.push([Some(&1i64.to_be_bytes()[..]), None, None, Some(b"x")]);
        assert!(decode(TargetStatementKind::Scan, &builder.finish(), 1).is_err());
        let mut cut = batch(&[(1, 1, b"abc")]);
        cut.data.truncate(10);
        assert!(decode(TargetStatementKind::Scan, &cut, 1).is_err());
        assert_eq!(
            decode(TargetStatementKind::Keys, &batch(&[(-5, 1, b""), (7, 1, b"")]), 2),
            Ok(TargetAnswer::Keys(vec![-5, 7]))
        );
        cut.data.truncate(3);
        assert!(decode(TargetStatementKind::Keys, &cut, 1).is_err());
    }

    #[test]
    fn only_an_unknown_outcome_leaves_the_row_open() {
        let error = || SqlError::new("08007", "no answer");
        assert!(matches!(failure(&ClientError::OutcomeUnknown(error())), TargetFailure::Unknown(_)));
        for error in [ClientError::Sql(error()), ClientError::Rerun(error()), ClientError::Unavailable(error())] {
            assert!(matches!(failure(&error), TargetFailure::NotApplied(_)));
        }
    }

    #[test]
    fn each_kind_gets_the_parameters_that_its_text_names() {
        let texts = Texts::new("usertable");
        for kind in [
            TargetStatementKind::Read,
            TargetStatementKind::Update,
            TargetStatementKind::Insert,
            TargetStatementKind::Delete,
            TargetStatementKind::Scan,
            TargetStatementKind::Keys,
        ] {
            let statement = Statement { kind, key: 5, version: 2, over: 1, value: Some(Bytes::new()), limit_rows: 3 };
            let count = parameters(&statement).len();
            let text = texts.of(kind);
            assert!(text.contains(&format!("${count}")) && !text.contains(&format!("${}", count + 1)), "{text}");
        }
        assert!(texts.load(2).ends_with("VALUES ($1, $2, 1, $3), ($4, $5, 1, $6)"));
    }

    /// The store takes each text, and knows from it which key or keys it touches: otherwise it
    /// could not be routed.
    #[test]
    fn every_text_can_be_routed_by_its_key() {
        let texts = Texts::new("usertable");
        let Command::CreateTable { schema, .. } = sql::parse(&texts.create).unwrap() else { panic!() };
        let plan = |text: &str| {
            let Command::Statement(parsed) = sql::parse(text).unwrap() else { panic!("{text}") };
            parsed.bind(Some(&schema)).unwrap()
        };
        for kind in [
            TargetStatementKind::Read,
            TargetStatementKind::Update,
            TargetStatementKind::Insert,
            TargetStatementKind::Delete,
        ] {
            let statement = Statement { kind, key: 5, version: 2, over: 1, value: Some(Bytes::new()), limit_rows: 0 };
            let touches = plan(texts.of(kind)).touches(&parameters(&statement)).unwrap();
            assert!(matches!(&touches, Touches::Keys(keys) if keys.len() == 1), "{kind:?}: {touches:?}");
        }
        for text in [&texts.scan, &texts.keys] {
            assert_eq!(plan(text).scan(), Scan::RangeByRange { limit: Some(LimitExpr::Parameter(1)) });
        }
        let rows = (0..3).map(|key| Statement {
            kind: TargetStatementKind::Insert,
            key,
            version: 1,
            over: 0,
            value: Some(Bytes::new()),
            limit_rows: 0,
        });
        let values: Vec<Value> = rows.flat_map(|row| parameters(&row)).collect();
        let touches = plan(&texts.load(3)).touches(&values).unwrap();
        assert!(matches!(&touches, Touches::Keys(keys) if keys.len() == 3), "{touches:?}");
    }
}
