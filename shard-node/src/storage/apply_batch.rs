//! Batches of decided changes, each one transaction.
//!
//! All statements of a batch are sent before the first answer is awaited, COMMIT included: a round
//! trip costs as much as applying ten rows. That is safe because PostgreSQL turns the COMMIT of a
//! failed transaction into a rollback, and because a statement that cannot even be sent ends the
//! batch before its COMMIT is.

use super::StoreError;
use super::batch::{ApplyBatch, Differing, OrderedRow, StoreOperation};
use super::capture_triggers::{capture_triggers, drop_capture};
use super::packed_keys::pack_whole_key;
use super::pipeline::Pipeline;
use super::prepared::{Kind, PreparedTables};
use super::raw_values::{Packed, RawParameter};
use super::recovered::PositionRow;
use super::schema_change;
use super::snapshot::checksum_of;
use super::statements::{Bounds, SEQUENCE_VALUES, Shape, Source, has_texts, makes_values, table_name};
use crate::log_entry::image::Columns;
use crate::state_machine::CopiedRows;
use bytes::{Bytes, BytesMut};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::shard::RangeChecksum;
use evenkeel_protocol::{Key, KeyInterval, KeyType, RowBatch, TableSchema};
use futures::future::FutureExt;
use futures::{SinkExt, TryStreamExt, pin_mut};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_postgres::{Client, Statement};

/// The most rows in one statement: what it takes in memory on both sides stays small beside the
/// batch itself.
const MAX_STATEMENT_ROWS: usize = 4096;
/// Up to this many rows, one statement each is cheaper than building arrays and joining them. At
/// two and three rows they cost the same (measured with `examples/apply_rate.rs`).
const MAX_SINGLE_ROWS: usize = 1;
/// The largest row that travels in arrays, in bytes: PostgreSQL copies an array's elements four
/// times more often than a parameter, and what arrays hold above its `work_mem` goes to the disk.
const MAX_ARRAY_ROW_BYTES: usize = 2 << 10;
/// From this many rows on that are known not to be there they go in by COPY, which stores a page of
/// rows at a time; one with fewer costs more than it saves, since it waits for an answer before it
/// begins.
const MIN_COPIED_ROWS: usize = 32;
/// Bytes of such rows in one message.
const COPY_MESSAGE_BYTES: usize = 64 << 10;

/// The prepared statements that record what a batch applies.
#[derive(Clone, Copy)]
pub(super) struct RecordStatements<'a> {
    /// Inserts into `evenkeel.position`.
    pub(super) position: &'a Statement,
    /// Inserts into `evenkeel.applied`.
    pub(super) record: &'a Statement,
}

/// Runs a batch as one transaction. Returns the copied rows that are not stored as they were sent.
pub(super) async fn run_batch(
    client: &Client,
    tables: &mut PreparedTables,
    statements: RecordStatements<'_>,
    batch: &ApplyBatch,
    row: &PositionRow,
) -> Result<Vec<Differing>, StoreError> {
    let differing = Mutex::default();
    run_all(client, tables, statements, batch, row, &differing).await?;
    Ok(differing.into_inner().unwrap_or_else(PoisonError::into_inner))
}

async fn run_all(
    client: &Client,
    tables: &mut PreparedTables,
    statements: RecordStatements<'_>,
    batch: &ApplyBatch,
    row: &PositionRow,
    differing: &Mutex<Vec<Differing>>,
) -> Result<(), StoreError> {
    let reached = batch.reached.max(batch.position);
    let values = [row.batch, row.index as i64, reached as i64, batch.term as i64].map(i64::to_be_bytes);
    let leads = !batch.records.is_empty();
    let mut run = Run { client, tables, pipeline: Pipeline::default(), differing, leads };
    // R16: flushing this commit's record flushes those of all commits before it.
    run.simple(if batch.sync { "BEGIN READ WRITE; SET LOCAL synchronous_commit = on" } else { "BEGIN READ WRITE" })
        .await?;
    let skipped = deliberate(Bug::SkippedBatch) && batch.records.is_empty() && batch.position.is_multiple_of(16);
    for operation in batch.operations.iter().filter(|_| !skipped) {
        run.operation(operation).await?;
    }
    // Invariant 3: the position, or the records, go in with the changes.
    let insert_record = statements.record;
    for (term, serial) in &batch.records {
        let parameters = [(*term as i64).to_be_bytes(), (*serial as i64).to_be_bytes()];
        let insert = async move {
            let [term, serial] = &parameters;
            let parameters = [RawParameter(Some(term)), RawParameter(Some(serial)), RawParameter(Some(&[]))];
            // Prepared before: a statement that must be prepared first would come behind the
            // COMMIT.
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
        RawParameter(batch.transactions.as_deref()),
    ];
    let insert = client.execute_raw(statements.position, parameters);
    run.pipeline.send(insert.boxed()).await?;
    run.simple("COMMIT").await?;
    run.pipeline.drain().await
}

/// Makes a table in the transaction that `client` has open, and prepares all that applying to it
/// can take: whatever PostgreSQL has against the definition it says here, and not behind a decided
/// entry (invariant 5).
pub(super) async fn prepare_all(client: &Client, schema: &Arc<TableSchema>) -> Result<(), StoreError> {
    // Prepared, so that it is one statement and no more.
    client.execute(&*schema.create_sql, &[]).await?;
    if let Some(triggers) = triggers(schema) {
        client.batch_execute(&triggers).await?;
    }
    let differing = Mutex::default();
    let mut run = Run {
        client,
        tables: &mut PreparedTables::default(),
        pipeline: Pipeline::default(),
        differing: &differing,
        leads: false,
    };
    let arrays = run.tables.has_arrays(client, &mut run.pipeline, schema).await?;
    let sources = if arrays { &[Source::One, Source::Many][..] } else { &[Source::One] };
    let others = Columns::new((0..schema.columns.len()).filter(|at| !schema.key.contains(at)));
    for source in sources {
        run.prepared(schema, Kind::Insert(*source, false)).await?;
        // Rows of such tables are not changed where they are, but removed and inserted.
        if schema.key.is_empty() || makes_values(schema) {
            continue;
        }
        run.prepared(schema, Kind::Insert(*source, true)).await?;
        if others.count() > 0 && !has_texts(schema) {
            run.prepared(schema, Kind::Update(*source, others.clone())).await?;
        }
    }
    if evenkeel_host::simulation().is_none() {
        run.prepared(schema, Kind::CopyIn).await?;
    }
    if schema.key.is_empty() {
        run.prepared(schema, Kind::Remove).await?;
    } else {
        run.prepared(schema, Kind::Delete(Source::One)).await?;
        run.prepared(schema, Kind::Delete(Source::Many)).await?;
    }
    let whole = Shape { start: schema.key.len(), end: schema.key.len() };
    run.prepared(schema, Kind::DeleteInterval(whole)).await?;
    run.prepared(schema, Kind::Checksum(whole)).await?;
    Ok(())
}

/// DDL for a table's triggers; a simulation's server has none.
fn triggers(schema: &TableSchema) -> Option<String> {
    let triggers = capture_triggers(schema);
    (evenkeel_host::simulation().is_none() && !triggers.is_empty()).then_some(triggers)
}

/// A batch being applied.
struct Run<'a> {
    client: &'a Client,
    tables: &'a mut PreparedTables,
    pipeline: Pipeline<'a>,
    /// Rows of copies that are not stored as they came.
    differing: &'a Mutex<Vec<Differing>>,
    /// Whether this replica leads and applies an entry of its own.
    leads: bool,
}

impl<'a> Run<'a> {
    async fn operation(&mut self, operation: &'a StoreOperation) -> Result<(), StoreError> {
        match operation {
            StoreOperation::CreateTable(schema) => {
                self.tables.forget(&schema.name);
                self.simple(&schema.create_sql).await?;
                match triggers(schema) {
                    Some(triggers) => self.run_text(triggers).await,
                    None => Ok(()),
                }
            }
            StoreOperation::DropTable(schema) => {
                self.tables.forget(&schema.name);
                let mut drop = format!("DROP TABLE IF EXISTS {}", table_name(schema));
                // A simulation's server has no functions.
                if evenkeel_host::simulation().is_none() {
                    drop = format!("{drop}; {}", drop_capture(schema));
                }
                self.run_text(drop).await
            }
            StoreOperation::ChangeSchema(delta) => {
                self.pipeline.drain().await?;
                self.tables.forget_all();
                schema_change::execute(self.client, delta, !self.leads).await
            }
            StoreOperation::Rows { table, upserts, deletes } => self.rows(table, upserts, deletes).await,
            StoreOperation::Truncate(table) => {
                let statement = self.prepared(table, Kind::Truncate).await?;
                let client = self.client;
                let none = std::iter::empty::<RawParameter<'_>>();
                self.pipeline.send(async move { client.execute_raw(&statement, none).await }.boxed()).await
            }
            StoreOperation::Ordered { table, changes } => self.ordered(table, changes).await,
            StoreOperation::Sequence { sequence, image } => {
                self.set_sequence(sequence, Packed::of_rows(std::slice::from_ref(image), SEQUENCE_VALUES)?).await
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

    async fn set_sequence(&mut self, sequence: &Arc<TableSchema>, image: Packed<'a>) -> Result<(), StoreError> {
        let statement = self.prepared(sequence, Kind::SetSequence).await?;
        let client = self.client;
        self.pipeline.send(async move { client.execute_raw(&statement, image.single()).await }.boxed()).await
    }

    async fn run_text(&mut self, sql: String) -> Result<(), StoreError> {
        let client = self.client;
        self.pipeline.send(async move { client.batch_execute(&sql).await.map(|()| 0) }.boxed()).await
    }

    async fn rows(
        &mut self,
        table: &'a Arc<TableSchema>,
        upserts: &'a [Bytes],
        deletes: &'a [Key],
    ) -> Result<(), StoreError> {
        // First: of keys that are equal and not the same, one may go and another come.
        self.delete(table, deletes).await?;
        if upserts.is_empty() {
            return Ok(());
        }
        let rows = Packed::of_rows(upserts, table.columns.len())?;
        if !makes_values(table) {
            return self.insert(table, rows, true).await;
        }
        // PostgreSQL does not let a row that is there take a value that it makes itself.
        let (codec, mut keys) = (table.codec(), Vec::with_capacity(upserts.len()));
        for row in upserts {
            let key = table.key_of_row(&codec, row);
            keys.push(key.map_err(|error| StoreError::Diverged(format!("table {}: {error}", table.name)))?);
        }
        self.delete(table, &keys).await?;
        self.insert(table, rows, false).await
    }

    /// Changes of rows without a key.
    async fn ordered(&mut self, table: &'a Arc<TableSchema>, changes: &'a [OrderedRow]) -> Result<(), StoreError> {
        let width = table.columns.len();
        let alike = |left: &OrderedRow, right: &OrderedRow| {
            matches!((left, right), (OrderedRow::Inserted(_), OrderedRow::Inserted(_)))
        };
        for run in changes.chunk_by(alike) {
            match run {
                [OrderedRow::Removed(row)] => {
                    let statement = self.prepared(table, Kind::Remove).await?;
                    let row = Packed::of_rows(std::slice::from_ref(row), width)?;
                    let client = self.client;
                    let run = async move { client.execute_raw(&statement, row.single()).await };
                    self.pipeline.send(run.boxed()).await?;
                }
                inserted => {
                    let row = |change: &'a OrderedRow| match change {
                        OrderedRow::Inserted(row) | OrderedRow::Removed(row) => &row[..],
                    };
                    let rows = Packed::of_slices(inserted.iter().map(row), width)?;
                    self.insert_new(table, rows).await?;
                }
            }
        }
        Ok(())
    }

    /// Rows that are not there.
    async fn insert_new(&mut self, table: &'a Arc<TableSchema>, rows: Packed<'a>) -> Result<(), StoreError> {
        // A simulation's server knows no COPY; the rows are the same by either way.
        if rows.rows() >= MIN_COPIED_ROWS && evenkeel_host::simulation().is_none() && !has_texts(table) {
            return self.copy_in(table, &rows).await;
        }
        self.insert(table, rows, false).await
    }

    async fn replace(
        &mut self,
        table: &'a Arc<TableSchema>,
        interval: &KeyInterval,
        rows: &'a RowBatch,
    ) -> Result<(), StoreError> {
        if table.kind == RelationKind::Sequence {
            for image in Packed::of_batch(rows, SEQUENCE_VALUES)?.into_pieces(1) {
                self.set_sequence(table, image).await?;
            }
            return Ok(());
        }
        self.delete_interval(table, interval).await?;
        let rows = Packed::of_batch(rows, table.columns.len())?;
        self.insert_new(table, rows).await
    }

    /// Copies rows that are not there. Later statements wait in the driver until all of the rows
    /// are sent.
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

    /// Compares the stored rows of the interval with the copy's checksum.
    async fn compare(
        &mut self,
        table: &'a Arc<TableSchema>,
        interval: &'a KeyInterval,
        copied: CopiedRows,
    ) -> Result<(), StoreError> {
        if interval.is_empty() || table.kind == RelationKind::Sequence {
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
                // A checksum that cannot be read differs.
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

    async fn delete(&mut self, table: &'a Arc<TableSchema>, keys: &[Key]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let types = table.key_types();
        let arrays = self.tables.have_arrays(self.client, &mut self.pipeline, table.key_columns()).await?;
        let client = self.client;
        let single = keys.len() <= MAX_SINGLE_ROWS || !arrays;
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
        if interval.is_empty() || table.kind == RelationKind::Sequence {
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

    /// A statement, prepared now if it is not yet. Preparing awaits an answer, so all answers
    /// before it are taken in first.
    async fn prepared(&mut self, schema: &Arc<TableSchema>, kind: Kind) -> Result<Statement, StoreError> {
        if let Some(statement) = self.tables.statement(schema, &kind) {
            return Ok(statement);
        }
        self.pipeline.drain().await?;
        let (sql, types) = kind.describe(schema, self.tables.array_types())?;
        let statement = self.client.prepare_typed(&sql, &types).await?;
        self.tables.keep(schema, kind, statement.clone());
        Ok(statement)
    }
}

/// Runs of rows that go into one statement each, and how: neighbours that fit into arrays together,
/// every other row by itself.
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
