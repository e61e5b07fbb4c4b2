//! The commit of a transaction that is open on several shards (R26).
//!
//! 1. Every shard where it wrote or locked rows, but one, makes its part durable without committing
//!    it ([`ShardRequest::Prepare`]).
//! 2. The one commits as any transaction does. Its log thereby decides for all.
//! 3. The others learn of it, and the caller is answered when all of them have committed.
//!
//! If this client goes in between, the shards ask the deciding one themselves. A commit whose
//! answer is lost is asked about as any other (`recommit`).
//!
//! It promises: the transaction is committed on all of its shards or on none. Where it is open on
//! one shard only, or has written on one only, nothing of this costs anything.
//!
//! Not done: the keys of rows that are only locked are not among the prepared changes. Such a lock
//! is lost if the shard's leader changes between the phases.

use super::commit::commit;
use super::open::OpenTransaction;
use super::resolve::EarlyWrite;
use crate::core::ClientCore;
use crate::deliver::{Detour, ask_shard, pause};
use crate::error::ClientError;
use crate::exchange::exchange;
use crate::payload::Payload;
use crate::reply::unexpected;
use crate::retry::{Attempts, Repeat, RetryStep, in_transaction};
use evenkeel_host::{Bug, deliberate};
use evenkeel_protocol::error::codes;
use evenkeel_protocol::routing::ShardInfo;
use evenkeel_protocol::shard::{Durability, ShardReply, ShardRequest};
use evenkeel_protocol::{ShardId, SqlError, TxnId};
use futures::future::join_all;
use std::sync::Arc;

/// How long the shards may take to prepare a transaction, in milliseconds.
const PREPARE_MS: u64 = 5_000;

/// Commits a transaction at the shards where it is open.
pub(super) async fn commit_everywhere(
    core: &Arc<ClientCore>,
    open: Vec<OpenTransaction>,
    id: TxnId,
    durability: Durability,
) -> Result<Option<EarlyWrite>, ClientError> {
    // Those that have only read end when they are dropped. The locks of the others are kept until
    // the transaction is decided.
    let (mut participants, mut readers): (Vec<_>, Vec<_>) =
        open.into_iter().partition(|open| open.wrote || open.locked);
    let Some(decider) = (0..participants.len()).find(|at| participants[*at].wrote) else {
        // Whether what was read, and locked, held until now, each shard says for itself.
        participants.append(&mut readers);
        let each = participants.into_iter().map(|open| commit(core, open, id, Durability::Disk, Vec::new()));
        let ended: Result<Vec<_>, ClientError> = join_all(each).await.into_iter().collect();
        return ended.map(|_| None);
    };
    let decider = participants.swap_remove(decider);
    if participants.is_empty() {
        return commit(core, decider, id, durability, Vec::new()).await;
    }
    // The age of an id counts from here, as for any commit.
    let id = TxnId { first_sent_ms: core.unix_ms(), ..id };
    let infos = infos(core, &decider, &participants)?;
    prepare_all(core, &mut participants, id, &infos[0]).await?;
    let committed = commit(core, decider, id, Durability::Disk, infos[1..].to_vec()).await;
    match committed {
        Ok(_) => resolve_all(core, participants, Resolve { id, committed: true }).await.map(|()| None),
        // The shards find out.
        Err(error @ ClientError::OutcomeUnknown(_)) => Err(error),
        Err(error) => {
            tokio::spawn(resolve_in_background(core.clone(), participants, id));
            Err(error)
        }
    }
}

/// The outcome, as the participants learn it.
#[derive(Clone, Copy)]
struct Resolve {
    id: TxnId,
    committed: bool,
}

/// Where the shards are reached: the deciding one first, then the others.
fn infos(
    core: &ClientCore,
    decider: &OpenTransaction,
    participants: &[OpenTransaction],
) -> Result<Vec<ShardInfo>, ClientError> {
    let routes = core.routes();
    let info = |shard: ShardId| {
        routes.shard(shard).cloned().ok_or_else(|| ClientError::rerun(format!("shard {shard} is not known any more")))
    };
    std::iter::once(decider).chain(participants).map(|open| info(open.shard)).collect()
}

/// Prepares the transaction at all participants.
///
/// # Errors
/// One has not prepared it. Then all learn that it is not committed.
async fn prepare_all(
    core: &Arc<ClientCore>,
    participants: &mut Vec<OpenTransaction>,
    id: TxnId,
    decider: &ShardInfo,
) -> Result<(), ClientError> {
    if deliberate(Bug::DecidedTooSoon) {
        return Ok(());
    }
    let deadline_ms = core.now_ms() + PREPARE_MS.min(core.config.statement_timeout_ms);
    let each = participants.iter_mut().map(|open| prepare(core, open, id, decider, deadline_ms));
    let prepared: Result<Vec<()>, ClientError> = join_all(each).await.into_iter().collect();
    let Err(error) = prepared else { return Ok(()) };
    tokio::spawn(resolve_in_background(core.clone(), std::mem::take(participants), id));
    Err(match error {
        // Nothing has been decided, so that nothing will take effect.
        ClientError::OutcomeUnknown(error) => ClientError::rerun(error.message),
        error => error,
    })
}

async fn prepare(
    core: &ClientCore,
    open: &mut OpenTransaction,
    id: TxnId,
    decider: &ShardInfo,
    deadline_ms: u64,
) -> Result<(), ClientError> {
    let request = ShardRequest::Prepare { transaction: open.number, id, decider: decider.clone() };
    // From here on it may be prepared, and is ended by its resolution.
    open.ended = true;
    loop {
        let failure = match exchange(core, &open.link, (open.shard, open.replica), &request, deadline_ms).await {
            Ok(answered) => match answered.reply {
                ShardReply::Done => return Ok(()),
                other => return Err(unexpected(&other)),
            },
            Err(failure) => failure,
        };
        match in_transaction(&failure, core.now_ms(), deadline_ms, evenkeel_host::random()) {
            RetryStep::Same { wait_ms } => pause(wait_ms).await,
            RetryStep::GiveUp(error) => return Err(error),
            _ => return Err(ClientError::rerun("the transaction was rolled back")),
        }
    }
}

/// Tells all participants of the decision, and waits until each has carried it out.
async fn resolve_all(
    core: &Arc<ClientCore>,
    participants: Vec<OpenTransaction>,
    decision: Resolve,
) -> Result<(), ClientError> {
    // In a task of its own: the shards wait for it even if the caller does not.
    let core = core.clone();
    let told = tokio::spawn(async move {
        let each = participants.iter().map(|open| resolve(&core, open, decision));
        join_all(each).await.into_iter().collect::<Result<Vec<()>, ClientError>>()
    });
    if deliberate(Bug::AnsweredBeforeResolved) {
        return Ok(());
    }
    let Ok(told) = told.await else {
        return Err(unconfirmed("the task that told the shards has ended"));
    };
    told.map(drop).map_err(|error| unconfirmed(&error.to_string()))
}

/// The transaction is not committed: the participants learn it, and nobody waits for them.
async fn resolve_in_background(core: Arc<ClientCore>, participants: Vec<OpenTransaction>, id: TxnId) {
    let each = participants.iter().map(|open| resolve(&core, open, Resolve { id, committed: false }));
    // One that is not reached asks the deciding shard.
    drop(join_all(each).await);
}

async fn resolve(core: &ClientCore, open: &OpenTransaction, decision: Resolve) -> Result<(), ClientError> {
    let request = ShardRequest::Resolve { id: decision.id, committed: decision.committed };
    let deadline_ms = core.now_ms() + core.config.statement_timeout_ms;
    // On the connection where it was prepared; then wherever the shard's leader is.
    if let Ok(answered) = exchange(core, &open.link, (open.shard, open.replica), &request, deadline_ms).await
        && answered.reply == ShardReply::Done
    {
        return Ok(());
    }
    let mut attempts = Attempts::new(Repeat::Free, core.now_ms(), core.config.statement_timeout_ms);
    loop {
        match ask_shard(core, open.shard, &Payload::Fixed(&request), &mut attempts).await {
            Ok(answered) if answered.reply == ShardReply::Done => return Ok(()),
            Ok(answered) => return Err(unexpected(&answered.reply)),
            Err(Detour::Reroute(_)) => {}
            Err(Detour::GiveUp(error)) => return Err(error),
        }
    }
}

fn unconfirmed(why: &str) -> ClientError {
    let message = format!("the transaction is committed, and a shard has not confirmed its part in time: {why}");
    ClientError::OutcomeUnknown(
        SqlError::new(codes::OUTCOME_UNKNOWN, message).hint("Its changes on that shard become visible later."),
    )
}
