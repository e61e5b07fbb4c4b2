//! PostgreSQL with two standbys as the target of a replay: the same statements, over a fixed number
//! of connections.

use crate::bench::plain::PlainPostgres;
use bytes::Bytes;
use evenkeel_client::Value;
use evenkeel_workloads::replay::{
    Statement, StatementOutcome, StoredRow, Target, TargetAnswer, TargetFailure, TargetStatementKind,
};
use evenkeel_workloads::target_sql::{Texts, parameters};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

/// One connection and its prepared statements.
struct PlainConnection {
    client: Client,
    prepared: HashMap<String, tokio_postgres::Statement>,
}

/// A table of PostgreSQL.
pub struct PlainTarget {
    idle: Mutex<Vec<PlainConnection>>,
    free: Semaphore,
    texts: Texts,
}

impl PlainTarget {
    /// Creates the table `table` and opens `connections` connections.
    pub async fn create(plain: &PlainPostgres, table: &str, connections: usize) -> Result<PlainTarget, String> {
        let texts = Texts::new(table);
        let mut idle = Vec::with_capacity(connections);
        for _ in 0..connections {
            idle.push(PlainConnection { client: plain.connect().await?, prepared: HashMap::new() });
        }
        idle[0].client.batch_execute(texts.create()).await.map_err(|e| e.to_string())?;
        Ok(PlainTarget { idle: Mutex::new(idle), free: Semaphore::new(connections), texts })
    }

    async fn run(&self, text: &str, values: &[Value]) -> Result<Vec<Row>, TargetFailure> {
        self.with_connection(text, values, true).await.map(|(rows, _)| rows)
    }

    async fn change(&self, text: &str, values: &[Value]) -> Result<u64, TargetFailure> {
        self.with_connection(text, values, false).await.map(|(_, affected)| affected)
    }

    async fn with_connection(
        &self,
        text: &str,
        values: &[Value],
        rows: bool,
    ) -> Result<(Vec<Row>, u64), TargetFailure> {
        let unknown = |error: &dyn std::fmt::Display| TargetFailure::Unknown(error.to_string());
        let _free = self.free.acquire().await.map_err(|e| unknown(&e))?;
        let taken = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = taken.ok_or_else(|| TargetFailure::NotApplied("no connection is free".into()))?;
        let done = connection.execute(text, values, rows).await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        done.map_err(|e| unknown(&e))
    }
}

impl PlainConnection {
    async fn execute(
        &mut self,
        text: &str,
        values: &[Value],
        rows: bool,
    ) -> Result<(Vec<Row>, u64), tokio_postgres::Error> {
        let statement = match self.prepared.get(text) {
            Some(statement) => statement.clone(),
            None => {
                let statement = self.client.prepare(text).await?;
                self.prepared.insert(text.to_string(), statement.clone());
                statement
            }
        };
        let parameters: Vec<Parameter<'_>> = values.iter().map(Parameter::of).collect();
        let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(Parameter::as_sql).collect();
        if rows {
            Ok((self.client.query(&statement, &parameters).await?, 0))
        } else {
            Ok((Vec::new(), self.client.execute(&statement, &parameters).await?))
        }
    }
}

/// A parameter in the form of `tokio-postgres`. A type that no replay sends is sent as NULL, which
/// the table refuses.
enum Parameter<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    Other(Option<i64>),
}

impl Parameter<'_> {
    fn of(value: &Value) -> Parameter<'_> {
        match value {
            Value::Int(value) => Parameter::Int(*value),
            Value::Bytes(value) => Parameter::Bytes(value),
            _ => Parameter::Other(None),
        }
    }

    fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Parameter::Int(value) => value,
            Parameter::Bytes(value) => value,
            Parameter::Other(none) => none,
        }
    }
}

fn key(row: &Row) -> Result<i64, TargetFailure> {
    row.try_get("id").map_err(|error: tokio_postgres::Error| TargetFailure::Unknown(error.to_string()))
}

fn stored(row: &Row) -> Result<StoredRow, TargetFailure> {
    let wrong = |error: tokio_postgres::Error| TargetFailure::Unknown(error.to_string());
    let value: Vec<u8> = row.try_get("value").map_err(wrong)?;
    Ok(StoredRow {
        key: row.try_get("id").map_err(wrong)?,
        version: row.try_get("version").map_err(wrong)?,
        count: row.try_get("writes").map_err(wrong)?,
        value: Bytes::from(value),
    })
}

impl Target for PlainTarget {
    async fn execute(&self, statement: &Statement) -> StatementOutcome {
        let (text, values) = (self.texts.of(statement.kind), parameters(statement));
        let result = match statement.kind {
            TargetStatementKind::Read => match self.run(text, &values).await {
                Ok(rows) => rows.first().map(stored).transpose().map(TargetAnswer::Row),
                Err(failure) => Err(failure),
            },
            TargetStatementKind::Scan => match self.run(text, &values).await {
                Ok(rows) => rows.iter().map(stored).collect::<Result<_, _>>().map(TargetAnswer::Rows),
                Err(failure) => Err(failure),
            },
            TargetStatementKind::Keys => match self.run(text, &values).await {
                Ok(rows) => rows.iter().map(key).collect::<Result<_, _>>().map(TargetAnswer::Keys),
                Err(failure) => Err(failure),
            },
            TargetStatementKind::Update | TargetStatementKind::Insert | TargetStatementKind::Delete => {
                self.change(text, &values).await.map(|affected_rows| TargetAnswer::Written { affected_rows })
            }
        };
        StatementOutcome { result, shard: None, retries: 0 }
    }

    async fn load(&self, rows: &[Statement]) -> Result<(), (usize, TargetFailure)> {
        let values: Vec<Value> = rows.iter().flat_map(parameters).collect();
        match self.change(&self.texts.load(rows.len()), &values).await {
            Ok(stored) if stored == rows.len() as u64 => Ok(()),
            Ok(stored) => Err((0, TargetFailure::Unknown(format!("{stored} of {} rows were stored", rows.len())))),
            Err(failure) => Err((0, failure)),
        }
    }
}
