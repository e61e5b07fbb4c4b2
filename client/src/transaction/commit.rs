//! The commit of a transaction.

use super::open::OpenTransaction;
use super::recommit::recommit;
use super::resolve::EarlyWrite;
use crate::core::ClientCore;
use crate::deliver::pause;
use crate::error::ClientError;
use crate::exchange::{exchange, roll_back};
use crate::execute::count;
use crate::reply::unexpected;
use crate::retry::{AttemptFailure, Attempts, Repeat, RetryStep, in_transaction, reason};
use evenkeel_protocol::TxnId;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{Durability, ShardReply, ShardRequest};

/// Commits at one shard, and finds out the outcome if the answer is lost. The `participants` have
/// prepared it, and this commit decides for them.
pub(super) async fn commit(
    core: &ClientCore,
    mut open: OpenTransaction,
    id: TxnId,
    durability: Durability,
    participants: Vec<ShardInfo>,
) -> Result<Option<EarlyWrite>, ClientError> {
    // Shards count an id's age from the time at which its outcome could first become unknown. That
    // is now, however long the transaction has been open.
    let id = if participants.is_empty() { TxnId { first_sent_ms: core.unix_ms(), ..id } } else { id };
    let started_ms = core.now_ms();
    let deadline_ms = started_ms + core.config.statement_timeout_ms;
    let durability = if open.wrote { durability } else { Durability::Disk };
    let decides = !participants.is_empty();
    let request = ShardRequest::Commit { transaction: open.number, id, key: None, durability, participants };
    // From here on the commit may be in execution. A rollback must not get between it and its
    // outcome, even if this future is dropped.
    open.ended = true;
    let lost = loop {
        let failure = match exchange(core, &open.link, (open.shard, open.replica), &request, deadline_ms).await {
            Ok(reply) => match EarlyWrite::split(reply, id, durability) {
                (_, Some(early)) => return Ok(Some(early)),
                (ShardReply::Done, None) => return Ok(None),
                (other, None) => return Err(unexpected(&other)),
            },
            Err(failure) if failure.is_unknown() => break failure,
            Err(failure) => failure,
        };
        match in_transaction(&failure, core.now_ms(), deadline_ms, evenkeel_host::random()) {
            RetryStep::Same { wait_ms } => pause(wait_ms).await,
            RetryStep::GiveUp(error) => {
                // The shard has said that the commit did not happen.
                roll_back(open.link.clone(), open.number);
                return Err(error);
            }
            _ => return Err(ClientError::rerun("the transaction was rolled back")),
        }
    };
    if !open.wrote && !decides {
        return Err(ClientError::rerun("the connection was lost before the commit was answered"));
    }
    let mut attempts = Attempts::new(Repeat::Commit, started_ms, core.config.statement_timeout_ms).after_unknown();
    if lost == AttemptFailure::Expired {
        return Err(attempts.expired(&reason(&lost)));
    }
    let result = recommit(core, open.shard, &open.changed, id, &mut attempts).await;
    count(core, &attempts);
    result.map(|()| None)
}
