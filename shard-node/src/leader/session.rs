//! Sessions with PostgreSQL that run users' statements, and what is captured from them.
//!
//! A session belongs to one reign (R1) and is used by one thing at a time: a lane, a transaction, or (for reads, each of which is a
//! transaction of its own) by many at once, pipelined.

use super::AddedParameter;
use crate::entry::{Change, Changes};
use crate::store::{Parameter, Raw, RawParameter, StoreError, parameter};
use bytes::{BufMut, BytesMut};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::{RowBuilder, put_value};
use evenkeel_protocol::shard::StatementReply;
use evenkeel_protocol::sql::{Capture, Plan};
use evenkeel_protocol::{Column, Key, KeyCodec, SqlError, TableId, TableSchema, Value};
use futures::TryStreamExt;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

/// Prepared statements kept per session; beyond it all are forgotten and prepared anew as needed.
const MAX_PREPARED: usize = 256;
/// What a value takes in an answer beside its own bytes, at most.
const VALUE_OVERHEAD_BYTES: usize = 5;
/// The most that a statement's rows may take, in bytes: so that an answer fits into a frame ([`evenkeel_rpc::MAX_FRAME_BYTES`]), and
/// one statement cannot take the memory of all others.
pub const MAX_RESULT_BYTES: usize = evenkeel_rpc::MAX_FRAME_BYTES - (1 << 20);

/// A statement that PostgreSQL has parsed for one session.
#[derive(Debug)]
pub struct Prepared {
    statement: Statement,
    /// The columns that the user asked for.
    pub columns: Arc<[Column]>,
}

/// A session.
pub struct UserSession {
    client: Client,
    prepared: Mutex<HashMap<Arc<str>, Arc<Prepared>>>,
}

/// One statement's parameters, ready to be sent.
pub struct Parameters<'a> {
    own: Vec<Parameter<'a>>,
    keys: Vec<RawParameter<'a>>,
    limit: Option<Parameter<'a>>,
}

impl<'a> Parameters<'a> {
    /// Of these values.
    pub fn new(values: &'a [Value]) -> Parameters<'a> {
        Parameters { own: values.iter().map(parameter).collect(), keys: Vec::new(), limit: None }
    }

    /// What a clip adds: key columns, then perhaps a limit.
    pub fn extend(&mut self, added: &'a [AddedParameter]) {
        for parameter_added in added {
            match parameter_added {
                AddedParameter::Key(raw) => self.keys.push(RawParameter(Some(raw))),
                AddedParameter::Limit(value) => self.limit = Some(parameter(value)),
            }
        }
    }

    /// As the driver takes them.
    pub fn refs(&self) -> Vec<&(dyn ToSql + Sync)> {
        let own = self.own.iter().map(|p| p as &(dyn ToSql + Sync));
        let keys = self.keys.iter().map(|p| p as &(dyn ToSql + Sync));
        own.chain(keys).chain(self.limit.iter().map(|p| p as &(dyn ToSql + Sync))).collect()
    }
}

impl UserSession {
    /// A session over this connection.
    pub fn new(client: Client) -> UserSession {
        UserSession { client, prepared: Mutex::default() }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The statement, parsed by this session's PostgreSQL; `returned` of its columns are the user's.
    pub async fn prepare(&self, sql: &Arc<str>, returned: usize) -> Result<Arc<Prepared>, StoreError> {
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let statement = self.client.prepare(sql).await?;
        let columns = statement
            .columns()
            .iter()
            .take(returned)
            .map(|c| Column { name: c.name().to_string(), type_oid: c.type_().oid() })
            .collect();
        let prepared = Arc::new(Prepared { statement, columns });
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_PREPARED {
            all.clear();
        }
        all.insert(sql.clone(), prepared.clone());
        Ok(prepared)
    }

    /// Runs a prepared statement. What is polled first is sent first.
    ///
    /// # Errors
    /// 54000 if the rows take more than [`MAX_RESULT_BYTES`]: what comes after them is thrown away as it comes.
    pub async fn run(&self, prepared: &Prepared, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let parameters = parameters.iter().map(|parameter| *parameter as &dyn ToSql);
        let stream = self.client.query_raw(&prepared.statement, parameters).await?;
        futures::pin_mut!(stream);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = stream.try_next().await? {
            bytes += row_bytes(&row);
            if bytes > MAX_RESULT_BYTES {
                return Err(StoreError::Refused(too_long()));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Runs SQL without parameters and without a result.
    pub async fn simple(&self, sql: &str) -> Result<(), StoreError> {
        Ok(self.client.batch_execute(sql).await?)
    }
}

/// Sends all of these in order without waiting in between, and gives their results in order.
pub async fn pipeline<F: Future>(mut futures: Vec<Pin<Box<F>>>) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = Vec::with_capacity(futures.len());
    // Each sends itself when first polled.
    std::future::poll_fn(|context| {
        for future in &mut futures {
            done.push(match future.as_mut().poll(context) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            });
        }
        Poll::Ready(())
    })
    .await;
    let mut results = Vec::with_capacity(futures.len());
    for (future, done) in futures.into_iter().zip(done) {
        results.push(match done {
            Some(output) => output,
            None => future.await,
        });
    }
    results
}

/// The user's part of a result.
pub fn reply(columns: &Arc<[Column]>, rows: &[Row], counted: usize) -> Result<StatementReply, SqlError> {
    let mut packed = RowBuilder::new(columns.len());
    if !columns.is_empty() {
        for row in rows {
            let values = (0..columns.len()).map(|i| raw(row, i)).collect::<Result<Vec<_>, _>>()?;
            packed.push(values);
        }
    }
    Ok(StatementReply { columns: columns.clone(), rows: packed.finish(), affected: counted as u64, staleness_ms: None })
}

/// What a row takes in an answer, in bytes.
fn row_bytes(row: &Row) -> usize {
    let value = |column| row.try_get::<_, Option<Raw<'_>>>(column).ok().flatten().map_or(0, |raw| raw.0.len());
    (0..row.len()).map(|column| VALUE_OVERHEAD_BYTES + value(column)).sum()
}

fn too_long() -> SqlError {
    let message = format!("the statement's rows take more than {MAX_RESULT_BYTES} bytes");
    SqlError::new(codes::PROGRAM_LIMIT, message).hint("Read fewer rows at a time: by key, or with LIMIT.")
}

fn raw(row: &Row, column: usize) -> Result<Option<&[u8]>, SqlError> {
    let value: Result<Option<Raw<'_>>, _> = row.try_get(column);
    value
        .map(|raw| raw.map(|raw| raw.0))
        .map_err(|error| SqlError::new("XX000", format!("column {} cannot be read: {error}", column + 1)))
}

/// What statements wrote, gathered into one buffer that the images of all rows share.
#[derive(Default)]
pub struct Capturer {
    buffer: BytesMut,
    marks: Vec<Mark>,
}

/// A captured change: whose, and where in the buffer its image lies.
type Mark = (TableId, Key, Option<(usize, usize)>);

impl Capturer {
    /// Takes in what a statement returned. Gives a key it wrote, if it wrote anything.
    pub fn take(
        &mut self,
        plan: &Plan,
        schema: &TableSchema,
        codec: &KeyCodec,
        rows: &[Row],
    ) -> Result<Option<Key>, SqlError> {
        let mut first = None;
        for row in rows {
            let offset = plan.returned();
            let (key, image) = match plan.capture() {
                Capture::None => return Ok(None),
                Capture::Keys => {
                    let values = (0..schema.key.len()).map(|i| raw(row, offset + i)).collect::<Result<Vec<_>, _>>()?;
                    (codec.encode_binary(values), None)
                }
                Capture::Rows => {
                    let start = self.buffer.len();
                    for i in 0..schema.columns.len() {
                        put_value(&mut self.buffer, raw(row, offset + i)?);
                    }
                    let values = schema.key.iter().map(|&i| raw(row, offset + i)).collect::<Result<Vec<_>, _>>()?;
                    (codec.encode_binary(values), Some((start, self.buffer.len())))
                }
            };
            let key = key.map_err(|error| SqlError::new("XX000", format!("a row's key cannot be encoded: {error}")))?;
            first.get_or_insert_with(|| key.clone());
            self.marks.push((schema.id, key, image));
        }
        Ok(first)
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Bytes so far, about.
    pub fn size_bytes(&self) -> usize {
        self.buffer.len() + self.marks.iter().map(|(_, key, _)| key.0.len() + 10).sum::<usize>()
    }

    /// The keys that the last `count` captured changes wrote, as changes without images.
    pub fn last_keys(&self, count: usize) -> Vec<Change> {
        let from = self.marks.len().saturating_sub(count);
        self.marks[from..].iter().map(|(table, key, _)| Change { table: *table, key: key.clone(), row: None }).collect()
    }

    /// Changes so far.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// The changes, in the order they were made.
    pub fn finish(mut self, stamp_ms: u64) -> Changes {
        // So that an image can never be mistaken for the end of the buffer.
        self.buffer.put_u8(0);
        let buffer = self.buffer.freeze();
        let image = |range: Option<(usize, usize)>| range.map(|(start, end)| buffer.slice(start..end));
        let changes =
            self.marks.into_iter().map(|(table, key, range)| Change { table, key, row: image(range) }).collect();
        Changes { stamp_ms, answered: Vec::new(), changes }
    }
}
