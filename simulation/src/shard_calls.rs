//! Requests of an administrator to the leaders of shards, which are searched as
//! [`evenkeel_rpc::group`] describes.

use evenkeel_protocol::Failure;
use evenkeel_protocol::shard::{ControlReply, ControlRequest, Inspection, ShardReply, ShardRequest};
use evenkeel_rpc::Pool;
use evenkeel_rpc::group::{Addresses, Group, GroupProtocol, Patience, ReplyMeaning};
use std::sync::Arc;
use std::time::Duration;

/// How long connecting to a replica may take, in milliseconds.
const CONNECT_MS: u64 = 500;
/// How long one replica may take to answer, and how long a search goes on, in milliseconds.
const ATTEMPT_MS: u64 = 2_000;
const TOTAL_MS: u64 = 8_000;

/// The requests of administrators: only a leader's answer is one.
struct Administration;

impl GroupProtocol for Administration {
    type Request = ShardRequest;
    type Reply = ShardReply;

    fn verdict(reply: &ShardReply) -> ReplyMeaning {
        match reply {
            ShardReply::Control(_) => ReplyMeaning::Answered,
            ShardReply::Inspect(inspection) if inspection.leads => ReplyMeaning::Answered,
            ShardReply::Inspect(inspection) => ReplyMeaning::NotLeader { leader: inspection.leader },
            ShardReply::Failed(Failure::NotLeader { leader }) => ReplyMeaning::NotLeader { leader: *leader },
            _ => ReplyMeaning::NotLeader { leader: None },
        }
    }

    fn members_request() -> ShardRequest {
        ShardRequest::Inspect
    }

    fn members(reply: ShardReply) -> Option<Addresses> {
        match reply {
            ShardReply::Inspect(inspection) => Some(inspection.replicas),
            _ => None,
        }
    }
}

/// The connections to shards' replicas. Clones share them.
#[derive(Clone)]
pub struct ShardCalls(Arc<Pool<ShardRequest, ShardReply>>);

impl Default for ShardCalls {
    fn default() -> ShardCalls {
        ShardCalls(Arc::new(Pool::new(1, Duration::from_millis(CONNECT_MS))))
    }
}

impl ShardCalls {
    /// Has the leader of a shard with these replicas answer a control request.
    ///
    /// # Errors
    /// One sentence. The request may have been executed.
    pub async fn control(&self, replicas: Addresses, request: &ControlRequest) -> Result<ControlReply, String> {
        match self.call(replicas, &ShardRequest::Control(request.clone())).await? {
            ShardReply::Control(reply) => Ok(reply),
            other => Err(format!("it answered {other:?}")),
        }
    }

    /// The state of the leader of a shard with these replicas.
    ///
    /// # Errors
    /// One sentence.
    pub async fn inspect(&self, replicas: Addresses) -> Result<Inspection, String> {
        match self.call(replicas, &ShardRequest::Inspect).await? {
            ShardReply::Inspect(inspection) => Ok(*inspection),
            other => Err(format!("it answered {other:?}")),
        }
    }

    async fn call(&self, replicas: Addresses, request: &ShardRequest) -> Result<ShardReply, String> {
        let patience = Patience { attempt: Duration::from_millis(ATTEMPT_MS), total: Duration::from_millis(TOTAL_MS) };
        let answer = Group::<Administration>::new(replicas, None, self.0.clone()).call(request, patience).await;
        answer.map_err(|unanswered| format!("{unanswered:?}"))
    }
}
