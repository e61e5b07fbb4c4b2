//! An open transaction: its place on a shard, and the statements executed there.

use super::recommit::FirstChange;
use crate::answer::Answer;
use crate::core::ClientCore;
use crate::deliver::{Delivery, Destination, Detour, ask_shard, deliver, pause};
use crate::error::ClientError;
use crate::exchange::{exchange, roll_back};
use crate::execute::count;
use crate::link::Link;
use crate::payload::Payload;
use crate::reply::{ReplicaReply, unexpected};
use crate::retry::{Attempts, Repeat, RetryStep, in_transaction};
use crate::routing::{self, Across, NoTarget, Statement, Target};
use crate::stats::add;
use evenkeel_protocol::shard::{ShardReply, ShardRequest, StatementRequest, TransactionOptions};
use evenkeel_protocol::{ShardId, SqlError, TableId};
use evenkeel_sql::Touches;

/// The place of an open transaction, and its changes so far. Dropped before its end, the
/// transaction is rolled back.
pub(super) struct OpenTransaction {
    pub(super) shard: ShardId,
    pub(super) replica: u64,
    pub(super) link: Link,
    /// The transaction's number on the connection.
    pub(super) number: u64,
    /// The keys of the first statement. If they lie elsewhere now, the range has moved, and the
    /// transaction has ended here.
    pub(super) first: (Touches, Option<TableId>),
    pub(super) wrote: bool,
    /// Whether rows were locked that were not written.
    pub(super) locked: bool,
    pub(super) changed: FirstChange,
    /// Whether no rollback is needed.
    pub(super) ended: bool,
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        if !self.ended {
            roll_back(self.link.clone(), self.number);
        }
    }
}

impl OpenTransaction {
    /// Opens a transaction on the shard that the first statement touches. Nothing lasts until the
    /// commit, so attempts are repeated freely.
    pub(super) async fn begin(
        core: &ClientCore,
        options: TransactionOptions,
        statement: &Statement,
        touches: Touches,
        request: StatementRequest,
        started_ms: u64,
    ) -> Result<(Answer, OpenTransaction), ClientError> {
        let mut attempts = Attempts::new(Repeat::Free, started_ms, core.config.statement_timeout_ms)
            .patient_for(started_ms, core.config.overload_patience_ms);
        let across = Across::of(&statement.plan);
        let table = statement.plan.table();
        let to = Destination { across, touches: &touches, table };
        let payload = Payload::Begin { options, statement: &request };
        let delivered = deliver(core, to, &payload, &mut attempts).await;
        count(core, &attempts);
        let Delivery::Reply(reply) = delivered? else { return Err(several_shards()) };
        OpenTransaction::begun(reply, &attempts, statement, &touches)
    }

    /// Opens a transaction that is open elsewhere on this shard, too. `None` if the shard does not
    /// own the keys.
    pub(super) async fn join(
        core: &ClientCore,
        shard: ShardId,
        options: TransactionOptions,
        statement: &Statement,
        touches: &Touches,
        request: &StatementRequest,
        attempts: &mut Attempts,
    ) -> Result<Option<(Answer, OpenTransaction)>, ClientError> {
        let payload = Payload::Begin { options, statement: request };
        match ask_shard(core, shard, &payload, attempts).await {
            Ok(reply) => OpenTransaction::begun(reply, attempts, statement, touches).map(Some),
            Err(Detour::Reroute(_)) => Ok(None),
            Err(Detour::GiveUp(error)) => Err(error),
        }
    }

    fn begun(
        reply: ReplicaReply,
        attempts: &Attempts,
        statement: &Statement,
        touches: &Touches,
    ) -> Result<(Answer, OpenTransaction), ClientError> {
        let ReplicaReply { reply, shard, replica, link, transaction: number, .. } = reply;
        let changed = FirstChange::None;
        let first = (touches.clone(), statement.plan.table());
        let mut open =
            OpenTransaction { shard, replica, link, number, first, wrote: false, locked: false, changed, ended: false };
        open.sending(statement, touches);
        match reply {
            ShardReply::Rows(reply) => {
                open.answered(statement, touches, reply.affected);
                Ok((Answer::new(reply, shard, attempts.retries()), open))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Executes a further statement.
    pub(super) async fn execute(
        &mut self,
        core: &ClientCore,
        statement: &Statement,
        touches: &Touches,
        request: StatementRequest,
        deadline_ms: u64,
    ) -> Result<Answer, ClientError> {
        self.sending(statement, touches);
        let request = ShardRequest::InTransaction { transaction: self.number, begin: None, statement: request };
        let mut retries = 0;
        loop {
            let failure = match exchange(core, &self.link, (self.shard, self.replica), &request, deadline_ms).await {
                Ok(ReplicaReply { reply: ShardReply::Rows(reply), .. }) => {
                    self.answered(statement, touches, reply.affected);
                    return Ok(Answer::new(reply, self.shard, retries));
                }
                Ok(other) => return Err(unexpected(&other.reply)),
                Err(failure) => failure,
            };
            match in_transaction(&failure, core.now_ms(), deadline_ms, evenkeel_host::random()) {
                RetryStep::GiveUp(error) => return Err(error),
                RetryStep::Same { wait_ms } => pause(wait_ms).await,
                _ => return Err(ClientError::rerun("the transaction was rolled back")),
            }
            retries += 1;
            add(&core.counters.retries, 1);
        }
    }

    /// Whether the keys of the first statement lie on another shard, as far as the client knows.
    pub(super) fn has_moved(&self, core: &ClientCore) -> bool {
        let (touches, table) = &self.first;
        let routed = routing::route(Across::Whole, touches, *table, &core.routes());
        *touches != Touches::Nothing && routed.is_ok_and(|target| target != Target::OneShard(self.shard))
    }

    /// Rolls back, and waits for that until `deadline_ms`.
    pub(super) async fn roll_back(mut self, core: &ClientCore, deadline_ms: u64) {
        let request = ShardRequest::Rollback { transaction: self.number };
        let answered = exchange(core, &self.link, (self.shard, self.replica), &request, deadline_ms).await;
        self.ended = answered.is_ok();
    }

    /// Records that a statement is about to be sent.
    fn sending(&mut self, statement: &Statement, touches: &Touches) {
        self.wrote |= statement.plan.writes() && *touches != Touches::Nothing;
        self.locked |= statement.plan.locks();
    }

    /// Records that a statement has been answered.
    fn answered(&mut self, statement: &Statement, touches: &Touches, affected: u64) {
        if affected == 0 || !statement.plan.writes() || !matches!(self.changed, FirstChange::None) {
            return;
        }
        self.changed = match (touches, statement.plan.table()) {
            (Touches::Keys(keys), Some(table)) if keys.len() == 1 => FirstChange::Key(table, keys[0].clone()),
            _ => FirstChange::Unclear,
        };
    }
}

/// The shard that owns the keys of a transaction's statement. `None` if the client does not know;
/// then the shard does.
///
/// # Errors
/// The keys lie on several shards.
pub(super) async fn shard_of(
    core: &ClientCore,
    statement: &Statement,
    touches: &Touches,
    deadline_ms: u64,
) -> Result<Option<ShardId>, ClientError> {
    let across = Across::of(&statement.plan);
    for refresh_first in [false, true] {
        if refresh_first {
            // A refusal must not be based on a table that is out of date.
            core.refresh_until(deadline_ms).await;
        }
        match routing::route(across, touches, statement.plan.table(), &core.routes()) {
            Ok(Target::OneShard(shard)) => return Ok(Some(shard)),
            Err(NoTarget::Unknown) => return Ok(None),
            Err(NoTarget::Refused(_)) | Ok(Target::RangeByRange(_)) if !refresh_first => {}
            Err(NoTarget::Refused(error)) => return Err(ClientError::Sql(error)),
            Ok(Target::RangeByRange(_)) => return Err(several_shards()),
        }
    }
    Ok(None)
}

pub(super) fn several_shards() -> ClientError {
    ClientError::Sql(SqlError::unsupported(
        "a statement of a transaction touches keys on several shards",
        "Use one statement for each shard's keys.",
    ))
}
