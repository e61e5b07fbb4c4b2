//! The public handle of a transaction.

use super::open::{OpenTransaction, shard_of};
use super::resolve::EarlyWrite;
use super::two_phase::commit_everywhere;
use crate::answer::Answer;
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::execute::run;
use crate::levels::Levels;
use crate::prepare::{Prepared, prepare};
use crate::retry::{Attempts, Repeat};
use crate::routing::Statement;
use crate::stats::add;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Durability, ReadLevel, StatementRequest, TransactionOptions};
use evenkeel_protocol::{SqlError, TxnId, Value};
use evenkeel_sql::Touches;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use std::sync::Arc;

/// A transaction. Dropped without [`Transaction::commit`], it is rolled back.
pub struct Transaction {
    core: Arc<ClientCore>,
    options: TransactionOptions,
    id: TxnId,
    state: TransactionState,
}

enum TransactionState {
    /// No statement has touched a key. Statements that touch no key (`SELECT 1`) run on their own
    /// and choose no shard.
    Idle,
    /// The transaction is open on these shards, once on each.
    Open(Vec<OpenTransaction>),
    /// A statement has failed; nothing of the transaction will take effect.
    Failed,
}

impl Transaction {
    pub(crate) fn new(core: Arc<ClientCore>, options: TransactionOptions) -> Transaction {
        let id = core.new_id();
        Transaction { core, options, id, state: TransactionState::Idle }
    }

    /// Whether a statement has failed, so that only [`Transaction::rollback`] is possible.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, TransactionState::Failed)
    }

    /// Records the failure of a statement that was executed outside of the transaction. Nothing of
    /// the transaction will take effect.
    pub(crate) fn fail(&mut self) {
        self.state = TransactionState::Failed;
    }

    /// Executes a statement in the transaction. After an error only [`Transaction::rollback`] is
    /// possible.
    pub async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        add(&self.core.counters.statements, 1);
        let result = self.execute_boxed(sql, params).await;
        if result.is_err() {
            add(&self.core.counters.failures, 1);
            self.state = TransactionState::Failed;
        }
        result
    }

    /// Boxed, as [`Transaction::commit_at`], so that this crate compiles it and its callers do not
    /// compile it again.
    #[inline(never)]
    fn execute_boxed<'a>(
        &'a mut self,
        sql: &'a str,
        params: &'a [Value],
    ) -> BoxFuture<'a, Result<Answer, ClientError>> {
        self.execute_statement(sql, params).boxed()
    }

    async fn execute_statement(&mut self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        let core = &self.core;
        let started_ms = core.now_ms();
        let deadline_ms = started_ms + core.config.statement_timeout_ms;
        if matches!(self.state, TransactionState::Failed) {
            return Err(failed_before());
        }
        let statement = match prepare(core, sql, deadline_ms).await? {
            Prepared::Statement(statement) => statement,
            Prepared::CreateTable(_) => {
                return Err(ClientError::Sql(SqlError::unsupported(
                    "CREATE TABLE cannot be part of a transaction",
                    "Execute it before the transaction begins.",
                )));
            }
        };
        if self.options.read_only && (statement.plan.writes() || statement.plan.locks()) {
            let error = SqlError::new("25006", "this transaction is READ ONLY");
            return Err(ClientError::Sql(error.hint("Begin it without READ ONLY to change or lock rows.")));
        }
        let touches = statement.plan.touches(params)?;
        // During a statement the state is `Failed`; it stays so if this future is dropped.
        match std::mem::replace(&mut self.state, TransactionState::Failed) {
            TransactionState::Idle if touches == Touches::Nothing => {
                let executed = run(core, &statement, params, Levels::default(), started_ms).await?;
                self.state = TransactionState::Idle;
                Ok(executed.answer)
            }
            TransactionState::Idle => {
                let (answer, open) = self.join(&statement, touches, params, started_ms).await?;
                self.state = TransactionState::Open(vec![open]);
                Ok(answer)
            }
            TransactionState::Open(mut open) => {
                let answer = self.execute_open(&mut open, &statement, touches, params, deadline_ms).await?;
                self.state = TransactionState::Open(open);
                Ok(answer)
            }
            TransactionState::Failed => Err(failed_before()),
        }
    }

    /// Executes a statement at the shard that owns its keys, which the transaction joins if it is
    /// not open there.
    async fn execute_open(
        &self,
        open: &mut Vec<OpenTransaction>,
        statement: &Statement,
        touches: Touches,
        params: &[Value],
        deadline_ms: u64,
    ) -> Result<Answer, ClientError> {
        let core = &self.core;
        let mut attempts = Attempts::new(Repeat::Free, core.now_ms(), core.config.statement_timeout_ms);
        loop {
            let shard = match touches {
                Touches::Nothing => None,
                _ => shard_of(core, statement, &touches, deadline_ms).await?,
            };
            let known = match shard {
                Some(shard) => open.iter_mut().find(|open| open.shard == shard),
                // It touches nothing; or this client does not know the route, and the shard does.
                None => open.first_mut(),
            };
            let request = self.request(statement, params);
            if let Some(here) = known {
                return here.execute(core, statement, &touches, request, deadline_ms).await;
            }
            let Some(shard) = shard else { return Err(failed_before()) };
            if open.iter().any(|open| open.has_moved(core)) {
                return Err(ClientError::rerun("a range has moved while the transaction was open"));
            }
            let joined =
                OpenTransaction::join(core, shard, self.options, statement, &touches, &request, &mut attempts).await?;
            if let Some((answer, joined)) = joined {
                open.push(joined);
                return Ok(answer);
            }
            // The routes are out of date: perhaps it is open where the keys are.
            core.refresh_until(attempts.deadline_ms()).await;
        }
    }

    /// Opens the transaction at a shard with its first statement there.
    async fn join(
        &self,
        statement: &Statement,
        touches: Touches,
        params: &[Value],
        started_ms: u64,
    ) -> Result<(Answer, OpenTransaction), ClientError> {
        let request = self.request(statement, params);
        OpenTransaction::begin(&self.core, self.options, statement, touches, request, started_ms).await
    }

    fn request(&self, statement: &Statement, params: &[Value]) -> StatementRequest {
        let sql = statement.sql.clone();
        StatementRequest {
            id: self.id,
            sql,
            params: params.to_vec(),
            clip: None,
            limit: None,
            read: ReadLevel::default(),
            max_staleness_ms: None,
            durability: Durability::default(),
        }
    }

    /// Commits. An error of [`ClientError::OutcomeUnknown`] leaves open whether the changes last;
    /// after any other error nothing of the transaction has taken effect.
    pub async fn commit(self) -> Result<(), ClientError> {
        self.commit_at(Durability::Disk).await.map(drop)
    }

    /// Commits, and returns when the changes have reached `durability`. The outcome of an early
    /// acknowledgement is known later (R28).
    #[inline(never)]
    pub(crate) fn commit_at(
        self,
        durability: Durability,
    ) -> BoxFuture<'static, Result<Option<EarlyWrite>, ClientError>> {
        self.commit_open(durability).boxed()
    }

    async fn commit_open(mut self, durability: Durability) -> Result<Option<EarlyWrite>, ClientError> {
        add(&self.core.counters.statements, 1);
        let result = match std::mem::replace(&mut self.state, TransactionState::Failed) {
            TransactionState::Idle => Ok(None),
            TransactionState::Failed => Err(failed_before()),
            TransactionState::Open(open) => commit_everywhere(&self.core, open, self.id, durability).await,
        };
        add(&self.core.counters.failures, result.is_err().into());
        result
    }

    /// Rolls back. Nothing of the transaction takes effect, even if the shard cannot be reached.
    pub async fn rollback(mut self) {
        if let TransactionState::Open(open) = std::mem::replace(&mut self.state, TransactionState::Failed) {
            let deadline_ms = self.core.now_ms() + self.core.config.statement_timeout_ms;
            join_all(open.into_iter().map(|open| open.roll_back(&self.core, deadline_ms))).await;
        }
    }
}

pub(crate) fn failed_before() -> ClientError {
    let error = SqlError::new(codes::IN_FAILED_TRANSACTION, "a statement of this transaction has failed");
    ClientError::Sql(error.hint("Nothing of it has taken effect. Roll it back and begin another."))
}
