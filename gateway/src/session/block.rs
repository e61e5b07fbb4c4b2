//! The transaction of a session, and where it is open: at a shard, in the gateway's own PostgreSQL,
//! or in both.
//!
//! It begins at a place with the first statement there. Savepoints are made at every place where it
//! is open, and made later where it begins later. At the end the shard decides; the gateway's own
//! PostgreSQL has only read.
//!
//! Not done: transactions over several shards.

use super::declared::declared;
use super::planner::{Place, Plan};
use super::prepared::{Progress, Values};
use super::trouble::Trouble;
use crate::front::server::FrontPostgres;
use crate::front::sessions::{FrontSession, sql_error};
use crate::front::settings::{Settings, pairs};
use crate::wire::outgoing::Outgoing;
use bytes::Bytes;
use evenkeel_client::{Client, PassThroughReplies, PassThroughTransaction, TransactionOptions};
use evenkeel_postgres_session::{CancelKey, Named, Requests, Values as FrontValues, error_response, tags};
use evenkeel_protocol::SqlError;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::pass_through::{
    PassThroughBegin, PassThroughEnd, PassThroughItem, PassThroughStatement, PassThroughStep, TableUse,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// Rows of the gateway's own PostgreSQL that a suspended portal keeps, in bytes.
const MAX_LEFT_BYTES: usize = 64 << 20;

/// How a statement ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// With this command tag.
    Complete(String),
    /// The text is empty.
    Empty,
    /// The portal has given as many rows as were asked for.
    Suspended,
}

/// What a statement is executed with.
pub struct Run<'a> {
    /// The statement.
    pub plan: &'a Plan,
    /// Its parameters.
    pub values: &'a Values,
    /// At most this many rows; 0 for all.
    pub max_rows: u32,
    /// Whether a RowDescription comes first.
    pub describe: bool,
    /// The data of a COPY into a table.
    pub copy_data: Option<Bytes>,
}

/// See the module.
pub struct Block {
    client: Client,
    front: Arc<FrontPostgres>,
    options: TransactionOptions,
    /// Whether the user has begun it.
    pub explicit: bool,
    /// Whether a statement has failed.
    pub failed: bool,
    at_shard: Option<PassThroughTransaction>,
    at_front: Option<FrontSession>,
    /// Why the transaction has ended at its shard, if it has.
    ended: Option<SqlError>,
    savepoints: Vec<String>,
    portals: u64,
    /// The session of the gateway's own PostgreSQL that executes a statement now.
    executing: Option<CancelKey>,
}

impl Block {
    /// A transaction that has begun nowhere yet.
    pub fn new(client: Client, front: Arc<FrontPostgres>, options: TransactionOptions, explicit: bool) -> Block {
        Block {
            client,
            front,
            options,
            explicit,
            failed: false,
            at_shard: None,
            at_front: None,
            ended: None,
            savepoints: Vec::new(),
            portals: 0,
            executing: None,
        }
    }

    /// Whether no statement has begun it anywhere.
    pub fn is_untouched(&self) -> bool {
        self.at_shard.is_none() && self.at_front.is_none() && !self.failed
    }

    /// Whether it is open at a shard.
    pub fn is_at_shard(&self) -> bool {
        self.at_shard.is_some()
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
        let place = match run.plan.shape.place {
            Place::Follows if self.at_shard.is_some() => Place::Shard,
            Place::Follows => Place::Front,
            place => place,
        };
        let result = match place {
            Place::Front => self.run_at_front(run, settings, progress, out).await,
            Place::Shard | Place::Follows => self.run_at_shard(run, settings, progress, out).await,
        };
        if let Err(trouble) = &result {
            self.failed = true;
            if let Trouble::Ended(error) = trouble {
                self.at_shard = None;
                self.ended = Some(error.clone());
            }
        }
        result
    }

    async fn run_at_shard(
        &mut self,
        run: Run<'_>,
        settings: &Settings,
        progress: &mut Progress,
        out: &mut Outgoing,
    ) -> Result<RunEnd, Trouble> {
        let plan = run.plan;
        let tables = declared(
            &plan.shape.touched,
            plan.narrow.as_ref(),
            &run.values.typed(&plan.shape.analysis.parameter_types),
        );
        let step = match progress {
            Progress::AtShard(portal) => PassThroughStep::Fetch { portal: *portal, max_rows: run.max_rows },
            _ => {
                self.portals += 1;
                if run.max_rows > 0 {
                    *progress = Progress::AtShard(self.portals);
                }
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
        let replies = self.step(tables, step, settings, plan.shape.schema_version).await?;
        relay(replies, out).await
    }

    /// Sends a step to the shard, where the transaction begins with it if it is the first.
    async fn step(
        &mut self,
        tables: Vec<TableUse>,
        step: PassThroughStep,
        settings: &Settings,
        schema_version: u64,
    ) -> Result<PassThroughReplies, Trouble> {
        if let Some(transaction) = &mut self.at_shard {
            return Ok(transaction.step(tables, step).await?);
        }
        let begin = PassThroughBegin { options: self.options, settings: pairs(settings), schema_version };
        let mut transaction = self.client.pass_through(begin);
        // Savepoints that were made before it began here.
        for name in &self.savepoints {
            let savepoint = PassThroughStep::Execute(PassThroughStatement {
                sql: format!("SAVEPOINT {}", quote(name)).into(),
                ..PassThroughStatement::default()
            });
            transaction.step(tables.clone(), savepoint).await?.end().await?;
        }
        let replies = transaction.step(tables, step).await;
        // It is open even if the statement has failed.
        if transaction.shard().is_some() {
            self.at_shard = Some(transaction);
        }
        Ok(replies?)
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
                    let isolation = if self.options.repeatable_read { "REPEATABLE READ" } else { "READ COMMITTED" };
                    let begin = format!("BEGIN ISOLATION LEVEL {isolation}");
                    session.session.simple(&begin).await.map_err(sql_error)?;
                    for name in &self.savepoints {
                        let savepoint = format!("SAVEPOINT {}", quote(name));
                        session.session.simple(&savepoint).await.map_err(sql_error)?;
                    }
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
    pub async fn savepoint(&mut self, name: &str, settings: &Settings) -> Result<(), Trouble> {
        self.everywhere(&format!("SAVEPOINT {}", quote(name)), settings).await?;
        self.savepoints.push(name.to_string());
        Ok(())
    }

    /// Releases a savepoint.
    ///
    /// # Errors
    /// 3B001: there is none.
    pub async fn release(&mut self, name: &str, settings: &Settings) -> Result<(), Trouble> {
        let at = self.position(name)?;
        self.everywhere(&format!("RELEASE SAVEPOINT {}", quote(name)), settings).await?;
        self.savepoints.truncate(at);
        Ok(())
    }

    /// Goes back to a savepoint.
    ///
    /// # Errors
    /// 3B001: there is none. The error with which the transaction ended at its shard, if it has.
    pub async fn roll_back_to(&mut self, name: &str, settings: &Settings) -> Result<(), Trouble> {
        let at = self.position(name)?;
        if let Some(error) = &self.ended {
            return Err(Trouble::Sql(error.clone()));
        }
        self.everywhere(&format!("ROLLBACK TO SAVEPOINT {}", quote(name)), settings).await?;
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

    /// Executes a command on savepoints wherever the transaction is open.
    async fn everywhere(&mut self, sql: &str, settings: &Settings) -> Result<(), Trouble> {
        if let Some(session) = &mut self.at_front {
            session.session.simple(sql).await.map_err(sql_error)?;
        }
        if self.at_shard.is_some() {
            let statement = PassThroughStatement { sql: sql.into(), ..PassThroughStatement::default() };
            let replies = self.step(Vec::new(), PassThroughStep::Execute(statement), settings, 0).await?;
            replies.end().await?;
        }
        Ok(())
    }

    /// Describes a statement that belongs to where an earlier one ran, such as a FETCH: its
    /// RowDescription, if it returns rows.
    ///
    /// # Errors
    /// PostgreSQL's own.
    pub async fn describe(&mut self, sql: &str, settings: &Settings) -> Result<Option<Bytes>, Trouble> {
        if self.at_shard.is_some() {
            let step = PassThroughStep::Describe { sql: sql.into(), parameter_types: Vec::new() };
            let mut replies = self.step(Vec::new(), step, settings, 0).await?;
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
        let Some(session) = &mut self.at_front else { return Ok(None) };
        let mut requests = Requests::default();
        requests.parse("", sql, &[])?;
        requests.describe(Named::Statement(""))?;
        requests.sync();
        session.session.send(requests);
        let mut description = None;
        let described = session.session.until_ready(|message| {
            if message.tag() == tags::ROW_DESCRIPTION {
                description = Some(message.whole().clone());
            }
        });
        described.await.map_err(sql_error)?;
        Ok(description)
    }

    /// A statement was given up in the middle: wherever it ran, the transaction is over.
    pub fn interrupted(&mut self) {
        self.at_shard = None;
        self.at_front = None;
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
        self.leave_front().await;
        match self.at_shard.take() {
            _ if self.failed => {
                self.roll_back_inner().await;
                Ok(false)
            }
            Some(transaction) => Ok(transaction.commit().await.map(|()| true)?),
            None => Ok(true),
        }
    }

    /// Rolls the transaction back.
    pub async fn roll_back(mut self) {
        self.leave_front().await;
        self.roll_back_inner().await;
    }

    async fn roll_back_inner(&mut self) {
        if let Some(transaction) = self.at_shard.take() {
            transaction.rollback().await;
        }
    }

    async fn leave_front(&mut self) {
        if let Some(mut session) = self.at_front.take()
            && session.session.simple("ROLLBACK").await.is_ok()
        {
            self.front.sessions().put_back(session);
        }
    }
}

/// Whether a statement may leave something in its session, such as a setting or a lock.
fn leaves_something(plan: &Plan) -> bool {
    let code = plan.shape.analysis.calls_user_code || plan.rows().is_some_and(|rows| rows.runs_code);
    code || plan.statement.functions.iter().any(|name| name == "set_config" || name.contains("advisory"))
}

/// The first rows of a portal, and how it ends with them.
fn give(rows: &mut VecDeque<Bytes>, tag: &str, max_rows: u32) -> (Vec<Bytes>, RunEnd) {
    let count = if max_rows == 0 { rows.len() } else { rows.len().min(max_rows as usize) };
    // As in PostgreSQL, a portal is suspended also if exactly as many rows were left.
    let suspended = max_rows > 0 && count == max_rows as usize;
    let given = rows.drain(..count).collect();
    (given, if suspended { RunEnd::Suspended } else { RunEnd::Complete(tag.to_string()) })
}

/// Writes what a shard's PostgreSQL sends.
async fn relay(mut replies: PassThroughReplies, out: &mut Outgoing) -> Result<RunEnd, Trouble> {
    while let Some(item) = replies.next().await? {
        match item {
            PassThroughItem::Messages(messages) => {
                out.buffer.extend_from_slice(&messages);
                out.send_if_full().await?;
            }
            PassThroughItem::Parameters(_) => {}
            PassThroughItem::End(PassThroughEnd::Complete(tag)) => return Ok(RunEnd::Complete(tag)),
            PassThroughItem::End(PassThroughEnd::Suspended) => return Ok(RunEnd::Suspended),
            PassThroughItem::End(PassThroughEnd::Empty | PassThroughEnd::Done) => return Ok(RunEnd::Empty),
        }
    }
    Err(Trouble::Ended(SqlError::new(codes::INTERNAL, "a shard's answer has no end")))
}

async fn execute_at_front(
    session: &mut FrontSession,
    run: &Run<'_>,
    progress: &mut Progress,
    out: &mut Outgoing,
) -> Result<RunEnd, Trouble> {
    let mut requests = Requests::default();
    requests.parse("", &run.plan.statement.text, &run.plan.shape.analysis.parameter_types)?;
    let values = FrontValues {
        formats: &run.values.formats,
        parameters: &run.values.parameters,
        result_formats: &run.values.result_formats,
    };
    requests.bind("", "", values)?;
    if run.describe {
        requests.describe(Named::Portal(""))?;
    }
    requests.execute("", 0)?;
    requests.sync();
    session.session.send(requests);
    let (mut end, mut failed, mut left, mut left_bytes) = (RunEnd::Empty, None, VecDeque::new(), 0);
    while !session.session.is_ready() {
        let message = session.session.next().await.map_err(sql_error)?;
        match message.tag() {
            tags::DATA_ROW if run.max_rows > 0 => {
                left_bytes += message.whole().len();
                if left_bytes > MAX_LEFT_BYTES {
                    return Err(SqlError::new(codes::PROGRAM_LIMIT, "a portal with too many rows").into());
                }
                left.push_back(message.whole().clone());
            }
            tags::DATA_ROW
            | tags::ROW_DESCRIPTION
            | tags::NOTICE_RESPONSE
            | tags::COPY_OUT_RESPONSE
            | tags::COPY_DATA
            | tags::COPY_DONE => {
                out.buffer.extend_from_slice(message.whole());
                out.send_if_full().await?;
            }
            tags::COMMAND_COMPLETE => end = RunEnd::Complete(message.text()),
            tags::ERROR_RESPONSE => {
                failed.get_or_insert_with(|| error_response::parse(&message.body()));
            }
            _ => {}
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if let (true, RunEnd::Complete(tag)) = (run.max_rows > 0, &end) {
        let (given, ended) = give(&mut left, tag, run.max_rows);
        given.iter().for_each(|row| out.buffer.extend_from_slice(row));
        *progress = Progress::Left(left, tag.clone());
        return Ok(ended);
    }
    Ok(end)
}

/// An object id that means the same on every server; 0 for that of a user's type, which the server
/// finds out by itself.
fn built_in(oid: u32) -> u32 {
    if oid < 16_384 { oid } else { 0 }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
