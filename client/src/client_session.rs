//! A session: statements one after the other, with settings and transactions of its own.
//!
//! It owns its levels, at most one open transaction, and what is not settled yet. It promises:
//!
//! - statements have an order: each begins when the one before has been answered, and **after the COMMIT of the one before**, however early
//!   that was answered (R28). So a session sees its own writes, at every durability;
//! - a write that was answered below `disk` and lost is told of: the next statement fails with 58K01 and is not executed;
//! - `local` reads stay with one replica as long as it answers, so that what was seen is seldom unseen;
//! - settings belong to transactions: what `SET` has changed in one lasts if that commits, and `SET LOCAL` ends with it;
//! - after a statement of a transaction has failed, only its end is possible, and a `COMMIT` then rolls back.
//!
//! A transaction reads where it is open, at its shard's leader and linearizably, whatever the read level. Only a READ ONLY
//! transaction at READ COMMITTED can read `local`: each of its statements is a read of its own there, which is what that
//! isolation level promises.

use crate::error::ClientError;
use crate::execute::Answer;
use crate::levels::{Levels, StatementLevels, shown};
use crate::settle::Settling;
use crate::stream::RowStream;
use crate::transaction::{Transaction, failed_before};
use crate::{Client, stats};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::shard::{StatementReply, TransactionOptions};
use evenkeel_protocol::{Column, ReadLevel, ShardId, SqlError, Value};
use evenkeel_sql::{self as sql, Command, SettingCommand, SettingName};
use std::time::Duration;

/// PostgreSQL's number of the type `text`.
const TEXT_OID: u32 = 25;

/// A session of a client. Dropped with a transaction open, that is rolled back.
pub struct ClientSession {
    client: Client,
    /// What `RESET` goes back to.
    began_with: Levels,
    levels: Levels,
    transaction: Option<InTransaction>,
    /// A write that was answered before its COMMIT.
    unsettled: Option<Settling>,
}

struct InTransaction {
    transaction: Transaction,
    options: TransactionOptions,
    /// With what `SET` and `SET LOCAL` have changed.
    levels: Levels,
    /// The session's if it commits: with what `SET` has changed.
    afterwards: Levels,
}

impl ClientSession {
    pub(crate) fn new(client: Client, mut levels: Levels) -> ClientSession {
        // Sessions spread over the replicas; each stays with its own.
        levels.replica = levels.replica.or(Some(client.session().new_id().sequence));
        ClientSession { client, began_with: levels, levels, transaction: None, unsettled: None }
    }

    /// What its statements are answered at now, a transaction's own choice included.
    pub fn levels(&self) -> Levels {
        self.transaction.as_ref().map_or(self.levels, |open| open.levels)
    }

    /// Chooses other levels; in a transaction for its rest only.
    pub fn set_levels(&mut self, levels: Levels) {
        match &mut self.transaction {
            Some(open) => open.levels = levels,
            None => self.levels = levels,
        }
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Executes one statement: in the open transaction, or in one of its own. `BEGIN`, `COMMIT`, `ROLLBACK`, and `SET`, `RESET` and `SHOW` of
    /// Evenkeel's settings are statements too.
    ///
    /// # Errors
    /// As [`Client::execute`]; also [`ClientError::WriteLost`] and [`ClientError::OutcomeUnknown`] for an earlier write, and
    /// [`ClientError::Unavailable`] if that is not on a quorum's disks in time: then this statement was not executed.
    pub async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        self.execute_with(sql, params, StatementLevels::default()).await
    }

    /// The same with levels for this statement.
    pub async fn execute_with(
        &mut self,
        sql: &str,
        params: &[Value],
        chosen: StatementLevels,
    ) -> Result<Answer, ClientError> {
        let result = match session_command(sql) {
            Ok(Some(command)) => self.command(command, chosen).await,
            Ok(None) => return self.statement(sql, params, chosen).await,
            Err(error) => Err(error),
        };
        // As any statement that fails in it.
        if let (Err(_), Some(open)) = (&result, &mut self.transaction) {
            open.transaction.fail();
        }
        result
    }

    /// As [`Client::stream`], in this session: after what it has written, and at its levels. What is no read in a transaction of its own is
    /// executed, and comes as one piece.
    ///
    /// # Errors
    /// As [`ClientSession::execute`].
    pub async fn stream(&mut self, sql: &str, params: &[Value]) -> Result<RowStream, ClientError> {
        if self.transaction.is_none() && session_command(sql)?.is_none() {
            self.settled().await?;
            if let Some(stream) = self.client.streaming(sql, params, self.levels).await? {
                return Ok(stream);
            }
        }
        Ok(RowStream::whole(self.execute(sql, params).await?))
    }

    async fn statement(&mut self, sql: &str, params: &[Value], chosen: StatementLevels) -> Result<Answer, ClientError> {
        self.settled().await?;
        let levels = self.levels().with(chosen);
        match &mut self.transaction {
            Some(open) if open.transaction.has_failed() => Err(failed_before()),
            Some(open) if levels.read == ReadLevel::Local && reads_locally(open.options) => {
                let answer = self.client.read_in_transaction(sql, params, levels).await;
                if answer.is_err() {
                    open.transaction.fail();
                }
                answer
            }
            Some(open) => open.transaction.execute(sql, params).await,
            None => {
                let (answer, unsettled) = self.client.execute_early(sql, params, levels).await?;
                self.unsettled = unsettled.map(|write| write.settle(self.client.session().clone()));
                Ok(answer)
            }
        }
    }

    /// Waits until everything that this session has been told is done is on a quorum's disks.
    ///
    /// # Errors
    /// [`ClientError::WriteLost`] and [`ClientError::OutcomeUnknown`], once for each write; [`ClientError::Unavailable`] if it takes
    /// longer than the statement timeout, and then it can be asked again.
    pub async fn settled(&mut self) -> Result<(), ClientError> {
        let Some(settling) = &mut self.unsettled else { return Ok(()) };
        let timeout_ms = self.client.session().config.statement_timeout_ms;
        let settled = settling.wait_for(Option::is_some);
        let outcome = match tokio::time::timeout(Duration::from_millis(timeout_ms), settled).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
            // Its task has ended without a word: the runtime is ending.
            Ok(Err(_)) => Ok(()),
            Err(_) => {
                let message = format!("an earlier write is not on a quorum's disks after {timeout_ms} ms");
                let error = SqlError::new(codes::CANNOT_CONNECT_NOW, message);
                return Err(ClientError::Unavailable(
                    error.hint("This statement was not executed. The write may still get there: try again."),
                ));
            }
        };
        self.unsettled = None;
        outcome
    }

    async fn command(&mut self, command: Command, chosen: StatementLevels) -> Result<Answer, ClientError> {
        let failed = self.transaction.as_ref().is_some_and(|open| open.transaction.has_failed());
        match command {
            Command::Setting(_) | Command::Begin(_) | Command::Statement(_) | Command::CreateTable { .. } if failed => {
                Err(failed_before())
            }
            Command::Setting(command) => self.setting(command),
            Command::Begin(options) => self.begin(options).await.map(|()| done("BEGIN")),
            Command::Commit if !failed => self.commit(chosen).await.map(|()| done("COMMIT")),
            _ => {
                if let Some(open) = self.transaction.take() {
                    open.transaction.rollback().await;
                }
                Ok(done("ROLLBACK"))
            }
        }
    }

    async fn begin(&mut self, options: TransactionOptions) -> Result<(), ClientError> {
        if self.transaction.is_some() {
            return Err(ClientError::Sql(SqlError::new(ACTIVE_TRANSACTION, "a transaction is open already")));
        }
        self.settled().await?;
        let transaction = self.client.begin(options).await?;
        self.transaction = Some(InTransaction { transaction, options, levels: self.levels, afterwards: self.levels });
        Ok(())
    }

    async fn commit(&mut self, chosen: StatementLevels) -> Result<(), ClientError> {
        // As PostgreSQL: a COMMIT without a transaction does nothing.
        let Some(open) = self.transaction.take() else { return Ok(()) };
        let durability = open.levels.with(chosen).durability;
        let unsettled = open.transaction.commit_at(durability).await?;
        self.levels = open.afterwards;
        self.unsettled = unsettled.map(|write| write.settle(self.client.session().clone()));
        Ok(())
    }

    fn setting(&mut self, command: SettingCommand) -> Result<Answer, ClientError> {
        let (local, settings, done_as) = match command {
            SettingCommand::Show(name) => return Ok(text_answer(name.name(), &shown(self.levels().get(name)))),
            SettingCommand::Set { local, setting } => (local, vec![setting], "SET"),
            SettingCommand::Reset { local, name } => {
                let names = name.map_or(SettingName::ALL.to_vec(), |name| vec![name]);
                (local, names.into_iter().map(|name| self.began_with.get(name)).collect(), "RESET")
            }
        };
        let set = |levels: &mut Levels| settings.iter().for_each(|setting| levels.set(*setting));
        match &mut self.transaction {
            Some(open) => {
                set(&mut open.levels);
                if !local {
                    set(&mut open.afterwards);
                }
            }
            None if local => {
                let error = SqlError::new(codes::NO_TRANSACTION, "SET LOCAL is for transactions, and none is open");
                return Err(ClientError::Sql(error.hint("Use SET, or begin a transaction first.")));
            }
            None => set(&mut self.levels),
        }
        Ok(done(done_as))
    }
}

/// PostgreSQL's code for a BEGIN inside of a transaction.
const ACTIVE_TRANSACTION: &str = "25001";

fn reads_locally(options: TransactionOptions) -> bool {
    options.read_only && !options.repeatable_read
}

/// What is done by the session itself, told by its first word so that other statements are not parsed twice.
fn session_command(text: &str) -> Result<Option<Command>, ClientError> {
    let first: String = text.trim_start().chars().take_while(char::is_ascii_alphabetic).take(16).collect();
    let own = ["BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SET", "RESET", "SHOW"];
    if !own.iter().any(|word| word.eq_ignore_ascii_case(&first)) {
        return Ok(None);
    }
    Ok(Some(sql::parse(text)?).filter(|command| !matches!(command, Command::Statement(_))))
}

fn done(command: &'static str) -> Answer {
    Answer { command: Some(command), ..Answer::new(StatementReply::default(), ShardId(0), 0) }
}

fn text_answer(name: &str, value: &str) -> Answer {
    let mut rows = RowBuilder::new(1);
    rows.push([Some(value.as_bytes())]);
    let columns = vec![Column { name: name.to_string(), type_oid: TEXT_OID }].into();
    let reply = StatementReply { columns, rows: rows.finish(), affected: 1, staleness_ms: None };
    Answer { command: Some("SHOW"), ..Answer::new(reply, ShardId(0), 0) }
}

impl Client {
    async fn read_in_transaction(&self, sql: &str, params: &[Value], levels: Levels) -> Result<Answer, ClientError> {
        let session = self.session();
        stats::add(&session.counters.statements, 1);
        let result = session.read_only(sql, params, levels, session.now_ms()).await;
        stats::add(&session.counters.failures, result.is_err().into());
        result
    }
}
