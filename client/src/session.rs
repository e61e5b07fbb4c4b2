//! A session: statements in order, with settings and transactions of its own.
//!
//! It owns its levels, at most one open transaction, and at most one unresolved write. It promises:
//!
//! - Statements are ordered. Each begins when the one before has been answered, and **after the
//!   COMMIT of the one before**, however early that was acknowledged (R28). A session therefore
//!   sees its own writes at every durability.
//! - The loss of a write that was acknowledged below `disk` is reported: the next statement fails
//!   with 58K01 and is not executed.
//! - `local` reads stay with one replica as long as it answers: a row that was seen seldom
//!   disappears again.
//! - Settings belong to transactions. A change by `SET` lasts if its transaction commits; `SET
//!   LOCAL` ends with the transaction.
//! - After a statement of a transaction has failed, only the end of the transaction is possible,
//!   and `COMMIT` rolls back.
//!
//! A transaction reads linearizably from its shard's leader, whatever the read level. Only a READ
//! ONLY transaction at READ COMMITTED can read at level `local`: each of its statements is a
//! separate read, as that isolation level promises.

use crate::answer::Answer;
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::execute::{execute, execute_read_only};
use crate::levels::{Levels, StatementLevels, shown};
use crate::stream::RowStream;
use crate::transaction::{EarlyWrite, Resolution, Transaction, failed_before};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::rows::RowBuilder;
use evenkeel_protocol::shard::{StatementReply, TransactionOptions};
use evenkeel_protocol::{Column, ReadLevel, ShardId, SqlError, Value};
use evenkeel_sql::{self as sql, Command, SettingCommand, SettingName};
use std::sync::Arc;
use std::time::Duration;

/// PostgreSQL's number of the type `text`.
const TEXT_OID: u32 = 25;

/// A session of a client. If it is dropped, its open transaction is rolled back.
pub struct Session {
    core: Arc<ClientCore>,
    /// The levels that `RESET` restores.
    began_with: Levels,
    levels: Levels,
    transaction: Option<SessionTransaction>,
    /// The outcome of the last write, if that was acknowledged early.
    unresolved: Option<Resolution>,
}

struct SessionTransaction {
    transaction: Transaction,
    options: TransactionOptions,
    /// The levels with the changes by `SET` and `SET LOCAL`.
    levels: Levels,
    /// The session's levels after a commit: with the changes by `SET`.
    afterwards: Levels,
}

impl Session {
    pub(crate) fn new(core: Arc<ClientCore>, mut levels: Levels) -> Session {
        // Sessions spread over the replicas; each stays with one.
        levels.replica = levels.replica.or(Some(core.new_id().sequence));
        Session { core, began_with: levels, levels, transaction: None, unresolved: None }
    }

    /// The current levels, including those of an open transaction.
    pub fn levels(&self) -> Levels {
        self.transaction.as_ref().map_or(self.levels, |open| open.levels)
    }

    /// Chooses other levels; in a transaction, for the rest of the transaction.
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

    /// Executes one statement: in the open transaction, or in one of its own. `BEGIN`, `COMMIT`,
    /// `ROLLBACK`, and `SET`, `RESET` and `SHOW` of Evenkeel's settings are statements too.
    ///
    /// # Errors
    /// As [`crate::Client::execute`]; also [`ClientError::WriteLost`] and
    /// [`ClientError::OutcomeUnknown`] for an earlier write, and [`ClientError::Unavailable`] if
    /// the earlier write is not on a quorum's disks in time. In these cases this statement was not
    /// executed.
    pub async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        self.execute_with(sql, params, StatementLevels::default()).await
    }

    /// As [`Session::execute`], with levels for this statement.
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
        // A failed command fails the transaction, as any other statement does.
        if let (Err(_), Some(open)) = (&result, &mut self.transaction) {
            open.transaction.fail();
        }
        result
    }

    /// As [`crate::Client::stream`], in this session: after its writes, and at its levels. A
    /// statement in a transaction, and one that is not a read, is executed as a whole and arrives
    /// as one piece.
    ///
    /// # Errors
    /// As [`Session::execute`].
    pub async fn stream(&mut self, sql: &str, params: &[Value]) -> Result<RowStream, ClientError> {
        if self.transaction.is_none() && session_command(sql)?.is_none() {
            self.resolved().await?;
            if let Some(stream) = RowStream::open(&self.core, sql, params, self.levels).await? {
                return Ok(stream);
            }
        }
        Ok(RowStream::whole(self.execute(sql, params).await?))
    }

    async fn statement(&mut self, sql: &str, params: &[Value], chosen: StatementLevels) -> Result<Answer, ClientError> {
        self.resolved().await?;
        let levels = self.levels().with(chosen);
        match &mut self.transaction {
            Some(open) if open.transaction.has_failed() => Err(failed_before()),
            Some(open) if levels.read == ReadLevel::Local && reads_locally(open.options) => {
                let answer = execute_read_only(&self.core, sql, params, levels).await;
                if answer.is_err() {
                    open.transaction.fail();
                }
                answer
            }
            Some(open) => open.transaction.execute(sql, params).await,
            None => {
                let acknowledged = execute(&self.core, sql, params, levels).await?;
                self.resolve(acknowledged.early);
                Ok(acknowledged.answer)
            }
        }
    }

    /// Finds out the outcome of a write in the background, if it was acknowledged early.
    fn resolve(&mut self, early: Option<EarlyWrite>) {
        self.unresolved = early.map(|write| write.resolve(self.core.clone()));
    }

    /// Waits until every acknowledged write of this session is on a quorum's disks.
    ///
    /// # Errors
    /// [`ClientError::WriteLost`] and [`ClientError::OutcomeUnknown`], once for each write.
    /// [`ClientError::Unavailable`] if the wait exceeds the statement timeout; the call can then be
    /// repeated.
    pub async fn resolved(&mut self) -> Result<(), ClientError> {
        let Some(resolution) = &mut self.unresolved else { return Ok(()) };
        let timeout_ms = self.core.config.statement_timeout_ms;
        let known = resolution.wait_for(Option::is_some);
        let outcome = match evenkeel_host::timeout(Duration::from_millis(timeout_ms), known).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Ok(())),
            // The task was aborted: the runtime is shutting down.
            Ok(Err(_)) => Ok(()),
            Err(_) => {
                let message = format!("an earlier write is not on a quorum's disks after {timeout_ms} ms");
                let error = SqlError::new(codes::CANNOT_CONNECT_NOW, message);
                return Err(ClientError::Unavailable(
                    error.hint("This statement was not executed. The write may still get there: try again."),
                ));
            }
        };
        self.unresolved = None;
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
        self.resolved().await?;
        let transaction = Transaction::new(self.core.clone(), options);
        self.transaction =
            Some(SessionTransaction { transaction, options, levels: self.levels, afterwards: self.levels });
        Ok(())
    }

    async fn commit(&mut self, chosen: StatementLevels) -> Result<(), ClientError> {
        // As in PostgreSQL, a COMMIT without a transaction does nothing.
        let Some(open) = self.transaction.take() else { return Ok(()) };
        let durability = open.levels.with(chosen).durability;
        let early = open.transaction.commit_at(durability).await?;
        self.levels = open.afterwards;
        self.resolve(early);
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

/// PostgreSQL's code for a BEGIN in a transaction.
const ACTIVE_TRANSACTION: &str = "25001";

fn reads_locally(options: TransactionOptions) -> bool {
    options.read_only && !options.repeatable_read
}

/// The command that the session executes itself, if the text is one. It is recognised by its first
/// word, so that other statements are not parsed twice.
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
