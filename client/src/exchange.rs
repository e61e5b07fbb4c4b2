//! One attempt: send a request to one replica and classify its reply.
//!
//! It owns nothing. It promises that no attempt outlives the statement's deadline, and that an
//! attempt at a silent leader ends when another replica leads.

use crate::core::ClientCore;
use crate::link::Link;
use crate::payload::{Payload, is_local, is_streamed};
use crate::reply::ReplicaReply;
use crate::retry::AttemptFailure;
use crate::stats::add;
use crate::who_leads::another_leads;
use evenkeel_protocol::error::codes;
use evenkeel_protocol::shard::{ShardReply, ShardRequest};
use evenkeel_protocol::{Failure, ShardId, SqlError};
use evenkeel_rpc::{ReplyStream, RpcError};
use futures::FutureExt;
use std::net::SocketAddr;
use std::time::Duration;

/// A `local` read leaves a replica that is silent for this long, in milliseconds: longer than the
/// replica takes to prove its staleness bound.
const LOCAL_SILENCE_MS: u64 = 500;

/// Connects to a replica and has it answer a request.
pub(crate) async fn attempt(
    core: &ClientCore,
    shard: ShardId,
    (replica, address): (u64, SocketAddr),
    payload: &Payload<'_>,
    deadline_ms: u64,
) -> Result<ReplicaReply, AttemptFailure> {
    let (connecting, deadline_ms) = match payload {
        // A statement of a user may take long to give its first row.
        Payload::BeginPassThrough(_) => (core.own_link(address).boxed(), core.now_ms() + core.config.stream_timeout_ms),
        _ => (core.link(address).boxed(), deadline_ms),
    };
    // Connecting has its own, shorter limit, and ends when another replica leads.
    let link = tokio::select! {
        biased;
        link = connecting => link.map_err(rpc_failure)?,
        leader = another_leads(core, shard, replica) => return Err(AttemptFailure::NotLeader(Some(leader))),
    };
    let (request, transaction) = payload.on(&link);
    let begins = matches!(payload, Payload::Begin { .. } | Payload::BeginPassThrough(_));
    let mut beginning = Beginning { link: link.clone(), transaction, kept: !begins };
    let reply = exchange(core, &link, (shard, replica), &request, deadline_ms).await?;
    beginning.kept = true;
    Ok(ReplicaReply { transaction, ..reply })
}

/// Sends a request to a replica on a connection and waits for the answer: until `deadline_ms`, or
/// until another replica leads. A `local` read, which another replica may answer as well, waits
/// only until this one has been silent for long.
pub(crate) async fn exchange(
    core: &ClientCore,
    link: &Link,
    (shard, replica): (ShardId, u64),
    request: &ShardRequest,
    deadline_ms: u64,
) -> Result<ReplicaReply, AttemptFailure> {
    let left = Duration::from_millis(deadline_ms.saturating_sub(core.now_ms()));
    let local = is_local(request);
    let silence = Duration::from_millis(core.config.silence_ms.max(LOCAL_SILENCE_MS));
    let sent_ms = core.now_ms();
    let (reply, outcome) = tokio::select! {
        biased;
        reply = first_reply(link, request) => reply.map_err(rpc_failure)?,
        leader = another_leads(core, shard, replica), if !local => {
            let reason = format!("replica {replica} of shard {shard} has been silent, and replica {leader} leads now");
            return Err(AttemptFailure::Deposed { reason, leader: Some(leader) });
        }
        () = evenkeel_host::sleep(silence), if local => {
            return Err(AttemptFailure::Lost(format!("replica {replica} of shard {shard} has been silent")));
        }
        () = evenkeel_host::sleep(left) => return Err(AttemptFailure::Expired),
    };
    core.observe((shard, replica), sent_ms, &reply);
    let reply = match reply {
        ShardReply::Early(reply) => ShardReply::Rows(reply),
        reply => reply,
    };
    // A replica that answers a `local` read need not lead.
    if !local && answers_as_leader(&reply) {
        core.leaders.answered(shard, replica);
    }
    match reply {
        ShardReply::Failed(failure) => Err(failure_of(core, shard, failure)),
        reply => Ok(ReplicaReply { reply, shard, replica, link: link.clone(), transaction: 0, sent_ms, outcome }),
    }
}

/// Whether only a leader gives this reply.
fn answers_as_leader(reply: &ShardReply) -> bool {
    match reply {
        ShardReply::Failed(failure) => matches!(failure, Failure::Sql(_) | Failure::Moved { .. }),
        _ => true,
    }
}

/// What a shard's refusal means for the statement. Redirects correct the routing table.
pub(crate) fn failure_of(core: &ClientCore, shard: ShardId, failure: Failure) -> AttemptFailure {
    match failure {
        Failure::Sql(error) => AttemptFailure::Sql(error),
        Failure::TooStale { .. } => AttemptFailure::TooStale(failure),
        Failure::NotLeader { leader } => AttemptFailure::NotLeader(leader),
        Failure::Moved { to, range } => {
            add(&core.counters.redirects, 1);
            AttemptFailure::Moved(core.routing.redirected(shard, to, range))
        }
        Failure::Busy { reason, retry_after_ms } => {
            AttemptFailure::Busy { reason, retry_after_ms: retry_after_ms.into() }
        }
        Failure::Overloaded { retry_after_ms } => AttemptFailure::Overloaded { retry_after_ms: retry_after_ms.into() },
        // Only a gateway names the version that it planned with. The same statement would fail
        // again: it has to be planned again.
        Failure::SchemaChanged { .. } => AttemptFailure::Sql(SqlError::new(codes::SCHEMA_CHANGED, failure.to_string())),
        Failure::OutcomeUnknown { reason } => AttemptFailure::Deposed { reason, leader: None },
    }
}

/// The first reply to a request, and the stream of further ones if more may follow.
async fn first_reply(
    link: &Link,
    request: &ShardRequest,
) -> Result<(ShardReply, Option<ReplyStream<ShardReply>>), RpcError> {
    if !is_streamed(request) {
        return Ok((link.call(request).await?, None));
    }
    let mut replies = link.stream(request).await?;
    match replies.next().await {
        Some(reply @ (ShardReply::Early(_) | ShardReply::PassThrough(_))) => Ok((reply, Some(replies))),
        Some(reply) => Ok((reply, None)),
        None => Err(RpcError::Lost("it ended without a reply".into())),
    }
}

/// A transaction whose first statement is in execution. If the statement fails or is cancelled, the
/// transaction is rolled back: its locks must not wait for the end of the connection.
struct Beginning {
    link: Link,
    transaction: u64,
    kept: bool,
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if !self.kept {
            roll_back(self.link.clone(), self.transaction);
        }
    }
}

/// Ends a transaction in the background.
pub(crate) fn roll_back(link: Link, transaction: u64) {
    if link.is_closed() {
        return;
    }
    // Outside of a runtime (the program is ending) the end of the connection rolls it back.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(async move { link.call(&ShardRequest::Rollback { transaction }).await }));
    }
}

fn rpc_failure(error: RpcError) -> AttemptFailure {
    match error {
        RpcError::Connect { .. } => AttemptFailure::NeverSent(error.to_string()),
        RpcError::Unsendable(reason) => AttemptFailure::Unsendable(reason),
        RpcError::Lost(_) | RpcError::TimedOut(_) => AttemptFailure::Lost(error.to_string()),
    }
}
