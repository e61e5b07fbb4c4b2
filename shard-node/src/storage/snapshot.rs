//! Reading a range as of one moment: the copy of a move, checksums.
//!
//! A [`PinnedSnapshot`] is a read-only transaction whose snapshot is taken before it is handed out.
//! Taken between two apply batches it shows exactly the effective entries up to the replica's
//! position (R21, R31), however long it is read. But a snapshot held for long keeps dead rows alive
//! for everyone, so the copy takes a new one for each chunk, and holds none between two.

use super::StoreError;
use super::prepared::scalar_type;
use super::raw_values::{Raw, RawParameter};
use super::statements::{self, Bounds, SEQUENCE_VALUES, Shape};
use crate::postgres::{Connector, SessionRole};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, RowBatch, SqlError, TableSchema};
use futures::{TryStreamExt, pin_mut};
use postgres_types::Type;
use std::collections::HashMap;
use tokio_postgres::{Client, Row, Statement};

/// Rows asked of PostgreSQL at a time. What was asked for and does not fit into a chunk any more is
/// read again by the next, so the first step of a chunk, before the weight of its rows is known, is
/// a small one.
const STEPS: [usize; 4] = [64, 16, 4, 1];
const FIRST_STEP: usize = 16;
/// Of rows that are read in pieces which are larger than a chunk.
const PIECE_STEPS: [usize; 7] = [4096, 1024, 256, 64, 16, 4, 1];
/// Of keys and sizes, which are short whatever the row weighs.
const KEY_STEPS: [usize; 4] = [1024, 256, 64, 16];
/// A chunk of more than one row has at most this many bytes of packed rows: with what surrounds
/// them in the log, it fits into an entry.
pub const MAX_CHUNK_BYTES: usize = (1 << 20) - (64 << 10);
/// The most statements kept prepared.
const MAX_STATEMENTS: usize = 256;
/// Reading in key order must be an index scan, whatever the statistics say: a sort would read the
/// whole range for each chunk.
const SET_UP_SESSION: &str =
    "SET enable_sort = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan";
/// `pg_current_snapshot` makes PostgreSQL take the transaction's snapshot now, not at the first
/// read.
const PIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()";

/// A read-only transaction that sees one moment.
#[derive(Debug)]
pub struct PinnedSnapshot {
    client: Client,
    statements: HashMap<(String, Query, Shape), Statement>,
    /// Which schema changes had been made when the session was opened.
    generation: u64,
}

/// A piece of a range, read in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// `rows` is all there is in this interval. It starts where the asked one starts.
    pub covered: KeyInterval,
    /// All columns of its rows.
    pub rows: RowBatch,
    /// Their checksum, computed by PostgreSQL in this snapshot.
    pub checksum: RangeChecksum,
    /// Whether `covered` is all of the interval that was asked for.
    pub last: bool,
}

/// The first rows of an interval, for a replica that lacks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsOf {
    /// `rows` is all there is in this interval. It starts where the asked one starts.
    pub covered: KeyInterval,
    /// All columns of its rows.
    pub rows: RowBatch,
    /// Whether `covered` is all of the interval that was asked for.
    pub last: bool,
}

/// The beginning of a range, as it is to be deleted: bounds and sizes, without the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// It starts where the asked interval starts.
    pub covered: KeyInterval,
    /// Rows in it.
    pub rows: u64,
    /// What they take in PostgreSQL, about, in bytes.
    pub bytes: u64,
    /// Whether `covered` is all of the interval that was asked for.
    pub last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Query {
    /// All columns of the rows, and each row's hash, by a cursor.
    Chunk,
    /// All columns of the rows, by a cursor.
    Piece,
    /// The key's columns, and what each column takes, by a cursor.
    Extent,
    /// A number of rows of one of them.
    Fetch(Walk, usize),
    Checksum,
}

/// What a cursor walks over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Walk {
    /// For chunks: rows, with their hashes.
    Rows,
    /// For pieces: rows.
    Plain,
    Keys,
}

impl Walk {
    fn query(self) -> Query {
        match self {
            Walk::Rows => Query::Chunk,
            Walk::Plain => Query::Piece,
            Walk::Keys => Query::Extent,
        }
    }

    /// The most rows that are asked for at a time, and fewer.
    fn steps(self) -> &'static [usize] {
        match self {
            Walk::Rows => &STEPS,
            Walk::Plain => &PIECE_STEPS,
            Walk::Keys => &KEY_STEPS,
        }
    }
}

/// The cursor of a chunk that is being read.
const CURSOR: &str = "evenkeel_chunk";
const CLOSE: &str = "CLOSE evenkeel_chunk";

/// A session for snapshots that holds none, and no transaction.
#[derive(Debug)]
pub struct IdleSession(PinnedSnapshot);

impl IdleSession {
    /// Opens a session.
    ///
    /// # Errors
    /// As for [`Connector::connect`].
    pub async fn open(connector: &Connector) -> Result<IdleSession, StoreError> {
        let client = connector.connect(SessionRole::Admin).await?;
        client.batch_execute(SET_UP_SESSION).await?;
        Ok(IdleSession(PinnedSnapshot { client, statements: HashMap::new(), generation: 0 }))
    }

    /// Which schema changes had been made when the session was opened.
    pub fn generation(&self) -> u64 {
        self.0.generation
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
    /// Opens a session and takes the snapshot; when this returns, later commits are invisible to
    /// it.
    ///
    /// # Errors
    /// As for [`Connector::connect`].
    pub async fn open(connector: &Connector) -> Result<PinnedSnapshot, StoreError> {
        IdleSession::open(connector).await?.pin().await
    }

    /// The same, opened when these schema changes had been made.
    pub(super) fn of_generation(self, generation: u64) -> PinnedSnapshot {
        PinnedSnapshot { generation, ..self }
    }

    /// Its session.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Lets go of the snapshot.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn unpin(self) -> Result<IdleSession, StoreError> {
        self.client.batch_execute("ROLLBACK").await?;
        Ok(IdleSession(self))
    }

    /// Lets go of the snapshot and takes one of now, on the same session.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        self.client.batch_execute("ROLLBACK").await?;
        Ok(self.client.batch_execute(PIN).await?)
    }

    /// From here on no statement in it may take longer; until the snapshot is released.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn limit_time(&self, ms: u64) -> Result<(), StoreError> {
        Ok(self.client.batch_execute(&format!("SET LOCAL statement_timeout = {ms}")).await?)
    }

    /// The first rows of an interval, in key order: at least one if there is one, at most
    /// `max_rows`, and no more than `max_bytes` of packed rows but for the row that goes over it,
    /// unless with that one it were more than [`MAX_CHUNK_BYTES`]. A row that is longer is a chunk
    /// of its own. To go on, ask for what lies after [`Chunk::covered`].
    ///
    /// # Errors
    /// [`StoreError::SessionLost`]: open another. Else the table is not what `schema` says, or the
    /// bounds are not its keys. The transaction has failed then.
    pub async fn chunk(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Chunk, StoreError> {
        let width = schema.columns.len();
        let mut builder = RowBuilder::new(width);
        let mut sum = 0u64;
        let key_columns: Vec<usize> = schema.key.clone();
        let cut = if interval.is_empty() {
            None
        } else {
            let take = |row: &Row| {
                let weight: usize = (0..width).map(|column| 4 + value(row, column).map_or(0, <[u8]>::len)).sum();
                let (count, bytes) = (builder.count() as usize, builder.size_bytes());
                if count > 0 && (count >= max_rows || bytes >= max_bytes || bytes + weight > MAX_CHUNK_BYTES) {
                    return Ok(Taken::No);
                }
                builder.push((0..width).map(|column| value(row, column)));
                sum = sum.wrapping_add(row.try_get::<_, i64>(width)? as u64);
                Ok(Taken::Yes { left: max_bytes.saturating_sub(bytes + weight), weight })
            };
            self.walk(schema, interval, Walk::Rows, &key_columns, take).await?
        };
        let rows = builder.finish();
        let checksum = RangeChecksum { rows: u64::from(rows.count), sum };
        let (covered, last) = until(interval, cut);
        Ok(Chunk { covered, rows, checksum, last })
    }

    /// The first rows of an interval, in key order, without checksums: at least one if there is
    /// one, at most `max_rows`, and at most `max_bytes` of packed rows. A row that is longer comes
    /// alone. A piece is not filled up row by row: seven eighths of the bytes are enough. To go on,
    /// ask for what lies after [`RowsOf::covered`]. Of a table whose order is not known, all rows
    /// are one piece; of a sequence its image is.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::chunk`].
    pub async fn piece(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<RowsOf, StoreError> {
        let width = if schema.kind == RelationKind::Sequence { SEQUENCE_VALUES } else { schema.columns.len() };
        let mut builder = RowBuilder::new(width);
        let ordered = schema.is_ordered();
        let cut = if interval.is_empty() {
            None
        } else {
            let take = |row: &Row| {
                let weight: usize = (0..width).map(|column| 4 + value(row, column).map_or(0, <[u8]>::len)).sum();
                let (count, bytes) = (builder.count() as usize, builder.size_bytes());
                if ordered
                    && count > 0
                    && (count >= max_rows || bytes >= max_bytes / 8 * 7 || bytes + weight > max_bytes)
                {
                    return Ok(Taken::No);
                }
                builder.push((0..width).map(|column| value(row, column)));
                Ok(Taken::Yes { left: max_bytes.saturating_sub(bytes + weight), weight })
            };
            self.walk(schema, interval, Walk::Plain, &schema.key, take).await?
        };
        let (covered, last) = until(interval, cut);
        Ok(RowsOf { covered, rows: builder.finish(), last })
    }

    /// The extent of the first rows of an interval: at least one if there is one, at most
    /// `max_rows`, and about `max_bytes` of what they take in PostgreSQL. Values that lie outside
    /// of their rows are not read.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::chunk`].
    pub async fn extent(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Extent, StoreError> {
        if !schema.is_ordered() {
            let (rows, bytes) = self.whole(schema).await?;
            return Ok(Extent { covered: interval.clone(), rows, bytes, last: true });
        }
        let (mut rows, mut bytes) = (0u64, 0u64);
        let keys = schema.key.len();
        let key_columns: Vec<usize> = (0..keys).collect();
        let cut = if interval.is_empty() {
            None
        } else {
            let take = |row: &Row| {
                if rows > 0 && (rows >= max_rows || bytes >= max_bytes) {
                    return Ok(Taken::No);
                }
                let sizes = (keys..row.len()).map(|column| row.try_get::<_, Option<i32>>(column));
                let mut weight = 0;
                for size in sizes {
                    weight += size?.unwrap_or(0).max(0) as usize;
                }
                (rows, bytes) = (rows + 1, bytes + weight as u64);
                Ok(Taken::Yes { left: max_bytes.saturating_sub(bytes) as usize, weight })
            };
            self.walk(schema, interval, Walk::Keys, &key_columns, take).await?
        };
        let (covered, last) = until(interval, cut);
        Ok(Extent { covered, rows, bytes, last })
    }

    /// The rows of a table, and what they take, in bytes.
    async fn whole(&self, schema: &TableSchema) -> Result<(u64, u64), StoreError> {
        if schema.kind == RelationKind::Sequence {
            return Ok((1, 0));
        }
        let table = statements::table_name(schema);
        let sql = format!("SELECT count(*), pg_table_size('{}'::regclass) FROM {table}", table.replace('\'', "''"));
        let row = self.client.query_one(&sql, &[]).await?;
        Ok((row.try_get::<_, i64>(0)? as u64, row.try_get::<_, i64>(1)?.max(0) as u64))
    }

    /// The first key of an interval; of a table whose order is not known, any of its keys.
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::chunk`].
    pub async fn first_key(&mut self, schema: &TableSchema, interval: &KeyInterval) -> Result<Option<Key>, StoreError> {
        if schema.is_ordered() {
            let first = self.chunk(schema, interval, 1, 1).await?;
            let key = schema.key_of_row(&schema.codec(), &first.rows.data);
            let key = key.map_err(|error| StoreError::Diverged(format!("table {}: {error}", schema.name)));
            return if first.rows.count > 0 { key.map(Some) } else { Ok(None) };
        }
        if schema.kind == RelationKind::Sequence || interval.is_empty() {
            return Ok(None);
        }
        let sql = format!("SELECT 1 FROM {} LIMIT 1", statements::table_name(schema));
        Ok(self.client.query_opt(&sql, &[]).await?.map(|_| Key::MIN))
    }

    /// The position of the log that these rows are as of, if this replica follows: each batch is
    /// applied with its position. `None` if it has recorded none yet.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`].
    pub async fn reached(&self) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT greatest(index, reached) FROM evenkeel.position ORDER BY batch DESC LIMIT 1";
        let row = self.client.query_opt(sql, &[]).await?;
        Ok(row.map(|row| row.try_get::<_, i64>(0)).transpose()?.map(|reached| reached as u64))
    }

    /// Walks over an interval's rows in key order until `take` wants no more; gives the key of the
    /// first row that was not taken.
    async fn walk(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
        walk: Walk,
        key_columns: &[usize],
        mut take: impl FnMut(&Row) -> Result<Taken, StoreError>,
    ) -> Result<Option<Key>, StoreError> {
        let bounds = Bounds::of(schema, interval)?;
        let declare = self.prepared(schema, walk.query(), bounds.shape).await?;
        let parameters: Vec<RawParameter<'_>> = bounds.values().map(RawParameter).collect();
        self.client.execute_raw(&declare, parameters).await?;
        let mut step = FIRST_STEP;
        let cut = 'walk: loop {
            let fetch = self.prepared(schema, Query::Fetch(walk, step), Shape::default()).await?;
            let stream = self.client.query_raw(&fetch, std::iter::empty::<RawParameter<'_>>()).await?;
            pin_mut!(stream);
            let (mut fetched, mut weights, mut room) = (0, 0, 0);
            let mut cut = None;
            // All that was asked for has to be read, wanted or not.
            while let Some(row) = stream.try_next().await? {
                fetched += 1;
                if cut.is_some() {
                    continue;
                }
                match take(&row)? {
                    Taken::Yes { left, weight } => (weights, room) = (weights + weight, left),
                    Taken::No => cut = Some(key_of(schema, &row, key_columns)?),
                }
            }
            if cut.is_some() || fetched < step {
                break 'walk cut;
            }
            // One more than fits tells where the next chunk begins.
            let fits = room / (weights / fetched).max(1) + 1;
            let steps = walk.steps();
            step = steps.iter().find(|step| **step <= fits).or(steps.last()).copied().unwrap_or(1);
        };
        self.client.batch_execute(CLOSE).await?;
        Ok(cut)
    }

    /// A checksum of an interval's rows: their number, and the sum, modulo 2^64, of a 64-bit hash
    /// of each row. It depends neither on the rows' physical order nor on the server they lie on
    /// (as long as all have the same byte order).
    ///
    /// # Errors
    /// As for [`PinnedSnapshot::chunk`].
    pub async fn checksum(
        &mut self,
        schema: &TableSchema,
        interval: &KeyInterval,
    ) -> Result<RangeChecksum, StoreError> {
        if schema.kind == RelationKind::Sequence {
            return Ok(RangeChecksum { rows: 0, sum: 0 });
        }
        let Some(row) = self.aggregate(schema, interval, Query::Checksum).await? else {
            return Ok(RangeChecksum { rows: 0, sum: 0 });
        };
        checksum_of(&row)?.ok_or_else(|| internal("a checksum that is no number".into()))
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
    let types: Option<Vec<Type>> = statements::where_types(schema, shape).map(scalar_type).collect();
    let types = types.ok_or_else(|| internal(format!("table {} has a key of an unknown type", schema.name)))?;
    let (table, filter) = (statements::table_name(schema), statements::where_in(schema, shape));
    let cursor = |what: String| {
        let order =
            if schema.is_ordered() { format!(" ORDER BY {}", statements::key_columns(schema)) } else { String::new() };
        format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR SELECT {what} FROM {table}{filter}{order}")
    };
    let sql = match query {
        Query::Chunk => cursor(format!("{}, {}", statements::image_columns(schema, ""), statements::row_hash(schema))),
        // Set to just that, as far as the replica that gets it is concerned.
        Query::Piece if schema.kind == RelationKind::Sequence => cursor("last_value, is_called, true".into()),
        Query::Piece => cursor(statements::image_columns(schema, "")),
        Query::Extent => cursor(format!("{}, {}", statements::key_columns(schema), statements::column_sizes(schema))),
        Query::Fetch(_, rows) => format!("FETCH FORWARD {rows} FROM {CURSOR}"),
        Query::Checksum => statements::checksum(schema, shape),
    };
    Ok((sql, types))
}

/// Whether a row was taken; if so, how many bytes there is room for still, and what the row weighs.
enum Taken {
    Yes { left: usize, weight: usize },
    No,
}

/// An interval up to a cut, and whether that is all of it.
fn until(interval: &KeyInterval, cut: Option<Key>) -> (KeyInterval, bool) {
    match cut {
        Some(end) => (KeyInterval::new(interval.start.clone(), Some(end)), false),
        None => (interval.clone(), true),
    }
}

/// A checksum as [`statements::checksum`] gives it. The hashes are signed, their exact sum a
/// `numeric`, which the driver does not read: it comes as text and is reduced here. `None` if it is
/// no number.
pub(super) fn checksum_of(row: &Row) -> Result<Option<RangeChecksum>, tokio_postgres::Error> {
    let sum: Option<i128> = row.try_get::<_, &str>(1)?.parse().ok();
    let rows = row.try_get::<_, i64>(0)? as u64;
    Ok(sum.map(|sum| RangeChecksum { rows, sum: sum as u64 }))
}

/// A row's value. [`Raw`] takes any type, so that only a column that is not there could fail.
pub(super) fn value(row: &Row, column: usize) -> Option<&[u8]> {
    row.try_get::<_, Option<Raw<'_>>>(column).ok().flatten().map(|raw| raw.0)
}

/// A row's key, whose columns stand at `columns`.
fn key_of(schema: &TableSchema, row: &Row, columns: &[usize]) -> Result<Key, StoreError> {
    let key = schema.codec().encode_binary(columns.iter().map(|&column| value(row, column)));
    key.map_err(|e| StoreError::Diverged(format!("table {}: {e}", schema.name)))
}

fn internal(message: String) -> StoreError {
    StoreError::Refused(SqlError::new(codes::INTERNAL, message))
}
