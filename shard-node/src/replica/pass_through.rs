//! Requests in users' own texts, answered by streams.
//!
//! Promises: a transaction whose first step was not begun is gone, so that its client can begin it
//! again elsewhere.

use super::connection_transactions::{ConnectionTransactions, Opened, no_longer_open};
use super::process::ReplicaProcess;
use crate::leader::item_stream::ItemStream;
use crate::leader::pass_through::StepError;
use evenkeel_protocol::Failure;
use evenkeel_protocol::pass_through::{PassThroughEnd, PassThroughItem, PassThroughRequest, PassThroughStep};
use evenkeel_protocol::shard::ShardReply;
use evenkeel_rpc::Replier;

/// Serves a request.
pub async fn serve(
    process: &ReplicaProcess,
    session: &ConnectionTransactions,
    request: &PassThroughRequest,
    mut replier: Replier<ShardReply>,
) {
    if request.step == PassThroughStep::Cancel {
        if let Some((_, handle)) = session.find(request.transaction) {
            handle.cancel();
        }
        return replier.reply(&ShardReply::PassThrough(PassThroughItem::End(PassThroughEnd::Done))).await;
    }
    let gone = replier.gone();
    let (leader, handle) = match find_or_begin(process, session, request).await {
        Ok(opened) => opened,
        Err(failure) => return replier.reply(&ShardReply::Failed(failure)).await,
    };
    let result = leader.step(&handle, request, &mut ItemStream::new(&mut replier), gone).await;
    let begun = request.begin.is_none() || !matches!(result, Err(StepError::NotExecuted(_)));
    if (!begun || matches!(result, Err(StepError::Gone)))
        && let Some((leader, handle)) = session.take(request.transaction)
    {
        leader.roll_back_transaction(&handle).await;
    }
    let reply = match result {
        Ok(end) => ShardReply::PassThrough(PassThroughItem::End(end)),
        Err(StepError::NotExecuted(failure) | StepError::Refused(failure) | StepError::Failed(failure)) => {
            ShardReply::Failed(failure)
        }
        Err(StepError::Gone) => ShardReply::Failed(no_longer_open()),
    };
    replier.reply(&reply).await;
}

async fn find_or_begin(
    process: &ReplicaProcess,
    session: &ConnectionTransactions,
    request: &PassThroughRequest,
) -> Result<Opened, Failure> {
    let begin = match (session.find(request.transaction), &request.begin) {
        (Some(open), _) => return Ok(open),
        (None, Some(begin)) => begin,
        (None, None) => return Err(no_longer_open()),
    };
    let leader = process.leader_soon().await?;
    let handle = leader.begin_pass_through(begin).await?;
    if let Err(why) = session.put(request.transaction, (leader.clone(), handle.clone())) {
        leader.roll_back_transaction(&handle).await;
        return Err(why.into());
    }
    Ok((leader, handle))
}
