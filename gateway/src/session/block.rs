//! The transaction of a session, and where it is open: at shards, in the gateway's own PostgreSQL
//! (with or without the shards' rows), or in several of these.
//!
//! It begins at a place with the first statement there. Savepoints are made at every place where it
//! is open, and made later where it begins later. At the end the shards decide; the gateway's own
//! PostgreSQL has only read.

use super::computed_rows::ComputedRows;
use super::context::SessionContext;
use super::declared::declared;
use super::engine_run::{EngineTransaction, as_of_scan, engine_text};
use super::front_run::{begin_at_front, execute_at_front, give, leaves_something};
use super::opening::{Opening, unreadable};
use super::planner::{Place, Plan};
use super::prepared::Progress;
use super::relay::relay;
use super::run::{Run, RunEnd};
use super::trouble::Trouble;
use super::write_run::WriteRun;
use super::write_texts::built_in;
use crate::front::server::FrontPostgres;
use crate::front::sessions::{FrontSession, sql_error};
use crate::front::settings::{Settings, pairs};
use crate::grammar::parser::Parser;
use crate::remote::reads::{ReadFailure, StatementReads};
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::{Client, ClientError, PassThroughReplies, ShardedTransaction, TransactionOptions};
use evenkeel_postgres_session::{CancelKey, tags};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{
    PassThroughBegin, PassThroughItem, PassThroughStatement, PassThroughStep, TableUse,
};
use evenkeel_protocol::{KeyInterval, ShardId, SqlError};
use std::collections::HashMap;
use std::sync::Arc;

/// The most cursors of a transaction whose place is known.
const MAX_CURSORS: usize = 1_000;
/// How often a statement that reads several shards is executed again because a shard failed.
const MAX_REPEATS: u32 = 8;

/// Where a statement is executed.
enum Where {
    Front,
    /// At the shard that owns what it touches.
    Owner,
    /// At this shard, where something of it is.
    Shard(ShardId),
    /// At each of the shards that own what it writes.
    Several,
    /// In the engine database, with the reads of a suspended statement if there is one.
    Engine(Option<Arc<StatementReads>>),
}

/// See the module.
pub struct Block {
    client: Client,
    front: Arc<FrontPostgres>,
    parser: Parser,
    options: TransactionOptions,
    /// Whether the user has begun it.
    pub explicit: bool,
    /// Whether a statement has failed.
    pub failed: bool,
    at_shards: ShardedTransaction,
    at_front: Option<FrontSession>,
    at_engine: Option<EngineTransaction>,
    /// Whether a cursor or a suspended portal may be open there.
    engine_keeps: bool,
    /// Why the transaction has ended at its shards, if it has.
    ended: Option<SqlError>,
    savepoints: Vec<String>,
    portals: u64,
    /// Where cursors were declared, as far as that was at shards: at one, or with these reads.
    cursors: HashMap<String, Result<ShardId, Arc<StatementReads>>>,
    /// A setting with which it began at a shard, and that scans do not understand.
    unreadable: Option<&'static str>,
    /// The rows of a COPY to several shards, so far.
    copying: Option<ComputedRows>,
    /// The session of the gateway's own PostgreSQL that executes a statement now.
    executing: Option<CancelKey>,
}

impl Block {
    /// A transaction that has begun nowhere yet.
    pub fn new(context: &SessionContext, options: TransactionOptions, explicit: bool) -> Block {
        Block {
            at_shards: context.client.sharded(),
            client: context.client.clone(),
            front: context.front.clone(),
            parser: context.planner.parser().clone(),
            options,
            explicit,
            failed: false,
            at_front: None,
            at_engine: None,
            engine_keeps: false,
            ended: None,
            savepoints: Vec::new(),
            portals: 0,
            cursors: HashMap::new(),
            unreadable: None,
            copying: None,
            executing: None,
        }
    }

    /// Whether no statement has begun it anywhere.
    pub fn is_untouched(&self) -> bool {
        !self.at_shards.is_open() && self.at_front.is_none() && self.at_engine.is_none() && !self.failed
    }

    /// Whether it is open at a shard.
    pub fn is_at_shard(&self) -> bool {
        self.at_shards.is_open()
    }

    /// Forgets that its first statement has failed at a shard, where nothing of it is left.
    pub fn restart(&mut self) {
        self.failed = false;
        self.ended = None;
    }

    /// Changes its modes, before its first statement.
    pub fn set_options(&mut self, options: TransactionOptions) {
        self.options = options;
    }

    /// Its modes.
    pub fn options(&self) -> TransactionOptions {
        self.options
    }

    /// Executes a statement and writes its rows. `progress` is that of its portal.
    ///
    /// # Errors
    /// After any, the transaction has failed.
    pub async fn run(
        &mut self,
        run: Run<'_>,
        settings: &Settings,
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let plan = run.plan;
        let tables = match plan.shape.place {
            Place::Shard => declared(
                &plan.shape.touched,
                plan.narrow.as_ref(),
                &run.values.typed(&plan.shape.analysis.parameter_types),
            ),
            Place::Front | Place::Follows => Vec::new(),
        };
        let place = self.place(&run, progress, &tables);
        let result = match place {
            Where::Front => self.run_at_front(run, settings, progress, out).await,
            Where::Owner => self.run_at_shard(run, (tables, None), settings, progress, out).await,
            Where::Shard(shard) => self.run_at_shard(run, (tables, Some(shard)), settings, progress, out).await,
            Where::Several => self.run_at_several(run, tables, settings, progress, out).await,
            Where::Engine(Some(reads)) => self.go_on_in_engine(run, reads, settings, progress, out).await,
            Where::Engine(None) => self.run_in_engine(run, &tables, settings, progress, out).await,
        };
        self.note(&result);
        result
    }

    fn place(&self, run: &Run<'_>, progress: &Progress, tables: &[TableUse]) -> Where {
        match progress {
            Progress::AtShard(shard, _) => return Where::Shard(*shard),
            Progress::InEngine(_, reads) => return Where::Engine(Some(reads.clone())),
            Progress::Left(..) => return Where::Front,
            Progress::New | Progress::Done => {}
        }
        match run.plan.shape.place {
            Place::Front => Where::Front,
            Place::Follows => match self.cursor(run.plan) {
                Some(Ok(shard)) => Where::Shard(*shard),
                Some(Err(reads)) => Where::Engine(Some(reads.clone())),
                None => self.at_shards.last_shard().map_or(Where::Front, Where::Shard),
            },
            Place::Shard => {
                let writes = run.copy_data.is_some() || tables.iter().any(|used| used.writes);
                match self.copying.is_some() || self.client.is_spread(tables) {
                    true if writes => Where::Several,
                    true => Where::Engine(None),
                    false => Where::Owner,
                }
            }
        }
    }

    /// Where the cursor is that a statement names.
    fn cursor(&self, plan: &Plan) -> Option<&Result<ShardId, Arc<StatementReads>>> {
        self.cursors.get(plan.rows()?.cursor.as_ref()?)
    }

    /// Notes where a cursor is, if the statement declares one.
    fn note_cursor(&mut self, plan: &Plan, at: Result<ShardId, Arc<StatementReads>>) {
        if let Some(rows) = plan.rows()
            && let Some(name) = &rows.cursor
            && !rows.follows
            && self.cursors.len() < MAX_CURSORS
        {
            self.cursors.insert(name.clone(), at);
        }
    }

    async fn run_at_shard(
        &mut self,
        run: Run<'_>,
        (tables, shard): (Vec<TableUse>, Option<ShardId>),
        settings: &Settings,
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let plan = run.plan;
        let step = match progress {
            Progress::AtShard(_, portal) => PassThroughStep::Fetch { portal: *portal, max_rows: run.max_rows },
            _ => {
                self.portals += 1;
                let sets_sequences = plan.rows().is_some_and(|rows| rows.sets_sequences);
                PassThroughStep::Execute(PassThroughStatement {
                    sql: plan.statement.text.clone(),
                    parameter_types: plan.shape.analysis.parameter_types.iter().map(|oid| built_in(*oid)).collect(),
                    parameter_formats: run.values.formats.clone(),
                    parameters: run.values.parameters.clone(),
                    result_formats: run.values.result_formats.clone(),
                    max_rows: run.max_rows,
                    portal: self.portals,
                    copy_data: run.copy_data,
                    describe: run.describe,
                    sets_sequences,
                })
            }
        };
        let replies = self.step((tables, shard), step, settings, plan.shape.schema_version).await?;
        if let Some(shard) = self.at_shards.last_shard() {
            if let (Progress::New, true) = (&progress, run.max_rows > 0) {
                *progress = Progress::AtShard(shard, self.portals);
            }
            self.note_cursor(plan, Ok(shard));
        }
        relay(replies, out).await
    }

    /// Sends a step to a shard, where the transaction begins with it if it is the first.
    async fn step(
        &mut self,
        (tables, shard): (Vec<TableUse>, Option<ShardId>),
        step: PassThroughStep,
        settings: &Settings,
        schema_version: u64,
    ) -> Result<PassThroughReplies, Trouble> {
        self.unreadable = self.unreadable.or_else(|| unreadable(settings));
        if let Some(shard) = shard {
            return Ok(self.at_shards.step_at(shard, tables, step).await?);
        }
        let options = self.options;
        let begin = || PassThroughBegin { options, settings: pairs(settings), schema_version };
        Ok(self.at_shards.step(tables, step, begin).await?)
    }

    /// Executes a statement that reads several shards.
    async fn run_in_engine(
        &mut self,
        run: Run<'_>,
        tables: &[TableUse],
        settings: &Settings,
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let text = engine_text(run.plan)?;
        let mut tables = tables.to_vec();
        if run.plan.shape.analysis.calls_user_code {
            // What the code reads does not follow from the statement's conditions.
            tables.iter_mut().for_each(|used| used.keys = vec![KeyInterval::ALL]);
        }
        let (sendings, mark) = (out.sendings(), out.buffer.len());
        let mut repeats = 0;
        loop {
            let changes = self.front.engine_changes();
            let reads = self.open_reads(&tables, settings, run.plan.shape.schema_version).await?;
            let portal = (run.max_rows > 0).then(|| {
                self.portals += 1;
                self.portals
            });
            let mut engine = self.engine(settings).await?;
            self.executing = Some(engine.cancel_key());
            let result = engine.execute(&run, (text, settings), portal, (&reads, changes), out).await;
            self.executing = None;
            let trouble = match result {
                Ok(end) => {
                    self.at_engine = Some(engine);
                    if let Some(portal) = portal {
                        *progress = Progress::InEngine(portal, reads.clone());
                    }
                    self.engine_keeps |= portal.is_some() || run.plan.rows().is_some_and(|rows| rows.cursor.is_some());
                    self.note_cursor(run.plan, Err(reads));
                    return Ok(end);
                }
                Err(trouble) => trouble,
            };
            let failure = reads.take_failure();
            let lost = matches!(&failure, Some(ReadFailure { error: ClientError::Rerun(_), .. }))
                || matches!(&trouble, Trouble::Sql(error) if error.code == codes::SERIALIZATION_FAILURE);
            let unseen = out.sendings() == sendings && !self.engine_keeps && reads.is_repeatable();
            if lost && unseen && repeats < MAX_REPEATS {
                // Its snapshots are gone, and nobody has seen anything of them.
                repeats += 1;
                engine.end().await;
                out.buffer.truncate(mark);
                // If the placement driver cannot be reached, the next attempt says so.
                _ = self.client.refresh().await;
                continue;
            }
            if !engine.is_broken() {
                self.at_engine = Some(engine);
            }
            return Err(as_of_scan(trouble, failure));
        }
    }

    /// Goes on with a statement that has begun in the engine database: a portal, or a cursor.
    async fn go_on_in_engine(
        &mut self,
        run: Run<'_>,
        reads: Arc<StatementReads>,
        settings: &Settings,
        progress: &Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let Some(mut engine) = self.at_engine.take() else {
            return Err(SqlError::new("34000", "the cursor has ended with its session").into());
        };
        self.executing = Some(engine.cancel_key());
        let result = match progress {
            Progress::InEngine(portal, _) => engine.fetch(*portal, run.max_rows, &reads, out).await,
            _ => {
                let now = (&reads, self.front.engine_changes());
                engine.execute(&run, (&run.plan.statement.text, settings), None, now, out).await
            }
        };
        self.executing = None;
        if !engine.is_broken() {
            self.at_engine = Some(engine);
        }
        result.map_err(|trouble| as_of_scan(trouble, reads.take_failure()))
    }

    /// Opens what a statement reads, and makes the tables through which it is read.
    async fn open_reads(
        &mut self,
        tables: &[TableUse],
        settings: &Settings,
        schema_version: u64,
    ) -> Result<Arc<StatementReads>, Trouble> {
        let opening = Opening {
            client: &self.client,
            transaction: &mut self.at_shards,
            options: self.options,
            settings,
            schema_version,
        };
        opening.reach(tables, &self.front, self.unreadable).await
    }

    /// What a statement that writes to several shards is executed with.
    fn writing<'a>(&'a mut self, settings: &'a Settings) -> WriteRun<'a> {
        self.unreadable = self.unreadable.or_else(|| unreadable(settings));
        WriteRun {
            client: &self.client,
            front: &self.front,
            parser: &self.parser,
            transaction: &mut self.at_shards,
            options: self.options,
            settings,
            unreadable: self.unreadable,
            executing: &mut self.executing,
            copying: &mut self.copying,
        }
    }

    /// Ends a COPY, whose rows may be here still.
    ///
    /// # Errors
    /// As a statement's.
    pub async fn end_copy(&mut self, plan: &Plan, settings: &Settings, out: &mut Outgoing) -> Result<(), Trouble> {
        let Some(rows) = self.copying.take() else { return Ok(()) };
        let result = self.writing(settings).end_copy(rows, plan, out).await;
        self.note(&result);
        result
    }

    /// Executes a statement that writes to several shards.
    async fn run_at_several(
        &mut self,
        run: Run<'_>,
        tables: Vec<TableUse>,
        settings: &Settings,
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let writing = self.writing(settings);
        match writing.form(run.plan).await {
            Ok(form) => writing.run(run, form, &tables, progress, out).await,
            Err(refusal) => {
                // It must not be based on routes that are out of date.
                _ = self.client.refresh().await;
                if self.client.is_spread(&tables) {
                    return Err(refusal.into());
                }
                self.run_at_shard(run, (tables, None), settings, progress, out).await
            }
        }
    }

    /// Notes how a statement ended.
    fn note<T>(&mut self, result: &Result<T, Trouble>) {
        if let Err(trouble) = result {
            self.failed = true;
            self.copying = None;
            if let Trouble::Ended(error) = trouble {
                self.at_shards.abandon();
                self.ended = Some(error.clone());
            }
        }
    }

    async fn engine(&mut self, settings: &Settings) -> Result<EngineTransaction, SqlError> {
        match self.at_engine.take() {
            Some(engine) => Ok(engine),
            None => EngineTransaction::begin(&self.front, settings, self.options, &self.savepoints).await,
        }
    }

    async fn run_at_front(
        &mut self,
        run: Run<'_>,
        settings: &Settings,
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        if let Progress::Left(rows, tag) = progress {
            let (given, end) = give(rows, tag, run.max_rows);
            for row in given {
                out.buffer.extend_from_slice(&row);
                out.send_if_full().await?;
            }
            return Ok(end);
        }
        let mut session = match self.at_front.take() {
            Some(mut session) => {
                session.adopt(settings).await?;
                session
            }
            None => {
                let mut session = self.front.session(settings).await?;
                if self.explicit {
                    begin_at_front(&mut session, self.options, &self.savepoints).await?;
                }
                session
            }
        };
        session.spent |= leaves_something(run.plan);
        self.executing = session.session.cancel_key();
        let result = execute_at_front(&mut session, &run, progress, out).await;
        self.executing = None;
        if !session.session.is_broken() {
            if self.explicit {
                self.at_front = Some(session);
            } else {
                self.front.sessions().put_back(session);
            }
        }
        result
    }

    /// Makes a savepoint.
    ///
    /// # Errors
    /// As a statement's.
    pub async fn savepoint(&mut self, name: &str) -> Result<(), Trouble> {
        self.at_home(&format!("SAVEPOINT {}", quote(name))).await?;
        self.at_shards.savepoint(name).await?;
        self.savepoints.push(name.to_string());
        Ok(())
    }

    /// Releases a savepoint.
    ///
    /// # Errors
    /// 3B001: there is none.
    pub async fn release(&mut self, name: &str) -> Result<(), Trouble> {
        let at = self.position(name)?;
        self.at_home(&format!("RELEASE SAVEPOINT {}", quote(name))).await?;
        self.at_shards.release(name).await?;
        self.savepoints.truncate(at);
        Ok(())
    }

    /// Goes back to a savepoint.
    ///
    /// # Errors
    /// 3B001: there is none. The error with which the transaction ended at its shards, if it has.
    pub async fn roll_back_to(&mut self, name: &str) -> Result<(), Trouble> {
        let at = self.position(name)?;
        if let Some(error) = &self.ended {
            return Err(Trouble::Sql(error.clone()));
        }
        self.at_home(&format!("ROLLBACK TO SAVEPOINT {}", quote(name))).await?;
        self.at_shards.roll_back_to(name).await?;
        self.copying = None;
        self.savepoints.truncate(at + 1);
        self.failed = false;
        Ok(())
    }

    fn position(&mut self, name: &str) -> Result<usize, SqlError> {
        self.savepoints.iter().rposition(|other| other == name).ok_or_else(|| {
            self.failed = true;
            SqlError::new("3B001", format!("savepoint \"{name}\" does not exist"))
        })
    }

    /// Executes a command on savepoints in the gateway's own PostgreSQL, wherever the transaction
    /// is open there.
    async fn at_home(&mut self, sql: &str) -> Result<(), SqlError> {
        if let Some(session) = &mut self.at_front {
            session.session.simple(sql).await.map_err(sql_error)?;
        }
        let Some(mut engine) = self.at_engine.take() else { return Ok(()) };
        let done = engine.command(sql).await;
        if engine.is_broken() {
            // It has only read. The next statement there begins it again, with its savepoints.
            return Ok(());
        }
        self.at_engine = Some(engine);
        done
    }

    /// Describes a statement that belongs to where an earlier one ran, such as a FETCH: its
    /// RowDescription, if it returns rows.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn describe(&mut self, plan: &Plan, settings: &Settings) -> Result<Option<Bytes>, Trouble> {
        let sql = &plan.statement.text;
        let shard = match (self.cursor(plan).cloned(), &mut self.at_engine) {
            (Some(Err(_)), Some(engine)) => return Ok(engine.describe(sql).await?),
            (Some(Ok(shard)), _) => Some(shard),
            _ => self.at_shards.last_shard(),
        };
        if let Some(shard) = shard {
            let step = PassThroughStep::Describe { sql: sql.clone(), parameter_types: Vec::new() };
            let mut replies = self.step((Vec::new(), Some(shard)), step, settings, 0).await?;
            let mut description = None;
            while let Some(item) = replies.next().await? {
                if let PassThroughItem::Messages(messages) = item
                    && messages.first() == Some(&tags::ROW_DESCRIPTION)
                {
                    description = Some(messages);
                }
            }
            return Ok(description);
        }
        match &mut self.at_front {
            Some(session) => Ok(session.describe(sql).await?),
            None => Ok(None),
        }
    }

    /// A statement was given up in the middle: wherever it ran, the transaction is over.
    pub fn interrupted(&mut self) {
        self.at_shards.abandon();
        self.at_front = None;
        self.at_engine = None;
        self.cursors.clear();
        if let Some(key) = self.executing.take() {
            let connector = self.front.connector().clone();
            tokio::spawn(async move { connector.cancel_raw(key).await });
        }
        self.failed = true;
        let message = "the transaction ended when its statement was cancelled";
        self.ended = Some(SqlError::new(codes::SERIALIZATION_FAILURE, message));
    }

    /// Ends the transaction: commits it unless it has failed. Returns whether it is committed.
    ///
    /// # Errors
    /// The commit's own.
    pub async fn commit(mut self) -> Result<bool, Trouble> {
        self.leave_home().await;
        if self.failed {
            self.at_shards.rollback().await;
            return Ok(false);
        }
        self.at_shards.commit().await?;
        Ok(true)
    }

    /// Rolls the transaction back.
    pub async fn roll_back(mut self) {
        self.leave_home().await;
        self.at_shards.rollback().await;
    }

    /// Ends it in the gateway's own PostgreSQL.
    async fn leave_home(&mut self) {
        if let Some(engine) = self.at_engine.take() {
            engine.end().await;
        }
        if let Some(mut session) = self.at_front.take()
            && session.session.simple("ROLLBACK").await.is_ok()
        {
            self.front.sessions().put_back(session);
        }
    }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
