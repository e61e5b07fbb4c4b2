//! Batches of decided changes, each one transaction.
//!
//! All statements of a batch are sent before the first answer is awaited, COMMIT included: a round trip costs as much
//! as applying ten rows. That is safe because PostgreSQL turns the COMMIT of a failed transaction into a rollback, and
//! because a statement that cannot even be sent ends the batch before its COMMIT is.

use super::errors::StoreError;
use super::keys::pack_whole_key;
use super::raw::{Packed, RawParameter};
use super::snapshot::checksum_of;
use super::statements::{self, Bounds, Shape, Source};
use super::{ApplyBatch, Differing, PositionRow, Store, StoreOperation};
use crate::fold::CopiedRows;
use crate::image::Columns;
use bytes::{Bytes, BytesMut};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, KeyType, RowBatch, SqlError, TableSchema};
use futures::future::{BoxFuture, FutureExt};
use futures::{SinkExt, TryStreamExt, pin_mut};
use postgres_types::Type;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use tokio_postgres::{Client, Error, Statement};

/// The most rows in one statement: what it takes in memory on both sides stays small beside the batch itself.
const MAX_STATEMENT_ROWS: usize = 4096;
/// Up to this many rows, one statement each is cheaper than building arrays and joining them. At two and three rows
/// they cost the same (measured with `examples/apply_rate.rs`).
const MAX_SINGLE_ROWS: usize = 1;
/// The largest row that travels in arrays, in bytes: PostgreSQL copies an array's elements four times more often than a parameter, and
/// what arrays hold above its `work_mem` goes to the disk.
const MAX_ARRAY_ROW_BYTES: usize = 2 << 10;
/// From this many rows on that are known not to be there they go in by COPY, which stores a page of rows at a time; one with fewer costs more
/// than it saves, since it waits for an answer before it begins.
const MIN_COPIED_ROWS: usize = 32;
/// Bytes of such rows in one message.
const COPY_MESSAGE_BYTES: usize = 64 << 10;
/// The most tables whose statements are kept prepared.
const MAX_TABLES: usize = 256;

impl Store {
    /// Applies a batch in one transaction: all of it is in afterwards, or nothing. Gives the rows of copies that are not stored as they
    /// came. Not to be dropped before it is done; a session whose apply was dropped is given up at the next call.
    ///
    /// # Errors
    /// [`StoreError::SessionLost`]: open the store again, which tells whether the batch is in. [`StoreError::Refused`]:
    /// it is not in; try again. [`StoreError::Diverged`]: the replica must stop (invariant 5).
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
        let result = self.run(batch, &row).await;
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
                self.tables = Tables::default();
                Err(error.while_applying())
            }
        }
    }

    async fn run(&mut self, batch: &ApplyBatch, row: &PositionRow) -> Result<Vec<Differing>, StoreError> {
        let differing = Mutex::default();
        self.run_all(batch, row, &differing).await?;
        Ok(differing.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run_all(
        &mut self,
        batch: &ApplyBatch,
        row: &PositionRow,
        differing: &Mutex<Vec<Differing>>,
    ) -> Result<(), StoreError> {
        let reached = batch.reached.max(batch.position);
        let values = [row.batch, row.index as i64, reached as i64, batch.term as i64].map(i64::to_be_bytes);
        let (client, tables) = (&self.client, &mut self.tables);
        let mut run = Run { client, tables, pipeline: Pipeline::default(), differing };
        // R16: flushing this commit's record flushes those of all commits before it.
        run.simple(if batch.sync { "BEGIN READ WRITE; SET LOCAL synchronous_commit = on" } else { "BEGIN READ WRITE" })
            .await?;
        let skipped = deliberate(Bug::SkippedBatch) && batch.records.is_empty() && batch.position.is_multiple_of(16);
        for operation in batch.operations.iter().filter(|_| !skipped) {
            run.operation(operation).await?;
        }
        // Invariant 3: the position, or the records, go in with the changes.
        let (client, insert_record) = (&self.client, &self.insert_record);
        for (term, serial) in &batch.records {
            let parameters = [(*term as i64).to_be_bytes(), (*serial as i64).to_be_bytes()];
            let insert = async move {
                let [term, serial] = &parameters;
                let parameters = [RawParameter(Some(term)), RawParameter(Some(serial)), RawParameter(Some(&[]))];
                // Prepared before: a statement that must be prepared first would come behind the COMMIT.
                client.execute_raw(insert_record, parameters).await
            };
            run.pipeline.send(insert.boxed()).await?;
        }
        if !batch.records.is_empty() {
            run.simple("COMMIT").await?;
            return run.pipeline.drain().await;
        }
        let parameters = [
            RawParameter(Some(&values[0])),
            RawParameter(Some(&values[1])),
            RawParameter(Some(&values[2])),
            RawParameter(Some(&values[3])),
            RawParameter(batch.state.as_deref()),
            RawParameter(Some(&batch.answers)),
            RawParameter(batch.seeding.as_deref()),
        ];
        let insert = client.execute_raw(&self.insert_position, parameters);
        run.pipeline.send(insert.boxed()).await?;
        run.simple("COMMIT").await?;
        run.pipeline.drain().await
    }
}

/// Statements on their way, oldest first.
#[derive(Default)]
struct Pipeline<'a> {
    waiting: Vec<BoxFuture<'a, Result<u64, Error>>>,
}

impl<'a> Pipeline<'a> {
    /// Sends a statement: the driver does that when the future is first polled. An error here means that it was not
    /// sent.
    async fn send(&mut self, mut statement: BoxFuture<'a, Result<u64, Error>>) -> Result<(), StoreError> {
        match futures::poll!(&mut statement) {
            Poll::Ready(result) => {
                result?;
            }
            Poll::Pending => self.waiting.push(statement),
        }
        Ok(())
    }

    /// Waits for all answers; the first error is the one that counts, those after it only say that the transaction has
    /// failed.
    async fn drain(&mut self) -> Result<(), StoreError> {
        let mut first = Ok(());
        for statement in self.waiting.drain(..) {
            if let (Err(error), Ok(())) = (statement.await, &first) {
                first = Err(error.into());
            }
        }
        first
    }
}

/// Makes a table in the transaction that `client` has open, and prepares all that applying to it can take: whatever PostgreSQL has
/// against the definition it says here, and not behind a decided entry (invariant 5).
pub(super) async fn try_table(client: &Client, schema: &Arc<TableSchema>) -> Result<(), StoreError> {
    // Prepared, so that it is one statement and no more.
    client.execute(&*schema.create_sql, &[]).await?;
    let differing = Mutex::default();
    let mut run = Run { client, tables: &mut Tables::default(), pipeline: Pipeline::default(), differing: &differing };
    let arrays = run.tables.has_arrays(client, &mut run.pipeline, schema).await?;
    let sources = if arrays { &[Source::One, Source::Many][..] } else { &[Source::One] };
    let others = Columns::new((0..schema.columns.len()).filter(|at| !schema.key.contains(at)));
    for source in sources {
        run.prepared(schema, Kind::Insert(*source, false)).await?;
        run.prepared(schema, Kind::Insert(*source, true)).await?;
        if others.count() > 0 {
            run.prepared(schema, Kind::Update(*source, others.clone())).await?;
        }
    }
    if evenkeel_host::simulation().is_none() {
        run.prepared(schema, Kind::CopyIn).await?;
    }
    run.prepared(schema, Kind::Delete(Source::One)).await?;
    run.prepared(schema, Kind::Delete(Source::Many)).await?;
    let whole = Shape { start: schema.key.len(), end: schema.key.len() };
    run.prepared(schema, Kind::DeleteInterval(whole)).await?;
    run.prepared(schema, Kind::Checksum(whole)).await?;
    Ok(())
}

/// A batch being applied.
struct Run<'a> {
    client: &'a Client,
    tables: &'a mut Tables,
    pipeline: Pipeline<'a>,
    /// Rows of copies that are not stored as they came.
    differing: &'a Mutex<Vec<Differing>>,
}

impl<'a> Run<'a> {
    async fn operation(&mut self, operation: &'a StoreOperation) -> Result<(), StoreError> {
        match operation {
            StoreOperation::CreateTable(schema) => {
                self.tables.known.remove(&schema.name);
                self.simple(&schema.create_sql).await
            }
            StoreOperation::DropTable(schema) => {
                self.tables.known.remove(&schema.name);
                let drop = format!("DROP TABLE IF EXISTS public.{}", TableSchema::quote(&schema.name));
                let client = self.client;
                self.pipeline.send(async move { client.batch_execute(&drop).await.map(|()| 0) }.boxed()).await
            }
            StoreOperation::Rows { table, upserts, deletes } => {
                if !upserts.is_empty() {
                    let rows = Packed::of_rows(upserts, table.columns.len())?;
                    self.insert(table, rows, true).await?;
                }
                self.delete(table, deletes).await
            }
            StoreOperation::Update { table, columns, rows } => self.update(table, columns, rows).await,
            StoreOperation::ReplaceInterval { table, interval, rows, copied } => {
                self.replace(table, interval, rows).await?;
                match copied {
                    Some(copied) => self.compare(table, interval, *copied).await,
                    None => Ok(()),
                }
            }
            StoreOperation::DeleteInterval { table, interval } => self.delete_interval(table, interval).await,
        }
    }

    async fn simple(&mut self, sql: &'a str) -> Result<(), StoreError> {
        let client = self.client;
        self.pipeline.send(async move { client.batch_execute(sql).await.map(|()| 0) }.boxed()).await
    }

    async fn replace(
        &mut self,
        table: &'a Arc<TableSchema>,
        interval: &KeyInterval,
        rows: &'a RowBatch,
    ) -> Result<(), StoreError> {
        self.delete_interval(table, interval).await?;
        let rows = Packed::of_batch(rows, table.columns.len())?;
        // A simulation's server knows no COPY; the rows are the same by either way.
        if rows.rows() >= MIN_COPIED_ROWS && evenkeel_host::simulation().is_none() {
            return self.copy_in(table, &rows).await;
        }
        self.insert(table, rows, false).await
    }

    /// Rows that are not there. What is sent behind them waits in the driver until all of them are.
    async fn copy_in(&mut self, table: &'a Arc<TableSchema>, rows: &Packed<'_>) -> Result<(), StoreError> {
        let statement = self.prepared(table, Kind::CopyIn).await?;
        let (client, mut left) = (self.client, rows.copied());
        let run = async move {
            let sink = client.copy_in::<Statement, Bytes>(&statement).await?;
            pin_mut!(sink);
            while !left.is_empty() {
                sink.send(left.split_to(left.len().min(COPY_MESSAGE_BYTES))).await?;
            }
            sink.finish().await
        };
        self.pipeline.send(run.boxed()).await
    }

    /// Compares what is stored in the interval now with what the copy says of it.
    async fn compare(
        &mut self,
        table: &'a Arc<TableSchema>,
        interval: &'a KeyInterval,
        copied: CopiedRows,
    ) -> Result<(), StoreError> {
        if interval.is_empty() {
            return Ok(());
        }
        let bounds = Bounds::of(table, interval)?;
        let statement = self.prepared(table, Kind::Checksum(bounds.shape)).await?;
        let (client, differing) = (self.client, self.differing);
        let run = async move {
            let values: Vec<RawParameter<'_>> = bounds.values().map(RawParameter).collect();
            let rows = client.query_raw(&statement, values).await?;
            pin_mut!(rows);
            if let Some(row) = rows.try_next().await? {
                // One that cannot be read is not the same.
                let stored = checksum_of(&row)?.unwrap_or(RangeChecksum { rows: 0, sum: 0 });
                if stored != copied.checksum {
                    let mut differing = differing.lock().unwrap_or_else(PoisonError::into_inner);
                    differing.push(Differing { copied, interval: interval.clone(), stored });
                }
            }
            Ok(1)
        };
        self.pipeline.send(run.boxed()).await
    }

    async fn insert(&mut self, table: &'a Arc<TableSchema>, rows: Packed<'a>, upsert: bool) -> Result<(), StoreError> {
        if rows.rows() == 0 {
            return Ok(());
        }
        let arrays = self.tables.has_arrays(self.client, &mut self.pipeline, table).await?;
        let client = self.client;
        let (rows, single) = rows.in_arrays(arrays, MAX_ARRAY_ROW_BYTES, MAX_SINGLE_ROWS);
        if single.rows() > 0 {
            let statement = self.prepared(table, Kind::Insert(Source::One, upsert)).await?;
            for row in single.into_pieces(1) {
                let statement = statement.clone();
                let run = async move { client.execute_raw(&statement, row.single()).await };
                self.pipeline.send(run.boxed()).await?;
            }
        }
        if rows.rows() == 0 {
            return Ok(());
        }
        let statement = self.prepared(table, Kind::Insert(Source::Many, upsert)).await?;
        for piece in rows.into_pieces(MAX_STATEMENT_ROWS) {
            let (statement, width) = (statement.clone(), table.columns.len());
            let run = async move { client.execute_raw(&statement, (0..width).map(|c| piece.column(c))).await };
            self.pipeline.send(run.boxed()).await?;
        }
        Ok(())
    }

    async fn update(
        &mut self,
        table: &'a Arc<TableSchema>,
        columns: &'a Columns,
        rows: &'a [(Key, Bytes)],
    ) -> Result<(), StoreError> {
        if columns.positions().any(|at| at >= table.columns.len() || table.key.contains(&at)) {
            return Err(StoreError::Diverged(format!("an image assigns what table {} has no column for", table.name)));
        }
        let arrays = self.tables.has_arrays(self.client, &mut self.pipeline, table).await?;
        let size = |(key, values): &(Key, Bytes)| key.0.len() + values.len();
        let in_array = |row: &&(Key, Bytes)| arrays && size(row) <= MAX_ARRAY_ROW_BYTES;
        let many = if rows.iter().filter(in_array).count() > MAX_SINGLE_ROWS { Source::Many } else { Source::One };
        for (source, rows) in pieces_for_update(rows, |row| many == Source::Many && in_array(&row)) {
            let statement = self.prepared(table, Kind::Update(source, columns.clone())).await?;
            let types = table.key_types();
            let keys = pack_keys(table, &types, rows.iter().map(|(key, _)| key))?;
            let (client, left, right) = (self.client, types.len(), columns.count());
            let run = async move {
                // What was just packed is whole, and so are a part's values.
                let values = rows.iter().map(|(_, values)| values);
                let Ok(rows) = Packed::joined(&keys, left, values, right) else { return Ok(0) };
                match source {
                    Source::One => client.execute_raw(&statement, rows.single()).await,
                    Source::Many => client.execute_raw(&statement, (0..left + right).map(|c| rows.column(c))).await,
                }
            };
            self.pipeline.send(run.boxed()).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, table: &'a Arc<TableSchema>, keys: &'a [Key]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let types = table.key_types();
        let client = self.client;
        let single = keys.len() <= MAX_SINGLE_ROWS;
        let source = if single { Source::One } else { Source::Many };
        let statement = self.prepared(table, Kind::Delete(source)).await?;
        for piece in keys.chunks(if single { 1 } else { MAX_STATEMENT_ROWS }) {
            let buffer = pack_keys(table, &types, piece.iter())?;
            let (statement, width, count) = (statement.clone(), types.len(), piece.len());
            // What was just packed is whole; the check costs nothing beside the statement.
            let run = async move {
                let Ok(keys) = Packed::of_buffer(&buffer, width, count) else { return Ok(0) };
                match source {
                    Source::One => client.execute_raw(&statement, keys.single()).await,
                    Source::Many => client.execute_raw(&statement, (0..width).map(|c| keys.column(c))).await,
                }
            };
            self.pipeline.send(run.boxed()).await?;
        }
        Ok(())
    }

    async fn delete_interval(&mut self, table: &'a Arc<TableSchema>, interval: &KeyInterval) -> Result<(), StoreError> {
        if interval.is_empty() {
            return Ok(());
        }
        let bounds = Bounds::of(table, interval)?;
        let statement = self.prepared(table, Kind::DeleteInterval(bounds.shape)).await?;
        let client = self.client;
        let run = async move {
            let values: Vec<RawParameter<'_>> = bounds.values().map(RawParameter).collect();
            client.execute_raw(&statement, values).await
        };
        self.pipeline.send(run.boxed()).await
    }

    /// A statement, prepared now if it is not yet. Preparing awaits an answer, so all answers before it are taken in
    /// first.
    async fn prepared(&mut self, schema: &Arc<TableSchema>, kind: Kind) -> Result<Statement, StoreError> {
        let table = self.tables.table(schema);
        if let Some(statement) = table.statements.get(&kind) {
            return Ok(statement.clone());
        }
        self.pipeline.drain().await?;
        let (sql, types) = kind.describe(schema, &self.tables.array_types)?;
        let statement = self.client.prepare_typed(&sql, &types).await?;
        self.tables.table(schema).statements.insert(kind, statement.clone());
        Ok(statement)
    }
}

/// Runs of rows that go into one statement each, and how: neighbours that fit into arrays together, every other row by itself.
fn pieces_for_update(
    rows: &[(Key, Bytes)],
    in_array: impl Fn(&(Key, Bytes)) -> bool,
) -> impl Iterator<Item = (Source, &[(Key, Bytes)])> {
    let runs = rows.chunk_by(move |left, right| in_array(left) && in_array(right));
    runs.flat_map(|run| run.chunks(MAX_STATEMENT_ROWS)).map(|run| {
        let source = if run.len() > MAX_SINGLE_ROWS { Source::Many } else { Source::One };
        (source, run)
    })
}

fn pack_keys<'k>(
    table: &TableSchema,
    types: &[KeyType],
    keys: impl Iterator<Item = &'k Key> + Clone,
) -> Result<Bytes, StoreError> {
    let bytes: usize = keys.clone().map(|key| key.0.len() + 4 * types.len()).sum();
    let mut out = BytesMut::with_capacity(bytes);
    for key in keys {
        pack_whole_key(types, key, &mut out)
            .map_err(|error| StoreError::Diverged(format!("{key:?} of table {}: {error}", table.name)))?;
    }
    Ok(out.freeze())
}

/// The statements a table can need.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// Of rows; with `true`, over rows that may be there.
    Insert(Source, bool),
    /// Of rows that are not there, many.
    CopyIn,
    /// Of these columns.
    Update(Source, Columns),
    /// By keys.
    Delete(Source),
    /// By an interval.
    DeleteInterval(Shape),
    /// Of an interval's rows.
    Checksum(Shape),
}

impl Kind {
    /// Its text and its parameters' types.
    fn describe(
        &self,
        schema: &TableSchema,
        arrays: &HashMap<u32, Option<Type>>,
    ) -> Result<(String, Vec<Type>), StoreError> {
        let of = |source: Source, oid: u32| match source {
            Source::One => scalar_type(oid),
            Source::Many => arrays.get(&oid).cloned().flatten().or_else(|| array_of_key_type(oid)),
        };
        let all = |source| schema.columns.iter().map(|c| of(source, c.type_oid)).collect::<Option<Vec<Type>>>();
        let (sql, types) = match *self {
            Kind::Insert(source, upsert) => (statements::insert(schema, source, upsert), all(source)),
            Kind::CopyIn => (statements::copy_in(schema), Some(Vec::new())),
            Kind::Update(source, ref columns) => {
                let assigned = columns.positions().filter_map(|at| schema.columns.get(at));
                let types = schema.key_columns().chain(assigned).map(|column| of(source, column.type_oid)).collect();
                (statements::update(schema, columns, source), types)
            }
            Kind::Delete(source) => {
                let types = schema.key_columns().map(|column| of(source, column.type_oid)).collect();
                (statements::delete(schema, source), types)
            }
            Kind::DeleteInterval(shape) => {
                let sql =
                    format!("DELETE FROM {}{}", statements::table_name(schema), statements::where_in(schema, shape));
                (sql, statements::where_types(schema, shape).map(scalar_type).collect())
            }
            Kind::Checksum(shape) => {
                let types = statements::where_types(schema, shape).map(scalar_type).collect();
                (statements::checksum(schema, shape), types)
            }
        };
        let unknown =
            || SqlError::new(codes::INTERNAL, format!("table {} has a column of an unknown type", schema.name));
        Ok((sql, types.ok_or_else(|| StoreError::Refused(unknown()))?))
    }
}

fn scalar_type(oid: u32) -> Option<Type> {
    Type::from_oid(oid)
}

/// The array types of the types a key can have.
fn array_of_key_type(oid: u32) -> Option<Type> {
    Some(match KeyType::from_oid(oid)? {
        KeyType::SmallInt => Type::INT2_ARRAY,
        KeyType::Integer => Type::INT4_ARRAY,
        KeyType::BigInt => Type::INT8_ARRAY,
        KeyType::Text => Type::TEXT_ARRAY,
        KeyType::Uuid => Type::UUID_ARRAY,
        KeyType::Bytea => Type::BYTEA_ARRAY,
        KeyType::TimestampTz => Type::TIMESTAMPTZ_ARRAY,
    })
}

/// What is prepared, per table.
#[derive(Debug, Default)]
pub(super) struct Tables {
    known: HashMap<String, Table>,
    /// By a type's object id: the type of its arrays. `None` for a type without one; an array, for example.
    array_types: HashMap<u32, Option<Type>>,
}

#[derive(Debug)]
struct Table {
    schema: Arc<TableSchema>,
    statements: HashMap<Kind, Statement>,
}

impl Tables {
    fn table(&mut self, schema: &Arc<TableSchema>) -> &mut Table {
        let same = |known: &Table| Arc::ptr_eq(&known.schema, schema) || known.schema == *schema;
        if !self.known.get(&schema.name).is_some_and(same) {
            if self.known.len() >= MAX_TABLES {
                self.known.clear();
            }
            self.known.remove(&schema.name);
        }
        self.known
            .entry(schema.name.clone())
            .or_insert_with(|| Table { schema: schema.clone(), statements: HashMap::new() })
    }

    /// Whether every column's type has an array type, so that rows can be given as arrays; learns the types not seen
    /// before. (R15: of an array column that is not so, since `unnest` would flatten it.)
    async fn has_arrays(
        &mut self,
        client: &Client,
        pipeline: &mut Pipeline<'_>,
        schema: &TableSchema,
    ) -> Result<bool, StoreError> {
        let unseen: Vec<u32> =
            schema.columns.iter().map(|c| c.type_oid).filter(|oid| !self.array_types.contains_key(oid)).collect();
        if !unseen.is_empty() {
            pipeline.drain().await?;
            let found = client.query("SELECT oid, typarray FROM pg_type WHERE oid = ANY($1)", &[&unseen]).await?;
            for row in found {
                self.array_types.insert(row.try_get(0)?, Type::from_oid(row.try_get(1)?));
            }
            unseen.into_iter().for_each(|oid| _ = self.array_types.entry(oid).or_insert(None));
        }
        Ok(schema.columns.iter().all(|c| matches!(self.array_types.get(&c.type_oid), Some(Some(_)))))
    }
}
