//! Reading a range as of one moment: the copy of a move, checksums, sizes.
//!
//! A [`PinnedSnapshot`] is a read-only transaction whose snapshot is taken before it is handed out. Taken between two
//! apply batches it shows exactly the effective entries up to the replica's position (R21, R31), however long it is
//! read. But a snapshot held for long keeps dead rows alive for everyone, so the copy takes a new one for each chunk
//! ([`PinnedSnapshot::renew`], on the same session).

use super::errors::StoreError;
use super::raw::{Raw, RawParameter};
use super::statements::{self, Bounds, Shape};
use crate::postgres::{Connector, Role};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, RowBatch, SqlError, TableSchema};
use futures::{TryStreamExt, pin_mut};
use postgres_types::Type;
use std::collections::HashMap;
use tokio_postgres::{Client, Row, Statement};

/// What a row is taken to weigh before any was seen, in bytes.
const FIRST_GUESS_ROW_BYTES: usize = 512;
/// The most statements kept prepared.
const MAX_STATEMENTS: usize = 256;
/// Reading in key order must be an index scan, whatever the statistics say: a sort would read the whole range for each
/// chunk.
const SET_UP_SESSION: &str =
    "SET enable_sort = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan";
/// `pg_current_snapshot` makes PostgreSQL take the transaction's snapshot now, not at the first read.
const PIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()";

/// A read-only transaction that sees one moment.
#[derive(Debug)]
pub struct PinnedSnapshot {
    client: Client,
    statements: HashMap<(String, Query, Shape), Statement>,
    /// Learnt from the last chunk, in bytes: how many rows to ask for.
    row_bytes: usize,
}

/// A piece of a range, read in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// `rows` is all there is in this interval. It starts where the asked one starts.
    pub covered: KeyInterval,
    /// All columns of its rows.
    pub rows: RowBatch,
    /// Whether `covered` is all of the interval that was asked for.
    pub last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Query {
    Chunk,
    Checksum,
    Sizes,
}

/// A session for snapshots that holds none, and no transaction.
#[derive(Debug)]
pub struct IdleSession(PinnedSnapshot);

impl IdleSession {
    /// Opens a session.
    ///
    /// # Errors
    /// As for [`Connector::connect`].
    pub async fn open(connector: &Connector) -> Result<IdleSession, StoreError> {
        let client = connector.connect(Role::Admin).await?;
        client.batch_execute(SET_UP_SESSION).await?;
        Ok(IdleSession(PinnedSnapshot { client, statements: HashMap::new(), row_bytes: FIRST_GUESS_ROW_BYTES }))
    }

    /// Takes a snapshot of now.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn pin(self) -> Result<PinnedSnapshot, StoreError> {
        self.0.client.batch_execute(PIN).await?;
        Ok(self.0)
    }
}

impl PinnedSnapshot {
    /// Opens a session and takes the snapshot; when this returns, later commits are invisible to it.
    ///
    /// # Errors
    /// As for [`Connector::connect`].
    pub async fn open(connector: &Connector) -> Result<PinnedSnapshot, StoreError> {
        IdleSession::open(connector).await?.pin().await
    }

    /// Lets go of the snapshot.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn unpin(self) -> Result<IdleSession, StoreError> {
        self.client.batch_execute("ROLLBACK").await?;
        Ok(IdleSession(self))
    }

    /// Lets go of the snapshot and takes one of now; much cheaper than opening another.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        self.client.batch_execute("ROLLBACK").await?;
        Ok(self.client.batch_execute(PIN).await?)
    }

    /// The first rows of an interval, in key order: at most `max_rows` (at least 1), and no more than `max_bytes` of
    /// packed rows but for the row that goes over it. To go on, ask for what lies after [`Chunk::covered`].
    ///
    /// # Errors
    /// [`StoreError::SessionLost`]: open another. Else the table is not what `schema` says, or the bounds are not its
    /// keys.
    pub async fn chunk(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Chunk, StoreError> {
        let whole = |rows| Chunk { covered: interval.clone(), rows, last: true };
        let mut builder = RowBuilder::new(schema.columns.len());
        if interval.is_empty() {
            return Ok(whole(builder.finish()));
        }
        let limit = (max_bytes / self.row_bytes.max(1)).clamp(1, max_rows.max(1));
        let bounds = Bounds::of(schema, interval)?;
        let statement = self.prepared(schema, Query::Chunk, bounds.shape).await?;
        let limit_value = (limit as i64).to_be_bytes();
        let parameters: Vec<RawParameter<'_>> =
            bounds.values().chain([Some(&limit_value[..])]).map(RawParameter).collect();
        let stream = self.client.query_raw(&statement, parameters).await?;
        pin_mut!(stream);
        let mut last_row = None;
        while let Some(row) = stream.try_next().await? {
            builder.push((0..row.len()).map(|column| value(&row, column)));
            last_row = Some(row);
            if builder.size_bytes() >= max_bytes {
                break;
            }
        }
        let rows = builder.finish();
        self.row_bytes = rows.data.len().checked_div(rows.count as usize).unwrap_or(self.row_bytes);
        let next = match last_row {
            Some(row) if rows.count as usize == limit || rows.data.len() >= max_bytes => after(schema, &row)?,
            _ => None,
        };
        Ok(match next {
            Some(next) if interval.contains(&next) => {
                Chunk { covered: KeyInterval::new(interval.start.clone(), Some(next)), rows, last: false }
            }
            _ => whole(rows),
        })
    }

    /// A checksum of an interval's rows: their number, and the sum, modulo 2^64, of a 64-bit hash of each row's text.
    /// It depends neither on the rows' physical order nor on the server they lie on (as long as all have the same byte
    /// order).
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::chunk`].
    pub async fn checksum(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
    ) -> Result<RangeChecksum, StoreError> {
        let Some(row) = self.aggregate(schema, interval, Query::Checksum).await? else {
            return Ok(RangeChecksum { rows: 0, sum: 0 });
        };
        // The hashes are signed, their exact sum a `numeric`, which the driver does not read: it comes as text and is
        // reduced here.
        let sum: i128 = row.try_get::<_, &str>(1)?.parse().map_err(|e| internal(format!("checksum: {e}")))?;
        Ok(RangeChecksum { rows: row.try_get::<_, i64>(0)? as u64, sum: sum as u64 })
    }

    /// How many rows lie in an interval, and how many bytes they take, about. Reads them all.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::chunk`].
    pub async fn sizes(&mut self, schema: &TableSchema, interval: &KeyInterval) -> Result<(u64, u64), StoreError> {
        let Some(row) = self.aggregate(schema, interval, Query::Sizes).await? else { return Ok((0, 0)) };
        Ok((row.try_get::<_, i64>(0)? as u64, row.try_get::<_, i64>(1)? as u64))
    }

    async fn aggregate(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
        query: Query,
    ) -> Result<Option<Row>, StoreError> {
        if interval.is_empty() {
            return Ok(None);
        }
        let bounds = Bounds::of(schema, interval)?;
        let statement = self.prepared(schema, query, bounds.shape).await?;
        let parameters: Vec<RawParameter<'_>> = bounds.values().map(RawParameter).collect();
        let stream = self.client.query_raw(&statement, parameters).await?;
        pin_mut!(stream);
        Ok(stream.try_next().await?)
    }

    async fn prepared(&mut self, schema: &TableSchema, query: Query, shape: Shape) -> Result<Statement, StoreError> {
        let key = (schema.name.clone(), query, shape);
        if let Some(statement) = self.statements.get(&key) {
            return Ok(statement.clone());
        }
        if self.statements.len() >= MAX_STATEMENTS {
            self.statements.clear();
        }
        let (sql, types) = describe(schema, query, shape)?;
        let statement = self.client.prepare_typed(&sql, &types).await?;
        self.statements.insert(key, statement.clone());
        Ok(statement)
    }
}

fn describe(schema: &TableSchema, query: Query, shape: Shape) -> Result<(String, Vec<Type>), StoreError> {
    let types: Option<Vec<Type>> = statements::where_types(schema, shape).map(Type::from_oid).collect();
    let mut types = types.ok_or_else(|| internal(format!("table {} has a key of an unknown type", schema.name)))?;
    let row = statements::row(schema);
    let what = match query {
        Query::Chunk => statements::columns(schema),
        Query::Checksum => format!("count(*), coalesce(sum(hashtextextended({row}::text, 0)), 0)::text"),
        Query::Sizes => format!("count(*), coalesce(sum(pg_column_size({row})), 0)::bigint"),
    };
    let mut sql =
        format!("SELECT {what} FROM {}{}", statements::table_name(schema), statements::where_in(schema, shape));
    if query == Query::Chunk {
        types.push(Type::INT8);
        sql.push_str(&format!(" ORDER BY {} LIMIT ${}", statements::key_columns(schema), types.len()));
    }
    Ok((sql, types))
}

/// A row's value. [`Raw`] takes any type, so that only a column that is not there could fail.
fn value(row: &Row, column: usize) -> Option<&[u8]> {
    row.try_get::<_, Option<Raw<'_>>>(column).ok().flatten().map(|raw| raw.0)
}

/// The smallest key after a row's; `None` if there is none.
fn after(schema: &TableSchema, row: &Row) -> Result<Option<Key>, StoreError> {
    let codec = schema.codec();
    let key = codec.encode_binary(schema.key.iter().map(|&column| value(row, column)));
    key.and_then(|key| codec.successor(&key)).map_err(|e| StoreError::Diverged(format!("table {}: {e}", schema.name)))
}

fn internal(message: String) -> StoreError {
    StoreError::Refused(SqlError::new(codes::INTERNAL, message))
}
