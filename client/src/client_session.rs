//! A session: statements one after the other, with settings and transactions of its own.
//!
//! It owns its levels, at most one open transaction, and what is not settled yet. It promises:
//!
//! - statements have an order: each begins when the one before has been answered, and **after the COMMIT of the one before**, however early
//!   that was answered (R28). So a session sees its own writes, at every durability;
//! - a write that was answered below `disk` and lost is told of: the next statement fails with 58K01 and is not executed;
//! - `local` reads stay with one replica as long as it answers, so that what was seen is seldom unseen;
//! - `SET LOCAL` ends with its transaction.
//!
//! A transaction reads where it is open, at its shard's leader and linearizably, whatever the read level. Only a READ ONLY
//! transaction at READ COMMITTED can read `local`: each of its statements is a read of its own there, which is what that
//! isolation level promises.

use crate::error::ClientError;
use crate::execute::Answer;
use crate::levels::{Levels, StatementLevels, shown};
use crate::settle::Settling;
use crate::transaction::Transaction;
use crate::{Client, stats};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::shard::{StatementReply, TransactionOptions};
use evenkeel_protocol::sql::{self, Command, SettingCommand, SettingName};
use evenkeel_protocol::{Column, ReadLevel, ShardId, SqlError, Value};
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
    /// With what `SET LOCAL` has changed.
    levels: Levels,
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
        if let Some(command) = session_command(sql)? {
            return self.command(command, chosen).await;
        }
        self.settled().await?;
        let levels = self.levels().with(chosen);
        match &mut self.transaction {
            Some(open) if levels.read == ReadLevel::Local && reads_locally(open.options) => {
                let answer = self.client.read_in_transaction(sql, params, levels).await?;
                Ok(answer)
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
        match command {
            Command::Setting(command) => return self.setting(command),
            Command::Begin(options) => self.begin(options).await?,
            Command::Commit => self.commit(chosen).await?,
            _ => {
                if let Some(open) = self.transaction.take() {
                    open.transaction.rollback().await;
                }
            }
        }
        Ok(nothing())
    }

    async fn begin(&mut self, options: TransactionOptions) -> Result<(), ClientError> {
        if self.transaction.is_some() {
            return Err(ClientError::Sql(SqlError::new(ACTIVE_TRANSACTION, "a transaction is open already")));
        }
        self.settled().await?;
        let transaction = self.client.begin(options).await?;
        self.transaction = Some(InTransaction { transaction, options, levels: self.levels });
        Ok(())
    }

    async fn commit(&mut self, chosen: StatementLevels) -> Result<(), ClientError> {
        // As PostgreSQL: a COMMIT without a transaction does nothing.
        let Some(open) = self.transaction.take() else { return Ok(()) };
        let durability = open.levels.with(chosen).durability;
        let unsettled = open.transaction.commit_at(durability).await?;
        self.unsettled = unsettled.map(|write| write.settle(self.client.session().clone()));
        Ok(())
    }

    fn setting(&mut self, command: SettingCommand) -> Result<Answer, ClientError> {
        let mut levels = self.levels();
        let local = match command {
            SettingCommand::Show(name) => return Ok(text_answer(name.name(), &shown(levels.get(name)))),
            SettingCommand::Set { local, setting } => {
                levels.set(setting);
                local
            }
            SettingCommand::Reset { local, name } => {
                let names = name.map_or(SettingName::ALL.to_vec(), |name| vec![name]);
                names.into_iter().for_each(|name| levels.set(self.began_with.get(name)));
                local
            }
        };
        match &mut self.transaction {
            Some(open) => open.levels = levels,
            None if local => {
                let error = SqlError::new(codes::NO_TRANSACTION, "SET LOCAL is for transactions, and none is open");
                return Err(ClientError::Sql(error.hint("Use SET, or begin a transaction first.")));
            }
            None => {}
        }
        if !local {
            self.levels = levels;
        }
        Ok(nothing())
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

fn nothing() -> Answer {
    Answer::new(StatementReply::default(), ShardId(0), 0)
}

fn text_answer(name: &str, value: &str) -> Answer {
    let mut rows = RowBuilder::new(1);
    rows.push([Some(value.as_bytes())]);
    let columns = vec![Column { name: name.to_string(), type_oid: TEXT_OID }].into();
    Answer::new(StatementReply { columns, rows: rows.finish(), affected: 1, staleness_ms: None }, ShardId(0), 0)
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
