//! A transaction of several statements, on one shard.
//!
//! It owns the transaction's place: a connection to one shard's leader, chosen by the first statement that touches a key.
//! It promises:
//!
//! - until the commit nothing of it can have taken effect, so whatever breaks it before is 40001, safe to run again;
//! - a commit whose answer was lost is asked about under the same id, at the shard where the transaction ran: if it took
//!   effect it is in that shard's log, and in its retry window, wherever the rows have moved since. It is never committed
//!   twice (R14, invariant 7). Only if the shard cannot be asked is it 08007;
//! - dropped, or given up in the middle of a statement, it is rolled back.
//!
//! A statement that touches no key before the shard is chosen (`SELECT 1`) runs by itself and chooses nothing.

use crate::error::ClientError;
use crate::exchange::{Answered, Delivered, Destination, Detour, Payload, Replied, pause, roll_back, unexpected};
use crate::execute::{Answer, Prepared};
use crate::levels::Levels;
use crate::pool::Link;
use crate::retry::{Attempts, Outcome, Repeat, Step, in_transaction};
use crate::router::{self, Across, NoTarget, Target};
use crate::session::Session;
use crate::settle::Unsettled;
use crate::statements::Statement;
use crate::{Client, stats};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{Durability, ReadLevel, ShardReply, ShardRequest, StatementRequest, TransactionOptions};
use evenkeel_protocol::{Key, ShardId, SqlError, TableId, TxnId, Value};
use evenkeel_sql::Touches;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;

/// A transaction. Dropped without [`Transaction::commit`], it is rolled back.
pub struct Transaction {
    client: Client,
    options: TransactionOptions,
    id: TxnId,
    state: State,
}

enum State {
    /// No statement has touched a key.
    Idle,
    /// On a shard.
    Open(Box<Open>),
    /// A statement failed; nothing of the transaction will take effect.
    Failed,
}

/// Where a transaction is open.
struct Open {
    shard: ShardId,
    replica: u64,
    link: Arc<Link>,
    number: u64,
    /// What its first statement touched; tells a range that has moved from a statement for another shard.
    anchor: (Touches, Option<TableId>),
    wrote: bool,
    /// The first key it has changed, if that is known: the answer to its commit travels with this key's range.
    written: Written,
    ended: bool,
}

/// What is known of the first key that a transaction has changed.
pub(crate) enum Written {
    /// It has changed none.
    Nothing,
    /// This one.
    Key(TableId, Key),
    /// One of several.
    Unclear,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            roll_back(self.link.clone(), self.number);
        }
    }
}

impl Open {
    /// A statement is about to be sent.
    fn sending(&mut self, statement: &Statement, touches: &Touches) {
        self.wrote |= statement.plan.writes() && *touches != Touches::Nothing;
    }

    /// A statement has been answered.
    fn answered(&mut self, statement: &Statement, touches: &Touches, affected: u64) {
        if affected == 0 || !statement.plan.writes() || !matches!(self.written, Written::Nothing) {
            return;
        }
        self.written = match (touches, statement.plan.table()) {
            (Touches::Keys(keys), Some(table)) if keys.len() == 1 => Written::Key(table, keys[0].clone()),
            _ => Written::Unclear,
        };
    }
}

impl Transaction {
    pub(crate) fn new(client: Client, options: TransactionOptions) -> Transaction {
        let id = client.session().new_id();
        Transaction { client, options, id, state: State::Idle }
    }

    /// Whether a statement of it has failed, so that it can only be rolled back.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed)
    }

    /// Something of it has failed that was not executed in it; nothing of it will take effect.
    pub(crate) fn fail(&mut self) {
        self.state = State::Failed;
    }

    /// Executes a statement in the transaction. After an error only [`Transaction::rollback`] is possible.
    pub async fn execute(&mut self, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        let session = self.client.session().clone();
        stats::add(&session.counters.statements, 1);
        let result = self.execute_inner(&session, sql, params).await;
        if result.is_err() {
            stats::add(&session.counters.failures, 1);
            self.state = State::Failed;
        }
        result
    }

    /// Boxed, as [`Transaction::commit_at`]: compiled here, not again by whoever awaits it.
    #[inline(never)]
    fn execute_inner<'a>(
        &'a mut self,
        session: &'a Session,
        sql: &'a str,
        params: &'a [Value],
    ) -> BoxFuture<'a, Result<Answer, ClientError>> {
        self.executed(session, sql, params).boxed()
    }

    async fn executed(&mut self, session: &Session, sql: &str, params: &[Value]) -> Result<Answer, ClientError> {
        let started_ms = session.now_ms();
        let deadline_ms = started_ms + session.config.statement_timeout_ms;
        if matches!(self.state, State::Failed) {
            return Err(failed_before());
        }
        let statement = match session.prepare(sql, deadline_ms).await? {
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
        // While a statement is under way the state says that it failed: so it stays if this future is dropped.
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle if touches == Touches::Nothing => {
                let (answer, _) = session.run(&statement, params, Levels::default(), started_ms).await?;
                self.state = State::Idle;
                Ok(answer)
            }
            State::Idle => {
                let (answer, open) = self.open(session, &statement, params, touches, started_ms).await?;
                self.state = State::Open(Box::new(open));
                Ok(answer)
            }
            State::Open(mut open) => {
                let request = self.request(&statement, params);
                let answer = go_on(session, &mut open, &statement, &touches, request, deadline_ms).await?;
                self.state = State::Open(open);
                Ok(answer)
            }
            State::Failed => Err(failed_before()),
        }
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

    /// Begins on the shard that the first statement touches. Nothing lasts until the commit, so it can be tried again
    /// freely.
    async fn open(
        &self,
        session: &Session,
        statement: &Statement,
        params: &[Value],
        touches: Touches,
        started_ms: u64,
    ) -> Result<(Answer, Open), ClientError> {
        let mut attempts = Attempts::new(Repeat::Free, started_ms, session.config.statement_timeout_ms)
            .patient_for(started_ms, session.config.overload_patience_ms);
        let across = Across::of(&statement.plan);
        let to = Destination { across, touches: &touches, table: statement.plan.table() };
        let request = self.request(statement, params);
        let payload = Payload::Begin { options: self.options, statement: &request };
        let delivered = session.deliver(to, &payload, &mut attempts).await;
        session.count(&attempts);
        let answered = match delivered? {
            Delivered::One(answered) => answered,
            Delivered::RangeByRange(_) => return Err(several_shards()),
        };
        let Answered { reply, shard, replica, link, transaction, .. } = answered;
        let anchor = (touches.clone(), statement.plan.table());
        let written = Written::Nothing;
        let mut open = Open { shard, replica, link, number: transaction, anchor, wrote: false, written, ended: false };
        open.sending(statement, &touches);
        match reply {
            ShardReply::Rows(reply) => {
                open.answered(statement, &touches, reply.affected);
                Ok((Answer::new(reply, shard, attempts.retries()), open))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Makes the transaction's changes last. An error of [`ClientError::OutcomeUnknown`] leaves open whether they do; after any
    /// other nothing of it has taken effect.
    pub async fn commit(self) -> Result<(), ClientError> {
        self.commit_at(Durability::Disk).await.map(drop)
    }

    /// The same, answered when it has reached `durability`: what becomes of it then is known later (R28).
    #[inline(never)]
    pub(crate) fn commit_at(
        self,
        durability: Durability,
    ) -> BoxFuture<'static, Result<Option<Unsettled>, ClientError>> {
        self.committed_at(durability).boxed()
    }

    async fn committed_at(mut self, durability: Durability) -> Result<Option<Unsettled>, ClientError> {
        let session = self.client.session().clone();
        stats::add(&session.counters.statements, 1);
        let result = match std::mem::replace(&mut self.state, State::Failed) {
            State::Idle => Ok(None),
            State::Failed => Err(failed_before()),
            State::Open(open) => commit(&session, *open, self.id, durability).await,
        };
        stats::add(&session.counters.failures, result.is_err().into());
        result
    }

    /// Undoes everything. Whether the shard can be reached or not, nothing of the transaction takes effect.
    pub async fn rollback(mut self) {
        let State::Open(mut open) = std::mem::replace(&mut self.state, State::Failed) else { return };
        let session = self.client.session();
        let request = ShardRequest::Rollback { transaction: open.number };
        let deadline_ms = session.now_ms() + session.config.statement_timeout_ms;
        let answered = session.call(&open.link, open.shard, open.replica, &request, deadline_ms).await;
        open.ended = answered.is_ok();
    }
}

/// Executes a further statement where the transaction is open.
async fn go_on(
    session: &Session,
    open: &mut Open,
    statement: &Statement,
    touches: &Touches,
    request: StatementRequest,
    deadline_ms: u64,
) -> Result<Answer, ClientError> {
    let to = Destination { across: Across::of(&statement.plan), touches, table: statement.plan.table() };
    if *touches != Touches::Nothing {
        stays(session, open, to, deadline_ms).await?;
    }
    open.sending(statement, touches);
    let request = ShardRequest::InTransaction { transaction: open.number, begin: None, statement: request };
    let mut retries = 0;
    loop {
        let outcome = match session.call(&open.link, open.shard, open.replica, &request, deadline_ms).await {
            Ok(ShardReply::Rows(reply)) => {
                open.answered(statement, touches, reply.affected);
                return Ok(Answer::new(reply, open.shard, retries));
            }
            Ok(other) => return Err(unexpected(&other)),
            Err(outcome) => outcome,
        };
        match in_transaction(&outcome, session.now_ms(), deadline_ms, rand::random()) {
            Step::GiveUp(error) => return Err(error),
            Step::Same { wait_ms } => pause(wait_ms).await,
            _ => return Err(ClientError::rerun("the transaction was rolled back")),
        }
        retries += 1;
        stats::add(&session.counters.retries, 1);
    }
}

/// Whether a statement goes to the shard where the transaction is open: an error says what else.
async fn stays(session: &Session, open: &Open, to: Destination<'_>, deadline_ms: u64) -> Result<(), ClientError> {
    for refresh_first in [false, true] {
        if refresh_first {
            // The table that says so may be out of date.
            session.refresh_until(deadline_ms).await;
        }
        let routes = session.routes.current();
        let whole = |to: Destination<'_>| router::route(to.across, to.touches, to.table, &routes);
        let anchor = Destination { touches: &open.anchor.0, table: open.anchor.1, ..to };
        match whole(to) {
            Ok(Target::OneShard(shard)) if shard == open.shard => return Ok(()),
            // Not known here: the shard knows.
            Err(NoTarget::Unknown) => return Ok(()),
            _ if !refresh_first => {}
            _ if whole(anchor) != Ok(Target::OneShard(open.shard)) => {
                return Err(ClientError::rerun("a range has moved while the transaction was open"));
            }
            Err(NoTarget::Refused(error)) => return Err(ClientError::Sql(error)),
            Ok(_) => return Err(several_shards()),
        }
    }
    Ok(())
}

/// Commits, and finds out what became of it if the answer is lost.
async fn commit(
    session: &Session,
    mut open: Open,
    id: TxnId,
    durability: Durability,
) -> Result<Option<Unsettled>, ClientError> {
    // Shards count an id's age from when its outcome could first become unknown, which is now, however long the transaction has
    // been open.
    let id = TxnId { first_sent_ms: session.unix_ms(), ..id };
    let started_ms = session.now_ms();
    let deadline_ms = started_ms + session.config.statement_timeout_ms;
    let durability = if open.wrote { durability } else { Durability::Disk };
    let request = ShardRequest::Commit { transaction: open.number, id, key: None, durability };
    // From here on the commit may be under way, and a rollback must not get between it and its outcome: not even if this
    // future is dropped.
    open.ended = true;
    let lost = loop {
        let (shard, replica) = (open.shard, open.replica);
        let outcome = match session.exchange(&open.link, shard, replica, &request, deadline_ms).await {
            Ok(Replied { rest: Some(rest), .. }) => {
                return Ok(Some(Unsettled { rest, shard, replica, id, durability }));
            }
            Ok(Replied { reply: ShardReply::Done, .. }) => return Ok(None),
            Ok(Replied { reply, .. }) => return Err(unexpected(&reply)),
            Err(outcome) if outcome.is_unknown() => break outcome,
            Err(outcome) => outcome,
        };
        match in_transaction(&outcome, session.now_ms(), deadline_ms, rand::random()) {
            Step::Same { wait_ms } => pause(wait_ms).await,
            Step::GiveUp(error) => {
                // The shard has said that the commit did not happen.
                roll_back(open.link.clone(), open.number);
                return Err(error);
            }
            _ => return Err(ClientError::rerun("the transaction was rolled back")),
        }
    };
    if !open.wrote {
        return Err(ClientError::rerun("the connection was lost before the commit was answered"));
    }
    let mut attempts = Attempts::new(Repeat::Commit, started_ms, session.config.statement_timeout_ms).after_unknown();
    if lost == Outcome::Expired {
        return Err(attempts.expired(&crate::retry::reason(&lost)));
    }
    let result = ask_again(session, open.shard, &open.written, id, &mut attempts).await;
    session.count(&attempts);
    result.map(|()| None)
}

/// Sends a commit again, on a new connection. The shard where the transaction ran has the answer in its own window, whatever has
/// moved since. Only if that shard has been removed, all of its ranges having moved away with their answers, is the owner
/// of the key asked that the answer travels with.
pub(crate) async fn ask_again(
    session: &Session,
    shard: ShardId,
    written: &Written,
    id: TxnId,
    attempts: &mut Attempts,
) -> Result<(), ClientError> {
    let reply = loop {
        let is_there = session.routes.current().shard(shard).is_some();
        let asked = match written {
            Written::Key(table, key) if !is_there => {
                let touches = Touches::Keys(vec![key.clone()]);
                let to = Destination { across: Across::Whole, touches: &touches, table: Some(*table) };
                let payload = Payload::Recommit { id, key: Some((*table, key.clone())) };
                session.deliver(to, &payload, attempts).await.map_err(Detour::GiveUp)
            }
            _ => {
                let payload = Payload::Recommit { id, key: None };
                session.at_shard(shard, &payload, attempts).await.map(Delivered::One)
            }
        };
        match asked {
            Ok(Delivered::One(answered)) => break Ok(answered.reply),
            Ok(Delivered::RangeByRange(_)) | Err(Detour::Reroute(_)) => {}
            Err(Detour::GiveUp(error)) => break Err(error),
        }
    };
    match reply {
        Ok(ShardReply::Done) => Ok(()),
        Ok(other) => Err(unexpected(&other)),
        // The shard knows of no such transaction, neither open nor committed.
        Err(ClientError::Sql(error)) if error.code == codes::NO_TRANSACTION => {
            Err(ClientError::rerun("the transaction was rolled back when its connection was lost"))
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn failed_before() -> ClientError {
    let error = SqlError::new(codes::IN_FAILED_TRANSACTION, "a statement of this transaction has failed");
    ClientError::Sql(error.hint("Nothing of it has taken effect. Roll it back and begin another."))
}

fn several_shards() -> ClientError {
    ClientError::Sql(SqlError::unsupported(
        "this transaction touches keys on several shards",
        "Transactions across shards are not supported yet: use one transaction per shard's keys.",
    ))
}
