//! A transaction of pass-through statements: texts that one shard's PostgreSQL runs unchanged.
//!
//! The caller declares the tables and keys that each step can touch. The first step chooses the
//! shard, unless the caller has, and all steps must lie there. The transaction has a connection of
//! its own, because the rows of its statements arrive as streams that a slow reader holds up.
//!
//! It promises what [`super::handle`] promises: nothing lasts before the commit, so the first step
//! is repeated freely until it has an answer; a commit whose answer is lost is asked about under
//! the same id.
//!
//! A user's transaction has one of these at each shard where it is open; see `sharded`.

use super::commit::commit;
use super::open::{OpenTransaction, several_shards};
use super::recommit::FirstChange;
use crate::core::ClientCore;
use crate::deliver::{Detour, ask_shard, no_route, pause};
use crate::error::ClientError;
use crate::exchange::{exchange, failure_of};
use crate::execute::count;
use crate::payload::Payload;
use crate::reply::{ReplicaReply, unexpected};
use crate::retry::{Attempts, Repeat, RetryStep, in_transaction};
use crate::routing::shard_of_tables;
use crate::stats::add;
use evenkeel_protocol::pass_through::{
    PassThroughBegin, PassThroughEnd, PassThroughItem, PassThroughRequest, PassThroughStep, TableUse,
};
use evenkeel_protocol::shard::{Durability, ShardReply, ShardRequest};
use evenkeel_protocol::{ShardId, TxnId};
use evenkeel_rpc::ReplyStream;
use evenkeel_sql::Touches;
use std::sync::Arc;

/// See the module. Dropped before its end, it is rolled back.
pub struct PassThroughTransaction {
    core: Arc<ClientCore>,
    begin: PassThroughBegin,
    id: TxnId,
    /// The shard that the caller has chosen, if it has.
    bound: Option<ShardId>,
    open: Option<Box<OpenTransaction>>,
}

impl PassThroughTransaction {
    pub(crate) fn new(core: Arc<ClientCore>, begin: PassThroughBegin) -> PassThroughTransaction {
        let id = core.new_id();
        PassThroughTransaction { core, begin, id, bound: None, open: None }
    }

    /// One that begins at this shard or not at all: if the shard does not own the keys of the first
    /// step, that ends in [`ClientError::Rerun`], and the routes have to be looked up again.
    pub(crate) fn at(core: Arc<ClientCore>, begin: PassThroughBegin, shard: ShardId) -> PassThroughTransaction {
        PassThroughTransaction { bound: Some(shard), ..PassThroughTransaction::new(core, begin) }
    }

    /// The shard, once the first step has been answered.
    pub fn shard(&self) -> Option<ShardId> {
        self.open.as_ref().map(|open| open.shard)
    }

    /// Sends a step, and waits for the first item of its answer. After an error of
    /// [`ClientError::Sql`] the transaction is still open, as PostgreSQL's is: it can be rolled
    /// back to a savepoint. After any other error it has ended.
    ///
    /// # Errors
    /// As [`crate::Client::execute`]. 0A000 if the tables lie on several shards.
    pub async fn step(
        &mut self,
        tables: Vec<TableUse>,
        step: PassThroughStep,
    ) -> Result<PassThroughReplies, ClientError> {
        add(&self.core.counters.statements, 1);
        let writes = tables.iter().any(|table| table.writes);
        let result = match &mut self.open {
            None => self.begin(tables, step).await,
            Some(open) => {
                let request = PassThroughRequest { transaction: open.number, begin: None, tables, step };
                further_step(&self.core, open, request).await
            }
        };
        if let Some(open) = &mut self.open {
            open.wrote |= writes;
        }
        match &result {
            Err(ClientError::Sql(_)) | Ok(_) => {}
            Err(_) => self.open = None,
        }
        add(&self.core.counters.failures, result.is_err().into());
        result
    }

    async fn begin(&mut self, tables: Vec<TableUse>, step: PassThroughStep) -> Result<PassThroughReplies, ClientError> {
        let core = &self.core;
        let started_ms = core.now_ms();
        let mut attempts = Attempts::new(Repeat::Free, started_ms, core.config.statement_timeout_ms)
            .patient_for(started_ms, core.config.overload_patience_ms);
        let request = PassThroughRequest { transaction: 0, begin: Some(self.begin.clone()), tables, step };
        let delivered = match self.bound {
            Some(shard) => deliver_to(core, shard, &request, &mut attempts).await,
            None => deliver_to_one_shard(core, &request, &mut attempts).await,
        };
        count(core, &attempts);
        let ReplicaReply { reply, shard, replica, link, transaction: number, outcome, sent_ms: _ } = delivered?;
        let open = OpenTransaction {
            shard,
            replica,
            link,
            number,
            first: (Touches::Nothing, None),
            wrote: false,
            locked: false,
            changed: FirstChange::Unclear,
            ended: false,
        };
        self.open = Some(Box::new(open));
        PassThroughReplies::begun(reply, outcome, core.clone(), shard)
    }

    /// Commits. An error of [`ClientError::OutcomeUnknown`] leaves open whether the changes last;
    /// after any other error nothing of the transaction has taken effect.
    pub async fn commit(mut self) -> Result<(), ClientError> {
        match self.take_open() {
            None => Ok(()),
            Some(open) => commit(&self.core, open, self.id, Durability::Disk, Vec::new()).await.map(drop),
        }
    }

    /// Rolls back. Nothing of the transaction takes effect, even if the shard cannot be reached.
    pub async fn rollback(mut self) {
        if let Some(open) = self.take_open() {
            open.roll_back(&self.core, self.core.now_ms() + self.core.config.statement_timeout_ms).await;
        }
    }

    /// Takes the part at the shard, to end it together with the others.
    pub(super) fn take_open(&mut self) -> Option<OpenTransaction> {
        self.open.take().map(|open| *open)
    }
}

/// Has the first step answered by this shard.
async fn deliver_to(
    core: &ClientCore,
    shard: ShardId,
    request: &PassThroughRequest,
    attempts: &mut Attempts,
) -> Result<ReplicaReply, ClientError> {
    match ask_shard(core, shard, &Payload::BeginPassThrough(request), attempts).await {
        Ok(reply) => Ok(reply),
        Err(Detour::GiveUp(error)) => Err(error),
        Err(Detour::Reroute(_)) => Err(ClientError::rerun(format!("shard {shard} does not own all of these keys"))),
    }
}

/// Has the first step answered by the shard that owns all of its tables' keys.
async fn deliver_to_one_shard(
    core: &ClientCore,
    request: &PassThroughRequest,
    attempts: &mut Attempts,
) -> Result<ReplicaReply, ClientError> {
    let mut refreshed = false;
    loop {
        let found = shard_of_tables(&request.tables, &core.routes());
        let detour = match found {
            Ok(Some(shard)) => match ask_shard(core, shard, &Payload::BeginPassThrough(request), attempts).await {
                Ok(reply) => return Ok(reply),
                Err(detour) => detour,
            },
            Ok(None) => no_route(core, attempts).await,
            // A refusal must not be based on a table that is out of date.
            Err(_) if !refreshed => {
                refreshed = true;
                core.refresh_until(attempts.deadline_ms()).await;
                continue;
            }
            Err(refusal) => return Err(ClientError::Sql(refusal)),
        };
        match detour {
            Detour::GiveUp(error) => return Err(error),
            Detour::Reroute(_) => core.refresh_until(attempts.deadline_ms()).await,
        }
    }
}

async fn further_step(
    core: &Arc<ClientCore>,
    open: &mut OpenTransaction,
    request: PassThroughRequest,
) -> Result<PassThroughReplies, ClientError> {
    match shard_of_tables(&request.tables, &core.routes()) {
        Ok(Some(shard)) if shard == open.shard => {}
        // No table is touched, or the client does not know the route; the shard does.
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => return Err(several_shards()),
    }
    let request = ShardRequest::PassThrough(Box::new(request));
    let deadline_ms = core.now_ms() + core.config.stream_timeout_ms;
    loop {
        let failure = match exchange(core, &open.link, (open.shard, open.replica), &request, deadline_ms).await {
            Ok(answered) => {
                return PassThroughReplies::begun(answered.reply, answered.outcome, core.clone(), open.shard);
            }
            Err(failure) => failure,
        };
        let retry_until_ms = core.now_ms() + core.config.statement_timeout_ms;
        match in_transaction(&failure, core.now_ms(), retry_until_ms, evenkeel_host::random()) {
            RetryStep::GiveUp(error) => return Err(error),
            RetryStep::Same { wait_ms } => pause(wait_ms).await,
            _ => return Err(ClientError::rerun("the transaction was rolled back")),
        }
        add(&core.counters.retries, 1);
    }
}

/// The answer to a step, item by item. Dropped before its end, the shard cancels the statement.
pub struct PassThroughReplies {
    core: Arc<ClientCore>,
    shard: ShardId,
    first: Option<PassThroughItem>,
    /// `None` after the last item.
    stream: Option<ReplyStream<ShardReply>>,
}

impl PassThroughReplies {
    fn begun(
        reply: ShardReply,
        stream: Option<ReplyStream<ShardReply>>,
        core: Arc<ClientCore>,
        shard: ShardId,
    ) -> Result<PassThroughReplies, ClientError> {
        match reply {
            ShardReply::PassThrough(item) => Ok(PassThroughReplies { core, shard, first: Some(item), stream }),
            other => Err(unexpected(&other)),
        }
    }

    /// The next item; `None` after [`PassThroughItem::End`].
    ///
    /// # Errors
    /// The statement has failed after it had given rows ([`ClientError::Sql`]: the transaction is
    /// still open), or the transaction has ended with its connection.
    pub async fn next(&mut self) -> Result<Option<PassThroughItem>, ClientError> {
        let item = match (self.first.take(), &mut self.stream) {
            (Some(item), _) => item,
            (None, None) => return Ok(None),
            (None, Some(stream)) => match stream.next().await {
                Some(ShardReply::PassThrough(item)) => item,
                Some(ShardReply::Failed(failure)) => {
                    self.stream = None;
                    let failure = failure_of(&self.core, self.shard, failure);
                    return Err(match in_transaction(&failure, 0, 0, 0.0) {
                        RetryStep::GiveUp(error) => error,
                        _ => ClientError::rerun("the transaction was rolled back"),
                    });
                }
                Some(other) => {
                    self.stream = None;
                    return Err(unexpected(&other));
                }
                None => {
                    self.stream = None;
                    return Err(ClientError::rerun("the connection was lost in the middle of an answer"));
                }
            },
        };
        if let PassThroughItem::End(_) = item {
            self.stream = None;
        }
        Ok(Some(item))
    }

    /// Reads to the end and returns how the step ended, for steps whose rows do not matter.
    ///
    /// # Errors
    /// As [`PassThroughReplies::next`].
    pub async fn end(mut self) -> Result<PassThroughEnd, ClientError> {
        while let Some(item) = self.next().await? {
            if let PassThroughItem::End(end) = item {
                return Ok(end);
            }
        }
        Ok(PassThroughEnd::Done)
    }
}
