//! A statement that writes to several shards, from its form to its command tag.
//!
//! As long as the user's transaction has done nothing before it, and nothing of the answer has been
//! sent, it begins again when a range has moved. Later the transaction ends with 40001.

use super::computed_rows::ComputedRows;
use super::engine_run::as_of_scan;
use super::opening::Opening;
use super::planner::Plan;
use super::prepared::{Progress, Values};
use super::returned::Returned;
use super::run::{Run, RunEnd};
use super::several::Several;
use super::trouble::Trouble;
use crate::front::server::FrontPostgres;
use crate::front::settings::Settings;
use crate::grammar::parser::Parser;
use crate::grammar::writes::{InsertForm, WriteForm};
use crate::wire::outgoing::Outgoing;
use evenkeel_client::{Client, ShardedTransaction, TransactionOptions};
use evenkeel_postgres_session::CancelKey;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::TableUse;
use evenkeel_protocol::schema::RelationKind;
use evenkeel_protocol::{KeyInterval, SqlError, TableSchema};
use std::sync::Arc;

/// How often a statement begins again because ranges have moved.
const MAX_REPEATS: u32 = 8;

/// See the module.
pub struct WriteRun<'a> {
    /// The store.
    pub client: &'a Client,
    /// The gateway's own PostgreSQL.
    pub front: &'a Arc<FrontPostgres>,
    /// The parser.
    pub parser: &'a Parser,
    /// The user's transaction.
    pub transaction: &'a mut ShardedTransaction,
    /// Its modes.
    pub options: TransactionOptions,
    /// The session's settings.
    pub settings: &'a Settings,
    /// A setting with which the transaction began at a shard, and that scans do not understand.
    pub unreadable: Option<&'static str>,
    /// The session of the gateway's own PostgreSQL that executes a statement now.
    pub executing: &'a mut Option<CancelKey>,
    /// The rows of a COPY so far.
    pub copying: &'a mut Option<ComputedRows>,
}

impl WriteRun<'_> {
    /// The statement's form, and the table that it writes to.
    ///
    /// # Errors
    /// 0A000: it cannot be executed at several shards.
    pub async fn form(&self, plan: &Plan) -> Result<(WriteForm, Arc<TableSchema>), SqlError> {
        let form = self.parser.write_form(&plan.statement.text).await?;
        let target = target(plan, &form)?;
        Ok((form, target))
    }

    /// Executes the statement. The rows of a COPY are only collected.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn run(
        mut self,
        run: Run<'_>,
        (form, target): (WriteForm, Arc<TableSchema>),
        tables: &[TableUse],
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        if let (WriteForm::Copy(text), Some(data)) = (&form, &run.copy_data) {
            let rows = match self.copying.take() {
                Some(rows) => rows,
                None => ComputedRows::begin(self.front, self.settings, &target).await?,
            };
            let rows = self.copying.insert(rows);
            let count = if data.is_empty() { 0 } else { rows.copy(text, data).await? };
            return Ok(RunEnd::Complete(format!("COPY {count}")));
        }
        let again = Again::new(self.transaction, out);
        let mut repeats = 0;
        loop {
            let mut returned = Returned::new(run.max_rows > 0);
            let result = self.once(&run, (&form, &target), tables, &mut returned, out).await;
            *self.executing = None;
            match result {
                Err(trouble) if repeats < MAX_REPEATS && again.is_possible(&trouble, out) => {
                    repeats += 1;
                    again.prepare(&mut self, out).await;
                }
                Err(trouble) => return Err(trouble),
                Ok(tag) if run.max_rows > 0 => return Ok(left(returned, tag, run.max_rows, progress, out)),
                Ok(tag) => return Ok(RunEnd::Complete(tag)),
            }
        }
    }

    /// Sends the rows of a COPY to their shards.
    ///
    /// # Errors
    /// The shards' own.
    pub async fn end_copy(mut self, mut rows: ComputedRows, plan: &Plan, out: &mut Outgoing) -> Result<(), Trouble> {
        let target = target(plan, &WriteForm::Copy(String::new()))?;
        let again = Again::new(self.transaction, out);
        let (mut repeats, mut returned) = (0, Returned::default());
        loop {
            let result =
                self.several(plan, &Values::default(), &mut returned, out).insert(&mut rows, &target, None).await;
            match result {
                Err(trouble) if repeats < MAX_REPEATS && again.is_possible(&trouble, out) => {
                    repeats += 1;
                    rows.stop_reading().await?;
                    again.prepare(&mut self, out).await;
                }
                Err(trouble) => return Err(trouble),
                Ok(_) => {
                    rows.end().await;
                    return Ok(());
                }
            }
        }
    }

    async fn once(
        &mut self,
        run: &Run<'_>,
        (form, target): (&WriteForm, &TableSchema),
        tables: &[TableUse],
        returned: &mut Returned,
        out: &mut Outgoing,
    ) -> Result<String, Trouble> {
        let tag = match form {
            WriteForm::Insert(insert) => {
                let mut rows = self.compute(run, insert, target).await?;
                let mut several = self.several(run.plan, run.values, returned, out);
                let count = several.insert(&mut rows, target, Some(insert)).await?;
                rows.end().await;
                format!("INSERT 0 {count}")
            }
            WriteForm::Change(change) => {
                let count = self.several(run.plan, run.values, returned, out).change(change, tables).await?;
                format!("{} {count}", change.tag)
            }
            WriteForm::Truncate | WriteForm::Copy(_) => {
                self.several(run.plan, run.values, returned, out).empty(tables).await?;
                "TRUNCATE TABLE".into()
            }
        };
        returned.give(out).await?;
        Ok(tag)
    }

    /// Computes the rows of an INSERT.
    async fn compute(
        &mut self,
        run: &Run<'_>,
        insert: &InsertForm,
        target: &TableSchema,
    ) -> Result<ComputedRows, Trouble> {
        let changes = self.front.engine_changes();
        let analysis = &run.plan.shape.analysis;
        let itself = insert.reads && (insert.reads_itself || analysis.uses_views);
        let read = run.plan.shape.touched.iter().filter(|touched| !touched.writes || itself);
        let read: Vec<TableUse> = read
            .map(|touched| TableUse { table: touched.table.id, keys: vec![KeyInterval::ALL], writes: false })
            .collect();
        let reads = match read.is_empty() {
            true => None,
            false => {
                let (front, unreadable) = (self.front, self.unreadable);
                Some(self.opening(run.plan).reach(&read, front, unreadable).await?)
            }
        };
        let mut rows = ComputedRows::begin(self.front, self.settings, target).await?;
        if analysis.uses_views && !rows.is_table(&insert.table, target).await? {
            return Err(refused("an INSERT into a view").into());
        }
        *self.executing = Some(rows.cancel_key());
        let types = &analysis.parameter_types;
        let computed = rows.compute(&insert.rows, (types, run.values), reads.as_ref().map(|reads| (reads, changes)));
        if let Err(error) = computed.await {
            return Err(as_of_scan(error.into(), reads.and_then(|reads| reads.take_failure())));
        }
        *self.executing = None;
        // Each shard would notice it within the rows that it gets together.
        if insert.updates && rows.repeat_keys(target).await? {
            let message = "ON CONFLICT DO UPDATE command cannot affect row a second time";
            let hint =
                "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.";
            return Err(SqlError::new("21000", message).hint(hint).into());
        }
        Ok(rows)
    }

    fn opening(&mut self, plan: &Plan) -> Opening<'_> {
        Opening {
            client: self.client,
            transaction: self.transaction,
            options: self.options,
            settings: self.settings,
            schema_version: plan.shape.schema_version,
        }
    }

    fn several<'b>(
        &'b mut self,
        plan: &'b Plan,
        values: &'b Values,
        returned: &'b mut Returned,
        out: &'b mut Outgoing,
    ) -> Several<'b> {
        Several {
            client: self.client,
            transaction: self.transaction,
            options: self.options,
            settings: self.settings,
            plan,
            values,
            returned,
            out,
        }
    }
}

/// Whether a statement can begin again.
struct Again {
    fresh: bool,
    sendings: u64,
    mark: usize,
}

impl Again {
    fn new(transaction: &ShardedTransaction, out: &Outgoing) -> Again {
        Again { fresh: !transaction.is_open(), sendings: out.sendings(), mark: out.buffer.len() }
    }

    fn is_possible(&self, trouble: &Trouble, out: &Outgoing) -> bool {
        let code = match trouble {
            Trouble::Sql(error) | Trouble::Ended(error) => error.code.as_ref(),
            Trouble::Gone => return false,
        };
        self.fresh && self.sendings == out.sendings() && code == codes::SERIALIZATION_FAILURE
    }

    async fn prepare(&self, run: &mut WriteRun<'_>, out: &mut Outgoing) {
        run.transaction.abandon();
        out.buffer.truncate(self.mark);
        // If the placement driver cannot be reached, the next attempt says so.
        _ = run.client.refresh().await;
    }
}

/// Gives the first of the rows that a portal returns in steps, and keeps the others.
fn left(returned: Returned, tag: String, max_rows: u32, progress: &mut Progress, out: &mut Outgoing) -> RunEnd {
    let mut rows = returned.kept();
    let (given, end) = super::front_run::give(&mut rows, &tag, max_rows);
    given.iter().for_each(|row| out.buffer.extend_from_slice(row));
    *progress = Progress::Left(rows, tag);
    end
}

/// The table that a statement writes to; of several that are emptied, the first.
fn target(plan: &Plan, form: &WriteForm) -> Result<Arc<TableSchema>, SqlError> {
    let shape = &plan.shape;
    let mut written = shape.touched.iter().filter(|touched| touched.writes).map(|touched| &touched.table);
    let Some(first) = written.next() else { return Err(refused("a statement that writes to no table")) };
    let others = written.next().is_some();
    if shape.touched.iter().any(|touched| touched.table.kind == RelationKind::Sequence) {
        return Err(refused("a sequence"));
    }
    if let Some(what) = plan.rows().and_then(|rows| rows.not_for_parents) {
        return Err(refused(what));
    }
    let code = shape.analysis.calls_user_code;
    match form {
        WriteForm::Truncate if shape.touched.iter().any(|touched| touched.table.pinned) => {
            Err(refused("a TRUNCATE of tables that do not split"))
        }
        WriteForm::Truncate => Ok(first.clone()),
        _ if others => Err(refused("a statement that writes to several tables")),
        WriteForm::Change(_) if shape.touched.len() > 1 => Err(refused("a change that reads other tables")),
        WriteForm::Change(_) if shape.analysis.uses_views => Err(refused("a change by way of a view")),
        WriteForm::Change(_) if code => Err(refused("a function of users")),
        WriteForm::Insert(insert) if code && !insert.behind.is_empty() => Err(refused("a function of users")),
        _ => Ok(first.clone()),
    }
}

fn refused(what: &str) -> SqlError {
    let message = format!("{what}, where several shards are written to, is not supported");
    SqlError::unsupported(message, "Use one statement for each table, and for each shard's keys.")
}
